"""How work is spread over a Dask cluster. The only module of the pipeline that knows Dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask.dataframe as dd
import dask_geopandas
import distributed
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.contract import Table
from pipeline.errors import PatrolscopeError
from pipeline.spatial.coverage import in_order
from pipeline.stages import Shard, Stage
from pipeline.store import Record, Study


def finish_shards(client: distributed.Client, study: Study, stage: Stage, shards: Sequence[Shard]) -> Iterator[Record]:
    """Records of shards in the order in which workers finish them.

    A task that raises stops the stage: what runs is let go, what is finished stays finished. Scheduling order is the
    order of `shards`; nothing in the output depends on it. Where workers offer the stage's resource, only they work.
    """
    offered = any(stage.resource in worker["resources"] for worker in client.scheduler_info()["workers"].values())
    # pure=False: a shard that was redone after its files vanished must not be answered from an earlier result.
    futures = client.map(
        _finish,
        shards,
        study=study,
        stage=stage,
        key=[f"{stage.name}-{shard.name}" for shard in shards],
        pure=False,
        resources={stage.resource: 1} if offered else None,
    )
    try:
        for future in distributed.as_completed(futures):
            result = future.result()
            if isinstance(result, PatrolscopeError):
                raise result
            yield result
            future.release()
    finally:
        client.cancel(futures)


def _finish(shard: Shard, *, study: Study, stage: Stage) -> Record | PatrolscopeError:
    try:
        return stage.finish(study, shard)
    except PatrolscopeError as error:
        # As an answer: a worker would log a raised one with its stack, which tells a user nothing.
        return error


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
    """Point location by dask-geopandas' spatial join, answering as `pipeline.spatial.coverage.Coverage` does.

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
    NotYetMade : the table does not exist yet
    """
    files = study.files(table.stored or table.name)
    frame = dd.from_map(study.read, files, meta=table.empty(), geometry=table.geometry is not None)
    return dask_geopandas.from_dask_dataframe(frame, geometry=table.geometry) if table.geometry else frame
