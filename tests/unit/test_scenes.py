"""Rendered scenes: boxes lie where the vehicles are, a picture follows from seed and key alone."""

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


def bare(number, *, police=True):
    """A scene in whose light nothing has a shadow or a halo: only the thing itself changes pixels."""
    scene = compose(stream(7, f"test {number}"), police=police)
    things = tuple(replace(one, flashing=0) if isinstance(one, Vehicle) else one for one in scene.things)
    return replace(scene, light=replace(scene.light, shadow=0.0, lamps=0.0), things=things)


def changed_pixels(scene, thing):
    """Where the picture differs when a thing is taken away."""
    kept = tuple(one for number, one in enumerate(scene.things) if number != thing)
    before, _ = paint(scene)
    after, _ = paint(replace(scene, things=kept))
    return np.abs(before.astype(int) - after).max(2) > 6


def test_boxes_are_where_taking_the_thing_away_changes_the_picture():
    looked_at = set()
    for number in range(SCENES):
        scene = bare(number)
        for box in paint(scene)[1]:
            rows, columns = np.nonzero(changed_pixels(scene, box.thing))
            found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            size = max(box.x2 - box.x1, box.y2 - box.y1)
            # Paint on a flank stands out a little where the body grows narrower.
            assert np.all(np.array(found[:2]) >= np.array([box.x1, box.y1]) - 3.5)
            assert np.all(np.array(found[2:]) <= np.array([box.x2, box.y2]) + 3.5)
            # A dark thing before a dark house changes little: the change may end before the box does.
            assert found == pytest.approx((box.x1, box.y1, box.x2, box.y2), abs=3.5 + 0.12 * size)
            looked_at.add(box.kind)
    assert looked_at == {OFFICER, VEHICLE}


def test_a_thing_without_a_box_is_hidden_outside_or_tiny():
    without = 0
    for number in range(SCENES):
        scene = bare(number)
        boxed = {box.thing for box in paint(scene)[1]}
        for place, thing in enumerate(scene.things):
            if isinstance(thing, (Vehicle, Person)) and thing.kind is not None and place not in boxed:
                alone = replace(scene, things=(thing,))
                whole = paint(alone)[1]
                rows, _ = np.nonzero(changed_pixels(scene, place))
                if whole:
                    least = min(1.0, LEAST_VISIBLE / whole[0].visible)
                    seen = np.count_nonzero(changed_pixels(alone, 0))
                    assert len(rows) < max(1.25 * least * seen, 30), (number, place)
                without += 1
    assert without > 3


def test_a_box_says_how_much_of_the_thing_is_seen():
    shares = [box.visible for number in range(SCENES) for box in paint(bare(number))[1]]
    assert all(LEAST_VISIBLE <= share <= 1 for share in shares)
    assert min(shares) < 0.6
    assert max(shares) > 0.99


def test_a_picture_follows_from_seed_and_key_alone():
    first = [photograph(3, key).jpeg for key in ("a", "b", "c")]
    assert [photograph(3, key).jpeg for key in ("c", "b", "a")][::-1] == first
    assert len(set(first)) == 3
    assert photograph(4, "a").jpeg != first[0]


@pytest.mark.parametrize("police", [True, False])
def test_a_picture_shows_police_where_it_is_asked_to(police):
    found = [photograph(5, f"{number}", police=police) for number in range(25)]
    assert {one.shows_police for one in found} == {police}


def test_pictures_are_whole_jpegs_by_day_and_by_night():
    pictures = [photograph(6, f"{number}") for number in range(24)]
    brightness = []
    for one in pictures:
        image = Image.open(io.BytesIO(one.jpeg))
        assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
        brightness.append(np.asarray(image).mean())
    assert min(brightness) < 40 < 90 < max(brightness)


def test_what_looks_like_police_and_is_not_has_no_box():
    scenes = [compose(stream(8, f"{number}"), police=False) for number in range(40)]
    vehicles = [thing for scene in scenes for thing in scene.things if isinstance(thing, Vehicle)]
    assert all(thing.kind is None for thing in vehicles)
    white = [thing for thing in vehicles if min(thing.colors["body"]) > 215]
    blue = [thing for thing in vehicles if thing.colors["body"][2] > thing.colors["body"][0] + 50]
    flashing = [thing for thing in vehicles if thing.flashing]
    yellow = [thing for thing in vehicles if thing.colors["body"][0] > thing.colors["body"][2] + 150]
    assert min(len(white), len(blue), len(yellow)) > 20
    assert len(flashing) > 3


def test_labels_are_shares_of_the_picture():
    one = next(taken for taken in (photograph(9, f"{number}", police=True) for number in range(5)) if taken.boxes)
    for line, box in zip(label_text(one.boxes).splitlines(), one.boxes, strict=True):
        kind, x, y, w, h = map(float, line.split())
        assert kind == box.kind
        assert ((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT) == pytest.approx((box.x1, box.y1), abs=1e-3)
        assert (w * WIDTH, h * HEIGHT) == pytest.approx((box.x2 - box.x1, box.y2 - box.y1), abs=1e-3)


def test_a_folder_of_scenes_grows_by_rides_and_is_never_written_over(tmp_path):
    counts = list(write_scenes(tmp_path / "a", images=25, seed=1))
    assert all(after == before + 1 for before, after in pairwise(counts))
    list(write_scenes(tmp_path / "b", images=15, seed=1))
    of = {
        name: {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.jpg")}
        for name in "ab"
    }
    assert of["b"].items() <= of["a"].items(), "a picture does not depend on how many there are"
    assert len(of["a"]) == 25
    with pytest.raises(SettingsError, match="not an empty folder"):
        list(write_scenes(tmp_path / "a", images=10, seed=1))
    with pytest.raises(SettingsError, match=r"can not be made \(Not a directory\)"):
        list(write_scenes(tmp_path / "a" / "classes.txt" / "b", images=10, seed=1))
