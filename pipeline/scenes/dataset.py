"""A folder of rendered scenes for training: images/, labels/, classes.txt and splits.csv, as YOLO text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.scenes.photograph import label_text, photograph
from pipeline.scenes.scene import CLASS_NAMES

_RIDE_IMAGES = 10
_WITHOUT_POLICE = 3  # one in so many shows no police vehicle: there is more to learn from the others
_SPLITS = ("train",) * 8 + ("validation", "test")


def write_scenes(out: Path, *, images: int, seed: int) -> Iterator[int]:
    """Write a folder, image by image; yields how many there are.

    Raises
    ------
    SettingsError : the folder is not empty
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder: name a new one")
    rides: list[str] = []
    for number in range(images):
        ride = f"{number // _RIDE_IMAGES:05d}"
        key = f"{ride}/{number % _RIDE_IMAGES:03d}"
        if not rides or rides[-1] != ride:
            rides.append(ride)
            (out / "images" / ride).mkdir(parents=True)
            (out / "labels" / ride).mkdir(parents=True)
        taken = photograph(seed, key, police=number % _WITHOUT_POLICE != 0)
        (out / "images" / f"{key}.jpg").write_bytes(taken.jpeg)
        (out / "labels" / f"{key}.txt").write_text(label_text(taken.boxes))
        yield number + 1
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    lines = [f"{ride},{_SPLITS[number % len(_SPLITS)]}\n" for number, ride in enumerate(rides)]
    (out / "splits.csv").write_text("ride,split\n" + "".join(lines))
