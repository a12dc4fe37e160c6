"""Several processes that train one network, as torchrun starts them: each takes its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from patrolscope.pipeline.detect.device import choose_device
from patrolscope.pipeline.detect.models.yolov7 import Network

# The first process evaluates alone after an epoch, while the others wait: hours with 100,000 images. Torch would end
# them after ten minutes.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many."""

    rank: int = 0
    world: int = 1
    local: int = 0  # on its machine: the number of its GPU

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, writes and speaks for all."""
        return self.rank == 0

    def part(self, numbers: Sequence[int]) -> list[int]:
        """Images of a batch that are this process's; of a last batch with fewer than processes some take the first."""
        return list(numbers[self.rank :: self.world]) or list(numbers[:1])

    def sum_gradients(self, network: Network) -> None:
        """Add up the gradients of all processes: the loss of each is that of its images, so the sum is the batch's."""
        if self.world > 1:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)  # once: every call waits for all processes
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes, where the values are."""
        if self.world == 1:
            return values
        total = self._placed(values)
        dist.all_reduce(total)
        return total.to(values.device)

    def from_first(self, value: float) -> float:
        """The first process's value, for all; who asks waits for it."""
        if self.world == 1:
            return value
        given = self._placed(torch.tensor(value, dtype=torch.float64))
        dist.broadcast(given, 0)
        return float(given)

    def _placed(self, values: Tensor) -> Tensor:
        """A copy where the processes can reach it."""
        return values.to("cpu" if dist.get_backend() == "gloo" else f"cuda:{self.local}", copy=True)

    def share_norms(self, network: nn.Module) -> None:
        """Put batch norms that see the images of all processes in the place of a network's own."""
        if self.world == 1:
            return
        for name, child in list(network.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                shared = SharedBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(network, name, shared.to(child.weight.device))
            else:
                self.share_norms(child)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm by the mean and variance over all processes; `torch.nn.SyncBatchNorm` does it on CUDA alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Values (n, channels, h, w), normalized; outside training as a plain one does."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = values.new_tensor([values.numel() / self.num_features])
        found = _of_all(torch.cat([count, mean, variance]))
        counts, means, variances = torch.split(found, [1, len(mean), len(mean)], dim=1)
        share = counts / counts.sum()
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        self._remember(mean.detach(), variance.detach() / (1 - 1 / counts.sum()))
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (values * gain[:, None, None] + (self.bias - mean * gain)[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
            cast("Tensor", kept).lerp_(new, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)


class _Summed(torch.autograd.Function):
    """Sum over processes; since each has a part of the loss, gradients of the sum are summed, too."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _of_all(values: Tensor) -> Tensor:
    """Values (n,) of every process, as (processes, n)."""
    mine = torch.zeros(dist.get_world_size(), 1, device=values.device, dtype=values.dtype)
    mine[dist.get_rank()] = 1
    return cast("Tensor", _Summed.apply(mine * values))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone.

    Parameters
    ----------
    device : that they train on, as `choose_device` takes it
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = choose_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()
