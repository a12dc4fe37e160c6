"""Initial network of a training: a variant with random weights, or a checkpoint."""

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

_CHANNELS_STEP = 8  # narrowed networks have a multiple of this number of channels
# Prior of a new detection layer: 8 objects per image of 640 pixels, class probability 0.6 (YOLOv7 trainer).
_OBJECTS, _CLASS_PROBABILITY, _IMAGE = 8, 0.6, 640


def narrowed(architecture: Architecture, width: float) -> Architecture:
    """Return the architecture with a share of its channels."""
    if width == 1:
        return architecture

    def fewer(channels: int | None) -> int | None:
        return None if channels is None else max(1, math.ceil(channels * width / _CHANNELS_STEP)) * _CHANNELS_STEP

    layers = tuple(replace(layer, channels=fewer(layer.channels)) for layer in architecture.layers)
    return replace(architecture, layers=layers)


def new_network(name: str, *, classes: int, width: float, seed: int) -> Network:
    """Return a variant with random weights that follow from the seed.

    Parameters
    ----------
    name : str
        Name of the variant.
    classes : int
        Number of classes.
    width : float
        Share of the variant's channels, above 0 and at most 1.
    seed : int
        Seed of the weights.

    Raises
    ------
    WeightsError
        If there is no such variant.
    """
    architecture = narrowed(variant(name, classes), width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
        _initialize_biases(network)
    return network


def network_from(file: Path, *, classes: int, seed: int) -> tuple[Network, str]:
    """Return the network of a checkpoint in its training form, and a line that describes the transfer.

    Parameters
    ----------
    file : Path
        Checkpoint.
    classes : int
        Number of classes to train. With a different number in the checkpoint, the detection layer starts from random
        weights.
    seed : int
        Seed of tensors that the checkpoint does not provide.

    Raises
    ------
    WeightsError
        If the file cannot be read, or is folded for inference.
    """
    checkpoint = read_checkpoint(file)
    if checkpoint.folded:
        raise WeightsError(f"{file.name} is folded for inference; expected a checkpoint with batch norms")
    architecture = replace(checkpoint.architecture, classes=classes)
    if architecture.head.kind == DETECT:
        architecture = replace(
            architecture, layers=(*architecture.layers[:-1], replace(architecture.head, kind=IMPLICIT))
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
        _initialize_biases(network)
    own = network.state_dict()
    fitting = {
        name: value for name, value in checkpoint.state.items() if name in own and own[name].shape == value.shape
    }
    network.load_state_dict({**own, **fitting})
    line = f"{file.name}: {len(fitting):,} of {len(own):,} tensors loaded"
    if checkpoint.architecture.classes != classes:
        line += f"; new detection layer ({classes} classes instead of {checkpoint.architecture.classes})"
    return network, line


@torch.no_grad()
def _initialize_biases(network: Network) -> None:
    head = network.head
    heads = [head.m] if head.m2 is None else [head.m, head.m2]
    for convs in heads:
        for module, stride in zip(convs, network.strides, strict=True):
            bias = cast("Tensor", cast("nn.Conv2d", module).bias).view(head.anchors_per_cell, -1)
            bias[:, 4] += math.log(_OBJECTS / (_IMAGE / stride) ** 2)
            bias[:, 5:] += math.log(_CLASS_PROBABILITY / (network.architecture.classes - 0.99))
