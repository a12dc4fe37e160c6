"""Architecture of a YOLOv7 network as data: layers with their sources, anchors, and classes. Does not import torch.

The same layers are read from `variants.yaml` (compact notation) and from the settings inside an official checkpoint
(rows of from, repeats, kind, arguments), so that networks can be compared and the variant of a checkpoint identified.
"""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from patrolscope.pipeline.errors import WeightsError

IMAGE = -1  # source of the first layer
SILU = "SiLU"

# Official names of the detection layer in its three forms.
DETECT = "Detect"
IMPLICIT = "IDetect"  # training form of models without auxiliary heads
AUXILIARY = "IAuxDetect"  # training form of models with them
HEADS = (DETECT, IMPLICIT, AUXILIARY)

# Official kind for each letter of the compact notation.
_LETTERS = {
    "C": "Conv",
    "M": "MP",
    "S": "SP",
    "U": "nn.Upsample",
    "K": "Concat",
    "P": "SPPCSPC",
    "R": "RepConv",
    "G": "ReOrg",
    "W": "DownC",
    "X": "Shortcut",
    "D": IMPLICIT,
    "A": AUXILIARY,
}
_ACTIVATED = ("Conv", "SPPCSPC", "RepConv", "DownC")  # kinds with an activation
_FIXED_ARGUMENTS: dict[str, tuple[list[Any], ...]] = {
    "MP": ([], [2]),
    "nn.Upsample": ([None, 2, "nearest"],),
    "Concat": ([1],),
    "ReOrg": ([],),
    "Shortcut": ([1],),
}


@dataclass(frozen=True)
class Layer:
    """One layer: its official kind, the layers that it reads, and the parameters of its kind."""

    kind: str
    sources: tuple[int, ...]  # absolute indices; -1 is the image
    channels: int | None = None  # of the output; None if they follow from the sources
    kernel: int | None = None
    stride: int | None = None
    activation: str | None = None  # SiLU or LeakyReLU(slope)


@dataclass(frozen=True)
class Architecture:
    """Layers, anchors, and number of classes, from which a network is built."""

    layers: tuple[Layer, ...]
    # Per feature map: width, height, width, height, ... in pixels of the network's input.
    anchors: tuple[tuple[float, ...], ...]
    classes: int

    @property
    def head(self) -> Layer:
        """The detection layer."""
        return self.layers[-1]

    @property
    def feature_maps(self) -> int:
        """Number of feature maps that the detection layer returns in inference."""
        return len(self.anchors)

    @property
    def lead_sources(self) -> tuple[int, ...]:
        """Layers that the heads used in inference read, finest feature map first."""
        return self.head.sources[: self.feature_maps]

    def deployed(self) -> Architecture:
        """Return the published form: a plain detection layer, without layers that only auxiliary heads read."""
        auxiliary = set(self.head.sources[self.feature_maps :])
        read_by_others = {source for layer in self.layers[:-1] for source in layer.sources} | set(self.lead_sources)
        body = [layer for index, layer in enumerate(self.layers[:-1]) if index not in auxiliary - read_by_others]
        return replace(self, layers=(*body, Layer(DETECT, self.lead_sources)))

    def needed_for(self, sources: Sequence[int]) -> tuple[int, ...]:
        """Return the layers on which the given ones depend, including themselves, in order."""
        needed = set(sources)
        for index in range(len(self.layers) - 1, -1, -1):
            if index in needed:
                needed.update(self.layers[index].sources)
        return tuple(sorted(needed - {IMAGE}))


@cache
def variant_names() -> tuple[str, ...]:
    """Return the names of the variants in variants.yaml."""
    return tuple(_variants()["variants"])


@cache
def variant(name: str, classes: int = 80) -> Architecture:
    """Return a variant of variants.yaml in its training form.

    Raises
    ------
    WeightsError
        If the variant does not exist.
    """
    known = _variants()
    if name not in known["variants"]:
        raise WeightsError(f"network {name!r} is unknown; expected one of {', '.join(known['variants'])}")
    entry = known["variants"][name]
    base = known["variants"][entry["like"]] if "like" in entry else entry
    anchors = tuple(
        tuple(float(number) for number in re.split(r"[ ,]", sizes.strip()))
        for sizes in known["anchors"][base["anchors"]].split("|")
    )
    return Architecture(tuple(_expand(base["layers"], entry["activation"])), anchors, classes)


def guess_variant(architecture: Architecture) -> str | None:
    """Return the name of the variant with exactly these layers, in training or published form, or None."""
    plain = _as_detect(architecture.layers)
    for name in variant_names():
        known = variant(name)
        if plain in (_as_detect(known.layers), _as_detect(known.deployed().layers)):
            return name
    return None


