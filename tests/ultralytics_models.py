"""Untrained ultralytics models, and a photograph from its package."""

from importlib.resources import files

import cv2
import numpy as np
import torch

BUS = files("ultralytics") / "assets" / "bus.jpg"


def save_untrained(folder, name):
    """Save an untrained model, with random values that spread its scores over 0..1, and return its path."""
    from ultralytics import YOLO

    torch.manual_seed(2)
    model = YOLO(f"{name}.yaml", task="detect")
    model.model.names = {number: f"kind {number}" for number in range(80)}
    head = model.model.model[-1]
    for layers in (*head.cv3, *(getattr(head, "one2one_cv3", None) or ())):
        torch.nn.init.normal_(layers[-1].weight, 0, 0.3)
        torch.nn.init.normal_(layers[-1].bias, -2, 0.1)
    # One pass in training mode sets the batch norms; without them the signal of random layers vanishes.
    for module in model.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    pixels = np.ascontiguousarray(cv2.imread(str(BUS))[:1056, :800, ::-1].transpose(2, 0, 1))
    with torch.no_grad():
        model.model.train()(torch.from_numpy(pixels)[None, :, ::5, ::5][..., :192, :160].float() / 255)
    model.model.eval()
    path = folder / f"{name}.pt"
    model.save(str(path))
    return path
