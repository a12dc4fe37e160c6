"""Processes started by torchrun that train one network together; each takes a part of every batch."""

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

# The first process evaluates alone after each epoch, for hours with 100,000 images. By default torch would stop the
# waiting processes after ten minutes.
_TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """Number of this process and of all processes."""

    rank: int = 0
    world: int = 1
    local: int = 0  # number on its machine, which is the number of its GPU

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, writes, and logs for all."""
        return self.rank == 0

    def part(self, numbers: Sequence[int]) -> list[int]:
        """Return this process's images of a batch; without any, the first image of the batch."""
        return list(numbers[self.rank :: self.world]) or list(numbers[:1])

    def sum_gradients(self, network: Network) -> None:
        """Replace gradients by their sum over all processes, which is the gradient of the whole batch."""
        if self.world > 1:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)  # one call for all tensors, as each call waits for all processes
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the device of the values."""
        if self.world == 1:
            return values
        total = self._placed(values)
        dist.all_reduce(total)
        return total.to(values.device)

    def from_first(self, value: float) -> float:
        """Return the value of the first process to all processes."""
        if self.world == 1:
            return value
        shared = self._placed(torch.tensor(value, dtype=torch.float64))
        dist.broadcast(shared, 0)
        return float(shared)

    def _placed(self, values: Tensor) -> Tensor:
        """Copy values to the device of the process group."""
        return values.to("cpu" if dist.get_backend() == "gloo" else f"cuda:{self.local}", copy=True)

    def share_norms(self, network: nn.Module) -> None:
        """Replace the batch norms of a network by batch norms over the images of all processes."""
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
    """Batch norm with mean and variance over all processes; `torch.nn.SyncBatchNorm` requires CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize values (n, channels, h, w); outside training like `BatchNorm2d`."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = values.new_tensor([values.numel() / self.num_features])
        gathered = _gather(torch.cat([count, mean, variance]))
        counts, means, variances = torch.split(gathered, [1, len(mean), len(mean)], dim=1)
        share = counts / counts.sum()
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        self._update_statistics(mean.detach(), variance.detach() / (1 - 1 / counts.sum()))
        gain = self.weight * torch.rsqrt(variance + self.eps)
        return (values * gain[:, None, None] + (self.bias - mean * gain)[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        for kept, new in ((self.running_mean, mean), (self.running_var, variance)):
            cast("Tensor", kept).lerp_(new, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)


class _Summed(torch.autograd.Function):
    """Sum over processes. Each process has a part of the loss, so gradients are summed as well."""

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


def _gather(values: Tensor) -> Tensor:
    """Gather values (n,) of all processes, as (processes, n)."""
    mine = torch.zeros(dist.get_world_size(), 1, device=values.device, dtype=values.dtype)
    mine[dist.get_rank()] = 1
    return cast("Tensor", _Summed.apply(mine * values))


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, this process is alone.

    Parameters
    ----------
    device : str
        Device to train on, as in `choose_device`.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = choose_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()
