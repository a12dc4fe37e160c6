"""A sheet of rendered scenes with true boxes and found ones, and the stage that draws it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from patrolscope.analysis.stages.street_scenes import SceneResult, quality_on_scenes, seen_by_detector
from patrolscope.pipeline.detect.stages import stage_name
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.simulation.files import IMAGES_SHOWN_FILE
from patrolscope.pipeline.simulation.scene_images import IMAGES_FOLDER
from patrolscope.pipeline.simulation.scenes.scene import CLASS_NAMES
from patrolscope.pipeline.simulation.stages import SIMULATE_SHOWN
from patrolscope.pipeline.study.store import Output, Study, fingerprint

FILE = "figures/streets.png"
_COLUMNS, _ROWS = 3, 4
_CELL = (560, 315)  # pixels of a scene on the sheet
_LABEL = 17  # height of a label
_MARGIN, _TOP, _BOTTOM = 12, 66, 30
_TRUE, _FOUND, _INK, _PAPER = (46, 204, 113), (255, 176, 32), (27, 31, 36), (255, 255, 255)

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def draw_sheet(study: Study, seen: Sequence[SceneResult]) -> Image.Image:
    """The best finds, what was missed and what was taken for police, a dozen scenes in all."""
    threshold = study.settings.estimate.threshold
    size = (
        _COLUMNS * _CELL[0] + (_COLUMNS + 1) * _MARGIN,
        _TOP + _ROWS * (_CELL[1] + _MARGIN) + _BOTTOM,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), "What the detector finds in rendered street scenes", _INK, ImageFont.load_default(24))
    told = f"true boxes thin and green, found ones orange with their score (from 0.1 on); threshold {threshold:g}"
    draw.text((_MARGIN, 40), told, _INK, ImageFont.load_default(15))
    for place, one in enumerate(_chosen(seen, threshold)):
        column, row = place % _COLUMNS, place // _COLUMNS
        at = (_MARGIN + column * (_CELL[0] + _MARGIN), _TOP + row * (_CELL[1] + _MARGIN))
        sheet.paste(_scene(study, one, threshold), at)
    notice = "Rendered scenes: no photographs, no real places, no findings."
    draw.text((_MARGIN, size[1] - _BOTTOM + 4), notice, _INK, ImageFont.load_default(15))
    return sheet


def _chosen(seen: Sequence[SceneResult], threshold: float) -> list[SceneResult]:
    """Half of them found, then missed ones and false ones as far as there are, the rest without police."""
    by_score = sorted(seen, key=lambda one: (-one.score, one.image_ref))
    right = [one for one in by_score if one.shows_police and one.score > threshold]
    missed = [one for one in by_score if one.shows_police and one.score <= threshold]
    false = [one for one in by_score if not one.shows_police and one.score > threshold]
    quiet = [one for one in reversed(by_score) if not one.shows_police and one.score <= threshold]
    step = max(1, len(right) // 6)
    chosen = [*right[::step][:6], *missed[:2], *false[:2]]
    rest = [one for one in (*quiet, *right) if one not in chosen]
    return [*chosen, *rest][: _COLUMNS * _ROWS]


def _scene(study: Study, one: SceneResult, threshold: float) -> Image.Image:
    stored = Image.open(io.BytesIO(study.read_bytes(IMAGES_FOLDER, one.image_ref)))
    gain, picture = _CELL[0] / stored.width, stored.resize(_CELL)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for _, *edges in one.shown.tolist():
        draw.rectangle([edge * gain for edge in edges], outline=_TRUE, width=1)
    labels: list[_Box] = []
    for x1, y1, x2, y2, score, kind in sorted(one.found.tolist(), key=lambda found: -found[4]):
        if score < 0.1:
            continue
        box = (x1 * gain - 2, y1 * gain - 2, x2 * gain + 2, y2 * gain + 2)
        draw.rectangle(box, outline=_FOUND, width=2)
        label = f"{CLASS_NAMES[int(kind)].removeprefix('police ')} {score:.2f}"
        labels.append(_free_place(box, draw.textlength(label, font) + 6, labels))
        draw.rectangle(labels[-1], fill=_FOUND)
        draw.text((labels[-1][0] + 3, labels[-1][1]), label, _INK, font)
    if one.shows_police != (one.score > threshold):
        word = "missed" if one.shows_police else "taken for police"
        draw.rectangle([0, 0, draw.textlength(word, font) + 12, 20], fill=(200, 40, 40))
        draw.text((6, 2), word, (255, 255, 255), font)
    return picture


def _free_place(box: _Box, width: float, taken: Sequence[_Box]) -> _Box:
    """Where a label of a box hides no other: above it, else below it, else in the next free line further down."""
    left = max(0.0, min(box[0], _CELL[0] - width))
    lowest = _CELL[1] - _LABEL
    for top in (box[1] - _LABEL, *(box[3] + line * _LABEL for line in range(_CELL[1] // _LABEL))):
        place = (left, max(0.0, min(top, lowest)), left + width, max(0.0, min(top, lowest)) + _LABEL)
        if not any(_overlap(place, other) for other in taken):
            return place
    return place


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def plan_streets(study: Study) -> list[Shard]:
    """One shard, made from what was found and what is shown; none where the images are not rendered."""
    if not study.exists(IMAGES_SHOWN_FILE):
        return []
    found = sorted(record.fingerprint for record in study.records(stage_name(study)).values())
    shown = sorted(record.fingerprint for record in study.records(SIMULATE_SHOWN.name).values())
    return [Shard("streets", {"threshold": study.settings.estimate.threshold}, made_from=fingerprint(found, shown))]


def process_streets(study: Study, _shard: Shard) -> Output:
    """Write the sheet; its record holds the detector's quality."""
    seen = seen_by_detector(study)
    file = io.BytesIO()
    draw_sheet(study, seen).save(file, "PNG", optimize=True)
    found = quality_on_scenes(seen)
    facts: dict[str, object] = {name: None if value is None else round(value, 3) for name, value in found.items()}
    written = study.write_bytes(file.getvalue(), FILE)
    return Output((written,), len(seen), len(seen), (), {"images": len(seen), **facts})


STREETS = Stage("streets", unit="sheets", folders=(), plan=plan_streets, process=process_streets)
