"""Random streams by name: the same quantity of the same unit of work always gets the same numbers.

Two generators with the same seed draw the same uniforms, so locations from one and flags from the other would be
perfectly correlated. Each quantity therefore has its own stream.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, quantity: str, *unit: int) -> np.random.Generator:
    """Return the generator of one quantity of one unit of work, such as a day and a block of rides.

    Parameters
    ----------
    seed : int
        Seed of the study, at least 0.
    quantity : str
        Name of the quantity. Different names give independent streams.
    *unit : int
        Numbers that identify the unit of work, each at least 0. Never a partition or a worker.
    """
    name = int.from_bytes(hashlib.sha256(quantity.encode()).digest()[:8], "big")
    return np.random.default_rng(np.random.SeedSequence([seed, name, *unit]))
