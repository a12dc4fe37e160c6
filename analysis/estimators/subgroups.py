"""Splits of labeled images in two, as the paper's table of the detector's quality by subgroup has them.

By what is known of the place and time of an image: above the median of the labeled set or not, or whether a condition
holds. The medians are those of the set itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.matching.annotate import ReferenceLayers, area_columns, distance_columns, time_columns
from patrolscope.pipeline.study.config import Settings

BOROUGH = "Manhattan"  # the borough that the paper sets against the rest of the city


@dataclass(frozen=True)
class Split:
    """Labeled images in two parts, and those that can not be told."""

    name: str
    side: npt.NDArray[np.int8]  # (images,) 1: above the median, or the condition holds; 0: not; -1: not known
    median: float | None = None  # of the images where it is known; None for a condition, or where none is known

    @property
    def left_out(self) -> int:
        """Images on neither side."""
        return int((self.side < 0).sum())


def locate(labeled: pd.DataFrame, around: ReferenceLayers, settings: Settings) -> pd.DataFrame:
    """Labeled images with local time, area, borough and distances, by the same rules as every image of a study.

    Parameters
    ----------
    labeled : `LABELED`
    """
    lng, lat = labeled["lng"].to_numpy(), labeled["lat"].to_numpy()
    x_ft, y_ft = project_ft(lng, lat, settings.city.crs)
    at = labeled["captured_at_utc"]
    parts = [
        labeled,
        time_columns(at, settings),
        area_columns(lng, lat, around).set_axis(labeled.index),
        distance_columns(x_ft, y_ft, at, around, settings.annotate.felony_windows_h),
    ]
    return pd.concat(parts, axis=1)


def split_images(images: pd.DataFrame, areas: pd.DataFrame, windows_h: tuple[int, ...]) -> list[Split]:
    """The paper's splits, in its order: 14 with the felony windows of 1, 3 and 6 hours.

    Parameters
    ----------
    images : one set, with the columns of `locate` or of annotated/
    areas : `AREAS`; an image outside every area is on no side of a split by area

    An area without people has no shares; one without an income has none to compare.
    """
    of_area = areas.set_index("area").reindex(pd.Index(images["area"]))
    persons = of_area["persons"].where(of_area["persons"] > 0)
    shares = {
        f"Share of {race} residents > median": of_area[f"persons_{race.lower()}"] / persons
        for race in ("White", "Black", "Asian", "Hispanic")
    }
    covariates = {
        **shares,
        "Median household income > median": of_area["income_usd"],
        "Population density > median": of_area["density_per_sqmi"],
        **{
            f"Distance from nearest felony, {hours} h > median": images[f"felony_{hours}h_distance_ft"]
            for hours in windows_h
        },
        "Distance from nearest police station > median": images["station_distance_ft"],
    }
    return [
        _where("Phase 1", images["phase"] == 1),
        _where("Weekend", images["weekend"]),
        _where("Daytime", ~images["nighttime"]),
        *(_above_median(name, values.to_numpy(dtype=np.float64)) for name, values in covariates.items()),
        _where(BOROUGH, images["borough"] == BOROUGH, known=images["borough"].notna()),
    ]


def _where(name: str, holds: pd.Series[bool], known: pd.Series[bool] | None = None) -> Split:
    side = holds.to_numpy(dtype=bool).astype(np.int8)
    return Split(name, side if known is None else np.where(known.to_numpy(dtype=bool), side, -1).astype(np.int8))


def _above_median(name: str, values: npt.NDArray[np.float64]) -> Split:
    """Strictly above the median, or not."""
    known = ~np.isnan(values)
    if not known.any():
        return Split(name, np.full(len(values), -1, dtype=np.int8))
    median = float(np.median(values[known]))
    return Split(name, np.where(known, values > median, -1).astype(np.int8), median)
