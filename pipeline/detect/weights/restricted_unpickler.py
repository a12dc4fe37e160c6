"""Restricted reader of torch files: tensors, containers, and inert nodes in place of classes. Executes nothing.

A pickle is a program that calls the objects that it names. Here every name is looked up in a closed list of containers,
descriptions of tensors, and `Node`, a class without behavior. Any other name is rejected before anything is called.
Tensors are read one by one on demand, so the optimizer state of an unfinished training takes no memory.

`torch.load(weights_only=True)` does not replace this: it accepts a tensor of 4 GB that repeats the numbers of a 16-byte
storage, reads all tensors at once, and cannot list the classes of the old container for stand-ins.
"""

from __future__ import annotations

import io
import math
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch

from patrolscope.pipeline.errors import WeightsError

# First bytes of the container of torch before 1.6: a pickled magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"
# The largest known pickle (yolov7-e6e with its EMA and optimizer) has about 2 MB.
MAX_PICKLE_BYTES = 64 << 20

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Names from numpy (best_fitness) and from the bound `forward` of a folded model, whose values are not needed.
_IGNORED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("__builtin__", "getattr"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
# All classes of these modules become nodes. Unknown kinds of layers are rejected later, with the layer's index.
_NODE_MODULES = ("models.yolo", "models.common")
_NODE_PACKAGE = "torch.nn.modules."
# Errors that a damaged pickle causes.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    AssertionError,
    struct.error,
)


class ForbiddenNameError(WeightsError):
    """A file names an object that no YOLOv7 checkpoint contains."""

    def __init__(self, name: str, where: str) -> None:
        shown = name if name.isprintable() and len(name) < 100 else reprlib.repr(name)
        super().__init__(
            f"{where} names {shown}, which no YOLOv7 checkpoint contains; rejected, and nothing in it was executed"
        )
        self.name = name


class Node:
    """Inert object in place of an instance of a class in the file, with its saved attributes."""

    official = ""  # module and name of the class
    attributes: Mapping[str, Any]

    def __init__(self, *_arguments: Any) -> None:
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        # The state of a numpy object is a tuple, which is not needed.
        self.attributes = state if isinstance(state, dict) else {}

    def children(self) -> dict[str, Node]:
        """Return the modules directly below this one."""
        return self._of("_modules", Node)

    def tensors(self) -> dict[str, StoredTensor]:
        """Return the parameters and buffers of this module, without those of its children."""
        return self._of("_parameters", StoredTensor) | self._of("_buffers", StoredTensor)

    def _of(self, name: str, kind: type) -> dict[str, Any]:
        items = self.attributes.get(name)
        if not isinstance(items, dict):
            return {}
        return {key: value for key, value in items.items() if isinstance(key, str) and isinstance(value, kind)}


class Storage(NamedTuple):
    """Block of numbers in the file."""

    key: str
    dtype: str
    numbers: int


class StoredTensor(NamedTuple):
    """Description of a tensor in the file, whose values are read on demand."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Archive(Protocol):
    """Opened file: the saved object, and its tensors on demand."""

    root: Any

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """Read the values of a tensor onto the CPU, in their saved type."""

    def close(self) -> None:
        """Close the file."""


def open_archive(path: Path) -> Archive:
    """Open a torch file as data.

    Raises
    ------
    ForbiddenNameError
        If the file names an object that no YOLOv7 checkpoint contains.
    WeightsError
        If the file is not a torch file or is damaged.
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY_MAGIC))
    if start.startswith(ZIP_MAGIC):
        return _ZipArchive(path)
    if start == LEGACY_MAGIC:
        return _LegacyArchive(path)
    raise WeightsError(f"{path.name} is not a torch checkpoint; it starts with {start[:4]!r}")


class _Mapping(dict[Any, Any]):
    """OrderedDict of the file, without attributes that were saved with it."""

    def __setstate__(self, _state: Any) -> None:
        """Ignore saved attributes."""


