"""Which cell and anchor answers for which target: anchors by their sides' ratio, then dynamic k by cost.

After YOLOv7's trainer (arXiv 2207.02696) and SimOTA (arXiv 2107.08430): of the candidates near a target's center those
are taken that are cheapest by class and overlap, as many as overlap well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, box_iou

MOST_RATIO = 4.0  # between a side of an anchor and that of a target
LEAD_REACH, AUXILIARY_REACH = 0.5, 1.0  # cells around a center: at most 3, at most 5
LEAD_BEST, AUXILIARY_BEST = 10, 20  # candidates whose IoUs are summed for k; the second in models with auxiliary heads
_IOU_WEIGHT = 3.0


@dataclass(frozen=True)
class Cells:
    """Cells of one level: image, anchor, row, column, each (n,)."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor

    def pick(self, chosen: Tensor) -> Cells:
        """Some of the cells."""
        return Cells(self.image[chosen], self.anchor[chosen], self.row[chosen], self.column[chosen])

    def of(self, values: Tensor) -> Tensor:
        """(n, k) of a level's map (N, anchors, h, w, k)."""
        return values[self.image, self.anchor, self.row, self.column]


@dataclass(frozen=True)
class Positives:
    """Cells of one level that answer for a target, and the targets."""

    cells: Cells
    targets: Tensor  # (n,) rows of the targets


def candidates(targets: Tensor, anchors: Tensor, grid: tuple[int, int], reach: float) -> Cells:
    """Cells of one level that may answer for a target; a cell can be listed more than once.

    Parameters
    ----------
    targets : (t, 6) image, class, center x, center y, width, height as shares of the input
    anchors : (a, 2) in cells
    grid : rows and columns of the level
    reach : how near to a cell a center must be, in cells
    """
    rows, columns = grid
    gain = targets.new_tensor([columns, rows])
    center, size = targets[:, 2:4] * gain, targets[:, 4:6] * gain
    ratio = size[None] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < MOST_RATIO
    anchor, target = fits.nonzero(as_tuple=True)
    center = center[target]
    from_end = gain - center
    near_start = (center % 1 < reach) & (center > 1)
    near_end = (from_end % 1 < reach) & (from_end > 1)
    always = torch.ones_like(anchor, dtype=torch.bool)
    moves = center.new_tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]]) * reach
    wanted = torch.stack([always, near_start[:, 0], near_start[:, 1], near_end[:, 0], near_end[:, 1]])
    move, number = wanted.nonzero(as_tuple=True)
    cell = (center[number] + moves[move]).floor().long()
    return Cells(
        targets[target[number], 0].long(),
        anchor[number],
        cell[:, 1].clamp(0, rows - 1),
        cell[:, 0].clamp(0, columns - 1),
    )


def boxes_of(cells: Cells, values: Tensor, anchors: Tensor, stride: float) -> Tensor:
    """(n, 4) decoded boxes of cells, center and size in pixels."""
    found = values[:, :4].sigmoid()
    place = torch.stack([cells.column, cells.row], 1)
    center = (2 * found[:, :2] - 0.5 + place) * stride
    return torch.cat([center, (2 * found[:, 2:4]) ** 2 * anchors[cells.anchor] * stride], 1)


@torch.no_grad()
def assign(
    maps: Sequence[Tensor], targets: Tensor, anchors: Tensor, strides: Sequence[int], *, reach: float, best: int
) -> list[Positives]:
    """The cells of each level that answer for a target, and for which.

    Parameters
    ----------
    maps : a level: (N, anchors, h, w, 5 + classes) of the lead head, before the sigmoid
    targets : (t, 6) image, class, center x, center y, width, height as shares of the input
    anchors : (levels, anchors, 2) in cells
    reach, best : LEAD_... or AUXILIARY_...
    """
    listed = [
        candidates(targets, sizes, (values.shape[2], values.shape[3]), reach)
        for values, sizes in zip(maps, anchors, strict=True)
    ]
    read = [cells.of(values).float() for cells, values in zip(listed, maps, strict=True)]
    boxes = torch.cat(
        [
            boxes_of(cells, values, sizes, stride)
            for cells, values, sizes, stride in zip(listed, read, anchors, strides, strict=True)
        ]
    )
    values = torch.cat(read)
    image = torch.cat([cells.image for cells in listed])
    width, height = maps[0].shape[3] * strides[0], maps[0].shape[2] * strides[0]
    scale = targets.new_tensor([width, height, width, height])
    corners = box_convert(boxes, "cxcywh", "xyxy")
    wanted = box_convert(targets[:, 2:6] * scale, "cxcywh", "xyxy")
    chosen = torch.full_like(image, -1)
    for one in torch.unique(targets[:, 0]).long():
        mine, its = (image == one).nonzero()[:, 0], (targets[:, 0] == one).nonzero()[:, 0]
        if not len(mine):
            continue
        found = _match(box_iou(wanted[its], corners[mine]), values[mine], targets[its, 1].long(), best)
        chosen[mine[found >= 0]] = its[found[found >= 0]]
    parts = torch.split(chosen, [len(cells.image) for cells in listed])
    return [Positives(cells.pick(part >= 0), part[part >= 0]) for cells, part in zip(listed, parts, strict=True)]


def _match(iou: Tensor, values: Tensor, classes: Tensor, best: int) -> Tensor:
    """(c,) target of each candidate of one image, -1 for none.

    Parameters
    ----------
    iou : (t, c)
    values : (c, 5 + classes) of the candidates, before the sigmoid
    classes : (t,)
    """
    number = values.shape[1] - 5
    score = (values[:, 5:].sigmoid() * values[:, 4:5].sigmoid()).sqrt()
    onehot = functional.one_hot(classes, number).to(score)
    shape = (len(classes), len(values), number)
    by_class = functional.binary_cross_entropy(
        score[None].expand(shape), onehot[:, None].expand(shape), reduction="none"
    ).sum(2)
    cost = by_class - _IOU_WEIGHT * torch.log(iou + 1e-8)
    k = iou.topk(min(best, iou.shape[1]), 1).values.sum(1).int().clamp(min=1)
    taken = torch.zeros_like(cost, dtype=torch.bool)
    for target, its_k in enumerate(k.tolist()):
        taken[target, cost[target].topk(its_k, largest=False).indices] = True
    times = taken.sum(0)
    found = torch.where(times > 0, taken.int().argmax(0), -1)
    return torch.where(times > 1, cost.argmin(0), found)
