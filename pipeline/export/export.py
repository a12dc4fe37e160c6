"""`patrolscope export`: the wide file as released, for people who want it.

A part is written for every file of annotated/, by the machinery of the stages, so that an export that was stopped goes
on. The parts lie in a folder with records and ledger of their own, beside the study, not in it; a single file is put
together from them in the order of the files, a piece at a time.
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
from patrolscope.pipeline.engine.run import Progress, run_stages, unfinished
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, StageNotRunError
from patrolscope.pipeline.export.wide import image_columns, load_gazetteer, wide
from patrolscope.pipeline.geography.layers import CENSUS_FILE, TRACTS_FILE
from patrolscope.pipeline.matching.annotate import ANNOTATE
from patrolscope.pipeline.study.files import ROW_GROUP_ROWS
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import SETTINGS_FILE, Output, Study, fingerprint

if TYPE_CHECKING:
    import distributed

Form = Literal["csv", "parquet"]
PARTS_FOLDER = "published"
MADE_BY = "patrolscope export --published"
MARKER_FILE = "export.json"  # in a folder that this command writes to
JOINED_FILE = "joined.json"  # in the folder beside a single file: the size of the file that was put together
_PIECE_BYTES = 4 * 2**20  # of a part copied at once


def export_published(
    study: Study,
    out: str,
    *,
    client: Callable[[], distributed.Client],
    form: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the wide file of a study: `published_table`, in the order of storage. Returns where it lies.

    What annotated/ holds is taken; `patrolscope run` looks whether a source has changed since.

    Parameters
    ----------
    out : ends in .csv or .parquet: one file, put together beside it in a folder that ends in .parts and goes at the
        end, so that it needs its own size twice; else a folder, which gets a file for every file of annotated/
    form : csv or parquet, of the files of a folder (by default parquet)
    force : overwrite something that is no earlier export of this command

    What is finished is not made again.

    Raises
    ------
    StageNotRunError : annotated/ is missing, incomplete or out of date
    SettingsError : `out` holds something else, or its ending and `form` differ
    """
    out = out if "://" in out else str(Path(out).resolve())
    single, wanted = _form(out, form)
    _refuse_unfinished(study)
    if not single:
        parts = Study(out, study.settings)
        _refuse_foreign(parts, force=force)
        run_stages(parts, [_parts_stage(study, wanted, header=True)], client, progress)
        return parts.path(PARTS_FOLDER)
    parts = Study(f"{out}.parts", study.settings)
    stage = _parts_stage(study, wanted, header=False)
    made_from = fingerprint([stage.fingerprint(shard) for shard in stage.plan(parts)])
    if _is_made(out, made_from, parts, force=force):
        return out
    _refuse_foreign(parts, force=force)
    join = Stage(
        "join", unit="rows", folders=(), plan=partial(_plan_join, stage), process=partial(_join, form=wanted, out=out)
    )
    run_stages(parts, [stage, join], client, progress)
    _write_note(out, made_from, parts.record("join").rows_out)
    parts.fs.rm(parts.base, recursive=True)
    return out


def _form(out: str, form: str | None) -> tuple[bool, Form]:
    """Whether one file is wanted, and in which form."""
    ending = out.rsplit(".", 1)[-1]
    single = ending in ("csv", "parquet")
    wanted = ending if single else form or "parquet"
    if form not in (None, wanted):
        raise SettingsError(f"--format {form}, but {out} ends in .{ending}: leave one of them out")
    if wanted == "csv":
        return single, "csv"
    if wanted == "parquet":
        return single, "parquet"
    raise SettingsError(f"--format {wanted}: expected csv or parquet")


def _refuse_unfinished(study: Study) -> None:
    shards = ANNOTATE.plan(study)
    waiting = len(unfinished(study, ANNOTATE, shards, study.records(ANNOTATE.name)))
    make = f"run `patrolscope annotate --study {study.root}`"
    if waiting or not shards:
        raise StageNotRunError(
            f"{waiting} of {len(shards)} files of annotated/ in {study.root} are missing or out of date: {make}"
        )
    for file in (CENSUS_FILE, TRACTS_FILE):
        if not study.exists(file):
            raise StageNotRunError(f"{study.root} has no {file}, which earlier versions did not make: {make}")


