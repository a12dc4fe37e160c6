"""Reference for YOLOv7 assignment and loss: plain loops, written from the description of the trainer only.

Nothing of pipeline.train is used. Loops handle one cell, target, or candidate at a time with Python floats.
"""

import math

EPS = 1e-7


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(p, t):
    """Return the binary cross-entropy of a probability."""
    return -(t * max(math.log(p) if p > 0 else -100, -100) + (1 - t) * max(math.log(1 - p) if p < 1 else -100, -100))


def bce_of_logit(x, t):
    return max(x, 0) - x * t + math.log(1 + math.exp(-abs(x)))


def iou_of_corners(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def ciou(a, b):
    ca, cb = corners(a), corners(b)
    w = max(0.0, min(ca[2], cb[2]) - max(ca[0], cb[0]))
    h = max(0.0, min(ca[3], cb[3]) - max(ca[1], cb[1]))
    iou = w * h / (a[2] * a[3] + b[2] * b[3] - w * h + EPS)
    c2 = (max(ca[2], cb[2]) - min(ca[0], cb[0])) ** 2 + (max(ca[3], cb[3]) - min(ca[1], cb[1])) ** 2 + EPS
    d2 = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(b[2] / (b[3] + EPS)) - math.atan(a[2] / (a[3] + EPS))) ** 2
    alpha = v / (1 - iou + v + EPS)
    return iou - d2 / c2 - alpha * v


def decoded(values, anchor, row, column):
    """Decode the first four outputs of a cell to center and size, in cells."""
    x, y, w, h = (sigmoid(float(value)) for value in values[:4])
    return 2 * x - 0.5 + column, 2 * y - 0.5 + row, (2 * w) ** 2 * anchor[0], (2 * h) ** 2 * anchor[1]


def candidates(targets, anchors, grids, reach):
    """List candidate cells (map, image, anchor, row, column), repeated for several targets."""
    found = []
    for level, (rows, columns) in enumerate(grids):
        for number, anchor in enumerate(anchors[level]):
            for image, _, cx, cy, share_w, share_h in targets:
                x, y, w, h = cx * columns, cy * rows, share_w * columns, share_h * rows
                ratios = (w / anchor[0], anchor[0] / w, h / anchor[1], anchor[1] / h)
                if max(ratios) >= 4:
                    continue
                moves = [(0, 0)]
                if x % 1 < reach and x > 1:
                    moves.append((-reach, 0))
                if y % 1 < reach and y > 1:
                    moves.append((0, -reach))
                if (columns - x) % 1 < reach and columns - x > 1:
                    moves.append((reach, 0))
                if (rows - y) % 1 < reach and rows - y > 1:
                    moves.append((0, reach))
                for dx, dy in moves:
                    column = min(max(math.floor(x + dx), 0), columns - 1)
                    row = min(max(math.floor(y + dy), 0), rows - 1)
                    found.append((level, int(image), number, row, column))
    return found


def assign(maps, targets, anchors, strides, reach, best):
    """List pairs of cell and number of its target."""
    grids = [(values.shape[2], values.shape[3]) for values in maps]
    listed = candidates(targets, anchors, grids, reach)
    width, height = grids[0][1] * strides[0], grids[0][0] * strides[0]
    assigned = []
    for image in sorted({int(target[0]) for target in targets}):
        mine = [cell for cell in listed if cell[1] == image]
        its = [number for number, target in enumerate(targets) if int(target[0]) == image]
        if not mine:
            continue
        overlap, cost = [], []
        for number in its:
            _, kind, cx, cy, w, h = targets[number]
            target_box = corners((cx * width, cy * height, w * width, h * height))
            overlap.append([])
            cost.append([])
            for level, _, anchor, row, column in mine:
                values = maps[level][image, anchor, row, column]
                box = [value * strides[level] for value in decoded(values, anchors[level][anchor], row, column)]
                iou = iou_of_corners(corners(box), target_box)
                total = 0.0
                for k in range(len(values) - 5):
                    score = math.sqrt(sigmoid(float(values[5 + k])) * sigmoid(float(values[4])))
                    total += bce(score, 1.0 if k == int(kind) else 0.0)
                overlap[-1].append(iou)
                cost[-1].append(total + 3 * -math.log(iou + 1e-8))
        targets_of = {}
        for t in range(len(its)):
            k = max(1, int(sum(sorted(overlap[t], reverse=True)[:best])))
            for candidate in sorted(range(len(mine)), key=lambda c: cost[t][c])[:k]:
                targets_of.setdefault(candidate, []).append(t)
        for candidate, rivals in targets_of.items():
            t = rivals[0] if len(rivals) == 1 else min(range(len(its)), key=lambda t: cost[t][candidate])
            assigned.append((mine[candidate], its[t]))
    return assigned


def loss(maps, targets, anchors, strides, *, gains, size, classes, auxiliary=None):
    """Return (total, box, objectness, classes) for maps of shape (N, anchors, h, w, 5 + classes)."""
    levels = len(maps)
    balance = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}.get(levels, (1.0,) * levels)
    best = 10 if auxiliary is None else 20
    terms = [(maps, assign(maps, targets, anchors, strides, 0.5, best), 1.0)]
    if auxiliary is not None:
        terms.append((auxiliary, assign(maps, targets, anchors, strides, 1.0, best), 0.25))
    box = objectness = kinds = 0.0
    for values, found, weight in terms:
        for level in range(levels):
            rows, columns = values[level].shape[2:4]
            here = [(cell, number) for cell, number in found if cell[0] == level]
            overlaps, box_losses, class_losses = {}, [], []
            for (_, image, anchor, row, column), number in here:
                _, kind, cx, cy, w, h = targets[number]
                cell = values[level][image, anchor, row, column]
                overlap = ciou(
                    decoded(cell, anchors[level][anchor], row, column), (cx * columns, cy * rows, w * columns, h * rows)
                )
                box_losses.append(1 - overlap)
                overlaps[image, anchor, row, column] = max(overlap, 0.0)
                class_losses += [bce_of_logit(float(cell[5 + k]), float(k == int(kind))) for k in range(classes)]
            if here:
                box += weight * sum(box_losses) / len(box_losses)
                if classes > 1:
                    kinds += weight * sum(class_losses) / len(class_losses)
            images, each = values[level].shape[:2]
            cell_losses = [
                bce_of_logit(float(values[level][n, a, r, c, 4]), overlaps.get((n, a, r, c), 0.0))
                for n in range(images)
                for a in range(each)
                for r in range(rows)
                for c in range(columns)
            ]
            objectness += weight * balance[level] * sum(cell_losses) / len(cell_losses)
    share = 3 / levels
    box *= gains["box"] * share
    objectness *= gains["objectness"] * (size / 640) ** 2 * share
    kinds *= gains["classes"] * classes / 80 * share
    return (box + objectness + kinds) * maps[0].shape[0], box, objectness, kinds
