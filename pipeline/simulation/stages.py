"""Stages that write a simulated study: city, days, and for rendered scenes the labeled sets and their content."""

from __future__ import annotations

import shutil
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.detect.weights import street_scenes
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.geography.layers import build_areas, read_area_tables, read_layer
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.arguments import Arguments, day_plan, read_arguments
from patrolscope.pipeline.simulation.detector import VEHICLE, draw_boxes, fit_detector
from patrolscope.pipeline.simulation.files import (
    BOXES_SHOWN_FILE,
    IMAGES_SHOWN_FILE,
    LABELS_FOLDER,
    METADATA_FOLDER,
    METADATA_HEADER,
    SCENES_FOLDER,
    SHOWN_FOLDER,
    read_truth,
    write_census,
    write_csv,
    write_label_files,
    write_police_data,
    write_rows,
    write_truth,
)
from patrolscope.pipeline.simulation.labeled_sets import draw_labeled, labeled_table, simulated_sets
from patrolscope.pipeline.simulation.public_data import centers
from patrolscope.pipeline.simulation.rides import BLOCK_RIDES, LocalDay, blocks, draw_rides, image_refs, ride_lengths
from patrolscope.pipeline.simulation.road_network import Streets
from patrolscope.pipeline.simulation.scene_images import SCENES_VERSION, WEIGHTS_FILE, score_scenes, write_scenes
from patrolscope.pipeline.simulation.truth import MEAN_RATE, Truth, rates_of_areas
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Output, Study

DEVELOPMENT_SHARE = 0.1  # of the images have split 0
SCENES_MEAN_RATE = 0.15  # of rendered scenes; at the published rate, hundreds of them would show almost no police


def plan_city(study: Study) -> list[Shard]:
    """Plan one shard, which depends on the arguments."""
    return [Shard("city", read_arguments(study).model_dump(mode="json"))]


def process_city(study: Study, shard: Shard) -> Output:
    """Write public data, truth, and the labeled sets of a simulated detector."""
    arguments = Arguments.model_validate(shard.work)
    for leftover in Path(study.path("source")).glob(".*.tmp"):  # of an interrupted run
        leftover.unlink()
    files = []
    if arguments.city == "embedded":
        files += write_census(study, read_layer(study, study.settings.layers.areas, "read_areas"), arguments.seed)
    areas = build_areas(study, read_area_tables(study))
    shapes = shapely.make_valid(areas.geometry.to_numpy())
    streets, index = Streets.build(shapes), PolygonIndex.build(areas["area"].to_numpy(), shapes)
    areas = areas.set_index("area").loc[list(index.keys)].reset_index()
    files += write_police_data(study, streets, arguments, len(areas))

    clock = study.settings.city.clock
    images = draw_labeled(streets, arguments, arguments.validation_images, "validation", clock)
    sample = index.locate(images.locations[:, 0], images.locations[:, 1])
    mean = SCENES_MEAN_RATE if arguments.scenes else MEAN_RATE
    by_area, elsewhere = rates_of_areas(areas, centers(areas), sample, arguments.rates, arguments.seed, mean)
    rates = np.append(by_area, elsewhere)
    detector = None
    if arguments.scenes:
        files.append(study.write_bytes(street_scenes.WEIGHTS.read_bytes(), WEIGHTS_FILE))
    else:
        detector = fit_detector(
            rates[sample],
            lowest=float(rates.min()),
            highest=float(rates.max()),
            precision=arguments.precision,
            recall=arguments.recall,
            threshold=study.settings.estimate.threshold,
        )
    truth = Truth(streets, index, rates, detector)
    for name, table in simulated_sets(truth, images, arguments, clock).items():
        files.append(write_csv(study, table, f"source/{name}.csv"))
    files += write_truth(study, areas, truth, arguments, float(rates[sample].mean()))
    return Output(files=tuple(files), rows_in=len(areas), rows_out=len(areas))


SIMULATE_CITY = Stage("simulate_city", unit="areas", folders=("truth",), plan=plan_city, process=process_city)


@lru_cache(maxsize=1)
def load_truth(study: Study, made_from: str) -> Truth:  # noqa: ARG001 - part of the cache key
    """Load the truth once per worker process; `made_from` is the fingerprint of the city."""
    return read_truth(study)


