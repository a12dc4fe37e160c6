"""Random streams by name: the same quantity of the same unit of work always gets the same numbers.

Two generators made from one bare seed draw the same uniforms, so places drawn by one and flags drawn by the other
would be perfectly correlated. Here every quantity has a stream of its own.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, quantity: str, *unit: int) -> np.random.Generator:
    """Generator for one named quantity of one unit of work (such as a day and a block), whoever asks and when.

    Parameters
    ----------
    seed : of the study, at least 0
    quantity : what is drawn, in words; another name gives an independent stream
    unit : whole numbers from 0 on that name the piece of work; never a partition or a worker
    """
    name = int.from_bytes(hashlib.sha256(quantity.encode()).digest()[:8], "big")
    return np.random.default_rng(np.random.SeedSequence([seed, name, *unit]))
