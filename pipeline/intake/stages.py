"""Stages of `ingest` and of detection files.

READ parses blocks of the raw files: valid rows go to staging/ by day, and so do rejected lines with their reason. A
block does not know the number of lines before it, so its rows are numbered from 0. SET_ASIDE and ARRANGE derive line
numbers from the records of READ, and write quarantine/ and metadata/. The result does not depend on the block size.

LABELS imports detection files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa

from patrolscope.pipeline.contract.tables import DETECTIONS, METADATA, QUARANTINE, SUPPLIED, supplied_table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import BadFileError, SourceError, StageNotRunError
from patrolscope.pipeline.intake import detection_files, staging
from patrolscope.pipeline.intake.arrange import (
    STAGED,
    STAGED_BAD,
    arrange,
    arrange_supplied,
    order_rows,
    staged_rows,
)
from patrolscope.pipeline.intake.days import BIN_MS, Calendar, limits_of, slice_day
from patrolscope.pipeline.intake.raw_csv import COLUMNS, SPLIT_OF_ANNOTATED, read_rows, unknown_columns
from patrolscope.pipeline.intake.raw_files import SHOWN_NAMES, RawFiles, find_raw_files
from patrolscope.pipeline.intake.staging import BAD_FOLDER, STAGED_FOLDER, FinishedBlock, StagedFile
from patrolscope.pipeline.intake.supplied_columns import (
    KEPT,
    columns_read,
    kept_names,
    missing_columns,
    typed_columns,
)
from patrolscope.pipeline.names import shown
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint

# A slice has fewer rows if more columns are read as text: eight texts of a million rows take 0.4 GB, held twice.
TEXTS_PER_SLICE = 8
LONGEST_NAME = 120  # bytes of a raw file's name in the names of staged files
DUPLICATES_FOLDER = "staging/duplicates"  # references of dropped images, for the account of their detections
LEFT_OUT = "left-out"  # shard that notes files; those of blocks end with a number


def plan_read(study: Study) -> list[Shard]:
    """Plan a shard per block of each raw file, in source order: by the numbers in the file name, then by name.

    Raises
    ------
    SourceError
        If there are no files, two have the same name, or a header is invalid. The message lists all faults.
    """
    settings = study.settings
    found = find_raw_files(study)
    files = found.read
    kept = kept_names(source.header for source in files) if settings.ingest.keep_unknown else {}
    supplied = supplied_table(settings.annotate.felony_windows_h).fingerprint()
    rules = {
        "city.bounds": settings.city.bounds.model_dump(),
        "city.time_zone": settings.city.time_zone,
        "period": settings.period.model_dump(mode="json"),
    }
    blocks = [
        Shard(
            name=f"{_file_safe(source.name)}-{number:05d}",
            work={
                "source": source.name,
                "path": source.path,
                "bytes": source.bytes,
                "modified": source.modified,
                "form": source.form,
                "columns": source.header.columns,
                "texts": sorted(columns_read(source.header, settings, kept).items()),
                "annotated": source.header.annotated,
                "first": source.header.end,
                "start": start,
                "stop": stop,
            },
            size=stop - start,
            made_from=rules | {"the published columns": supplied if source.header.annotated else ""},
        )
        for source in files
        for number, (start, stop) in enumerate(staging.blocks(source, settings.ingest.block_bytes))
    ]
    return blocks + _plan_left_out(found)


def _file_safe(name: str) -> str:
    """Return a name as part of a file name, which has at most 255 bytes on most disks."""
    quoted = quote(name, safe="")
    return quoted if len(quoted) <= LONGEST_NAME else f"{quoted[:LONGEST_NAME]}-{fingerprint(name)}"


def _plan_left_out(found: RawFiles) -> list[Shard]:
    """Plan a shard that notes the files that are not read, if there are any."""
    notes = {skipped_note(fault): 1 for fault in found.skipped}
    for reason, names in sorted(found.left_out.items()):
        listed = ", ".join(map(shown, sorted(names)[:SHOWN_NAMES])) + ", ..." * (len(names) > SHOWN_NAMES)
        notes[f"files not read ({reason}): {listed}"] = len(names)
    return [Shard(LEFT_OUT, {"notes": sorted(notes.items())}, size=0)] if notes else []


def process_read(study: Study, shard: Shard) -> Output:
    """Stage the rows of a block by local day, and its rejected lines.

    Raises
    ------
    SourceError
        If the file is unreadable, or has changed since the work was planned.
    BadFileError
        If the file is damaged, and `ingest.skip_bad_files` is not set.
    """
    if shard.name == LEFT_OUT:
        return _noted("read", dict(shard.work["notes"]), _NO_ROWS)
    try:
        return _read_block(study, shard)
    except BadFileError as error:
        # Only compressed files are found to be damaged here, and they are one block.
        if not study.settings.ingest.skip_bad_files:
            raise BadFileError(f"{error}, or run `patrolscope ingest --skip-bad-files`") from error
        return _noted("read", {skipped_note(str(error)): 1}, {**_NO_ROWS, "skipped": True})


def skipped_note(fault: str) -> str:
    """Return the note of the ledger about a file that is skipped."""
    return f"file skipped: {fault}"


_NO_ROWS = {"lines": 0, "staged": [], "annotated": False, "missing_columns": [], "texts": 0}


def _noted(step: str, notes: dict[str, int], facts: dict[str, Any]) -> Output:
    """Return the output of a shard that only counts files."""
    ledger = Ledger(step, 0)
    for what, count in notes.items():
        ledger.note(what, count)
    return Output((), 0, 0, (ledger.close(0),), facts)


def _is_accepted(study: Study, record: Record) -> bool:
    return study.settings.ingest.skip_bad_files or not record.facts.get("skipped", False)


def _read_block(study: Study, shard: Shard) -> Output:
    work = shard.work
    calendar = Calendar.of(study.settings.period, study.settings.city.clock)
    limits = limits_of(study.settings)
    texts = dict(work["texts"])
    files: list[str] = []
    staged: list[tuple[str, dict[str, list[int]]]] = []
    reasons: Counter[str] = Counter()
    unreadable: Counter[str] = Counter()
    lines = rows_out = 0
    for piece, text in enumerate(staging.block_texts(study, work)):
        read = read_rows(text, work["columns"], limits, texts)
        leaf = f"{shard.name}-{piece:05d}"
        if read.rows.num_rows:
            file = f"{STAGED_FOLDER}/{leaf}.arrow"
            supplied, failed = typed_columns(read.rows, study.settings, list(texts.values()))
            unreadable += failed
            rows = staged_rows(read.rows, supplied, lines)
            staged.append((file, staging.write_staged(study, file, rows, calendar)))
            files.append(file)
            rows_out += read.rows.num_rows
        if len(read.bad):
            reasons.update(read.bad["reason"])
            bad = read.bad.assign(row=read.bad["row"] + lines)
            files.append(study.write(STAGED_BAD, bad, f"{BAD_FOLDER}/{leaf}.parquet"))
        lines += read.lines
    ledger = Ledger("read", lines)
    for reason, count in sorted(reasons.items()):
        ledger.drop(count, why=reason)
    if not work["columns"]:
        ledger.note(f"{work['source']}: empty file", 1)
    elif not lines and work["start"] == 0:
        ledger.note(f"{work['source']}: a header and no rows", 1)
    _note_columns(ledger, work, lines)
    for name, count in sorted(unreadable.items()):
        ledger.note(f"{name} is unreadable: missing", count)
    facts = {
        "lines": lines,
        "staged": staged,
        "annotated": work["annotated"],
        "missing_columns": missing_columns(texts, study.settings),
        "texts": len(texts),
    }
    return Output(tuple(files), lines, rows_out, (ledger.close(rows_out),), facts)


def _note_columns(ledger: Ledger, work: dict[str, Any], lines: int) -> None:
    """Note the columns of a file that are not read, kept as text, or replaced by a default."""
    texts = dict(work["texts"])
    unknown = unknown_columns(work["columns"])
    for position, name in unknown:
        if not texts.get(position, KEPT).startswith(KEPT):
            continue  # about a felony window of the study that the published file lacks
        use = f"column kept as {texts[position]}" if position in texts else "column not used"
        ledger.note(f"{use}: {name or '(no name)'}", lines)
    if work["annotated"]:
        unread = len(work["columns"]) - len({*texts, *dict(unknown)}) - len(set(COLUMNS).intersection(work["columns"]))
        ledger.note(f"annotated file: {unread} published columns not read", lines)
        if "split" not in work["columns"]:
            ledger.note(f"annotated file without the column split: taken as {SPLIT_OF_ANNOTATED}", lines)


def _finished_blocks(study: Study) -> list[FinishedBlock]:
    """Return all blocks in source order.

    Raises
    ------
    StageNotRunError
        If a block has not been read, or is stale.
    """
    shards = [shard for shard in READ.plan(study) if shard.name != LEFT_OUT]
    records = study.records(READ.name)
    done = [
        shard
        for shard in shards
        if shard.name in records
        and records[shard.name].fingerprint == READ.fingerprint(shard)
        and READ.accepts(study, records[shard.name])
    ]
    if len(done) < len(shards):
        raise StageNotRunError(
            f"{len(shards) - len(done)} of {len(shards)} blocks of raw metadata have not been read; "
            f"run `patrolscope ingest --study {study.root}`"
        )
    blocks = []
    lines: Counter[str] = Counter()
    for shard in shards:
        source, record = shard.work["source"], records[shard.name]
        blocks.append(FinishedBlock(shard.name, source, lines[source], record))
        lines[source] += record.facts["lines"]
    return blocks


def plan_set_aside(study: Study) -> list[Shard]:
    """Plan a shard per block that has rejected lines."""
    return [
        Shard(
            name=block.shard,
            work={"source": block.source, "offset": block.offset, "files": block.bad_files()},
            size=block.record.rows_in - block.record.rows_out,
            made_from=block.record.content,
        )
        for block in _finished_blocks(study)
        if block.bad_files()
    ]


def process_set_aside(study: Study, shard: Shard) -> Output:
    """Write the rejected lines of a block with their line numbers."""
    written, lines = [], 0
    for file in shard.work["files"]:
        bad = study.read(file)
        # The header is line 1, so row 0 is line 2.
        numbered = bad.assign(source=shard.work["source"], line=bad["row"] + shard.work["offset"] + 2)
        leaf = file.rsplit("/", 1)[-1]
        written.append(study.write(QUARANTINE, QUARANTINE.conform(numbered), f"quarantine/{leaf}"))
        lines += len(bad)
    return Output(tuple(written), lines, lines, (Ledger("quarantine", lines).close(lines),))


def plan_arrange(study: Study) -> list[Shard]:
    """Plan a shard per slice of a local day: a time range of at most `slice_rows` rows.

    Slices depend on the rows of the study, and not on the blocks of the files.
    """
    settings = study.settings
    calendar = Calendar.of(settings.period, settings.city.clock)
    midnights = {str(day): int(start) for day, start in zip(calendar.days, calendar.midnights_ms, strict=False)}
    rules = fingerprint(METADATA.fingerprint(), settings.ingest.order_hours, settings.city.bounds.model_dump())
    supplied_rules = supplied_table(settings.annotate.felony_windows_h).fingerprint()
    by_day: defaultdict[str, list[StagedFile]] = defaultdict(list)
    blocks = _finished_blocks(study)
    texts = max((block.record.facts["texts"] for block in blocks), default=0)
    max_rows = max(1, settings.ingest.slice_rows // max(1, texts // TEXTS_PER_SLICE))
    for block in blocks:
        for file in block.staged():
            for day in file.by_day:
                by_day[day].append(file)
    shards = []
    for day, files in sorted(by_day.items()):
        bins = [file.bins(day) for file in files]
        total = np.sum(bins, axis=0)
        for number, (first, stop, share, shares) in enumerate(slice_day(total, max_rows)):
            used = [file for file, rows in zip(files, bins, strict=True) if rows[first:stop].any()]
            work: dict[str, Any] = {
                "file": f"metadata/day={day}/slice-{number:03d}.parquet",
                "midnight_ms": midnights[day],
                "from_ms": midnights[day] + first * BIN_MS,
                "until_ms": midnights[day] + stop * BIN_MS,
                "share": share,
                "shares": shares,
                "parts": [file.part(day) for file in used],
            }
            supplied = supplied_rules if any(part["has_supplied"] for part in work["parts"]) else ""
            made_from = fingerprint(rules, supplied, sorted({file.block.record.content for file in used}))
            shards.append(Shard(f"{day}-{number:03d}", work, int(total[first:stop].sum()) // shares, made_from))
    return shards


def process_arrange(study: Study, shard: Shard) -> Output:
    """Write a slice of metadata/, and one of supplied/ if a source has supplied columns."""
    work, settings = shard.work, study.settings
    parts = work["parts"]
    staged = staging.read_slice(study, work, STAGED.names)
    ledger = Ledger("ingest", staged.num_rows)
    order = order_rows(
        staged,
        box=limits_of(settings).box,
        midnight_ms=work["midnight_ms"],
        order_hours=settings.ingest.order_hours,
        ledger=ledger,
    )
    files = []
    if len(order) < staged.num_rows:
        dropped = np.ones(staged.num_rows, dtype=bool)  # np.setdiff1d would take twice the time of all the rest
        dropped[order] = False
        repeated = staged.select(["image_ref"]).filter(pa.array(dropped))
        name = work["file"].replace(f"{METADATA.name}/", f"{DUPLICATES_FOLDER}/", 1)
        files.append(staging.write_rows(study, repeated, name))
    # A share of a quarter of an hour can be empty.
    if len(order):
        rows = arrange(staged, order, [part["source"] for part in parts])
        files.append(staging.write_rows(study, rows, work["file"]))
    if len(order) and any(part["has_supplied"] for part in parts):
        del staged, rows  # hold a slice only once
        supplied = arrange_supplied(staging.read_slice(study, work), order, parts, settings.annotate.felony_windows_h)
        name = work["file"].replace(f"{METADATA.name}/", f"{SUPPLIED.name}/", 1)
        files.append(staging.write_rows(study, supplied, name))
    return Output(tuple(files), ledger.rows_in, len(order), (ledger.close(len(order)),))


def plan_labels(study: Study) -> list[Shard]:
    """Plan shards of at most `FILES_PER_SHARD` detection files, in the order of their paths.

    Raises
    ------
    SourceError
        If a folder is missing, holds no detection files, or is inside another one.
    """
    settings = study.settings
    left_out: Counter[str] = Counter()
    groups_of_roots = detection_files.list_roots(study, left_out)
    notes = {f"files that are not detection files ({reason}): not read": count for reason, count in left_out.items()}
    noted = [Shard(LEFT_OUT, {"notes": sorted(notes.items())}, size=0)] if notes else []
    return noted + [
        Shard(
            f"{number:02d}-{part:05d}",
            {"root": root, "segments": group.segments},
            group.files,
            {
                f"detection files of {root}": group.digest.hexdigest(),
                "detection.police_class": settings.detection.police_class_number,
                "the columns of detections": DETECTIONS.fingerprint(),
            },
        )
        for number, (root, groups) in enumerate(groups_of_roots)
        for part, group in enumerate(groups)
    ]


def process_labels(study: Study, shard: Shard) -> Output:
    """Read the detection files of one shard.

    Raises
    ------
    SourceError
        If a file is unreadable, or files were added or removed since they were listed.
    """
    if shard.name == LEFT_OUT:
        return _noted("labels", dict(shard.work["notes"]), {})
    root = shard.work["root"]
    files = detection_files.list_segments(study, root, shard.work["segments"])
    if len(files) != shard.size:
        raise SourceError(
            f"sources.detections: {root} had {shard.size} detection files for shard {shard.name} when they were "
            f"listed, and has {len(files)} now; run the command again when no more files are being written"
        )
    ledger = Ledger("labels", len(files))
    police_class = study.settings.detection.police_class_number
    parts = [
        detection_files.read_labels(contents, police_class=police_class, ledger=ledger)
        for contents in detection_files.read_contents(study, root, files)
    ]
    image_ids = pd.Series([file[: -len(detection_files.ENDING)] for file in files], dtype="str")
    detections = pd.concat(parts, ignore_index=True).assign(image_id=image_ids, **detection_files.NOT_IN_LABELS)
    detections = DETECTIONS.conform(detections)
    file = study.write(DETECTIONS, detections, f"{detection_files.FOLDER}/{shard.name}.parquet")
    return Output((file,), len(files), len(detections), (ledger.close(len(detections)),))


READ = Stage(
    "read",
    unit="bytes",
    folders=(STAGED_FOLDER, BAD_FOLDER),
    plan=plan_read,
    process=process_read,
    version=4,
    accepts=_is_accepted,
)
SET_ASIDE = Stage("quarantine", unit="rows", folders=("quarantine",), plan=plan_set_aside, process=process_set_aside)
ARRANGE = Stage(
    "ingest",
    unit="rows",
    folders=("metadata", "supplied", DUPLICATES_FOLDER),
    plan=plan_arrange,
    process=process_arrange,
    version=4,
)
STAGES = (READ, SET_ASIDE, ARRANGE)
LABELS = Stage("labels", unit="files", folders=(detection_files.FOLDER,), plan=plan_labels, process=process_labels)
