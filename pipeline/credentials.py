"""Credentials in URLs: found, so that they are refused before they are stored, and removed from messages."""

from __future__ import annotations

import re

ADVICE = (
    "a URL holds credentials, which would be stored and shown; remove them, and give them to the storage library "
    "instead: in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in its own file, such as "
    "~/.aws/credentials, or in ~/.config/fsspec"
)
# user:password@ before the host. Keys of AWS can hold a slash, other user names cannot.
_USER = re.compile(r"(?<=://)(?:[^\s/?#@:]+:[^\s/?#@]+|[A-Z0-9]{16,128}:[^\s@]{16,})(?=@)")
_QUERY = re.compile(
    r"(?<=[?&])((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|token|"
    r"access_token|api_?key|key|password|secret)=)[^\s&#]+",
    re.IGNORECASE,
)


def has_credentials(url: str) -> bool:
    """Return whether a text is a URL with a password, a key, or a signature."""
    return "://" in url and bool(_USER.search(url) or _QUERY.search(url))


def redacted(text: str) -> str:
    """Return a text without the credentials of URLs in it."""
    return _QUERY.sub(r"\1...", _USER.sub("...", text)) if "://" in text else text
