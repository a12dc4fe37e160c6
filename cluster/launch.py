"""A scheduler that outlives commands: launched, looked at, stopped."""

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


def launch(name: str, file: str | None, say: Callable[[str], None]) -> None:
    """Keep a scheduler and its pools up until `stop`, SIGTERM or SIGINT; its file tells other commands the way.

    Raises
    ------
    ClusterError : no such profile, it runs already, or it can not start
    """
    profile = load_profile(name)
    if isinstance(profile, Address):
        raise ClusterError(f"{name} is a scheduler that runs already: give it to --cluster as it is")
    path = scheduler_file(profile) if file is None else Path(file).absolute()
    if path.suffix != ".json":
        raise ClusterError(f"--file {path}: the name of a scheduler file ends in .json")
    if path.exists() and _answers(path):
        raise ClusterError(f"{path}: this scheduler runs already: use it, stop it first, or name another --file")
    ended = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: ended.set())
    with ExitStack() as stack:
        pools, tls = start(profile, stack, say)
        content = {
            "address": pools.scheduler_address,
            "dashboard": pools.dashboard_link,
            "tls": None if tls is None else tls.model_dump(),
        }
        _write(path, content)
        try:
            say(f"scheduler  {content['address']}" + ("" if tls is None else "  (TLS, certificates of this run)"))
            say(f"dashboard  {content['dashboard']}")
            say(f"file       {path}: give it to --cluster; `patrolscope cluster stop {path}` ends this")
            while pools.scheduler.status == Status.running and not ended.wait(1):
                pass
        finally:
            path.unlink(missing_ok=True)


def status(name: str) -> list[str]:
    """Lines about a scheduler that runs: address, dashboard, workers and tasks by what they offer and take.

    Raises
    ------
    ClusterError : nothing runs there
    """
    address = _running(name)
    with ExitStack() as stack:
        client = connect(name, address, stack)
        info = client.scheduler_info(n_workers=-1)
        workers = info["workers"].values()
        busy = {where: len(tasks) for where, tasks in client.processing().items()}
    lines = [f"scheduler  {address.address}", f"dashboard  {address.dashboard or client.dashboard_link}"]
    if not workers:
        return [*lines, "no workers yet"]
    by_pool: dict[str, Counter[str]] = {}
    for where, worker in zip(info["workers"], workers, strict=True):
        # Names are pool-job or pool-job-process.
        counts = by_pool.setdefault(str(worker["name"]).partition("-")[0], Counter())
        counts.update(
            workers=1, threads=worker["nthreads"], gb=worker["memory_limit"] / 2**30, tasks=busy.get(where, 0)
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
    """End a scheduler that runs, with its workers and jobs; says what has ended.

    Raises
    ------
    ClusterError : nothing runs there
    """
    address = _running(name)
    with ExitStack() as stack:
        connect(name, address, stack).shutdown()
    return f"stopped {address.address}"


def dashboard_link(name: str) -> str:
    """Address of Dask's own dashboard of a scheduler that is known to run; empty where none is.

    Raises
    ------
    ClusterError : no such profile, a broken scheduler's file
    """
    profile = load_profile(name)
    if isinstance(profile, Profile):
        path = scheduler_file(profile)
        if not path.exists():
            return ""
        profile = _load(path)
    return profile.dashboard or ""


def _running(name: str) -> Address:
    """A scheduler by the name of the profile that launched it, by its file or by its address."""
    profile = load_profile(name)
    if isinstance(profile, Address):
        return profile
    path = scheduler_file(profile)
    if not path.exists():
        raise ClusterError(
            f"nothing runs for profile {profile.name!r}: there is no {path}. `patrolscope cluster launch {name}` "
            "starts it; with --file, name that file here, too"
        )
    return _load(path)


def _load(path: Path) -> Address:
    found = load_profile(str(path))
    if isinstance(found, Profile):
        raise ClusterError(f"{path} is a profile, expected a scheduler's file")
    return found


def _answers(path: Path) -> bool:
    try:
        with ExitStack() as stack:
            connect(str(path), _load(path), stack)
    except ClusterError:
        return False
    return True


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: another command may be waiting for it. It names certificates, and holds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)
