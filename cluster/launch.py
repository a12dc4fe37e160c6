"""Launch, status, and stop of a scheduler that outlives single commands."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distributed.core import Status

from patrolscope.cluster.connect import connect, scheduler_file, start
from patrolscope.cluster.profiles import Address, ClusterError, Profile, load_profile


def launch(name: str, file: str | None, log: Callable[[str], None]) -> None:
    """Run a scheduler and its pools until `stop`, SIGTERM, or SIGINT; its file lets other commands connect.

    Parameters
    ----------
    name : str
        Name or path of a profile.
    file : str, optional
        Path of the scheduler file (.json). None uses the folder of the profile.
    log : callable
        Receives lines for the terminal.

    Raises
    ------
    ClusterError
        If the profile does not exist, or the scheduler is already running or cannot start.
    """
    profile = load_profile(name)
    if isinstance(profile, Address):
        raise ClusterError(f"{name} is a running scheduler; expected a profile; pass it to --cluster instead")
    path = scheduler_file(profile) if file is None else Path(file).absolute()
    if path.suffix != ".json":
        raise ClusterError(f"--file {path}: expected a name that ends in .json")
    if path.exists() and _answers(path):
        raise ClusterError(f"the scheduler of {path} is already running; use it, stop it, or choose a different --file")
    if profile.tls == "none" and "tls" not in profile.model_fields_set:
        # Other users of a shared machine reach its loopback, and tasks are code.
        profile = profile.model_copy(update={"tls": "temporary"})
    ended = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: ended.set())
    with ExitStack() as stack:
        pools, tls = start(profile, stack, log)
        content = {
            "address": pools.scheduler_address,
            "dashboard": pools.dashboard_link,
            "tls": None if tls is None else tls.model_dump(),
        }
        _write(path, content)
        try:
            log(f"scheduler  {content['address']}" + ("" if tls is None else "  (TLS)"))
            log(f"dashboard  {content['dashboard']}")
            log(f"file       {path}: pass it to --cluster; `patrolscope cluster stop {path}` stops the scheduler")
            while pools.scheduler.status == Status.running and not ended.wait(1):
                pass
        finally:
            path.unlink(missing_ok=True)


def status(name: str) -> list[str]:
    """Describe a running scheduler in lines for the terminal: address, dashboard, and workers and tasks per pool.

    Raises
    ------
    ClusterError
        If no scheduler is running there.
    """
    address = _running(name)
    with ExitStack() as stack:
        client = connect(name, address, stack)
        info = client.scheduler_info(n_workers=-1)
        busy = {worker: len(tasks) for worker, tasks in client.processing().items()}
    lines = [f"scheduler  {address.address}", f"dashboard  {address.dashboard or client.dashboard_link}"]
    if not info["workers"]:
        return [*lines, "no workers yet"]
    by_pool: dict[str, Counter[str]] = {}
    for worker_address, worker in info["workers"].items():
        # Worker names are pool-job or pool-job-process.
        counts = by_pool.setdefault(str(worker["name"]).partition("-")[0], Counter())
        counts.update(
            workers=1, threads=worker["nthreads"], gb=worker["memory_limit"] / 2**30, tasks=busy.get(worker_address, 0)
        )
    return [
        *lines,
        *(
            f"{pool:10} {n['workers']:,.0f} workers, {n['threads']:,.0f} threads, {n['gb']:,.1f} GiB, "
            f"{n['tasks']:,.0f} tasks"
            for pool, n in sorted(by_pool.items())
        ),
    ]


def stop(name: str) -> str:
    """Stop a running scheduler with its workers and jobs, and return a line for the terminal.

    Raises
    ------
    ClusterError
        If no scheduler is running there.
    """
    address = _running(name)
    with ExitStack() as stack:
        connect(name, address, stack).shutdown()
    return f"stopped {address.address}"


def dashboard_link(name: str) -> str:
    """Return the address of Dask's dashboard for a profile or a scheduler, or "" if none is known.

    Raises
    ------
    ClusterError
        If the profile does not exist or the scheduler file is damaged.
    """
    profile = load_profile(name)
    if isinstance(profile, Profile):
        path = scheduler_file(profile)
        if not path.exists():
            return ""
        profile = _load(path)
    return profile.dashboard or ""


def _running(name: str) -> Address:
    """Return a running scheduler by the name of the profile that launched it, its file, or its address."""
    profile = load_profile(name)
    if isinstance(profile, Address):
        return profile
    path = scheduler_file(profile)
    if not path.exists():
        raise ClusterError(
            f"no scheduler is running for profile {profile.name!r}; expected {path}; run `patrolscope cluster launch "
            f"{name}`, or give the file that was passed to --file"
        )
    return _load(path)


def _load(path: Path) -> Address:
    address = load_profile(str(path))
    if isinstance(address, Profile):
        raise ClusterError(f"{path} is a profile; expected a scheduler file")
    return address


def _answers(path: Path) -> bool:
    try:
        with ExitStack() as stack:
            connect(str(path), _load(path), stack)
    except ClusterError:
        return False
    return True


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write the scheduler file for its owner alone, and atomically, as another command may be waiting for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(content, indent=1))
    temporary.replace(path)
