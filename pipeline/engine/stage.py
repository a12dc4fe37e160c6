"""Stage and shard: a stage plans its shards, and finishes each of them with a plain function."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patrolscope.pipeline.study.store import Output, Record, Study, fingerprint


@dataclass(frozen=True)
class Shard:
    """Unit of work of a stage, committed atomically."""

    name: str  # file-safe; the same work always has the same name
    work: dict[str, Any]  # JSON types: what `process` needs beside the study
    size: int = 1  # in the stage's unit, for progress
    # Inputs that `work` does not show: a digest, such as the content of a record, or several by a name for the user.
    made_from: str | dict[str, Any] = ""
    found_in: str = ""  # file of the study with the input; it can change while the input stays the same


def _accept(_study: Study, _record: Record) -> bool:
    return True


def _no_files(_study: Study) -> list[str]:
    return []


@dataclass(frozen=True)
class Stage:
    """Named step of a study.

    `plan` lists the shards cheaply, from sources and from records of earlier stages. `process` finishes one shard on a
    worker: it writes files through the study and returns them with their counts. The engine commits the record.
    """

    name: str
    unit: str  # of a shard's size: rows, bytes, files
    folders: tuple[str, ...]  # of the study; every file in them belongs to a record of this stage
    plan: Callable[[Study], list[Shard]]
    process: Callable[[Study, Shard], Output]
    version: int = 1  # raised when the meaning of the output changes, which makes finished shards stale
    # Memory of a worker process with one task, the limit for every stage. At full size the largest one took 1.1 GB
    # (docs/benchmarks.md), and Dask starts no task while more than 80% of a worker's memory is in use.
    memory_gb: float = 2.0
    resource: str = ""  # such as GPU; a shard takes one where workers offer it
    # Whether the settings allow a finished shard that is incomplete, such as a skipped file; if not, it is done again.
    accepts: Callable[[Study, Record], bool] = _accept
    sources: Callable[[Study], list[str]] = _no_files  # paths outside study.yaml's own that workers must see

    def fingerprint(self, shard: Shard) -> str:
        """Return the digest of everything that the shard's output depends on."""
        return fingerprint(self.name, self.version, shard.name, shard.work, shard.made_from)

    def inputs(self, shard: Shard) -> dict[str, str]:
        """Return digests of the parts of the fingerprint, so that the cause of a change can be named."""
        made_from = shard.made_from if isinstance(shard.made_from, dict) else {"its input": shard.made_from}
        parts = {"the version of the stage": self.version, **made_from, **shard.work}
        return {name: fingerprint(part) for name, part in parts.items()}

    def finish(self, study: Study, shard: Shard) -> Record:
        """Process one shard and commit its record. Runs on a worker."""
        start_s = time.monotonic()
        output = self.process(study, shard)
        record = Record(
            **vars(output),
            shard=shard.name,
            fingerprint=self.fingerprint(shard),
            inputs=self.inputs(shard),
            digests={name: study.written.get(name) or study.digest(name) for name in output.files},
            seconds=round(time.monotonic() - start_s, 3),
        )
        study.commit(self.name, record)
        return record
