"""What is true of a simulated city: the level of every neighborhood, the chance that an image there shows police."""

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

# Published levels by neighborhood relative to their mean: these shares of the neighborhoods lie below them
# (paper_results, 217 neighborhoods). Lowest to highest is a factor of 19.
_LEVEL_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_RELATIVE_LEVELS = (0.239, 0.36, 0.53, 0.815, 1.257, 2.223, 4.543)
MEAN_LEVEL = 0.0098  # over the images; published: 0.0098 over the people


@dataclass(frozen=True)
class Truth:
    """What is true of the city, and of the detector: small enough for every worker."""

    streets: Streets
    index: PolygonIndex
    levels: Floats  # (areas + 1,) in the order of index.keys, then that outside every area
    detector: Detector | None  # None: a real one looks at rendered scenes

    def levels_at(self, places: Floats) -> Floats:
        """(n,) true level at each place."""
        return self.levels[self.index.locate(places[:, 0], places[:, 1])]


def simulated_levels(points: Floats, images: Ints, seed: int, mean: float = MEAN_LEVEL) -> Floats:
    """(n,) levels of neighborhoods: a smooth surface, spread over the images like the published levels.

    Parameters
    ----------
    points : (n, 2) longitude and latitude of each neighborhood
    images : (n,) images in each, of a sample: their mean level is `mean`
    """
    order = np.argsort(smooth_surface(points, stream(seed, "levels")), kind="stable")
    # Even without an image in the sample a neighborhood has its own place in the order.
    weight = images[order] + 0.5
    share = np.cumsum(weight) - weight / 2
    share = (share - share[0]) / max(share[-1] - share[0], 1e-9)
    relative = np.empty(len(order))
    relative[order] = np.exp(np.interp(share, _LEVEL_SHARES, np.log(_RELATIVE_LEVELS)))
    weights = images if images.any() else np.ones(len(order))
    # A few neighborhoods can not have the published shape: they lie closer together, so that the lowest is no lower
    # below the mean than the published one, where a detector of the published recall still reaches it.
    spreads = (relative**power for power in np.linspace(1.0, 0.0, 101))
    spread = next(s for s in spreads if s.min() >= _RELATIVE_LEVELS[0] * np.average(s, weights=weights))
    return spread * mean / np.average(spread, weights=weights)


def levels_of_areas(
    areas: pd.DataFrame,
    points: Floats,
    sample: npt.NDArray[np.int32],
    given: dict[str, float] | None,
    seed: int,
    mean: float = MEAN_LEVEL,
) -> tuple[Floats, float]:
    """True level of each area, and of images outside every area or in one without a level of its own.

    Parameters
    ----------
    areas : `neighborhood` of each area, may be missing
    points : (n, 2) longitude and latitude of each area
    sample : area of each of some images, -1 outside
    given : levels by neighborhood; None: a simulated surface over those that there are
    mean : of the simulated levels over the sample

    Raises
    ------
    SettingsError : no neighborhood of the city has a given level
    """
    names = areas["neighborhood"]
    if given is not None:
        level = names.map(given).astype("float64").to_numpy()
        if np.isnan(level).all():
            raise SettingsError(
                f"none of the city's neighborhoods is among the {len(given)} given levels, such as that of "
                f"{next(iter(given))!r}: is it the right city's file?"
            )
        elsewhere = float(np.mean(list(given.values())))
        return np.where(np.isnan(level), elsewhere, level), elsewhere
    codes, unique = pd.factorize(names, sort=True)
    inside = codes >= 0
    if not inside.any():
        return np.full(len(areas), mean), mean
    of_sample = codes[sample[sample >= 0]]
    images = np.bincount(of_sample[of_sample >= 0], minlength=len(unique))
    members = np.bincount(codes[inside])
    middles = np.column_stack([np.bincount(codes[inside], weights=axis[inside]) / members for axis in points.T])
    level = simulated_levels(middles, images, seed, mean)
    return np.where(inside, level[codes], mean), mean
