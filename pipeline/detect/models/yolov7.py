"""YOLOv7 in torch: the module kinds, and one builder that makes a network of any architecture.

Written from the paper (arXiv 2207.02696) and from facts about the released files. Parameters carry the names of
official checkpoints (`model.<layer>.<name>`), so that their tensors load by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from patrolscope.pipeline.detect.models.architecture import AUXILIARY, DETECT, HEADS, IMAGE, SILU, Architecture, Layer
from patrolscope.pipeline.errors import WeightsError

# Of every batch norm of the official models; torch's own default would shift every activation.
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.03}
_POOLS = (5, 9, 13)  # kernels of the pyramid pooling


def _activation(name: str | None) -> nn.Module:
    if name is None or name == SILU:
        return nn.SiLU(inplace=True)
    return nn.LeakyReLU(float(name.removeprefix("LeakyReLU(").removesuffix(")")), inplace=True)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that does what convolution and batch norm did."""
    gain = norm.weight / torch.sqrt(cast("Tensor", norm.running_var) + norm.eps)
    return conv.weight * gain.reshape(-1, 1, 1, 1), norm.bias - cast("Tensor", norm.running_mean) * gain


def _with_bias(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # torch declares a tuple of any length
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        device="meta",  # its values are replaced in the next line
    )
    made.weight, made.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return made


class ConvBlock(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, act: str | None = SILU
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(channels, **_BATCH_NORM)  # type: ignore[arg-type]
        self.act = _activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.act(self.bn(self.conv(x))))

    def fuse(self) -> None:
        """Fold the batch norm into the convolution."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = _with_bias(self.conv, *_folded(self.conv, self.bn))
            self.bn = nn.Identity()


class PyramidPooling(nn.Module):
    """SPPCSPC: pools of three sizes beside a plain path."""

    def __init__(self, channels_in: int, channels: int, act: str | None) -> None:
        super().__init__()
        self.cv1 = ConvBlock(channels_in, channels, act=act)
        self.cv2 = ConvBlock(channels_in, channels, act=act)
        self.cv3 = ConvBlock(channels, channels, 3, act=act)
        self.cv4 = ConvBlock(channels, channels, act=act)
        self.cv5 = ConvBlock(4 * channels, channels, act=act)
        self.cv6 = ConvBlock(channels, channels, 3, act=act)
        self.cv7 = ConvBlock(2 * channels, channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.cv4(self.cv3(self.cv1(x)))
        pooled = [functional.max_pool2d(narrow, kernel, 1, kernel // 2) for kernel in _POOLS]
        pyramid = self.cv6(self.cv5(torch.cat([narrow, *pooled], 1)))
        return cast("Tensor", self.cv7(torch.cat([pyramid, self.cv2(x)], 1)))


class RepConv(nn.Module):
    """A 3x3 and a 1x1 convolution (and the input itself where shapes allow), summed; one convolution when fused."""

    def __init__(self, channels_in: int, channels: int, act: str | None) -> None:
        super().__init__()

        def branch(kernel: int) -> nn.Sequential:
            conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels, **_BATCH_NORM))  # type: ignore[arg-type]

        self.act = _activation(act)
        self.rbr_dense: nn.Sequential | None = branch(3)
        self.rbr_1x1: nn.Sequential | None = branch(1)
        self.rbr_identity: nn.BatchNorm2d | None = (
            nn.BatchNorm2d(channels, **_BATCH_NORM) if channels_in == channels else None  # type: ignore[arg-type]
        )
        self.rbr_reparam: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rbr_reparam is not None:
            return cast("Tensor", self.act(self.rbr_reparam(x)))
        assert self.rbr_dense is not None  # noqa: S101 - for the type checker
        assert self.rbr_1x1 is not None  # noqa: S101
        summed = self.rbr_dense(x) + self.rbr_1x1(x)
        return cast("Tensor", self.act(summed if self.rbr_identity is None else summed + self.rbr_identity(x)))

    def fuse(self) -> None:
        """Fold all branches into one 3x3 convolution."""
        if self.rbr_dense is None or self.rbr_1x1 is None:
            return
        dense = cast("nn.Conv2d", self.rbr_dense[0])
        weight, bias = _folded(dense, cast("nn.BatchNorm2d", self.rbr_dense[1]))
        point, point_bias = _folded(cast("nn.Conv2d", self.rbr_1x1[0]), cast("nn.BatchNorm2d", self.rbr_1x1[1]))
        weight, bias = weight + functional.pad(point, [1, 1, 1, 1]), bias + point_bias
        if self.rbr_identity is not None:
            same = nn.Conv2d(dense.in_channels, dense.out_channels, 1, bias=False, device=weight.device)
            nn.init.dirac_(same.weight)
            point, point_bias = _folded(same, self.rbr_identity)
            weight, bias = weight + functional.pad(point, [1, 1, 1, 1]), bias + point_bias
        self.rbr_reparam = _with_bias(dense, weight, bias)
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


class Downsample(nn.Module):
    """DownC: halves the map by a convolution beside a pool."""

    def __init__(self, channels_in: int, channels: int, act: str | None) -> None:
        super().__init__()
        self.cv1 = ConvBlock(channels_in, channels_in, act=act)
        self.cv2 = ConvBlock(channels_in, channels // 2, 3, 2, act=act)
        self.cv3 = ConvBlock(channels_in, channels // 2, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cv2(self.cv1(x)), self.cv3(functional.max_pool2d(x, 2))], 1)


class Pool(nn.Module):
    """Max pool: 2x2 that halves the map, or of another kernel that keeps its size."""

    def __init__(self, kernel: int | None) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            return functional.max_pool2d(x, 2)
        return functional.max_pool2d(x, self.kernel, 1, self.kernel // 2)


class Upsample(nn.Module):
    """Every value four times."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Concat(nn.Module):
    """Channels of several layers, in the order of the sources."""

    def forward(self, *sources: Tensor) -> Tensor:
        return torch.cat(sources, 1)


