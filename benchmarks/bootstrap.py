"""Bootstrap replicates of all nine analyses from area-class counts, compared with resampling of rows.

Counts are simulated over 6,807 areas with synthetic residents. The peer resamples and groups rows in pandas, one
analysis at a time. Its time for 2 million rows is scaled to 24.8 million.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measure import Comparison, best_of
from patrolscope.analysis.estimators.area_class_counts import Floats
from patrolscope.analysis.estimators.bootstrap import draw_units, resample_probabilities
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.census_error import draw_residents
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign, GroupDesign
from patrolscope.analysis.estimators.gamma_intervals import GammaDistributions, with_gamma
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.many_places import Places, compare_places
from patrolscope.analysis.estimators.rates import RACES, analyses, deployment_rate, panels, populations
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    image_replicates,
    panel_means,
    replicates_table,
    two_class_means,
    unit_resampled,
    unit_sums,
)
from patrolscope.analysis.estimators.unit_counts import UnitCounts

P_POSITIVE, P_NEGATIVE = 0.777, 0.002128
VALIDATION = TwoClass(0.770508, positive=264, true_positive=205, negative=19_736, false_negative=42)
PROBABILITIES = np.array([[P_NEGATIVE], [P_POSITIVE]])
AREAS, IMAGES, REPLICATES = 6_807, 24_803_854, 10_000
PEER_ROWS = 2_000_000
RELEASED = Path(__file__).resolve().parents[2] / "shared" / "data" / "paper" / "plot_data"
RIDES, CELLS_A_RIDE = 200_000, 40


def run(*, quick: bool) -> list[Comparison]:
    """Run replicates by image and by ride, memory, and `patrolscope reproduce`."""
    held_gb = peak_gb()  # first, since the peak of a process includes the memory of its parent at its start
    areas = city()
    block, rows = (20, 200_000) if quick else (100, PEER_ROWS)
    large, small = counted(areas, IMAGES), counted(areas, 1_000_000)

    def images(of: BootstrapInputs) -> float:
        def one_block() -> None:
            values = image_replicates(of, PROBABILITIES, replicates=range(block), seed=1)
            replicates_table(of.panels, values, None, range(block))

        one_block()  # compiles
        return best_of(one_block, repeats=20) / block  # 0.15 s each; the best of three varies by a fifth

    ours_s = images(large)
    peer_s = best_of(lambda: from_rows(frame_of(areas, rows)), repeats=1) * IMAGES / rows

    clusters = rides(20_000 if quick else RIDES)

    def by_ride() -> None:
        times = draw_units(clusters.number, "ride", replicates=range(block), seed=1)
        means = two_class_means(unit_sums(clusters, clusters.images, times, AREAS), PROBABILITIES)
        replicates_table(large.panels, [panel.means(means) for panel in large.panels], None, range(block))

    by_ride()
    preset_s = recommended_s(large, clusters, block)
    return [
        Comparison(
            f"{REPLICATES:,} replicates of nine analyses, {IMAGES:,} images, extrapolated from {block}",
            ours_s * REPLICATES,
            peer_s * REPLICATES,
            "s",
            500 if quick else 5_000,
            f"pandas, resampled rows (one replicate of {rows:,} rows, times {REPLICATES:,} and {IMAGES / rows:.1f})",
        ),
        Comparison(
            "one replicate of 24.8 million images",
            ours_s * 1e3,
            images(small) * 1e3,
            "ms",
            1 / 1.2,
            "patrolscope, one replicate of 1 million images",
        ),
        Comparison(
            f"one replicate of {clusters.number:,} rides with {len(clusters.area_class):,} counts",
            best_of(by_ride) / block * 1e3,
            ours_s * 1e3,
            "ms",
            1 / 20,
            "patrolscope, by image",
        ),
        Comparison(
            f"1,000 recommended replicates, {clusters.number:,} rides, with gamma intervals and rank sets",
            preset_s * 1_000,
            ours_s * 1_000,
            "s",
            1 / 8,
            "patrolscope, 1,000 published replicates",
        ),
        Comparison("memory of a process with both kinds of replicates", held_gb, 1.0, "GB", 1, "limit"),
        *reproduced(),
    ]


def recommended_s(large: BootstrapInputs, clusters: UnitCounts, block: int) -> float:
    """Return the seconds per replicate of the recommended preset: `block` replicates, and what is done once for 1,000.

    The rides are random, so they have no common factor; the work does not depend on it.
    """
    inside = np.bincount(clusters.area_class, clusters.images, minlength=2 * AREAS).astype(np.int64).reshape(AREAS, 2)
    persons = large.areas[["persons", *RACES]].to_numpy()
    start_s = time.perf_counter()
    composite = Composite.of(large.areas, AreaDesign.of(large.areas, inside, clusters))
    once_s = time.perf_counter() - start_s

    def one_block() -> list[Floats]:
        numbers = range(block)
        probabilities = resample_probabilities(VALIDATION, replicates=numbers, seed=1)
        residents = draw_residents(persons, 4 * np.sqrt(persons[:, 1:]), replicates=numbers, seed=1)
        counts = unit_resampled(large, clusters, "ride", replicates=numbers, seed=1)
        rates = dict.fromkeys(populations(large.areas), two_class_means(counts, probabilities))
        shrunken = deployment_rate(composite.benchmarked(counts), probabilities[1], probabilities[0])
        direct = panel_means(large, rates, residents)
        shrunken_means = panel_means(large, dict.fromkeys(populations(large.areas), shrunken), residents)
        replicates_table(large.panels, direct, shrunken_means, numbers)
        return direct

    drawn = one_block()
    replicate_s = best_of(one_block) / block
    start_s = time.perf_counter()
    probabilities = resample_probabilities(VALIDATION, replicates=range(1_000), seed=1)
    shares = composite.shares(inside)
    for panel, means in zip(large.panels, drawn, strict=True):
        groups = GroupDesign.of(panel.weights, composite.design)
        distributions = GammaDistributions.of(groups, inside, shares)
        thousand = np.tile(means, -(-1_000 // block))[:, :1_000]
        final = with_gamma(panel, thousand, probabilities, groups, distributions, below=200, seed=1)
        percentile_interval((final / final[0]).T, 95)
        if rows := panel.rows.get("neighborhood"):
            places = Places.of(thousand[rows, 0] / thousand[0, 0], (final[rows] / final[0]).T)
            compare_places(places, None, percent=95, seed=1)
    return replicate_s + (once_s + time.perf_counter() - start_s) / 1_000


def city() -> pd.DataFrame:
    """Return areas with the columns that `analyses` needs."""
    generator = np.random.default_rng(7)
    shares = generator.dirichlet([2, 1.5, 1.8, 1], AREAS)
    persons = generator.integers(200, 4_000, AREAS).astype(float)
    names = ("white", "black", "hispanic", "asian")
    return pd.DataFrame(
        {
            "area": [f"{number:012}" for number in range(AREAS)],
            "zone": generator.choice(["R", "C", "M", None], AREAS, p=[0.75, 0.1, 0.1, 0.05]),
            "borough": [f"borough {number % 5}" for number in range(AREAS)],
            "neighborhood": [f"neighborhood {number % 262}" for number in range(AREAS)],
            "persons": persons,
            **{f"persons_{name}": persons * shares[:, at] for at, name in enumerate(names)},
            "income_usd": np.where(generator.random(AREAS) < 0.05, np.nan, generator.uniform(15e3, 250e3, AREAS)),
            "density_per_sqmi": generator.gamma(2, 20_000, AREAS),
        }
    )


def counted(areas: pd.DataFrame, images: int) -> BootstrapInputs:
    """Return images by area and class; some areas have 20 times as many images as others."""
    generator = np.random.default_rng(8)
    taken = generator.multinomial(images, generator.dirichlet(np.full(AREAS, 2.0)))
    positive = generator.binomial(taken, generator.uniform(0.004, 0.02, AREAS))
    wanted, _, _ = analyses(areas, taken)
    inside = np.stack([taken - positive, positive], axis=1)
    return BootstrapInputs(areas, inside, np.array([images // 100, images // 10_000]), panels(wanted, areas))


def rides(number: int) -> UnitCounts:
    """Return rides of about 120 images, each with about 40 area-class counts."""
    generator = np.random.default_rng(9)
    rows = number * CELLS_A_RIDE
    cell = np.arange(rows, dtype=np.int32) // -(-rows // (2 * AREAS))
    cluster = generator.integers(0, number, rows, dtype=np.int32)
    images = generator.integers(1, 6, rows, dtype=np.int32)
    return UnitCounts(number, cell, cluster, images, np.zeros(rows, dtype=np.int64))


def frame_of(areas: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return images with the columns of their areas, as the published script holds them in memory."""
    generator = np.random.default_rng(10)
    taken = areas.iloc[generator.integers(0, AREAS, rows)].reset_index(drop=True)
    taken = taken.astype(dict.fromkeys(("area", "zone", "borough", "neighborhood"), "category"))
    return taken.assign(prediction=np.where(generator.random(rows) < 0.013, P_POSITIVE, P_NEGATIVE))


