"""The published analyses of part of a study's images, from counts by area: levels at once, and quick intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts, redraw_probabilities, resample_images
from patrolscope.analysis.estimators.rates import Analysis, Panel, Population, analyses, frames, panels
from patrolscope.analysis.stages.calibrate import TwoClass
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import probabilities_of, released, two_class_means
from patrolscope.analysis.stages.result_tables import released_table, with_counts

# Enough for an interval to look at: a percentile of 200 draws is off by a tenth of the interval's width.
QUICK_REPLICATES = 200


@dataclass(frozen=True)
class Groups:
    """Groups of people and places as the whole study has them, whatever part of its images is looked at.

    Quartiles are cut over all analyzed images, as the method cuts them once: a part has the same areas in a quartile,
    so that two parts can be compared.

    Attributes
    ----------
    areas : `AREAS`
    wanted : the analyses that the whole study allows, in the paper's order
    """

    areas: pd.DataFrame
    wanted: tuple[Analysis, ...]
    panels: tuple[Panel, ...]
    frames: dict[str, Population]

    @classmethod
    def of(cls, areas: pd.DataFrame, images: npt.NDArray[np.int64]) -> Groups:
        """Groups of a study.

        Parameters
        ----------
        areas : `AREAS`
        images : (areas,) all analyzed images of each
        """
        wanted, _, _ = analyses(areas, images)
        return cls(areas, tuple(wanted), tuple(panels(wanted, areas)), frames(areas))

    def levels(self, counts: Counts, calibration: TwoClass) -> dict[str, Released]:
        """Every analysis of the images of a part, without replicates.

        Parameters
        ----------
        counts : (areas + 1, 2) images that are negative, positive; the last place is outside every area
        """
        means = two_class_means(counts[:-1, :, None], probabilities_of(calibration))
        point = [panel.means(means)[:, 0] for panel in self.panels]
        none = [np.full((len(row), 1), np.nan) for row in point]
        return released(list(self.panels), point, none)

    def with_replicates(
        self,
        counts: Counts,
        calibration: TwoClass,
        *,
        seed: int,
        resample_calibration: bool = False,
        replicates: int = QUICK_REPLICATES,
    ) -> dict[str, Released]:
        """The same with replicates: single images of each frame drawn with replacement, from their counts by area.

        The first replicates of the study's own bootstrap, where the part is the whole.
        """
        means = two_class_means(counts[:-1, :, None], probabilities_of(calibration))
        numbers = range(replicates)
        drawn = resample_images(counts[:-1], counts[-1], list(self.frames.values()), replicates=numbers, seed=seed)
        probabilities = probabilities_of(calibration)
        if resample_calibration:
            probabilities = redraw_probabilities(calibration, replicates=numbers, seed=seed)
        often = [panel.means(two_class_means(drawn[panel.frame.name], probabilities)) for panel in self.panels]
        return released(list(self.panels), [panel.means(means)[:, 0] for panel in self.panels], often)

    def table(self, results: dict[str, Released], counts: Counts, *, percent: float) -> pd.DataFrame:
        """Rows as estimates/tables.csv has them; a group that no image of the part touches has none."""
        images = counts[:-1].sum(axis=1)
        rows = [
            with_counts(released_table(one.name, results[one.name], percent), one, self.frames[one.frame], images)
            for one in self.wanted
        ]
        return pd.concat(rows, ignore_index=True)