def plan_days(study: Study) -> list[Shard]:
    """Plan one shard per day."""
    arguments = read_arguments(study)
    city = study.records(SIMULATE_CITY.name)["city"].content
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
    """Write the metadata of a day, and its label files or rendered scenes, one block of rides at a time."""
    day = date.fromisoformat(shard.name)
    seed, images, repeated = shard.work["seed"], shard.work["images"], shard.work["repeated"]
    truth = load_truth(study, str(shard.made_from))
    local_day = LocalDay.of(day, study.settings.city.clock)
    ordinal = day.toordinal()
    duplicates = np.sort(stream(seed, "repeated rows", ordinal).choice(images, repeated, replace=False))
    labels = Path(study.path(LABELS_FOLDER, shard.name))
    if truth.detector is not None:
        if labels.exists():
            shutil.rmtree(labels)  # of an interrupted run, which can leave a partial file
        labels.mkdir(parents=True)
    shown: list[pd.DataFrame] = []
    name = f"{METADATA_FOLDER}/{local_day.start_ms}.csv"
    counts = np.zeros(3, dtype=np.int64)
    done = 0
    with study.aside(name) as path, Path(path).open("wb") as file:
        file.write(METADATA_HEADER)
        for block, lengths in enumerate(blocks(ride_lengths(images, stream(seed, "ride lengths", ordinal)))):
            rides = draw_rides(truth.streets, lengths, local_day, stream(seed, "rides", ordinal, block))
            count = len(rides.ride)
            refs = image_refs(rides, day, block * BLOCK_RIDES, stream(seed, "ride ids", ordinal, block))
            split = (stream(seed, "split", ordinal, block).random(count) >= DEVELOPMENT_SHARE).astype(np.int8)
            again = duplicates[(duplicates >= done) & (duplicates < done + count)] - done
            write_rows(file, rides, refs, split, np.concatenate([np.arange(count), again]))
            done += count
            generator = stream(seed, "detections", ordinal, block)
            rates = truth.rates_at(rides.locations)
            if truth.detector is None:
                shown.append(write_scenes(study, refs, generator.random(count) < rates, seed))
                continue
            positive, shows = truth.detector.detect(rates, generator)
            boxes = draw_boxes(truth.detector.scores(positive, shows, generator), generator)
            counts += (positive.sum(), shows.sum(), write_label_files(labels, refs, *boxes.texts()))
    files = [name]
    if shown:
        content = pd.concat(shown, ignore_index=True)
        counts[1] = content.loc[content["kind"] == VEHICLE, "image_ref"].nunique()
        files.append(write_csv(study, content, f"{SHOWN_FOLDER}/{shard.name}.csv"))
    ledger = Ledger("simulate", images + repeated)
    ledger.note("rows that repeat an earlier one", repeated)
    return Output(
        files=tuple(files),
        rows_in=images + repeated,
        rows_out=images + repeated,
        ledger=(ledger.close(images + repeated),),
        facts=dict(zip(("positive", "shows_police", "label_files"), counts.tolist(), strict=True)),
    )


SIMULATE_DAYS = Stage(
    "simulate", unit="rows", folders=(METADATA_FOLDER, SHOWN_FOLDER), plan=plan_days, process=process_day
)


def plan_labeled(study: Study) -> list[Shard]:
    """Plan one shard per labeled set of rendered scenes."""
    arguments = read_arguments(study)
    city = study.records(SIMULATE_CITY.name)["city"].content
    sizes = {"validation": arguments.validation_images, "test": arguments.test_images}
    return [
        Shard(name, {"images": images, "scenes": SCENES_VERSION}, size=images, made_from=city)
        for name, images in sizes.items()
        if images
    ]


def process_labeled(study: Study, shard: Shard) -> Output:
    """Render a labeled set and write the scores of the shipped detector."""
    arguments, truth = read_arguments(study), load_truth(study, str(shard.made_from))
    images = draw_labeled(truth.streets, arguments, shard.work["images"], shard.name, study.settings.city.clock)
    generator = stream(arguments.seed, f"detections of the {shard.name} set")
    shows = generator.random(len(images.ride)) < truth.rates_at(images.locations)
    scores = score_scenes(study, shard.name, shows, arguments.seed)
    file = write_csv(study, labeled_table(images, shows, scores), f"source/{shard.name}.csv")
    ledger = Ledger("simulate_labeled", len(shows))
    return Output((file,), len(shows), len(shows), (ledger.close(len(shows)),), {"positive": int(shows.sum())})


SIMULATE_LABELED = Stage("simulate_labeled", unit="images", folders=(), plan=plan_labeled, process=process_labeled)


def plan_shown(study: Study) -> list[Shard]:
    """Plan one shard, which depends on all days."""
    days = sorted(record.content for record in study.records(SIMULATE_DAYS.name).values())
    return [Shard("shown", {"days": days})]


def process_shown(study: Study, _shard: Shard) -> Output:
    """Combine the content of all rendered images into one file of images and one of boxes."""
    days = sorted(study.records(SIMULATE_DAYS.name))
    content = pd.concat([pd.read_csv(study.path(SHOWN_FOLDER, f"{day}.csv")) for day in days], ignore_index=True)
    shows = (content["kind"] == VEHICLE).groupby(content["image_ref"], sort=False).any()
    images = shows.astype("int8").rename("ground_truth").reset_index()
    boxes = content.dropna(subset=["kind"]).astype({"kind": "int64"})
    files = (write_csv(study, images, IMAGES_SHOWN_FILE), write_csv(study, boxes, BOXES_SHOWN_FILE))
    return Output(files, len(images), len(images), (Ledger("simulate_shown", len(images)).close(len(images)),))


SIMULATE_SHOWN = Stage(
    "simulate_shown", unit="studies", folders=(SCENES_FOLDER,), plan=plan_shown, process=process_shown
)
