"""Images of the study by score, read from the image store, with the boxes of the detector.

A reader chooses only a range of scores and a page of it. The study's tables determine which files are read, and every
file is looked up in the image index first.
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

PAGE_IMAGES = 12  # images per page of the gallery
RANGE_IMAGES = 96  # sampled images per range of scores
SAMPLED_FILES = 400  # files of detections that the gallery samples; more would only take longer
LISTED_IMAGES = 200  # unprocessed images in the table
BANDS = tuple((low / 20, (low + 1) / 20) for low in range(19, -1, -1))
WIDTH_PX = 360
FAINT = 0.1  # boxes with a lower score are omitted, except for the best one: there can be dozens
_BOX_COLOR, _TEXT_COLOR = (207, 111, 20), (255, 255, 255)
_BOXES = ["box_x1", "box_y1", "box_x2", "box_y2", "box_score", "box_class"]
_INDEX = ["image_id", "source", "path", "member", "offset", "bytes", "version"]


@dataclass(frozen=True)
class SampledRow:
    """Row of the detections in the gallery: shard, file, row number, and score."""

    shard: str
    file: str
    row: int
    score: float


@dataclass(frozen=True)
class Gallery:
    """Sample of a study's detections.

    Attributes
    ----------
    statuses : dict of str to int
        Images by status, over all detections.
    bands : tuple of tuple of SampledRow
        Sample per range of `BANDS`, highest score first. It depends only on the files.
    sampled_files, files : int
        Files of detections in the sample, and all files.
    unprocessed : DataFrame
        image_id and status of the first unprocessed images.
    """

    study: Study
    statuses: dict[str, int]
    bands: tuple[tuple[SampledRow, ...], ...]
    sampled_files: int
    files: int
    unprocessed: pd.DataFrame


@lru_cache(maxsize=2)
def load_gallery(study: Study) -> Gallery:
    """Sample the detections of the study's detector.

    Raises
    ------
    StageNotRunError
        If the study has no image index, or no detections of its own images.
    """
    if study.settings.images.weights is None:
        raise StageNotRunError("images.weights is not set; expected the weights of a detector; add it to study.yaml")
    records = list(study.records(stage_name(study)).values())
    if not records:
        raise StageNotRunError("the detector has not processed an image; run `patrolscope detect`")
    chosen = records[:: -(-len(records) // SAMPLED_FILES)]
    samples: list[list[tuple[int, SampledRow]]] = [[] for _ in BANDS]
    unprocessed: list[pd.DataFrame] = []
    for record in chosen:
        for file in record.files:
            rows = study.read(file, columns=["image_id", "status", "score"])
            if sum(map(len, unprocessed)) < LISTED_IMAGES:
                unprocessed.append(rows.loc[rows["status"] != "scored", ["image_id", "status"]])
            _add(samples, rows["score"].to_numpy(dtype=np.float64), record, file)
    bands = tuple(
        tuple(sorted((row for _, row in band), key=lambda row: (-row.score, row.file, row.row))) for band in samples
    )
    none = pd.DataFrame({"image_id": [], "status": []}, dtype="str")
    listed = pd.concat([none, *unprocessed], ignore_index=True).head(LISTED_IMAGES)
    return Gallery(study, _statuses(records), bands, len(chosen), len(records), listed)


def _statuses(records: Sequence[Record]) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for record in records:
        counted.update(record.facts.get("statuses", {}))
    return dict(counted.most_common())


def _add(
    samples: list[list[tuple[int, SampledRow]]], scores: npt.NDArray[np.float64], record: Record, file: str
) -> None:
    """Add a file to the samples, which keep the images whose row numbers have the lowest digests."""
    rows = np.flatnonzero(~np.isnan(scores))
    digests = pd.util.hash_array(rows.astype(np.uint64) + (int(record.fingerprint[:12], 16) << 8))
    for row, digest in zip(rows, digests, strict=True):
        band = len(BANDS) - 1 - min(len(BANDS) - 1, int(scores[row] * len(BANDS)))
        samples[band].append((int(digest), SampledRow(record.shard, file, int(row), float(scores[row]))))
    for sample in samples:
        sample.sort(key=lambda item: item[0])
        del sample[RANGE_IMAGES:]


# Reading.


@dataclass(frozen=True)
class GalleryImage:
    """Image with its score. If it cannot be read, `jpeg` is None and `why` gives the reason."""

    image_id: str
    score: float
    boxes: int
    jpeg: bytes | None
    why: str = ""

    def html(self) -> Markup:
        """Render the image with its score."""
        if self.jpeg is None:
            picture = Markup('<div class="gone">{}</div>').format(self.why)
        else:
            address = f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"
            alt = f"Image with {self.boxes} {'box' if self.boxes == 1 else 'boxes'}, best score {self.score:.3f}"
            picture = Markup('<img src="{}" alt="{}" loading="lazy">').format(address, alt)
        caption = Markup("<figcaption><b>{:.3f}</b> {}</figcaption>").format(
            self.score, self.image_id.rsplit("/", 1)[-1]
        )
        return Markup("<figure>{}{}</figure>").format(picture, caption)


def load_page(gallery: Gallery, band: int, start: int = 0) -> list[GalleryImage]:
    """Read at most `PAGE_IMAGES` images of a range of scores.

    Parameters
    ----------
    gallery : Gallery
        Sample of the detections.
    band : int
        Index into `BANDS`.
    start : int
        Index of the first image in the sample of the range.

    Raises
    ------
    SourceError
        If an image store cannot be read.
    """
    wanted = gallery.bands[band][max(0, start) :][:PAGE_IMAGES]
    rows: dict[tuple[str, int], dict[Any, Any]] = {}
    for file in {one.file for one in wanted}:
        numbers = [one.row for one in wanted if one.file == file]
        detections = gallery.study.read(file, columns=["image_id", *_BOXES]).iloc[numbers]
        rows |= {(file, row): dict(values) for row, values in zip(numbers, detections.to_dict("records"), strict=True)}
    ids = {one: str(rows[one.file, one.row]["image_id"]) for one in wanted}
    contents = read_images(gallery.study, {ids[one]: one.shard for one in wanted})
    return [_gallery_image(gallery.study, one, rows[one.file, one.row], contents.get(ids[one])) for one in wanted]


def read_images(study: Study, shards: dict[str, str]) -> dict[str, bytes]:
    """Read images of the study's image index.

    Parameters
    ----------
    study : Study
        Study with an image index.
    shards : dict of str to str
        Shard of the index by image_id.

    Returns
    -------
    dict of str to bytes
        Content by image_id, without images that are missing in the index or in the store.

    Raises
    ------
    SourceError
        If the index names a path outside its image store, or a store cannot be read.
    """
    files = {shard: file for shard, _, _, file in indexed_shards(study)}
    contents: dict[str, bytes] = {}
    for shard in sorted(set(shards.values()) & files.keys()):
        wanted = [image for image, its_shard in shards.items() if its_shard == shard]
        only = [("shard", "==", shard), ("image_id", "in", wanted)]
        index = study.read(files[shard], columns=_INDEX, filters=only).reset_index(drop=True)
        for source, path in index[["source", "path"]].itertuples(index=False, name=None):
            if source not in study.settings.images.sources or not _is_below(path):
                raise SourceError(
                    f"image index: {path!r} is not below its image store; expected a relative path; "
                    "run `patrolscope index`"
                )
        stores = {source: ImageStore.of(study, source) for source in index["source"].unique()}
        read = image_reader(index, stores)
        for row, image in enumerate(index["image_id"]):
            content = read(row)
            if content is not None:
                contents[image] = content
    return contents


def _is_below(path: str) -> bool:
    """Return whether a relative path stays inside its base folder."""
    return path == posixpath.normpath(path) and not path.startswith(("/", "..")) and "\\" not in path


def _gallery_image(study: Study, one: SampledRow, row: dict[Any, Any], content: bytes | None) -> GalleryImage:
    boxes = np.column_stack([np.asarray(row[name], dtype=np.float64) for name in _BOXES])
    image_id = str(row["image_id"])
    if content is None:
        return GalleryImage(image_id, one.score, len(boxes), None, "deleted after indexing")
    jpeg = thumbnail(content, boxes, max_pixels=int(study.settings.images.max_megapixels * 1e6))
    return GalleryImage(image_id, one.score, len(boxes), jpeg, "" if jpeg else "unreadable")


def thumbnail(content: bytes, boxes: npt.NDArray[np.float64], *, max_pixels: int) -> bytes | None:
    """Draw a small JPEG of an image with its boxes.

    Parameters
    ----------
    content : bytes
        Content of the image file.
    boxes : ndarray of float64, shape (n_boxes, 6)
        x1, y1, x2, y2 in pixels of the upright image, score, class.
    max_pixels : int
        Larger images are not decoded.

    Returns
    -------
    bytes or None
        JPEG; None if the image cannot be decoded or is too large.
    """
    # Pillow decodes plain JPEGs directly at a reduced size.
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
    visible = boxes[(boxes[:, 4] >= FAINT) | (np.arange(len(boxes)) == 0)]
    for x1, y1, x2, y2, score, _ in visible[::-1] * [gain, gain, gain, gain, 1, 1]:
        draw.rectangle([x1 - 1, y1 - 1, max(x1, x2) + 1, max(y1, y2) + 1], outline=_BOX_COLOR, width=2)
        label = f"{score:.2f}"
        top = max(0.0, y1 - 14)
        draw.rectangle([x1 - 1, top, x1 + draw.textlength(label) + 5, top + 13], fill=_BOX_COLOR)
        draw.text((x1 + 2, top + 1), label, _TEXT_COLOR)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()
