"""Images of the study by score, with the boxes that the detector drew: read from the image store, made small here.

A reader chooses a range of scores and a page of it, nothing else: which files are opened stands in the study's own
tables, and each is looked up in its image index before it is read.
"""

from __future__ import annotations

import base64
import io
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from PIL import Image, ImageDraw

from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.image_store import ImageStore, image_reader
from patrolscope.pipeline.detect.stages import indexed_shards, stage_name
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.study.store import Record, Study

AT_ONCE = 12  # images of a page of the gallery
EACH = 96  # images kept of a range of scores
FILES = 400  # of detections that are looked through; more of them only make it slower
LISTED = 200  # images that could not be looked at, in the table
BANDS = tuple((low / 20, (low + 1) / 20) for low in range(19, -1, -1))
WIDTH_PX = 360
FAINT = 0.1  # boxes of a lower score are not drawn, but for the best one: there can be dozens
_FOUND, _INK = (207, 111, 20), (255, 255, 255)
_BOXES = ["box_x1", "box_y1", "box_x2", "box_y2", "box_score", "box_class"]
_INDEX = ["image_id", "source", "path", "member", "offset", "bytes", "version"]


@dataclass(frozen=True)
class Found:
    """An image of the gallery: where its row stands, and its score."""

    shard: str
    file: str
    row: int
    score: float


@dataclass(frozen=True)
class Gallery:
    """What the detections of a study hold.

    Attributes
    ----------
    statuses : images by status, of all detections
    bands : of each range of scores in `BANDS` a sample that depends on nothing but the files, the best first
    looked_at, files : files of detections that the sample is from, and all
    refused : image_id and status of images that could not be looked at, the first ones
    """

    study: Study
    statuses: dict[str, int]
    bands: tuple[tuple[Found, ...], ...]
    looked_at: int
    files: int
    refused: pd.DataFrame


