"""Rendered scenes: boxes enclose the vehicles, and an image depends only on seed and key."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.scenes.compose import HEIGHT, WIDTH, compose
from patrolscope.pipeline.simulation.scenes.dataset import write_scenes
from patrolscope.pipeline.simulation.scenes.paint import LEAST_VISIBLE, paint
from patrolscope.pipeline.simulation.scenes.photograph import label_text, photograph
from patrolscope.pipeline.simulation.scenes.scene import OFFICER, VEHICLE, Person, Vehicle

SCENES = 40


def plain(number, *, police=True):
    """Return a scene without shadows and halos, so that a thing changes only its own pixels."""
    scene = compose(stream(7, f"test {number}"), police=police)
    things = tuple(replace(thing, flashing=0) if isinstance(thing, Vehicle) else thing for thing in scene.things)
    return replace(scene, light=replace(scene.light, shadow=0.0, lamps=0.0), things=things)


def changed_pixels(scene, thing):
    """Return where the image differs without a thing."""
    kept = tuple(other for number, other in enumerate(scene.things) if number != thing)
    before, _ = paint(scene)
    after, _ = paint(replace(scene, things=kept))
    return np.abs(before.astype(int) - after).max(2) > 6


def test_boxes_enclose_the_pixels_that_change_without_the_object():
    kinds = set()
    for number in range(SCENES):
        scene = plain(number)
        for box in paint(scene)[1]:
            rows, columns = np.nonzero(changed_pixels(scene, box.thing))
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            size = max(box.x2 - box.x1, box.y2 - box.y1)
            # Paint on a side extends slightly beyond the body where the body narrows.
            assert np.all(np.array(found[:2]) >= np.array([box.x1, box.y1]) - 3.5)
            assert np.all(np.array(found[2:]) <= np.array([box.x2, box.y2]) + 3.5)
            # A dark thing in front of a dark house changes few pixels, so the change can end inside the box.
            assert found == pytest.approx((box.x1, box.y1, box.x2, box.y2), abs=3.5 + 0.12 * size)
            kinds.add(box.kind)
    assert kinds == {OFFICER, VEHICLE}


def test_an_object_without_a_box_is_hidden_outside_or_tiny():
    without = 0
    for number in range(SCENES):
        scene = plain(number)
        boxed = {box.thing for box in paint(scene)[1]}
        for position, thing in enumerate(scene.things):
            if isinstance(thing, (Vehicle, Person)) and thing.kind is not None and position not in boxed:
                alone = replace(scene, things=(thing,))
                whole = paint(alone)[1]
                rows, _ = np.nonzero(changed_pixels(scene, position))
                if whole:
                    least = min(1.0, LEAST_VISIBLE / whole[0].visible)
                    seen = np.count_nonzero(changed_pixels(alone, 0))
                    assert len(rows) < max(1.25 * least * seen, 30), (number, position)
                without += 1
    assert without > 3


def test_boxes_have_the_visible_share_of_the_object():
    shares = [box.visible for number in range(SCENES) for box in paint(plain(number))[1]]
    assert all(LEAST_VISIBLE <= share <= 1 for share in shares)
    assert min(shares) < 0.6
    assert max(shares) > 0.99


def test_an_image_depends_only_on_seed_and_key():
    first = [photograph(3, key).jpeg for key in ("a", "b", "c")]
    assert [photograph(3, key).jpeg for key in ("c", "b", "a")][::-1] == first
    assert len(set(first)) == 3
    assert photograph(4, "a").jpeg != first[0]


@pytest.mark.parametrize("police", [True, False])
def test_an_image_shows_police_on_request(police):
    found = [photograph(5, f"{number}", police=police) for number in range(25)]
    assert {photo.shows_police for photo in found} == {police}


def test_images_are_valid_jpegs_by_day_and_by_night():
    photos = [photograph(6, f"{number}") for number in range(24)]
    brightness = []
    for photo in photos:
        image = Image.open(io.BytesIO(photo.jpeg))
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
        brightness.append(np.asarray(image).mean())
    assert min(brightness) < 40 < 90 < max(brightness)


def test_vehicles_that_resemble_police_have_no_box():
    scenes = [compose(stream(8, f"{number}"), police=False) for number in range(40)]
    vehicles = [thing for scene in scenes for thing in scene.things if isinstance(thing, Vehicle)]
    assert all(thing.kind is None for thing in vehicles)
    white = [thing for thing in vehicles if min(thing.colors["body"]) > 215]
    blue = [thing for thing in vehicles if thing.colors["body"][2] > thing.colors["body"][0] + 50]
    flashing = [thing for thing in vehicles if thing.flashing]
    yellow = [thing for thing in vehicles if thing.colors["body"][0] > thing.colors["body"][2] + 150]
    assert min(len(white), len(blue), len(yellow)) > 20
    assert len(flashing) > 3


def test_labels_are_shares_of_the_image():
    photos = (photograph(9, f"{number}", police=True) for number in range(5))
    photo = next(photo for photo in photos if photo.boxes)
    for line, box in zip(label_text(photo.boxes).splitlines(), photo.boxes, strict=True):
        kind, x, y, w, h = map(float, line.split())
        assert kind == box.kind
        assert ((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT) == pytest.approx((box.x1, box.y1), abs=1e-3)
        assert (w * WIDTH, h * HEIGHT) == pytest.approx((box.x2 - box.x1, box.y2 - box.y1), abs=1e-3)


def test_a_folder_of_scenes_does_not_depend_on_its_size_and_is_never_overwritten(tmp_path):
    counts = list(write_scenes(tmp_path / "a", images=25, seed=1))
    assert all(after == before + 1 for before, after in pairwise(counts))
    list(write_scenes(tmp_path / "b", images=15, seed=1))
    files = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.jpg")}
        for name in "ab"
    }
    assert files["b"].items() <= files["a"].items(), "an image does not depend on the number of images"
    assert len(files["a"]) == 25
    with pytest.raises(SettingsError, match="not an empty folder"):
        list(write_scenes(tmp_path / "a", images=10, seed=1))
    with pytest.raises(SettingsError, match=r"cannot create folder .* \(Not a directory\)"):
        list(write_scenes(tmp_path / "a" / "classes.txt" / "b", images=10, seed=1))
