"""Ground-truth labels for images of the study, joined with the detections.

A label identifies its image by `<ride>/<file>` at the end of a path, or by the file name alone, both without regard to
the extension. One distributed pass over annotated/ finds the images.
"""

from __future__ import annotations

import io
from functools import partial

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.contract.tables import annotated_table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake.compression import read_text
from patrolscope.pipeline.study.files import ROW_GROUP_ROWS
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study, fingerprint

LABEL_COLUMNS = ("image_ref", "image")
STAGING = "staging/labeled"
# Last folder and file name of a path, without the extension.
_PARTS = r"(?P<path>(?:[^/]*/)?(?P<name>[^/]*?))(?:\.[^./]*)?$"


def read_labels(path: str) -> pd.DataFrame:
    """Read ground-truth labels.

    Parameters
    ----------
    path : str
        Path or URL of a CSV file with ground_truth, and image_ref or image.

    Returns
    -------
    DataFrame
        image (as written), ground_truth (0 or 1), key (name to match).

    Raises
    ------
    SourceError
        If the file does not exist, is not CSV, lacks a column, has a ground_truth other than 0 or 1, or a row without
        an image.
    """
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(f"{path} does not exist; --ground-truth expects a CSV file with image_ref and ground_truth")
    text = io.BytesIO(read_text(fs, name))
    try:
        frame = pd.read_csv(text, encoding="utf-8-sig", dtype="str", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} (--ground-truth) is not a CSV file: {error}") from error
    column = next((name for name in LABEL_COLUMNS if name in frame.columns), None)
    if column is None or "ground_truth" not in frame.columns:
        raise SourceError(
            f"{path} (--ground-truth) has the columns {', '.join(frame.columns)}; expected ground_truth, and "
            f"{' or '.join(LABEL_COLUMNS)}"
        )
    truth = pd.to_numeric(frame["ground_truth"], errors="coerce")
    if not truth.isin([0, 1]).all():
        wrong = frame["ground_truth"][~truth.isin([0, 1])]
        first = "nothing" if pd.isna(wrong.iloc[0]) else repr(wrong.iloc[0])
        raise SourceError(
            f"{path} (--ground-truth): {len(wrong)} of {len(frame)} rows have a ground_truth that is neither 0 nor 1, "
            f"the first {first} in row {wrong.index[0] + 1}"
        )
    if frame[column].isna().any():
        raise SourceError(f"{path} (--ground-truth): {frame[column].isna().sum()} of {len(frame)} rows name no image")
    # Without a folder, the path equals the name.
    return pd.DataFrame(
        {"image": frame[column], "ground_truth": truth.astype("int8"), "key": _parts(frame[column])["path"]}
    )


def _parts(references: pd.Series[str]) -> pd.DataFrame:
    found = pc.extract_regex(pa.array(references, type=pa.string()), _PARTS)
    return pd.DataFrame(
        {name: pc.struct_field(found, name).to_pandas().to_numpy() for name in ("path", "name")},
        index=references.index,
        dtype="str",
    )


def named_in(images: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return the images that a label identifies by path or name."""
    parts = _parts(images["image_ref"])
    return images[parts["path"].isin(labels["key"]) | parts["name"].isin(labels["key"])]


def join_labels(labels: pd.DataFrame, images: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Join labels with the images of the study.

    Labels that match no image or several, labels of unprocessed images, and duplicate labels are dropped and counted.

    Parameters
    ----------
    labels : DataFrame
        Output of `read_labels`.
    images : DataFrame
        Rows of annotated/.
    ledger : Ledger
        Ledger of the labels.

    Returns
    -------
    DataFrame
        Columns of annotated/, `ground_truth`, and `score`; one row per labeled image.

    Raises
    ------
    SourceError
        If no label matches a processed image, or two labels of one image differ.
    """
    parts = _parts(images["image_ref"])
    positions = pd.concat(
        [pd.DataFrame({"key": parts[kind].to_numpy(), "position": range(len(parts))}) for kind in ("path", "name")]
    ).drop_duplicates()
    found = labels.assign(label=range(len(labels))).merge(positions, on="key", how="left")
    named = found.groupby("label")["position"].count()
    ledger.drop(int((named == 0).sum()), why="no image of this name in annotated/")
    ledger.drop(int((named > 1).sum()), why="several images of this name in annotated/")
    found = found[found["label"].map(named) == 1]
    if found.empty:
        raise SourceError(
            f"none of {len(labels)} labels matches exactly one image of the study, the first "
            f"{labels['image'].iloc[0]!r}; expected an image_ref of annotated/, <ride>/<file>, or a unique file name"
        )
    truths = found.groupby("position")["ground_truth"].agg(["nunique", "first"])
    if (truths["nunique"] > 1).any():
        reference = images["image_ref"].iloc[int(truths.index[truths["nunique"] > 1][0])]
        raise SourceError(
            f"--ground-truth: {(truths['nunique'] > 1).sum()} images have contradictory labels, the first {reference}"
        )
    ledger.drop(len(found) - len(truths), why="a second label of the same image")
    rows = images.iloc[truths.index.astype("int64")].reset_index(drop=True)
    rows = rows.assign(ground_truth=truths["first"].to_numpy(), score=rows["conf"])
    rows = ledger.keep(rows, rows["processed"], why="not processed by the detector")
    if rows.empty:
        raise SourceError(
            f"none of the {len(truths)} labeled images was processed by the detector; expected at least one"
        )
    return rows.sort_values(["source", "source_row"], ignore_index=True)


# The stage: one shard per file of annotated images.


def plan_labeled(study: Study, *, labels: str | None) -> list[Shard]:
    """Plan one shard per file of annotated/, or none without labels."""
    if labels is None:
        return []
    read_labels(labels)
    study.files("annotated")  # raises if annotate has not run
    common = {"labels": labels, "content": labels_content(labels)}
    return [
        Shard(record.shard, {"file": file, **common}, size=record.rows_out, made_from={file: record.content})
        for record in study.records("annotate").values()
        for file in record.files_in("annotated")
    ]


def labels_content(path: str) -> str:
    """Return the digest of a file of labels."""
    fs, name = fsspec.core.url_to_fs(path)
    return fingerprint(fs.cat_file(name).hex())


def process_labeled(study: Study, shard: Shard) -> Output:
    """Write the labeled rows of one file of annotated/."""
    file = shard.work["file"]
    labels = read_labels(shard.work["labels"])
    table = annotated_table(study.settings.annotate.felony_windows_h)
    # Read in batches: only few rows of a day are labeled.
    rows = pd.concat([named_in(batch, labels) for batch in study.batches(file, list(table.names), ROW_GROUP_ROWS)])
    ledger = Ledger("named by a label", shard.size)
    ledger.drop(shard.size - len(rows), why="no label")
    files = () if rows.empty else (study.write(table, table.conform(rows), file.replace("annotated", STAGING, 1)),)
    return Output(files, shard.size, len(rows), (ledger.close(len(rows)),))


def labeled_images(study: Study) -> pd.DataFrame:
    """Read the labeled rows of annotated/."""
    table = annotated_table(study.settings.annotate.felony_windows_h)
    files = [file for record in study.records("labeled").values() for file in record.files]
    return pd.concat([table.empty(), *(study.read(file) for file in files)], ignore_index=True)


def labeled_stage(labels: str | None) -> Stage:
    """Build the stage for one file of labels; None removes earlier output."""
    return Stage(
        "labeled",
        unit="rows",
        folders=(STAGING,),
        plan=partial(plan_labeled, labels=labels),
        process=process_labeled,
    )
