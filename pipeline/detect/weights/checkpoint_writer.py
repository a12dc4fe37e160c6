"""Writer of checkpoints in the official YOLOv7 form, which other YOLOv7 tools and `read_checkpoint` open."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from patrolscope.pipeline.detect.models.architecture import HEADS, Architecture, Layer, to_official
from patrolscope.pipeline.detect.models.yolov7 import ConvBlock, Downsample, Implicit, Network, PyramidPooling, RepConv

_CLASSES = {
    "models.yolo": ("Model", *HEADS),
    "models.common": (
        *("Conv", "Concat", "MP", "SP", "SPPCSPC", "RepConv", "ReOrg", "DownC", "Shortcut"),
        *("ImplicitA", "ImplicitM"),
    ),
}
_lock = threading.Lock()


def save_checkpoint(
    path: Path,
    network: Network,
    *,
    class_names: Sequence[str],
    ema: Network | None = None,
    epoch: int = -1,
    best_fitness: float | None = None,
    updates: int | None = None,
    optimizer: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> None:
    """Write an official checkpoint; without `ema` and `optimizer`, that of a finished training.

    Parameters
    ----------
    path : Path
        File to write.
    network : Network
        Network before fusing, as the official form contains batch norms. Saved in half precision.
    class_names : sequence of str
        One name per class.
    ema : Network, optional
        Averaged weights (exponential moving average), before fusing.
    epoch : int, default -1
        Epoch of the training, -1 if it is finished.
    best_fitness : float, optional
        Best result so far, as the official trainer defines it.
    updates : int, optional
        Number of updates of `ema`.
    optimizer : dict, optional
        State dict of the optimizer.
    image_size : int, optional
        Size of the training images in pixels. The official trainer ignores it.

    Raises
    ------
    ValueError
        If a network is fused.
    """
    for model in (network, ema):
        if model is not None and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            raise ValueError("the network is fused; expected one with batch norms; save it before it is fused")
    with _official_classes() as classes:
        content = {
            "epoch": epoch,
            "best_fitness": best_fitness,
            "training_results": None,
            "model": _model(network, classes, list(class_names)),
            "ema": None if ema is None else _model(ema, classes, list(class_names)),
            "updates": updates,
            "optimizer": optimizer,
            "wandb_id": None,
            "img_size": image_size,
        }
        torch.save(content, path)


@contextmanager
def _official_classes() -> Iterator[dict[str, type[nn.Module]]]:
    """Create empty classes under the official names, which can be imported for the duration of the block only."""
    classes: dict[str, type[nn.Module]] = {}
    modules = {"models": ModuleType("models")}
    for name, kinds in _CLASSES.items():
        modules[name] = ModuleType(name)
        for kind in kinds:
            classes[kind] = type(kind, (nn.Module,), {"__module__": name})
            setattr(modules[name], kind, classes[kind])
    with _lock:
        before = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        try:
            yield classes
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def _model(network: Network, classes: dict[str, type[nn.Module]], names: list[str]) -> nn.Module:
    architecture = network.architecture
    settings = to_official(architecture)
    model = classes["Model"]()
    layers = []
    for index, (layer, module) in enumerate(zip(architecture.layers, network.model, strict=True)):
        official = _layer(layer, module, classes)
        sources = settings["backbone"][index][0] if index < len(architecture.layers) - 1 else list(layer.sources)
        vars(official).update(i=index, f=sources, type=f"{official.__module__}.{type(official).__name__}")
        vars(official)["np"] = sum(parameter.numel() for parameter in official.parameters())
        layers.append(official)
    head = layers[-1]
    strides = torch.tensor(network.strides, dtype=torch.float32)
    vars(head).update(
        nc=architecture.classes,
        no=architecture.classes + 5,
        nl=architecture.feature_maps,
        na=len(architecture.anchors[0]) // 2,
        stride=strides,
        grid=[torch.zeros(1)] * architecture.feature_maps,
    )
    model.add_module("model", nn.Sequential(*layers))
    vars(model).update(
        yaml=settings,
        names=names,
        nc=architecture.classes,
        stride=strides,
        save=_read_later(architecture),
        traced=False,
    )
    return model.half().eval()


def _read_later(architecture: Architecture) -> list[int]:
    """Return the layers whose output is read by another layer than the next one."""
    return sorted(
        {source for index, layer in enumerate(architecture.layers) for source in layer.sources if source != index - 1}
    )


def _layer(layer: Layer, module: nn.Module, classes: dict[str, type[nn.Module]]) -> nn.Module:
    if layer.kind == "nn.Upsample":
        return nn.Upsample(None, 2, "nearest")
    official = _copied(module, layer.kind, classes)
    if layer.kind == "MP":
        official.add_module("m", nn.MaxPool2d(2, 2))
    elif layer.kind == "SP":
        kernel = cast("int", layer.kernel)
        official.add_module("m", nn.MaxPool2d(kernel, 1, kernel // 2))
    elif layer.kind in ("Concat", "Shortcut"):
        vars(official)["d"] = 1
    return official


def _copied(module: nn.Module, kind: str, classes: dict[str, type[nn.Module]]) -> nn.Module:
    """Return the module as an object of the official class, with copies of its tensors under the same names."""
    official = classes[kind]()
    for name, parameter in module.named_parameters(recurse=False):
        official.register_parameter(name, nn.Parameter(parameter.detach().cpu().clone()))
    for name, buffer in module.named_buffers(recurse=False):
        official.register_buffer(name, buffer.detach().cpu().clone())
    for name, child in module.named_children():
        official.add_module(name, _child(name, child, classes))
    if isinstance(module, PyramidPooling):
        official.add_module("m", nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in (5, 9, 13)))
    elif isinstance(module, Downsample):
        pool = classes["MP"]()
        pool.add_module("m", nn.MaxPool2d(2, 2))
        official.add_module("mp", pool)
    elif isinstance(module, RepConv):
        vars(official).update(deploy=False, groups=1)
    return official


def _child(name: str, child: nn.Module, classes: dict[str, type[nn.Module]]) -> nn.Module:
    if isinstance(child, ConvBlock):
        return _copied(child, "Conv", classes)
    if name in ("ia", "im") and isinstance(child, nn.ModuleList):
        kind = "ImplicitA" if name == "ia" else "ImplicitM"
        return nn.ModuleList(_copied(cast("Implicit", implicit), kind, classes) for implicit in child)
    return copy.deepcopy(child).cpu()
