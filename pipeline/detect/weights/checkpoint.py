"""Reader of official YOLOv7 checkpoints, as data, checked against their own layer list."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping
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
from patrolscope.pipeline.detect.weights.restricted_unpickler import Archive, Node, StoredTensor, open_archive
from patrolscope.pipeline.errors import WeightsError

MODEL_CLASS = "models.yolo.Model"
_UPSAMPLE_CLASS = "torch.nn.modules.upsampling.Upsample"
# Maximum nesting of modules in a layer. Modules of a hostile file could contain each other.
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint that inference needs."""

    architecture: Architecture  # with the anchors of the file
    state: Mapping[str, torch.Tensor]  # float32, by official name
    class_names: tuple[str, ...]
    source: str  # "ema" or "model"
    folded: bool  # batch norms are already folded into the convolutions
    stored_as: str  # number type in the file
    epoch: int | None
    image_size: int | None  # pixels; None if the file does not contain it

    @property
    def variant(self) -> str | None:
        """Name of the published variant with these layers, or None."""
        return guess_variant(self.architecture)

    def network(self) -> Network:
        """Build the network with its values, in float32, fused if it was saved so.

        Raises
        ------
        WeightsError
            If the tensors do not match the layer list.
        """
        network = build(self.architecture)
        if not self.folded:
            return network.load(self.state).eval()
        network.fuse()
        # A folded model still contains the layers that were folded in (ia, im), which must not be applied again.
        names = network.state_dict().keys()
        return network.load({name: tensor for name, tensor in self.state.items() if not _is_leftover(name, names)})


def _is_leftover(name: str, names: Collection[str]) -> bool:
    """Return whether a tensor of a folded file belongs to a layer that a fused network (`names`) does not have."""
    parts = name.split(".")
    layer = ".".join(parts[:2]) + "."
    return name not in names and (parts[2] in ("ia", "im", "m2") or not any(other.startswith(layer) for other in names))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint in a local file, its averaged weights (EMA) if it has them.

    Raises
    ------
    ForbiddenNameError
        If the file names an object that no YOLOv7 checkpoint contains. Nothing in it was executed.
    WeightsError
        If the file is damaged, has another form, or its modules differ from its layer list.
    """
    with closing(open_archive(path)) as archive:
        return _checkpoint(path, archive)


def _checkpoint(path: Path, archive: Archive) -> Checkpoint:
    root = archive.root
    if not isinstance(root, dict):
        raise WeightsError(f"{path.name} contains a single {type(root).__name__}; expected a checkpoint")
    source = "ema" if root.get("ema") is not None else "model"
    model = root.get(source)
    if any(isinstance(value, StoredTensor) for value in (model if isinstance(model, dict) else root).values()):
        raise WeightsError(
            f"{path.name} is only a state dict, without layers, activation, and class names; save the whole model"
        )
    if not isinstance(model, Node) or model.official != MODEL_CLASS:
        content = model.official if isinstance(model, Node) else type(model).__name__
        raise WeightsError(
            f"{path.name} has a {content} under {source!r}; expected an official YOLOv7 model ({MODEL_CLASS})"
        )

    architecture = from_official(model.attributes.get("yaml"))
    layers = model.children().get("model", Node()).children()
    _compare(architecture, layers)
    stored = dict(_tensors(layers))
    head = f"model.{len(architecture.layers) - 1}"
    architecture = _with_stored_anchors(architecture, stored.get(f"{head}.anchor_grid"), archive)
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
    """Check that the modules of the model match its own layer list."""
    if list(layers) != [str(index) for index in range(len(architecture.layers))]:
        raise WeightsError(f"the model has {len(layers)} layers; expected {len(architecture.layers)} by its layer list")
    for index, (layer, node) in enumerate(zip(architecture.layers, layers.values(), strict=True)):
        kind = "nn.Upsample" if node.official == _UPSAMPLE_CLASS else node.official.removeprefix("models.common.")
        if layer.kind in HEADS:
            kind = kind.removeprefix("models.yolo.")
        if kind != layer.kind:
            raise WeightsError(
                f"layer {index} of the model is a {node.official}; expected {layer.kind} by its layer list"
            )
        if "f" in node.attributes and absolute_sources(index, node.attributes["f"]) != layer.sources:
            raise WeightsError(
                f"layer {index} ({layer.kind}) of the model reads {reprlib.repr(node.attributes['f'])}; "
                f"expected {layer.sources} by its layer list"
            )
        others = set(_activations(node)) - {layer.activation}
        if layer.activation is not None and others:
            raise WeightsError(
                f"layer {index} has the activation {others.pop()}; expected {layer.activation} by its layer list"
            )


def _activations(node: Node, depth: int = 0) -> Iterator[str]:
    for name, child in node.children().items():
        if name == "act":
            kind = child.official.rsplit(".", 1)[-1]
            slope = child.attributes.get("negative_slope")
            yield kind if kind != "LeakyReLU" else f"LeakyReLU({slope})"
        elif depth < _MAX_DEPTH:
            yield from _activations(child, depth + 1)


def _tensors(layers: Mapping[str, Node]) -> Iterator[tuple[str, StoredTensor]]:
    for index, node in layers.items():
        yield from _below(node, f"model.{index}", 0)


def _below(node: Node, name: str, depth: int) -> Iterator[tuple[str, StoredTensor]]:
    for leaf, tensor in node.tensors().items():
        yield f"{name}.{leaf}", tensor
    for child, module in node.children().items():
        if depth == _MAX_DEPTH:
            raise WeightsError(f"modules of the model are nested more than {_MAX_DEPTH} deep at {name}")
        yield from _below(module, f"{name}.{child}", depth + 1)


def _single_precision(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _with_stored_anchors(architecture: Architecture, stored: StoredTensor | None, archive: Archive) -> Architecture:
    """Replace the anchors of the settings by those of the tensors, which training may have changed."""
    anchors_per_cell = len(architecture.anchors[0]) // 2
    expected = (architecture.feature_maps, 1, anchors_per_cell, 1, 1, 2)
    if stored is None or stored.size != expected:
        size = None if stored is None else stored.size
        raise WeightsError(f"anchor_grid of the model has shape {size}; expected {expected}")
    pixels = archive.read(stored).float().reshape(architecture.feature_maps, -1)
    return replace(architecture, anchors=tuple(tuple(sizes) for sizes in pixels.tolist()))


def _check_classes(architecture: Architecture, weight: StoredTensor | None) -> None:
    anchors_per_cell = len(architecture.anchors[0]) // 2
    if weight is None or not weight.size:
        raise WeightsError("the detection layer of the model has no convolution")
    if weight.size[0] != anchors_per_cell * (architecture.classes + 5):
        raise WeightsError(
            f"the detection layer has {weight.size[0] / anchors_per_cell - 5:g} classes; "
            f"expected {architecture.classes} by the settings of the model"
        )


def _class_names(names: Any, classes: int) -> tuple[str, ...]:
    if isinstance(names, dict):
        names = [names.get(number) for number in range(classes)]
    if names is None:
        return tuple(str(number) for number in range(classes))
    if not isinstance(names, list) or len(names) != classes:
        raise WeightsError(f"the model has {classes} classes and the names {reprlib.repr(names)}")
    return tuple(str(name) for name in names)
