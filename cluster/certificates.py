"""TLS between scheduler, workers and clients: certificates that are given, or made for one run."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

from distributed.security import Security

from patrolscope.cluster.profiles import Certificates, ClusterError, Profile

ROLES = ("client", "scheduler", "worker")  # as Dask calls those who show a certificate


def certificates(profile: Profile, stack: ExitStack) -> Certificates | None:
    """The certificates of a profile; temporary ones lie in its folder, for the user's eyes alone, until the stack ends.

    Raises
    ------
    ClusterError : given certificates are not there
    """
    if profile.tls == "none":
        return None
    if isinstance(profile.tls, Certificates):
        return profile.tls
    profile.home.mkdir(parents=True, exist_ok=True)
    # mkdtemp's folder is open to its owner alone.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tls-", dir=profile.home)))
    made = Security.temporary()
    files = {"ca": made.tls_ca_file, "cert": made.tls_scheduler_cert, "key": made.tls_scheduler_key}
    for name, text in files.items():
        with os.fdopen(os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
    return Certificates(**{name: str(folder / f"{name}.pem") for name in files})


def security(tls: Certificates | None) -> Security | None:
    """Dask's form of certificates, by their paths: job scripts and messages never hold a key.

    Raises
    ------
    ClusterError : a file is not there, or can not be read
    """
    if tls is None:
        return None
    for name, path in tls.model_dump().items():
        if not os.access(path, os.R_OK):
            raise ClusterError(f"tls.{name}: no file that can be read at {path}")
    return by_path(tls)


def by_path(tls: Certificates) -> Security:
    """Certificates as Dask knows them, whether they are there yet or not."""
    return Security(
        require_encryption=True,
        tls_ca_file=tls.ca,
        **{f"tls_{role}_{part}": path for role in ROLES for part, path in (("cert", tls.cert), ("key", tls.key))},
    )
