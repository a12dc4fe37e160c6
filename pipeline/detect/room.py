"""Lack of memory on a detector's device, and what gives some back. Knows torch by name: not every detector has it."""

from __future__ import annotations

import re
import sys

# What a device without memory says in an error of no type of its own: the allocators of CUDA, of cuBLAS and cuDNN, and
# cuDNN where it found no room for any of its ways to convolve.
_SAID = re.compile(
    r"out of memory|can't allocate memory|ALLOC_FAILED|unable to find an engine|valid cuDNN algorithm", re.IGNORECASE
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None)
    )


def empty_cache() -> None:
    """Give back what torch keeps of a CUDA device and nothing uses, for libraries that ask the device themselves.

    After the handler of an error, as its trace holds what the failed work had made.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
