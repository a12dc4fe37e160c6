"""The reference simulation of docs/method.md: a city with known rates, and studies of it drawn from area-class counts.

The real block groups and residents of New York are used where ../shared holds them, with the published deployment rate
of their neighborhood; else the embedded tracts with simulated residents and rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.workloads import tracts
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.unit_counts import UnitCounts

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PUBLISHED = TwoClass(threshold=0.770508, positive=264, true_positive=205, negative=19_736, false_negative=42)
VALIDATION_IMAGES = PUBLISHED.positive + PUBLISHED.negative
RIDE_IMAGES, SEGMENTS, SEGMENT_IMAGES = 200, 10, 20
DAYS = 60
_LEAST_SHARE = 0.00005
_GROUPS = {"white": "White_alone", "black": "Black_or_African_American_alone", "asian": "Asian_alone"}


@dataclass(frozen=True)
class SimulatedCity:
    """Areas with known rates.

    Attributes
    ----------
    areas : DataFrame
        area, neighborhood, borough, zone, persons, persons_<group>, margin_<group>, income_usd, density_per_sqmi, x_ft,
        y_ft; sorted by neighborhood.
    positive_share : ndarray of float64, shape (n_areas,)
        Probability that an image of the area is positive.
    image_share : ndarray of float64, shape (n_areas,)
        Share of the images that are taken in the area.
    """

    areas: pd.DataFrame
    positive_share: Floats
    image_share: Floats


@dataclass(frozen=True)
class SimulatedStudy:
    """Counts of one simulated study; `units` holds its rides, or None if images are independent."""

    inside: Counts
    units: UnitCounts | None


def reference_city(seed: int = 20) -> SimulatedCity:
    """Return the city of the reference simulation; the seed draws what is not public."""
    generator = np.random.default_rng(seed)
    areas, rates = _block_groups() if SHARED.is_dir() else _embedded(generator)
    share = np.maximum((rates - PUBLISHED.false_omission_rate) / (PUBLISHED.ppv - PUBLISHED.false_omission_rate), 0)
    share = np.maximum(share, _LEAST_SHARE) * generator.gamma(4, 0.25, len(areas))  # mean 1, cv 0.5
    images = generator.lognormal(0, 0.9, len(areas)) * np.where(areas["borough"] == "Manhattan", 2, 1)
    return SimulatedCity(areas, np.minimum(share, 1), images / images.sum())


def _block_groups() -> tuple[pd.DataFrame, Floats]:
    """Return block groups with residents, and the published rate of their neighborhood."""
    census = pd.read_csv(SHARED / "census" / "nyc_cbgs_ethnicity_table.csv")
    areas = pd.DataFrame({"area": census["GEOID20"].str[-12:], "persons": census["Estimate_Total"].astype(float)})
    published = {name: f"Total_Not_Hispanic_or_Latino_{words}" for name, words in _GROUPS.items()}
    for name, words in {**published, "hispanic": "Total_Hispanic_or_Latino"}.items():
        areas[f"persons_{name}"] = census[f"Estimate_{words}"].astype(float)
        areas[f"margin_{name}"] = census[f"MoE_{words}"].astype(float)
    tract = areas["area"].str[:11]
    places = pd.read_csv(
        SHARED / "census" / "2020_Census_Tracts_to_2020_NTAs_and_CDTAs_Equivalency.csv", dtype={"GEOID": "str"}
    ).set_index("GEOID")
    areas["neighborhood"], areas["borough"] = tract.map(places["NTAName"]), tract.map(places["BoroName"])
    income = pd.read_csv(SHARED / "census" / "ACSDT5Y2020.B19013-Data.csv", skiprows=[1], dtype="str")
    known = pd.to_numeric(income["B19013_001E"], errors="coerce").set_axis(income["GEO_ID"].str[-12:])
    areas["income_usd"] = areas["area"].map(known)
    zones = pd.read_csv(SHARED / "zoning" / "cbgs_zone_data.csv", dtype={"GEOID20": "str"}).set_index("GEOID20")
    zoned = zones[["R", "C", "M"]].fillna(0)
    areas["zone"] = areas["area"].map(zoned.idxmax(axis=1).where(zoned.max(axis=1) >= 0.5))
    shapes = gpd.read_parquet(SHARED / "boundaries" / "nyc_block_groups_2020.parquet").to_crs("EPSG:2263")
    rates = pd.read_csv(SHARED / "paper" / "neighborhood_aggregated_data.csv").set_index("nta")["weighted_mean"]
    return _placed(areas[areas["neighborhood"].notna()], shapes.set_index("GEOID20").geometry, rates)


def _embedded(generator: np.random.Generator) -> tuple[pd.DataFrame, Floats]:
    """Return the embedded tracts with simulated residents and rates; neighborhoods are squares of two miles."""
    shapes = tracts().set_index("area").to_crs("EPSG:2263").geometry
    center = shapes.centroid
    areas = pd.DataFrame({"area": shapes.index, "persons": generator.lognormal(8, 0.5, len(shapes)).round()})
    groups = generator.dirichlet([2, 1.5, 1.8, 1], len(areas))
    for at, name in enumerate((*_GROUPS, "hispanic")):
        areas[f"persons_{name}"] = (areas["persons"] * groups[:, at]).round()
        areas[f"margin_{name}"] = 30 + 4 * np.sqrt(areas[f"persons_{name}"])
    square = np.floor(center.x / 10_560).astype(int)
    areas["neighborhood"] = [f"{x}-{y}" for x, y in zip(square, np.floor(center.y / 10_560).astype(int), strict=True)]
    areas["borough"] = areas["area"].str[:5]
    areas["income_usd"] = generator.uniform(15e3, 250e3, len(areas)).round()
    areas["zone"] = generator.choice(["R", "C", "M"], len(areas), p=[0.8, 0.1, 0.1])
    names = areas["neighborhood"].unique()
    return _placed(areas, shapes, pd.Series(0.0022 + generator.gamma(1.2, 0.006, len(names)), index=names))


def _placed(areas: pd.DataFrame, shapes: gpd.GeoSeries, rates: pd.Series[float]) -> tuple[pd.DataFrame, Floats]:
    """Add centroid and density, sort by neighborhood, and look up the rates; an unknown one is their mean."""
    inside = shapes.reindex(areas["area"])
    center = inside.centroid
    with np.errstate(divide="ignore", invalid="ignore"):
        density = areas["persons"].to_numpy() / inside.area.to_numpy() * 27_878_400
    areas = areas.assign(x_ft=center.x.to_numpy(), y_ft=center.y.to_numpy(), density_per_sqmi=np.nan_to_num(density))
    areas = areas.sort_values(["neighborhood", "area"], ignore_index=True)
    return areas, areas["neighborhood"].map(rates).fillna(rates.mean()).to_numpy()


def draw_study(
    city: SimulatedCity, images: int, generator: np.random.Generator, *, rides: bool, events: bool = False
) -> SimulatedStudy:
    """Draw the images of one study.

    Parameters
    ----------
    city : SimulatedCity
    images : int
    generator : numpy.random.Generator
    rides : bool
        Whether images come in rides of 200, in ten segments of 20 images in one area each, moving 1 to 5 areas on. The
        probability of a positive image is multiplied by a gamma factor of mean 1 and variance 1 per ride, and one of
        variance 2 per segment. Else images are independent.
    events : bool, default False
        Whether rides share events: each ride is on one of 60 days, and the probability is also multiplied by a gamma
        factor of mean 1 and variance 1 per neighborhood and day. Rides are then not independent.
    """
    areas = len(city.areas)
    if not rides:
        taken = generator.multinomial(images, city.image_share)
        positive = generator.binomial(taken, city.positive_share)
        return SimulatedStudy(np.stack([taken - positive, positive], axis=1), None)
    number = images // RIDE_IMAGES
    start = generator.choice(areas, number, p=city.image_share)
    steps = np.cumsum(generator.integers(1, 6, (number, SEGMENTS)), axis=1)
    area = (start[:, None] + steps) % areas
    factor = generator.gamma(1, 1, (number, 1)) * generator.gamma(0.5, 2, (number, SEGMENTS))
    if events:
        places = pd.factorize(city.areas["neighborhood"])[0][area]
        day = generator.integers(0, DAYS, (number, 1))
        factor = factor * generator.gamma(1, 1, (places.max() + 1, DAYS))[places, day]
    positive = generator.binomial(SEGMENT_IMAGES, np.minimum(city.positive_share[area] * factor, 1))
    ride = np.repeat(np.arange(number), SEGMENTS)
    classes = np.concatenate([2 * area.ravel(), 2 * area.ravel() + 1])
    counts = np.concatenate([SEGMENT_IMAGES - positive.ravel(), positive.ravel()])
    return SimulatedStudy(*_collected(classes, np.concatenate([ride, ride]), counts, areas, number))


def _collected(
    classes: npt.NDArray[np.int64], ride: npt.NDArray[np.int64], counts: Counts, areas: int, number: int
) -> tuple[Counts, UnitCounts]:
    kept = counts > 0
    place = classes[kept] * number + ride[kept]
    order = np.argsort(place, kind="stable")
    firsts = np.flatnonzero(np.diff(place[order], prepend=-1))
    images = np.add.reduceat(counts[kept][order], firsts)
    area_class, unit = np.divmod(place[order][firsts], number)
    inside = np.bincount(area_class, images, minlength=2 * areas).astype(np.int64).reshape(areas, 2)
    units = UnitCounts(
        number,
        area_class.astype(np.int32),
        unit.astype(np.int32),
        images.astype(np.int32),
        np.zeros(len(images), dtype=np.int64),
    )
    return inside, units


def draw_calibration(generator: np.random.Generator) -> TwoClass:
    """Draw a validation set of 20,000 images with the published probabilities."""
    shares = np.array([205, 59, 42, 19_694]) / VALIDATION_IMAGES
    true_positive, false_positive, missed, true_negative = map(int, generator.multinomial(VALIDATION_IMAGES, shares))
    return TwoClass(PUBLISHED.threshold, true_positive + false_positive, true_positive, missed + true_negative, missed)
