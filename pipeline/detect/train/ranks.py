"""Several processes that train one network, as torchrun starts them: each takes its part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from pipeline.detect.yolov7 import Network

Floats = npt.NDArray[np.float64]


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
            for parameter in network.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)

    def mean(self, values: Floats) -> Floats:
        """Mean over the processes; no number where one of them has none, so that all stop together."""
        if self.world == 1:
            return values
        total = torch.from_numpy(values).to("cpu" if dist.get_backend() == "gloo" else f"cuda:{self.local}")
        dist.all_reduce(total)
        return total.cpu().numpy() / self.world

    def from_first(self, value: float) -> float:
        """The first process's value, for all; who asks waits for it."""
        if self.world == 1:
            return value
        given = torch.tensor(value, dtype=torch.float64)
        given = given if dist.get_backend() == "gloo" else given.to(f"cuda:{self.local}")
        dist.broadcast(given, 0)
        return float(given)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()
