"""Distribution of work over a Dask cluster. The only module of the pipeline that imports Dask."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
import geopandas as gpd
import pandas as pd

from patrolscope.pipeline.contract.columns import Table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import (
    BadFileError,
    FailedShardsError,
    InsufficientMemoryError,
    PatrolscopeError,
    PlanError,
    SchedulerLostError,
)
from patrolscope.pipeline.study.remote import report_storage_faults
from patrolscope.pipeline.study.store import Record, Study

if TYPE_CHECKING:  # Dask's frames take 0.6 s of each worker and command to import, and few need them
    import dask.dataframe as dd

OFFERS = "offers"  # metadata key under which a scheduler with its own pools publishes what they offer in all
ROWS = "CPU"  # resource of shards that need no other one, where workers offer it
TRIES = 3  # per shard whose worker dies
REFRESH_S = 1.0  # between counts of the workers
LOST = (CancelledError, distributed.comm.CommClosedError, distributed.KilledWorker)


def finish_shards(client: distributed.Client, study: Study, stage: Stage, shards: Sequence[Shard]) -> Iterator[Record]:
    """Check the workers at once, and return the records of shards in the order in which workers finish them.

    Few shards are in flight at a time, and they are sent and fetched in batches: with one message per shard the
    scheduler took five times as long (benchmarks/scheduler.py). If workers offer the stage's resource, only they work.

    A task that raises stops the stage. Its running shards are canceled, and finished ones are kept. The order of
    `shards` is the order of scheduling and does not influence the output.

    Damaged files do not stop the stage: the others are finished, and then all damaged ones are reported at once.

    A shard whose worker dies is tried again, the third time alone, so that none is blamed for another one. A shard
    that kills its worker then as well has failed, and the others are finished.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    study : Study
        Study to write into.
    stage : Stage
        Stage of the shards.
    shards : sequence of Shard
        Shards to finish.

    Raises
    ------
    PlanError
        If the workers cannot do it. Nothing was sent.
    FailedShardsError
        After the last of the others.
    SchedulerLostError
        If the scheduler is gone.
    BadFileError
        If files are damaged, after the last of the others.
    """
    capacity = _Capacity(client, stage)
    check_workers(client, study, capacity.takes, stage.sources(study))
    return _finished(client, study, stage, shards, capacity)


def _report_failures(stage: Stage, shards: int, bad: Sequence[str], failed: Mapping[str, str]) -> None:
    """Raise an error if files are damaged, or shards killed their workers."""
    if bad:
        listed = "\n  ".join(sorted(bad))
        raise BadFileError(listed if len(bad) == 1 else f"{len(bad)} files are damaged:\n  {listed}")
    if failed:
        names = ", ".join(f"{name} (last on {worker})" for name, worker in sorted(failed.items()))
        raise FailedShardsError(
            f"stage {stage.name}: {len(failed)} of {shards} shards killed their worker {TRIES} times: {names}; "
            "the others are finished; most often a worker has too little memory, so raise memory_gb in the cluster "
            "profile and rerun the command"
        )


def _finished(
    client: distributed.Client, study: Study, stage: Stage, shards: Sequence[Shard], capacity: _Capacity
) -> Iterator[Record]:
    run = uuid.uuid4().hex  # keeps the keys of two runs on one scheduler apart
    waiting = deque(shards)
    alone: deque[Shard] = deque()
    deaths: Counter[str] = Counter()
    failed: dict[str, str] = {}
    bad: list[str] = []
    running: dict[distributed.Future, Shard] = {}
    finished = distributed.as_completed()
    job = distributed.protocol.pickle.dumps((study, stage))

    def send(batch: list[Shard]) -> None:
        futures = client.map(
            _finish,
            batch,
            job=job,
            key=[(f"{stage.name}-{run}", f"{shard.name}, try {deaths[shard.name]}") for shard in batch],
            pure=False,
            resources=capacity.takes,
        )
        running.update(zip(futures, batch, strict=True))
        finished.update(futures)

    try:
        while waiting or running or alone:
            if waiting and (free := capacity.free(len(running))):
                send([waiting.popleft() for _ in range(min(free, len(waiting)))])
            if not running:
                send([alone.popleft()])
            for future, result in _results(client, finished.next_batch()):
                shard = running.pop(future)
                if isinstance(result, Record):
                    yield result
                elif isinstance(result, BadFileError):
                    bad.append(str(result))
                elif isinstance(result, PatrolscopeError):
                    raise result
                elif isinstance(result, distributed.KilledWorker):
                    was_alone = deaths[shard.name] >= TRIES - 1
                    deaths[shard.name] += result.allowed_failures + 1
                    if was_alone:
                        failed[shard.name] = str(result.last_worker.name or result.last_worker.address)
                    elif deaths[shard.name] >= TRIES - 1:
                        alone.append(shard)
                    else:
                        waiting.append(shard)
                else:
                    raise SchedulerLostError(
                        f"lost the scheduler during stage {stage.name} ({len(running) + 1} shards running); finished "
                        "shards are kept; restart it and rerun the command"
                    ) from result
                future.release()
    finally:
        client.cancel(list(running))
    _report_failures(stage, len(shards), bad, failed)


def _results(
    client: distributed.Client, futures: Sequence[distributed.Future]
) -> Iterator[tuple[distributed.Future, Record | PatrolscopeError | BaseException]]:
    """Yield finished futures with their results or errors: gathered at once, or one by one if some were lost."""
    try:
        results = client.gather(futures)
    except LOST:
        results = [_result(future) for future in futures]
    yield from zip(futures, results, strict=True)


def _result(future: distributed.Future) -> Record | PatrolscopeError | BaseException:
    try:
        return future.result()
    except LOST as error:
        return error


# A task that one version pickles and another one reads may fail late, or mean something else.
SAME_VERSIONS = ("dask", "distributed", "numpy", "pandas", "pyarrow", "geopandas", "shapely", "patrolscope")


def check_workers(
    client: distributed.Client, study: Study, takes: dict[str, float] | None, sources: Sequence[str] = ()
) -> None:
    """Check that a worker of a pool can access everything that a stage needs, before hours are spent on it.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    study : Study
        Study that the worker must read and write.
    takes : dict of str to float, or None
        Resources of the pool; None for workers without any.
    sources : sequence of str
        Paths that the worker must see beside those that study.yaml names.

    Raises
    ------
    PlanError
        If versions differ, a source is missing, or the study folder is invisible or read-only.
    SchedulerLostError
        If the scheduler or all workers are gone.
    """
    token = f".seen-{uuid.uuid4().hex}"
    study.write_bytes(token.encode(), token)
    try:
        local = (path for path in (*_named_sources(study), *sources) if "://" not in path)
        sizes = {path: size for path in local if (size := _size(path)) is not None}
        faults = _ask_worker(client, takes, study, token, _versions(), sizes)
    except ModuleNotFoundError as error:
        raise PlanError(
            f"workers cannot import {error.name}; expected the packages of this machine; install them there"
        ) from error
    except LOST as error:
        raise SchedulerLostError(
            "lost the scheduler, or every worker, before the work began; check their logs and rerun the command"
        ) from error
    finally:
        if study.exists(token):
            study.fs.rm_file(study.path(token))
    if faults:
        raise PlanError("the workers cannot run this yet: " + "; ".join(faults))


def _ask_worker(client: distributed.Client, takes: dict[str, float] | None, *arguments: Any) -> list[str]:
    """Return the answer of `_faults` on a worker. A worker that dies does not answer for the others."""
    for attempt in range(TRIES):
        try:
            return client.submit(_faults, *arguments, pure=False, resources=takes).result()
        except distributed.KilledWorker:
            if attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _faults(study: Study, token: str, versions: dict[str, str], sizes: dict[str, int]) -> list[str]:
    """Return what prevents work here, each with what to change. Runs on a worker."""
    faults = [
        f"{name} {_versions()[name]} on workers, {version} here: install the same version"
        for name, version in versions.items()
        if _versions()[name] != version
    ]
    if not study.exists(token):
        faults.append(f"{study.root} is a different folder on workers: put the study where all machines see it")
        return faults
    reply = f"{token}-reply"
    try:
        study.write_bytes(b"", reply)
        study.fs.rm_file(study.path(reply))
    except OSError as error:
        faults.append(f"{study.root} is read-only on workers ({error.strerror}): grant write access")
    faults += [
        f"{path} is missing or different on workers: put it where all machines see it"
        for path, size in sizes.items()
        if _size(path) != size
    ]
    return faults


def _versions() -> dict[str, str]:
    def of(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return {"python": platform.python_version(), **{name: of(name) for name in SAME_VERSIONS}}


def _named_sources(study: Study) -> list[str]:
    """Return the files and folders that study.yaml names; for a pattern, the folder that it starts in."""
    sources, images = study.settings.sources, study.settings.images
    named = [
        *sources.metadata,
        *sources.detections,
        *(sources.processed, sources.validation, sources.test, sources.truth),
        *images.sources,
        images.weights,
    ]
    return [study.resolve(_before_pattern(path)) for path in named if path is not None]


def _before_pattern(path: str) -> str:
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return path if fixed == path else fixed.rpartition("/")[0]


def _size(path: str) -> int | None:
    """Return the bytes of a file, 0 for a folder (sizes of folders differ between file systems), None for neither."""
    location = Path(path)
    if not location.exists():
        return None
    return 0 if location.is_dir() else location.stat().st_size


class _Capacity:
    """Number of shards of a stage that may be in flight, and the resources that each one takes.

    Workers hold one shard more than they work on. None then waits for the next one, and a worker that dies loses few.
    """

    def __init__(self, client: distributed.Client, stage: Stage) -> None:
        self.client = client
        # What pools can grow to, even while they have no worker yet; else what exists.
        self._promised: dict[str, float] = client.get_metadata([OFFERS], {})
        offered = self._promised or self._existing()
        # A stage that prefers a GPU runs without one where none is offered.
        self.resource = next((name for name in (stage.resource or ROWS, ROWS) if name in offered), None)
        self._counted_at_s = -math.inf
        self._tasks = 1  # that workers run at a time

    @property
    def takes(self) -> dict[str, float] | None:
        """Resources of one shard."""
        return None if self.resource is None else {self.resource: 1}

    def free(self, running: int) -> int:
        """Return the number of shards to send now; 0 until there are enough for a message."""
        free = 2 * self._tasks_at_a_time() - running
        return free if free >= max(1, self._tasks // 4) else 0

    def _tasks_at_a_time(self) -> int:
        """Count the tasks that workers run at a time, at most once per `REFRESH_S`."""
        if time.monotonic() - self._counted_at_s > REFRESH_S:
            offers = self._promised or self._existing()
            threads = sum(self.client.nthreads().values()) if self.resource is None else offers.get(self.resource, 0)
            self._tasks = max(1, int(threads))
            self._counted_at_s = time.monotonic()
        return self._tasks

    def _existing(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            total.update(worker["resources"])
        return total


# Pickled once for all shards: the scheduler unpickles and pickles its messages again, 0.5 ms per shard.
@lru_cache(maxsize=4)
def _unpickled(job: bytes) -> tuple[Study, Stage]:
    study, stage = distributed.protocol.pickle.loads(job)
    return study, stage


def _finish(shard: Shard, *, job: bytes) -> Record | PatrolscopeError:
    study, stage = _unpickled(job)
    try:
        with report_storage_faults(f"stage {stage.name}, shard {shard.name}: "):
            return stage.finish(study, shard)
    except PatrolscopeError as error:
        # Returned, not raised: the worker would log the traceback, which does not help a user.
        return error
    except MemoryError:
        return InsufficientMemoryError(
            f"stage {stage.name}, shard {shard.name}: a worker ran out of memory; raise memory_gb in the cluster "
            "profile and rerun the command"
        )


def over_partitions(
    function: Callable[..., Any], frame: dd.DataFrame, *, produces: Table, **fixed: Any
) -> dd.DataFrame:
    """Apply a plain function to every partition of a Dask frame.

    Parameters
    ----------
    function : callable
        Takes and returns a frame.
    frame : dask.dataframe.DataFrame
        Input.
    produces : Table
        Declaration of the result.
    **fixed
        Further arguments, equal for all partitions.
    """
    return frame.map_partitions(function, meta=produces.empty(), enforce_metadata=False, **fixed)


def intersecting_pairs(left: gpd.GeoDataFrame, right: gpd.GeoDataFrame) -> pd.DataFrame:
    """Return the row numbers, `left` and `right`, of all pairs of shapes that intersect, joined by dask-geopandas."""
    import dask_geopandas

    frame = dask_geopandas.from_geopandas(left[["geometry"]].reset_index(drop=True), npartitions=1)
    joined = frame.sjoin(right[["geometry"]].reset_index(drop=True), how="inner", predicate="intersects")
    # On the calling thread, which may belong to a worker.
    pairs = joined.compute(scheduler="sync")["index_right"]
    ordered = pd.DataFrame({"left": pairs.index.to_numpy(), "right": pairs.to_numpy()})
    return ordered.sort_values(["left", "right"], ignore_index=True)


def read_table(study: Study, table: Table) -> dd.DataFrame:
    """Return a table of a study as a Dask frame, one partition per file; a dask-geopandas frame if it has a geometry.

    Raises
    ------
    StageNotRunError
        If the table does not exist yet.
    """
    import dask.dataframe as dd
    import dask_geopandas

    files = study.files(table.stored or table.name)
    frame = dd.from_map(study.read, files, meta=table.empty(), geometry=table.geometry is not None)
    return dask_geopandas.from_dask_dataframe(frame, geometry=table.geometry) if table.geometry else frame
