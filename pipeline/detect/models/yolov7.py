"""YOLOv7 in torch: the layer modules, and a network built from any architecture.

Written from the paper (arXiv 2207.02696) and from facts about the released files. Parameters have the names of official
checkpoints (`model.<layer>.<name>`), so that their tensors load by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from patrolscope.pipeline.detect.models.architecture import AUXILIARY, DETECT, HEADS, IMAGE, SILU, Architecture, Layer
from patrolscope.pipeline.errors import WeightsError

# Batch norm of the official models; the defaults of torch would shift every activation.
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.03}
_POOLS = (5, 9, 13)  # kernels of the pyramid pooling


def _activation(name: str | None) -> nn.Module:
    if name is None or name == SILU:
        return nn.SiLU(inplace=True)
    return nn.LeakyReLU(float(name.removeprefix("LeakyReLU(").removesuffix(")")), inplace=True)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of the convolution that replaces a convolution and its batch norm."""
    gain = norm.weight / torch.sqrt(cast("Tensor", norm.running_var) + norm.eps)
    return conv.weight * gain.reshape(-1, 1, 1, 1), norm.bias - cast("Tensor", norm.running_mean) * gain


def _with_bias(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    copy = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # torch declares a tuple of any length
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        device="meta",  # its values are replaced in the next line
    )
    copy.weight, copy.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return copy


class ConvBlock(nn.Module):
    """Convolution, batch norm, and activation."""

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
    """SPPCSPC: max pools of three sizes beside a plain path."""

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
    """Sum of a 3x3 convolution, a 1x1 convolution, and, if shapes allow, the input; one convolution when fused."""

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
            identity = nn.Conv2d(dense.in_channels, dense.out_channels, 1, bias=False, device=weight.device)
            nn.init.dirac_(identity.weight)
            point, point_bias = _folded(identity, self.rbr_identity)
            weight, bias = weight + functional.pad(point, [1, 1, 1, 1]), bias + point_bias
        self.rbr_reparam = _with_bias(dense, weight, bias)
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


