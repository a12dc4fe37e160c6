"""Lock of a study folder, so that two runs never write into it at the same time.

The lock file holds the holder's description and, on its last line, the id of its run. Tasks compare that id before they
write (`StudyFiles.aside`). On a local disk the operating system's lock on a second file decides who may hold the study;
it ends with the process, however that dies. An object store has no such lock: there the file itself decides. It is
written on the condition that there is none, where the store can do that, and holds a lease that a dead run no longer
renews. The clocks of machines that share a study may differ by less than the lease.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patrolscope.pipeline.errors import StudyLockedError
from patrolscope.pipeline.study.remote import remote_errors

LEASE_S = 600.0
RENEW_S = 60.0
_LEASE = "lease until "


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
    """Hold a study on an object store, with a lease that is renewed until the block ends.

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
    _take(fs, path, root, run)
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(fs, path, run, done), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join()
        if _is_held(fs, path, run):
            fs.rm_file(path)


def _take(fs: Any, path: str, root: str, run: str) -> None:
    """Write the lock file if there is none, or if its lease has ended."""
    if _create(fs, path, run):
        return
    content = _content(fs, path)
    ends = _lease_end(content)
    if ends is None or ends > datetime.now(UTC):
        until = "" if ends is None else f"; its lease ends at {ends:%Y-%m-%d %H:%M} UTC unless it is renewed"
        holder = _holder(content) or "another run"
        raise StudyLockedError(f"{root} is in use by {holder}{until}; wait for it, or stop it")
    # Of several runs that find an ended lease, one creates this file.
    claim = f"{path}.{hashlib.sha256(content).hexdigest()[:16]}"
    if not _create(fs, claim, run):
        raise StudyLockedError(f"{root} is being taken over by another run; wait for it, or remove {claim}")
    try:
        # Since the lease was read, another run may have created this file, taken over, and removed the file again.
        if _content(fs, path) != content:
            raise StudyLockedError(f"{root} has just been taken over by another run; wait for it, or stop it")
        fs.pipe_file(path, _description(run, LEASE_S))
    finally:
        fs.rm_file(claim)


def _create(fs: Any, path: str, run: str) -> bool:
    """Write a lock file unless it exists, and return whether it was written.

    S3 and Google Cloud Storage decide on one of several writers. On other stores, a second look finds who was last.
    """
    if fs.exists(path):
        return False
    try:
        fs.pipe_file(path, _description(run, LEASE_S), mode="create")
    except FileExistsError:
        return False  # even if the file is gone by now, as that of a run that has taken over
    except OSError:  # some file systems have another one for a condition that does not hold
        if not fs.exists(path):
            raise
        return False
    return _is_held(fs, path, run)


def _renew(fs: Any, path: str, run: str, done: threading.Event) -> None:
    ends_s = time.monotonic() + LEASE_S
    while not done.wait(RENEW_S):
        # A process that was paused for longer than its lease may not write over the next holder's lock.
        if time.monotonic() > ends_s or not _is_held(fs, path, run):
            return
        with contextlib.suppress(*remote_errors()):  # the next renewal may succeed; the lease lasts for several
            fs.pipe_file(path, _description(run, LEASE_S))
            ends_s = time.monotonic() + LEASE_S


def _is_held(fs: Any, path: str, run: str) -> bool:
    return _content(fs, path).endswith(run.encode())


def _content(fs: Any, path: str) -> bytes:
    """Return the content of a lock file, which is empty if the file has just been removed."""
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return b""


def _description(run: str, lease_s: float | None = None) -> bytes:
    now = datetime.now(UTC)
    lines = [f"process {os.getpid()} on {socket.gethostname()}, since {now:%Y-%m-%d %H:%M} UTC"]
    if lease_s is not None:
        lines.append(f"{_LEASE}{(now + timedelta(seconds=lease_s)).isoformat()}")
    return "\n".join([*lines, run]).encode()


def _lease_end(content: bytes) -> datetime | None:
    for line in content.decode(errors="replace").splitlines():
        if line.startswith(_LEASE):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(line.removeprefix(_LEASE)).astimezone(UTC)
    return None


def _holder(content: bytes) -> str:
    """Return the description of the holder, without its lease and the id of its run."""
    return content.decode(errors="replace").partition("\n")[0]
