"""Clients: started when first needed, gone when the command ends."""

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
def connection(name: str, say: Callable[[str], None] | None = None) -> Iterator[Callable[[], distributed.Client]]:
    """A function that gives the client of a cluster profile, and starts it at the first call.

    An up-to-date study thus starts nothing. What was started here ends with the block; a scheduler that ran before
    goes on.

    Parameters
    ----------
    say : is told, from another thread, what goes wrong with the jobs of a pool later

    Raises
    ------
    ClusterError : no such profile; from the function: the scheduler does not answer, or the queue refuses the jobs
    """
    profile = load_profile(name)
    clients: list[distributed.Client] = []
    with ExitStack() as stack:

        def client() -> distributed.Client:
            if not clients:
                clients.append(connect(name, profile, stack, say))
            return clients[0]

        yield client


def connect(
    name: str, profile: Profile | Address, stack: ExitStack, say: Callable[[str], None] | None = None
) -> distributed.Client:
    """The client of a scheduler that runs, or of one that is started here and ends with the stack.

    Raises
    ------
    ClusterError : as for `connection`
    """
    if isinstance(profile, Profile):
        pools, _ = start(profile, stack, say)
        return stack.enter_context(distributed.Client(pools))
    # A scheduler that ends would be told with stacks; the one line is pipeline.distribute's.
    stack.enter_context(silence_logging_cmgr(logging.CRITICAL))
    try:
        return stack.enter_context(
            distributed.Client(profile.address, timeout=CONNECT_TIMEOUT_S, security=security(profile.tls))
        )
    except (OSError, ValueError) as error:
        stale = f"; {name} may be left over from one that has ended: launch it again" if name.endswith(".json") else ""
        raise ClusterError(
            f"no scheduler answers at {profile.address} within {CONNECT_TIMEOUT_S} s: is it running, and may this "
            f"machine reach it{stale}?"
        ) from error


def start(
    profile: Profile, stack: ExitStack, say: Callable[[str], None] | None = None
) -> tuple[Pools, Certificates | None]:
    """A scheduler with the pools of a profile, and its certificates; both go when the stack ends.

    Raises
    ------
    ClusterError : no queue here, a port in use, no such interface, a job that the queue refuses
    """
    require_queue(profile)
    stack.enter_context(quiet())
    try:
        tls = certificates(profile, stack)
    except OSError as error:
        raise ClusterError(f"folder: {profile.home} can not be written ({error}): name another one") from error
    secured = security(tls)
    if tls is not None:
        # Workers that are started by ssh get certificates with Dask's configuration, as paths.
        files = {f"{role}.{part}": getattr(tls, part) for role in ROLES for part in ("cert", "key")} | {
            "ca-file": tls.ca
        }
        stack.enter_context(dask.config.set({f"distributed.comm.tls.{name}": path for name, path in files.items()}))
    try:
        with warnings.catch_warnings():
            # A dashboard whose port is in use takes another one, which is printed.
            warnings.filterwarnings("ignore", message="Port .* is already in use", category=UserWarning)
            pools = stack.enter_context(Pools(profile, secured))
    except (RuntimeError, OSError, ValueError) as error:
        asked = profile.scheduler
        where = f"{asked.interface or asked.host or 'loopback'}, port {asked.port or 'any'}"
        raise ClusterError(
            f"the scheduler can not listen on {where}: {_first_cause(error)}. Change host, interface or port of "
            "scheduler in the profile"
        ) from error
    if pools.troubles:
        raise ClusterError("; ".join(pools.troubles.values()))
    pools.say = say
    return pools, tls


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def scheduler_file(profile: Profile) -> Path:
    """Where a launched scheduler of a profile says how to reach it."""
    return profile.home / "scheduler.json"


def running_pools(client: distributed.Client) -> dict[str, dict[str, Any]]:
    """Facts about the workers of a scheduler that runs, by what they offer: offers, memory_gb, tasks, slots.

    Raises
    ------
    ClusterError : it has no workers yet, and does not say which it can start
    """
    pools: dict[str, dict[str, Any]] = {}
    # What a launched scheduler can start, also while it has no worker.
    for name, facts in client.get_metadata([POOLS], {}).items():
        pools[name] = dict(facts)
    if pools:
        return pools
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        offers = next((name for name in ("GPU", "CPU") if name in worker["resources"]), "")
        tasks = int(worker["resources"].get(offers, worker["nthreads"]))
        found = pools.setdefault(
            offers.lower() or "workers", {"offers": offers, "memory_gb": math.inf, "tasks": 1, "slots": 0}
        )
        found["memory_gb"] = min(found["memory_gb"], (worker["memory_limit"] or math.inf) / 2**30)
        found["tasks"] = max(found["tasks"], tasks)
        found["slots"] += tasks
    if not pools:
        raise ClusterError(f"the scheduler at {client.scheduler.address} has no workers yet: start some")
    return pools
