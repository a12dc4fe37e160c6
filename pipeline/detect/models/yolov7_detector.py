"""Detector for official YOLOv7 checkpoints, run by this package's own network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from patrolscope.pipeline.detect.boxes import Letterbox, decode, select
from patrolscope.pipeline.detect.device import choose_device, choose_precision, dtype_of
from patrolscope.pipeline.detect.models.augment import augmented
from patrolscope.pipeline.detect.models.box_detector import BoxDetector, Options
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.errors import WeightsError


class Yolov7Detector(BoxDetector):
    """Fused network of an official checkpoint on one device."""

    def __init__(self, path: Path, digest: str, options: Options) -> None:
        checkpoint = read_checkpoint(path)
        network = checkpoint.network().fuse()
        self.stride = network.strides[-1]
        if options.size < self.stride or options.size % self.stride:
            nearest = -(-options.size // self.stride) * self.stride
            raise WeightsError(
                f"size {options.size} is not a multiple of the model's stride of {self.stride}; use {nearest}"
            )
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        letterbox = Letterbox(options.size, options.size, self.stride)
        super().__init__(digest, options, letterbox, checkpoint.class_names, precision)
        self.strides = network.strides
        # Read before the conversion to half precision, which would round anchors.
        grid = cast("Tensor", network.head.anchor_grid)
        self.anchors = grid.reshape(len(self.strides), -1, 2).float().to(device)
        # Convolutions are faster in this memory layout: on a GPU in half precision, and by a third on a CPU.
        on_device = network.to(device, dtype_of(precision)).to(memory_format=torch.channels_last)
        self._network: Callable[[Tensor], list[Tensor]] = _compiled(on_device) if options.compile else on_device

    def _boxes(self, images: Tensor) -> list[Tensor]:
        rows = augmented(images, self._rows, self.stride) if self.options.augment else self._rows(images)
        return [
            select(image_rows, min_score=self.options.min_score, nms_iou=self.options.nms_iou, classes=self.classes)
            for image_rows in rows
        ]

    def _rows(self, images: Tensor) -> Tensor:
        return self._check_numbers(decode(self._network(images), self.anchors, self.strides))


def _compiled(network: Network) -> Callable[[Tensor], list[Tensor]]:
    from torch import _dynamo as dynamo  # the import takes 1.3 s

    # There are about ten shapes and batch sizes, each with its own graph. Beyond the limit, by default 8, torch would
    # stop compiling.
    dynamo.config.cache_size_limit = max(64, dynamo.config.cache_size_limit)
    return cast("Callable[[Tensor], list[Tensor]]", torch.compile(network))
