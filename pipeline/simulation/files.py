"""Files of a simulated study: raw inputs in source/ and the truth in truth/."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import IO, Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import shapely

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import AREAS
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.simulation import public_data as public
from patrolscope.pipeline.simulation.arguments import Arguments, day_plan
from patrolscope.pipeline.simulation.detector import Detector
from patrolscope.pipeline.simulation.rides import STEM, Rides
from patrolscope.pipeline.simulation.road_network import Streets
from patrolscope.pipeline.simulation.truth import Truth
from patrolscope.pipeline.study.store import Study

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

METADATA_FOLDER, LABELS_FOLDER = "source/metadata", "source/labels"
SHOWN_FOLDER, SCENES_FOLDER = "source/shown", "scenes"  # content of rendered scenes, by day and combined
IMAGES_SHOWN_FILE, BOXES_SHOWN_FILE = f"{SCENES_FOLDER}/images.csv", f"{SCENES_FOLDER}/boxes.csv"
TRUTH_FILE, CITY_FILE = "truth/truth.json", "truth/city.parquet"
METADATA_HEADER = b"image_ref,timestamp,lat,lng,split\n"

SIMULATED_CITY = Table(
    "city",
    row="one area and its true deployment rate",
    key=("area",),
    columns=(
        AREAS["area"],
        AREAS["neighborhood"],
        Column("deployment_rate", "float64", "probability that an image shows police", unit="1", low=0, high=1),
        AREAS["geometry"],
    ),
)
_MEANINGS = {
    "p_positive": "probability that an image above the threshold shows police, the same in all areas",
    "p_negative": "probability that any other image shows police",
    "precision": "precision on the validation set, like recall; asked: the arguments of simulate",
    "validation": "counts in the validation set; p_positive and p_negative are their quotients",
    "mean_level": "mean true deployment rate over the locations of the validation set",
    "level_elsewhere": "true deployment rate outside all areas and in areas without a rate of their own",
    "images": "rows of metadata that are different images",
    "repeated_rows": "duplicate rows of metadata, in addition to images",
    "areas.csv, neighborhoods.csv": "deployment_rate: probability that an image taken there shows police",
}


def write_csv(study: Study, frame: pd.DataFrame, name: str) -> str:
    """Write a frame as CSV; return the name of the file.

    Parameters
    ----------
    study : Study
        Study to write to.
    frame : DataFrame
        Rows.
    name : str
        Path in the study folder.
    """
    return study.write_bytes(frame.to_csv(index=False, lineterminator="\n").encode(), name)


def write_census(study: Study, areas: gpd.GeoDataFrame, seed: int) -> list[str]:
    """Write simulated population, income, and zoning; return the names of the files.

    Parameters
    ----------
    study : Study
        Study to write to.
    areas : GeoDataFrame
        Column `area` (code) and polygons, EPSG:4326.
    seed : int
        Seed of the study.
    """
    residents = public.population(areas, seed)
    income = public.income(areas, residents["Estimate_Total"].to_numpy(), seed)
    # Every line of the official file ends with a comma.
    income_text = income.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator=",\n")
    return [
        write_csv(study, residents, "source/population.csv"),
        study.write_bytes(income_text.encode(), "source/income.csv"),
        write_csv(study, public.zoning(areas, seed), "source/zoning.csv"),
    ]


def write_police_data(study: Study, streets: Streets, arguments: Arguments, areas: int) -> list[str]:
    """Write simulated complaints and, for the embedded city, police stations; return the names of the files.

    Parameters
    ----------
    study : Study
        Study to write to.
    streets : Streets
        Street network of the city.
    arguments : Arguments
        Arguments of the study.
    areas : int
        Number of areas.
    """
    days = day_plan(arguments)
    complaints = public.complaints(
        streets, first_day=days[0].day, last_day=days[-1].day, crs=study.settings.city.crs, seed=arguments.seed
    )
    files = [study.write_bytes(complaints.to_csv(index=False).encode("utf-8-sig"), "source/complaints.csv")]
    if arguments.city == "embedded":
        files.append(write_csv(study, public.stations(streets, areas, arguments.seed), "source/stations.csv"))
    return files


def write_truth(
    study: Study, areas: gpd.GeoDataFrame, truth: Truth, arguments: Arguments, mean_rate: float
) -> list[str]:
    """Write truth/; return the names of the files.

    Parameters
    ----------
    study : Study
        Study to write to.
    areas : GeoDataFrame
        Areas in the order of `truth.index.keys`.
    truth : Truth
        Truth of the study.
    arguments : Arguments
        Arguments of the study.
    mean_rate : float
        Mean deployment rate over the locations of the validation set.
    """
    areas = areas.assign(deployment_rate=truth.rates[:-1])[SIMULATED_CITY.names]
    table = pd.DataFrame(areas.drop(columns="geometry"))
    neighborhoods = table[["neighborhood", "deployment_rate"]].dropna().drop_duplicates().sort_values("neighborhood")
    content = {
        **_detector_facts(truth.detector, arguments),
        "threshold": study.settings.estimate.threshold,
        "mean_level": mean_rate,
        "level_elsewhere": float(truth.rates[-1]),
        "images": arguments.images,
        "repeated_rows": arguments.repeated_rows,
        "days": len(day_plan(arguments)),
        "seed": arguments.seed,
        "meanings": _MEANINGS,
    }
    return [
        study.write(SIMULATED_CITY, SIMULATED_CITY.conform(areas), CITY_FILE),
        write_csv(study, table, "truth/areas.csv"),
        write_csv(study, neighborhoods, "truth/neighborhoods.csv"),
        study.write_bytes(json.dumps(content, indent=1).encode(), TRUTH_FILE),
    ]


def _detector_facts(detector: Detector | None, arguments: Arguments) -> dict[str, Any]:
    if detector is None:
        return {"validation": None}
    return {
        "p_positive": detector.p_positive,
        "p_negative": detector.p_negative,
        "precision": detector.p_positive,
        "recall": detector.true_positive / (detector.true_positive + detector.missed),
        "asked": {"precision": arguments.precision, "recall": arguments.recall},
        "validation": {
            "images": detector.images,
            "positive": detector.positive,
            "true_positive": detector.true_positive,
            "missed": detector.missed,
        },
    }


def read_truth(study: Study) -> Truth:
    """Read the truth of a simulated study."""
    city = study.read(CITY_FILE, geometry=True)
    content = json.loads(study.read_bytes(TRUTH_FILE))
    shapes = shapely.make_valid(city.geometry.to_numpy())
    index = PolygonIndex.build(city["area"].to_numpy(), shapes)
    by_area = city.set_index("area")["deployment_rate"].loc[list(index.keys)]
    rates = np.append(by_area.to_numpy(), content["level_elsewhere"])
    counts = content["validation"]
    detector = None if counts is None else Detector(**counts, threshold=content["threshold"])
    return Truth(Streets.build(shapes), index, rates, detector)


def write_rows(file: IO[bytes], rides: Rides, refs: Bytes, split: npt.NDArray[np.int8], rows: Ints) -> None:
    """Append rows of metadata to a file.

    Parameters
    ----------
    file : binary file
        Open for writing.
    rides : Rides
        n images.
    refs : ndarray of uint8, shape (n, w)
        Characters of the `image_ref`.
    split : ndarray of int8, shape (n,)
        Published split, 0 or 1.
    rows : ndarray of int64
        Images to write; repeated numbers give duplicate rows.
    """
    width = refs.shape[1]
    offsets = np.arange(0, (len(rows) + 1) * width, width, dtype=np.int32)
    text = pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(refs[rows].tobytes()))
    table = pa.table(
        {
            "image_ref": text,
            "timestamp": rides.captured_ms[rows],
            "lat": rides.locations[rows, 1],
            "lng": rides.locations[rows, 0],
            "split": split[rows],
        }
    )
    pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=False, quoting_style="none"))


def write_label_files(folder: Path, refs: Bytes, images: Ints, texts: list[bytes]) -> int:
    """Write the YOLO text file of each image that has boxes; return the number of files.

    Parameters
    ----------
    folder : Path
        Folder of the day.
    refs : ndarray of uint8, shape (n, w)
        Characters of the `image_ref`.
    images : ndarray of int64
        Images with boxes.
    texts : list of bytes
        Content of their files.
    """
    # Bare system calls, since 24.8 million images have one million label files.
    stems = refs[images, STEM].tobytes().decode()
    width = len(stems) // max(len(texts), 1)
    for number, text in enumerate(texts):
        path = f"{folder}/{stems[number * width : (number + 1) * width]}.txt"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, text)
        os.close(descriptor)
    return len(texts)
