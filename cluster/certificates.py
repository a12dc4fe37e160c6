"""TLS between scheduler, workers, and clients, with the user's certificates or with temporary ones."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from distributed.security import Security

from patrolscope.cluster.profiles import Certificates, ClusterError, Profile

ROLES = ("client", "scheduler", "worker")  # Dask's names for the holders of certificates


def certificates(profile: Profile, stack: ExitStack) -> Certificates | None:
    """Return the certificates of a profile; temporary ones exist in its folder until the stack is closed."""
    if profile.tls == "none":
        return None
    if isinstance(profile.tls, Certificates):
        return profile.tls
    profile.home.mkdir(parents=True, exist_ok=True)
    # Only its owner can read this folder.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-", dir=profile.home)))
    temporary = Security.temporary()
    files = {"ca": temporary.tls_ca_file, "cert": temporary.tls_scheduler_cert, "key": temporary.tls_scheduler_key}
    for name, text in files.items():
        with os.fdopen(os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
    return Certificates(**{name: str(folder / f"{name}.pem") for name in files})


def security(tls: Certificates | None) -> Security | None:
    """Return Dask's form of certificates, as paths, so that job scripts and messages never contain a key.

    Raises
    ------
    ClusterError
        If a file does not exist or cannot be read.
    """
    if tls is None:
        return None
    for name, path in tls.model_dump().items():
        if not os.access(path, os.R_OK):
            raise ClusterError(f"tls.{name}: cannot read {path}; expected a PEM file")
    return by_path(tls)


def by_path(tls: Certificates) -> Security:
    """Return Dask's form of certificates without checking that the files exist."""
    return Security(
        require_encryption=True,
        tls_ca_file=tls.ca,
        **{f"tls_{role}_{part}": path for role in ROLES for part, path in (("cert", tls.cert), ("key", tls.key))},
    )
