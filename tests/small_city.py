"""Synthetic city of 25 square areas, and studies simulated in it without a cluster."""

import io
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import shapely

from patrolscope.pipeline.simulation.arguments import ARGUMENTS_FILE, Arguments
from patrolscope.pipeline.simulation.files import LABELS_FOLDER, METADATA_FOLDER
from patrolscope.pipeline.simulation.stages import SIMULATE_CITY, SIMULATE_DAYS
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Record, Study, create_study

BLOCK = 0.006  # degrees, about 500 by 670 m
WEST, SOUTH = -74.0, 40.7


def areas() -> gpd.GeoDataFrame:
    """Return 5 by 5 squares; a neighborhood is a row of five."""
    cells = [(row, column) for row in range(5) for column in range(5)]
    shapes = [
        shapely.box(WEST + column * BLOCK, SOUTH + row * BLOCK, WEST + (column + 1) * BLOCK, SOUTH + (row + 1) * BLOCK)
        for row, column in cells
    ]
    # Snap to a grid of 1e-6 degrees, so that neighbors share their corners exactly.
    columns = {
        "geoid": [f"36061{row:03d}{column:03d}" for row, column in cells],
        "nta_name": [f"Row {row}" for row, _ in cells],
        "borough_code": 1,
    }
    return gpd.GeoDataFrame(columns, geometry=shapely.set_precision(shapes, 1e-6), crs="EPSG:4326")


def small_study(folder: Path, **changes: Any) -> Study:
    """Return a study before its simulation: by default 6,000 images from 31 October, so that one day has 25 hours."""
    defaults = {
        "images": 6_000,
        "city": "embedded",
        "seed": 7,
        "first_day": "2020-10-31",
        "days": 3,
        "rates": None,
        "precision": 0.777,
        "recall": 0.83,
        "validation_images": 2_000,
        "test_images": 500,
    }
    folder.mkdir(parents=True, exist_ok=True)
    areas().to_file(folder / "areas.geojson", driver="GeoJSON")
    tracts = {"entry": "embedded_tracts", "path": "areas.geojson"}
    layers = {
        "areas": tracts,
        "tracts": tracts,
        "neighborhoods": None,
        "boroughs": None,
        "precincts": None,
        "area_attributes": None,
        "tract_places": None,
        "tract_counts": None,
        "population": {"entry": "acs_2020_b03002", "path": "source/population.csv"},
        "income": {"entry": "acs_2020_b19013", "path": "source/income.csv"},
        "zoning": {"entry": "zoning_block_groups", "path": "source/zoning.csv"},
        "stations": {"entry": "precinct_houses", "path": "source/stations.csv"},
        "complaints": {"entry": "nypd_complaints_historic", "path": "source/complaints.csv"},
    }
    sources = {"metadata": METADATA_FOLDER, "detections": LABELS_FOLDER, "validation": "source/validation.csv"}
    study = create_study(folder, Settings.model_validate({"layers": layers, "sources": sources, "simulated": "All."}))
    arguments = Arguments(**{**defaults, **changes})
    study.write_bytes(json.dumps(arguments.model_dump(mode="json")).encode(), ARGUMENTS_FILE)
    return study


def simulated(folder: Path, **changes: Any) -> Study:
    """Return a study simulated in this process."""
    study = small_study(folder, **changes)
    for stage in (SIMULATE_CITY, SIMULATE_DAYS):
        for shard in stage.plan(study):
            stage.finish(study, shard)
    return study


def day_records(study: Study) -> dict[str, Record]:
    """Return the records of the days."""
    return study.records(SIMULATE_DAYS.name)


def rows(study: Study) -> pd.DataFrame:
    """Return all metadata, with the file and the local time of each row."""
    frames = [
        pd.read_csv(path).assign(file=path.name) for path in sorted(Path(study.path(METADATA_FOLDER)).glob("*.csv"))
    ]
    frame = pd.concat(frames, ignore_index=True)
    local = pd.to_datetime(frame["timestamp"], unit="ms", utc=True).dt.tz_convert("America/New_York")
    return frame.assign(local=local, stem=frame["image_ref"].str.extract(r"([^/]+)\.jpg$", expand=False))


def labels(study: Study) -> pd.DataFrame:
    """Return the boxes of all label files in the order of their lines, with day and file stem."""
    names = ["kind", "x", "y", "width", "height", "score", "day", "stem"]
    lines = [
        f"{line} {path.parent.name} {path.stem}\n"
        for path in sorted(Path(study.path(LABELS_FOLDER)).rglob("*.txt"))
        for line in path.read_text().splitlines()
    ]
    return pd.read_csv(io.StringIO("".join(lines)), sep=" ", names=names)


def content(study: Study) -> dict[str, bytes]:
    """Return the content of all files in source/ and truth/ by path; of tables, only the rows.

    The description of a table's CRS depends on what the process has read before: after a file that describes EPSG:4326
    without its datum ensemble, PROJ omits the ensemble too.
    """
    root = Path(study.path())
    paths = [path for folder in ("source", "truth") for path in (root / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): _rows(path) if path.suffix == ".parquet" else path.read_bytes() for path in paths
    }


def _rows(path: Path) -> bytes:
    table = pq.read_table(path).replace_schema_metadata()
    written = io.BytesIO()
    with pa.ipc.new_stream(written, table.schema) as writer:
        writer.write_table(table)
    return written.getvalue()
