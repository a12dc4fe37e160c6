"""A folder of files that a command makes at once, outside a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from patrolscope.pipeline.errors import SourceError


def check_folder(out: Path, known_by: str) -> None:
    """Refuse a folder with anything in it but an earlier result, which has a file `known_by`.

    Raises
    ------
    SourceError : it holds other files, or is no folder
    """
    if out.exists() and not out.is_dir():
        raise SourceError(f"{out} is a file: name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / known_by).is_file():
        raise SourceError(f"{out} holds files that are no earlier result of this command: name a new or empty one")


def fill_folder(out: Path, content: dict[str, bytes], may_have: Iterable[str] = ()) -> None:
    """Write files by name; what an earlier result left of the names `may_have` and is not written now is removed.

    Raises
    ------
    SourceError : the folder can not be written to
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            (out / name).write_bytes(data)
        for name in set(may_have) - set(content):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise SourceError(f"{out} can not be written to ({error}): name another folder") from error
