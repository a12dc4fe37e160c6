"""Faults of local and remote file systems, reported the same way for all of them."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from patrolscope.pipeline.errors import StorageError

# Base errors of libraries for object stores.
_LIBRARY_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
# A disk that fails, is gone, or may not be accessed. Other numbers can be a defect of this program, whose traceback is
# needed.
_FAULTS = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EROFS})


def remote_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return the errors that a file system raises when it fails, together with others to catch."""
    return (OSError, *_loaded(), *others)


def _loaded() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _LIBRARY_ERRORS if module in sys.modules)


def is_local(fs: Any) -> bool:
    """Return whether a file system is that of this machine."""
    return isinstance(fs, LocalFileSystem)  # called for a million files; comparing protocols takes 7 us


@contextmanager
def report_storage_faults(where: str = "") -> Iterator[None]:
    """Turn faults of a disk or an object store that no other code handles into one line.

    Raises
    ------
    StorageError
        If the storage fails. The message starts with `where`.
    """
    try:
        yield
    except remote_errors() as error:
        if (
            isinstance(error, (PermissionError, socket.gaierror, *_loaded()))
            or getattr(error, "errno", None) in _FAULTS
        ):
            raise StorageError(
                f"{where}{error}; a disk or an object store failed or denied access; fix that and rerun the command"
            ) from error
        raise


def contents_of(fs: Any, paths: list[str]) -> list[bytes]:
    """Return the contents of files, read in parallel on an object store; `cat` would expand [, * and ? in a name."""
    contents = fs.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="raise")
    for content in contents:
        if isinstance(content, Exception):  # fsspec before 2026 returns the error in spite of on_error="raise"
            raise content
    return list(contents)
