"""YOLOv7 and its post-processing written out plainly, for comparison: functions of a state dict, loops over boxes."""

import math

import torch
from torch.nn import functional as F


def forward(settings, state, x):
    """Maps of the lead heads, (N, 3, h, w, no), of settings in the official form and official tensors."""
    rows = settings["backbone"] + settings["head"]
    done = []
    for index, (sources, _, kind, args) in enumerate(rows):
        listed = sources if isinstance(sources, list) else [sources]
        given = [x if index == 0 else done[source if source >= 0 else index + source] for source in listed]
        name = f"model.{index}"
        act = F.silu if len(args) < 6 else lambda t: F.leaky_relu(t, 0.1)

        def norm(t, key):
            values = (state[f"{key}.{one}"] for one in ("running_mean", "running_var", "weight", "bias"))
            return F.batch_norm(t, *values, training=False, eps=1e-3)

        def conv(t, key, stride=1, act=act, norm=norm):
            weight = state[f"{key}.conv.weight"]
            return act(norm(F.conv2d(t, weight, None, stride, weight.shape[2] // 2), f"{key}.bn"))

        t = given[0]
        if kind == "Conv":
            out = conv(t, name, args[2])
        elif kind == "MP":
            out = F.max_pool2d(t, 2, 2)
        elif kind == "SP":
            out = F.max_pool2d(t, args[0], 1, args[0] // 2)
        elif kind == "nn.Upsample":
            out = t.repeat_interleave(2, 2).repeat_interleave(2, 3)
        elif kind == "Concat":
            out = torch.cat(given, 1)
        elif kind == "Shortcut":
            out = given[0] + given[1]
        elif kind == "ReOrg":
            out = torch.cat([t[:, :, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], 1)
        elif kind == "DownC":
            out = torch.cat(
                [conv(conv(t, f"{name}.cv1"), f"{name}.cv2", 2), conv(F.max_pool2d(t, 2, 2), f"{name}.cv3")], 1
            )
        elif kind == "SPPCSPC":
            a = conv(conv(conv(t, f"{name}.cv1"), f"{name}.cv3"), f"{name}.cv4")
            b = torch.cat([a, *(F.max_pool2d(a, k, 1, k // 2) for k in (5, 9, 13))], 1)
            b = conv(conv(b, f"{name}.cv5"), f"{name}.cv6")
            out = conv(torch.cat([b, conv(t, f"{name}.cv2")], 1), f"{name}.cv7")
        elif kind == "RepConv":
            out = norm(F.conv2d(t, state[f"{name}.rbr_dense.0.weight"], None, 1, 1), f"{name}.rbr_dense.1")
            out = out + norm(F.conv2d(t, state[f"{name}.rbr_1x1.0.weight"]), f"{name}.rbr_1x1.1")
            if f"{name}.rbr_identity.weight" in state:
                out = out + norm(t, f"{name}.rbr_identity")
            out = F.silu(out)
        else:
            return [_head(state, name, level, given[level]) for level in range(len(settings["anchors"]))]
        done.append(out)
    raise AssertionError("no detection layer")


def _head(state, name, level, t):
    if f"{name}.ia.{level}.implicit" in state:
        t = t + state[f"{name}.ia.{level}.implicit"]
    out = F.conv2d(t, state[f"{name}.m.{level}.weight"], state[f"{name}.m.{level}.bias"])
    if f"{name}.im.{level}.implicit" in state:
        out = out * state[f"{name}.im.{level}.implicit"]
    n, wide, h, w = out.shape
    return out.view(n, 3, wide // 3, h, w).permute(0, 1, 3, 4, 2)


def decode(maps, anchors, strides):
    """Rows of the first image, cell by cell."""
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


def select(rows, score_above, iou_above, classes=None):
    """Boxes that remain, box by box."""
    boxes = []
    for x, y, w, h, obj, *kinds in rows.tolist():
        scores = [obj] if len(kinds) == 1 else [obj * one for one in kinds]
        score = max(scores)
        kind = scores.index(score)
        if obj > score_above and score > score_above and (classes is None or kind in classes):
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, kind))
    kept = []
    for box in sorted(boxes, key=lambda one: -one[4]):
        if all(one[5] != box[5] or overlap(one, box) <= iou_above for one in kept):
            kept.append(box)
    return kept[:300]
