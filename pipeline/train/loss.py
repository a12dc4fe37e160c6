"""YOLOv7 loss: CIoU of boxes, objectness against the overlap of the predicted box, cross-entropy of classes.

Follows the YOLOv7 trainer (arXiv 2207.02696).
"""

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

_BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}  # weights of the objectness of the feature maps
_AUXILIARY_WEIGHT = 0.25
_EPS = 1e-7


@dataclass(frozen=True)
class Loss:
    """Contribution of one process's images to the loss of a batch."""

    total: Tensor  # sum of the three parts, times the images of the batch
    box: float  # per image, with its gain; like the next two
    objectness: float
    classes: float


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the complete IoU [1]_ of pairs of boxes; the weight of the aspect ratio has no gradient.

    Parameters
    ----------
    a, b : Tensor, shape (n, 4)
        Center x, center y, width, height, in any unit.

    Returns
    -------
    Tensor, shape (n,)
        At most 1, which is reached by equal boxes.

    References
    ----------
    .. [1] Z. Zheng et al., "Distance-IoU loss: faster and better learning for bounding box regression", AAAI 2020
       (arXiv 1911.08287).
    """
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
    """Loss of the feature maps of a network, including auxiliary heads.

    Parameters
    ----------
    network : Network
        Network to train.
    recipe : Recipe
        Hyperparameters.
    size : int
        Longer side of the network input, pixels.
    ranks : Ranks or None, default None
        Processes that share a batch; means are taken over the whole batch.
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
        """Compute the loss of a batch, or of this process's part of it.

        Parameters
        ----------
        maps : sequence of Tensor
            Outputs of the network in training mode: lead head, then auxiliary heads.
        targets : Tensor, shape (t, 6)
            Image, class, center x, center y, width, height; the last four as shares of the input.
        """
        maps = [values.float() for values in maps]
        finite = torch.stack([torch.isfinite(values).all() for values in maps]).all()
        if self.ranks.total(finite.int()) < self.ranks.world:
            # Targets cannot be assigned; the caller stops in every process.
            return Loss(maps[0].new_tensor(math.nan), math.nan, math.nan, math.nan)
        lead, auxiliary = maps[: self.levels], maps[self.levels :]
        anchors = self.anchors.to(lead[0].device)
        best = AUXILIARY_BEST if self.auxiliary else LEAD_BEST
        found = assign(lead, targets, anchors, self.strides, reach=LEAD_REACH, best=best)
        parts = self._parts(lead, targets, anchors, found)
        if auxiliary:
            # Costs come from the lead head here too, which guides the auxiliary heads.
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
            target_overlap = torch.zeros_like(values[..., 4])
            if len(positives.targets):
                mine, its = cells.of(values), targets[positives.targets]
                overlap = ciou(*self._pair(mine, its, cells.column, cells.row, sizes[cells.anchor], values))
                box = box + (1 - overlap).sum() / count
                target_overlap[cells.image, cells.anchor, cells.row, cells.column] = overlap.detach().clamp(min=0)
                if self.classes > 1:
                    smooth = self.recipe.label_smoothing
                    kinds = functional.one_hot(its[:, 1].long(), self.classes).to(mine)
                    kinds = kinds * (1 - smooth) + smooth / 2
                    entropy = functional.binary_cross_entropy_with_logits(mine[:, 5:], kinds, reduction="sum")
                    classes = classes + entropy / (count * self.classes)
            entropy = functional.binary_cross_entropy_with_logits(values[..., 4], target_overlap)
            objectness = objectness + balance * entropy * len(values) / images
        return {"box": box, "objectness": objectness, "classes": classes}

    @staticmethod
    def _pair(
        mine: Tensor, its: Tensor, column: Tensor, row: Tensor, sizes: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return predicted and target boxes relative to the cell, in cells."""
        shares = mine[:, :4].sigmoid()
        predicted = torch.cat([2 * shares[:, :2] - 0.5, (2 * shares[:, 2:]) ** 2 * sizes], 1)
        gain = its.new_tensor([values.shape[3], values.shape[2]])
        corner = torch.stack([column, row], 1)
        return predicted, torch.cat([its[:, 2:4] * gain - corner, its[:, 4:6] * gain], 1)
