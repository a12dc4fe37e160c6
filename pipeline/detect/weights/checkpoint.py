"""Official YOLOv7 checkpoints, read as data and checked against their own layer list."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from patrolscope.pipeline.detect.models.architecture import (
    HEADS,
    Architecture,
    absolute_sources,
    from_official,
    guess_variant,
)
from patrolscope.pipeline.detect.models.yolov7 import Network, build
from patrolscope.pipeline.detect.weights.restricted import Archive, Node, StoredTensor, open_archive
from patrolscope.pipeline.errors import WeightsError

MODEL_CLASS = "models.yolo.Model"
_UPSAMPLE_CLASS = "torch.nn.modules.upsampling.Upsample"
# Modules lie at most this deep in a layer; a file whose modules hold each other would never end.
_DEEPEST = 8


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, as far as inference needs it."""

    architecture: Architecture  # with the anchors of the file
    state: Mapping[str, torch.Tensor]  # float32, by official name
    class_names: tuple[str, ...]
    source: str  # "ema" or "model"
    folded: bool  # batch norm is folded into the convolutions already
    stored_as: str  # type of the numbers in the file
    epoch: int | None
    image_size: int | None  # pixels, where the file says it

    @property
    def variant(self) -> str | None:
        """Name of the published variant with these layers."""
        return guess_variant(self.architecture)

    def network(self) -> Network:
        """The network with its values, in float32, as it was saved (fused or not).

        Raises
        ------
        WeightsError : tensors and layer list do not fit together; says which tensor
        """
        network = build(self.architecture)
        if not self.folded:
            return network.load(self.state).eval()
        network.fuse()
        # A folded model still carries what was folded in (ia, im): not to be applied again.
        wanted = network.state_dict().keys()
        return network.load({name: tensor for name, tensor in self.state.items() if not _left_over(name, wanted)})


