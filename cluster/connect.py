"""Dask clients that connect when first needed, and close when the command ends."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed.utils import silence_logging_cmgr

from patrolscope.cluster.certificates import ROLES, certificates, security
from patrolscope.cluster.jobs import require_queue
from patrolscope.cluster.profiles import Address, Certificates, ClusterError, Profile, load_profile
from patrolscope.cluster.workers import POOLS, Pools, quiet

CONNECT_TIMEOUT_S = 20


@contextmanager
def connection(name: str, log: Callable[[str], None] | None = None) -> Iterator[Callable[[], distributed.Client]]:
    """Yield a function that returns the client of a cluster profile, and starts it at the first call.

    A run with nothing to do therefore starts no cluster. A cluster that was started here ends with the block; a
    scheduler that was already running continues.

    Parameters
    ----------
    name : str
        Name or path of a profile, path of a scheduler file, or address of a scheduler.
    log : callable, optional
        Receives later problems with the jobs of a pool, from another thread.

    Raises
    ------
    ClusterError
        If the profile does not exist. From the function: if the scheduler does not answer or the queue rejects jobs.
    """
    profile = load_profile(name)
    clients: list[distributed.Client] = []
    with ExitStack() as stack:

        def client() -> distributed.Client:
            if not clients:
                clients.append(connect(name, profile, stack, log))
            return clients[0]

        yield client


def connect(
    name: str, profile: Profile | Address, stack: ExitStack, log: Callable[[str], None] | None = None
) -> distributed.Client:
    """Return the client of a running scheduler, or of one that is started here.

    Parameters
    ----------
    name : str
        Name of the profile, for messages.
    profile : Profile or Address
        Cluster to start, or scheduler to connect to.
    stack : ExitStack
        Closes the client, and a cluster that was started here.
    log : callable, optional
        As in `connection`.

    Raises
    ------
    ClusterError
        As in `connection`.
    """
    if isinstance(profile, Profile):
        pools, _ = start(profile, stack, log)
        return stack.enter_context(distributed.Client(pools))
    # Dask would log tracebacks when the scheduler ends; pipeline.engine.distribute reports it in one line.
    stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
    try:
        return stack.enter_context(
            distributed.Client(profile.address, timeout=CONNECT_TIMEOUT_S, security=security(profile.tls))
        )
    except (OSError, ValueError) as error:
        stale = (
            f"; {name} may be left over from a scheduler that has ended; launch it again"
            if name.endswith(".json")
            else ""
        )
        raise ClusterError(
            f"no scheduler answers at {profile.address} within {CONNECT_TIMEOUT_S} s; check that it is running and "
            f"reachable from this machine{stale}"
        ) from error


def start(
    profile: Profile, stack: ExitStack, log: Callable[[str], None] | None = None
) -> tuple[Pools, Certificates | None]:
    """Start a scheduler with the pools of a profile.

    Parameters
    ----------
    profile : Profile
        Cluster to start.
    stack : ExitStack
        Ends the cluster and removes temporary certificates.
    log : callable, optional
        As in `connection`.

    Returns
    -------
    pools : Pools
        The running cluster.
    certificates : Certificates or None
        Its certificates, None without TLS.

    Raises
    ------
    ClusterError
        If this machine cannot reach the queue, the port is in use, the interface does not exist, or the queue rejects a
        job.
    """
    require_queue(profile)
    stack.enter_context(quiet())
    try:
        tls = certificates(profile, stack)
    except OSError as error:
        raise ClusterError(f"folder: cannot write to {profile.home} ({error}); choose a different folder") from error
    secured = security(tls)
    if tls is not None:
        # Workers that are started over ssh receive the certificates as paths in Dask's configuration.
        files = {f"{role}.{part}": getattr(tls, part) for role in ROLES for part in ("cert", "key")}
        paths = {f"distributed.comm.tls.{name}": path for name, path in {**files, "ca-file": tls.ca}.items()}
        if not profile.dashboard_on_loopback:
            paths |= {f"distributed.scheduler.dashboard.tls.{name}": getattr(tls, name) for name in ("cert", "key")}
        stack.enter_context(dask.config.set(paths))
    try:
        with warnings.catch_warnings():
            # If its port is in use, the dashboard chooses a different one, which is printed.
            warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
            pools = stack.enter_context(Pools(profile, secured))
    except (RuntimeError, OSError, ValueError) as error:
        scheduler = profile.scheduler
        where = f"{scheduler.interface or scheduler.host or 'loopback'}, port {scheduler.port or 'any'}"
        raise ClusterError(
            f"the scheduler cannot listen on {where} ({_first_cause(error)}); change host, interface, or port of "
            "scheduler in the profile"
        ) from error
    if pools.problems:
        raise ClusterError("; ".join(pools.problems.values()))
    pools.log = log
    return pools, tls


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def scheduler_file(profile: Profile) -> Path:
    """Return the path of the file through which other commands find the launched scheduler of a profile."""
    return profile.home / "scheduler.json"


def running_pools(client: distributed.Client) -> dict[str, dict[str, Any]]:
    """Return the capacity of each pool of a running scheduler, in the form of `Profile.facts`.

    Raises
    ------
    ClusterError
        If the scheduler has no workers and does not list any that it can start.
    """
    pools: dict[str, dict[str, Any]] = {}
    # A launched scheduler lists the pools that it can start, even before it has workers.
    for name, facts in client.get_metadata([POOLS], {}).items():
        pools[name] = dict(facts)
    if pools:
        return pools
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        offers = next((name for name in ("GPU", "CPU") if name in worker["resources"]), "")
        tasks = int(worker["resources"].get(offers, worker["nthreads"]))
        pool = pools.setdefault(
            offers.lower() or "workers", {"offers": offers, "memory_gb": math.inf, "tasks": 1, "slots": 0}
        )
        pool["memory_gb"] = min(pool["memory_gb"], (worker["memory_limit"] or math.inf) / 2**30)
        pool["tasks"] = max(pool["tasks"], tasks)
        pool["slots"] += tasks
    if not pools:
        raise ClusterError(f"the scheduler at {client.scheduler.address} has no workers; start at least one")
    return pools
