"""An attacker on a release: reads the published files only, and bounds the withheld values.

Independent of analysis/disclosure/suppression.py: one linear program per end of each withheld value, over all published
numbers at once. Further attacks use the replicates: subtraction, their standard deviation, and a guessed seed.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.linalg import null_space
from scipy.optimize import linprog

from patrolscope.analysis.estimators.bootstrap import draw_units
from patrolscope.analysis.estimators.rates import PUBLISHED_FILES

RACES = {
    "Estimate_Total_Not_Hispanic_or_Latino_White_alone": "persons_white",
    "Estimate_Total_Not_Hispanic_or_Latino_Black_or_African_American_alone": "persons_black",
    "Estimate_Total_Hispanic_or_Latino": "persons_hispanic",
    "Estimate_Total_Not_Hispanic_or_Latino_Asian_alone": "persons_asian",
}
COVARIATES = {"density": "density_per_sqmi", "income": "income_usd"}
Sum = tuple[np.ndarray, float, float]  # weights, low and high


class Attacker:
    """Inference about the withheld areas of a release."""

    def __init__(self, folder: Path) -> None:
        """Read every table of a release."""
        self.folder = folder
        self.areas = pd.read_csv(folder / "areas.csv", dtype={"area": str}, keep_default_na=False, na_values=[""])
        self.groups = pd.read_csv(folder / "groups.csv", keep_default_na=False, na_values=[""])
        self.places = pd.read_csv(folder / "neighborhoods.csv", keep_default_na=False, na_values=[""])
        self.summary = json.loads((folder / "summary.json").read_text())
        self.hidden = self.areas["withheld"].astype(str).str.lower().eq("true").to_numpy()
        images = self.areas["images"]
        self.seen = (self.hidden | (images > 0)).to_numpy()
        self.known_images = images.fillna(0).to_numpy(dtype=float)
        shares = (self.areas["positives"] / images.where(images > 0)).fillna(0)
        self.known_shares = shares.to_numpy(dtype=float)
        self.minimum = self.summary["minimum_images"]
        self.rounded_to = 10 * self.minimum

    def frame(self, analysis: str) -> np.ndarray:
        """Areas of an analysis."""
        inside = np.ones(len(self.areas), dtype=bool)
        if analysis.endswith("_residential"):
            inside &= (self.areas["zone"] == "R").to_numpy()
        if analysis.startswith("income"):
            inside &= self.areas["income_usd"].notna().to_numpy()
        return inside

    def cuts(self, analysis: str) -> dict[str, tuple[float, float]]:
        """Bound the upper end of each quartile of the covariate.

        Cumulative residents along the covariate determine it; areas without residents leave it open.
        """
        values, inside = self.covariate(analysis)
        persons = np.where(inside, self.areas["persons"], 0.0)
        found, so_far = {}, 0.0
        for key, group in self.rows(analysis).iterrows():
            so_far += group["persons"]
            tops = [top for top in np.unique(values[inside]) if persons[inside & (values <= top)].sum() == so_far]
            if not tops:  # a quartile without an estimate has no row, and the sum lacks its residents
                break
            found[key] = (tops[0], tops[-1])
        return found

    def covariate(self, analysis: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the covariate per area, and the areas of the analysis that have one."""
        values = self.areas[COVARIATES[analysis.removesuffix("_residential")]].to_numpy(dtype=float)
        return values, self.frame(analysis) & ~np.isnan(values)

    def quartiles(self, analysis: str) -> dict[str, np.ndarray]:
        """Return the areas of each quartile, correct for areas with residents."""
        values, inside = self.covariate(analysis)
        members, last = {}, -np.inf
        for key, (_, top) in self.cuts(analysis).items():
            members[key] = inside & (values > last) & (values <= top)
            last = top
        return members

    def rows(self, analysis: str) -> pd.DataFrame:
        """Return the rates by group, without the average."""
        rows = self.groups[(self.groups["analysis"] == analysis) & (self.groups["quantity"] == "weighted_mean")]
        return rows[rows["key"] != "Estimate_Total"].set_index("key")

    def weights(self, analysis: str) -> dict[str, np.ndarray]:
        """Return the residents of each group by area."""
        persons, inside = self.areas["persons"].to_numpy(), self.frame(analysis) & self.seen
        kind = analysis.removesuffix("_residential")
        if kind == "race":
            return {key: np.where(inside, self.areas[column], 0.0) for key, column in RACES.items()}
        if kind in COVARIATES:
            return {key: np.where(inside & member, persons, 0.0) for key, member in self.quartiles(analysis).items()}
        return {key: np.where(inside & (self.areas[kind] == key), persons, 0.0) for key in self.rows(analysis).index}

    def enough(self, counted: np.ndarray) -> float:
        """Return the minimum number of images of a published group."""
        return counted.sum() + 2 * (self.minimum - 1)

    def image_sums(self) -> list[Sum]:
        """Return every published sum of images."""
        sums = []
        for analysis, rows in self.groups[self.groups["quantity"] == "weighted_mean"].groupby("analysis"):
            half = 0.0 if analysis == "neighborhood" else self.rounded_to / 2
            weights = self.weights(analysis)
            average = rows[rows["key"] == "Estimate_Total"]["images"].iloc[0]
            everyone = (self.frame(analysis) & self.seen).astype(float)
            least = max(average - self.rounded_to / 2, self.enough(everyone))
            sums.append((everyone, least, average + self.rounded_to / 2))
            for key, images in rows.set_index("key")["images"].drop("Estimate_Total").dropna().items():
                if key not in weights:
                    continue
                counted = (weights[key] > 0).astype(float)
                sums.append((counted, max(images - half, self.enough(counted)), images + half))
            if analysis.removesuffix("_residential") in COVARIATES:
                sums += self.cut_sums(analysis)
        for _, place in self.places.dropna(subset="images").iterrows():
            member = (self.areas["neighborhood"] == place["nta"]) & (self.areas["persons"] > 0) & self.seen
            sums.append((member.to_numpy(dtype=float), place["images"], place["images"]))
        total = self.summary["images"]
        sums.append((self.seen.astype(float), total - self.rounded_to / 2, total + self.rounded_to / 2))
        return sums

    def cut_sums(self, analysis: str) -> list[Sum]:
        """Return inequalities from cut points, which are percentiles over images."""
        values, inside = self.covariate(analysis)
        inside = inside & self.seen
        sums = []
        for key, (lowest, highest) in self.cuts(analysis).items():
            share = int(key[-1]) / 4 * inside
            if key[-1] == "4":
                continue
            sums.append(((inside & (values <= lowest)) - share, -np.inf, 1.0))
            rest = values[inside & (values > highest)]
            if len(rest):
                sums.append(((inside & (values <= rest.min())) - share, -1.0, np.inf))
        return sums

    def few(self) -> list[Sum]:
        """Return sums that hold if withheld groups and skipped analyses have few images, which need not be true."""
        sums = []
        for analysis, reason in self.summary["skipped"].items():
            counted = (self.frame(analysis) & self.seen).astype(float)
            disclosed = f"fewer than {self.minimum} images" in reason
            sums.append((counted, -np.inf, self.minimum - 1 if disclosed else self.enough(counted) - 1))
        for analysis in self.groups["analysis"].unique():
            rows, weights = self.rows(analysis), self.weights(analysis)
            for key in rows.index[rows["images"].isna()]:
                counted = (weights.get(key, np.zeros(len(self.areas))) > 0).astype(float)
                sums.append((counted, -np.inf, self.enough(counted) - 1))
        return sums

    def share_sums(self) -> list[Sum]:
        """Return every published sum of detection rates, from the rates in the JSON files."""
        calibration = self.summary["calibration"]
        negative, scale = calibration["false_omission_rate"], calibration["ppv"] - calibration["false_omission_rate"]
        sums = []
        for analysis in self.groups["analysis"].unique():
            point = json.loads((self.folder / PUBLISHED_FILES[analysis]).read_text())["point_estimate"]
            everyone = np.where(self.frame(analysis) & self.seen, self.areas["persons"], 0.0)
            for key, weights in {"Estimate_Total": everyone, **self.weights(analysis)}.items():
                level = point.get(f"{key}_weighted_mean")
                if level is not None:
                    ends = sorted((level + half - negative) / scale * weights.sum() for half in (-0.5e-5, 0.5e-5))
                    sums.append((weights, *ends))
        return sums

    def image_bounds(self, sample: np.ndarray | None = None, guessed: Iterable[Sum] = ()) -> pd.DataFrame:
        """Bound the images of every withheld area, or of a sample of them.

        `guessed` holds further assumptions of the attacker, from `few`.
        """
        return self._bounds([*self.image_sums(), *guessed], self.known_images, 1.0, None, sample)

    def share_bounds(self, sample: np.ndarray | None = None) -> pd.DataFrame:
        """Bound the detection rate of every withheld area, or of a sample of them."""
        return self._bounds(self.share_sums(), self.known_shares, 0.0, 1.0, sample)

    def determined(self) -> list[str]:
        """Return withheld areas whose images follow from exact sums by linear algebra alone."""
        exact = [(weights, low) for weights, low, high in self.image_sums() if low == high]
        if not exact or not self.hidden.any():
            return []
        free = null_space(np.array([weights[self.hidden] for weights, _ in exact]))
        fixed = np.abs(free).max(axis=1, initial=0.0) < 1e-9
        return self.areas.loc[self.hidden, "area"][fixed].tolist()

    def replicates(self, analysis: str) -> pd.DataFrame:
        """Return the rates of groups with replicates, one row per replicate."""
        drawn = pd.DataFrame(json.loads((self.folder / PUBLISHED_FILES[analysis]).read_text())["bootstrap_statistics"])
        drawn = drawn[[name for name in drawn if name.endswith("_weighted_mean")]]
        return drawn.rename(columns=lambda name: name.removesuffix("_weighted_mean"))

    def subtracted(self) -> dict[tuple[str, str], np.ndarray]:
        """Recover unpublished replicates as sums and differences of published ones, by analysis and group.

        All analyses of a population share their draws, and groups are sums over areas with known weights.
        """
        rows, drawn, missing = [], [], {}
        for analysis in ("race", "density", "zone", "borough", "neighborhood"):
            if analysis not in self.groups["analysis"].unique():
                continue
            published = self.replicates(analysis)
            everyone = np.where(self.seen, self.areas["persons"], 0.0)
            for key, weights in {"Estimate_Total": everyone, **self.weights(analysis)}.items():
                if key in published:
                    rows.append(weights)
                    drawn.append(published[key] * weights.sum())
                elif weights.any():
                    missing[analysis, key] = weights
        found = {}
        for name, weights in missing.items():
            factors, *_ = np.linalg.lstsq(np.array(rows).T, weights, rcond=None)
            if np.abs(factors @ np.array(rows) - weights).max() < 1e-6 * weights.max():
                found[name] = factors @ np.array(drawn) / weights.sum()
        return found

    def seed_of_areas(self, candidates: Iterable[int]) -> int | None:
        """Search the seed of an area bootstrap, given a neighborhood with replicates and no withheld area."""
        drawn, seen = self.replicates("neighborhood"), np.flatnonzero(self.seen)
        shown = [key for key in drawn if not self.hidden[self.areas["neighborhood"] == key].any()]
        lives = (self.areas["neighborhood"] == shown[1]).to_numpy()  # after Estimate_Total
        weights = np.where(lives, self.areas["persons"], 0.0)[seen]
        levels = self.areas["deployment_rate"].fillna(0).to_numpy()[seen]
        for seed in candidates:
            times = draw_units(len(seen), "area", replicates=range(5), seed=seed) * weights[:, None]
            if np.allclose(levels @ times / times.sum(axis=0), drawn[shown[1]][:5], atol=3e-5):
                return seed
        return None

    def positives_by_spread(self, place: str) -> float:
        """Estimate the positive images of the withheld areas, assumed to be in one area, from the standard deviation.

        k of n positive images add (w k / n)^2 / k to the variance of the sum, and w k / n to the sum itself.
        """
        row = self.rows("neighborhood").loc[place]
        persons = np.where(self.areas["neighborhood"] == place, self.areas["persons"], 0.0)
        calibration = self.summary["calibration"]
        negative, scale = calibration["false_omission_rate"], calibration["ppv"] - calibration["false_omission_rate"]
        weights, shares = persons[~self.hidden], self.known_shares[~self.hidden]
        rest = (row["estimate"] - negative) / scale * persons.sum() - weights @ shares
        known = weights**2 @ (shares * (1 - shares) / np.maximum(self.known_images[~self.hidden], 1))
        return rest**2 / ((row["sd"] / scale * persons.sum()) ** 2 - known)

    def _bounds(
        self, sums: list, known: np.ndarray, floor: float, ceiling: float | None, sample: np.ndarray | None
    ) -> pd.DataFrame:
        hidden = self.hidden
        chosen = np.arange(int(hidden.sum())) if sample is None else np.flatnonzero(sample)
        if not hidden.any() or not sums:
            unknown = {"low": floor, "high": np.inf if ceiling is None else ceiling}
            return pd.DataFrame(unknown, index=self.areas.loc[hidden, "area"])
        above, under = [], []
        for weights, low, high in sums:
            rest = weights[~hidden] @ known[~hidden]
            slack = 1e-9 * max(1.0, np.abs(weights).max())
            if np.isfinite(high):
                above.append((weights[hidden], high - rest + slack))
            if np.isfinite(low):
                under.append((-weights[hidden], rest - low + slack))
        rows = np.array([row for row, _ in above + under])
        limits = np.array([limit for _, limit in above + under])
        scale = np.maximum(np.abs(rows).max(axis=1), 1e-12)
        ends = []
        for area in chosen:
            aim = np.zeros(int(hidden.sum()))
            aim[area] = 1.0
            pair = []
            for sign in (1, -1):
                found = linprog(
                    sign * aim, A_ub=rows / scale[:, None], b_ub=limits / scale, bounds=(floor, ceiling), method="highs"
                )
                assert found.status in (0, 3), found.message
                pair.append(sign * found.fun if found.status == 0 else np.inf)
            ends.append(pair)
        return pd.DataFrame(ends, columns=["low", "high"], index=self.areas.loc[hidden, "area"].iloc[chosen])
