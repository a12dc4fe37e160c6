"""A study whose truth is known, and whose inputs look exactly like the real ones.

Rides are runs of images along streets; every neighborhood has a true level, the chance that an image there shows
police; a detector of known precision and recall finds them. Random numbers belong to a quantity, a day and a block of
rides, never to a worker, so the same arguments give the same bytes on any cluster.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import shapely
from pydantic import Field, ValidationError

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import AREAS
from patrolscope.pipeline.detect.detector import require
from patrolscope.pipeline.detect.weights import street_scenes
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.catalog import load_catalog
from patrolscope.pipeline.geography.layers import build_areas, read_layer
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.geography.readers.police import read_levels
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation import public_data as public
from patrolscope.pipeline.simulation.detector import VEHICLE, Detector, draw_boxes, fit_detector
from patrolscope.pipeline.simulation.rides import (
    BLOCK_RIDES,
    STEM,
    LocalDay,
    Rides,
    apportion,
    blocks,
    draw_rides,
    image_refs,
    ride_lengths,
)
from patrolscope.pipeline.simulation.road_network import Streets
from patrolscope.pipeline.simulation.scene_images import (
    SCENES_VERSION,
    WEIGHTS_FILE,
    score_scenes,
    with_scenes,
    write_scenes,
)
from patrolscope.pipeline.simulation.truth import MEAN_LEVEL, Truth, levels_of_areas
from patrolscope.pipeline.study.config import Frozen, Layer, Layers, Period, Settings, Sources
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import SETTINGS_FILE, Output, Study, create_study, open_study

if TYPE_CHECKING:
    import distributed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

ARGUMENTS_FILE = "simulation.json"
METADATA_FOLDER, LABELS_FOLDER = "source/metadata", "source/labels"
SHOWN_FOLDER, SCENES_FOLDER = "source/shown", "scenes"  # what rendered scenes show, by day and together
IMAGES_SHOWN_FILE, BOXES_SHOWN_FILE = f"{SCENES_FOLDER}/images.csv", f"{SCENES_FOLDER}/boxes.csv"
TRUTH_FILE, CITY_FILE = "truth/truth.json", "truth/city.parquet"
HEADER = b"image_ref,timestamp,lat,lng,split\n"

DEVELOPMENT_SHARE = 0.1  # of the images have split 0
REPEATED_SHARE = 1 / 20_000  # of the rows stand in their file twice
IMAGES_PER_LABELED = 20  # a labeled image is one of this many: about 10 of a ride
IMAGES_PER_DAY = 10_000  # a study of few images has few days
SCENES_PER_DAY = 100  # with rendered scenes, of which there are few: several workers share them
LABELED_IMAGES, LABELED_SCENES = 20_000, 400  # in the validation set, and in the test set
SCENES_MEAN_LEVEL = 0.15  # of rendered scenes: at the published level, some hundreds would show next to no police
MOST_DAYS = 42  # 5 October to 15 November 2020, the days analyzed in the reference study

_IMAGES_BY_WEEKDAY = (1.0, 1.0, 1.0, 1.05, 1.1, 1.0, 0.8)  # Monday first

SIMULATED_CITY = Table(
    "city",
    row="one area and the true share of images there that show police",
    key=("area",),
    columns=(
        AREAS["area"],
        AREAS["neighborhood"],
        Column("level", "float64", "chance that an image there shows police", unit="1", low=0, high=1),
        AREAS["geometry"],
    ),
)


class Arguments(Frozen):
    """What was asked for: simulation.json."""

    images: int = Field(ge=1)
    city: Literal["embedded", "new-york"]
    seed: int = Field(ge=0)
    first_day: date
    days: int = Field(ge=1, le=3650)
    levels: dict[str, float] | None  # by neighborhood; null: a simulated surface
    precision: float = Field(gt=0, le=1)
    recall: float = Field(gt=0, le=1)
    validation_images: int = Field(ge=1)
    test_images: int = Field(ge=0)
    scenes: bool = False  # images are rendered, and a real detector looks at them; precision and recall play no part

    @property
    def repeated_rows(self) -> int:
        """Rows that stand in their file twice, beyond `images`; at least one."""
        return max(1, round(self.images * REPEATED_SHARE))


def simulate(
    out: str,
    *,
    images: int,
    client: Callable[[], distributed.Client],
    city: Literal["embedded", "new-york"] = "embedded",
    seed: int = 20230612,
    days: int | None = None,
    levels: Path | None = None,
    precision: float = 0.777,
    recall: float = 0.83,
    validation_images: int | None = None,
    test_images: int | None = None,
    scenes: bool = False,
    cache: str | None = None,
    progress: Progress | None = None,
) -> Study:
    """A study folder with simulated inputs below source/ and what is true of them below truth/.

    Parameters
    ----------
    out : local folder, new or empty, or one that the same arguments made: then what is missing is made
    images : rows of metadata; a few rows stand there twice on top of them (`repeated_rows` in truth.json)
    client : called when there is something to make
    city : "embedded" needs no file, "new-york" takes boundaries, people, zones and stations from fetched data sets
    days : from 5 October 2020 on; by default one for 10,000 images (100 scenes), at most 42
    levels : CSV with nta, weighted_mean: true level of neighborhoods by name; others get the mean
    precision, recall : of the detector on the validation set, as near as whole images allow
    validation_images, test_images : by default 20,000 each, 400 of scenes
    scenes : write a rendered JPEG for every image instead of label files, for the detector that is shipped
    cache : folder of fetched data sets, by default the user's

    Raises
    ------
    SettingsError : an argument can not be met, or `out` holds something else
    SourceError : the levels, or a data set of the city, are missing or can not be read
    WeightsError : scenes are asked for, and the detector's packages are not installed
    """
    if scenes:
        require("torch", "torchvision", "cv2")
    settings = _settings(city, cache)
    if scenes:
        settings = with_scenes(settings)
    labeled = LABELED_SCENES if scenes else LABELED_IMAGES
    arguments = _arguments(
        images=images,
        city=city,
        seed=seed,
        first_day=settings.estimate.first_day,
        days=_days(images, scenes=scenes) if days is None else days,
        levels=None if levels is None else _read_levels(levels),
        precision=precision,
        recall=recall,
        validation_images=labeled if validation_images is None else validation_images,
        test_images=labeled if test_images is None else test_images,
        scenes=scenes,
    )
    last_day = max(settings.period.end, day_plan(arguments)[-1].day)
    settings = settings.model_copy(update={"period": Period(start=settings.period.start, end=last_day)})
    study = _open_folder(out, arguments, settings)
    made_of_scenes = [SIMULATE_LABELED, SIMULATE_DAYS, SIMULATE_SHOWN]
    run_stages(study, [SIMULATE_CITY, *(made_of_scenes if scenes else [SIMULATE_DAYS])], client, progress)
    return study


def _days(images: int, *, scenes: bool) -> int:
    return min(MOST_DAYS, max(1, -(-images // (SCENES_PER_DAY if scenes else IMAGES_PER_DAY))))


def _settings(city: str, cache: str | None) -> Settings:
    own = {"complaints": Layer(entry="nypd_complaints_historic", path="source/complaints.csv")}
    if city == "embedded":
        own |= {
            "areas": Layer(entry="embedded_tracts"),
            "tracts": Layer(entry="embedded_tracts"),
            "neighborhoods": Layer(entry="embedded_neighborhoods"),
            "boroughs": Layer(entry="embedded_boroughs"),
            "population": Layer(entry="acs_2020_b03002", path="source/population.csv"),
            "income": Layer(entry="acs_2020_b19013", path="source/income.csv"),
            "zoning": Layer(entry="zoning_block_groups", path="source/zoning.csv"),
            "stations": Layer(entry="precinct_houses", path="source/stations.csv"),
        }
        simulated = (
            "Images, detections, people, incomes, zones, felonies and police stations are simulated; only the "
            "boundaries of New York City are real."
        )
    else:
        simulated = (
            "Images, detections and felonies are simulated; boundaries, people, incomes, zones and police stations of "
            "New York City are real."
        )
    absent = ("precincts", "area_attributes", "tract_places", "tract_counts") if city == "embedded" else ()
    layers = Layers(**own, **dict.fromkeys(absent))
    return Settings(
        name=f"Simulated study, {'embedded city' if city == 'embedded' else 'New York City'}",
        cache=cache,
        simulated=simulated,
        sources=Sources(
            metadata=(METADATA_FOLDER,),
            detections=(LABELS_FOLDER,),
            validation="source/validation.csv",
            test="source/test.csv",
            truth="truth",
        ),
        layers=layers,
    )


def _arguments(**given: Any) -> Arguments:
    try:
        return Arguments(**given)
    except ValidationError as error:
        faults = [f"{fault['loc'][0]} {fault['input']!r} ({fault['msg']})" for fault in error.errors()]
        raise SettingsError("simulate can not use " + "; ".join(faults)) from error


def _read_levels(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise SourceError(f"{path} is no file; expected a CSV with the columns nta and weighted_mean")
    table = read_levels(path, load_catalog()["published_results"])
    outside = table[~table["level"].between(0, 1, inclusive="neither")]
    if len(outside):
        name, level = outside.iloc[0]
        raise SourceError(f"{path}: the level of {name!r} is {level:g}; a level is a chance between 0 and 1")
    return dict(zip(table["neighborhood"].tolist(), table["level"].tolist(), strict=True))


def _open_folder(out: str, arguments: Arguments, settings: Settings) -> Study:
    """The study of a new folder, or of one that the same arguments made."""
    if "://" in out:
        raise SettingsError(f"{out}: simulate writes many small files and needs a local folder; copy the study later")
    folder = Path(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{out} is a file: name a new or empty folder")
    asked = arguments.model_dump(mode="json")
    # A hidden file can be left by a run that was killed at its very start.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        if not (folder / ARGUMENTS_FILE).is_file():
            raise SettingsError(f"{out} is not empty and holds no simulated study: name a new or empty folder")
        made = {"scenes": False, **json.loads((folder / ARGUMENTS_FILE).read_text())}
        if differing := [name for name in asked if made.get(name) != asked[name]]:
            name = differing[0]
            values = "others" if name == "levels" else f"{name} {made.get(name)}, now asked {asked[name]}"
            raise SettingsError(
                f"{out} holds a study simulated with other {', '.join(differing)} ({values}): give the same arguments "
                f"to go on with it, or name a new folder"
            )
    else:
        Study(str(folder), settings).write_bytes(json.dumps(asked, indent=1).encode(), ARGUMENTS_FILE)
    if (folder / SETTINGS_FILE).is_file():
        return open_study(folder)
    return create_study(folder, settings)


def read_arguments(study: Study) -> Arguments:
    """Arguments that made a simulated study."""
    return _arguments(**json.loads(study.read_bytes(ARGUMENTS_FILE)))


# Which images are of which day.


@dataclass(frozen=True)
class DayPlan:
    """A local day and the rows of its file."""

    day: date
    images: int
    repeated: int  # rows that stand there twice


def day_plan(arguments: Arguments) -> list[DayPlan]:
    """Days with at least one image, in order; the images and repeated rows of all add up to those asked for."""
    days = [arguments.first_day + timedelta(days=ahead) for ahead in range(arguments.days)]
    images = apportion(arguments.images, np.array([_IMAGES_BY_WEEKDAY[day.weekday()] for day in days]))
    repeated = apportion(arguments.repeated_rows, images.astype(np.float64))
    rows = zip(days, images.tolist(), repeated.tolist(), strict=True)
    return [DayPlan(day, count, twice) for day, count, twice in rows if count]


def draw_labeled(streets: Streets, arguments: Arguments, count: int, name: str, clock: ZoneInfo) -> Rides:
    """Places and times of a labeled set: single images of rides of their own, on the days of the study."""
    per_day = apportion(count, np.array([plan.images for plan in day_plan(arguments)], dtype=np.float64))
    parts = []
    for plan, wanted in zip(day_plan(arguments), per_day.tolist(), strict=True):
        if not wanted:
            continue
        generator = stream(arguments.seed, f"rides of the {name} set", plan.day.toordinal())
        left = wanted
        for lengths in blocks(ride_lengths(wanted * IMAGES_PER_LABELED, generator)):
            rides = draw_rides(streets, lengths, LocalDay.of(plan.day, clock), generator)
            # Spread over the blocks in proportion; the last takes what is left.
            take = min(left, -(-len(rides.ride) // IMAGES_PER_LABELED))
            left -= take
            parts.append(rides.rows(np.sort(generator.choice(len(rides.ride), take, replace=False))))
    return Rides.together(parts)


# The city, made once.


def plan_city(study: Study) -> list[Shard]:
    """One shard, made from the arguments."""
    return [Shard("city", read_arguments(study).model_dump(mode="json"))]


def process_city(study: Study, shard: Shard) -> Output:
    """Write public data, truth, validation and test set."""
    arguments = Arguments.model_validate(shard.work)
    for left in Path(study.path("source")).glob(".*.tmp"):  # of a run that was killed
        left.unlink()
    files = []
    if arguments.city == "embedded":
        files += _write_people(study, read_layer(study, study.settings.layers.areas, "read_areas"), arguments.seed)
    areas = build_areas(study)
    shapes = shapely.make_valid(areas.geometry.to_numpy())
    streets, index = Streets.build(shapes), PolygonIndex.build(areas["area"].to_numpy(), shapes)
    areas = areas.set_index("area").loc[list(index.keys)].reset_index()
    files += _write_police(study, streets, arguments, len(areas))

    clock = study.settings.city.clock
    images = draw_labeled(streets, arguments, arguments.validation_images, "validation", clock)
    sample = index.locate(images.places[:, 0], images.places[:, 1])
    mean = SCENES_MEAN_LEVEL if arguments.scenes else MEAN_LEVEL
    level, elsewhere = levels_of_areas(areas, public.centers(areas), sample, arguments.levels, arguments.seed, mean)
    levels = np.append(level, elsewhere)
    if arguments.scenes:
        truth = Truth(streets, index, levels, None)
        files.append(study.write_bytes(street_scenes.WEIGHTS.read_bytes(), WEIGHTS_FILE))
    else:
        detector = fit_detector(
            levels[sample],
            lowest=float(levels.min()),
            highest=float(levels.max()),
            precision=arguments.precision,
            recall=arguments.recall,
            threshold=study.settings.estimate.threshold,
        )
        truth = Truth(streets, index, levels, detector)
        files += _write_labeled_sets(study, truth, detector, images, arguments)
    files += _write_truth(study, areas, truth, arguments, float(levels[sample].mean()))
    return Output(files=tuple(files), rows_in=len(areas), rows_out=len(areas))


def _write_labeled_sets(
    study: Study, truth: Truth, detector: Detector, images: Rides, arguments: Arguments
) -> list[str]:
    generator = stream(arguments.seed, "detections of the validation set")
    found = detector.detect_exactly(truth.levels_at(images.places), generator)
    files = [_write_labeled(study, "validation", images, detector, found, generator)]
    if arguments.test_images:
        tested = draw_labeled(truth.streets, arguments, arguments.test_images, "test", study.settings.city.clock)
        generator = stream(arguments.seed, "detections of the test set")
        found = detector.detect(truth.levels_at(tested.places), generator)
        files.append(_write_labeled(study, "test", tested, detector, found, generator))
    return files


def _write_csv(study: Study, frame: pd.DataFrame, name: str) -> str:
    return study.write_bytes(frame.to_csv(index=False, lineterminator="\n").encode(), name)


def _write_people(study: Study, areas: gpd.GeoDataFrame, seed: int) -> list[str]:
    people = public.population(areas, seed)
    income = public.income(areas, people["Estimate_Total"].to_numpy(), seed)
    # Every line of the official file ends with a comma.
    income_text = income.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator=",\n")
    return [
        _write_csv(study, people, "source/population.csv"),
        study.write_bytes(income_text.encode(), "source/income.csv"),
        _write_csv(study, public.zoning(areas, seed), "source/zoning.csv"),
    ]


def _write_police(study: Study, streets: Streets, arguments: Arguments, areas: int) -> list[str]:
    days = day_plan(arguments)
    complaints = public.complaints(
        streets, first_day=days[0].day, last_day=days[-1].day, crs=study.settings.city.crs, seed=arguments.seed
    )
    files = [study.write_bytes(complaints.to_csv(index=False).encode("utf-8-sig"), "source/complaints.csv")]
    if arguments.city == "embedded":
        files.append(_write_csv(study, public.stations(streets, areas, arguments.seed), "source/stations.csv"))
    return files


def _write_labeled(
    study: Study,
    name: str,
    images: Rides,
    detector: Detector,
    found: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    generator: np.random.Generator,
) -> str:
    positive, shows = found
    return _write_csv(study, _labeled(images, shows, detector.scores(positive, shows, generator)), f"source/{name}.csv")


def _labeled(images: Rides, shows: npt.NDArray[np.bool_], scores: Floats) -> pd.DataFrame:
    """Rows of a labeled set."""
    return pd.DataFrame(
        {
            "ground_truth": shows.astype(np.int8),
            "Model_predicted_score": scores,
            "lat": images.places[:, 1],
            "lng": images.places[:, 0],
            "timestamp": images.captured_ms,
        }
    )


def _write_truth(
    study: Study, areas: gpd.GeoDataFrame, truth: Truth, arguments: Arguments, mean_level: float
) -> list[str]:
    areas = areas.assign(level=truth.levels[:-1])[SIMULATED_CITY.names]
    table = pd.DataFrame(areas.drop(columns="geometry"))
    neighborhoods = table[["neighborhood", "level"]].dropna().drop_duplicates().sort_values("neighborhood")
    content = {
        **_truth_of_detector(truth.detector, arguments),
        "threshold": study.settings.estimate.threshold,
        "mean_level": mean_level,
        "level_elsewhere": float(truth.levels[-1]),
        "images": arguments.images,
        "repeated_rows": arguments.repeated_rows,
        "days": len(day_plan(arguments)),
        "seed": arguments.seed,
        "meanings": {
            "p_positive": "chance that an image above the threshold shows police, wherever it was taken",
            "p_negative": "the same of any other image",
            "precision": "of the detector on the validation set; recall as well; asked: what simulate was given",
            "validation": "whole counts of the validation set; p_positive and p_negative are their quotients",
            "mean_level": "mean true level over the validation set's places",
            "level_elsewhere": "true level outside every area, and in areas without a level of their own",
            "images": "rows of metadata that are different images",
            "repeated_rows": "rows that stand in their file a second time, on top of images",
            "areas.csv, neighborhoods.csv": "level: chance that an image taken there shows police",
        },
    }
    return [
        study.write(SIMULATED_CITY, SIMULATED_CITY.conform(areas), CITY_FILE),
        _write_csv(study, table, "truth/areas.csv"),
        _write_csv(study, neighborhoods, "truth/neighborhoods.csv"),
        study.write_bytes(json.dumps(content, indent=1).encode(), TRUTH_FILE),
    ]


def _truth_of_detector(detector: Detector | None, arguments: Arguments) -> dict[str, Any]:
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


SIMULATE_CITY = Stage("simulate_city", unit="areas", folders=("truth",), plan=plan_city, process=process_city)


# The days.


@lru_cache(maxsize=1)
def load_truth(study: Study, made_from: str) -> Truth:  # noqa: ARG001 - the fingerprint is a part of the cache's key
    """The truth of a simulated study, once a worker process; `made_from` is the city's fingerprint."""
    city = study.read(CITY_FILE, geometry=True)
    content = json.loads(study.read_bytes(TRUTH_FILE))
    shapes = shapely.make_valid(city.geometry.to_numpy())
    index = PolygonIndex.build(city["area"].to_numpy(), shapes)
    levels = np.append(city.set_index("area")["level"].loc[list(index.keys)].to_numpy(), content["level_elsewhere"])
    counts = content["validation"]
    detector = None if counts is None else Detector(**counts, threshold=content["threshold"])
    return Truth(Streets.build(shapes), index, levels, detector)


