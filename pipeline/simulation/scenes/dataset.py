"""Training data of rendered scenes: images/, labels/ (YOLO text), classes.txt, and splits.csv."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.simulation.scenes.photograph import label_text, photograph
from patrolscope.pipeline.simulation.scenes.scene import CLASS_NAMES

_RIDE_IMAGES = 10
_WITHOUT_POLICE = 3  # one image of this many shows no police vehicle
_SPLITS = ("train",) * 8 + ("validation", "test")


def write_scenes(out: Path, *, images: int, seed: int) -> Iterator[int]:
    """Write a folder on all cores, one ride at a time; yield the number of images so far.

    Parameters
    ----------
    out : Path
        New or empty folder.
    images : int
        Number of images.
    seed : int
        Seed of the scenes.

    Raises
    ------
    SettingsError
        If the folder is not empty or cannot be created.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; choose a new folder")
    try:
        (out / "images").mkdir(parents=True)
    except OSError as error:
        raise SettingsError(f"cannot create folder {out} ({error.strerror}); choose a different folder") from None
    firsts = range(0, images, _RIDE_IMAGES)
    written = 0
    # A scene depends only on its seed and key, not on the process that renders it.
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
            pool.shutdown(cancel_futures=True)  # do not wait for the remaining rides when stopped
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    lines = [f"{_ride(first)},{_SPLITS[number % len(_SPLITS)]}\n" for number, first in enumerate(firsts)]
    (out / "splits.csv").write_text("ride,split\n" + "".join(lines))


def _ride(number: int) -> str:
    """Return the name of the ride of an image."""
    return f"{number // _RIDE_IMAGES:05d}"


def _write_ride(out: Path, numbers: range, seed: int) -> int:
    """Write images and labels of one ride; return the number of images."""
    ride = _ride(numbers[0])
    for folder in ("images", "labels"):
        (out / folder / ride).mkdir(parents=True)
    for number in numbers:
        key = f"{ride}/{number % _RIDE_IMAGES:03d}"
        photo = photograph(seed, key, police=number % _WITHOUT_POLICE != 0)
        (out / "images" / f"{key}.jpg").write_bytes(photo.jpeg)
        (out / "labels" / f"{key}.txt").write_text(label_text(photo.boxes))
    return len(numbers)
