"""A torch file as plain data: tensors, containers, inert stand-ins for the classes it names. Nothing in it is executed.

A pickle is a program that calls what it names. Here every name is looked up in one closed list, which leads to
containers, to descriptions of tensors and to `Node`, a class that does nothing; any other name is refused before
anything is called. Tensors are read one by one when asked for, so the optimizer's state of an unstripped file costs no
memory.
"""

from __future__ import annotations

import io
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import torch

from patrolscope.pipeline.errors import WeightsError

# First bytes of the container that torch wrote before 1.6: a pickled magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"
# The pickle of the largest model (yolov7-e6e with its EMA and optimizer) has about 2 MB.
LARGEST_PICKLE_BYTES = 64 << 20

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
# Names of numpy (best_fitness) and of a folded model's bound `forward`: read over, their values are not needed.
_READ_OVER = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("__builtin__", "getattr"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
# Modules whose classes become nodes, whatever their name: an unknown kind of layer is refused later, with its place.
_NODE_MODULES = ("models.yolo", "models.common")
_NODE_PACKAGE = "torch.nn.modules."
# What a damaged pickle runs into.
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


class ForbiddenName(WeightsError):
    """A file names something that is not on the list of what a checkpoint may hold."""

    def __init__(self, name: str, where: str) -> None:
        shown = name if name.isprintable() and len(name) < 100 else reprlib.repr(name)
        super().__init__(
            f"{where} names {shown}, which no YOLOv7 checkpoint holds: refused, nothing of it was executed"
        )
        self.name = name


class Node:
    """An object of a class that the file names, as the attributes it was saved with."""

    official = ""  # module and name of the class
    attributes: Mapping[str, Any]

    def __init__(self, *_arguments: Any) -> None:
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        # The state of an object of numpy is a tuple, and not needed.
        self.attributes = state if isinstance(state, dict) else {}

    def children(self) -> dict[str, Node]:
        """Modules directly below this one."""
        return self._of("_modules", Node)

    def tensors(self) -> dict[str, StoredTensor]:
        """Parameters and buffers of this module alone."""
        return self._of("_parameters", StoredTensor) | self._of("_buffers", StoredTensor)

    def _of(self, name: str, kind: type) -> dict[str, Any]:
        held = self.attributes.get(name)
        if not isinstance(held, dict):
            return {}
        return {key: value for key, value in held.items() if isinstance(key, str) and isinstance(value, kind)}


class Storage(NamedTuple):
    """A block of numbers in the file."""

    key: str
    dtype: str
    numbers: int


class StoredTensor(NamedTuple):
    """A tensor of the file, not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Archive(Protocol):
    """An opened file: what was saved, and its tensors on demand."""

    root: Any

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """Values of a tensor, on the CPU, in the type they were saved in."""

    def close(self) -> None:
        """Close the file."""


def open_archive(path: Path) -> Archive:
    """The file as data.

    Raises
    ------
    ForbiddenName : it names something that is not known here; says what
    WeightsError : it is no torch file, or is damaged
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY_MAGIC))
    if start.startswith(ZIP_MAGIC):
        return _ZipArchive(path)
    if start == LEGACY_MAGIC:
        return _LegacyArchive(path)
    raise WeightsError(f"{path.name} is no torch checkpoint: it starts with {start[:4]!r}")


class _Mapping(dict[Any, Any]):
    """An OrderedDict of the file; attributes saved with it are left out."""

    def __setstate__(self, _state: Any) -> None:
        """Left out."""


class _Function:
    """What stands for a function that a file may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, _state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _stored_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor without its storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor of impossible size")
    held = 1
    for length in size:
        held *= length
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if held else 0
    # A tensor that repeats its numbers could ask for any amount of memory; none of a checkpoint does.
    if max(held, reach) > storage.numbers:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return StoredTensor(storage, offset, size, stride)


_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Mapping,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_stored_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_rest: data),
    **{("torch", name): name for name in _DTYPES},
    **{name: _Function(Node) for name in _READ_OVER},
}


# The unpickler in Python: the one in C would allocate whatever a memo index of the file says.
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
        raise ForbiddenName(f"{module}.{name}", self.where)

    def persistent_load(self, identity: Any) -> Any:
        match identity:
            case ("storage", str(dtype), str(key), str(), int(numbers), *_) if dtype in _DTYPES and numbers >= 0:
                return self.storages.setdefault(key, Storage(key, dtype, numbers))
            # The old container saves the source text of a class beside it.
            case ("module", type() as kind, *_) if issubclass(kind, Node):
                return kind
        raise pickle.UnpicklingError("a storage of unknown kind")

    def load(self) -> Any:
        try:
            return super().load()
        except _DAMAGE as error:
            # What a damaged program ran into can be as long as the program.
            found = f"{type(error).__name__} {reprlib.repr(str(error))}"
            raise WeightsError(f"{self.where} is truncated or damaged, or no torch checkpoint: {found}") from error


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
            raise WeightsError(f"{self._name} is a zip file, but no torch checkpoint: it has no data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        # torch compresses nothing, so nothing in a file can be larger than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise WeightsError(f"{self._name} is compressed, which torch never does: save it again with torch.save")
        if f"{self._folder}byteorder" in entries and self._content(f"{self._folder}byteorder") != b"little":
            raise WeightsError(f"{self._name} was saved on a big-endian machine: save it again on another")
        size = entries[pickles[0]].file_size
        if size > LARGEST_PICKLE_BYTES:
            raise WeightsError(
                f"{self._name} has a data.pkl of {size:,} bytes: at most {LARGEST_PICKLE_BYTES:,} are read"
            )
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
    """Pickles one after the other (magic number, version, system, content, keys of storages), then the storages."""

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
                    raise WeightsError(f"{path.name} is damaged: it holds numbers of no tensor")
                storage = reader.storages[key]
                numbers = int.from_bytes(file.read(8), "little")
                self._starts[key] = file.tell()
                end = file.tell() + numbers * _DTYPES[storage.dtype].itemsize
                if numbers != storage.numbers or end > total:
                    raise WeightsError(f"{path.name} is truncated or damaged")
                file.seek(end)

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        if tensor.storage.key not in self._starts:
            raise WeightsError(f"{self._path.name} is damaged: it lacks numbers of a tensor")
        with self._path.open("rb") as file:
            file.seek(self._starts[tensor.storage.key])
            content = file.read(tensor.storage.numbers * _DTYPES[tensor.storage.dtype].itemsize)
        return _tensor(content, tensor)

    def close(self) -> None:
        """Nothing is held open."""


def _tensor(content: bytes, tensor: StoredTensor) -> torch.Tensor:
    dtype = _DTYPES[tensor.storage.dtype]
    if not content:
        return torch.empty(tensor.size, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    return flat.as_strided(tensor.size, tensor.stride, tensor.offset)
