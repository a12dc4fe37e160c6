"""Models of ultralytics (YOLO11, YOLO26 ...) and their exports, behind the same protocol. ultralytics is AGPL-3.

Its network alone is used. Letterbox, NMS and the way back to the image are ours, the same as for YOLOv7: its own NMS
stops after two seconds and leaves later images empty.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from patrolscope.pipeline.detect.boxes import Letterbox, ranked, suppress
from patrolscope.pipeline.detect.models.base import BoxDetector, Options, choose_device, choose_precision
from patrolscope.pipeline.detect.models.ultralytics_apart import AutoBackend
from patrolscope.pipeline.errors import WeightsError

logging.getLogger("ultralytics").setLevel(logging.WARNING)  # what it loads is said by us


class UltralyticsDetector(BoxDetector):
    """What ultralytics opens, for the task `detect`."""

    def __init__(self, path: Path, digest: str, options: Options) -> None:
        if options.augment or options.compile:
            raise WeightsError(f"{path.name} is a model of ultralytics: augment and compile are for YOLOv7 checkpoints")
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        if precision == "bf16":
            raise WeightsError(f"{path.name} is a model of ultralytics, which has no bf16: use fp32 or fp16")
        try:
            self._backend: Any = AutoBackend(str(path), device=device, fp16=precision == "fp16", verbose=False)
        except (ModuleNotFoundError, TypeError, RuntimeError, ValueError, OSError, NotImplementedError) as error:
            raise WeightsError(f"ultralytics can not open {path.name}: {str(error).splitlines()[0]}") from error
        if self._backend.task not in ("detect", None):
            raise WeightsError(f"{path.name} is made for the task {self._backend.task!r}: detect is expected")
        names = self._backend.names
        letterbox = _letterbox(self._backend, options.size, path.name)
        super().__init__(digest, options, letterbox, tuple(str(names[number]) for number in sorted(names)), precision)
        # Its backend casts by itself: exports know their own precision.
        self.dtype = torch.float32

    def default_batch(self) -> int:
        """One for an export: most are fixed to it, and torch does not see the memory of the others."""
        return super().default_batch() if self._backend.format == "pt" else 1

    def _boxes(self, images: Tensor) -> list[Tensor]:
        found = self._backend(images)
        rows = self._check_numbers((found[0] if isinstance(found, list | tuple) else found).float().to(self.device))
        return [self._of_image(one) for one in rows]

    def _of_image(self, rows: Tensor) -> Tensor:
        asked = self.options
        if rows.shape[1] == 6 and rows.shape[0] != len(self.class_names) + 4:
            # Finished boxes: x1, y1, x2, y2, score, class.
            return ranked(rows, asked.min_score, self.wanted)
        if rows.shape[0] != len(self.class_names) + 4:
            raise WeightsError(f"the model returns {tuple(rows.shape)}: (4 + classes, cells) or (boxes, 6) is expected")
        score, kind = rows[4:].max(0)
        corners = box_convert(rows[:4].T, "cxcywh", "xyxy")
        return suppress(corners, score, kind, asked.min_score, asked.nms_iou, self.wanted)


def _letterbox(backend: Any, size: int, name: str) -> Letterbox:
    """The input that the model takes: any multiple of its stride, or the size that an export is fixed to."""
    stride = int(backend.stride)
    fixed = getattr(backend, "imgsz", None)
    if backend.format == "pt" or getattr(backend, "dynamic", False) or fixed is None:
        if size % stride:
            raise WeightsError(
                f"size {size} is no multiple of the model's stride of {stride}: use {-(-size // stride) * stride}"
            )
        return Letterbox(size, size, stride)
    height, width = (fixed, fixed) if isinstance(fixed, int) else fixed
    if size != max(height, width):
        raise WeightsError(f"{name} was exported for {height}x{width}: size must be {max(height, width)}")
    return Letterbox(height, width)
