"""Labeled sets of a simulated study, for validation and testing."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.arguments import Arguments, day_plan
from patrolscope.pipeline.simulation.rides import LocalDay, Rides, apportion, blocks, draw_rides, ride_lengths
from patrolscope.pipeline.simulation.road_network import Streets
from patrolscope.pipeline.simulation.truth import Truth

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

IMAGES_PER_LABELED = 20  # one image of this many is labeled, about 10 per ride


def draw_labeled(streets: Streets, arguments: Arguments, count: int, name: str, clock: ZoneInfo) -> Rides:
    """Draw single images of separate rides on the days of the study.

    Parameters
    ----------
    streets : Streets
        Street network of the city.
    arguments : Arguments
        Arguments of the study.
    count : int
        Number of images.
    name : str
        Name of the set, which selects its random streams.
    clock : ZoneInfo
        Time zone of the city.
    """
    days = day_plan(arguments)
    per_day = apportion(count, np.array([plan.images for plan in days], dtype=np.float64))
    parts = []
    for plan, images in zip(days, per_day.tolist(), strict=True):
        if not images:
            continue
        generator = stream(arguments.seed, f"rides of the {name} set", plan.day.toordinal())
        left = images
        for lengths in blocks(ride_lengths(images * IMAGES_PER_LABELED, generator)):
            rides = draw_rides(streets, lengths, LocalDay.of(plan.day, clock), generator)
            # Proportional to the images of each block; the last block takes the remainder.
            take = min(left, -(-len(rides.ride) // IMAGES_PER_LABELED))
            left -= take
            parts.append(rides.rows(np.sort(generator.choice(len(rides.ride), take, replace=False))))
    return Rides.together(parts)


def labeled_table(images: Rides, shows: Flags, scores: Floats) -> pd.DataFrame:
    """Return a labeled set in the published format.

    Parameters
    ----------
    images : Rides
        n images.
    shows : ndarray of bool, shape (n,)
        Whether the image shows a police vehicle.
    scores : ndarray of float64, shape (n,)
        Score of the detector, NaN without a box.
    """
    return pd.DataFrame(
        {
            "ground_truth": shows.astype(np.int8),
            "Model_predicted_score": scores,
            "lat": images.locations[:, 1],
            "lng": images.locations[:, 0],
            "timestamp": images.captured_ms,
        }
    )


def simulated_sets(truth: Truth, images: Rides, arguments: Arguments, clock: ZoneInfo) -> dict[str, pd.DataFrame]:
    """Return the validation set and, if requested, the test set of a simulated detector.

    Parameters
    ----------
    truth : Truth
        Truth with a simulated detector.
    images : Rides
        Images of the validation set.
    arguments : Arguments
        Arguments of the study.
    clock : ZoneInfo
        Time zone of the city.
    """
    detector = truth.detector
    if detector is None:
        return {}
    generator = stream(arguments.seed, "detections of the validation set")
    positive, shows = detector.detect_exactly(truth.rates_at(images.locations), generator)
    sets = {"validation": labeled_table(images, shows, detector.scores(positive, shows, generator))}
    if arguments.test_images:
        images = draw_labeled(truth.streets, arguments, arguments.test_images, "test", clock)
        generator = stream(arguments.seed, "detections of the test set")
        positive, shows = detector.detect(truth.rates_at(images.locations), generator)
        sets["test"] = labeled_table(images, shows, detector.scores(positive, shows, generator))
    return sets
