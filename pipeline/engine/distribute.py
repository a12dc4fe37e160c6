"""How work is spread over a Dask cluster. The only module of the pipeline that knows Dask."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import dask_geopandas
import distributed
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.contract.columns import Table
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import (
    FailedShardsError,
    InsufficientMemoryError,
    PatrolscopeError,
    PlanError,
    SchedulerLostError,
)
from patrolscope.pipeline.geography.catalog import layer_files
from patrolscope.pipeline.geography.polygon_index import in_order
from patrolscope.pipeline.study.remote import storage_faults_told
from patrolscope.pipeline.study.store import Record, Study

OFFERS = "offers"  # under which a scheduler that starts its own workers says what they can offer in all
ROWS = "CPU"  # what a shard takes that needs no other resource, where workers offer it
TRIES = 3  # of a shard whose worker dies
LOOK_EVERY_S = 1.0
LOST = (CancelledError, distributed.comm.CommClosedError, distributed.KilledWorker)


def finish_shards(client: distributed.Client, study: Study, stage: Stage, shards: Sequence[Shard]) -> Iterator[Record]:
    """Records of shards in the order in which workers finish them; asks at once whether workers can do it.

    Few are on their way at a time, whatever their number, and they are sent and fetched in batches: a message each took
    the scheduler five times as long (benchmarks/scheduler.py).

    A task that raises stops the stage: what runs is let go, what is finished stays finished. Scheduling order is the
    order of `shards`; nothing in the output depends on it. Where workers offer the stage's resource, only they work.

    A shard whose worker dies is tried again, the third time alone, so that none is blamed for what another one did. One
    that kills its worker then, too, is set aside, and the others are finished.

    Raises
    ------
    PlanError : workers can not do it; nothing was sent
    FailedShardsError : after the last of the others
    SchedulerLostError : the scheduler has gone
    """
    room = _Room(client, stage)
    check_workers(client, study, room.takes)
    return _finished(client, study, stage, shards, room)


def _finished(
    client: distributed.Client, study: Study, stage: Stage, shards: Sequence[Shard], room: _Room
) -> Iterator[Record]:
    run = uuid.uuid4().hex  # two runs of one scheduler do not answer each other
    waiting = deque(shards)
    alone: deque[Shard] = deque()
    deaths: Counter[str] = Counter()
    set_aside: dict[str, str] = {}
    running: dict[distributed.Future, Shard] = {}
    finished = distributed.as_completed()
    job = distributed.protocol.pickle.dumps((study, stage))

    def send(some: list[Shard]) -> None:
        futures = client.map(
            _finish,
            some,
            job=job,
            key=[(f"{stage.name}-{run}", f"{shard.name}, try {deaths[shard.name]}") for shard in some],
            pure=False,
            resources=room.takes,
        )
        running.update(zip(futures, some, strict=True))
        finished.update(futures)

    try:
        while waiting or running or alone:
            if waiting and (wanted := room.wanted(len(running))):
                send([waiting.popleft() for _ in range(min(wanted, len(waiting)))])
            if not running:
                send([alone.popleft()])
            for future, result in _results(client, finished.next_batch()):
                shard = running.pop(future)
                if isinstance(result, Record):
                    yield result
                elif isinstance(result, PatrolscopeError):
                    raise result
                elif isinstance(result, distributed.KilledWorker):
                    was_alone = deaths[shard.name] >= TRIES - 1
                    deaths[shard.name] += result.allowed_failures + 1
                    if was_alone:
                        set_aside[shard.name] = str(result.last_worker.name or result.last_worker.address)
                    elif deaths[shard.name] >= TRIES - 1:
                        alone.append(shard)
                    else:
                        waiting.append(shard)
                else:
                    raise SchedulerLostError(
                        f"the scheduler has gone while stage {stage.name} worked on {len(running) + 1} shards; what is "
                        "finished, stays: start it again, and the same command goes on from here"
                    ) from result
                future.release()
    finally:
        client.cancel(list(running))
    if set_aside:
        names = ", ".join(f"{name} (last on {worker})" for name, worker in sorted(set_aside.items()))
        raise FailedShardsError(
            f"stage {stage.name}: {len(set_aside)} of {len(shards)} shards killed their worker {TRIES} times and are "
            f"set aside: {names}. The others are finished. Most often a worker has too little memory: give it more "
            "(memory_gb of the cluster profile), and the same command tries these again"
        )


def _results(
    client: distributed.Client, futures: Sequence[distributed.Future]
) -> Iterator[tuple[distributed.Future, Record | PatrolscopeError | BaseException]]:
    """What finished futures hold, or how they were lost: asked for at once, and one by one where some were."""
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


# A task pickled by one and read by another version of these may fail late, or mean something else.
SAME_VERSIONS = ("dask", "distributed", "numpy", "pandas", "pyarrow", "geopandas", "shapely", "patrolscope")


def check_workers(client: distributed.Client, study: Study, takes: dict[str, float] | None) -> None:
    """Whether a worker of a pool sees what a stage needs, before hours are spent on it.

    Raises
    ------
    PlanError : other versions, a source that is not there, a study folder that is not seen or can not be written
    """
    token = f".seen-{uuid.uuid4().hex}"
    study.write_bytes(token.encode(), token)
    try:
        sources = {path: size for path in _local_sources(study) if (size := _size(path)) is not None}
        faults = _asked(client, takes, study, token, _versions(), sources)
    except ModuleNotFoundError as error:
        raise PlanError(f"workers have no {error.name}: give them the environment of this machine") from error
    except LOST as error:
        raise SchedulerLostError(
            "the scheduler, or every worker, has gone before the work began: look at their logs, and start again"
        ) from error
    finally:
        if study.exists(token):
            study.fs.rm_file(study.path(token))
    if faults:
        raise PlanError("workers can not do this yet: " + "; ".join(faults))


def _asked(client: distributed.Client, takes: dict[str, float] | None, *question: Any) -> list[str]:
    """What `_faults` says on a worker; one that dies meanwhile says nothing about the others."""
    for attempt in range(TRIES):
        try:
            return client.submit(_faults, *question, pure=False, resources=takes).result()
        except distributed.KilledWorker:
            if attempt == TRIES - 1:
                raise
    raise AssertionError("not reached: the last try answers or raises")


def _faults(study: Study, token: str, versions: dict[str, str], sources: dict[str, int]) -> list[str]:
    """What stands against working here, each with what to change. Runs on a worker."""
    faults = [
        f"{name} {_versions()[name]} on workers, {version} here: install the same"
        for name, version in versions.items()
        if _versions()[name] != version
    ]
    if not study.exists(token):
        faults.append(f"{study.root} is not the same folder on workers: put the study where all machines see it")
        return faults
    reply = f"{token}-reply"
    try:
        study.write_bytes(b"", reply)
        study.fs.rm_file(study.path(reply))
    except OSError as error:
        faults.append(f"{study.root} can not be written from a worker ({error.strerror}): give it the right to")
    faults += [
        f"{path} is not there on workers, or another file: put it where all machines see it"
        for path, size in sources.items()
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


def _local_sources(study: Study) -> list[str]:
    """Files and folders of this machine that study.yaml names; of a pattern, the folder that it looks in."""
    sources, images = study.settings.sources, study.settings.images
    named = [
        *sources.metadata,
        *sources.detections,
        *(sources.processed, sources.validation, sources.test, sources.truth),
        *images.sources,
        images.weights,
    ]
    resolved = [study.resolve(_before_pattern(path)) for path in named if path is not None]
    return [path for path in (*resolved, *layer_files(study)) if "://" not in path]


def _before_pattern(path: str) -> str:
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return path if fixed == path else fixed.rpartition("/")[0]


def _size(path: str) -> int | None:
    """Bytes of a file; of a folder, whose own size differs between file systems, 0; None if there is none."""
    place = Path(path)
    if not place.exists():
        return None
    return 0 if place.is_dir() else place.stat().st_size


class _Room:
    """How many shards of a stage may be on their way at a time, and what each takes of a worker.

    Workers hold one shard more than they work on: none waits for the next, and one that dies takes no more with it.
    """

    def __init__(self, client: distributed.Client, stage: Stage) -> None:
        self.client = client
        wanted = stage.resource or ROWS
        # What pools can have, also while they have no worker yet; else what there is.
        self._promised: dict[str, float] = client.get_metadata([OFFERS], {})
        offered = self._promised or self._there()
        # A stage that wants a GPU works without, where none is offered.
        self.resource = next((name for name in (wanted, ROWS) if name in offered), None)
        self._looked_at_s = -math.inf
        self._tasks = 1  # that workers work on at a time

    @property
    def takes(self) -> dict[str, float] | None:
        return None if self.resource is None else {self.resource: 1}

    def wanted(self, running: int) -> int:
        """How many more shards to send; none before they are worth a message."""
        free = 2 * self._tasks_at_a_time() - running
        return free if free >= max(1, self._tasks // 4) else 0

    def _tasks_at_a_time(self) -> int:
        """Looked up again from time to time."""
        if time.monotonic() - self._looked_at_s > LOOK_EVERY_S:
            offers = self._promised or self._there()
            threads = sum(self.client.nthreads().values()) if self.resource is None else offers.get(self.resource, 0)
            self._tasks = max(1, int(threads))
            self._looked_at_s = time.monotonic()
        return self._tasks

    def _there(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for worker in self.client.scheduler_info(n_workers=-1)["workers"].values():
            total.update(worker["resources"])
        return total


# Packed once for all shards: the scheduler unpacks and packs again what it is sent, half a millisecond of each shard.
@lru_cache(maxsize=4)
def _unpacked(job: bytes) -> tuple[Study, Stage]:
    study, stage = distributed.protocol.pickle.loads(job)
    return study, stage


def _finish(shard: Shard, *, job: bytes) -> Record | PatrolscopeError:
    study, stage = _unpacked(job)
    try:
        with storage_faults_told(f"stage {stage.name}, shard {shard.name}: "):
            return stage.finish(study, shard)
    except PatrolscopeError as error:
        # As an answer: a worker would log a raised one with its stack, which tells a user nothing.
        return error
    except MemoryError:
        return InsufficientMemoryError(
            f"stage {stage.name}, shard {shard.name}: a worker has too little memory for it: give workers more "
            "(memory_gb of the cluster profile), and the same command goes on"
        )


def over_partitions(stage: Callable[..., Any], frame: dd.DataFrame, *, produces: Table, **fixed: Any) -> dd.DataFrame:
    """A plain stage function over the partitions of a Dask frame, for notebooks and for the parity tests."""
    return frame.map_partitions(stage, meta=produces.empty(), enforce_metadata=False, **fixed)


def intersecting_pairs(left: gpd.GeoDataFrame, right: gpd.GeoDataFrame) -> pd.DataFrame:
    """Positions of the shapes of two layers that have a point in common, by dask-geopandas' join: left, right."""
    frame = dask_geopandas.from_geopandas(left[["geometry"]].reset_index(drop=True), npartitions=1)
    joined = frame.sjoin(right[["geometry"]].reset_index(drop=True), how="inner", predicate="intersects")
    # On the thread that asks: it may be a worker's.
    pairs = joined.compute(scheduler="sync")["index_right"]
    ordered = pd.DataFrame({"left": pairs.index.to_numpy(), "right": pairs.to_numpy()})
    return ordered.sort_values(["left", "right"], ignore_index=True)


