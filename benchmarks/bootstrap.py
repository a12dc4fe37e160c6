"""The image bootstrap from cells, against resampling the rows of the images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.bootstrap import resample
from analysis.estimate import Frame, area_means, group_means
from benchmarks.measure import Comparison, best_of

P_POSITIVE, P_NEGATIVE = 0.777, 0.002128


def run(*, quick: bool) -> list[Comparison]:
    """100 replicates over 6,807 areas and 2 million images (quick: 200,000); the peer's one replicate is scaled."""
    rng = np.random.default_rng(7)
    areas, replicates = 6_807, 100
    images = 200_000 if quick else 2_000_000
    area = rng.choice(areas, images, p=rng.dirichlet(np.full(areas, 2.0)))
    positive = rng.random(images) < 0.013
    inside = np.zeros((areas, 2), dtype=np.int64)
    np.add.at(inside, (area, positive.astype(int)), 1)
    persons = rng.integers(200, 4000, areas).astype(float)
    weights = persons[:, None] * (rng.integers(0, 5, areas)[:, None] == np.arange(5))
    frame = Frame("all", np.ones(areas, dtype=bool), with_outside=True)

    def from_cells() -> None:
        drawn = resample(inside, np.zeros(2, dtype=np.int64), frame, replicates=range(replicates), seed=1)
        group_means(area_means(drawn[..., 1], drawn.sum(axis=-1), P_POSITIVE, P_NEGATIVE), weights)

    rows = pd.DataFrame({"area": area, "prediction": np.where(positive, P_POSITIVE, P_NEGATIVE)})

    def from_rows() -> None:
        means = rows.sample(len(rows), replace=True, random_state=1).groupby("area")["prediction"].mean()
        group_means(means.reindex(range(areas)).to_numpy(), weights)

    return [
        Comparison(
            f"{replicates} replicates of {images:,} images",
            best_of(from_cells),
            best_of(from_rows) * replicates,
            "s",
            2 if quick else 10,  # a replicate costs the cells, the peer's costs the images
            "pandas, rows resampled (one replicate, times 100)",
        )
    ]