@lru_cache(maxsize=2)
def load_gallery(study: Study) -> Gallery:
    """The gallery of the detections that study.yaml asks for.

    Raises
    ------
    StageNotRunError : the study has no image index, or no detections of its own images
    """
    if study.settings.images.weights is None:
        raise StageNotRunError("the study names no detector")
    records = list(study.records(stage_name(study)).values())
    if not records:
        raise StageNotRunError("no image has been run through the detector")
    chosen = records[:: -(-len(records) // FILES)]
    kept: list[list[tuple[int, Found]]] = [[] for _ in BANDS]
    refused: list[pd.DataFrame] = []
    for record in chosen:
        for file in record.files:
            rows = study.read(file, columns=["image_id", "status", "score"])
            if sum(map(len, refused)) < LISTED:
                refused.append(rows.loc[rows["status"] != "scored", ["image_id", "status"]])
            _add(kept, rows["score"].to_numpy(dtype=np.float64), record, file)
    bands = tuple(
        tuple(sorted((found for _, found in band), key=lambda one: (-one.score, one.file, one.row))) for band in kept
    )
    listed = pd.concat([pd.DataFrame({"image_id": [], "status": []}, dtype="str"), *refused], ignore_index=True)
    return Gallery(study, _statuses(records), bands, len(chosen), len(records), listed.head(LISTED))


def _statuses(records: Sequence[Record]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for record in records:
        counted.update(record.facts.get("statuses", {}))
    return dict(counted.most_common())


def _add(kept: list[list[tuple[int, Found]]], scores: npt.NDArray[np.float64], record: Record, file: str) -> None:
    """Keep of every range the images with the lowest digest of their place."""
    places = np.flatnonzero(~np.isnan(scores))
    digests = pd.util.hash_array(places.astype(np.uint64) + (int(record.fingerprint[:12], 16) << 8))
    for place, digest in zip(places, digests, strict=True):
        band = len(BANDS) - 1 - min(len(BANDS) - 1, int(scores[place] * len(BANDS)))
        kept[band].append((int(digest), Found(record.shard, file, int(place), float(scores[place]))))
    for sample in kept:
        sample.sort(key=lambda one: one[0])
        del sample[EACH:]


# Reading.


@dataclass(frozen=True)
class Shown:
    """An image as a page shows it; `jpeg` is missing where it can not be read any more, and `why` says so."""

    image_id: str
    score: float
    boxes: int
    jpeg: bytes | None
    why: str = ""

    def html(self) -> Markup:
        """The image with its score, escaped."""
        if self.jpeg is None:
            picture = Markup('<div class="gone">{}</div>').format(self.why)
        else:
            address = f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"
            alt = f"Image with {self.boxes} {'box' if self.boxes == 1 else 'boxes'}, best score {self.score:.3f}"
            picture = Markup('<img src="{}" alt="{}" loading="lazy">').format(address, alt)
        said = Markup("<figcaption><b>{:.3f}</b> {}</figcaption>").format(self.score, self.image_id.rsplit("/", 1)[-1])
        return Markup("<figure>{}{}</figure>").format(picture, said)


def show(gallery: Gallery, band: int, start: int = 0) -> list[Shown]:
    """At most `AT_ONCE` images of a range of scores, from number `start` on.

    Raises
    ------
    SourceError : an image store can not be read
    """
    wanted = gallery.bands[band][max(0, start) :][:AT_ONCE]
    rows: dict[tuple[str, int], dict[Any, Any]] = {}
    for file in {one.file for one in wanted}:
        mine = [one.row for one in wanted if one.file == file]
        found = gallery.study.read(file, columns=["image_id", *_BOXES]).iloc[mine]
        rows |= {(file, row): dict(values) for row, values in zip(mine, found.to_dict("records"), strict=True)}
    ids = {one: str(rows[one.file, one.row]["image_id"]) for one in wanted}
    contents = read_images(gallery.study, {ids[one]: one.shard for one in wanted})
    return [_shown(gallery.study, one, rows[one.file, one.row], contents.get(ids[one])) for one in wanted]


def read_images(study: Study, shards: dict[str, str]) -> dict[str, bytes]:
    """Contents of images of the study's image index, by image_id.

    Parameters
    ----------
    shards : image_id -> shard of the index that holds it. What does not stand there is not read, nor is what has gone

    Raises
    ------
    SourceError : the index names a path outside its store, a store can not be read
    """
    files = {shard: file for shard, _, _, file in indexed_shards(study)}
    contents: dict[str, bytes] = {}
    for shard in sorted(set(shards.values()) & files.keys()):
        wanted = [image for image, mine in shards.items() if mine == shard]
        only = [("shard", "==", shard), ("image_id", "in", wanted)]
        index = study.read(files[shard], columns=_INDEX, filters=only).reset_index(drop=True)
        for source, path in index[["source", "path"]].itertuples(index=False, name=None):
            if source not in study.settings.images.sources or not _is_below(path):
                raise SourceError(f"the image index names {path!r}, which is not below its image store: index again")
        stores = {source: ImageStore.of(study, source) for source in index["source"].unique()}
        read = image_reader(index, stores)
        for place, image in enumerate(index["image_id"]):
            content = read(place)
            if content is not None:
                contents[image] = content
    return contents


def _is_below(path: str) -> bool:
    """Whether a path stays below the folder that it counts from."""
    return path == posixpath.normpath(path) and not path.startswith(("/", "..")) and "\\" not in path


def _shown(study: Study, one: Found, row: dict[Any, Any], content: bytes | None) -> Shown:
    boxes = np.column_stack([np.asarray(row[name], dtype=np.float64) for name in _BOXES])
    image_id = str(row["image_id"])
    if content is None:
        return Shown(image_id, one.score, len(boxes), None, "gone since it was listed")
    jpeg = thumbnail(content, boxes, max_pixels=int(study.settings.images.max_megapixels * 1e6))
    return Shown(image_id, one.score, len(boxes), jpeg, "" if jpeg else "can not be read any more")


def thumbnail(content: bytes, boxes: npt.NDArray[np.float64], *, max_pixels: int) -> bytes | None:
    """A small JPEG of an image with its boxes; None where it can not be decoded, or is too large.

    Parameters
    ----------
    boxes : (n, 6) x1, y1, x2, y2 in pixels of the upright image, score, class
    """
    # Plain JPEGs are left to Pillow, which decodes them at the size that is needed.
    decoded = decode(content, max_pixels=max_pixels, leave_jpegs=True)
    if decoded.status != "scored" or decoded.width is None or decoded.height is None:
        return None
    if decoded.pixels is not None:
        picture = Image.fromarray(decoded.pixels)
    else:
        try:
            picture = Image.open(io.BytesIO(content), formats=["JPEG"])
            picture.draft("RGB", (2 * WIDTH_PX, 2 * WIDTH_PX))
            picture = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
    gain = WIDTH_PX / decoded.width
    picture = picture.resize((WIDTH_PX, max(1, round(decoded.height * gain))), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    clear = boxes[(boxes[:, 4] >= FAINT) | (np.arange(len(boxes)) == 0)]
    for x1, y1, x2, y2, score, _ in clear[::-1] * [gain, gain, gain, gain, 1, 1]:
        draw.rectangle([x1 - 1, y1 - 1, max(x1, x2) + 1, max(y1, y2) + 1], outline=_FOUND, width=2)
        label = f"{score:.2f}"
        top = max(0.0, y1 - 14)
        draw.rectangle([x1 - 1, top, x1 + draw.textlength(label) + 5, top + 13], fill=_FOUND)
        draw.text((x1 + 2, top + 1), label, _INK)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()
