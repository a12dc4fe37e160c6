"""The network that a training starts from: a variant, narrowed or not, or the weights of a file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from patrolscope.pipeline.detect.models.architecture import DETECT, IMPLICIT, Architecture, variant
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.errors import WeightsError

_CHANNELS_STEP = 8  # channels of a narrowed network are multiples of it
# What a new detection layer expects before it has learned: so many objects in an image, a class so likely.
_OBJECTS, _CLASS_CHANCE, _IMAGE = 8, 0.6, 640


def narrowed(architecture: Architecture, width: float) -> Architecture:
    """The same layers with a share of the channels."""
    if width == 1:
        return architecture

    def fewer(channels: int | None) -> int | None:
        return None if channels is None else max(1, math.ceil(channels * width / _CHANNELS_STEP)) * _CHANNELS_STEP

    layers = tuple(replace(layer, channels=fewer(layer.channels)) for layer in architecture.layers)
    return replace(architecture, layers=layers)


def new_network(name: str, *, classes: int, width: float, seed: int) -> Network:
    """A variant with first values, the same for the same seed.

    Raises
    ------
    WeightsError : there is no such variant
    """
    architecture = narrowed(variant(name, classes), width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
        _first_biases(network)
    return network


def network_from(file: Path, *, classes: int, seed: int) -> tuple[Network, str]:
    """The network of a checkpoint in its training form, for so many classes, and a line on what was taken over.

    Raises
    ------
    WeightsError : the file can not be read, or is folded for inference
    """
    checkpoint = read_checkpoint(file)
    if checkpoint.folded:
        raise WeightsError(f"{file.name} is folded for inference: its batch norms are gone, and it can not be trained")
    architecture = replace(checkpoint.architecture, classes=classes)
    if architecture.head.kind == DETECT:
        architecture = replace(
            architecture, layers=(*architecture.layers[:-1], replace(architecture.head, kind=IMPLICIT))
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
        _first_biases(network)
    own = network.state_dict()
    fitting = {
        name: value for name, value in checkpoint.state.items() if name in own and own[name].shape == value.shape
    }
    network.load_state_dict({**own, **fitting})
    line = f"{file.name}: {len(fitting):,} of {len(own):,} tensors taken over"
    if checkpoint.architecture.classes != classes:
        line += f"; its detection layer is for {checkpoint.architecture.classes} classes, not {classes}: it begins anew"
    return network, line


@torch.no_grad()
def _first_biases(network: Network) -> None:
    head = network.head
    heads = [head.m] if head.m2 is None else [head.m, head.m2]
    for convs in heads:
        for module, stride in zip(convs, network.strides, strict=True):
            bias = cast("Tensor", cast("nn.Conv2d", module).bias).view(head.anchors_per_cell, -1)
            bias[:, 4] += math.log(_OBJECTS / (_IMAGE / stride) ** 2)
            bias[:, 5:] += math.log(_CLASS_CHANCE / (network.architecture.classes - 0.99))
