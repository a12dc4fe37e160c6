"""Plain YOLOv7 and post-processing for comparison: functions of a state dict, and loops over boxes."""

import math

import torch
from torch.nn import functional


class Tensors:
    """Tensors of one layer, and the operations that use them."""

    def __init__(self, state, layer, args):
        self.state, self.layer, self.args = state, f"model.{layer}", args
        leaky = len(args) == 6
        self.act = (lambda x: functional.leaky_relu(x, 0.1)) if leaky else functional.silu

    def __getitem__(self, name):
        return self.state[f"{self.layer}.{name}"]

    def norm(self, x, name):
        tensors = (self[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *tensors, training=False, eps=1e-3)

    def conv(self, x, name="", stride=1):
        weight = self[f"{name}conv.weight"]
        out = functional.conv2d(x, weight, None, stride, weight.shape[2] // 2)
        return self.act(self.norm(out, f"{name}bn"))


def pool(x, kernel):
    return functional.max_pool2d(x, kernel, 1, kernel // 2)


def pyramid(t, x):
    a = t.conv(t.conv(t.conv(x, "cv1."), "cv3."), "cv4.")
    b = t.conv(torch.cat([a, pool(a, 5), pool(a, 9), pool(a, 13)], 1), "cv5.")
    return t.conv(torch.cat([t.conv(b, "cv6."), t.conv(x, "cv2.")], 1), "cv7.")


def down(t, x):
    return torch.cat([t.conv(t.conv(x, "cv1."), "cv2.", 2), t.conv(functional.max_pool2d(x, 2, 2), "cv3.")], 1)


def rep(t, x):
    out = t.norm(functional.conv2d(x, t["rbr_dense.0.weight"], None, 1, 1), "rbr_dense.1")
    out = out + t.norm(functional.conv2d(x, t["rbr_1x1.0.weight"]), "rbr_1x1.1")
    if f"{t.layer}.rbr_identity.weight" in t.state:
        out = out + t.norm(x, "rbr_identity")
    return functional.silu(out)


KINDS = {
    "Conv": lambda t, x: t.conv(x, stride=t.args[2]),
    "MP": lambda _t, x: functional.max_pool2d(x, 2, 2),
    "SP": lambda t, x: pool(x, t.args[0]),
    "nn.Upsample": lambda _t, x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    "Concat": lambda _t, *inputs: torch.cat(inputs, 1),
    "Shortcut": lambda _t, a, b: a + b,
    "ReOrg": lambda _t, x: torch.cat([x[:, :, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], 1),
    "DownC": down,
    "SPPCSPC": pyramid,
    "RepConv": rep,
}


def forward(settings, state, x):
    """Compute the feature maps (N, 3, h, w, no) of the lead heads, from official settings and tensors."""
    outputs = []
    for index, (sources, _, kind, args) in enumerate(settings["backbone"] + settings["head"]):
        listed = sources if isinstance(sources, list) else [sources]
        inputs = [x if index == 0 else outputs[source if source >= 0 else index + source] for source in listed]
        if kind in KINDS:
            outputs.append(KINDS[kind](Tensors(state, index, args), *inputs))
    return [_head(state, f"model.{index}", number, inputs[number]) for number in range(len(settings["anchors"]))]


def _head(state, name, number, t):
    if f"{name}.ia.{number}.implicit" in state:
        t = t + state[f"{name}.ia.{number}.implicit"]
    out = functional.conv2d(t, state[f"{name}.m.{number}.weight"], state[f"{name}.m.{number}.bias"])
    if f"{name}.im.{number}.implicit" in state:
        out = out * state[f"{name}.im.{number}.implicit"]
    n, wide, h, w = out.shape
    return out.view(n, 3, wide // 3, h, w).permute(0, 1, 3, 4, 2)


def decode(maps, anchors, strides):
    """Decode rows of the first image, cell by cell."""
    rows = []
    for values, pairs, stride in zip(maps, anchors, strides, strict=True):
        for a in range(values.shape[1]):
            for row in range(values.shape[2]):
                for column in range(values.shape[3]):
                    s = [1 / (1 + math.exp(-value)) for value in values[0, a, row, column].tolist()]
                    rows.append(
                        [
                            (2 * s[0] - 0.5 + column) * stride,
                            (2 * s[1] - 0.5 + row) * stride,
                            (2 * s[2]) ** 2 * pairs[2 * a],
                            (2 * s[3]) ** 2 * pairs[2 * a + 1],
                            *s[4:],
                        ]
                    )
    return torch.tensor(rows)


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height) if area else 0.0


def select(rows, min_score, nms_iou, classes=None):
    """Suppress boxes, box by box."""
    boxes = []
    for x, y, w, h, obj, *kinds in rows.tolist():
        scores = [obj] if len(kinds) == 1 else [obj * probability for probability in kinds]
        score = max(scores)
        kind = scores.index(score)
        if obj > min_score and score > min_score and (classes is None or kind in classes):
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, kind))
    kept = []
    for box in sorted(boxes, key=lambda candidate: -candidate[4]):
        if all(other[5] != box[5] or overlap(other, box) <= nms_iou for other in kept):
            kept.append(box)
    return kept[:300]
