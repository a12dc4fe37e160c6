"""Writer of detections as YOLO text files for other tools, with a list of the processed images.

A study imports both through `sources.detections` and `sources.processed`. A file holds the boxes of one image with
their confidence, highest first. An image on the list without a file has no box; an image that is not on the list is
unprocessed. Images that share an ID, which would be the name of their file, are left out of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.detect.stages import INDEX, stage_name
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.hashing import text_keys
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import SETTINGS_FILE, Output, Study

if TYPE_CHECKING:
    import distributed

BOXES_FOLDER, LISTS_FOLDER = "labels", "lists"
LIST_FILE = "processed.txt"
MARKER_FILE = "labels.json"  # marks a folder that this command writes to
_MADE_BY = "patrolscope detect --write-labels"
_COLUMNS = ["image_id", "status", "boxes", "width", "height"]
_BOX_COLUMNS = ["box_x1", "box_y1", "box_x2", "box_y2", "box_score", "box_class"]


def write_detection_files(
    study: Study, out: str, *, client: Callable[[], distributed.Client], progress: Progress | None = None
) -> str:
    """Write the detections of a study to a folder, without repeating files that are up to date.

    Parameters
    ----------
    study : Study
        Study with detections.
    out : str
        Path or URL of the folder. Files of other detections in it are removed.
    client : callable
        Returns the Dask client.
    progress : Progress, optional
        Progress listener.

    Returns
    -------
    str
        Line for the terminal.

    Raises
    ------
    SettingsError
        If the folder contains files of another origin or cannot be written.
    """
    folder = Study(out, study.settings)
    _check_folder(folder)
    run_stages(folder, [_stage(study)], client, progress)
    lists = sorted(name for record in folder.records("write-labels").values() for name in record.files_in(LISTS_FOLDER))
    with folder.aside(LIST_FILE) as path, folder.fs.open(path, "wb") as joined:
        for name in lists:
            joined.write(folder.read_bytes(name))
    return (
        f"detection files: {folder.path(BOXES_FOLDER)}, processed images: {folder.path(LIST_FILE)}; set "
        f"sources.detections and sources.processed in study.yaml to use them"
    )


def _check_folder(folder: Study) -> None:
    if folder.exists(SETTINGS_FILE) or folder.fs.isfile(folder.base):
        raise SettingsError(
            f"--write-labels {folder.root} is a study or a file; expected an empty folder; choose a different one"
        )
    content = folder.fs.ls(folder.base, detail=False) if folder.fs.isdir(folder.base) else []
    if content and not folder.exists(MARKER_FILE):
        raise SettingsError(
            f"--write-labels {folder.root} has files that `{_MADE_BY}` did not write; expected an empty folder; choose "
            "a different one"
        )
    try:
        folder.write_bytes(json.dumps({"made_by": _MADE_BY}).encode(), MARKER_FILE)
    except OSError as error:
        raise SettingsError(
            f"--write-labels: cannot write to {folder.root} ({error.strerror}); choose a different folder"
        ) from error


def _stage(study: Study) -> Stage:
    return Stage(
        "write-labels",
        unit="images",
        folders=(BOXES_FOLDER, LISTS_FOLDER),
        plan=partial(_plan, study),
        process=partial(_process, study),
    )


def _plan(study: Study, _folder: Study) -> list[Shard]:
    """Plan one shard per file of detections, with the IDs of its images that other images share."""
    shared = _shared_ids(study)
    return [
        Shard(record.shard, {"file": file, "shared": shared.get(record.shard, [])}, record.rows_out, record.content)
        for record in study.records(stage_name(study)).values()
        for file in record.files
    ]


def _shared_ids(study: Study) -> dict[str, list[str]]:
    """Return IDs that several images share, by shard, from the index, which has fewer files than the detections."""
    files = [file for record in study.records(INDEX.name).values() for file in record.files]
    ids = (text_keys(study.read_arrow(file, ["image_id"])["image_id"]) for file in files)
    keys, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *ids]), return_counts=True)
    shared = keys[counts > 1]
    if not len(shared):
        return {}
    tables = (study.read_arrow(file, ["image_id", "shard"]) for file in files)
    rows = pa.concat_tables(table.filter(np.isin(text_keys(table["image_id"]), shared)) for table in tables)
    return rows.to_pandas().groupby("shard")["image_id"].agg(lambda image_ids: sorted(set(image_ids))).to_dict()


def _process(study: Study, folder: Study, shard: Shard) -> Output:
    detections = study.read(shard.work["file"], columns=_COLUMNS + _BOX_COLUMNS)
    shared = detections["image_id"].isin(shard.work["shared"])
    scored = detections[(detections["status"] == "scored") & ~shared]
    files = []
    for row in scored[scored["boxes"] > 0].to_dict("records"):
        boxes = pd.DataFrame({name: row[name] for name in _BOX_COLUMNS})
        text = yolo_text(boxes, width=int(row["width"]), height=int(row["height"]))
        files.append(folder.write_bytes(text.encode(), BOXES_FOLDER, f"{row['image_id']}.txt"))
    lines = "".join(f"{image_id}\n" for image_id in scored["image_id"])
    files.append(folder.write_bytes(lines.encode(), LISTS_FOLDER, f"{shard.name}.txt"))
    ledger = Ledger("write-labels", len(detections))
    ledger.drop(int(shared.sum()), why="ID of several images, which would share a detection file: not on the list")
    ledger.drop(len(detections) - len(scored) - int(shared.sum()), why="unprocessed image: not on the list")
    return Output(tuple(files), len(detections), len(scored), (ledger.close(len(scored)),))


def yolo_text(boxes: pd.DataFrame, *, width: int, height: int) -> str:
    """Format boxes as lines `class cx cy w h conf`, relative to the size of the image.

    Parameters
    ----------
    boxes : DataFrame
        Columns `box_x1`, `box_y1`, `box_x2`, `box_y2` (pixels), `box_score`, and `box_class`.
    width, height : int
        Size of the image in pixels.

    Returns
    -------
    str
        One line per box. The confidence has nine digits, so that a reader recovers the same 32-bit number.
    """
    left, top, right, bottom = (boxes[f"box_{edge}"].astype(float) for edge in ("x1", "y1", "x2", "y2"))
    columns = (
        boxes["box_class"],
        (left + right) / (2 * width),
        (top + bottom) / (2 * height),
        (right - left) / width,
        (bottom - top) / height,
        boxes["box_score"],
    )
    return "".join(
        f"{number} {cx:.6g} {cy:.6g} {w:.6g} {h:.6g} {score:.9g}\n"
        for number, cx, cy, w, h, score in zip(*columns, strict=True)
    )