class SpatialJoin:
    """Point location by dask-geopandas' spatial join, answering as `patrolscope.pipeline.geography.polygon_index.PolygonIndex` does.

    The reference that the index is held against, and the way for layers that are no coverage. Every area that touches a
    point is found; the lowest key has it.
    """

    def __init__(self, keys: npt.NDArray[Any], shapes: npt.NDArray[np.object_], crs: Any) -> None:
        keys = np.asarray(keys, dtype=np.str_)
        order = in_order(keys)
        self.keys = keys[order]
        self.layer = gpd.GeoDataFrame(geometry=np.asarray(shapes)[order], crs=crs)

    def locate(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Position in `keys` of the area that holds each point; -1 outside every area."""
        points = gpd.GeoDataFrame(geometry=gpd.points_from_xy(x, y, crs=self.layer.crs))
        lowest = intersecting_pairs(points, self.layer).groupby("left")["right"].min()
        return lowest.reindex(points.index, fill_value=-1).to_numpy(dtype=np.int32)


def read_table(study: Study, table: Table) -> dd.DataFrame:
    """A table of a study as a Dask frame, one partition a file; a dask-geopandas frame if it has a geometry.

    Raises
    ------
    StageNotRunError : the table does not exist yet
    """
    files = study.files(table.stored or table.name)
    frame = dd.from_map(study.read, files, meta=table.empty(), geometry=table.geometry is not None)
    return dask_geopandas.from_dask_dataframe(frame, geometry=table.geometry) if table.geometry else frame
