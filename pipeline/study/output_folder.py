"""Files and folders of files that a command writes outside a study."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from patrolscope.pipeline.errors import SourceError


def check_folder(out: Path, known_by: str) -> None:
    """Check that a folder is empty or holds an earlier result, which has a file `known_by`.

    Raises
    ------
    SourceError
        If it holds other files, or is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise SourceError(f"{out} is a file; expected a folder; choose a different name")
    if out.is_dir() and any(out.iterdir()) and not (out / known_by).is_file():
        raise SourceError(f"{out} is not an earlier result of this command; choose a new or empty folder")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that appears completely or not at all.

    Raises
    ------
    SourceError
        If the file cannot be written, as on a full disk. An earlier file of that name stays.
    """
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise SourceError(
            f"cannot write {path} ({error.strerror}); free some space there, or choose a different place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def fill_folder(out: Path, content: dict[str, bytes], may_have: Iterable[str] = ()) -> None:
    """Write files, and remove those of an earlier result that are not written now.

    Parameters
    ----------
    out : Path
        Folder, created if needed.
    content : dict of str to bytes
        Files by name.
    may_have : iterable of str
        Names of files that an earlier result can have.

    Raises
    ------
    SourceError
        If the folder is not writable.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            replace_file(out / name, data)
        for name in set(may_have) - set(content):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise SourceError(f"cannot write to {out} ({error}); choose a different folder") from error