def plan_days(study: Study) -> list[Shard]:
    """One shard a day."""
    arguments = read_arguments(study)
    city = study.records(SIMULATE_CITY.name)["city"].fingerprint
    return [
        Shard(
            name=plan.day.isoformat(),
            work={
                "images": plan.images,
                "repeated": plan.repeated,
                "seed": arguments.seed,
                **({"scenes": SCENES_VERSION} if arguments.scenes else {}),
            },
            size=plan.images + plan.repeated,
            made_from=city,
        )
        for plan in day_plan(arguments)
    ]


def process_day(study: Study, shard: Shard) -> Output:
    """Write a day's metadata file and label files, block by block."""
    day = date.fromisoformat(shard.name)
    seed, images, repeated = shard.work["seed"], shard.work["images"], shard.work["repeated"]
    truth = load_truth(study, shard.made_from)
    local_day = LocalDay.of(day, study.settings.city.clock)
    ordinal = day.toordinal()
    twice = np.sort(stream(seed, "repeated rows", ordinal).choice(images, repeated, replace=False))
    labels = Path(study.path(LABELS_FOLDER, shard.name))
    if truth.detector is not None:
        if labels.exists():
            shutil.rmtree(labels)  # of a run that was stopped: it may hold half a file
        labels.mkdir(parents=True)
    shown: list[pd.DataFrame] = []
    name = f"{METADATA_FOLDER}/{local_day.start_ms}.csv"
    counts = np.zeros(3, dtype=np.int64)
    done = 0
    with study.aside(name) as path, Path(path).open("wb") as file:
        file.write(HEADER)
        for block, lengths in enumerate(blocks(ride_lengths(images, stream(seed, "ride lengths", ordinal)))):
            rides = draw_rides(truth.streets, lengths, local_day, stream(seed, "rides", ordinal, block))
            count = len(rides.ride)
            refs = image_refs(rides, day, block * BLOCK_RIDES, stream(seed, "ride ids", ordinal, block))
            split = (stream(seed, "split", ordinal, block).random(count) >= DEVELOPMENT_SHARE).astype(np.int8)
            again = twice[(twice >= done) & (twice < done + count)] - done
            _write_rows(file, rides, refs, split, np.concatenate([np.arange(count), again]))
            done += count
            generator = stream(seed, "detections", ordinal, block)
            level = truth.levels_at(rides.places)
            if truth.detector is None:
                shown.append(write_scenes(study, refs, generator.random(count) < level, seed))
                continue
            positive, shows = truth.detector.detect(level, generator)
            boxes = draw_boxes(truth.detector.scores(positive, shows, generator), generator)
            files = _write_labels(labels, refs, *boxes.texts())
            counts += (positive.sum(), shows.sum(), files)
    files_made = [name]
    if shown:
        every = pd.concat(shown, ignore_index=True)
        counts[1] = every.loc[every["kind"] == VEHICLE, "image_ref"].nunique()
        files_made.append(_write_csv(study, every, f"{SHOWN_FOLDER}/{shard.name}.csv"))
    ledger = Ledger("simulate", images + repeated)
    ledger.note("rows that repeat an earlier one", repeated)
    return Output(
        files=tuple(files_made),
        rows_in=images + repeated,
        rows_out=images + repeated,
        ledger=(ledger.close(images + repeated),),
        facts=dict(zip(("positive", "shows_police", "label_files"), counts.tolist(), strict=True)),
    )


