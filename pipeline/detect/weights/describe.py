"""Description of a weights file, for `patrolscope weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patrolscope.pipeline.detect.detector import ULTRALYTICS, YOLOV7, kind_of, local_copy, require


def describe(path: str) -> dict[str, Any]:
    """Return facts about a weights file without executing anything in it.

    Raises
    ------
    WeightsError
        If the file does not exist or its kind is not supported.
    """
    require("torch", "torchvision")
    with local_copy(path) as file:
        kind = kind_of(file)
        facts: dict[str, Any] = {"file": path, "kind": kind}
        if kind == YOLOV7:
            return facts | _yolov7(file)
        if kind == ULTRALYTICS:
            return facts | {"opened_by": "ultralytics (AGPL-3)", "needs_trust": file.suffix.lower() != ".onnx"}
        from patrolscope.pipeline.detect.models.onnx_yolov7 import describe_export

        return facts | describe_export(file)


def _yolov7(file: Path) -> dict[str, Any]:
    from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(file)
    network = checkpoint.network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    fused = sum(parameter.numel() for parameter in network.fuse().parameters())
    return {
        "variant": checkpoint.variant,
        "layers": len(checkpoint.architecture.layers),
        "head": checkpoint.architecture.head.kind,
        "classes": dict(enumerate(checkpoint.class_names)),
        "strides": list(network.strides),
        "anchors": [list(sizes) for sizes in checkpoint.architecture.anchors],
        "parameters": parameters,
        "parameters_fused": fused,
        "weights": checkpoint.source,
        "folded": checkpoint.folded,
        "stored_as": checkpoint.stored_as,
        "epoch": checkpoint.epoch,
        "training_image_size": checkpoint.image_size,
    }
