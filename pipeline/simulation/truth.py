"""True deployment rates of a simulated city: the probability that an image shows police, by neighborhood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.detector import Detector
from patrolscope.pipeline.simulation.public_data import smooth_surface
from patrolscope.pipeline.simulation.road_network import Streets

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Quantiles of the published rates of 217 neighborhoods, relative to their mean (paper_results). The highest is 19 times
# the lowest.
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_RELATIVE_RATES = (0.239, 0.36, 0.53, 0.815, 1.257, 2.223, 4.543)
MEAN_RATE = 0.0098  # over images; published: 0.0098 over residents


@dataclass(frozen=True)
class Truth:
    """True rates of the city and the properties of the detector; small enough for every worker."""

    streets: Streets
    index: PolygonIndex
    rates: Floats  # (areas + 1,) in the order of index.keys, then outside all areas
    detector: Detector | None  # None: rendered scenes, processed by a real detector

    def rates_at(self, locations: Floats) -> Floats:
        """Return the true rate, shape (n,), at locations (n, 2) in longitude and latitude."""
        return self.rates[self.index.locate(locations[:, 0], locations[:, 1])]


def simulated_rates(points: Floats, images: Ints, seed: int, mean: float = MEAN_RATE) -> Floats:
    """Draw rates of neighborhoods: a smooth surface whose distribution over images is that of the published rates.

    Parameters
    ----------
    points : ndarray of float64, shape (n, 2)
        Longitude and latitude of each neighborhood.
    images : ndarray of int64, shape (n,)
        Images of a sample in each neighborhood.
    seed : int
        Seed of the study.
    mean : float, default 0.0098
        Mean rate over the images of the sample.

    Returns
    -------
    ndarray of float64, shape (n,)
        Rates.
    """
    order = np.argsort(smooth_surface(points, stream(seed, "levels")), kind="stable")
    # Half an image more, so that neighborhoods without images in the sample have different ranks.
    weight = images[order] + 0.5
    share = np.cumsum(weight) - weight / 2
    share = (share - share[0]) / max(share[-1] - share[0], 1e-9)
    relative = np.empty(len(order))
    relative[order] = np.exp(np.interp(share, _QUANTILES, np.log(_RELATIVE_RATES)))
    weights = images if images.any() else np.ones(len(order))
    # Few neighborhoods cannot follow the published distribution. Compress it until the lowest rate, relative to the
    # mean, is at least the lowest published one: a detector of the published recall requires that.
    spreads = (relative**power for power in np.linspace(1.0, 0.0, 101))
    spread = next(s for s in spreads if s.min() >= _RELATIVE_RATES[0] * np.average(s, weights=weights))
    return spread * mean / np.average(spread, weights=weights)


def rates_of_areas(
    areas: pd.DataFrame,
    points: Floats,
    sample: npt.NDArray[np.int32],
    given: dict[str, float] | None,
    seed: int,
    mean: float = MEAN_RATE,
) -> tuple[Floats, float]:
    """Return the true rate of each area, and of images elsewhere.

    Parameters
    ----------
    areas : DataFrame, n rows
        Column `neighborhood`, which can be missing.
    points : ndarray of float64, shape (n, 2)
        Longitude and latitude of each area.
    sample : ndarray of int32
        Area of each image of a sample, -1 outside all areas.
    given : dict of str to float, or None
        Rate by neighborhood. None: a simulated surface.
    seed : int
        Seed of the study.
    mean : float, default 0.0098
        Mean of simulated rates over the sample.

    Returns
    -------
    tuple of ndarray of float64, shape (n,), and float
        Rates of the areas, and the rate outside all areas and in areas without a rate of their own.

    Raises
    ------
    SettingsError
        If no neighborhood of the city has a given rate.
    """
    names = areas["neighborhood"]
    if given is not None:
        rates = names.map(given).astype("float64").to_numpy()
        if np.isnan(rates).all():
            raise SettingsError(
                f"--rates: none of the {len(given)} neighborhoods, such as {next(iter(given))!r}, is in the city; "
                "expected a file for this city"
            )
        elsewhere = float(np.mean(list(given.values())))
        return np.where(np.isnan(rates), elsewhere, rates), elsewhere
    codes, unique = pd.factorize(names, sort=True)
    inside = codes >= 0
    if not inside.any():
        return np.full(len(areas), mean), mean
    of_sample = codes[sample[sample >= 0]]
    images = np.bincount(of_sample[of_sample >= 0], minlength=len(unique))
    members = np.bincount(codes[inside])
    middles = np.column_stack([np.bincount(codes[inside], weights=axis[inside]) / members for axis in points.T])
    rates = simulated_rates(middles, images, seed, mean)
    return np.where(inside, rates[codes], mean), mean