class Downsample(nn.Module):
    """DownC: halves the feature map by a convolution beside a max pool."""

    def __init__(self, channels_in: int, channels: int, act: str | None) -> None:
        super().__init__()
        self.cv1 = ConvBlock(channels_in, channels_in, act=act)
        self.cv2 = ConvBlock(channels_in, channels // 2, 3, 2, act=act)
        self.cv3 = ConvBlock(channels_in, channels // 2, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cv2(self.cv1(x)), self.cv3(functional.max_pool2d(x, 2))], 1)


class Pool(nn.Module):
    """Max pool that halves the feature map (2x2) or, with a `kernel`, keeps its size."""

    def __init__(self, kernel: int | None) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            return functional.max_pool2d(x, 2)
        return functional.max_pool2d(x, self.kernel, 1, self.kernel // 2)


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to twice the size."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Concat(nn.Module):
    """Concatenation of channels, in the order of the sources."""

    def forward(self, *sources: Tensor) -> Tensor:
        return torch.cat(sources, 1)


class Sum(nn.Module):
    """Sum of two layers."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class SpaceToDepth(nn.Module):
    """Rearrangement of each 2x2 square of pixels into four times the channels."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x[..., ::2, :], x[..., 1::2, :]
        return torch.cat([rows[0][..., ::2], rows[1][..., ::2], rows[0][..., 1::2], rows[1][..., 1::2]], 1)


class Implicit(nn.Module):
    """Learned value per channel, which the training form adds to or multiplies with a feature map."""

    def __init__(self, channels: int, mean: float) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(mean, 0.02))


class Head(nn.Module):
    """Detection layer: x, y, w, h, objectness, and classes per anchor and cell of each feature map, before the sigmoid.

    The training form adds `ia` to its input and multiplies its output by `im`. Its auxiliary heads `m2` have neither.
    """

    def __init__(self, kind: str, channels: list[int], architecture: Architecture, strides: list[int]) -> None:
        super().__init__()
        feature_maps, self.outputs = architecture.feature_maps, architecture.classes + 5
        pixels = torch.tensor(architecture.anchors, device="cpu").reshape(feature_maps, -1, 2)
        self.anchors_per_cell = pixels.shape[1]
        width = self.anchors_per_cell * self.outputs
        self.register_buffer("anchors", pixels / torch.tensor(strides, device="cpu").reshape(-1, 1, 1))
        self.register_buffer("anchor_grid", pixels.reshape(feature_maps, 1, -1, 1, 1, 2).clone())
        self.m = nn.ModuleList(nn.Conv2d(number, width, 1) for number in channels[:feature_maps])
        self.m2 = (
            nn.ModuleList(nn.Conv2d(number, width, 1) for number in channels[feature_maps:])
            if kind == AUXILIARY
            else None
        )
        self.ia = self.im = None
        if kind != DETECT:
            self.ia = nn.ModuleList(Implicit(number, 0.0) for number in channels[:feature_maps])
            self.im = nn.ModuleList(Implicit(width, 1.0) for _ in range(feature_maps))

    def forward(self, *sources: Tensor) -> list[Tensor]:
        maps = []
        for index, conv in enumerate(self.m):
            if self.ia is None or self.im is None:
                maps.append(self._by_anchor(conv(sources[index])))
            else:
                offset, factor = cast("Tensor", self.ia[index].implicit), cast("Tensor", self.im[index].implicit)
                maps.append(self._by_anchor(conv(sources[index] + offset) * factor))
        if self.training and self.m2 is not None:
            auxiliary = sources[len(self.m) :]
            maps += [self._by_anchor(conv(source)) for conv, source in zip(self.m2, auxiliary, strict=True)]
        return maps

    def _by_anchor(self, x: Tensor) -> Tensor:
        """Reshape (N, anchors * outputs, h, w) to (N, anchors, h, w, outputs)."""
        images, _, height, width = x.shape
        return x.reshape(images, self.anchors_per_cell, self.outputs, height, width).permute(0, 1, 3, 4, 2)

    def fuse(self) -> None:
        """Fold `ia` and `im` into the convolutions and drop the auxiliary heads."""
        self.m2 = None
        if self.ia is None or self.im is None:
            return
        for index, module in enumerate(self.m):
            conv = cast("nn.Conv2d", module)
            offset = cast("Tensor", self.ia[index].implicit)
            factor = cast("Tensor", self.im[index].implicit).flatten()
            # The offset passes through the convolution first, then the factor multiplies everything.
            bias = (cast("Tensor", conv.bias) + (conv.weight * offset).sum((1, 2, 3))) * factor
            self.m[index] = _with_bias(conv, conv.weight * factor.reshape(-1, 1, 1, 1), bias)
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
    """Return channels and stride (pixels per cell) of the image and of every layer except the last, by index.

    Raises
    ------
    WeightsError
        If a layer concatenates or adds feature maps of different shapes.
    """
    known: dict[int, tuple[int, int]] = {IMAGE: (3, 1)}
    for index, layer in enumerate(architecture.layers[:-1]):
        channels, strides = zip(*(known[source] for source in layer.sources), strict=True)
        same_shape = len(set(strides)) == 1 and (layer.kind == "Concat" or len(set(channels)) == 1)
        if not same_shape or len(channels) != {"Shortcut": 2, "Concat": len(channels)}.get(layer.kind, 1):
            raise WeightsError(
                f"layer {index} of the model ({layer.kind}) cannot read layers {layer.sources}; their shapes differ"
            )
        out = {"Concat": sum(channels), "ReOrg": 4 * channels[0]}.get(layer.kind, layer.channels or channels[0])
        scale = {"MP": 2, "ReOrg": 2, "DownC": 2}.get(layer.kind, layer.stride or 1)
        known[index] = out, strides[0] // 2 if layer.kind == "nn.Upsample" else strides[0] * scale
    return known


class Network(nn.Module):
    """YOLOv7 network of any architecture.

    `forward` takes RGB images (N, 3, H, W) scaled to 0..1, with sides that are multiples of `strides[-1]`. It returns
    feature maps (N, n_anchors, h, w, 5 + n_classes) before the sigmoid. In training mode, those of the auxiliary heads
    follow, if there are any.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = channels_and_strides(architecture)
        read = [sizes[source] for source in architecture.head.sources]
        self.strides = tuple(stride for _, stride in read[: architecture.feature_maps])
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
                del known[source]  # feature maps of a large image take much memory
        return cast("list[Tensor]", known[len(self.model) - 1])

    def fuse(self) -> Network:
        """Fold batch norms, RepConv, and implicit layers, and drop layers that only training needs, in place.

        Fuse in float32: in half precision the folded values would differ visibly.
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
        """Replace the network's tensors by those of the same names.

        Raises
        ------
        WeightsError
            If a tensor is missing, unexpected, or has another shape.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if missing := sorted(expected.keys() - shapes.keys()):
            raise WeightsError(f"the weights lack {len(missing)} tensors of their layer list: {missing[0]}, ...")
        if unknown := sorted(shapes.keys() - expected.keys()):
            raise WeightsError(f"the weights have {len(unknown)} tensors outside their layer list: {unknown[0]}, ...")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise WeightsError(f"{name} has shape {shapes[name]} in the weights; its layer list requires {shape}")
        self.load_state_dict(dict(state), assign=True)
        return self


def _plan(architecture: Architecture, sources: tuple[int, ...]) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Return the layers to compute for the head, as index, sources, and sources that are not read afterwards."""
    last = len(architecture.layers) - 1
    steps = [(index, architecture.layers[index].sources) for index in architecture.needed_for(sources)]
    steps.append((last, sources))
    last_reader = {source: index for index, read in steps for source in read}
    return [(index, read, tuple(s for s in set(read) if last_reader[s] == index)) for index, read in steps]


def build(architecture: Architecture) -> Network:
    """Create a network without values for `Network.load`, which takes neither time nor memory for them."""
    with torch.device("meta"):
        return Network(architecture)
