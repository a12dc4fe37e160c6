"""Published analyses of a subset of the images, from counts by area: rates, and quick intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.bootstrap import Counts, resample_images, resample_probabilities
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign
from patrolscope.analysis.estimators.gamma_intervals import with_common_effect, with_gamma
from patrolscope.analysis.estimators.rates import TOTAL_KEY, Analysis, Panel, Population, analyses, panels, populations
from patrolscope.analysis.estimators.replicates import probabilities_of, two_class_means
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.replicates import released
from patrolscope.analysis.stages.result_tables import released_table, with_bounds, with_counts

# Enough for the screen: a percentile of 200 replicates has an error of a tenth of the width of the interval.
QUICK_REPLICATES = 200

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Groups of residents and regions of the whole study, for estimates from subsets of its images.

    The cut points of quartiles are those of all analyzed images, so that subsets can be compared.

    Attributes
    ----------
    areas : DataFrame
        `AREAS`.
    analyses : tuple of Analysis
        Those that the whole study allows, in the order of the paper.
    panels : tuple of Panel
    populations : dict of str to Population
    """

    areas: pd.DataFrame
    analyses: tuple[Analysis, ...]
    panels: tuple[Panel, ...]
    populations: dict[str, Population]

    @classmethod
    def of(cls, areas: pd.DataFrame, images: npt.NDArray[np.int64]) -> Groups:
        """Return the groups of a study.

        Parameters
        ----------
        areas : DataFrame
            `AREAS`.
        images : ndarray of int64, shape (n_areas,)
            All analyzed images.
        """
        possible, _, _ = analyses(areas, images)
        return cls(areas, tuple(possible), tuple(panels(possible, areas)), populations(areas))

    def levels(self, counts: Counts, calibration: TwoClass) -> dict[str, Released]:
        """Estimate every analysis from a subset of the images, without replicates.

        Parameters
        ----------
        counts : ndarray of int64, shape (n_areas + 1, 2)
            Negative and positive images; the last row is outside all areas.
        calibration : TwoClass
        """
        point = self._estimates(counts, calibration)
        return released(list(self.panels), point, [np.full((len(rates), 1), np.nan) for rates in point])

    def with_replicates(
        self,
        counts: Counts,
        calibration: TwoClass,
        *,
        seed: int,
        resample_calibration: bool = False,
        design_effect: float | None = None,
        replicates: int = QUICK_REPLICATES,
    ) -> dict[str, Released]:
        """Estimate every analysis with replicates of the image bootstrap.

        Without a design effect, these are, from all images, the first replicates of a study that resamples images.

        Parameters
        ----------
        counts : ndarray of int64, shape (n_areas + 1, 2)
            Negative and positive images; the last row is outside all areas.
        calibration : TwoClass
        seed : int
        resample_calibration : bool, default False
            Whether the validation set is resampled, too.
        design_effect : float, optional
            Of the rides of the whole study, since a subset has no counts by ride. With it, all intervals are gamma
            intervals that are wider by its root.
        replicates : int, default 200
        """
        numbers = range(replicates)
        resampled = resample_images(
            counts[:-1], counts[-1], list(self.populations.values()), replicates=numbers, seed=seed
        )
        probabilities = probabilities_of(calibration)
        if resample_calibration:
            probabilities = resample_probabilities(calibration, replicates=numbers, seed=seed)
        values = [
            panel.means(two_class_means(resampled[panel.population.name], probabilities)) for panel in self.panels
        ]
        if design_effect is not None:
            design = AreaDesign.of(self.areas, counts[:-1], None)
            shares = Composite.of(self.areas, design).shares(counts[:-1])
            for at, panel in enumerate(self.panels):
                made = with_common_effect(panel.weights, design, shares, design_effect)
                values[at] = with_gamma(panel, values[at], probabilities, *made, below=np.inf, seed=seed)
        return released(list(self.panels), self._estimates(counts, calibration), values)

    def _estimates(self, counts: Counts, calibration: TwoClass) -> list[Floats]:
        means = two_class_means(counts[:-1, :, None], probabilities_of(calibration))
        return [panel.means(means)[:, 0] for panel in self.panels]

    def table(
        self,
        results: dict[str, Released],
        counts: Counts,
        *,
        percent: float,
        calibration: TwoClass,
        gamma: bool = False,
    ) -> pd.DataFrame:
        """Return rows as in estimates/tables.csv; groups without images in the subset have none.

        Parameters
        ----------
        results : dict of str to Released
        counts : ndarray of int64, shape (n_areas + 1, 2)
            Negative and positive images; the last row is outside all areas.
        percent : float
            Nominal interval coverage.
        calibration : TwoClass
        gamma : bool, default False
            Whether all intervals are gamma intervals.
        """
        images, rows = counts[:-1].sum(axis=1), []
        inhabited = (self.areas["persons"] > 0).to_numpy()
        for analysis in self.analyses:
            population, result = self.populations[analysis.population], results[analysis.name]
            few = np.full(1 + len(analysis.keys), gamma)
            table = with_counts(released_table(analysis.name, result, percent, gamma=few), analysis, population, images)
            behind = (analysis.weights > 0) & population.areas[:, None]
            positives = dict(zip(analysis.keys, behind.T @ counts[:-1, 1], strict=True))
            positives[TOTAL_KEY] = counts[:-1, 1][population.areas & inhabited].sum()
            table["positives"] = table["key"].map(positives)
            rows.append(with_bounds(table, result.total, calibration.false_omission_rate))
        return pd.concat(rows, ignore_index=True)
