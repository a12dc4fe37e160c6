"""What a stage is: a plan of shards, and a plain function that finishes one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint


@dataclass(frozen=True)
class Shard:
    """One piece of a stage's work: done whole, or not at all."""

    name: str  # file-safe; the same work always has the same name
    work: dict[str, Any]  # JSON types: what `process` needs to know beside the study
    size: int = 1  # in the stage's unit, for progress
    made_from: str = ""  # digest of inputs that `work` does not show, such as a record's fingerprint
    found_in: str = ""  # file of the study where `process` finds its input; can change without a change of the input


@dataclass(frozen=True)
class Stage:
    """A step of a study.

    `plan` lists the shards that must exist, cheaply, from sources and from records of earlier stages.
    `process` finishes one of them on a worker: it writes files through the study and returns their record; it
    does not commit.
    """

    name: str
    unit: str  # what a shard's size counts: rows, bytes, files
    folders: tuple[str, ...]  # of the study; every file in them belongs to a record of this stage
    plan: Callable[[Study], list[Shard]]
    process: Callable[[Study, Shard], Output]
    version: int = 1  # raised when the meaning of the output changes: finished shards are then made again
    # Of a worker process with one task. What every stage is held to: at full size the largest took 1.1 GB
    # (docs/benchmarks.md), and Dask takes no task while 80 % of a worker's memory are in use.
    memory_gb: float = 2.0
    resource: str = ""  # that a shard takes one of, such as GPU; asked for where workers offer it

    def fingerprint(self, shard: Shard) -> str:
        """Digest of everything that the shard's output depends on."""
        return fingerprint(self.name, self.version, shard.name, shard.work, shard.made_from)

    def finish(self, study: Study, shard: Shard) -> Record:
        """Process one shard and commit its record. Runs on a worker."""
        start_s = time.monotonic()
        output = self.process(study, shard)
        record = Record(
            **vars(output),
            shard=shard.name,
            fingerprint=self.fingerprint(shard),
            seconds=round(time.monotonic() - start_s, 3),
        )
        study.commit(self.name, record)
        return record
