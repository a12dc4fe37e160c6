"""Command line with training in double precision, in which the order of sums is irrelevant.

In single precision a rounding error grows to 10% within a few steps, with one process or two.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from patrolscope import cli
from patrolscope.pipeline.train import loop, network


def new_network(*args, **options):
    return network.new_network(*args, **options).double()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    loop.new_network = new_network
    cli.main()
