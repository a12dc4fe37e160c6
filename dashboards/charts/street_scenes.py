"""Sheet of rendered street scenes with true and detected boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from patrolscope.analysis.stages.street_scenes import SceneResult
from patrolscope.pipeline.simulation.scenes.scene import CLASS_NAMES

_COLUMNS, _ROWS = 3, 4
_CELL = (560, 315)  # pixels of a scene on the sheet
_LABEL = 17  # height of a label, pixels
_MARGIN, _TOP, _BOTTOM = 12, 66, 30  # pixels
_LOWEST_SCORE = 0.1  # boxes with lower scores are not drawn
_TRUE, _DETECTED, _INK, _PAPER = (46, 204, 113), (255, 176, 32), (27, 31, 36), (255, 255, 255)

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def choose_scenes(scenes: Sequence[SceneResult], threshold: float) -> list[SceneResult]:
    """Choose twelve scenes: six true positives, two false negatives, two false positives, and true negatives."""
    by_score = sorted(scenes, key=lambda scene: (-scene.score, scene.image_ref))
    hits = [scene for scene in by_score if scene.shows_police and scene.score > threshold]
    missed = [scene for scene in by_score if scene.shows_police and scene.score <= threshold]
    false = [scene for scene in by_score if not scene.shows_police and scene.score > threshold]
    negative = [scene for scene in reversed(by_score) if not scene.shows_police and scene.score <= threshold]
    step = max(1, len(hits) // 6)
    chosen = [*hits[::step][:6], *missed[:2], *false[:2]]
    rest = [scene for scene in (*negative, *hits) if scene not in chosen]
    return [*chosen, *rest][: _COLUMNS * _ROWS]


def draw_sheet(scenes: Sequence[SceneResult], images: Sequence[bytes], threshold: float) -> Image.Image:
    """Draw scenes in a grid, with true boxes, detected boxes, and errors marked.

    Parameters
    ----------
    scenes : sequence of SceneResult
        At most twelve scenes, from `choose_scenes`.
    images : sequence of bytes
        Encoded image of each scene.
    threshold : float
        An image is positive if its score is above this value.
    """
    size = (
        _COLUMNS * _CELL[0] + (_COLUMNS + 1) * _MARGIN,
        _TOP + _ROWS * (_CELL[1] + _MARGIN) + _BOTTOM,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 10), "Detections in rendered street scenes", _INK, ImageFont.load_default(24))
    boxes = f"Thin green: true boxes. Orange: detected boxes with their score, at least {_LOWEST_SCORE}."
    subtitle = f"{boxes} Threshold: {threshold:g}."
    draw.text((_MARGIN, 40), subtitle, _INK, ImageFont.load_default(15))
    for number, (scene, image) in enumerate(zip(scenes, images, strict=True)):
        row, column = divmod(number, _COLUMNS)
        corner = (_MARGIN + column * (_CELL[0] + _MARGIN), _TOP + row * (_CELL[1] + _MARGIN))
        sheet.paste(_draw_scene(scene, image, threshold), corner)
    notice = "Rendered scenes: no photographs, no real locations, no findings."
    draw.text((_MARGIN, size[1] - _BOTTOM + 4), notice, _INK, ImageFont.load_default(15))
    return sheet


def _draw_scene(scene: SceneResult, content: bytes, threshold: float) -> Image.Image:
    stored = Image.open(io.BytesIO(content))
    scale, image = _CELL[0] / stored.width, stored.resize(_CELL)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for _, *edges in scene.shown.tolist():
        draw.rectangle([edge * scale for edge in edges], outline=_TRUE, width=1)
    labels: list[_Box] = []
    for x1, y1, x2, y2, score, kind in sorted(scene.found.tolist(), key=lambda found: -found[4]):
        if score < _LOWEST_SCORE:
            continue
        box = (x1 * scale - 2, y1 * scale - 2, x2 * scale + 2, y2 * scale + 2)
        draw.rectangle(box, outline=_DETECTED, width=2)
        label = f"{CLASS_NAMES[int(kind)].removeprefix('police ')} {score:.2f}"
        labels.append(_free_place(box, draw.textlength(label, font) + 6, labels))
        draw.rectangle(labels[-1], fill=_DETECTED)
        draw.text((labels[-1][0] + 3, labels[-1][1]), label, _INK, font)
    if scene.shows_police != (scene.score > threshold):
        error = "false negative" if scene.shows_police else "false positive"
        draw.rectangle([0, 0, draw.textlength(error, font) + 12, 20], fill=(200, 40, 40))
        draw.text((6, 2), error, (255, 255, 255), font)
    return image


def _free_place(box: _Box, width: float, taken: Sequence[_Box]) -> _Box:
    """Return a place for a box's label that overlaps no other: above the box, else below, else further down."""
    left = max(0.0, min(box[0], _CELL[0] - width))
    lowest = _CELL[1] - _LABEL
    for top in (box[1] - _LABEL, *(box[3] + line * _LABEL for line in range(_CELL[1] // _LABEL))):
        place = (left, max(0.0, min(top, lowest)), left + width, max(0.0, min(top, lowest)) + _LABEL)
        if not any(_overlap(place, other) for other in taken):
            return place
    return place


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
