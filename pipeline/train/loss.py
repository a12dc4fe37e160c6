"""YOLOv7's loss: boxes by CIoU, objects by how well their box overlaps, classes by cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.train.assign import (
    AUXILIARY_BEST,
    AUXILIARY_REACH,
    LEAD_BEST,
    LEAD_REACH,
    Positives,
    assign,
)
from patrolscope.pipeline.train.ranks import Ranks
from patrolscope.pipeline.train.settings import Recipe

_BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}  # of the levels' object losses
_AUXILIARY_WEIGHT = 0.25
_EPS = 1e-7


@dataclass(frozen=True)
class Loss:
    """What a process's images add to the loss of a batch: three parts, each with its gain, an image of the batch."""

    total: Tensor  # times the images of the batch
    box: float
    objectness: float
    classes: float


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """(n,) complete IoU of boxes (n, 4), center and size; no gradient passes through the weight of the aspect."""
    (ax1, ay1), (ax2, ay2) = (a[:, :2] - a[:, 2:] / 2).T, (a[:, :2] + a[:, 2:] / 2).T
    (bx1, by1), (bx2, by2) = (b[:, :2] - b[:, 2:] / 2).T, (b[:, :2] + b[:, 2:] / 2).T
    across = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(0)
    down = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(0)
    both = across * down
    iou = both / (a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - both + _EPS)
    diagonal = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) ** 2
    diagonal = diagonal + (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)) ** 2 + _EPS
    distance = ((a[:, :2] - b[:, :2]) ** 2).sum(1)
    aspect = 4 / math.pi**2 * (torch.atan(b[:, 2] / (b[:, 3] + _EPS)) - torch.atan(a[:, 2] / (a[:, 3] + _EPS))) ** 2
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + _EPS)
    return iou - distance / diagonal - weight * aspect


class Criterion:
    """The loss of a network's maps; with auxiliary heads where it has them.

    Parameters
    ----------
    size : pixels of the network's square input, longer side
    ranks : the processes that share a batch; means are over what all of them have
    """

    def __init__(self, network: Network, recipe: Recipe, size: int, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        head = network.head
        self.anchors = torch.as_tensor(head.anchors).float()
        self.strides, self.recipe = network.strides, recipe
        self.classes, self.levels = network.architecture.classes, network.architecture.feature_maps
        self.auxiliary = head.m2 is not None
        share = 3 / self.levels
        self.gains = {
            "box": recipe.box * share,
            "objectness": recipe.objectness * (size / 640) ** 2 * share,
            "classes": recipe.classes * self.classes / 80 * share,
        }
        self.balance = _BALANCE.get(self.levels, (1.0,) * self.levels)

    def __call__(self, maps: Sequence[Tensor], targets: Tensor) -> Loss:
        """Loss of a batch, or of this process's part of it.

        Parameters
        ----------
        maps : of the network in training mode; with auxiliary heads theirs follow the lead head's
        targets : (t, 6) image, class, center x, center y, width, height as shares of the input
        """
        maps = [values.float() for values in maps]
        finite = torch.stack([torch.isfinite(values).all() for values in maps]).all()
        if self.ranks.total(finite.int()) < self.ranks.world:
            # Nothing can be assigned to such a map: the caller is to stop, in every process.
            return Loss(maps[0].new_tensor(math.nan), math.nan, math.nan, math.nan)
        lead, auxiliary = maps[: self.levels], maps[self.levels :]
        anchors = self.anchors.to(lead[0].device)
        best = AUXILIARY_BEST if self.auxiliary else LEAD_BEST
        found = assign(lead, targets, anchors, self.strides, reach=LEAD_REACH, best=best)
        parts = self._parts(lead, targets, anchors, found)
        if auxiliary:
            # Its costs, too, come from the lead head: the auxiliary one learns what the lead can.
            wider = assign(lead, targets, anchors, self.strides, reach=AUXILIARY_REACH, best=best)
            more = self._parts(auxiliary, targets, anchors, wider)
            parts = {name: parts[name] + _AUXILIARY_WEIGHT * more[name] for name in parts}
        parts = {name: self.gains[name] * value for name, value in parts.items()}
        images = self.ranks.total(torch.tensor(len(lead[0]), device=lead[0].device))
        total = sum(parts.values(), start=lead[0].new_zeros(())) * images
        return Loss(total, *(float(parts[name].detach()) for name in ("box", "objectness", "classes")))

    def _parts(
        self, maps: Sequence[Tensor], targets: Tensor, anchors: Tensor, found: Sequence[Positives]
    ) -> dict[str, Tensor]:
        zero = maps[0].new_zeros(())
        box, objectness, classes = zero, zero, zero
        counted = [len(maps[0]), *(len(positives.targets) for positives in found)]
        images, *matched = self.ranks.total(torch.tensor(counted, device=zero.device))
        each = zip(maps, anchors, found, self.balance, matched, strict=True)
        for values, sizes, positives, balance, count in each:
            cells = positives.cells
            wanted = torch.zeros_like(values[..., 4])
            if len(positives.targets):
                mine, its = cells.of(values), targets[positives.targets]
                overlap = ciou(*self._pair(mine, its, cells.column, cells.row, sizes[cells.anchor], values))
                box = box + (1 - overlap).sum() / count
                wanted[cells.image, cells.anchor, cells.row, cells.column] = overlap.detach().clamp(min=0)
                if self.classes > 1:
                    smooth = self.recipe.label_smoothing
                    kinds = functional.one_hot(its[:, 1].long(), self.classes).to(mine)
                    kinds = kinds * (1 - smooth) + smooth / 2
                    entropy = functional.binary_cross_entropy_with_logits(mine[:, 5:], kinds, reduction="sum")
                    classes = classes + entropy / (count * self.classes)
            entropy = functional.binary_cross_entropy_with_logits(values[..., 4], wanted)
            objectness = objectness + balance * entropy * len(values) / images
        return {"box": box, "objectness": objectness, "classes": classes}

    @staticmethod
    def _pair(
        mine: Tensor, its: Tensor, column: Tensor, row: Tensor, sizes: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted and wanted boxes in cells, relative to the cell."""
        found = mine[:, :4].sigmoid()
        predicted = torch.cat([2 * found[:, :2] - 0.5, (2 * found[:, 2:]) ** 2 * sizes], 1)
        gain = its.new_tensor([values.shape[3], values.shape[2]])
        place = torch.stack([column, row], 1)
        return predicted, torch.cat([its[:, 2:4] * gain - place, its[:, 4:6] * gain], 1)
