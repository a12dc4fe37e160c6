"""Detections as YOLO label files, for other tools: one file an image with boxes, and the list of images looked at.

`patrolscope import-detections` reads both back. A file is written for every image with a box, best box first, with its
confidence; no file means no box where the image is on the list, and nothing where it is not. Images that have an id in
common, by which a file would be named, are left out of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.detect.image_index import INDEX
from patrolscope.pipeline.detect.stage import stage_name
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.hashing import text_keys
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import SETTINGS_FILE, Output, Study

if TYPE_CHECKING:
    import distributed

LABELS_FOLDER, LISTS_FOLDER = "labels", "lists"
LIST_FILE = "processed.txt"
MARKER_FILE = "labels.json"  # in a folder that this command writes to
_MADE_BY = "patrolscope detect --write-labels"
_COLUMNS = ["image_id", "status", "boxes", "width", "height"]
_BOX_COLUMNS = ["box_x1", "box_y1", "box_x2", "box_y2", "box_score", "box_class"]


def write_label_files(
    study: Study, out: str, *, client: Callable[[], distributed.Client], progress: Progress | None = None
) -> str:
    """Write the detections that the study uses to a folder; returns a line for the reader.

    What is finished there is not written again; label files of other detections go.

    Raises
    ------
    SettingsError : the folder holds something else
    """
    folder = Study(out, study.settings)
    _refuse_foreign(folder)
    run_stages(folder, [_stage(study)], client, progress)
    lists = sorted(name for record in folder.records("write-labels").values() for name in record.files_in(LISTS_FOLDER))
    with folder.aside(LIST_FILE) as path, folder.fs.open(path, "wb") as whole:
        for name in lists:
            whole.write(folder.read_bytes(name))
    return (
        f"label files: {folder.path(LABELS_FOLDER)}, images looked at: {folder.path(LIST_FILE)}; for sources.detections "
        f"and sources.processed of a study.yaml"
    )


def _refuse_foreign(folder: Study) -> None:
    if folder.exists(SETTINGS_FILE) or folder.fs.isfile(folder.base):
        raise SettingsError(f"{folder.root} is a study or a file: name another folder for the label files")
    there = folder.fs.ls(folder.base, detail=False) if folder.fs.isdir(folder.base) else []
    if there and not folder.exists(MARKER_FILE):
        raise SettingsError(
            f"{folder.root} holds something that `{_MADE_BY}` did not write: name a new or an empty folder"
        )
    try:
        folder.write_bytes(json.dumps({"made_by": _MADE_BY}).encode(), MARKER_FILE)
    except OSError as error:
        raise SettingsError(f"{folder.root} can not be written to ({error.strerror}): name another place") from error


def _stage(study: Study) -> Stage:
    return Stage(
        "write-labels",
        unit="images",
        folders=(LABELS_FOLDER, LISTS_FOLDER),
        plan=partial(_plan, study),
        process=partial(_process, study),
    )


def _plan(study: Study, _folder: Study) -> list[Shard]:
    """One shard a file of detections, which is told the ids of its images that others have, too."""
    shared = _shared_ids(study)
    return [
        Shard(record.shard, {"file": file, "shared": shared.get(record.shard, [])}, record.rows_out, record.fingerprint)
        for record in study.records(stage_name(study)).values()
        for file in record.files
    ]


def _shared_ids(study: Study) -> dict[str, list[str]]:
    """Ids that several images have, by shard; from the index, which has fewer files than the detections."""
    files = [file for record in study.records(INDEX.name).values() for file in record.files]
    ids = (text_keys(study.read_arrow(file, ["image_id"])["image_id"]) for file in files)
    keys, times = np.unique(np.concatenate([np.empty(0, np.uint64), *ids]), return_counts=True)
    shared = keys[times > 1]
    if not len(shared):
        return {}
    tables = (study.read_arrow(file, ["image_id", "shard"]) for file in files)
    found = pa.concat_tables(rows.filter(np.isin(text_keys(rows["image_id"]), shared)) for rows in tables)
    return found.to_pandas().groupby("shard")["image_id"].agg(lambda some: sorted(set(some))).to_dict()


def _process(study: Study, folder: Study, shard: Shard) -> Output:
    detections = study.read(shard.work["file"], columns=_COLUMNS + _BOX_COLUMNS)
    shared = detections["image_id"].isin(shard.work["shared"])
    scored = detections[(detections["status"] == "scored") & ~shared]
    files = []
    for row in scored[scored["boxes"] > 0].to_dict("records"):
        boxes = pd.DataFrame({name: row[name] for name in _BOX_COLUMNS})
        text = label_text(boxes, width=int(row["width"]), height=int(row["height"]))
        files.append(folder.write_bytes(text.encode(), LABELS_FOLDER, f"{row['image_id']}.txt"))
    lines = "".join(f"{image_id}\n" for image_id in scored["image_id"])
    files.append(folder.write_bytes(lines.encode(), LISTS_FOLDER, f"{shard.name}.txt"))
    ledger = Ledger("write-labels", len(detections))
    ledger.drop(int(shared.sum()), why="id of several images, which would share a label file: not on the list")
    ledger.drop(len(detections) - len(scored) - int(shared.sum()), why="image that was not looked at: not on the list")
    return Output(tuple(files), len(detections), len(scored), (ledger.close(len(scored)),))


def label_text(boxes: pd.DataFrame, *, width: int, height: int) -> str:
    """Lines `class cx cy w h conf`, in shares of the image's width and height.

    Confidence has nine digits, so that reading it gives the same number of 32 bits.
    """
    across, down = (boxes[f"box_{axis}1"].astype(float) for axis in "xy")
    right, lower = (boxes[f"box_{axis}2"].astype(float) for axis in "xy")
    columns = (
        boxes["box_class"],
        (across + right) / (2 * width),
        (down + lower) / (2 * height),
        (right - across) / width,
        (lower - down) / height,
        boxes["box_score"],
    )
    return "".join(
        f"{number} {cx:.6g} {cy:.6g} {w:.6g} {h:.6g} {score:.9g}\n"
        for number, cx, cy, w, h, score in zip(*columns, strict=True)
    )
