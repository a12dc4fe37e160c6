"""What a server of dashboards holds once, for all its readers: never written to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.stages.calibrate import load_calibration
from patrolscope.analysis.stages.results import Results, read_results, results_of_way
from patrolscope.dashboards.maps.city import City
from patrolscope.dashboards.maps.compose import Painter
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.points import Points
from patrolscope.pipeline.engine.stage import Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.store import Study


@dataclass(frozen=True, eq=False)
class Site:
    """A study, as pages see it.

    Attributes
    ----------
    points, city : of the images and of where they are
    results : estimates; None: there are none yet
    calibration : of the study's threshold; None: there is none yet
    published : folder of released results to stand beside; empty: none
    scheduler : address of the dashboard of the cluster that works for the study, empty where none is known
    stages : what `run` would do, in order, to say how much of it is done; empty: only what is done is told
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
        """Read what the study has.

        Raises
        ------
        StageNotRunError : it has no annotated images, or they have not been packed for dashboards
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
        """Of the study, for a reader."""
        return str(self.study.settings.name)

    @property
    def simulated(self) -> str:
        """Which of the study's data are simulated, in words; empty where none are."""
        return str(self.study.settings.simulated)

    @cached_property
    def painter(self) -> Painter:
        """Makes its maps."""
        return Painter(self.points, self.city, self.calibration, self._two_class())

    def _two_class(self) -> Results | None:
        """Estimates of the prediction that maps are of, with the intervals of its first way of resampling."""
        ways = self.results.summary["schemes"] if self.results else []
        found = next((way for way in ways if way["prediction"] == "two_class"), None)
        return results_of_way(self.study, self.results, found) if self.results and found else None

    def warm(self) -> None:
        """Make now what the first reader would wait for."""
        self.painter.scales  # noqa: B018
        for level in self.city.levels:
            self.painter.levels(level, Filter())
