"""Comparison of every file of a study with the checksum in its record."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from patrolscope.pipeline.engine.freshness import damage
from patrolscope.pipeline.study.store import Record, Study

_THREADS = 8  # they wait for the disk or the object store; checksums run outside of Python's global lock


@dataclass
class Verification:
    """Result of comparing all files of a study with their records."""

    files: int = 0
    size_bytes: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)  # by stage


def verify(study: Study, progress: Callable[[int, int], None]) -> Verification:
    """Read every file that a record names, and forget the shards of those that differ, so that `run` rebuilds them.

    Parameters
    ----------
    study : Study
        Study to check, which no other run may hold.
    progress : callable
        Called with the bytes that were read, and the bytes in all.

    Raises
    ------
    StudyLockedError
        If another run holds the study.
    """
    result = Verification()
    with study.lock() as held:
        records = {stage: held.records(stage) for stage in held.stages()}
        jobs = [(stage, record) for stage, by_shard in records.items() for record in by_shard.values()]
        sizes = [sum(digest.size for digest in record.digests.values()) for _, record in jobs]
        result.files = sum(len(record.files) for _, record in jobs)
        for stage, by_shard in records.items():
            for name in held.damaged_records(stage, by_shard):
                result.faults.setdefault(stage, []).append(f"{name} is damaged or of another version")
                held.remove(name)

        def check(job: tuple[str, Record]) -> str:
            return damage(held, job[1], {}, read_all=True)

        with ThreadPoolExecutor(_THREADS) as pool:
            for (stage, record), size, fault in zip(jobs, sizes, pool.map(check, jobs), strict=True):
                if fault:
                    result.faults.setdefault(stage, []).append(fault)
                    held.remove(held.record_file(stage, record.shard))
                result.size_bytes += size
                progress(result.size_bytes, sum(sizes))
    return result
