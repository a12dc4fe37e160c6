"""Assignment of cells and anchors to targets: candidates by aspect ratio, then dynamic k by cost.

Follows the YOLOv7 trainer (arXiv 2207.02696) and SimOTA (arXiv 2107.08430). Of the candidates near the center of a
target, the k with the lowest cost (class and overlap) are assigned; k is the rounded-down sum of the best overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, box_iou

MOST_RATIO = 4.0  # between the sides of an anchor and a target
LEAD_REACH, AUXILIARY_REACH = 0.5, 1.0  # cells; at most 3 and 5 cells per center
LEAD_BEST, AUXILIARY_BEST = 10, 20  # candidates whose IoUs are summed for k; the second with auxiliary heads
_IOU_WEIGHT = 3.0


@dataclass(frozen=True)
class Cells:
    """Cells of one feature map: image, anchor, row, and column, each of shape (n,)."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor

    def pick(self, chosen: Tensor) -> Cells:
        """Select cells by index or mask."""
        return Cells(self.image[chosen], self.anchor[chosen], self.row[chosen], self.column[chosen])

    def of(self, values: Tensor) -> Tensor:
        """Return the outputs (n, k) of the cells in a feature map (N, anchors, h, w, k)."""
        return values[self.image, self.anchor, self.row, self.column]


@dataclass(frozen=True)
class Positives:
    """Cells of one feature map that are assigned to a target."""

    cells: Cells
    targets: Tensor  # (n,) row of the target


def candidates(targets: Tensor, anchors: Tensor, grid: tuple[int, int], reach: float) -> Cells:
    """Return the candidate cells of one feature map; a cell can occur more than once.

    Parameters
    ----------
    targets : Tensor, shape (t, 6)
        Image, class, center x, center y, width, height; the last four as shares of the input.
    anchors : Tensor, shape (a, 2)
        Width and height, cells.
    grid : tuple of int
        Rows and columns of the feature map.
    reach : float
        Largest distance of a center to a neighboring cell, cells.
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
    applies = torch.stack([always, near_start[:, 0], near_start[:, 1], near_end[:, 0], near_end[:, 1]])
    move, number = applies.nonzero(as_tuple=True)
    cell = (center[number] + moves[move]).floor().long()
    return Cells(
        targets[target[number], 0].long(),
        anchor[number],
        cell[:, 1].clamp(0, rows - 1),
        cell[:, 0].clamp(0, columns - 1),
    )


def boxes_of(cells: Cells, values: Tensor, anchors: Tensor, stride: float) -> Tensor:
    """Decode the boxes of cells.

    Parameters
    ----------
    cells : Cells
        n cells.
    values : Tensor, shape (n, at least 4)
        Outputs of the cells, before the sigmoid.
    anchors : Tensor, shape (a, 2)
        Width and height, cells.
    stride : float
        Pixels per cell.

    Returns
    -------
    Tensor, shape (n, 4)
        Center x, center y, width, height, pixels.
    """
    shares = values[:, :4].sigmoid()
    corner = torch.stack([cells.column, cells.row], 1)
    center = (2 * shares[:, :2] - 0.5 + corner) * stride
    return torch.cat([center, (2 * shares[:, 2:4]) ** 2 * anchors[cells.anchor] * stride], 1)


@torch.no_grad()
def assign(
    maps: Sequence[Tensor], targets: Tensor, anchors: Tensor, strides: Sequence[int], *, reach: float, best: int
) -> list[Positives]:
    """Assign cells of each feature map to targets.

    Parameters
    ----------
    maps : sequence of Tensor, each of shape (N, anchors, h, w, 5 + classes)
        Outputs of the lead head, before the sigmoid.
    targets : Tensor, shape (t, 6)
        Image, class, center x, center y, width, height; the last four as shares of the input.
    anchors : Tensor, shape (maps, anchors, 2)
        Width and height, cells.
    strides : sequence of int
        Pixels per cell of each feature map.
    reach : float
        LEAD_REACH or AUXILIARY_REACH.
    best : int
        LEAD_BEST or AUXILIARY_BEST.

    Returns
    -------
    list of Positives
        One item per feature map.
    """
    listed = [
        candidates(targets, sizes, (values.shape[2], values.shape[3]), reach)
        for values, sizes in zip(maps, anchors, strict=True)
    ]
    outputs = [cells.of(values).float() for cells, values in zip(listed, maps, strict=True)]
    boxes = torch.cat(
        [
            boxes_of(cells, values, sizes, stride)
            for cells, values, sizes, stride in zip(listed, outputs, anchors, strides, strict=True)
        ]
    )
    values = torch.cat(outputs)
    image = torch.cat([cells.image for cells in listed])
    width, height = maps[0].shape[3] * strides[0], maps[0].shape[2] * strides[0]
    scale = targets.new_tensor([width, height, width, height])
    corners = box_convert(boxes, "cxcywh", "xyxy")
    target_corners = box_convert(targets[:, 2:6] * scale, "cxcywh", "xyxy")
    chosen = torch.full_like(image, -1)
    for number in torch.unique(targets[:, 0]).long():
        mine, its = (image == number).nonzero()[:, 0], (targets[:, 0] == number).nonzero()[:, 0]
        if not len(mine):
            continue
        found = _match(box_iou(target_corners[its], corners[mine]), values[mine], targets[its, 1].long(), best)
        chosen[mine[found >= 0]] = its[found[found >= 0]]
    parts = torch.split(chosen, [len(cells.image) for cells in listed])
    return [Positives(cells.pick(part >= 0), part[part >= 0]) for cells, part in zip(listed, parts, strict=True)]


def _match(iou: Tensor, values: Tensor, classes: Tensor, best: int) -> Tensor:
    """Match the candidates of one image to its targets.

    Parameters
    ----------
    iou : Tensor, shape (t, c)
        Overlap of targets and candidates.
    values : Tensor, shape (c, 5 + classes)
        Outputs of the candidates, before the sigmoid.
    classes : Tensor, shape (t,)
        Class of each target.
    best : int
        Candidates whose overlaps are summed for k.

    Returns
    -------
    Tensor, shape (c,)
        Target of each candidate, -1 for none.
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
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    for target, its_k in enumerate(k.tolist()):
        chosen[target, cost[target].topk(its_k, largest=False).indices] = True
    times = chosen.sum(0)
    found = torch.where(times > 0, chosen.int().argmax(0), -1)
    return torch.where(times > 1, cost.argmin(0), found)
