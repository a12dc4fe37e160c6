"""A folder of rendered scenes for training: images/, labels/, classes.txt and splits.csv, as YOLO text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.simulation.scenes.photograph import label_text, photograph
from patrolscope.pipeline.simulation.scenes.scene import CLASS_NAMES

_RIDE_IMAGES = 10
_WITHOUT_POLICE = 3  # one in so many shows no police vehicle: there is more to learn from the others
_SPLITS = ("train",) * 8 + ("validation", "test")


def write_scenes(out: Path, *, images: int, seed: int) -> Iterator[int]:
    """Write a folder on all cores, ride by ride; yields how many images there are.

    Raises
    ------
    SettingsError : the folder is not empty, or can not be made
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder: name a new one")
    try:
        (out / "images").mkdir(parents=True)
    except OSError as error:
        raise SettingsError(f"{out} can not be made ({error.strerror}): name a folder where you may write") from None
    firsts = range(0, images, _RIDE_IMAGES)
    written = 0
    # A scene follows from its seed and key, whichever process renders it.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        rides = [
            pool.submit(_write_ride, out, range(first, min(first + _RIDE_IMAGES, images)), seed) for first in firsts
        ]
        try:
            for ride in rides:
                for _ in range(ride.result()):
                    written += 1
                    yield written
        finally:
            pool.shutdown(cancel_futures=True)  # who stops it does not wait for the rest
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    lines = [f"{_ride(first)},{_SPLITS[number % len(_SPLITS)]}\n" for number, first in enumerate(firsts)]
    (out / "splits.csv").write_text("ride,split\n" + "".join(lines))


def _ride(number: int) -> str:
    """Name of the ride that an image belongs to."""
    return f"{number // _RIDE_IMAGES:05d}"


def _write_ride(out: Path, numbers: range, seed: int) -> int:
    """Images and labels of one ride; how many they are."""
    ride = _ride(numbers[0])
    for folder in ("images", "labels"):
        (out / folder / ride).mkdir(parents=True)
    for number in numbers:
        key = f"{ride}/{number % _RIDE_IMAGES:03d}"
        taken = photograph(seed, key, police=number % _WITHOUT_POLICE != 0)
        (out / "images" / f"{key}.jpg").write_bytes(taken.jpeg)
        (out / "labels" / f"{key}.txt").write_text(label_text(taken.boxes))
    return len(numbers)
