"""Names of files, which can hold bytes that are not UTF-8 and control characters."""

from __future__ import annotations


def is_utf8(name: str) -> bool:
    """Return whether a name can be written to a table; Python has other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """Return a name for messages and the ledger: control characters and bytes that are not UTF-8 are escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()