class _Function:
    """Stand-in for a function that a file may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _state: Any) -> None:
        raise pickle.UnpicklingError("functions have no state")


def _stored_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("tensor of impossible size")
    count = math.prod(size)
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if count else 0
    # A tensor that repeats its numbers could take any amount of memory; checkpoints contain none.
    if max(count, reach) > storage.numbers:
        raise pickle.UnpicklingError("tensor larger than its storage")
    return StoredTensor(storage, offset, size, stride)


_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Mapping,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_stored_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_rest: data),
    **{("torch", name): name for name in _DTYPES},
    **{name: _Function(Node) for name in _IGNORED},
}


# The unpickler written in Python, because the one in C allocates as much memory as a memo index in the file demands.
class _Unpickler(pickle._Unpickler):  # noqa: SLF001
    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file)
        self.where = where
        self.storages: dict[str, Storage] = {}
        self.nodes: dict[tuple[str, str], type[Node]] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in _CALLS:
            return _CALLS[key]
        if module in _NODE_MODULES or module.startswith(_NODE_PACKAGE):
            if key not in self.nodes:
                self.nodes[key] = type(name, (Node,), {"official": f"{module}.{name}"})
            return self.nodes[key]
        raise ForbiddenNameError(f"{module}.{name}", self.where)

    def persistent_load(self, identity: Any) -> Any:
        match identity:
            case ("storage", str(dtype), str(key), str(), int(numbers), *_) if dtype in _DTYPES and numbers >= 0:
                return self.storages.setdefault(key, Storage(key, dtype, numbers))
            # The old container saves the source code of a class beside it.
            case ("module", type() as kind, *_) if issubclass(kind, Node):
                return kind
        raise pickle.UnpicklingError("storage of unknown kind")

    def load(self) -> Any:
        try:
            return super().load()
        except _DAMAGE as error:
            # The message can be as long as the file.
            reason = f"{type(error).__name__} {reprlib.repr(str(error))}"
            raise WeightsError(f"{self.where} is truncated or damaged, or not a torch checkpoint: {reason}") from error


class _ZipArchive:
    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise WeightsError(f"{path.name} is truncated or damaged: {error}") from error
        try:
            self.root = _Unpickler(io.BytesIO(self._pickle()), path.name).load()
        except WeightsError:
            self.close()
            raise

    def _pickle(self) -> bytes:
        entries = {entry.filename: entry for entry in self._zip.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"{self._name} is a zip file but not a torch checkpoint; it has no data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        # torch does not compress, so no entry can be larger than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise WeightsError(
                f"{self._name} is compressed; expected an uncompressed file; save it again with torch.save"
            )
        if f"{self._folder}byteorder" in entries and self._content(f"{self._folder}byteorder") != b"little":
            raise WeightsError(f"{self._name} was saved on a big-endian machine; save it again on a little-endian one")
        size = entries[pickles[0]].file_size
        if size > MAX_PICKLE_BYTES:
            raise WeightsError(f"{self._name} has a data.pkl of {size:,} bytes; expected at most {MAX_PICKLE_BYTES:,}")
        return self._content(pickles[0])

    def _content(self, entry: str) -> bytes:
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
            raise WeightsError(f"{self._name} is truncated or damaged: {error}") from error

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        content = self._content(f"{self._folder}data/{tensor.storage.key}")
        if len(content) != tensor.storage.numbers * _DTYPES[tensor.storage.dtype].itemsize:
            raise WeightsError(f"{self._name} is damaged: data/{tensor.storage.key} has {len(content):,} bytes")
        return _tensor(content, tensor)

    def close(self) -> None:
        self._zip.close()


class _LegacyArchive:
    """A sequence of pickles (magic number, version, system, content, keys of storages), then the storages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        total = path.stat().st_size
        with path.open("rb") as file:
            for _ in range(3):
                _Unpickler(file, path.name).load()
            reader = _Unpickler(file, path.name)
            self.root = reader.load()
            keys = _Unpickler(file, path.name).load()
            self._starts: dict[str, int] = {}
            for key in keys if isinstance(keys, list) else ():
                if key not in reader.storages:
                    raise WeightsError(f"{path.name} is damaged: it has numbers without a tensor")
                storage = reader.storages[key]
                numbers = int.from_bytes(file.read(8), "little")
                self._starts[key] = file.tell()
                end = file.tell() + numbers * _DTYPES[storage.dtype].itemsize
                if numbers != storage.numbers or end > total:
                    raise WeightsError(f"{path.name} is truncated or damaged")
                file.seek(end)

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        if tensor.storage.key not in self._starts:
            raise WeightsError(f"{self._path.name} is damaged: the numbers of a tensor are missing")
        with self._path.open("rb") as file:
            file.seek(self._starts[tensor.storage.key])
            content = file.read(tensor.storage.numbers * _DTYPES[tensor.storage.dtype].itemsize)
        return _tensor(content, tensor)

    def close(self) -> None:
        """Do nothing, as `read` opens the file itself."""


def _tensor(content: bytes, tensor: StoredTensor) -> torch.Tensor:
    dtype = _DTYPES[tensor.storage.dtype]
    if not content:
        return torch.empty(tensor.size, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    return flat.as_strided(tensor.size, tensor.stride, tensor.offset)
