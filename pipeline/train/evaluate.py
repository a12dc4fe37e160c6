"""Quality of a detector on labeled images: average precision of boxes (COCO), AUC and AP of images."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from patrolscope.pipeline.detect.boxes import Letterbox, decode, restore, select
from patrolscope.pipeline.detect.decode import decode as decode_image
from patrolscope.pipeline.detect.detector import Detector
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.train.augment import MAX_PIXELS
from patrolscope.pipeline.train.data import Example

Floats = npt.NDArray[np.float64]

MIN_SCORE, NMS_IOU = 0.001, 0.65  # of the published validation
_BATCH = 16


@dataclass(frozen=True)
class Quality:
    """Average precisions; None where undefined, such as for a class without boxes."""

    ap50: float
    ap: float  # mean over IoU 0.5, 0.55, ... 0.95
    by_class: dict[str, dict[str, float | None]]  # ap50, ap, image_auc, image_ap, boxes

    @property
    def fitness(self) -> float:
        """Criterion for the best epoch, as in the YOLOv7 trainer."""
        return 0.1 * self.ap50 + 0.9 * self.ap

    def as_dict(self) -> dict[str, object]:
        """Return the measures for JSON."""
        return asdict(self)


def detect(
    network: Network, examples: Sequence[Example], size: int, device: torch.device
) -> list[npt.NDArray[np.float32]]:
    """Detect objects with a network in its training form, in single precision.

    Parameters
    ----------
    network : Network
        Network; it is not modified.
    examples : sequence of Example
        Images.
    size : int
        Longer side of the network input, pixels.
    device : torch.device
        Device to run on.

    Returns
    -------
    list of ndarray of float32, shape (k, 6)
        Boxes per image: x1, y1, x2, y2 in pixels of the image, score, class. Empty if the image cannot be decoded.
    """
    fused = copy.deepcopy(network).float().fuse().to(device)
    anchors = torch.as_tensor(fused.head.anchor_grid).reshape(len(fused.strides), -1, 2).float()
    box = Letterbox(size, size, fused.strides[-1])
    found: list[npt.NDArray[np.float32]] = [np.zeros((0, 6), np.float32)] * len(examples)
    for start in range(0, len(examples), _BATCH):
        ready = []
        for number in range(start, min(start + _BATCH, len(examples))):
            pixels = decode_image(examples[number].path.read_bytes(), max_pixels=MAX_PIXELS).pixels
            if pixels is not None:
                ready.append((number, pixels.shape[:2], box.prepare(pixels)))
        ready.sort(key=lambda item: item[2].shape)
        for shape, items in groupby(ready, key=lambda item: item[2].shape):
            group = list(items)
            batch = torch.from_numpy(np.stack([pixels for *_, pixels in group])).to(device).float() / 255
            with torch.inference_mode():
                rows = decode(fused(batch), anchors, fused.strides)
            for (number, (height, width), _), row in zip(group, rows, strict=True):
                chosen = select(row, min_score=MIN_SCORE, nms_iou=NMS_IOU, classes=None).cpu().numpy()
                found[number] = restore(chosen, (shape[1], shape[2]), (int(height), int(width)))
    return found


def detect_with(detector: Detector, examples: Sequence[Example]) -> list[npt.NDArray[np.float32]]:
    """Detect objects with a detector of any kind, loaded with MIN_SCORE and NMS_IOU; returns boxes as `detect` does."""
    found = []
    for example in examples:
        pixels = decode_image(example.path.read_bytes(), max_pixels=MAX_PIXELS).pixels
        if pixels is None:
            found.append(np.zeros((0, 6), np.float32))
        else:
            found += detector.predict(detector.prepare(pixels)[None], [(pixels.shape[0], pixels.shape[1])])
    return found


def quality(
    examples: Sequence[Example], found: Sequence[npt.NDArray[np.float32]], class_names: Sequence[str], sizes: Floats
) -> Quality:
    """Compute average precision of boxes, and AUC and AP of images by their best box per class.

    Parameters
    ----------
    examples : sequence of Example, length n
        Labeled images.
    found : sequence of ndarray, length n
        Detected boxes, as `detect` returns them.
    class_names : sequence of str
        Names of the classes.
    sizes : ndarray of float64, shape (n, 2)
        Width and height of the images, pixels.
    """
    by_class: dict[str, dict[str, float | None]] = {}
    precisions = _precisions(examples, found, len(class_names), sizes)
    for number, name in enumerate(class_names):
        shows, score = image_scores(examples, found, number)
        ap50, ap = precisions[number]
        by_class[name] = {"boxes": float(sum((example.boxes[:, 0] == number).sum() for example in examples))}
        by_class[name] |= {"ap50": ap50, "ap": ap, **image_quality(shows, score)}
    defined = [facts for facts in by_class.values() if facts["ap"] is not None]
    means = [float(np.mean([facts[key] or 0.0 for facts in defined])) if defined else 0.0 for key in ("ap50", "ap")]
    return Quality(means[0], means[1], by_class)


def best_thresholds(
    examples: Sequence[Example], found: Sequence[npt.NDArray[np.float32]], class_names: Sequence[str]
) -> dict[str, float | None]:
    """Choose the score threshold with the best F1 of images, per class.

    Parameters
    ----------
    examples : sequence of Example, length n
        Labeled images.
    found : sequence of ndarray, length n
        Detected boxes, as `detect` returns them.
    class_names : sequence of str
        Names of the classes.

    Returns
    -------
    dict of str to float or None
        Images with a higher score are positive. None if all images, or no image, show the class.
    """
    from sklearn.metrics import precision_recall_curve

    thresholds: dict[str, float | None] = {}
    for number, name in enumerate(class_names):
        shows, score = image_scores(examples, found, number)
        if shows.all() or not shows.any():
            thresholds[name] = None
            continue
        precision, recall, scores = precision_recall_curve(shows, score)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        # In the curve a score equal to the threshold is positive; here it must exceed it. Use the midpoint below.
        best = int(f1[:-1].argmax())
        lower = scores[best - 1] if best else 0.0
        thresholds[name] = float((scores[best] + lower) / 2)
    return thresholds


def image_scores(
    examples: Sequence[Example], found: Sequence[npt.NDArray[np.float32]], number: int
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Return whether each image shows a class, and the highest score of its boxes.

    Parameters
    ----------
    examples : sequence of Example, length n
        Labeled images.
    found : sequence of ndarray, length n
        Detected boxes, as `detect` returns them.
    number : int
        Number of the class.

    Returns
    -------
    shows : ndarray of bool, shape (n,)
        Whether the image has a labeled box of the class.
    score : ndarray of float64, shape (n,)
        Highest score, 0 without a box.
    """
    shows = np.array([(example.boxes[:, 0] == number).any() for example in examples], dtype=np.bool_)
    return shows, np.array([boxes[boxes[:, 5] == number, 4].max(initial=0) for boxes in found], dtype=np.float64)


