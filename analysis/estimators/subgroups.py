"""Splits of labeled images into two sides, as in the paper's table of detector quality by subgroup.

A split depends on location and time of an image: a covariate above the median of the labeled set, or a condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

BOROUGH = "Manhattan"  # the paper compares this borough with the rest of the city


@dataclass(frozen=True)
class Split:
    """Assignment of labeled images to two sides.

    Attributes
    ----------
    name : str
        Name of the subgroup.
    side : ndarray of int8, shape (n_images,)
        1 above the median or where the condition holds, 0 elsewhere, -1 unknown.
    median : float or None
        Median over the images with a value. None for a condition, or if no image has a value.
    """

    name: str
    side: npt.NDArray[np.int8]
    median: float | None = None

    @property
    def left_out(self) -> int:
        """Number of images on neither side."""
        return int((self.side < 0).sum())


def split_images(images: pd.DataFrame, areas: pd.DataFrame, windows_h: tuple[int, ...]) -> list[Split]:
    """Compute the paper's splits in its order: 14 with felony windows of 1, 3, and 6 hours.

    Parameters
    ----------
    images : DataFrame, n_images rows
        One labeled set, with the columns of `ANNOTATED` on time, area, borough, and distances.
    areas : DataFrame
        Areas, table `AREAS`. Images outside all areas, and images in areas without residents or without an income, are
        on neither side of the splits concerned.
    windows_h : tuple of int
        Felony windows, in hours.

    Notes
    -----
    The published "false" side also holds the images without a value; here they are on neither side and counted in
    `Split.left_out`.
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
    """Split strictly above the median."""
    known = ~np.isnan(values)
    if not known.any():
        return Split(name, np.full(len(values), -1, dtype=np.int8))
    median = float(np.median(values[known]))
    return Split(name, np.where(known, values > median, -1).astype(np.int8), median)
