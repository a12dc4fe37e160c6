"""Labels that people gave to images of the study itself, joined with what the detector found in them.

A label names its image, without a score: by `<ride>/<file>` at the end of a path, or by the file's name alone; in both
the file's ending does not count. One distributed pass over annotated/ finds the images.
"""

from __future__ import annotations

from functools import partial

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from patrolscope.pipeline.contract.tables import annotated_table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.files import ROW_GROUP_ROWS
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study, fingerprint

LABEL_COLUMNS = ("image_ref", "image")
STAGING = "staging/labeled"
# The last folder and the name of a path, without the ending of the name.
_PARTS = r"(?P<path>(?:[^/]*/)?(?P<name>[^/]*?))(?:\.[^./]*)?$"


def read_labels(path: str) -> pd.DataFrame:
    """Labels without scores: `image` (as written), `ground_truth` (0 or 1), `key` (what it is found by).

    Parameters
    ----------
    path : CSV (path or URL) with image_ref, or image, and ground_truth

    Raises
    ------
    SourceError : no such file, no CSV, a column is missing, a truth that is neither 0 nor 1, an image without a name
    """
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        raise SourceError(f"{path} does not exist; --ground-truth names a CSV file with image_ref and ground_truth")
    try:
        with fs.open(name, "rb") as file:
            frame = pd.read_csv(file, encoding="utf-8-sig", dtype="str")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} (--ground-truth) is not a CSV file: {error}") from error
    column = next((one for one in LABEL_COLUMNS if one in frame.columns), None)
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
            f"{path} (--ground-truth): {len(wrong)} of {len(frame)} rows have a ground_truth that is neither 0 nor 1, the "
            f"first {first} in row {wrong.index[0] + 1}"
        )
    if frame[column].isna().any():
        raise SourceError(f"{path} (--ground-truth): {frame[column].isna().sum()} of {len(frame)} rows name no image")
    # The path is the name itself where the label has no folder.
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
    """Images that a label names, by its path or its name."""
    parts = _parts(images["image_ref"])
    return images[parts["path"].isin(labels["key"]) | parts["name"].isin(labels["key"])]


def join_labels(labels: pd.DataFrame, images: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Images of the study with the label that names them: columns of annotated/, `ground_truth` and `score`.

    A label that names no image, or several, is dropped and counted; so is one of an image that was not run through the
    detector (it is no evidence), and a label that says again what an earlier one said.

    Raises
    ------
    SourceError : no label names an image that was run through the detector; two labels of one image differ
    """
    parts = _parts(images["image_ref"])
    places = pd.concat(
        [pd.DataFrame({"key": parts[kind].to_numpy(), "place": range(len(parts))}) for kind in ("path", "name")]
    ).drop_duplicates()
    found = labels.assign(label=range(len(labels))).merge(places, on="key", how="left")
    named = found.groupby("label")["place"].count()
    ledger.drop(int((named == 0).sum()), why="no image of this name in annotated/")
    ledger.drop(int((named > 1).sum()), why="several images of this name in annotated/")
    found = found[found["label"].map(named) == 1]
    if found.empty:
        raise SourceError(
            f"none of {len(labels)} labels names one image of the study, the first {labels['image'].iloc[0]!r}: "
            f"expected an image_ref of annotated/, <ride>/<file>, or a file's name that occurs once"
        )
    truths = found.groupby("place")["ground_truth"].agg(["nunique", "first"])
    if (truths["nunique"] > 1).any():
        reference = images["image_ref"].iloc[int(truths.index[truths["nunique"] > 1][0])]
        raise SourceError(f"--ground-truth: {(truths['nunique'] > 1).sum()} images have two labels that differ: {reference}")
    ledger.drop(len(found) - len(truths), why="a second label of the same image")
    rows = images.iloc[truths.index.astype("int64")].reset_index(drop=True)
    rows = rows.assign(ground_truth=truths["first"].to_numpy(), score=rows["conf"])
    rows = ledger.keep(rows, rows["processed"], why="not processed by the detector")
    if rows.empty:
        raise SourceError(f"none of the {len(truths)} labeled images was run through the detector: nothing to evaluate")
    return rows.sort_values(["source", "source_row"], ignore_index=True)


# The stage: one part for each file of annotated images.


def plan_labeled(study: Study, *, labels: str | None) -> list[Shard]:
    """One shard a file of annotated/; none without labels."""
    if labels is None:
        return []
    read_labels(labels)
    study.files("annotated")  # says what to do where there are none
    common = {"labels": labels, "content": labels_content(labels)}
    return [
        Shard(record.shard, {"file": file, **common}, size=record.rows_out, made_from=record.fingerprint)
        for record in study.records("annotate").values()
        for file in record.files_in("annotated")
    ]


def labels_content(path: str) -> str:
    """Digest of a labels file."""
    fs, name = fsspec.core.url_to_fs(path)
    return fingerprint(fs.cat_file(name).hex())


def process_labeled(study: Study, shard: Shard) -> Output:
    """Write the rows of one file of annotated/ that a label names."""
    file = shard.work["file"]
    labels = read_labels(shard.work["labels"])
    table = annotated_table(study.settings.annotate.felony_windows_h)
    # Batches: a worker does not hold a day of all columns for the few rows that are wanted.
    rows = pd.concat([named_in(batch, labels) for batch in study.batches(file, list(table.names), ROW_GROUP_ROWS)])
    ledger = Ledger("named by a label", shard.size)
    ledger.drop(shard.size - len(rows), why="no label")
    files = () if rows.empty else (study.write(table, table.conform(rows), file.replace("annotated", STAGING, 1)),)
    return Output(files, shard.size, len(rows), (ledger.close(len(rows)),))


def labeled_images(study: Study) -> pd.DataFrame:
    """Rows of annotated/ that the labels name."""
    table = annotated_table(study.settings.annotate.felony_windows_h)
    files = [file for record in study.records("labeled").values() for file in record.files]
    return pd.concat([table.empty(), *(study.read(file) for file in files)], ignore_index=True)


def labeled_stage(labels: str | None) -> Stage:
    """The stage for one labels file; None forgets what an earlier one left."""
    return Stage(
        "labeled",
        unit="rows",
        folders=(STAGING,),
        plan=partial(plan_labeled, labels=labels),
        process=process_labeled,
    )