def _left_over(name: str, wanted: Any) -> bool:
    parts = name.split(".")
    layer = ".".join(parts[:2]) + "."
    return name not in wanted and (
        parts[2] in ("ia", "im", "m2") or not any(other.startswith(layer) for other in wanted)
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a local file; its EMA where it has one.

    Raises
    ------
    ForbiddenName : the file names what no checkpoint holds; nothing of it was executed
    WeightsError : it is damaged, of another form, or its tree differs from its layer list; says where
    """
    with closing(open_archive(path)) as archive:
        return _checkpoint(path, archive)


def _checkpoint(path: Path, archive: Archive) -> Checkpoint:
    root = archive.root
    if not isinstance(root, dict):
        raise WeightsError(f"{path.name} holds no checkpoint but a single {type(root).__name__}")
    source = "ema" if root.get("ema") is not None else "model"
    model = root.get(source)
    if any(isinstance(value, StoredTensor) for value in (model if isinstance(model, dict) else root).values()):
        raise WeightsError(
            f"{path.name} is a state dict alone: it does not say its layers, activation and class names; save the model"
        )
    if not isinstance(model, Node) or model.official != MODEL_CLASS:
        found = model.official if isinstance(model, Node) else type(model).__name__
        raise WeightsError(f"{path.name} holds no official YOLOv7 model ({MODEL_CLASS}) under {source!r}: {found}")

    architecture = from_official(model.attributes.get("yaml"))
    layers = model.children().get("model", Node()).children()
    _compare(architecture, layers)
    stored = dict(_tensors(layers))
    head = f"model.{len(architecture.layers) - 1}"
    architecture = _with_own_anchors(architecture, stored.get(f"{head}.anchor_grid"), archive)
    _check_classes(architecture, stored.get(f"{head}.m.0.weight"))
    return Checkpoint(
        architecture=architecture,
        state={name: _single_precision(archive.read(tensor)) for name, tensor in stored.items()},
        class_names=_class_names(model.attributes.get("names"), architecture.classes),
        source=source,
        folded=not any(".running_var" in name for name in stored),
        stored_as=str(archive.read(stored[f"{head}.m.0.weight"]).dtype).removeprefix("torch."),
        epoch=root["epoch"] if isinstance(root.get("epoch"), int) else None,
        image_size=root["img_size"] if isinstance(root.get("img_size"), int) else None,
    )


def _compare(architecture: Architecture, layers: Mapping[str, Node]) -> None:
    """Refuse a tree that is not what the model's own layer list says."""
    if list(layers) != [str(index) for index in range(len(architecture.layers))]:
        raise WeightsError(f"the model has {len(layers)} layers, its layer list {len(architecture.layers)}")
    for index, (layer, node) in enumerate(zip(architecture.layers, layers.values(), strict=True)):
        kind = "nn.Upsample" if node.official == _UPSAMPLE_CLASS else node.official.removeprefix("models.common.")
        if layer.kind in HEADS:
            kind = kind.removeprefix("models.yolo.")
        if kind != layer.kind:
            raise WeightsError(f"layer {index} of the model is a {node.official}, its layer list says {layer.kind}")
        if "f" in node.attributes and absolute_sources(index, node.attributes["f"]) != layer.sources:
            raise WeightsError(
                f"layer {index} ({layer.kind}) of the model reads {reprlib.repr(node.attributes['f'])}, "
                f"its layer list says {layer.sources}"
            )
        found = set(_activations(node)) - {layer.activation}
        if layer.activation is not None and found:
            raise WeightsError(
                f"layer {index} has the activation {found.pop()}, its layer list says {layer.activation}"
            )


def _activations(node: Node, depth: int = 0) -> Iterator[str]:
    for name, child in node.children().items():
        if name == "act":
            kind = child.official.rsplit(".", 1)[-1]
            slope = child.attributes.get("negative_slope")
            yield kind if kind != "LeakyReLU" else f"LeakyReLU({slope})"
        elif depth < _DEEPEST:
            yield from _activations(child, depth + 1)


def _tensors(layers: Mapping[str, Node]) -> Iterator[tuple[str, StoredTensor]]:
    for index, node in layers.items():
        yield from _below(node, f"model.{index}", 0)


def _below(node: Node, name: str, depth: int) -> Iterator[tuple[str, StoredTensor]]:
    for leaf, tensor in node.tensors().items():
        yield f"{name}.{leaf}", tensor
    for child, module in node.children().items():
        if depth == _DEEPEST:
            raise WeightsError(f"modules of the model lie deeper than {_DEEPEST} at {name}")
        yield from _below(module, f"{name}.{child}", depth + 1)


def _single_precision(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _with_own_anchors(architecture: Architecture, stored: StoredTensor | None, archive: Archive) -> Architecture:
    """The file's anchors: training may have replaced those of the settings."""
    each = len(architecture.anchors[0]) // 2
    expected = (architecture.levels, 1, each, 1, 1, 2)
    if stored is None or stored.size != expected:
        found = None if stored is None else stored.size
        raise WeightsError(f"anchor_grid of the model is {found}: {expected} is expected")
    pixels = archive.read(stored).float().reshape(architecture.levels, -1)
    return replace(architecture, anchors=tuple(tuple(level) for level in pixels.tolist()))


def _check_classes(architecture: Architecture, weight: StoredTensor | None) -> None:
    each = len(architecture.anchors[0]) // 2
    if weight is None or not weight.size:
        raise WeightsError("the detection layer of the model has no convolution")
    if weight.size[0] != each * (architecture.classes + 5):
        raise WeightsError(
            f"the detection layer is made for {weight.size[0] / each - 5:g} classes, "
            f"the model says {architecture.classes}"
        )


def _class_names(given: Any, classes: int) -> tuple[str, ...]:
    if isinstance(given, dict):
        given = [given.get(number) for number in range(classes)]
    if given is None:
        return tuple(str(number) for number in range(classes))
    if not isinstance(given, list) or len(given) != classes:
        raise WeightsError(f"the model has {classes} classes and the names {reprlib.repr(given)}")
    return tuple(str(name) for name in given)
