"""Simulation of a study with known truth, whose inputs have the format of real ones.

Rides are runs of images along streets. Each neighborhood has a true deployment rate, the probability that an image
there shows police. A detector of known precision and recall processes the images. Random numbers belong to a quantity,
a day, and a block of rides, never to a worker, so the same arguments give the same bytes on any cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from patrolscope.pipeline.detect.detector import require
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.catalog import load_catalog
from patrolscope.pipeline.geography.readers.police import read_levels
from patrolscope.pipeline.simulation.arguments import (
    ARGUMENTS_FILE,
    LABELED_IMAGES,
    LABELED_SCENES,
    Arguments,
    day_plan,
    default_days,
    parse_arguments,
)
from patrolscope.pipeline.simulation.files import LABELS_FOLDER, METADATA_FOLDER
from patrolscope.pipeline.simulation.scene_images import with_scenes
from patrolscope.pipeline.simulation.stages import SIMULATE_CITY, SIMULATE_DAYS, SIMULATE_LABELED, SIMULATE_SHOWN
from patrolscope.pipeline.study.config import Layer, Layers, Period, Settings, Sources
from patrolscope.pipeline.study.store import SETTINGS_FILE, Study, create_study, open_study

if TYPE_CHECKING:
    import distributed


def simulate(
    out: str,
    *,
    images: int,
    client: Callable[[], distributed.Client],
    city: Literal["embedded", "new-york"] = "embedded",
    seed: int = 20230612,
    days: int | None = None,
    rates: Path | None = None,
    precision: float = 0.777,
    recall: float = 0.83,
    validation_images: int | None = None,
    test_images: int | None = None,
    scenes: bool = False,
    cache: str | None = None,
    progress: Progress | None = None,
) -> Study:
    """Write a study folder with simulated inputs in source/ and their truth in truth/.

    Parameters
    ----------
    out : str
        Local folder, new or empty. A folder that was simulated with the same arguments is completed.
    images : int
        Number of images. A few duplicate rows of metadata are added (`repeated_rows` in truth.json).
    client : callable
        Returns the Dask client. It is called only if there is work to do.
    city : {"embedded", "new-york"}, default "embedded"
        "embedded" needs no files. "new-york" reads boundaries, residents, zones, and stations from fetched data sets.
    seed : int, default 20230612
        Seed of the study, at least 0.
    days : int, optional
        Days from 5 October 2020 onward. Default: one per 10,000 images (or per 100 scenes), at most 42.
    rates : Path, optional
        CSV with columns nta and weighted_mean: true deployment rate by name of the neighborhood. Neighborhoods that
        are not in the file get the mean. Default: a simulated surface.
    precision, recall : float
        Of the detector on the validation set, as close as whole images allow.
    validation_images, test_images : int, optional
        Size of the labeled sets. Default: 20,000 each, or 400 each of rendered scenes.
    scenes : bool, default False
        Write a rendered JPEG for every image instead of label files, for the shipped detector.
    cache : str, optional
        Folder of fetched data sets. Default: the cache folder of the user.
    progress : Progress, optional
        Listener for progress.

    Returns
    -------
    Study
        The simulated study.

    Raises
    ------
    SettingsError
        If an argument is out of range or cannot be satisfied, or if `out` holds something else.
    SourceError
        If the rates or a data set of the city are missing or cannot be read.
    WeightsError
        If `scenes` is set and the packages of the detector are not installed.
    """
    if scenes:
        require("torch", "torchvision", "cv2", "simplejpeg")
    settings = _settings(city, cache)
    if scenes:
        settings = with_scenes(settings)
    labeled = LABELED_SCENES if scenes else LABELED_IMAGES
    arguments = parse_arguments(
        images=images,
        city=city,
        seed=seed,
        first_day=settings.estimate.first_day,
        days=default_days(images, scenes=scenes) if days is None else days,
        rates=None if rates is None else _read_rates(rates),
        precision=precision,
        recall=recall,
        validation_images=labeled if validation_images is None else validation_images,
        test_images=labeled if test_images is None else test_images,
        scenes=scenes,
    )
    last_day = max(settings.period.end, day_plan(arguments)[-1].day)
    settings = settings.model_copy(update={"period": Period(start=settings.period.start, end=last_day)})
    study = _open_folder(out, arguments, settings)
    after_city = [SIMULATE_LABELED, SIMULATE_DAYS, SIMULATE_SHOWN] if scenes else [SIMULATE_DAYS]
    run_stages(study, [SIMULATE_CITY, *after_city], client, progress)
    return study


def _settings(city: str, cache: str | None) -> Settings:
    layers = {"complaints": Layer(entry="nypd_complaints_historic", path="source/complaints.csv")}
    if city == "embedded":
        layers |= {
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
    omitted = ("precincts", "area_attributes", "tract_places", "tract_counts") if city == "embedded" else ()
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
        layers=Layers(**layers, **dict.fromkeys(omitted)),
    )


def _read_rates(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise SourceError(f"--rates {path} is not a file; expected a CSV with columns nta and weighted_mean")
    table = read_levels(path, load_catalog()["published_results"])
    outside = table[~table["level"].between(0, 1, inclusive="neither")]
    if len(outside):
        name, rate = outside.iloc[0]
        raise SourceError(f"--rates {path}: the rate of {name!r} is {rate:g}; expected a number between 0 and 1")
    return dict(zip(table["neighborhood"].tolist(), table["level"].tolist(), strict=True))


def _open_folder(out: str, arguments: Arguments, settings: Settings) -> Study:
    """Create the study, or open one that was simulated with the same arguments."""
    if "://" in out:
        raise SettingsError(f"{out}: simulate writes many small files and needs a local folder; copy the study later")
    folder = Path(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{out} is a file; choose a new or empty folder")
    current = arguments.model_dump(mode="json")
    # A run that was killed early can leave a hidden file.
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        if not (folder / ARGUMENTS_FILE).is_file():
            raise SettingsError(f"{out} is not empty and holds no simulated study; choose a new or empty folder")
        before = {"scenes": False, **json.loads((folder / ARGUMENTS_FILE).read_text())}
        if before.keys() != current.keys():
            raise SettingsError(f"{out} holds a study simulated by an earlier version; choose a new or empty folder")
        if differing := [name for name in current if before[name] != current[name]]:
            name = differing[0]
            values = "" if name == "rates" else f" ({name} {before[name]}, not {current[name]})"
            raise SettingsError(
                f"{out} holds a study simulated with other {', '.join(differing)}{values}; "
                f"use the same arguments to complete it, or choose a new folder"
            )
    else:
        Study(str(folder), settings).write_bytes(json.dumps(current, indent=1).encode(), ARGUMENTS_FILE)
    if (folder / SETTINGS_FILE).is_file():
        return open_study(folder)
    return create_study(folder, settings)
