"""Training steps, compared with an ultralytics model of similar FLOPs on the same scenes, and memory."""

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
_WARM_EPOCHS = 1  # excluded from the times


def run(*, quick: bool) -> list[Comparison]:
    """Run with 300 scenes (quick: 100) at 320 pixels in batches of 16; the best of three epochs counts."""
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch:
        folder = Path(scratch)
        images = 100 if quick else 300
        for _ in write_scenes(folder / "set", images=images, seed=3):
            pass
        width, ours_flops, peer_flops = match_width(PEER)
        options = TrainingOptions(
            str(folder / "set"), width=width, size=SIZE, epochs=_WARM_EPOCHS + 3, batch=BATCH, device="cpu"
        )
        ours = timed(folder / "ours", lambda out: train(options, out, log=_discard))
        other = replace(options, engine="ultralytics", variant=None, width=1.0, weights=PEER)
        peer = timed(folder / "peer", lambda out: train_ultralytics(other, out, trust=False, log=_discard))
        training_images = images * 8 // 10
        step_s, peer_s = (min(row["seconds"] - row["evaluating_s"] for row in rows) for rows in (ours, peer))
        waiting = sum(row["waiting_s"] for row in ours) / sum(row["seconds"] - row["evaluating_s"] for row in ours)
        return [
            Comparison(
                f"train on {training_images} images, yolov7-tiny of {ours_flops:.2f} GFLOPs per image",
                step_s / training_images * 1e3,
                peer_s / training_images * 1e3,
                "ms per image",
                1.0,
                f"ultralytics, {PEER.removesuffix('.yaml')} of {peer_flops:.2f}",
            ),
            Comparison("share of that time spent waiting for samples", waiting, 0.1, "1", 1.0, "limit"),
            compare_memory(folder, epochs=4 if quick else 12),
        ]


def match_width(name: str) -> tuple[float, float, float]:
    """Return the width at which yolov7-tiny has at least the FLOPs of an ultralytics model, and the GFLOPs of both."""
    peer = gflops(open_model(name, trust=False).model)
    for sixteenths in range(1, 17):
        ours = gflops(new_network("yolov7-tiny", classes=2, width=sixteenths / 16, seed=0))
        if ours >= peer:
            return sixteenths / 16, ours, peer
    raise ValueError(f"{name} has {peer:.2f} GFLOPs, more than the whole yolov7-tiny")


def gflops(network: nn.Module) -> float:
    """Return the GFLOPs of a forward pass of one image; a multiply-add counts as two."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() / 1e9


def timed(out: Path, work: Callable[[Path], None]) -> list[dict[str, float]]:
    """Run a training and return the rows of its learning curves without the first epochs."""
    work(out)
    with (out / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return rows[_WARM_EPOCHS:]


def compare_memory(folder: Path, epochs: int) -> Comparison:
    """Compare the memory of a new process after the last epoch and after the second."""
    script = f"from benchmarks.train import print_memory; print_memory({str(folder)!r}, {epochs})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    held_mb = [float(line) for line in done.stdout.splitlines()]
    return Comparison(
        f"memory after {epochs} epochs", held_mb[-1], held_mb[1], "MB", 1 / 1.05, "after the second epoch"
    )


def print_memory(folder: str, epochs: int) -> None:
    """Train and print the memory of this process after each epoch, MiB."""
    process = psutil.Process()

    def print_after_epoch(line: str) -> None:
        if line.startswith("epoch"):
            print(process.memory_info().rss / 2**20)

    options = TrainingOptions(f"{folder}/set", width=0.125, size=128, epochs=epochs, batch=BATCH, device="cpu")
    train(options, Path(folder) / "memory", log=print_after_epoch)


def _discard(_line: str) -> None:
    """Ignore a log line."""
