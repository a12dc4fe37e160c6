"""Learning rates, warm-up, groups of parameters and the moving average of weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.train.settings import Recipe

_MOST_WARMUP = 1 / 4  # of all iterations: a short training would be over before it is warm
_EMA_DECAY, _EMA_UPDATES = 0.9999, 2_000


def cosine(epoch: float, epochs: int, last: float) -> float:
    """Share of the first learning rate at an epoch: 1 at the start, `last` at the end."""
    return 1 + (last - 1) * (1 - math.cos(math.pi * epoch / epochs)) / 2


def accumulated(batch: int, recipe: Recipe) -> int:
    """Batches whose gradients make one step."""
    return max(1, round(recipe.nominal_batch / batch))


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum at every iteration."""

    recipe: Recipe
    epochs: int
    batches: int  # an epoch

    @property
    def warmup(self) -> int:
        """Iterations until the learning rate is the schedule's own."""
        asked = max(self.recipe.warmup_epochs * self.batches, self.recipe.warmup_iterations)
        return min(round(asked), int(_MOST_WARMUP * self.epochs * self.batches))

    def set(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Put the values of an iteration, counted over all epochs, into the optimizer."""
        recipe = self.recipe
        rate = recipe.lr0 * cosine(iteration // self.batches, self.epochs, recipe.lrf)
        done = min(1.0, iteration / self.warmup) if self.warmup else 1.0
        for group in optimizer.param_groups:
            start = recipe.warmup_bias_lr if group["name"] == "biases" else 0.0
            group["lr"] = start + (rate - start) * done
            group["momentum"] = recipe.warmup_momentum + (recipe.momentum - recipe.warmup_momentum) * done


def make_optimizer(network: Network, recipe: Recipe, batch: int) -> torch.optim.SGD:
    """SGD with Nesterov momentum; of the three groups only the kernels of convolutions decay."""
    kernels, biases, others = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.Conv2d):
                kernels.append(parameter)
            else:
                others.append(parameter)
    decay = recipe.weight_decay * batch * accumulated(batch, recipe) / recipe.nominal_batch
    groups = [
        {"name": "others", "params": others, "weight_decay": 0.0},
        {"name": "kernels", "params": kernels, "weight_decay": decay},
        {"name": "biases", "params": biases, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.lr0, momentum=recipe.momentum, nesterov=True)


class Average:
    """Exponential moving average of all tensors of a network; slow to start with, as early weights are worth little."""

    def __init__(self, network: Network) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Take the network's values in."""
        self.updates += 1
        decay = _EMA_DECAY * (1 - math.exp(-self.updates / _EMA_UPDATES))
        now = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(now[name], 1 - decay)
            else:
                value.copy_(now[name])