def _write_rows(file: Any, rides: Rides, refs: Bytes, split: npt.NDArray[np.int8], rows: Ints) -> None:
    width = refs.shape[1]
    offsets = np.arange(0, (len(rows) + 1) * width, width, dtype=np.int32)
    text = pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(refs[rows].tobytes()))
    table = pa.table(
        {
            "image_ref": text,
            "timestamp": rides.captured_ms[rows],
            "lat": rides.places[rows, 1],
            "lng": rides.places[rows, 0],
            "split": split[rows],
        }
    )
    pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=False, quoting_style="none"))


def _write_labels(folder: Path, refs: Bytes, images: Ints, texts: list[bytes]) -> int:
    """Write the label file of each image that has one; how many."""
    # Bare system calls: 24.8 million images have a million label files.
    stems = refs[images, STEM].tobytes().decode()
    width = len(stems) // max(len(texts), 1)
    for place, text in enumerate(texts):
        path = f"{folder}/{stems[place * width : (place + 1) * width]}.txt"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, text)
        os.close(descriptor)
    return len(texts)


SIMULATE_DAYS = Stage(
    "simulate", unit="rows", folders=(METADATA_FOLDER, SHOWN_FOLDER), plan=plan_days, process=process_day
)


# Studies of rendered scenes: labeled sets with the real detector's scores, and what all images show.


