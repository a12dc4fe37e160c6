"""Data of a study that all sessions of the dashboards share. They are never written to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.results import Results, read_results, results_of_scheme
from patrolscope.dashboards.maps.city import City
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.painter import Painter
from patrolscope.dashboards.maps.points import Points
from patrolscope.pipeline.engine.stage import Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.store import Study


@dataclass(frozen=True, eq=False)
class Site:
    """Study with everything that its pages show.

    Attributes
    ----------
    points, city : Points, City
        Analyzed images, and the areas and regions of the city.
    results : Results, optional
        Estimates; None if stage `estimate` has not run.
    calibration : TwoClass, optional
        Calibration of the study's threshold; None if stage `calibrate` has not run.
    published : str
        Folder of released results for comparison; empty for none.
    scheduler : str
        Address of Dask's dashboard; empty if unknown.
    stages : tuple
        Stages of `run` in order, for the progress on the run page; empty to show finished shards only.
    """

    study: Study
    points: Points
    city: City
    results: Results | None
    calibration: TwoClass | None
    published: str = ""
    scheduler: str = ""
    stages: tuple[Stage | Callable[[Study], Stage], ...] = ()

    @classmethod
    def load(cls, study: Study, **options: Any) -> Site:
        """Read the tables of a study.

        Parameters
        ----------
        study : Study
            Study with packed images.
        **options
            Attributes `published`, `scheduler`, and `stages`.

        Raises
        ------
        StageNotRunError
            If stage `points` or a stage before it has not run.
        """
        try:
            calibration, _, _ = load_calibration(study)
        except StageNotRunError:
            calibration = None
        try:
            results = read_results(study)
        except StageNotRunError:
            results = None
        return cls(study, Points.load(study), City.load(study), results, calibration, **options)

    @property
    def name(self) -> str:
        """Display name of the study."""
        return str(self.study.settings.name)

    @property
    def simulated(self) -> str:
        """Notice that data are simulated; empty if none are."""
        return str(self.study.settings.simulated)

    @cached_property
    def painter(self) -> Painter:
        """Painter of the study's maps."""
        return Painter(self.points, self.city, self.calibration, self._two_class())

    def _two_class(self) -> Results | None:
        """Return the two-class estimates with the intervals of the first resampling unit."""
        schemes = self.results.summary["schemes"] if self.results else []
        first = next((way for way in schemes if way["prediction"] == "two_class"), None)
        return results_of_scheme(self.study, self.results, first) if self.results and first else None

    def warm(self) -> None:
        """Compute and cache what the first session would wait for."""
        self.painter.scales  # noqa: B018
        for geography in self.city.geographies:
            self.painter.rates(geography, Filter())
