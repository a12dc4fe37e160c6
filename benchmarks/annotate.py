"""Point location of images along streets, against geopandas' spatial join."""

from __future__ import annotations

import geopandas as gpd

from benchmarks.measure import Comparison, best_of
from benchmarks.workloads import street_points, tracts
from pipeline.spatial.coverage import Coverage


def run(*, quick: bool) -> list[Comparison]:
    """Locate a million points (quick: 100,000) in 2,325 tracts."""
    areas = tracts()
    index = Coverage.build(areas["area"].to_numpy(), areas.geometry.to_numpy())
    lng, lat = street_points(index.segments, 100_000 if quick else 1_000_000)
    index.locate(lng[:10], lat[:10])  # compiled before the clock starts
    points = gpd.GeoDataFrame(geometry=gpd.points_from_xy(lng, lat, crs=areas.crs))
    ours_s = best_of(lambda: index.locate(lng, lat))
    peer_s = best_of(lambda: gpd.sjoin(points, areas[["area", "geometry"]], how="left", predicate="intersects"), 1)
    return [Comparison(f"locate {len(lng):,} street points", ours_s, peer_s, "s", 10, "geopandas.sjoin")]
