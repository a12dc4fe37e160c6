"""Export of the wide published file (`patrolscope export`).

A stage writes one part per file of annotated/, so that an interrupted export resumes. The parts are in a folder outside
the study, with its own records and ledger. A single file is joined from the parts in the order of the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from patrolscope.pipeline.contract.tables import published_table
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, StageNotRunError
from patrolscope.pipeline.export.wide import image_columns, load_gazetteer, wide
from patrolscope.pipeline.geography.layers import CENSUS_FILE, TRACTS_FILE
from patrolscope.pipeline.matching.stages import ANNOTATE
from patrolscope.pipeline.study.files import ROW_GROUP_ROWS
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import SETTINGS_FILE, Output, Study, fingerprint

if TYPE_CHECKING:
    import distributed

Form = Literal["csv", "parquet"]
PARTS_FOLDER = "published"
MADE_BY = "patrolscope export --published"
MARKER_FILE = "export.json"  # marks a folder as written by this command
JOINED_FILE = "joined.json"  # size of the joined file, in the folder of the parts
_COPY_BYTES = 4 * 2**20  # of a part copied at once


def export_published(
    study: Study,
    out: str,
    *,
    client: Callable[[], distributed.Client],
    form: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the wide file of a study: `published_table`, in the order of storage.

    Finished parts are kept. The export reads annotated/; `patrolscope run` checks whether a source has changed since.

    Parameters
    ----------
    study : Study
        Study to export.
    out : str
        Path that ends in .csv or .parquet for a single file, which is joined from a temporary folder that ends in
        .parts, and so needs its size twice. Any other path is a folder with one file per file of annotated/.
    client : callable
        Returns a Dask client; called if there is work to do.
    form : str, optional
        csv or parquet (default), for a folder.
    force : bool
        Whether to overwrite files that are not an earlier export.
    progress : Progress, optional
        Progress listener.

    Returns
    -------
    str
        Path of the file or folder.

    Raises
    ------
    StageNotRunError
        If annotated/ is missing, incomplete, or stale.
    SettingsError
        If `out` holds something else, or its ending differs from `form`.
    """
    out = out if "://" in out else str(Path(out).resolve())
    single, chosen = _form(out, form)
    _check_finished(study)
    if not single:
        parts = Study(out, study.settings)
        _claim_folder(parts, force=force)
        run_stages(parts, [_parts_stage(study, chosen, header=True)], client, progress)
        return parts.path(PARTS_FOLDER)
    parts = Study(f"{out}.parts", study.settings)
    stage = _parts_stage(study, chosen, header=False)
    made_from = fingerprint([stage.fingerprint(shard) for shard in stage.plan(parts)])
    if _is_current(out, made_from, parts, force=force):
        return out
    _claim_folder(parts, force=force)
    join = Stage(
        "join", unit="rows", folders=(), plan=partial(_plan_join, stage), process=partial(_join, form=chosen, out=out)
    )
    run_stages(parts, [stage, join], client, progress)
    _write_note(out, made_from, parts.record("join").rows_out)
    parts.fs.rm(parts.base, recursive=True)
    return out


def _form(out: str, form: str | None) -> tuple[bool, Form]:
    """Return whether the export is a single file, and its form."""
    ending = out.rsplit(".", 1)[-1]
    single = ending in ("csv", "parquet")
    chosen = ending if single else form or "parquet"
    if form not in (None, chosen):
        raise SettingsError(f"--format {form} conflicts with {out}, which ends in .{ending}; omit one of them")
    if chosen == "csv":
        return single, "csv"
    if chosen == "parquet":
        return single, "parquet"
    raise SettingsError(f"--format {chosen} is unknown; expected csv or parquet")


def _check_finished(study: Study) -> None:
    shards = ANNOTATE.plan(study)
    waiting = len(unfinished(study, ANNOTATE, shards, study.records(ANNOTATE.name)))
    fix = f"run `patrolscope annotate --study {study.root}`"
    if waiting or not shards:
        raise StageNotRunError(
            f"{waiting} of {len(shards)} files of annotated/ in {study.root} are missing or stale; {fix}"
        )
    for file in (CENSUS_FILE, TRACTS_FILE):
        if not study.exists(file):
            raise StageNotRunError(f"{study.root} has no {file}, which earlier versions did not write; {fix}")


def _claim_folder(parts: Study, *, force: bool) -> None:
    """Mark a folder as an export; reject one that holds something else."""
    if parts.exists(SETTINGS_FILE):
        raise SettingsError(f"{parts.root} is a study; choose a different folder for the export")
    if parts.fs.isfile(parts.base):
        raise SettingsError(f"{parts.root} is a file; expected a folder, or a file that ends in .csv or .parquet")
    # An export that was killed at its start can leave a hidden file.
    names = parts.fs.ls(parts.base, detail=False) if parts.fs.isdir(parts.base) else []
    foreign = any(not Path(str(name)).name.startswith(".") for name in names) and not parts.exists(MARKER_FILE)
    if foreign and not force:
        raise SettingsError(
            f"{parts.root} holds files that `patrolscope export` did not write; choose a different folder, or add "
            "--force"
        )
    try:
        parts.write_bytes(json.dumps({"made_by": MADE_BY}).encode(), MARKER_FILE)
    except OSError as error:
        raise SettingsError(f"cannot write to {parts.root} ({error.strerror}); choose a different folder") from error


