"""Memory shortage on a detector's device. Does not import torch, which not every detector needs."""

from __future__ import annotations

import re
import sys

# Messages of errors without a type of their own: from the allocators of CUDA, cuBLAS, and cuDNN, and from cuDNN when no
# convolution algorithm fits the free memory.
_MESSAGES = re.compile(
    r"out of memory|can't allocate memory|ALLOC_FAILED|unable to find an engine|valid cuDNN algorithm", re.IGNORECASE
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports that a device, or the machine, has no memory left."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None)
    )


def empty_cache() -> None:
    """Release unused memory that torch holds on a CUDA device, so that other libraries can allocate it.

    Call this after the handler of an error, because the traceback still holds the tensors of the failed work.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