def from_rows(rows: pd.DataFrame) -> None:
    """Compute one replicate of the nine analyses: resample rows, average by area, then by group."""
    residential, income = rows["zone"] == "R", rows["income_usd"].notna()
    for frame, weights, by in (
        (rows, ["persons_white", "persons_black", "persons_hispanic", "persons_asian"], None),
        (rows[residential], ["persons_white", "persons_black", "persons_hispanic", "persons_asian"], None),
        (rows, ["persons"], "density_per_sqmi"),
        (rows[residential], ["persons"], "density_per_sqmi"),
        (rows[income], ["persons"], "income_usd"),
        (rows[residential & income], ["persons"], "income_usd"),
        (rows, ["persons"], "zone"),
        (rows, ["persons"], "borough"),
        (rows, ["persons"], "neighborhood"),
    ):
        drawn = frame.sample(len(frame), replace=True, random_state=1)
        columns = list(dict.fromkeys(["persons", *weights, *([by] if by else [])]))
        grouped = drawn.groupby("area", observed=True)
        means = grouped["prediction"].mean().to_frame("mean").join(grouped[columns].first())
        for weight in weights:
            weighted = means["mean"] * means[weight]
            if by is None:
                _ = weighted.sum() / means[weight].sum()
                continue
            groups = pd.qcut(means[by], 4) if by.endswith(("sqmi", "usd")) else means[by]
            _ = weighted.groupby(groups, observed=True).sum() / means[weight].groupby(groups, observed=True).sum()


def peak_gb() -> float:
    """Return the peak memory of a new process with a block of replicates by image and one by ride, GB."""
    script = "from benchmarks.bootstrap import draw_both; draw_both()"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout) / 2**20


def draw_both() -> None:
    """Compute a block of replicates by image and one by ride, and print the peak memory of this process in KiB."""
    areas, clusters = city(), rides(RIDES)
    of = counted(areas, IMAGES)
    image_replicates(of, PROBABILITIES, replicates=range(100), seed=1)
    times = draw_units(clusters.number, "ride", replicates=range(100), seed=1)
    two_class_means(unit_sums(clusters, clusters.images, times, AREAS), PROBABILITIES)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def reproduced() -> list[Comparison]:
    """Time `patrolscope reproduce` on the released results of the paper, if they are beside the project."""
    if not RELEASED.is_dir():
        return []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "patrolscope", "reproduce", str(RELEASED), "--out", f"{folder}/out"]
        seconds = best_of(lambda: subprocess.run(command, check=True, capture_output=True))
    return [Comparison("patrolscope reproduce", seconds, 10.0, "s", 1, "limit")]
