"""Clients: started when first needed, gone when the command ends."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import dask
import distributed

from cluster.profiles import Address, ClusterError, Profile, load_profile

CONNECT_TIMEOUT_S = 20


@contextmanager
def connection(name: str) -> Iterator[Callable[[], distributed.Client]]:
    """A function that gives the client of a cluster profile, and starts it at the first call.

    An up-to-date study thus starts nothing. What was started here ends with the block; a scheduler that ran before
    goes on.

    Raises
    ------
    ClusterError : no such profile; from the function: the scheduler does not answer
    """
    profile = load_profile(name)
    clients: list[distributed.Client] = []
    with ExitStack() as stack:

        def client() -> distributed.Client:
            if not clients:
                clients.append(_start(profile, stack))
            return clients[0]

        yield client


def _start(profile: Profile, stack: ExitStack) -> distributed.Client:
    if isinstance(profile, Address):
        try:
            return stack.enter_context(distributed.Client(profile.address, timeout=CONNECT_TIMEOUT_S))
        except OSError as error:
            raise ClusterError(
                f"no scheduler answers at {profile.address} within {CONNECT_TIMEOUT_S} s: is it running, and may this "
                f"machine reach it?"
            ) from error
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="patrolscope-", ignore_cleanup_errors=True))
    # Workers say on every shard that garbage collection took time; users can not act on that.
    stack.enter_context(dask.config.set({"distributed.admin.system-monitor.gil.enabled": False}))
    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=len(os.sched_getaffinity(0)) if profile.workers == "auto" else profile.workers,
            threads_per_worker=1,
            memory_limit="auto" if profile.memory_gb == "auto" else int(profile.memory_gb * 2**30),
            host="127.0.0.1",  # a LocalCluster would listen on the outside address, too
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.ERROR,
        )
    )
    return stack.enter_context(distributed.Client(cluster))
