"""The image bootstrap, exactly, without the images.

Resampling N images with replacement, and counting them by cell, is one multinomial draw of N over the cells' shares.
A replicate therefore costs the number of cells, whatever the number of images. Every replicate has a seed of its own,
so the result does not depend on how replicates are spread, and more replicates leave the first ones as they were.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.estimate import Frame

Counts = npt.NDArray[np.int64]


def counts_by_area(cells: pd.DataFrame, areas: pd.Series[str]) -> tuple[Counts, Counts]:
    """Images of each area and class, and those outside every area.

    Returns
    -------
    inside : (areas, 2) images that are negative, positive
    outside : (2,) the same for images outside every area
    """
    position = pd.Index(areas).get_indexer(pd.Index(cells["area"]))
    inside = np.zeros((len(areas), 2), dtype=np.int64)
    outside = np.zeros(2, dtype=np.int64)
    column = cells["positive"].to_numpy().astype(np.intp)
    lies_inside = position >= 0
    np.add.at(inside, (position[lies_inside], column[lies_inside]), cells["images"].to_numpy()[lies_inside])
    np.add.at(outside, column[~lies_inside], cells["images"].to_numpy()[~lies_inside])
    return inside, outside


def resample(inside: Counts, outside: Counts, frame: Frame, *, replicates: range, seed: int) -> Counts:
    """Counts of replicates of one frame's images.

    Parameters
    ----------
    inside, outside : (areas, 2) and (2,) from `counts_by_area`
    replicates : numbers of the replicates to draw

    Returns
    -------
    (replicates, areas, 2) : images of each area and class; zero in areas outside the frame
    """
    cells = np.where(frame.areas[:, None], inside, 0).ravel()
    if frame.with_outside:
        cells = np.concatenate([cells, outside])
    filled = np.flatnonzero(cells)
    drawn = np.zeros((len(replicates), len(cells)), dtype=np.int64)
    images = int(cells.sum())
    if images == 0:
        return drawn[:, : inside.size].reshape(len(replicates), *inside.shape)
    shares = cells[filled] / images
    for row, replicate in enumerate(replicates):
        generator = np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=(zlib.crc32(frame.name.encode()), replicate))
        )
        drawn[row, filled] = generator.multinomial(images, shares)
    return drawn[:, : inside.size].reshape(len(replicates), *inside.shape)


def percentile_interval(
    replicates: npt.NDArray[np.float64], percent: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Lower and upper end of the central `percent` of replicates, (replicates, groups) -> 2 x (groups,).

    A replicate in which a group has no estimate is left out for that group; missing where all are.
    """
    lower, upper = np.full(replicates.shape[1], np.nan), np.full(replicates.shape[1], np.nan)
    touched = ~np.isnan(replicates).all(axis=0)
    tail = (100 - percent) / 2
    if touched.any():  # numpy has no percentiles of no columns
        lower[touched], upper[touched] = np.nanpercentile(replicates[:, touched], [tail, 100 - tail], axis=0)
    return lower, upper


def spread(replicates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation over replicates (ddof 0, as published), (groups,); missing where no replicate has one."""
    touched = ~np.isnan(replicates).all(axis=0)
    deviation = np.full(replicates.shape[1], np.nan)
    deviation[touched] = np.nanstd(replicates[:, touched], axis=0)
    return deviation
