"""Measurement and result of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

import distributed

from patrolscope.cluster.workers import quiet


@dataclass(frozen=True)
class Comparison:
    """Result of patrolscope and of a peer, measured in the same run."""

    name: str
    ours: float
    peer: float
    unit: str  # of `ours` and `peer`
    goal: float  # minimum of the ratio peer / ours
    peer_name: str

    @property
    def ratio(self) -> float:
        """Speed relative to the peer."""
        return self.peer / self.ours

    def to_row(self) -> dict[str, object]:
        """Return the row for --json."""
        return {**asdict(self), "ratio": self.ratio, "met": self.ratio >= self.goal}


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of `work` in seconds, since other load on the machine only adds time."""
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


def two_workers() -> AbstractContextManager[distributed.Client]:
    """Start a cluster of two processes on loopback, like `patrolscope run` on two cores."""
    return workers(2)


@contextmanager
def workers(number: int) -> Iterator[distributed.Client]:
    """Start a cluster of single-threaded processes on loopback."""
    with (
        quiet(),
        distributed.LocalCluster(
            n_workers=number, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=40
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
