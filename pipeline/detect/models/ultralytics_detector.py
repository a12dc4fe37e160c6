"""Detector for ultralytics models (YOLO11, YOLO26, ...) and their exports. The ultralytics package is under AGPL-3.

Only its network is used. Letterboxing, NMS, and the conversion to image pixels are the same as for YOLOv7, because the
NMS of ultralytics stops after two seconds and leaves the remaining images without boxes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from patrolscope.pipeline.detect.boxes import Letterbox, ranked, suppress
from patrolscope.pipeline.detect.device import choose_device, choose_precision
from patrolscope.pipeline.detect.models.box_detector import BoxDetector, Options
from patrolscope.pipeline.detect.models.ultralytics_offline import AutoBackend
from patrolscope.pipeline.errors import WeightsError

logging.getLogger("ultralytics").setLevel(logging.WARNING)


class UltralyticsDetector(BoxDetector):
    """Detection model or export that ultralytics opens."""

    def __init__(self, path: Path, digest: str, options: Options) -> None:
        if options.augment or options.compile:
            raise WeightsError(
                f"{path.name} is an ultralytics model; augment and compile are only available for YOLOv7 checkpoints"
            )
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        if precision == "bf16":
            raise WeightsError(f"{path.name} is an ultralytics model, which does not support bf16; use fp32 or fp16")
        try:
            self._backend: Any = AutoBackend(str(path), device=device, fp16=precision == "fp16", verbose=False)
        except (ModuleNotFoundError, TypeError, RuntimeError, ValueError, OSError, NotImplementedError) as error:
            raise WeightsError(f"ultralytics cannot open {path.name}: {str(error).splitlines()[0]}") from error
        if self._backend.task not in ("detect", None):
            raise WeightsError(f"{path.name} was trained for the task {self._backend.task!r}; expected detect")
        names = self._backend.names
        letterbox = _letterbox(self._backend, options.size, path.name)
        super().__init__(digest, options, letterbox, tuple(str(names[number]) for number in sorted(names)), precision)
        # The backend casts the input itself, as exports have a fixed precision.
        self.dtype = torch.float32

    def default_batch(self) -> int:
        """Return the measured batch of a .pt model, or 1 for an export.

        Most exports have a fixed batch of 1, and torch cannot measure the memory of the others.
        """
        return super().default_batch() if self._backend.format == "pt" else 1

    def _boxes(self, images: Tensor) -> list[Tensor]:
        output = self._backend(images)
        rows = self._check_numbers((output[0] if isinstance(output, list | tuple) else output).float().to(self.device))
        return [self._image_boxes(image_rows) for image_rows in rows]

    def _image_boxes(self, rows: Tensor) -> Tensor:
        options = self.options
        if rows.shape[1] == 6 and rows.shape[0] != len(self.class_names) + 4:
            # Already suppressed: x1, y1, x2, y2, score, class.
            return ranked(rows, options.min_score, self.classes)
        if rows.shape[0] != len(self.class_names) + 4:
            raise WeightsError(
                f"the model returns shape {tuple(rows.shape)}; expected (4 + n_classes, n_cells) or (n_boxes, 6)"
            )
        score, class_number = rows[4:].max(0)
        corners = box_convert(rows[:4].T, "cxcywh", "xyxy")
        return suppress(
            corners,
            score,
            class_number,
            min_score=options.min_score,
            nms_iou=options.nms_iou,
            classes=self.classes,
        )


def _letterbox(backend: Any, size: int, name: str) -> Letterbox:
    """Return the letterbox of a model: any multiple of its stride, or the fixed size of an export."""
    stride = int(backend.stride)
    fixed = getattr(backend, "imgsz", None)
    if backend.format == "pt" or getattr(backend, "dynamic", False) or fixed is None:
        if size % stride:
            raise WeightsError(
                f"size {size} is not a multiple of the model's stride of {stride}; use {-(-size // stride) * stride}"
            )
        return Letterbox(size, size, stride)
    height, width = (fixed, fixed) if isinstance(fixed, int) else fixed
    if size != max(height, width):
        raise WeightsError(f"{name} was exported for {height}x{width}; set size to {max(height, width)}")
    return Letterbox(height, width)
