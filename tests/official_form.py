"""Checkpoints as the official trainer writes them, created from the description of the format alone.

Nothing of pipeline.detect.weights.checkpoint_writer is used: classes, modules, and settings are written independently.
"""

import sys
import warnings
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn

NAMES = {
    "models": (),
    "models.yolo": ("Model", "Detect", "IDetect", "IAuxDetect"),
    "models.common": (
        *("Conv", "Concat", "MP", "SP", "SPPCSPC", "RepConv", "ReOrg", "DownC", "Shortcut", "ImplicitA", "ImplicitM"),
        *("Focus",),  # used by other networks only
    ),
}

# Every kind of layer, with few channels; two feature maps of strides 8 and 16, with auxiliary heads.
SMALL = {
    "nc": 2,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "ReOrg", []],
        [-1, 1, "Conv", [8, 3, 1]],
        [-1, 1, "DownC", [16]],
        [-1, 1, "Conv", [16, 1, 1]],
        [[-1, -2], 1, "Shortcut", [1]],
        [-1, 1, "MP", []],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "SPPCSPC", [12]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 5], 1, "Concat", [1]],
        [-1, 1, "RepConv", [28, 3, 1]],
        [-1, 1, "SP", [5]],
        [7, 1, "RepConv", [20, 3, 1]],
        [9, 1, "Conv", [24, 3, 1]],
        [7, 1, "Conv", [20, 3, 1]],
        [[11, 12, 13, 14], 1, "IAuxDetect", ["nc", "anchors"]],
    ],
    "ch": 3,
}
# Another activation, as in yolov7-tiny, with its arguments as text.
LEAKY = {
    "nc": 1,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23]],
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]],
        [-1, 1, "Conv", [8, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]],
        [-1, 1, "Conv", [8, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]],
    ],
    "head": [[[2], 1, "Detect", ["nc", "anchors"]]],
    "ch": 3,
}


@contextmanager
def official_modules():
    """Create empty modules under the official names for the duration of the block."""
    classes = {}
    for module, names in NAMES.items():
        sys.modules[module] = ModuleType(module)
        for name in names:
            classes[name] = type(name, (nn.Module,), {"__module__": module})
            setattr(sys.modules[module], name, classes[name])
    try:
        yield classes
    finally:
        for module in NAMES:
            del sys.modules[module]


def bn(channels):
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_(0, 0.3)
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 1.5)
    return norm


def part(kind, **children):
    module = kind()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def conv(classes, c1, c2, k=1, s=1, act=None):
    return part(
        classes["Conv"],
        conv=nn.Conv2d(c1, c2, k, s, k // 2, bias=False),
        bn=bn(c2),
        act=nn.SiLU() if act is None else act,
    )


def layer(classes, kind, args, channels, settings):
    """Create the official object of one row, and return it with its number of output channels."""
    c = channels[0]
    if kind == "Conv":
        act = nn.LeakyReLU(0.1) if len(args) > 3 else None
        return conv(classes, c, *args[:3], act), args[0]
    if kind == "DownC":
        n = args[0] // 2
        return part(
            classes[kind], cv1=conv(classes, c, c), cv2=conv(classes, c, n, 3, 2), cv3=conv(classes, c, n)
        ), 2 * n
    if kind == "SPPCSPC":
        n = args[0]
        shapes = [(c, n, 1), (c, n, 1), (n, n, 3), (n, n, 1), (4 * n, n, 1), (n, n, 3), (2 * n, n, 1)]
        return part(classes[kind], **{f"cv{i}": conv(classes, *s) for i, s in enumerate(shapes, 1)}), n
    if kind == "RepConv":
        n = args[0]
        branches = {
            "rbr_dense": nn.Sequential(nn.Conv2d(c, n, 3, 1, 1, bias=False), bn(n)),
            "rbr_1x1": nn.Sequential(nn.Conv2d(c, n, 1, bias=False), bn(n)),
        }
        return part(classes[kind], act=nn.SiLU(), rbr_identity=bn(n) if c == n else None, **branches), n
    if kind == "nn.Upsample":
        return nn.Upsample(None, 2, "nearest"), c
    if kind in ("Detect", "IDetect", "IAuxDetect"):
        return head(classes, kind, channels, settings), None
    return classes[kind](), {"Concat": sum(channels), "ReOrg": 4 * c}.get(kind, c)


def head(classes, kind, channels, settings):
    module = classes[kind]()
    maps, no = len(settings["anchors"]), settings["nc"] + 5
    pixels = torch.tensor(settings["anchors"]).float().view(maps, -1, 2)
    module.register_buffer("anchors", pixels / torch.tensor([8.0, 16.0])[:maps].view(-1, 1, 1))
    module.register_buffer("anchor_grid", pixels.clone().view(maps, 1, -1, 1, 1, 2))
    module.m = nn.ModuleList(nn.Conv2d(c, 3 * no, 1) for c in channels[:maps])
    if kind == "IAuxDetect":
        module.m2 = nn.ModuleList(nn.Conv2d(c, 3 * no, 1) for c in channels[maps:])
    if kind != "Detect":
        for name, sizes in (("ia", channels[:maps]), ("im", [3 * no] * maps)):
            values = nn.ModuleList()
            for size in sizes:
                implicit = classes["ImplicitA" if name == "ia" else "ImplicitM"]()
                implicit.implicit = nn.Parameter(torch.randn(1, size, 1, 1) * 0.3 + (name == "im"))
                values.append(implicit)
            module.add_module(name, values)
    return module


def model(classes, settings, names):
    """Create a models.yolo.Model with random values, in half precision."""
    rows = settings["backbone"] + settings["head"]
    out, layers = [], nn.Sequential()
    for index, (sources, _, kind, args) in enumerate(rows):
        listed = sources if isinstance(sources, list) else [sources]
        inputs = [3 if index == 0 else out[source if source >= 0 else index + source] for source in listed]
        module, channels = layer(classes, kind, args, inputs, settings)
        module.i, module.f, module.type = index, sources, f"{type(module).__module__}.{type(module).__name__}"
        vars(module)["np"] = sum(parameter.numel() for parameter in module.parameters())
        out.append(channels)
        layers.append(module)
    whole = classes["Model"]()
    whole.model = layers
    whole.names, whole.nc, whole.yaml = list(names), settings["nc"], settings
    whole.stride = torch.tensor([8.0, 16.0])[: len(settings["anchors"])]
    whole.hyp, whole.gr = {"box": 0.05}, 1.0
    return whole.half().eval()


def save(path, settings=SMALL, names=("officer", "vehicle"), *, seed=7, change=None, legacy=False, **entries):
    """Write a checkpoint, after `change(content, classes)` if it is given, and return state dicts by entry."""
    torch.manual_seed(seed)
    with official_modules() as classes:
        content = {"epoch": -1, "best_fitness": None, "model": model(classes, settings, names), "optimizer": None}
        content |= entries
        if change is not None:
            change(content, classes)
        with warnings.catch_warnings():
            # The old container saves the source code of classes, which these do not have.
            warnings.filterwarnings("ignore", "Couldn't retrieve source code", UserWarning)
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return {
            key: {name: tensor.float() for name, tensor in content[key].state_dict().items()}
            for key in ("model", "ema")
            if isinstance(content.get(key), nn.Module)
        }
