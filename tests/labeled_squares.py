"""Labeled images that a network learns in a minute: bright squares of two colors on a noisy background."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96  # pixels
NAMES = ("red", "blue")
COLORS = np.array([(220, 60, 50), (60, 80, 220)])


def draw_image(generator, shape=(SIDE, SIDE)):
    """Return pixels and boxes (class, x1, y1, x2, y2)."""
    pixels = generator.integers(70, 130, (*shape, 3)).astype(np.uint8)
    boxes = []
    for _ in range(generator.integers(0, 3)):
        kind, (w, h) = int(generator.integers(0, 2)), generator.integers(18, 40, 2)
        x, y = (int(generator.integers(0, room - side)) for room, side in ((shape[1], w), (shape[0], h)))
        if not any(x < b[3] and b[1] < x + w and y < b[4] and b[2] < y + h for b in boxes):
            pixels[y : y + h, x : x + w] = COLORS[kind]
            boxes.append((kind, x, y, int(x + w), int(y + h)))
    return pixels, boxes


def write(folder: Path, images: int, *, seed=1, form="yolo", rides=8, shape=(SIDE, SIDE)) -> Path:
    """Write a folder with YOLO text or a COCO document; six of eight rides are for training."""
    generator = np.random.default_rng(seed)
    (high, wide), listed, annotations = shape, [], []
    for number in range(images):
        ride = f"ride{number % rides}"
        (folder / "images" / ride).mkdir(parents=True, exist_ok=True)
        pixels, boxes = draw_image(generator, shape)
        name = f"{ride}/{number:04d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        listed.append({"id": number, "file_name": name, "width": wide, "height": high})
        if form == "yolo":
            path = (folder / "labels" / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "".join(
                    f"{k} {(a + c) / 2 / wide} {(b + d) / 2 / high} {(c - a) / wide} {(d - b) / high}\n"
                    for k, a, b, c, d in boxes
                )
            )
        for k, a, b, c, d in boxes:
            annotations.append({"image_id": number, "category_id": k + 7, "bbox": [a, b, c - a, d - b]})
    if form == "yolo":
        (folder / "classes.txt").write_text("\n".join(NAMES))
    else:
        kinds = [{"id": number + 7, "name": name} for number, name in enumerate(NAMES)]
        document = {"images": listed, "annotations": annotations, "categories": kinds}
        (folder / "all.json").write_text(json.dumps(document))
    splits = ["train"] * (rides - 2) + ["validation", "test"]
    (folder / "splits.csv").write_text("ride,split\n" + "".join(f"ride{n},{s}\n" for n, s in enumerate(splits)))
    return folder
