"""Quality of the detector: curves, calibration, and subgroups."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from patrolscope.analysis.estimators.detector_quality import ALL_IMAGES
from patrolscope.analysis.estimators.operating_points import operating_point
from patrolscope.analysis.stages.evaluate import Evaluation
from patrolscope.dashboards.charts.axes import linear_axis, share_axis
from patrolscope.dashboards.charts.matplotlib_renderer import draw, draw_panels
from patrolscope.dashboards.charts.specs import (
    Curve,
    CurveChart,
    IntervalChart,
    IntervalSeries,
    ReferenceLine,
    Row,
    Specification,
    Style,
    notes_of,
)
from patrolscope.dashboards.charts.style import BLUE, GREEN, GRID, INK, MUTED, ORANGE, WIDTH_PT

# Distinguishable without color, and where curves overlap.
STYLES = {
    "validation": Style(BLUE, "o", "solid", size=8.0),
    "test": Style(ORANGE, "D", "dashed", size=4.6),
    "labels": Style(GREEN, "s", "dashdot", size=5.0),
}
NAMES = {"validation": "validation set", "test": "test set", "labels": "the study's own images"}
SIDES = {
    "true": ("yes, or above the median", Style(BLUE, "o", size=4.6)),
    "all": ("all images", Style(INK, "o", size=4.6)),
    "false": ("no, or not above the median", Style(ORANGE, "D", size=4.0)),
}
METRICS = {"auc": "area under ROC curve", "average_precision": "average precision"}


def draw_evaluation(evaluation: Evaluation, *, simulated: str) -> dict[str, Figure]:
    """Draw roc, precision_recall, calibration, and subgroups_<set> of each labeled set."""
    charts = (
        roc_chart(evaluation, simulated),
        precision_recall_chart(evaluation, simulated),
        calibration_chart(evaluation, simulated),
    )
    figures = {
        name: draw(chart) for name, chart in zip(("roc", "precision_recall", "calibration"), charts, strict=True)
    }
    for name in evaluation.sets:
        figures[f"subgroups_{name}"] = subgroup_figure(evaluation, name, simulated)
    return figures


def roc_chart(evaluation: Evaluation, simulated: str) -> CurveChart:
    """Specify the ROC curve of each labeled set, with the operating point."""
    return CurveChart(
        title="ROC curve",
        subtitle=_curve_subtitle(evaluation, "AUC"),
        notes=notes_of(simulated),
        x=share_axis("false positive rate"),
        y=share_axis("true positive rate (recall)"),
        curves=_curves(evaluation, "roc", "auc"),
        references=(ReferenceLine("diagonal", 0.62, "chance", GRID),),
        legend="lower right",
        square=True,
    )


def precision_recall_chart(evaluation: Evaluation, simulated: str) -> CurveChart:
    """Specify the precision-recall curve of each labeled set, with the operating point."""
    return CurveChart(
        title="Precision-recall curve",
        subtitle=_curve_subtitle(evaluation, "average precision"),
        notes=notes_of(simulated),
        x=share_axis("recall"),
        y=share_axis("precision"),
        curves=_curves(evaluation, "precision_recall", "average_precision"),
        legend="lower left",
        square=True,
    )


def calibration_chart(evaluation: Evaluation, simulated: str) -> CurveChart:
    """Specify the share of images that show a police vehicle by score, with intervals."""
    summary, bins = evaluation.summary, evaluation.calibration
    curves = []
    for name in evaluation.sets:
        rows = bins[bins["set"] == name]
        columns = {column: rows[column].to_numpy() for column in ("mean_score", "share", "lower", "upper", "images")}
        style = STYLES[name]
        curves.append(
            Curve(
                f"{NAMES[name]}: {summary['sets'][name]['images']:,} images",
                columns["mean_score"],
                columns["share"],
                Style(style.color, style.marker, size=4.6),
                "points",
                lower=columns["lower"],
                upper=columns["upper"],
                images=columns["images"],
            )
        )
    return CurveChart(
        title="Calibration curve",
        subtitle=(
            "Point: a tenth of the images with a box, by score; images without a box are at 0. Line: "
            f"{summary['interval_percent']:g}% interval. Dotted line: threshold {summary['threshold']:.6g}."
        ),
        notes=notes_of(simulated),
        x=share_axis("mean score of the images"),
        y=share_axis("share of images that show a police vehicle"),
        curves=tuple(curves),
        references=(
            ReferenceLine("diagonal", 0.3, "perfect calibration", GRID),
            ReferenceLine("vertical", summary["threshold"], color=MUTED, dash="dotted"),
        ),
        square=True,
    )


def _curve_subtitle(evaluation: Evaluation, area: str) -> str:
    summary = evaluation.summary
    return (
        f"Line: all thresholds. Marker: threshold {summary['threshold']:.6g}. "
        f"Legend: {area} with {summary['interval_percent']:g}% interval."
    )


def _curves(evaluation: Evaluation, curve: Literal["roc", "precision_recall"], area: str) -> tuple[Curve, ...]:
    points = evaluation.curves[evaluation.curves["curve"] == curve]
    curves = []
    for name in evaluation.sets:
        facts, rows = evaluation.summary["sets"][name], points[points["set"] == name]
        estimate = facts[area]
        curves.append(
            Curve(
                f"{NAMES[name]}: {estimate['estimate']:.3f} ({estimate['lower']:.3f} to {estimate['upper']:.3f})",
                rows["x"].to_numpy(),
                rows["y"].to_numpy(),
                STYLES[name],
                "steps" if curve == "precision_recall" else "line",  # average precision is the area under steps
                mark=operating_point(facts, curve),
            )
        )
    return tuple(curves)


def subgroup_figure(evaluation: Evaluation, name: str, simulated: str) -> Figure:
    """Draw AUC and average precision on both sides of every split of one labeled set.

    The column on the right counts labeled positives, which limit the precision of an estimate more than all images do.

    Parameters
    ----------
    evaluation : Evaluation
        Tables of the evaluation.
    name : str
        Labeled set: "validation" or "test".
    simulated : str
        Note on simulated images, or an empty string.
    """
    quality = evaluation.quality[evaluation.quality["set"] == name]
    rows = tuple(Row(group.removesuffix(" > median"), group) for group in dict.fromkeys(quality["subgroup"]))
    panels = [
        _subgroup_panel(quality[quality["quantity"] == metric], rows, label, last=metric == list(METRICS)[-1])
        for metric, label in METRICS.items()
    ]
    heading = Specification(
        title=f"Detector quality by subgroup, {NAMES[name]}",
        subtitle=(
            f"Point: estimate. Line: {evaluation.summary['interval_percent']:g}% interval, resampling images. "
            "Vertical line: all images. Shares, income, density, and distances are split at the median of the set."
        ),
        notes=notes_of(simulated),
    )
    return draw_panels(heading, panels, columns=len(panels), width_pt=WIDTH_PT, shared_legend=True)


def _subgroup_panel(quality: pd.DataFrame, rows: tuple[Row, ...], label: str, *, last: bool) -> IntervalChart:
    """Specify one metric; the last panel has the counts, and only the first one has the names of the subgroups."""
    table = quality.rename(columns={"subgroup": "group"})
    whole: dict[Any, Any] = table[table["group"] == ALL_IMAGES].iloc[0].to_dict()
    return IntervalChart(
        title="",
        x=linear_axis(table[["estimate", "lower", "upper"]].to_numpy(dtype="float64").ravel(), label),
        rows=tuple(Row(" ", row.group) for row in rows) if last else rows,
        series=tuple(
            IntervalSeries(text, table[table["side"] == side], style) for side, (text, style) in SIDES.items()
        ),
        reference=whole["estimate"],
        column="labeled_positives" if last else "",
        column_title="labeled\npositives" if last else "",
    )
