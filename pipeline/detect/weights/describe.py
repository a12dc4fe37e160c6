"""What is in a file of weights, for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patrolscope.pipeline.detect.detector import ULTRALYTICS, YOLOV7, kind_of, local_copy, require


def describe(path: str) -> dict[str, Any]:
    """Facts about a file of weights; nothing in it is executed.

    Raises
    ------
    WeightsError : it is not there, or of no known kind; says why
    """
    require("torch", "torchvision")
    with local_copy(path) as file:
        kind = kind_of(file)
        found: dict[str, Any] = {"file": path, "kind": kind}
        if kind == YOLOV7:
            return found | _yolov7(file)
        if kind == ULTRALYTICS:
            return found | {"opened_by": "ultralytics (AGPL-3)", "needs_trust": file.suffix.lower() != ".onnx"}
        from patrolscope.pipeline.detect.models.onnx_yolov7 import describe_export

        return found | describe_export(file)


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
        "anchors": [list(level) for level in checkpoint.architecture.anchors],
        "parameters": parameters,
        "parameters_fused": fused,
        "weights": checkpoint.source,
        "folded": checkpoint.folded,
        "stored_as": checkpoint.stored_as,
        "epoch": checkpoint.epoch,
        "training_image_size": checkpoint.image_size,
    }
