"""A simulated CUDA device: tensors that report to be on it, and are computed by the CPU.

As on a real device, tensors stay there until they are copied, and operations on tensors of both devices fail, except
for those that CUDA allows (scalars, an index from the CPU, copies). This reveals tensors on the wrong device and
precisions that an operation does not support. Streams, memory, kernels, nvJPEG, and gradients are not simulated: they
need a GPU (`pytest -m gpu`).
"""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)


class OnCuda(torch.Tensor):
    """Tensor that reports to be on the device; `values_on_cpu` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
            requires_grad=requires_grad,
        )

    def __init__(self, values, requires_grad=False):
        self.values_on_cpu = values

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self):
        return f"OnCuda({self.values_on_cpu})"

    def tolist(self):
        return self.values_on_cpu.tolist()

    def record_stream(self, stream):
        pass


class Pretend(TorchDispatchMode):
    """Mode in which operations of this thread on device cuda use the simulated one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    name = operation._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = kwargs.get("device")
    if name in ("_to_copy", "copy_"):
        on_cuda = isinstance(args[0], OnCuda)
    elif name in ("index", "index_put", "index_put_") and isinstance(args[0], OnCuda):
        on_cuda = _same_device(operation, [args[0], *args[2:3]])  # the index may come from the CPU
    else:
        on_cuda = _same_device(operation, tensors)
    if device is not None:
        on_cuda = torch.device(device).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
    result = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if operation._schema.is_mutable and name.endswith("_"):
        return args[0]
    return (
        tree_map(lambda leaf: OnCuda(leaf) if isinstance(leaf, torch.Tensor) else leaf, result) if on_cuda else result
    )


def _same_device(operation, tensors):
    """Return whether tensors are on the device, and fail if only some of them are."""
    on_cuda = any(isinstance(tensor, OnCuda) for tensor in tensors)
    if on_cuda and any(tensor.dim() and not isinstance(tensor, OnCuda) for tensor in tensors):
        raise RuntimeError(f"{operation}: expected all tensors on the same device, found some on cuda:0, some on cpu")
    return on_cuda


def _on_cpu(leaf):
    return leaf.values_on_cpu if isinstance(leaf, OnCuda) else leaf


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
    """Make `torch.device("cuda")` the simulated device, in this thread and in the one that uploads images."""
    from patrolscope.pipeline.detect import device_jpeg
    from patrolscope.pipeline.detect.device import Uploader

    # Both run in another thread. The CPU's decoder replaces nvJPEG.
    monkeypatch.setattr(Uploader, "upload", _pretending(Uploader.upload))
    monkeypatch.setattr(device_jpeg.JpegDecoder, "__call__", _pretending(device_jpeg.JpegDecoder.__call__))
    decode = device_jpeg._decode
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        device_jpeg, "_decode", lambda contents, device: [image.to(device) for image in decode(contents, cpu)]
    )
    peaks = itertools.cycle([2_000, 3_000])  # of one image and of two
    functions = {
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
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    # Inference mode does not support subclasses of Tensor.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)  # its operations are not simulated
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with Pretend():
            yield CUDA
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(False)
