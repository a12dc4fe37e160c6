"""Coverage of the recommended and the published intervals over simulated studies of a city with known rates.

The city and its studies are those of `benchmarks.simulated_studies`. Every row has the share of intervals that contain
the true value, with its Monte Carlo error: studies differ independently, so the error is the standard deviation of
their shares over the root of their number. The truth is the mean over the areas with images, which both intervals are
about. Peers: percentiles as published (single images, calibration fixed), and Wilson's interval of scipy for the pooled
images of a neighborhood.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.simulated_studies import (
    PUBLISHED,
    SimulatedCity,
    SimulatedStudy,
    draw_calibration,
    draw_study,
    reference_city,
)
from patrolscope.analysis.estimators.bootstrap import resample_probabilities
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign, GroupDesign
from patrolscope.analysis.estimators.gamma_intervals import GammaDistributions, with_gamma
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import Panel, analyses, deployment_rate, panels
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    image_counts,
    panel_means,
    probabilities_of,
    two_class_means,
    unit_resampled,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = {
    "no": (0, 0),
    "1 to 2": (1, 2),
    "3 to 5": (3, 5),
    "6 to 10": (6, 10),
    "11 to 20": (11, 20),
    "21 to 50": (21, 50),
    "over 50": (51, np.inf),
}
_ORDER = [
    "city rate",
    *(f"{group} {kind}" for group in ("race", "borough") for kind in ("rate", "relative rate")),
    *(f"neighborhood {kind}, {label} positives" for kind in ("rate", "relative rate") for label in BINS),
]
GAMMA_BELOW = 200.0
GOAL = 0.93
_BLOCK = 100


@dataclass(frozen=True)
class Coverage:
    """Share of intervals that contain the truth, for one kind of study, quantity, and bin of positive images."""

    study: str
    quantity: str
    cases: int
    recommended: float
    error: float  # Monte Carlo standard error of `recommended`
    composite: float
    published: float
    wilson: float
    goal: float  # 0: none

    @property
    def met(self) -> bool:
        """Whether coverage is at least the goal, within two Monte Carlo errors."""
        return self.recommended + 2 * self.error >= self.goal

    def to_row(self) -> dict[str, object]:
        """Return the row for --json."""
        return {**asdict(self), "met": self.met}


def run(*, quick: bool) -> list[Coverage]:
    """Simulate studies of every kind; the quick form has 10 of one kind."""
    city = reference_city()
    if quick:
        return kind_of_study(city, 1_000_000, "rides", studies=10, replicates=200)
    rows: list[Coverage] = []
    for images, studies in ((1_000_000, 200), (21_800_000, 100)):
        for dependence in ("independent images", "rides", "events shared by rides"):
            rows += kind_of_study(city, images, dependence, studies=studies, replicates=400)
        rows += kind_of_study(city, images, "rides", studies=studies // 2, replicates=400, fixed=True)
    return rows


def kind_of_study(
    city: SimulatedCity, images: int, dependence: str, *, studies: int, replicates: int, fixed: bool = False
) -> list[Coverage]:
    """Measure coverage over studies of one kind.

    Parameters
    ----------
    city : SimulatedCity
    images : int
        Images per study.
    dependence : str
        independent images, rides, or events shared by rides.
    studies, replicates : int
        Number of studies, and of bootstrap replicates of each.
    fixed : bool, default False
        Whether the true calibration is known; else each study has a validation set of its own.
    """
    held: dict[str, list[Floats]] = defaultdict(list)
    for number in range(studies):
        generator = np.random.default_rng([images, len(dependence), fixed, number])
        rides = dependence != "independent images"
        study = draw_study(city, images, generator, rides=rides, events=dependence.startswith("events"))
        calibration = PUBLISHED if fixed else draw_calibration(generator)
        for quantity, shares in _one_study(city, study, calibration, replicates, seed=number, fixed=fixed).items():
            held[quantity].append(shares)
    name = f"{images / 1e6:g} M images, {dependence}, calibration {'known' if fixed else 'redrawn'}"
    guaranteed = not dependence.startswith("events")  # rides are not independent there, as the method assumes
    rows = []
    for quantity, of_studies in held.items():
        sums = np.array(of_studies)  # (n_studies, 1 + n_methods): cases, then intervals that contain the truth
        cases = sums[:, 0].sum()
        shares = sums[:, 1:].sum(axis=0) / cases
        # The error of a ratio of sums over independent studies.
        error = np.sqrt(((sums[:, 1] - shares[0] * sums[:, 0]) ** 2).sum()) / cases
        goal = GOAL if guaranteed and (cases >= 200 or quantity.startswith("city")) else 0.0
        rows.append(Coverage(name, quantity, int(cases), shares[0], error, *shares[1:], goal))
    return sorted(rows, key=lambda row: _ORDER.index(row.quantity))


def _one_study(
    city: SimulatedCity, study: SimulatedStudy, calibration: TwoClass, replicates: int, *, seed: int, fixed: bool
) -> dict[str, Floats]:
    """Return cases and intervals that contain the truth, by quantity: recommended, composite, published, Wilson."""
    images = study.inside.sum(axis=1)
    wanted = [
        analysis for analysis in analyses(city.areas, images)[0] if analysis.name in ("race", "borough", "neighborhood")
    ]
    inputs = BootstrapInputs(city.areas, study.inside, np.zeros(2, dtype=np.int64), panels(wanted, city.areas))
    composite = Composite.of(city.areas, AreaDesign.of(city.areas, study.inside, study.units))
    point = probabilities_of(calibration)
    redrawn = point if fixed else resample_probabilities(calibration, replicates=range(replicates), seed=seed)
    drawn = _replicates(inputs, study, composite, point, redrawn, replicates, seed)
    shares = composite.shares(study.inside)
    rates = deployment_rate(city.positive_share, PUBLISHED.ppv, PUBLISHED.false_omission_rate)
    rates = np.where(images > 0, rates, np.nan)
    found: dict[str, Floats] = defaultdict(lambda: np.zeros(5))
    for panel, direct, shrunken, published in zip(inputs.panels, *drawn, strict=True):
        groups = GroupDesign.of(panel.weights, composite.design)
        distributions = GammaDistributions.of(groups, study.inside, shares)
        final = with_gamma(panel, direct, redrawn, groups, distributions, below=GAMMA_BELOW, seed=seed)
        truth = panel.means(rates[:, None])[:, 0]
        wilson = _wilson(panel, study, point, truth)
        for relative in (False, True):
            value = truth / truth[0] if relative else truth
            held = [_contains(means, value, relative=relative) for means in (final, shrunken, published)]
            held.append(wilson / (1 if not relative else np.nan))
            for quantity, rows in _quantities(panel, groups.positives, relative=relative).items():
                known = rows & ~np.isnan(truth)
                found[quantity] += [known.sum(), *(one[known].sum() for one in held)]
    return {quantity: row for quantity, row in found.items() if row[0]}


def _replicates(
    inputs: BootstrapInputs,
    study: SimulatedStudy,
    composite: Composite,
    point: Floats,
    redrawn: Floats,
    replicates: int,
    seed: int,
) -> tuple[list[Floats], list[Floats], list[Floats]]:
    """Return recommended, composite, and published replicates, per panel."""
    parts: list[list[list[Floats]]] = []
    for start in range(0, replicates, _BLOCK):
        numbers = range(start, min(start + _BLOCK, replicates))
        single = image_counts(inputs, replicates=numbers, seed=seed)["all"]
        counts = single
        if study.units is not None:
            counts = unit_resampled(inputs, study.units, "ride", replicates=numbers, seed=seed)
        probabilities = redrawn if redrawn.shape[1] == 1 else redrawn[:, numbers.start : numbers.stop]
        shrunken = deployment_rate(composite.benchmarked(counts), probabilities[1], probabilities[0])
        parts.append(
            [
                panel_means(inputs, {"all": rates}, None)
                for rates in (two_class_means(counts, probabilities), shrunken, two_class_means(single, point))
            ]
        )
    recommended, composites, published = (
        [np.concatenate([part[kind][at] for part in parts], axis=1) for at in range(len(inputs.panels))]
        for kind in range(3)
    )
    return recommended, composites, published


def _contains(means: Floats, truth: Floats, *, relative: bool) -> Bools:
    lower, upper = percentile_interval((means / means[0] if relative else means).T, 95)
    return (lower <= truth) & (truth <= upper)


def _wilson(panel: Panel, study: SimulatedStudy, point: Floats, truth: Floats) -> Floats:
    """Return whether Wilson's interval of the pooled images of each group contains its rate."""
    behind = (panel.weights > 0).astype(np.int64)
    held = np.full(len(truth), np.nan)
    counts = zip(behind @ study.inside.sum(axis=1), behind @ study.inside[:, 1], strict=True)
    for row, (images, positives) in enumerate(counts):
        if images:
            found = stats.binomtest(int(positives), int(images)).proportion_ci(method="wilson")
            lower, upper = (deployment_rate(np.float64(end), point[1, 0], point[0, 0]) for end in found)
            held[row] = lower <= truth[row] <= upper
    return held


def _quantities(panel: Panel, positives: Floats, *, relative: bool) -> dict[str, Bools]:
    """Return the rows of the panel of each quantity: neighborhoods by positives, other groups together."""
    kind = "relative rate" if relative else "rate"
    rows = {}
    if not relative and panel.of_population_groups:
        rows["city rate"] = np.arange(len(positives)) == 0
    for name, part in panel.rows.items():
        member = np.zeros(len(positives), dtype=np.bool_)
        member[part] = True
        if name != "neighborhood":
            rows[f"{name} {kind}"] = member
            continue
        for label, (low, high) in BINS.items():
            inside = (positives >= low) & (positives <= high)
            rows[f"neighborhood {kind}, {label} positives"] = member & inside
    return rows