def _refuse_foreign(parts: Study, *, force: bool) -> None:
    """Refuse a folder that holds something else than an export, and mark the folder as one."""
    if parts.exists(SETTINGS_FILE):
        raise SettingsError(f"{parts.root} is a study: name another folder for the export")
    if parts.fs.isfile(parts.base):
        raise SettingsError(f"{parts.root} is a file: name a folder, or a file that ends in .csv or .parquet")
    # A hidden file can be left by an export that was killed at its very start.
    there = parts.fs.ls(parts.base, detail=False) if parts.fs.isdir(parts.base) else []
    foreign = any(not Path(str(name)).name.startswith(".") for name in there) and not parts.exists(MARKER_FILE)
    if foreign and not force:
        raise SettingsError(
            f"{parts.root} holds something that `patrolscope export` did not write: name another folder, or give "
            f"--force to write there all the same"
        )
    try:
        parts.write_bytes(json.dumps({"made_by": MADE_BY}).encode(), MARKER_FILE)
    except OSError as error:
        raise SettingsError(f"{parts.root} can not be written to ({error.strerror}): name another place") from error


def _is_made(out: str, made_from: str, parts: Study, *, force: bool) -> bool:
    """Whether the file is there, made from the same; refuses one that is no earlier export.

    An export that was killed when the file was in place, and the note not, has left `JOINED_FILE` among its parts.
    """
    fs, path = fsspec.core.url_to_fs(out)
    if fs.isdir(path):
        raise SettingsError(f"{out} is a folder: name another file, or a folder without .csv or .parquet at its end")
    note = _read_note(fs, path)
    joined = json.loads(parts.read_bytes(JOINED_FILE)) if parts.exists(JOINED_FILE) else {}
    if not force:
        for name, ours in (
            (path, _size(fs, path) in (note.get("bytes"), joined.get("bytes"))),
            (_note_of(path), bool(note)),
        ):
            if fs.exists(name) and not ours:
                raise SettingsError(
                    f"{name} is there, and it is not what `patrolscope export` wrote: name another file, or give "
                    f"--force to overwrite it"
                )
    return fs.exists(path) and (note.get("made_from"), note.get("bytes")) == (made_from, _size(fs, path))


def _size(fs: Any, path: str) -> int | None:
    return int(fs.size(path)) if fs.exists(path) else None


def _note_of(path: str) -> str:
    return f"{path}.json"


def _read_note(fs: Any, path: str) -> dict[str, Any]:
    """What `_write_note` said of a file; empty where it said nothing."""
    try:
        note = json.loads(fs.cat_file(_note_of(path)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("made_by") == MADE_BY else {}


def _write_note(out: str, made_from: str, rows: int) -> None:
    """Say beside a single file what made it, so that the next export knows its own."""
    fs, path = fsspec.core.url_to_fs(out)
    note = {"made_by": MADE_BY, "made_from": made_from, "rows": rows, "bytes": _size(fs, path)}
    fs.pipe_file(_note_of(path), (json.dumps(note, indent=1) + "\n").encode())


# The parts.


def _parts_stage(study: Study, form: Form, *, header: bool) -> Stage:
    """Stage of the folder of an export that writes a part for every file of the study's annotated/."""
    return Stage(
        "export",
        unit="rows",
        folders=(PARTS_FOLDER,),
        plan=partial(_plan_parts, study, form, header),
        process=partial(_write_part, study),
    )


def _plan_parts(study: Study, form: Form, header: bool, _parts: Study) -> list[Shard]:
    layers = study.record("layers").fingerprint
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
            made_from=record.fingerprint,
        )
        for file, record in sorted(files, key=lambda one: one[0])
    ]


def _write_part(study: Study, parts: Study, shard: Shard) -> Output:
    """Write the wide rows of one file of annotated/; memory grows with the narrow rows of the file."""
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


# One file from the parts.


def _plan_join(stage: Stage, parts: Study) -> list[Shard]:
    records = parts.records(stage.name)
    made_from = fingerprint([record.fingerprint for record in records.values()])
    return [Shard("file", {}, size=sum(record.rows_out for record in records.values()), made_from=made_from)]


def _join(parts: Study, _shard: Shard, *, form: Form, out: str) -> Output:
    """Put the parts together, in the order of their files; memory holds a piece of one."""
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
                        shutil.copyfileobj(part, whole, _PIECE_BYTES)
                    else:
                        groups = pq.ParquetFile(part)
                        for group in range(groups.num_row_groups):
                            writer.write_table(groups.read_row_group(group))
        parts.write_bytes(json.dumps({"bytes": _size(parts.fs, path)}).encode(), JOINED_FILE)
    ledger = Ledger("join", rows)
    return Output((), rows, rows, (ledger.close(rows),))
