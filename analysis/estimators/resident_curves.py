"""Residents by the number of images of their area."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd

from patrolscope.analysis.estimators.image_coverage import EVERYONE, cumulative
from patrolscope.analysis.estimators.rates import RACES


def resident_groups(areas: pd.DataFrame, by: Literal["race", "borough"]) -> dict[str, pd.Series[float]]:
    """Return the residents of each area: everyone, then of each race or in each borough.

    Parameters
    ----------
    areas : DataFrame
        `ImageCoverage.areas`, one row per area.
    by : {"race", "borough"}
        Grouping of the residents.
    """
    everyone = areas["persons"]
    if by == "race":
        return {EVERYONE: everyone} | {name: areas[column] for column, name in RACES.items()}
    boroughs = sorted(areas["borough"].dropna().unique())
    return {EVERYONE: everyone} | {
        str(borough): everyone.where(areas["borough"] == borough, 0.0) for borough in boroughs
    }


def resident_curves(areas: pd.DataFrame, groups: Mapping[str, pd.Series[float]]) -> pd.DataFrame:
    """Compute the cumulative share of each group's residents by the number of images of their area.

    Parameters
    ----------
    areas : DataFrame
        `ImageCoverage.areas`, one row per area.
    groups : mapping of str to Series
        Residents of each area by group, from `resident_groups`; a group without residents has no curve.

    Returns
    -------
    DataFrame
        Columns group, images_at_most, share_of_people; images ascending within a group.
    """
    images = areas["images"].to_numpy()
    parts = []
    for group, persons in groups.items():
        if persons.sum() > 0:
            at_most, share = cumulative(images, persons.to_numpy())
            parts.append(pd.DataFrame({"group": group, "images_at_most": at_most, "share_of_people": share}))
    columns = ["group", "images_at_most", "share_of_people"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