def image_quality(shows: npt.NDArray[np.bool_], score: Floats) -> dict[str, float | None]:
    """Compute AUC and average precision of images; None if all images, or no image, show the class."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if shows.all() or not shows.any():
        return {"image_auc": None, "image_ap": None}
    return {
        "image_auc": float(roc_auc_score(shows, score)),
        "image_ap": float(average_precision_score(shows, score)),
    }


def _precisions(
    examples: Sequence[Example], found: Sequence[npt.NDArray[np.float32]], classes: int, sizes: Floats
) -> list[tuple[float | None, float | None]]:
    """Compute AP at IoU 0.5 and mean AP per class with pycocotools; None for a class without boxes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, object]] = []
    for image, (example, (width, height)) in enumerate(zip(examples, sizes.tolist(), strict=True)):
        for kind, x, y, w, h in (example.boxes * np.array([1, width, height, width, height])).tolist():
            box = [x - w / 2, y - h / 2, w, h]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": int(kind),
                    "bbox": box,
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    rows = [
        [image, x1, y1, x2 - x1, y2 - y1, score, kind]
        for image, boxes in enumerate(found)
        for x1, y1, x2, y2, score, kind in boxes.tolist()
    ]
    if not truth or not rows:
        return [
            (0.0, 0.0) if any(box["category_id"] == kind for box in truth) else (None, None) for kind in range(classes)
        ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        labeled = COCO()
        labeled.dataset = {
            "images": [{"id": image} for image in range(len(examples))],
            "annotations": truth,
            "categories": [{"id": kind} for kind in range(classes)],
        }
        labeled.createIndex()
        evaluation = COCOeval(labeled, labeled.loadRes(np.array(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # Axes: IoU threshold, recall, class. Boxes of all sizes, at most 100 per image.
    table = evaluation.eval["precision"][:, :, :, 0, 2]
    return [
        (None, None)
        if (table[:, :, kind] < 0).all()
        else (float(table[0, :, kind].mean()), float(table[:, :, kind].mean()))
        for kind in range(classes)
    ]