def _is_current(out: str, made_from: str, parts: Study, *, force: bool) -> bool:
    """Return whether a file is an up-to-date export; raise SettingsError if it is not an export at all.

    An export that was killed between writing the file and its note leaves `JOINED_FILE` among its parts.
    """
    fs, path = fsspec.core.url_to_fs(out)
    if fs.isdir(path):
        raise SettingsError(
            f"{out} is a folder; choose a different file, or a folder that does not end in .csv or .parquet"
        )
    note = _read_note(fs, path)
    joined = json.loads(parts.read_bytes(JOINED_FILE)) if parts.exists(JOINED_FILE) else {}
    if not force:
        for name, ours in (
            (path, _size(fs, path) in (note.get("bytes"), joined.get("bytes"))),
            (_note_of(path), bool(note)),
        ):
            if fs.exists(name) and not ours:
                raise SettingsError(
                    f"{name} exists, and `patrolscope export` did not write it; choose a different file, or add "
                    "--force to overwrite it"
                )
    return fs.exists(path) and (note.get("made_from"), note.get("bytes")) == (made_from, _size(fs, path))


def _size(fs: Any, path: str) -> int | None:
    return int(fs.size(path)) if fs.exists(path) else None


def _note_of(path: str) -> str:
    return f"{path}.json"


def _read_note(fs: Any, path: str) -> dict[str, Any]:
    """Read the note of `_write_note` about a file; empty without one."""
    try:
        note = json.loads(fs.cat_file(_note_of(path)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("made_by") == MADE_BY else {}


def _write_note(out: str, made_from: str, rows: int) -> None:
    """Write the origin of a single file beside it, by which the next export recognizes it."""
    fs, path = fsspec.core.url_to_fs(out)
    note = {"made_by": MADE_BY, "made_from": made_from, "rows": rows, "bytes": _size(fs, path)}
    fs.pipe_file(_note_of(path), (json.dumps(note, indent=1) + "\n").encode())


# Parts.


def _parts_stage(study: Study, form: Form, *, header: bool) -> Stage:
    """Return the stage that writes a part per file of the study's annotated/ into the folder of an export."""
    return Stage(
        "export",
        unit="rows",
        folders=(PARTS_FOLDER,),
        plan=partial(_plan_parts, study, form, header),
        process=partial(_write_part, study),
    )


def _plan_parts(study: Study, form: Form, header: bool, _parts: Study) -> list[Shard]:
    layers = study.record("layers").content
    settings = study.settings
    windows_h = settings.annotate.felony_windows_h
    common = {
        "form": form,
        "header": header,
        "layers": layers,
        "city": settings.city.model_dump(mode="json"),
        "windows_h": windows_h,
        "table": published_table(windows_h).fingerprint(),
    }
    records = study.records(ANNOTATE.name).values()
    files = [(file, record) for record in records for file in record.files_in("annotated")]
    return [
        Shard(
            file.removeprefix("annotated/").removesuffix(".parquet").replace("/", "-"),
            {"file": file, **common},
            size=record.rows_out,
            made_from=record.content,
        )
        for file, record in sorted(files, key=lambda pair: pair[0])
    ]


def _write_part(study: Study, parts: Study, shard: Shard) -> Output:
    """Write the wide rows of one file of annotated/; memory holds the narrow rows of the file."""
    file, form = shard.work["file"], shard.work["form"]
    windows_h, time_zone = tuple(shard.work["windows_h"]), study.settings.city.time_zone
    gazetteer = load_gazetteer(study, shard.work["layers"])
    images = study.read(file, columns=image_columns(windows_h))
    name = f"{PARTS_FOLDER}/{file.removeprefix('annotated/').removesuffix('.parquet')}.{form}"
    schema = published_table(windows_h).arrow_schema()
    with (
        parts.aside(name) as path,
        parts.fs.open(path, "wb") as out,
        _writer(out, form, schema, header=shard.work["header"]) as writer,
    ):
        for start in range(0, len(images), ROW_GROUP_ROWS):
            writer.write_table(wide(images.iloc[start : start + ROW_GROUP_ROWS], gazetteer, windows_h, time_zone))
    ledger = Ledger("export", len(images))
    return Output((name,), len(images), len(images), (ledger.close(len(images)),))


@contextmanager
def _writer(out: IO[bytes], form: Form, schema: pa.Schema, *, header: bool) -> Iterator[Any]:
    if form == "csv":
        options = pyarrow.csv.WriteOptions(include_header=header)
        with pyarrow.csv.CSVWriter(out, schema, write_options=options) as writer:
            yield writer
    else:
        with pq.ParquetWriter(out, schema, compression="zstd") as writer:
            yield writer


# Single file.


def _plan_join(stage: Stage, parts: Study) -> list[Shard]:
    records = parts.records(stage.name)
    made_from = fingerprint([record.content for record in records.values()])
    return [Shard("file", {}, size=sum(record.rows_out for record in records.values()), made_from=made_from)]


def _join(parts: Study, _shard: Shard, *, form: Form, out: str) -> Output:
    """Join the parts in the order of their files; memory holds a row group."""
    records = parts.records("export").values()
    files = sorted(file for record in records for file in record.files)
    rows = sum(record.rows_out for record in records)
    folder, name = out.rsplit("/", 1)
    schema = published_table(tuple(parts.settings.annotate.felony_windows_h)).arrow_schema()
    with Study(folder, parts.settings).aside(name) as path:
        with parts.fs.open(path, "wb") as whole, _writer(whole, form, schema, header=True) as writer:
            for file in files:
                with parts.fs.open(parts.path(file), "rb") as part:
                    if form == "csv":
                        shutil.copyfileobj(part, whole, _COPY_BYTES)
                    else:
                        groups = pq.ParquetFile(part)
                        for group in range(groups.num_row_groups):
                            writer.write_table(groups.read_row_group(group))
        parts.write_bytes(json.dumps({"bytes": _size(parts.fs, path)}).encode(), JOINED_FILE)
    ledger = Ledger("join", rows)
    return Output((), rows, rows, (ledger.close(rows),))