class Sum(nn.Module):
    """Two layers added."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class SpaceToDepth(nn.Module):
    """Four pixels of a square become four times the channels."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x[..., ::2, :], x[..., 1::2, :]
        return torch.cat([rows[0][..., ::2], rows[1][..., ::2], rows[0][..., 1::2], rows[1][..., 1::2]], 1)


class Implicit(nn.Module):
    """A learned value for every channel, which the training form adds to or multiplies with a map."""

    def __init__(self, channels: int, mean: float) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(mean, 0.02))


class Head(nn.Module):
    """The detection layer: for every cell of each level and anchor x, y, w, h, object and classes, before the sigmoid.

    The training form adds `ia` to what it reads and multiplies with `im`; its auxiliary heads `m2` have neither.
    """

    def __init__(self, kind: str, channels: list[int], architecture: Architecture, strides: list[int]) -> None:
        super().__init__()
        levels, self.outputs = architecture.levels, architecture.classes + 5
        pixels = torch.tensor(architecture.anchors, device="cpu").reshape(levels, -1, 2)
        self.anchors_each = pixels.shape[1]
        wide = self.anchors_each * self.outputs
        self.register_buffer("anchors", pixels / torch.tensor(strides, device="cpu").reshape(-1, 1, 1))
        self.register_buffer("anchor_grid", pixels.reshape(levels, 1, -1, 1, 1, 2).clone())
        self.m = nn.ModuleList(nn.Conv2d(number, wide, 1) for number in channels[:levels])
        self.m2 = (
            nn.ModuleList(nn.Conv2d(number, wide, 1) for number in channels[levels:]) if kind == AUXILIARY else None
        )
        self.ia = self.im = None
        if kind != DETECT:
            self.ia = nn.ModuleList(Implicit(number, 0.0) for number in channels[:levels])
            self.im = nn.ModuleList(Implicit(wide, 1.0) for _ in range(levels))

    def forward(self, *sources: Tensor) -> list[Tensor]:
        maps = []
        for level, conv in enumerate(self.m):
            if self.ia is None or self.im is None:
                maps.append(self._by_anchor(conv(sources[level])))
            else:
                added, factor = cast("Tensor", self.ia[level].implicit), cast("Tensor", self.im[level].implicit)
                maps.append(self._by_anchor(conv(sources[level] + added) * factor))
        if self.training and self.m2 is not None:
            auxiliary = sources[len(self.m) :]
            maps += [self._by_anchor(conv(source)) for conv, source in zip(self.m2, auxiliary, strict=True)]
        return maps

    def _by_anchor(self, x: Tensor) -> Tensor:
        """(N, anchors * outputs, h, w) as (N, anchors, h, w, outputs)."""
        images, _, height, width = x.shape
        return x.reshape(images, self.anchors_each, self.outputs, height, width).permute(0, 1, 3, 4, 2)

    def fuse(self) -> None:
        """Fold `ia` and `im` into the convolutions and drop the auxiliary heads."""
        self.m2 = None
        if self.ia is None or self.im is None:
            return
        for level, module in enumerate(self.m):
            conv = cast("nn.Conv2d", module)
            added = cast("Tensor", self.ia[level].implicit)
            factor = cast("Tensor", self.im[level].implicit).flatten()
            # The order matters: what is added passes through the convolution, and all of it is multiplied.
            bias = (cast("Tensor", conv.bias) + (conv.weight * added).sum((1, 2, 3))) * factor
            self.m[level] = _with_bias(conv, conv.weight * factor.reshape(-1, 1, 1, 1), bias)
        self.ia = self.im = None


_BUILDERS: dict[str, Callable[[Layer, int], nn.Module]] = {
    "Conv": lambda layer, c: ConvBlock(c, _of(layer.channels), _of(layer.kernel), _of(layer.stride), layer.activation),
    "MP": lambda _layer, _c: Pool(None),
    "SP": lambda layer, _c: Pool(layer.kernel),
    "nn.Upsample": lambda _layer, _c: Upsample(),
    "Concat": lambda _layer, _c: Concat(),
    "SPPCSPC": lambda layer, c: PyramidPooling(c, _of(layer.channels), layer.activation),
    "RepConv": lambda layer, c: RepConv(c, _of(layer.channels), layer.activation),
    "ReOrg": lambda _layer, _c: SpaceToDepth(),
    "DownC": lambda layer, c: Downsample(c, _of(layer.channels), layer.activation),
    "Shortcut": lambda _layer, _c: Sum(),
}


