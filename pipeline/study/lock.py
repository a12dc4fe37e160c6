"""Lock of a study folder, so that two runs never write into it at the same time.

The lock file holds the holder's description and, on its last line, the id of its run. Tasks compare that id before they
write (`StudyFiles.aside`). On a local disk the operating system's lock on a second file decides who may hold the study;
it ends with the process, however that dies. An object store has no such lock, and the file itself decides there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patrolscope.pipeline.errors import StudyLockedError


@contextlib.contextmanager
def hold_folder(path: Path, root: str, run: str) -> Iterator[None]:
    """Hold a study on a local disk.

    Parameters
    ----------
    path : Path
        Lock file.
    root : str
        Study, for messages.
    run : str
        Id of the run.

    Raises
    ------
    StudyLockedError
        If another run holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.held", blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        other = (_holder(path.read_bytes()) if path.exists() else "") or "another process"
        raise StudyLockedError(f"{root} is in use by {other}; wait for it, or stop it") from error
    try:
        path.unlink(missing_ok=True)  # not written through a link, which a study from elsewhere can hold
        path.write_bytes(_description(run))
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def hold_store(fs: Any, path: str, root: str, run: str) -> Iterator[None]:
    """Hold a study on an object store.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
        File system of the study.
    path : str
        Lock file.
    root : str
        Study, for messages.
    run : str
        Id of the run.

    Raises
    ------
    StudyLockedError
        If another run holds it.
    """
    if fs.exists(path):
        raise StudyLockedError(
            f"{root} is in use by {_holder(fs.cat_file(path))}; if it is dead, remove {path} and rerun the command"
        )
    fs.pipe_file(path, _description(run))
    try:
        yield
    finally:
        fs.rm_file(path)


def _description(run: str) -> bytes:
    since = datetime.now(UTC)
    return f"process {os.getpid()} on {socket.gethostname()}, since {since:%Y-%m-%d %H:%M} UTC\n{run}".encode()


def _holder(content: bytes) -> str:
    """Return the description of the holder, without the id of its run."""
    return content.decode(errors="replace").partition("\n")[0]
