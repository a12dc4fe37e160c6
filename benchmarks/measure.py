"""How a benchmark is measured and shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

import distributed

from patrolscope.cluster.workers import quiet


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside the peer's, measured in the same run."""

    name: str
    ours: float
    peer: float
    unit: str  # of `ours` and `peer`; seconds unless it says otherwise
    goal: float  # of the ratio peer / ours: how many times faster we mean to be
    peer_name: str

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.peer / self.ours

    def to_row(self) -> dict[str, object]:
        """The form that --json writes."""
        return {**asdict(self), "ratio": self.ratio, "met": self.ratio >= self.goal}


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Shortest time of `work` in seconds: the machine's other work only ever adds."""
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


def two_workers() -> AbstractContextManager[distributed.Client]:
    """A cluster of two processes on loopback, as `patrolscope run` starts on two cores."""
    return workers(2)


@contextmanager
def workers(number: int) -> Iterator[distributed.Client]:
    """A cluster of so many processes of one thread, on loopback."""
    with (
        quiet(),
        distributed.LocalCluster(
            n_workers=number, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=40
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
