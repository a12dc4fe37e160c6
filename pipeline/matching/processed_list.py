"""Blocks of the list of processed images (`sources.processed`)."""

from __future__ import annotations

import codecs
from typing import Any

import fsspec

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake.raw_files import identity
from patrolscope.pipeline.intake.raw_lines import owned_lines
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Study


def list_blocks(study: Study) -> list[dict[str, Any]]:
    """Return path, version, start, and stop of each block of the list.

    Raises
    ------
    SourceError
        If the list is missing.
    """
    source = study.settings.sources.processed
    if source is None:
        return []
    fs, path = fsspec.core.url_to_fs(study.resolve(source))
    if not fs.isfile(path):
        raise SourceError(f"sources.processed: {path} is not a file; expected a list of processed images")
    size, modified = identity(fs, path)
    step = study.settings.ingest.block_bytes
    whole = {"path": source, "bytes": size, "modified": modified}
    return [{**whole, "start": start, "stop": min(start + step, size)} for start in range(0, size, step)]


def read_block(study: Study, work: dict[str, Any]) -> bytes:
    """Read the complete lines of a block, without a byte order mark.

    Raises
    ------
    SourceError
        If the list is unreadable, or has changed since the blocks were listed.
    """
    fs, path = fsspec.core.url_to_fs(study.resolve(work["path"]))
    try:
        if identity(fs, path) != (work["bytes"], work["modified"]):
            raise SourceError(f"{path} has changed since this run began; run the command again when it is complete")
        lines = owned_lines(
            lambda start, stop: bytes(fs.cat_file(path, start=start, end=stop)),
            work["start"],
            work["stop"],
            first=0,
            end=work["bytes"],
        )
    except remote_errors() as error:
        raise SourceError(f"cannot read {path}: {error}; restore it and run the command again") from error
    return bytes(lines) if work["start"] else bytes(lines).removeprefix(codecs.BOM_UTF8)
