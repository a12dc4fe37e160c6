"""Shards that end their workers, wait, or need much memory.

They are apart from their tests, since each worker imports the module of its shards, and one that was killed does again:
with the tests, that is torch, pytest, and a reference detector.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import numpy as np

from patrolscope.pipeline.engine.stage import Shard
from patrolscope.pipeline.study.store import Output, Study
from tests.waiting import wait_until


@dataclass(frozen=True)
class KillOnce:
    """A stage's function that kills its worker after its first call, before the result counts."""

    process: Any
    flag: Path

    def __call__(self, study: Study, shard: Shard) -> Output:
        record = self.process(study, shard)
        if not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return record


@dataclass(frozen=True)
class Write:
    """A shard that writes its name and leaves a mark per try.

    Deadly shards kill their worker each time; a slow one ends after all others.
    """

    marks: Path
    deadly: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()

    def __call__(self, study: Study, shard: Shard) -> Output:
        (self.marks / f"{shard.name}-{time.monotonic_ns()}").touch()
        if shard.name in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.name in self.slow:
            wait_until(lambda: len(study.records("plain")) == 7)
        file = study.write_bytes(shard.name.encode(), "out", shard.name)
        return Output((file,), 1, 1)


@dataclass(frozen=True)
class Fill:
    """A shard that needs more memory than Dask gives a worker."""

    megabytes: int

    def __call__(self, study: Study, shard: Shard) -> Output:
        held = [np.ones(2**20, np.uint8) for _ in range(self.megabytes if shard.name == "s1" else 1)]
        limit_bytes = distributed.get_worker().memory_manager.memory_limit
        if len(held) * 2**20 > limit_bytes:
            wait_until(lambda: False)  # Dask checks the memory periodically, and ends this process
        return Output((study.write_bytes(bytes([len(held) % 2]), "out", shard.name),), 1, 1)
