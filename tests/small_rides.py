"""A small city with rides, and plain references of its design effects, written from docs/method.md."""

import numpy as np
import pandas as pd
from scipy import sparse

from patrolscope.analysis.estimators.unit_counts import UnitCounts


def small_city(seed: int = 1, areas: int = 30, rides: int = 60) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return areas, and images per ride and area: ride, area, images, positives. Some areas have no image."""
    generator = np.random.default_rng(seed)
    names = np.array([f"place {number % 5}" for number in range(areas)], dtype=object)
    names[:3] = None  # in a borough only
    boroughs = np.array(["north" if number % 2 else "south" for number in range(areas)], dtype=object)
    boroughs[0] = None  # in the city only
    persons = generator.integers(0, 2_000, areas).astype(float)
    persons[5] = 0
    frame = pd.DataFrame({"neighborhood": names, "borough": boroughs, "persons": persons, "zone": "R"})
    ride, area = np.meshgrid(np.arange(rides), np.arange(areas), indexing="ij")
    images = generator.poisson(3, ride.shape) * (generator.random(ride.shape) < 0.3)
    images[:, 7] = 0  # no image
    images[:, 8] = 0
    images[4, 8] = 12  # all images of one ride
    positives = generator.binomial(images, 0.1 * generator.gamma(1, 1, (rides, 1)))
    rows = pd.DataFrame({"ride": ride.ravel(), "area": area.ravel(), "images": images.ravel(), "k": positives.ravel()})
    return frame, rows[rows["images"] > 0].reset_index(drop=True)


def counts_of(rows: pd.DataFrame, areas: int) -> tuple[np.ndarray, UnitCounts]:
    """Return images per area and class, and the same counts by ride."""
    both = pd.concat(
        [
            rows.assign(area_class=2 * rows["area"], number=rows["images"] - rows["k"]),
            rows.assign(area_class=2 * rows["area"] + 1, number=rows["k"]),
        ]
    )
    both = both[both["number"] > 0].sort_values(["area_class", "ride"], kind="stable")
    inside = np.zeros(2 * areas, dtype=np.int64)
    np.add.at(inside, both["area_class"], both["number"])
    return inside.reshape(areas, 2), UnitCounts(
        int(rows["ride"].max()) + 1,
        both["area_class"].to_numpy(np.int32),
        both["ride"].to_numpy(np.int32),
        both["number"].to_numpy(np.int32),
        np.zeros(len(both), dtype=np.int64),
    )


def group_weights(frame: pd.DataFrame) -> sparse.csr_array:
    """Return the residents of everyone and of each place, shape (1 + n_places, n_areas)."""
    persons = frame["persons"].to_numpy()
    places = [persons * (frame["neighborhood"] == f"place {number}").to_numpy() for number in range(5)]
    return sparse.csr_array(np.array([persons, *places]))


def reference_pooled(frame: pd.DataFrame, inside: np.ndarray) -> np.ndarray:
    """Return the pooled rate of the region of each area, area by area."""
    region = frame["neighborhood"].fillna(frame["borough"]).fillna("city")
    city = inside[:, 1].sum() / inside.sum()
    pooled = []
    for name in region:
        same = (region == name).to_numpy()
        pooled.append((inside[same, 1].sum() + 0.5) / (inside[same].sum() + 0.5 / city))
    return np.array(pooled)


def reference_residuals(rows: pd.DataFrame, inside: np.ndarray, pooled: np.ndarray) -> pd.Series:
    """Return the residual of each row of ride and area."""
    found = []
    for row in rows.itertuples():
        images = inside[row.area].sum()
        if row.images == images:
            found.append(row.k - row.images * pooled[row.area])
        else:
            found.append((row.k - row.images * inside[row.area, 1] / images) / np.sqrt(1 - row.images / images))
    return pd.Series(found, index=rows.index)


def reference_effect(weights: np.ndarray, rows: pd.DataFrame, residuals: pd.Series, inside: np.ndarray) -> tuple:
    """Return share, positives, variance over rides, and sum of v^2 k of one group, from its residents."""
    seen = (inside.sum(axis=1) > 0) & (weights > 0)
    if not seen.any():
        return np.nan, 0, 0.0, 0.0
    v = np.where(seen, weights, 0) / weights[seen].sum() / np.maximum(inside.sum(axis=1), 1)
    by_ride = (v[rows["area"]] * residuals).groupby(rows["ride"]).sum()
    return (v * inside[:, 1]).sum(), inside[seen, 1].sum(), (by_ride**2).sum(), (v**2 * inside[:, 1]).sum()
