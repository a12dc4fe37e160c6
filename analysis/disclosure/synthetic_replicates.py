"""Synthetic replicates: replicates of a release, generated from released numbers only.

A study's own replicates disclose withheld areas. All groups share their draws, so that a borough's replicates minus
those of its other neighborhoods are those of the last one. An area with few images moves even a whole borough in steps
of one image, so that the standard deviation alone shows how many of its images are positive. A release therefore
resamples a synthetic city that every reader of its tables can build: shown areas have their published images, withheld
ones those of `synthetic_counts`. The seed is public, and the replicates disclose nothing beyond the tables.
docs/release.md has the attacks and measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.rates import Panel
from patrolscope.pipeline.seeds import stream

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

SEED = 0  # public: readers of the tables can generate the same replicates
_BLOCK = 100  # replicates at a time, about 5 MB of area rates


def synthetic_counts(
    areas: pd.DataFrame,
    neighborhoods: pd.DataFrame,
    average: float,
    probabilities: tuple[float, float],
    minimum: int,
) -> tuple[Whole, Floats]:
    """Complete images and detection rates of all areas from released numbers.

    The withheld areas of a neighborhood share the images that its shown areas leave, at the rate of the neighborhood.
    If the neighborhood is withheld as well, each has half the minimum of images, at the city average.

    Parameters
    ----------
    areas : DataFrame, n_areas rows
        Table `RELEASED_AREAS`.
    neighborhoods : DataFrame
        Released `deployment_rate` and `images` (in areas with residents), indexed by name.
    average : float
        Released city average.
    probabilities : tuple of float
        PPV and FOR.
    minimum : int
        Minimum number of images of a published area.

    Returns
    -------
    images : ndarray of int64, shape (n_areas,)
        Images per area.
    shares : ndarray of float64, shape (n_areas,)
        Detection rate per area; 0 without images.
    """
    withheld, inhabited = areas["withheld"] == "true", areas["persons"] > 0
    counts = areas[["images", "positives"]].fillna(0).astype(np.float64).assign(withheld=withheld)
    totals = counts[inhabited].groupby(areas["neighborhood"]).sum()
    per_area = (neighborhoods["images"] - totals["images"]) / totals["withheld"]
    of_withheld = areas["neighborhood"].map(per_area).astype(np.float64).fillna(minimum / 2).clip(lower=1).round()
    images = counts["images"].mask(withheld, of_withheld).to_numpy().astype(np.int64)
    ppv, false_omission_rate = probabilities
    rates = areas["neighborhood"].map(neighborhoods["deployment_rate"]).astype(np.float64).fillna(average).to_numpy()
    # With equal probabilities, deployment rates do not depend on detection rates.
    share = np.clip((rates - false_omission_rate) / ((ppv - false_omission_rate) or 1.0), 0, 1)
    return images, np.where(withheld, share, counts["positives"] / np.maximum(images, 1))


def synthetic_replicates(
    images: Whole, shares: Floats, panels: list[Panel], probabilities: tuple[float, float], resampled: Floats
) -> list[Floats]:
    """Generate replicates as deviations from the rates of the synthetic city.

    Each replicate resamples the images of every area, as many as it has, by a binomial draw.

    Parameters
    ----------
    images : ndarray of int64, shape (n_areas,)
        Images per area, from `synthetic_counts`.
    shares : ndarray of float64, shape (n_areas,)
        Detection rate per area, from `synthetic_counts`.
    panels : list of Panel
        Analyses by population.
    probabilities : tuple of float
        PPV and FOR.
    resampled : ndarray of float64, shape (2, n_replicates)
        FOR and PPV in each replicate.

    Returns
    -------
    list of ndarray of float64, shape (1 + n_groups, n_replicates)
        Deviations of the average and of each group, per panel.
    """
    ppv, false_omission_rate = probabilities
    seen = images > 0
    rates = np.where(seen, false_omission_rate + (ppv - false_omission_rate) * shares, np.nan)[:, None]
    centers = [panel.means(rates) for panel in panels]
    blocks: list[list[Floats]] = [[] for _ in panels]
    for start in range(0, resampled.shape[1], _BLOCK):
        numbers = range(start, min(start + _BLOCK, resampled.shape[1]))
        replicated = np.full((len(images), len(numbers)), np.nan)
        for column, number in enumerate(numbers):
            generator = stream(SEED, "replicates of a release", number)
            share = generator.binomial(images[seen], shares[seen]) / images[seen]
            replicated[seen, column] = resampled[0, number] + (resampled[1, number] - resampled[0, number]) * share
        for panel, center, parts in zip(panels, centers, blocks, strict=True):
            parts.append(panel.means(replicated) - center)
    return [np.concatenate(parts, axis=1) for parts in blocks]
