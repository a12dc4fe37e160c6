"""File systems that fail, and what is the same for all of them."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from patrolscope.pipeline.errors import StorageError

# Of object stores, whose libraries have errors of their own.
_OWN = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
# A disk that fails, went, or may not be touched. Other numbers can be a defect of this program, whose trace is needed.
_FAULTS = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EROFS})


def remote_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What a file system raises when it can not answer, and what else is to be caught with it."""
    return (OSError, *_loaded(), *others)


def _loaded() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _OWN if module in sys.modules)


@contextmanager
def storage_faults_told(where: str = "") -> Iterator[None]:
    """Faults of a disk or an object store that nobody else has told, as one line.

    Raises
    ------
    StorageError : names what failed
    """
    try:
        yield
    except remote_errors() as error:
        if (
            isinstance(error, (PermissionError, socket.gaierror, *_loaded()))
            or getattr(error, "errno", None) in _FAULTS
        ):
            raise StorageError(
                f"{where}{error}: a disk or an object store failed or may not be used; mend that, and the same command "
                "goes on from here"
            ) from error
        raise


def contents_of(fs: Any, paths: list[str]) -> list[bytes]:
    """Contents of files, side by side on an object store; `cat` would read [, * and ? in a name as a pattern."""
    contents = fs.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="raise")
    for content in contents:
        if isinstance(content, Exception):  # fsspec before 2026 returns what it is asked to raise
            raise content
    return list(contents)