def _as_detect(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Return the layers with a plain detection layer, because a published form can also be trained."""
    return (*layers[:-1], replace(layers[-1], kind=DETECT))


@cache
def _variants() -> dict[str, Any]:
    text = Path(__file__).with_name("variants.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


# The compact notation.

_ENTRY = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+))? (?P<kind>[A-Z])(?P<numbers>[^<]*)<(?P<sources>[-\d,]+)")


def _expand(text: str, activation: str) -> Iterator[Layer]:
    index = 0
    for entry in re.split(r"[;\n]", text):
        if not entry.strip():
            continue
        match = _ENTRY.fullmatch(entry.strip())
        if match is None or int(match["first"]) != index:
            raise ValueError(f"variants.yaml: {entry.strip()!r}; expected layer {index}")
        sources = tuple(int(source) for source in match["sources"].split(","))
        numbers = [int(number) for number in re.split(r"[,/s]", match["numbers"]) if number]
        layers = (
            _run(match["kind"], numbers, sources[0], index, activation)
            if match["kind"] in "EF"
            else [_single(_LETTERS[match["kind"]], numbers, sources, activation)]
        )
        yield from layers
        index += len(layers)
        if match["last"] is not None and index != int(match["last"]) + 1:
            raise ValueError(f"variants.yaml: {entry.strip()!r} has {len(layers)} layers")


def _single(kind: str, numbers: list[int], sources: tuple[int, ...], activation: str) -> Layer:
    if kind == "Conv":
        channels, kernel, stride = (*numbers, 1)[:3]
        return Layer(kind, sources, channels, kernel, stride, activation)
    if kind == "SP":
        return Layer(kind, sources, kernel=numbers[0])
    size = numbers[0] if numbers else None
    return Layer(kind, sources, size, activation=activation if kind in _ACTIVATED else None)


def _run(letter: str, numbers: list[int], source: int, first: int, activation: str) -> list[Layer]:
    """Return the layers of a run E or F (see the head of variants.yaml) that starts at index `first`."""
    wide, length, out = numbers

    def conv(channels: int, kernel: int, source: int) -> Layer:
        return Layer("Conv", (source,), channels, kernel, 1, activation)

    chain = wide if letter == "E" else wide // 2
    last = first + 1 + length
    joined = (*range(last, first, -2 if letter == "E" else -1), first)
    return [
        conv(wide, 1, source),
        conv(wide, 1, source),
        *(conv(chain, 3, first + 1 + step) for step in range(length)),
        Layer("Concat", joined),
        conv(out, 1, last + 1),
    ]


# The settings inside an official checkpoint.


def from_official(settings: Any) -> Architecture:
    """Read the architecture from the settings inside an official checkpoint.

    Parameters
    ----------
    settings : dict
        `nc`, `anchors` (pixels, one list per feature map), `backbone`, and `head` (rows of from, repeats, kind,
        arguments). Strings among the arguments are compared, never evaluated.

    Raises
    ------
    WeightsError
        If a layer kind, an argument, or a multiple does not occur in any YOLOv7 variant.
    """
    if not isinstance(settings, dict):
        raise WeightsError("the model has no settings (`yaml`); expected an official YOLOv7 checkpoint")
    for key, only in (("depth_multiple", 1.0), ("width_multiple", 1.0), ("ch", 3)):
        if settings.get(key, only) != only:
            raise WeightsError(f"{key} of the model is {reprlib.repr(settings[key])}; expected {only}")
    rows = [*_list(settings.get("backbone"), "backbone"), *_list(settings.get("head"), "head")]
    layers = tuple(_from_row(index, row) for index, row in enumerate(rows))
    heads = [layer.kind for layer in layers if layer.kind in HEADS]
    if len(heads) != 1 or layers[-1].kind not in HEADS:
        raise WeightsError(f"the model has {len(heads)} detection layers; expected one, as its last layer")
    anchors = settings.get("anchors")
    if not isinstance(anchors, list) or not all(_are_sizes(sizes) for sizes in anchors):
        raise WeightsError(
            f"anchors of the model are {reprlib.repr(anchors)}; expected a list of widths and heights per feature map"
        )
    classes = settings.get("nc")
    if not isinstance(classes, int) or classes < 1:
        raise WeightsError(f"nc of the model is {reprlib.repr(classes)}; expected the number of classes")
    architecture = Architecture(layers, tuple(tuple(float(number) for number in sizes) for sizes in anchors), classes)
    head = architecture.head
    expected = architecture.feature_maps * (2 if head.kind == AUXILIARY else 1)
    if len(head.sources) != expected:
        raise WeightsError(f"the detection layer reads {len(head.sources)} layers; expected {expected}")
    return architecture


def to_official(architecture: Architecture) -> dict[str, Any]:
    """Return the settings in the form of an official checkpoint; the inverse of `from_official`."""
    rows = [_to_row(layer) for layer in architecture.layers]
    return {
        "nc": architecture.classes,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": [list(sizes) for sizes in architecture.anchors],
        "backbone": rows[:-1],
        "head": rows[-1:],
        "ch": 3,
    }


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise WeightsError(f"{name} of the model's settings is not a list of layers")
    return value


def _are_sizes(anchors: Any) -> bool:
    """Return whether the anchors of a feature map are a list of widths and heights."""
    numbers = isinstance(anchors, list) and all(isinstance(number, int | float) for number in anchors)
    return numbers and len(anchors) > 0 and len(anchors) % 2 == 0


def _from_row(index: int, row: Any) -> Layer:
    where = f"layer {index} of the model"
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[2], str) or not isinstance(row[3], list):
        raise WeightsError(f"{where} is {reprlib.repr(row)}; expected [from, repeats, kind, arguments]")
    sources, repeats, kind, arguments = row
    if kind not in (*_LETTERS.values(), DETECT):
        raise WeightsError(f"{where} is of kind {reprlib.repr(kind)}, which is not a supported YOLOv7 layer")
    if repeats != 1:
        raise WeightsError(f"{where} ({kind}) is repeated {reprlib.repr(repeats)} times; expected 1")
    absolute = absolute_sources(index, sources)
    if kind in HEADS:
        return Layer(kind, absolute)
    plain = [None if argument == "None" else argument for argument in arguments]
    if kind in _FIXED_ARGUMENTS:
        if plain not in _FIXED_ARGUMENTS[kind]:
            raise WeightsError(
                f"{where} ({kind}) has arguments {reprlib.repr(arguments)}; expected {_FIXED_ARGUMENTS[kind][-1]}"
            )
        return Layer(kind, absolute)
    return _from_arguments(where, kind, absolute, plain)


def _from_arguments(where: str, kind: str, sources: tuple[int, ...], arguments: list[Any]) -> Layer:
    """Return a layer of a kind whose arguments contain its size."""
    padded = [*arguments, *itertools.repeat(None, 6 - len(arguments))]
    numbers = [argument for argument in padded[:3] if argument is not None]
    if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise WeightsError(f"{where} ({kind}) has arguments {reprlib.repr(arguments)}; expected sizes")
    activation = _activation(where, padded[5])
    if kind == "Conv" and padded[3] is None and padded[4] in (None, 1):
        channels, kernel, stride = (padded[0], padded[1] or 1, padded[2] or 1)
        return Layer(kind, sources, channels, kernel, stride, activation)
    if kind == "SP" and padded[2:] in ([None] * 4, [1, *[None] * 3]) and padded[1] in (None, 1):
        return Layer(kind, sources, kernel=padded[0])
    if kind == "RepConv" and padded[1] in (None, 3) and padded[2] in (None, 1) and padded[3:5] == [None, None]:
        return Layer(kind, sources, padded[0], activation=activation)
    if kind in ("SPPCSPC", "DownC") and padded[1:] == [None] * 5:
        return Layer(kind, sources, padded[0], activation=activation)
    raise WeightsError(f"{where} ({kind}) has arguments {reprlib.repr(arguments)}, which no YOLOv7 variant has")


def absolute_sources(index: int, sources: Any) -> tuple[int, ...]:
    """Return the sources of layer `index` as absolute indices; official negative ones count back from the layer.

    Raises
    ------
    WeightsError
        If a source is not an earlier layer.
    """
    listed = sources if isinstance(sources, list | tuple) else [sources]
    if not listed or not all(isinstance(source, int) for source in listed):
        raise WeightsError(f"layer {index} of the model reads {reprlib.repr(sources)}; expected indices of layers")
    absolute = tuple(source if source >= 0 else index + source for source in listed)
    first = IMAGE if index == 0 else 0
    if not all(first <= source < index for source in absolute):
        raise WeightsError(f"layer {index} of the model reads {reprlib.repr(sources)}; expected earlier layers")
    return absolute


def _activation(where: str, text: Any) -> str:
    if text in (None, True, "nn.SiLU()"):
        return SILU
    match = re.fullmatch(r"nn\.(LeakyReLU\(0?\.\d+)(?:, *inplace=True)?\)", text) if isinstance(text, str) else None
    if match is None:
        raise WeightsError(f"{where} has the activation {reprlib.repr(text)}; expected SiLU or LeakyReLU")
    return f"{match[1]})"


def _to_row(layer: Layer) -> list[Any]:
    sources: Any = list(layer.sources) if len(layer.sources) > 1 or layer.kind in HEADS else layer.sources[0]
    arguments: list[Any]
    if layer.kind in HEADS:
        arguments = ["nc", "anchors"]
    elif layer.kind == "Conv":
        arguments = [layer.channels, layer.kernel, layer.stride]
        if layer.activation != SILU:
            arguments += ["None", 1, f"nn.{layer.activation}"]
    elif layer.kind == "RepConv":
        arguments = [layer.channels, 3, 1]
    elif layer.kind == "SP":
        arguments = [layer.kernel]
    elif layer.kind in ("SPPCSPC", "DownC"):
        arguments = [layer.channels]
    else:
        arguments = ["None" if value is None else value for value in _FIXED_ARGUMENTS[layer.kind][0]]
    return [sources, 1, layer.kind, arguments]
