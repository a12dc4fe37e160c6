"""Learning rates, warm-up, parameter groups, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.train.settings import Recipe

_MOST_WARMUP = 1 / 4  # of all iterations, so that short trainings leave the warm-up
_EMA_DECAY, _EMA_UPDATES = 0.9999, 2_000  # of the YOLOv7 trainer


def cosine(epoch: float, epochs: int, last: float) -> float:
    """Compute the cosine-annealed learning rate of an epoch, as a share of the first.

    Parameters
    ----------
    epoch : float
        Epoch, 0 to `epochs`.
    epochs : int
        Number of epochs.
    last : float
        Share at the end; the first share is 1.
    """
    return 1 + (last - 1) * (1 - math.cos(math.pi * epoch / epochs)) / 2


def batches_per_step(batch: int, recipe: Recipe) -> int:
    """Return the number of batches whose gradients are accumulated per optimizer step."""
    return max(1, round(recipe.nominal_batch / batch))


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum of every iteration."""

    recipe: Recipe
    epochs: int
    batches: int  # per epoch

    @property
    def warmup(self) -> int:
        """Iterations of the warm-up."""
        iterations = max(self.recipe.warmup_epochs * self.batches, self.recipe.warmup_iterations)
        return min(round(iterations), int(_MOST_WARMUP * self.epochs * self.batches))

    def set(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Set learning rates and momentum of the optimizer for an iteration, counted over all epochs."""
        recipe = self.recipe
        rate = recipe.lr0 * cosine(iteration // self.batches, self.epochs, recipe.lrf)
        done = min(1.0, iteration / self.warmup) if self.warmup else 1.0
        for group in optimizer.param_groups:
            start = recipe.warmup_bias_lr if group["name"] == "biases" else 0.0
            group["lr"] = start + (rate - start) * done
            group["momentum"] = recipe.warmup_momentum + (recipe.momentum - recipe.warmup_momentum) * done


def make_optimizer(network: Network, recipe: Recipe, batch: int) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum and weight decay on convolution kernels only.

    Parameters
    ----------
    network : Network
        Network to train.
    recipe : Recipe
        Hyperparameters.
    batch : int
        Images per batch; weight decay scales with the images per step.
    """
    kernels, biases, others = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.Conv2d):
                kernels.append(parameter)
            else:
                others.append(parameter)
    decay = recipe.weight_decay * batch * batches_per_step(batch, recipe) / recipe.nominal_batch
    groups = [
        {"name": "others", "params": others, "weight_decay": 0.0},
        {"name": "kernels", "params": kernels, "weight_decay": decay},
        {"name": "biases", "params": biases, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.lr0, momentum=recipe.momentum, nesterov=True)


def averaged_model(network: Network) -> AveragedModel:
    """Return an exponential moving average of the network, with plain batch norms as in a checkpoint.

    The decay starts near 0, since early weights are poor, and approaches its final value.
    """
    averaged = AveragedModel(network, multi_avg_fn=_update_average, use_buffers=True)
    averaged.module.eval().requires_grad_(False)
    averaged.n_averaged.fill_(1)  # at 0 the first update would replace the initial weights
    return averaged


def _update_average(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
    decay = _EMA_DECAY * (1 - math.exp(-int(updates) / _EMA_UPDATES))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(value)