def plan_labeled(study: Study) -> list[Shard]:
    """One shard a labeled set."""
    arguments = read_arguments(study)
    city = study.records(SIMULATE_CITY.name)["city"].fingerprint
    sizes = {"validation": arguments.validation_images, "test": arguments.test_images}
    return [
        Shard(name, {"images": images, "scenes": SCENES_VERSION}, size=images, made_from=city)
        for name, images in sizes.items()
        if images
    ]


def process_labeled(study: Study, shard: Shard) -> Output:
    """Render a labeled set and write the scores that the detector gives it."""
    arguments, truth = read_arguments(study), load_truth(study, shard.made_from)
    images = draw_labeled(truth.streets, arguments, shard.work["images"], shard.name, study.settings.city.clock)
    generator = stream(arguments.seed, f"detections of the {shard.name} set")
    shows = generator.random(len(images.ride)) < truth.levels_at(images.places)
    scores = score_scenes(study, shard.name, shows, arguments.seed)
    file = _write_csv(study, _labeled(images, shows, scores), f"source/{shard.name}.csv")
    ledger = Ledger("simulate_labeled", len(shows))
    return Output((file,), len(shows), len(shows), (ledger.close(len(shows)),), {"positive": int(shows.sum())})


SIMULATE_LABELED = Stage("simulate_labeled", unit="images", folders=(), plan=plan_labeled, process=process_labeled)


def plan_shown(study: Study) -> list[Shard]:
    """One shard, made from all days."""
    days = sorted(record.fingerprint for record in study.records(SIMULATE_DAYS.name).values())
    return [Shard("shown", {"days": days})]


def process_shown(study: Study, _shard: Shard) -> Output:
    """Write what every image shows as one file of images and one of boxes."""
    days = sorted(study.records(SIMULATE_DAYS.name))
    every = pd.concat([pd.read_csv(study.path(SHOWN_FOLDER, f"{day}.csv")) for day in days], ignore_index=True)
    shows = (every["kind"] == VEHICLE).groupby(every["image_ref"], sort=False).any()
    images = shows.astype("int8").rename("ground_truth").reset_index()
    boxes = every.dropna(subset=["kind"]).astype({"kind": "int64"})
    files = (_write_csv(study, images, IMAGES_SHOWN_FILE), _write_csv(study, boxes, BOXES_SHOWN_FILE))
    return Output(files, len(images), len(images), (Ledger("simulate_shown", len(images)).close(len(images)),))


SIMULATE_SHOWN = Stage(
    "simulate_shown", unit="studies", folders=(SCENES_FOLDER,), plan=plan_shown, process=process_shown
)