def _of(number: int | None) -> int:
    return cast("int", number)


def channels_and_strides(architecture: Architecture) -> dict[int, tuple[int, int]]:
    """Channels of the image and every layer but the last, and pixels of the input that one of its cells spans.

    Raises
    ------
    WeightsError : layers joined or summed whose maps can not be joined
    """
    known: dict[int, tuple[int, int]] = {IMAGE: (3, 1)}
    for index, layer in enumerate(architecture.layers[:-1]):
        channels, strides = zip(*(known[source] for source in layer.sources), strict=True)
        alike = len(set(strides)) == 1 and (layer.kind == "Concat" or len(set(channels)) == 1)
        if not alike or len(channels) != {"Shortcut": 2, "Concat": len(channels)}.get(layer.kind, 1):
            raise WeightsError(f"layer {index} of the model ({layer.kind}) can not read layers {layer.sources}")
        out = {"Concat": sum(channels), "ReOrg": 4 * channels[0]}.get(layer.kind, layer.channels or channels[0])
        scale = {"MP": 2, "ReOrg": 2, "DownC": 2}.get(layer.kind, layer.stride or 1)
        known[index] = out, strides[0] // 2 if layer.kind == "nn.Upsample" else strides[0] * scale
    return known


class Network(nn.Module):
    """A YOLOv7 of any architecture.

    `forward` takes (N, 3, H, W) in 0..1, RGB, sides multiples of `strides[-1]`, and returns a map (N, anchors, h, w,
    5 + classes) a level, before the sigmoid; in training mode those of the auxiliary heads, if there are any, follow.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = channels_and_strides(architecture)
        read = [sizes[source] for source in architecture.head.sources]
        self.strides = tuple(stride for _, stride in read[: architecture.levels])
        self.model = nn.ModuleList()
        for layer in architecture.layers:
            if layer.kind in HEADS:
                self.model.append(
                    Head(layer.kind, [channels for channels, _ in read], architecture, list(self.strides))
                )
            else:
                self.model.append(_BUILDERS[layer.kind](layer, sizes[layer.sources[0]][0]))
        self._plan = _plan(architecture, architecture.head.sources)
        self._lead_plan = _plan(architecture, architecture.lead_sources)

    @property
    def head(self) -> Head:
        """The detection layer."""
        return cast("Head", self.model[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        known = {IMAGE: images}
        for index, sources, unread in self._plan if self.training else self._lead_plan:
            known[index] = self.model[index](*(known[source] for source in sources))
            for source in unread:
                del known[source]  # the maps of a large image are large
        return cast("list[Tensor]", known[len(self.model) - 1])

    def fuse(self) -> Network:
        """Fold batch norms, RepConv and implicit layers for inference, and drop what only training needs; in place.

        To be done in float32: in half precision the folded values would differ visibly.
        """
        lead = {index for index, _, _ in self._lead_plan}
        for index in range(len(self.model)):
            if index not in lead:
                self.model[index] = nn.Identity()
        with torch.no_grad():
            for module in list(self.modules()):
                if isinstance(module, ConvBlock | RepConv | Head):
                    module.fuse()
        return self.eval()

    def load(self, state: Mapping[str, Tensor]) -> Network:
        """Take these tensors for the network's own, by name.

        Raises
        ------
        WeightsError : a name too many or missing, or a tensor of another shape; says which
        """
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if missing := sorted(own.keys() - given.keys()):
            raise WeightsError(f"the weights lack {len(missing)} tensors of their own layer list: {missing[0]}, ...")
        if unknown := sorted(given.keys() - own.keys()):
            raise WeightsError(
                f"the weights hold {len(unknown)} tensors that the layer list has not: {unknown[0]}, ..."
            )
        for name, shape in own.items():
            if given[name] != shape:
                raise WeightsError(f"{name} is {given[name]} in the weights: the layer list makes it {shape}")
        self.load_state_dict(dict(state), assign=True)
        return self


def _plan(architecture: Architecture, sources: tuple[int, ...]) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Layers to compute for those that the head reads: index, what it reads, what nobody reads afterwards."""
    last = len(architecture.layers) - 1
    steps = [(index, architecture.layers[index].sources) for index in architecture.needed_for(sources)]
    steps.append((last, sources))
    last_reader = {source: index for index, read in steps for source in read}
    return [(index, read, tuple(s for s in set(read) if last_reader[s] == index)) for index, read in steps]


def build(architecture: Architecture) -> Network:
    """A network without values, for `Network.load`: takes no time and no memory for them."""
    with torch.device("meta"):
        return Network(architecture)
