"""A training step against ultralytics' trainer with a model of like FLOPs, on the same rendered scenes; its memory."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Comparison
from patrolscope.pipeline.simulation.scenes.dataset import write_scenes
from patrolscope.pipeline.train.loop import train
from patrolscope.pipeline.train.network import new_network
from patrolscope.pipeline.train.settings import TrainingOptions
from patrolscope.pipeline.train.ultralytics_engine import open_model, train_ultralytics

SIZE, BATCH, PEER = 320, 16, "yolo11n.yaml"
_WARM_EPOCHS = 1  # that are left out of the times


def run(*, quick: bool) -> list[Comparison]:
    """300 scenes (quick: 100) at 320 pixels in batches of 16, most of them mosaics; the best of three epochs."""
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch:
        folder = Path(scratch)
        images = 100 if quick else 300
        for _ in write_scenes(folder / "set", images=images, seed=3):
            pass
        width, ours_flops, peer_flops = like(PEER)
        asked = TrainingOptions(
            str(folder / "set"), width=width, size=SIZE, epochs=_WARM_EPOCHS + 3, batch=BATCH, device="cpu"
        )
        ours = timed(folder / "ours", lambda out: train(asked, out, say=_silent))
        other = replace(asked, engine="ultralytics", variant=None, width=1.0, weights=PEER)
        peer = timed(folder / "peer", lambda out: train_ultralytics(other, out, trust=False, say=_silent))
        learned = images * 8 // 10
        step_s, peer_s = (min(row["seconds"] - row["evaluating_s"] for row in rows) for rows in (ours, peer))
        waiting = sum(row["waiting_s"] for row in ours) / sum(row["seconds"] - row["evaluating_s"] for row in ours)
        return [
            Comparison(
                f"train on {learned} images, yolov7-tiny of {ours_flops:.2f} GFLOPs an image",
                step_s / learned * 1e3,
                peer_s / learned * 1e3,
                "ms an image",
                1.0,
                f"ultralytics, {PEER.removesuffix('.yaml')} of {peer_flops:.2f}",
            ),
            Comparison("share of that time that waits for samples", waiting, 0.1, "of 1", 1.0, "limit"),
            compare_memory(folder, epochs=4 if quick else 12),
        ]


def like(name: str) -> tuple[float, float, float]:
    """Width by which yolov7-tiny has at least the FLOPs of a model of ultralytics; GFLOPs of both, a forward pass."""
    peer = gflops(open_model(name, trust=False).model)
    for sixteenths in range(1, 17):
        ours = gflops(new_network("yolov7-tiny", classes=2, width=sixteenths / 16, seed=0))
        if ours >= peer:
            return sixteenths / 16, ours, peer
    raise ValueError(f"{name} has {peer:.2f} GFLOPs, more than the whole yolov7-tiny")


def gflops(network: nn.Module) -> float:
    """Of a forward pass of one image; a multiplication with its addition is two."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() / 1e9


def timed(out: Path, work: Callable[[Path], None]) -> list[dict[str, float]]:
    """Rows of the curves of a training, without the first epochs."""
    work(out)
    with (out / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return rows[_WARM_EPOCHS:]


def compare_memory(folder: Path, epochs: int) -> Comparison:
    """Memory of a fresh process after the last epoch, and after the second."""
    script = f"from benchmarks.train import print_memory; print_memory({str(folder)!r}, {epochs})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    held_mb = [float(line) for line in done.stdout.splitlines()]
    return Comparison(f"memory after {epochs} epochs", held_mb[-1], held_mb[1], "MB", 1 / 1.05, "after the second")


def print_memory(folder: str, epochs: int) -> None:
    """Train, and print the memory of this process in MB after each epoch."""
    process = psutil.Process()

    def look(line: str) -> None:
        if line.startswith("epoch"):
            print(process.memory_info().rss / 2**20)

    asked = TrainingOptions(f"{folder}/set", width=0.125, size=128, epochs=epochs, batch=BATCH, device="cpu")
    train(asked, Path(folder) / "memory", say=look)


def _silent(_line: str) -> None:
    """Where the other lines of a training go."""
