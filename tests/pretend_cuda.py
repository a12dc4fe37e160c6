"""A CUDA device that is pretended: tensors that say they are on it, and are computed by the CPU.

What is on the device stays there until it is fetched, and an operation on tensors of both devices is refused as CUDA
refuses it, but for what CUDA allows (numbers without dimensions, an index from the CPU, copies). So it finds tensors
that were made on the wrong device, and precisions that an operation does not take. It knows nothing of streams, memory,
kernels, nvJPEG and gradients: those need a GPU (`pytest -m gpu`).
"""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)


class OnCuda(torch.Tensor):
    """A tensor that says it is on the device; `held` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=requires_grad,
        )

    def __init__(self, held, requires_grad=False):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self):
        return f"OnCuda({self.held})"

    def tolist(self):
        return self.held.tolist()

    def record_stream(self, stream):
        pass


class Pretend(TorchDispatchMode):
    """Inside of it, in its thread, what is asked of device cuda goes to the pretended one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    name = operation._schema.name.removeprefix("aten::")
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    asked = kwargs.get("device")
    if name in ("_to_copy", "copy_"):
        on_cuda = isinstance(args[0], OnCuda)
    elif name in ("index", "index_put", "index_put_") and isinstance(args[0], OnCuda):
        on_cuda = _same_device(operation, [args[0], *args[2:3]])  # the index may come from the CPU
    else:
        on_cuda = _same_device(operation, tensors)
    if asked is not None:
        on_cuda = torch.device(asked).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
    made = operation(*tree_map(_held, args), **tree_map(_held, kwargs))
    if operation._schema.is_mutable and name.endswith("_"):
        return args[0]
    return tree_map(lambda one: OnCuda(one) if isinstance(one, torch.Tensor) else one, made) if on_cuda else made


def _same_device(operation, tensors):
    """Whether they are on the device; refused where only some are."""
    on_cuda = any(isinstance(one, OnCuda) for one in tensors)
    if on_cuda and any(one.dim() and not isinstance(one, OnCuda) for one in tensors):
        raise RuntimeError(f"{operation}: expected all tensors on the same device, found some on cuda:0, some on cpu")
    return on_cuda


def _held(one):
    return one.held if isinstance(one, OnCuda) else one


def _pretending(method):
    def pretending(*args):
        with Pretend():
            return method(*args)

    return pretending


class _Stream:
    def synchronize(self):
        pass


@contextlib.contextmanager
def pretended_cuda(monkeypatch):
    """A device that torch is told of: `torch.device("cuda")` is it, in this thread and where images are brought."""
    from patrolscope.pipeline.detect import device_jpeg
    from patrolscope.pipeline.detect.device import Arrivals

    # Both are called from a thread of their own; nvJPEG's pixels are those of the CPU's decoder here.
    monkeypatch.setattr(Arrivals, "bring", _pretending(Arrivals.bring))
    monkeypatch.setattr(device_jpeg.JpegDecoder, "__call__", _pretending(device_jpeg.JpegDecoder.__call__))
    decode = device_jpeg._decode
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        device_jpeg, "_decode", lambda contents, device: [one.to(device) for one in decode(contents, cpu)]
    )
    peaks = itertools.cycle([2_000, 3_000])  # of one image and of two
    told = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda: True,
        "Stream": lambda device: _Stream(),
        "current_stream": lambda device: _Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "empty_cache": lambda: None,
        "memory_allocated": lambda device: 1_000,
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: next(peaks),
        "mem_get_info": lambda device: (7_000, 9_000),
        "_lazy_init": lambda: None,
    }
    for name, answer in told.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    # Tensors of a class of their own can not be in it.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # its operations are of its own
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Pretend():
            yield CUDA
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
