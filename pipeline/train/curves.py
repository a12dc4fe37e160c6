"""Learning curves: one row per epoch in curves.csv, and a figure of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

# Columns other than parts of the loss, which depend on the engine.
_OTHERS = {"epoch", "iterations", "learning_rate", "loss", "ap50", "ap", "seconds", "waiting_s", "evaluating_s"}


def write_curves(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write curves.csv and curves.png atomically; all rows have the same columns."""
    text = folder / ".curves.csv"
    with text.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    text.replace(folder / "curves.csv")
    _draw(folder, rows)


def _draw(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, precisions = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "." if len(rows) < 30 else None
    for name in rows[0]:
        if name not in _OTHERS:
            losses.plot(epochs, [row[name] for row in rows], label=name, marker=marker)
    losses.set(title="Training loss", xlabel="Epoch", ylabel="Loss per image", ylim=(0, None))
    for name, label in (("ap50", "IoU 0.5"), ("ap", "IoU 0.5 to 0.95")):
        precisions.plot(epochs, [row[name] for row in rows], label=label, marker=marker)
    precisions.set(title="Validation average precision", xlabel="Epoch", ylabel="Average precision", ylim=(0, 1))
    for axes in (losses, precisions):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    aside = folder / ".curves.png"
    figure.savefig(aside, dpi=110)
    aside.replace(folder / "curves.png")
