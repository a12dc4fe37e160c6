"""The detector's quality in pictures, and the stage that writes evaluation/."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

from patrolscope.analysis.stages.evaluate import ALL_IMAGES, Evaluation
from patrolscope.dashboards.charts.figures import (
    BLUE,
    GRID,
    INK,
    LINE_PT,
    MUTED,
    ORANGE,
    PT_PER_INCH,
    SMALL_PT,
    TEXT_PT,
    WIDTH_PT,
    bare,
    heading,
    heading_pt,
    notice_lines,
)

GREEN = "#2f8f6b"
# Color, line, marker and its size, pt, of each set: apart without color, and seen where they lie on each other.
STYLES = {"validation": (BLUE, "-", "o", 8.0), "test": (ORANGE, "--", "D", 4.6), "labels": (GREEN, "-.", "s", 5.0)}
NAMES = {"validation": "validation set", "test": "test set", "labels": "the study's own images"}
SIDES = {"true": ("yes, or above the median", BLUE, "o"), "false": ("no, or not above it", ORANGE, "D")}
PANELS = {"auc": "area under ROC curve", "average_precision": "average precision"}


def draw_evaluation(evaluation: Evaluation, *, simulated: str) -> dict[str, Figure]:
    """Figures by name: roc, precision_recall, calibration, and subgroups_<set> of each set."""
    figures = {
        "roc": roc_figure(evaluation, simulated),
        "precision_recall": precision_recall_figure(evaluation, simulated),
        "calibration": calibration_figure(evaluation, simulated),
    }
    for name in evaluation.sets:
        figures[f"subgroups_{name}"] = subgroup_figure(evaluation, name, simulated)
    return figures


def roc_figure(evaluation: Evaluation, simulated: str) -> Figure:
    """Recall against the share of false positives, by set; a dot at the threshold."""
    figure, axes = _square(
        "How well the detector tells images apart: ROC curve",
        _curve_subtitle(evaluation, "area under the curve"),
        ("of images without a police vehicle, share found positive", "of images with one, share found positive"),
        simulated,
    )
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=0.8, zorder=1)
    _name_line(axes, (0.62, 0.62), "by chance", angle=45)
    for name in evaluation.sets:
        facts = evaluation.summary["sets"][name]
        false_positives = facts["above_threshold"] - facts["true_positives"]
        point = (false_positives / (facts["images"] - facts["positives"]), facts["true_positives"] / facts["positives"])
        _curve(axes, evaluation, name, "roc", point, facts["auc"])
    _legend(axes, "lower right")
    return figure


def precision_recall_figure(evaluation: Evaluation, simulated: str) -> Figure:
    """Precision against recall, by set; a dot at the threshold."""
    figure, axes = _square(
        "How many finds are right, and how many are found",
        _curve_subtitle(evaluation, "average precision"),
        ("of images with a police vehicle, share found (recall)", "of those found, share that show one (precision)"),
        simulated,
    )
    for name in evaluation.sets:
        facts = evaluation.summary["sets"][name]
        above = facts["above_threshold"]
        point = (facts["true_positives"] / facts["positives"], facts["true_positives"] / above) if above else None
        _curve(axes, evaluation, name, "precision_recall", point, facts["average_precision"])
    _legend(axes, "lower left")
    return figure


def calibration_figure(evaluation: Evaluation, simulated: str) -> Figure:
    """Share of images that show a police vehicle by score, with intervals."""
    percent = evaluation.summary["interval_percent"]
    figure, axes = _square(
        "What a score is worth",
        "Dot: images of about the same score, a tenth each; at 0 those without a box\n"
        f"Line: {percent:g} % interval. Dotted: threshold {evaluation.summary['threshold']:.6g}",
        ("mean score of the detector", "share of images that show a police vehicle"),
        simulated,
    )
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=0.8, zorder=1)
    _name_line(axes, (0.3, 0.3), "a score that is a probability", angle=45)
    axes.axvline(evaluation.summary["threshold"], color=MUTED, linewidth=0.9, linestyle=":", zorder=1)
    for name in evaluation.sets:
        color, _, marker, _ = STYLES[name]
        bins = evaluation.calibration[evaluation.calibration["set"] == name]
        axes.vlines(bins["mean_score"], bins["lower"], bins["upper"], color=color, linewidth=1.5, alpha=0.8, zorder=2)
        axes.plot(
            bins["mean_score"],
            bins["share"],
            marker,
            color=color,
            markersize=4.6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
            label=f"{NAMES[name]}: {evaluation.summary['sets'][name]['images']:,} images",
            zorder=3,
        )
    _legend(axes, "upper left")
    return figure


def subgroup_figure(evaluation: Evaluation, name: str, simulated: str) -> Figure:
    """AUC and average precision on both sides of every split of one set, with intervals."""
    quality = evaluation.quality[evaluation.quality["set"] == name]
    groups = list(dict.fromkeys(quality["subgroup"]))
    notice = notice_lines(simulated)
    row_pt, left_pt, right_pt, gap_pt = 24.0, 122.0, 40.0, 12.0
    percent = evaluation.summary["interval_percent"]
    subtitle = (
        f"Dot: estimate. Line: {percent:g} % interval over images. Black: all images\n"
        "Shares, income, density and distances are cut at the median of the set"
    )
    head_pt = heading_pt(subtitle, WIDTH_PT)
    top_pt, bottom_pt = head_pt + LINE_PT + 26, 36 + LINE_PT * len(notice)
    height_pt = top_pt + row_pt * len(groups) + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    heading(figure, f"The detector by subgroup: {NAMES[name]}", subtitle, notice)
    _side_legend(figure, height_pt, head_pt + LINE_PT + 8)
    panel_pt = (WIDTH_PT - left_pt - right_pt - gap_pt) / 2
    for number, (quantity, label) in enumerate(PANELS.items()):
        axes = figure.add_axes(
            (
                (left_pt + number * (panel_pt + gap_pt)) / WIDTH_PT,
                bottom_pt / height_pt,
                panel_pt / WIDTH_PT,
                row_pt * len(groups) / height_pt,
            )
        )
        bare(axes)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.yaxis.set_major_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.3g}"))
        axes.set_xlabel(label, fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
        _panel(axes, quality[quality["quantity"] == quantity], groups)
        if number == 0:
            _group_names(axes, groups)
        else:
            _positives(axes, quality[quality["quantity"] == quantity], groups)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, groups: list[str]) -> None:
    """Intervals of one quantity; a line at the estimate of all images."""
    whole = rows[rows["subgroup"] == ALL_IMAGES].iloc[0]
    axes.axvline(whole["estimate"], color=INK, linewidth=0.9, zorder=1)
    for position in range(0, len(groups), 2):
        axes.axhspan(position - 0.5, position + 0.5, color=GRID, alpha=0.08, linewidth=0, zorder=0)
    for row in rows.to_dict("records"):
        y, color, marker = _place(row, groups)
        if np.isnan(row["estimate"]):
            # A place on the page, as there is none on the axis.
            axes.text(
                0.03,
                y,
                "no estimate",
                transform=axes.get_yaxis_transform(),
                fontsize=SMALL_PT - 0.5,
                color=color,
                va="center",
            )
            continue
        axes.hlines(y, row["lower"], row["upper"], color=color, linewidth=1.8, zorder=3)
        axes.plot(row["estimate"], y, marker, color=color, markersize=5.0 if marker == "o" else 4.2, zorder=4)


def _place(row: dict[Any, Any], groups: list[str]) -> tuple[float, str, str]:
    """Height, color and marker of one side of a split."""
    position = groups.index(row["subgroup"])
    if row["side"] == "all":
        return position, INK, "o"
    _, color, marker = SIDES[row["side"]]
    return position + (-0.2 if row["side"] == "true" else 0.2), color, marker


def _group_names(axes: Axes, groups: list[str]) -> None:
    for position, group in enumerate(groups):
        lines = textwrap.wrap(group.removesuffix(" > median"), 22)
        axes.annotate(
            "\n".join(lines),
            (0, position),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-6, 0),
            textcoords="offset points",
            fontsize=SMALL_PT if len(lines) > 1 else TEXT_PT - 0.5,
            color=INK,
            fontweight="bold" if group == ALL_IMAGES else "normal",
            ha="right",
            va="center",
            linespacing=0.95,
            annotation_clip=False,
        )


def _positives(axes: Axes, rows: pd.DataFrame, groups: list[str]) -> None:
    """Images that show a police vehicle, on the right: they, not all images, decide how wide an interval is."""
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "fontsize": SMALL_PT,
        "ha": "right",
        "annotation_clip": False,
    }
    across = axes.get_yaxis_transform()
    axes.annotate(
        "with a\nvehicle", (1, 1), xycoords="axes fraction", xytext=(34, 4), color=MUTED, va="bottom", **style
    )
    for row in rows.to_dict("records"):
        y, color, _ = _place(row, groups)
        axes.annotate(
            f"{row['positives']:,}", (1, y), xycoords=across, xytext=(34, 0), color=color, va="center", **style
        )


def _side_legend(figure: Figure, height_pt: float, below_pt: float) -> None:
    """What the colors are, `below_pt` from the top."""
    x_pt, y_pt = 12.0, height_pt - below_pt
    for text, color, marker in SIDES.values():
        figure.add_artist(
            Line2D([x_pt / WIDTH_PT], [y_pt / height_pt], marker=marker, color=color, markersize=5, linestyle="none")
        )
        figure.text(
            (x_pt + 7) / WIDTH_PT, (y_pt - 0.5) / height_pt, text, fontsize=SMALL_PT + 0.5, color=INK, va="center"
        )
        x_pt += 24 + 4.6 * len(text)


def _square(title: str, subtitle: str, labels: tuple[str, str], simulated: str) -> tuple[Figure, Axes]:
    """Figure with square axes from 0 to 1; `labels` are those of the x and the y axis."""
    notice = notice_lines(simulated)
    top_pt, bottom_pt = heading_pt(subtitle, WIDTH_PT) + 13, 40.0 + LINE_PT * len(notice)
    left_pt, right_pt = 44.0, 12.0
    side_pt = WIDTH_PT - left_pt - right_pt
    height_pt = top_pt + side_pt + bottom_pt
    figure = Figure(figsize=(WIDTH_PT / PT_PER_INCH, height_pt / PT_PER_INCH))
    axes = figure.add_axes((left_pt / WIDTH_PT, bottom_pt / height_pt, side_pt / WIDTH_PT, side_pt / height_pt))
    heading(figure, title, subtitle, notice)
    bare(axes, both=True)
    for limit, axis in ((axes.set_xlim, axes.xaxis), (axes.set_ylim, axes.yaxis)):
        limit(-0.02, 1.02)
        axis.set_major_locator(MultipleLocator(0.2))
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.1g}"))
    axes.set_xlabel(labels[0], fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    axes.set_ylabel(labels[1], fontsize=SMALL_PT + 0.5, color=MUTED, labelpad=3)
    return figure, axes


def _curve(
    axes: Axes,
    evaluation: Evaluation,
    name: str,
    curve: str,
    point: tuple[float, float] | None,
    found: dict[str, float],
) -> None:
    color, line, marker, size_pt = STYLES[name]
    points = evaluation.curves[(evaluation.curves["set"] == name) & (evaluation.curves["curve"] == curve)]
    label = f"{NAMES[name]}: {found['estimate']:.3f} ({found['lower']:.3f} to {found['upper']:.3f})"
    # Average precision is the area under steps.
    style = "steps-post" if curve == "precision_recall" else "default"
    axes.plot(points["x"], points["y"], line, drawstyle=style, color=color, linewidth=1.5, label=label, zorder=3)
    if point is not None:
        axes.plot(
            *point, marker, color=color, markersize=size_pt, markeredgecolor="white", markeredgewidth=0.8, zorder=4
        )


def _curve_subtitle(evaluation: Evaluation, area: str) -> str:
    summary = evaluation.summary
    return (
        f"Line: every threshold. Mark: threshold {summary['threshold']:.6g}\n"
        f"In the key: {area}, with its {summary['interval_percent']:g} % interval"
    )


def _name_line(axes: Axes, at: tuple[float, float], text: str, *, angle: float) -> None:
    axes.annotate(
        text,
        at,
        xytext=(3, -3),
        textcoords="offset points",
        fontsize=SMALL_PT,
        color=MUTED,
        rotation=angle,
        rotation_mode="anchor",
        va="top",
    )


def _legend(axes: Axes, place: str) -> None:
    axes.legend(loc=place, fontsize=SMALL_PT, frameon=False, labelcolor=INK, handlelength=2.4, labelspacing=0.6)
