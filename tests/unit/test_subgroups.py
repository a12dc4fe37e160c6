"""Splits of labeled images against the same rules in plain pandas."""

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.subgroups import split_images

PUBLISHED_ORDER = [
    "Phase 1",
    "Weekend",
    "Daytime",
    "Share of White residents > median",
    "Share of Black residents > median",
    "Share of Asian residents > median",
    "Share of Hispanic residents > median",
    "Median household income > median",
    "Population density > median",
    "Distance from nearest felony, 1 h > median",
    "Distance from nearest felony, 3 h > median",
    "Distance from nearest felony, 6 h > median",
    "Distance from nearest police station > median",
    "Manhattan",
]


def made(images: int = 200) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images in and outside ten areas; one area has no residents, one no income."""
    rng = np.random.default_rng(4)
    people = rng.integers(1, 500, (10, 4)).astype(float)
    areas = pd.DataFrame(people, columns=["persons_white", "persons_black", "persons_asian", "persons_hispanic"])
    areas["persons"] = people.sum(axis=1) + 10
    areas["area"] = [f"a{number}" for number in range(10)]
    areas["income_usd"] = rng.integers(20, 200, 10) * 1_000.0
    areas["density_per_sqmi"] = rng.integers(0, 90_000, 10).astype(float)
    areas.loc[3, ["persons", *areas.columns[:4]]] = 0
    areas.loc[5, "income_usd"] = np.nan
    images_frame = pd.DataFrame(
        {
            "area": rng.choice([*areas["area"], None], images),
            "phase": rng.integers(0, 2, images),
            "weekend": rng.random(images) < 0.3,
            "nighttime": rng.random(images) < 0.4,
            "borough": rng.choice(["Manhattan", "Queens", None], images),
            "station_distance_ft": rng.uniform(0, 9_000, images),
        }
    )
    for hours in (1, 3, 6):
        apart = rng.uniform(0, 30_000, images).round(-3)
        images_frame[f"felony_{hours}h_distance_ft"] = np.where(rng.random(images) < 0.2 / hours, np.nan, apart)
    return images_frame, areas


def test_the_fourteen_splits_of_the_paper_are_in_its_order():
    assert [split.name for split in split_images(*made(), (1, 3, 6))] == PUBLISHED_ORDER


def test_sides_equal_those_in_plain_pandas():
    images, areas = made()
    joined = images.merge(areas, on="area", how="left")
    with np.errstate(invalid="ignore"):
        share = {
            name: joined[f"persons_{name}"] / joined["persons"] for name in ("white", "black", "asian", "hispanic")
        }
    covariates = [
        *(share[name] for name in ("white", "black", "asian", "hispanic")),
        joined["income_usd"],
        joined["density_per_sqmi"],
        *(joined[f"felony_{hours}h_distance_ft"] for hours in (1, 3, 6)),
        joined["station_distance_ft"],
    ]
    splits = split_images(images, areas, (1, 3, 6))
    for split, covariate in zip(splits[3:13], covariates, strict=True):
        expected = (covariate > covariate.median()).astype(int).where(covariate.notna(), -1)
        assert split.side.tolist() == expected.tolist(), split.name
        assert split.median == covariate.median()
        assert split.left_out == covariate.isna().sum()
    assert splits[3].left_out > splits[8].left_out > 0  # areas without residents; images outside all areas
    conditions = [images["phase"] == 1, images["weekend"], ~images["nighttime"]]
    for split, condition in zip(splits[:3], conditions, strict=True):
        assert split.side.tolist() == condition.astype(int).tolist()
        assert (split.median, split.left_out) == (None, 0)
    manhattan = splits[-1]
    assert manhattan.side.tolist() == images["borough"].map({"Manhattan": 1, "Queens": 0}).fillna(-1).tolist()


def test_a_value_at_the_median_is_not_above_it():
    images, areas = made(3)
    images["station_distance_ft"] = [1.0, 2.0, 3.0]
    station = split_images(images, areas, (1, 3, 6))[-2]
    assert (station.median, station.side.tolist()) == (2, [0, 0, 1])


def test_a_covariate_that_no_image_has_leaves_every_image_out():
    images, areas = made(20)
    station = split_images(images.assign(station_distance_ft=np.nan), areas, (1, 3, 6))[-2]
    assert (station.median, station.left_out) == (None, 20)


def test_other_felony_windows_give_other_splits():
    images, areas = made(20)
    names = [split.name for split in split_images(images, areas, (6,))]
    assert names == [name for name in PUBLISHED_ORDER if "1 h" not in name and "3 h" not in name]
