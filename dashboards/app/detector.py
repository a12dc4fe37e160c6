"""Detector page: evaluation curves, the effect of a different threshold, and a gallery of images."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, Span
from markupsafe import Markup
from matplotlib.figure import Figure

from patrolscope.analysis.estimators.calibration import TwoClass, two_class
from patrolscope.analysis.estimators.detector_quality import ScoreCounts, quality_at
from patrolscope.analysis.stages.calibrate import read_labeled_sets
from patrolscope.analysis.stages.evaluate import Evaluation, evaluate_sets
from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, html_table, paragraph
from patrolscope.dashboards.app.charts import MARKERS, Chart, Line, bare, interval_chart, line_chart
from patrolscope.dashboards.app.filtered_results import images_kept, rates_at
from patrolscope.dashboards.app.gallery_view import gallery_view
from patrolscope.dashboards.app.messages import error_html, message
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.evaluation import (
    NAMES,
    STYLES,
    calibration_figure,
    precision_recall_figure,
    roc_figure,
)
from patrolscope.dashboards.charts.figures import BLUE, GRID, MEASURE, MUTED, ORANGE, Row, Series, interval_figure
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.pipeline.errors import SourceError

REPLICATES = 200
DASHES = {"-": "solid", "--": "dashed", "-.": "dashdot"}
# Groups in the charts of a different threshold.
KINDS = {"race": "By race and ethnicity", "borough": "By borough", "income": "By median household income"}


# Contents.


@lru_cache(maxsize=2)
def evaluation_of(site: Site) -> Evaluation | None:
    """Evaluate the detector on the labeled sets that have both classes; return None if there are none."""
    sets = {
        name: frame for name, frame in read_labeled_sets(site.study).items() if frame["ground_truth"].nunique() == 2
    }
    if not sets:
        return None
    rules = site.study.settings.estimate
    return evaluate_sets(
        sets,
        rules.threshold,
        {name: [] for name in sets},
        replicates=REPLICATES,
        seed=rules.seed,
        interval_percent=rules.interval_percent,
    )


def curve_charts(site: Site, evaluation: Evaluation) -> list[Chart]:
    """ROC, precision and recall, calibration."""
    simulated = site.simulated
    summary = evaluation.summary
    percent = f"{summary['interval_percent']:g} %"
    charts = []
    for name, curve, title, area, labels, picture in (
        (
            "roc",
            "roc",
            "How well it tells images apart: ROC curve",
            "auc",
            ("of images without a police vehicle, share found positive", "of images with one, share found positive"),
            roc_figure,
        ),
        (
            "precision_recall",
            "precision_recall",
            "How many finds are right, and how many are found",
            "average_precision",
            (
                "of images with a police vehicle, share found (recall)",
                "of those found, share that show one (precision)",
            ),
            precision_recall_figure,
        ),
    ):
        points = evaluation.curves[evaluation.curves["curve"] == curve]
        lines, told_of = [], []
        for one in evaluation.sets:
            mine, facts = points[points["set"] == one], summary["sets"][one]
            color, dash, _, _ = STYLES[one]
            step = curve == "precision_recall"
            lines.append(Line(NAMES[one], mine["x"].to_numpy(), mine["y"].to_numpy(), color, DASHES[dash], step))
            found = facts[area]
            told_of.append(
                f"{NAMES[one]} {found['estimate']:.3f} ({percent} {found['lower']:.3f} to {found['upper']:.3f})"
            )
        what = "Area under the curve" if area == "auc" else "Average precision"
        caption = f"{what}, with its interval: {'; '.join(told_of)}."
        plot = line_chart(lines, labels=labels, alt=f"{title}. {caption}", x_range=(-0.02, 1.02), y_range=(-0.02, 1.03))
        if curve == "roc":
            plot.line([0, 1], [0, 1], line_color=GRID, line_dash="dotted")
        for one in evaluation.sets:
            _mark(plot, summary["sets"][one], one, curve)
        note = f"Line: every threshold. Mark: the study's, {summary['threshold']:.6g}."
        key = tuple((NAMES[one], STYLES[one][0], STYLES[one][2]) for one in evaluation.sets)
        charts.append(Chart(name, title, note, caption, plot, key, points, partial(picture, evaluation, simulated)))
    return [*charts, calibration_chart(site, evaluation)]


def _mark(plot: Any, facts: dict[str, Any], name: str, curve: str) -> None:
    """The study's threshold on a curve."""
    color, _, marker, _ = STYLES[name]
    above, hits, shows = facts["above_threshold"], facts["true_positives"], facts["labeled_positives"]
    recall = hits / shows
    if curve == "roc":
        place = ((above - hits) / (facts["images"] - shows), recall)
    elif above:
        place = (recall, hits / above)
    else:
        return
    plot.scatter(*place, marker=MARKERS[marker], size=10, fill_color=color, line_color="#ffffff")


def calibration_chart(site: Site, evaluation: Evaluation) -> Chart:
    """Share of images that show a police vehicle by score."""
    summary = evaluation.summary
    title = "What a score is worth"
    bins = evaluation.calibration
    caption = "; ".join(
        f"{NAMES[name]}: from {low['share']:.1%} at score {low['mean_score']:.2f} to {high['share']:.1%} at "
        f"{high['mean_score']:.2f}".replace("%", " %")
        for name, low, high in (
            (name, bins[bins["set"] == name].iloc[0], bins[bins["set"] == name].iloc[-1]) for name in evaluation.sets
        )
    )
    plot = bare(alt=f"{title}. {caption}.", height=330, x_range=(-0.02, 1.02), y_range=(-0.02, 1.03))
    plot.line([0, 1], [0, 1], line_color=GRID, line_dash="dotted")
    plot.add_layout(Span(location=summary["threshold"], dimension="height", line_color=MUTED, line_dash="dashed"))
    for name in evaluation.sets:
        color, _, marker, _ = STYLES[name]
        rows = bins[bins["set"] == name]
        columns = ("mean_score", "share", "lower", "upper", "images")
        source = ColumnDataSource({column: rows[column].to_numpy() for column in columns})
        plot.segment("mean_score", "lower", "mean_score", "upper", source=source, line_color=color, line_width=2)
        dots = plot.scatter(
            "mean_score",
            "share",
            source=source,
            marker=MARKERS[marker],
            size=8,
            fill_color=color,
            line_color="#ffffff",
        )
        lines = [("mean score", "@mean_score{0.000}"), ("share", "@share{0.000}"), ("images", "@images{0,0}")]
        interval = ("interval", "@lower{0.000} to @upper{0.000}")
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[*lines, interval]))
    plot.xaxis.axis_label = "mean score of the detector"
    plot.yaxis.axis_label = "share of images that show a police vehicle"
    note = (
        f"Dot: images of about the same score, a tenth each; at 0 those without a box. Line: "
        f"{summary['interval_percent']:g} % interval. Dashed: the study's threshold. Dotted: a probability."
    )
    key = tuple((NAMES[name], STYLES[name][0], STYLES[name][2]) for name in evaluation.sets)
    simulated = site.simulated
    return Chart(
        "calibration", title, note, f"{caption}.", plot, key, bins, lambda: calibration_figure(evaluation, simulated)
    )


@lru_cache(maxsize=2)
def score_counts(site: Site) -> dict[str, ScoreCounts]:
    """Count labeled images by score and label, for each labeled set."""
    return {
        name: ScoreCounts.of(one["ground_truth"], one["score"]) for name, one in read_labeled_sets(site.study).items()
    }


def quality_table_at(site: Site, threshold: float) -> pd.DataFrame:
    """Return precision and recall by labeled set at a threshold: column set, and those of `quality_at`."""
    percent = site.study.settings.estimate.interval_percent
    parts = [
        quality_at(counts, threshold, interval_percent=percent).assign(set=name)
        for name, counts in score_counts(site).items()
    ]
    return pd.concat(parts, ignore_index=True)


def quality_html(site: Site, threshold: float) -> Markup:
    """Render precision and recall at a threshold as HTML."""
    rows = quality_table_at(site, threshold)

    def text(row: pd.Series[Any]) -> str:
        if not row["of"]:
            return UNKNOWN
        return f"{row['estimate']:.3f} ({row['lower']:.3f} to {row['upper']:.3f}), {row['hits']:,} of {row['of']:,}"

    table = pd.DataFrame(
        {
            "Labeled set": [NAMES[name] for name in rows["set"].unique()],
            **{
                quantity.capitalize(): [text(row) for _, row in rows[rows["quantity"] == quantity].iterrows()]
                for quantity in ("precision", "recall")
            },
        }
    )
    return html_table(table, "Precision and recall at this threshold", text=list(table.columns))


@lru_cache(maxsize=64)
def calibration_at(site: Site, threshold: float) -> TwoClass:
    """Calibrate a threshold on the validation set.

    Raises
    ------
    SourceError
        If all validation images are on one side of the threshold.
    """
    validation = read_labeled_sets(site.study)["validation"]
    return two_class(validation["ground_truth"], validation["score"], threshold)


def threshold_charts(site: Site, keep: Filter, threshold: float) -> list[Chart]:
    """Levels at a threshold, calibrated there, beside those at the study's own.

    Raises
    ------
    SourceError : the threshold can not be calibrated
    """
    given = site.study.settings.estimate.threshold
    own = rates_at(site, keep, calibration_at(site, given), None)
    other = rates_at(site, keep, calibration_at(site, threshold), threshold)
    charts = []
    for kind, title in KINDS.items():
        both = [
            one[(one["analysis"] == kind) & (one["quantity"] == "relative_to_average") & (one["group"] != "All")]
            for one in (own, other)
        ]
        if both[0].empty:
            continue
        first = both[0] if kind == "income" else from_the_highest(both[0])
        groups = first["group"].to_list()
        series = [
            Series(f"threshold {given:.6g}, the study's", both[0], BLUE, "o"),
            Series(f"threshold {threshold:.3f}", both[1], ORANGE, "D"),
        ]
        pairs = first.merge(both[1], on="key", suffixes=("", "_at"))
        caption = "; ".join(
            f"{row['group']} {row['estimate']:.2f}, then {row['estimate_at']:.2f}" for _, row in pairs.iterrows()
        )
        charts.append(
            Chart(
                f"threshold_{kind}",
                title,
                "",
                f"{caption}.",
                interval_chart(series, groups, alt=f"{title} at two thresholds, times the average. {caption}."),
                tuple((one.name, one.color, one.marker) for one in series),
                pd.concat([one.rows.assign(threshold=at) for one, at in zip(series, (given, threshold), strict=True)]),
                partial(_threshold_figure, series, groups, title, keep, site.simulated),
            )
        )
    return charts


def _threshold_figure(series: list[Series], groups: list[str], title: str, keep: Filter, simulated: str) -> Figure:
    """The same for print; without intervals the whiskers have no length."""
    dots = [
        replace(one, rows=one.rows.assign(lower=one.rows["estimate"], upper=one.rows["estimate"])) for one in series
    ]
    dots = [replace(one, rows=one.rows.assign(hollow=False)) for one in dots]
    rows = [Row(group, group) for group in groups]
    part = "" if keep.is_all else keep.describe()
    subtitle = f"{MEASURE}\nDot: two-class estimate, calibrated at the threshold"
    return interval_figure(dots, rows, title=title, subtitle=subtitle, simulated=simulated, part=part)


# Page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """Return the page of one session."""
    parts = []
    if site.study.settings.sources.validation is None:
        parts.append(
            message(
                paragraph(
                    "The study has no labeled images. Set sources.validation in study.yaml to a CSV file with the "
                    "columns ground_truth, Model_predicted_score, lat, lng, and timestamp."
                )
            )
        )
    elif (evaluation := evaluation_of(site)) is None:
        parts.append(message(paragraph("No labeled set has both images with and images without a police vehicle.")))
    else:
        parts.append(cards(*(Card(chart).view for chart in curve_charts(site, evaluation))))
        parts.append(_Threshold(site, state).view)
    return pn.Column(*parts, gallery_view(site), sizing_mode="stretch_width", styles={"gap": "18px"})


class _Threshold:
    """Slider of the threshold, with precision, recall, and rates at its value."""

    def __init__(self, site: Site, state: State) -> None:
        self.site, self.state = site, state
        given = site.study.settings.estimate.threshold
        self.slider = pn.widgets.FloatSlider(
            label="Score threshold", start=0, end=1, step=0.005, value=given, format="0.000", width=320
        )
        self.quality, self.status = HtmlPane(), HtmlPane()
        self.cards: list[Card] = []
        self.charts = cards()
        self.slider.param.watch(self._draw, "value_throttled")
        self.slider.param.watch(self._show_quality, "value")
        state.param.watch(self._draw, "filter")
        self._draw()

    @property
    def view(self) -> pn.viewable.Viewable:
        """Slider, precision and recall, and charts of rates."""
        title = HtmlPane(
            Markup("<h2>Effect of the threshold</h2>")
            + paragraph(
                "An image is positive if its score is above the threshold. Precision and recall come from the labeled "
                "images, with Wilson intervals. Deployment rates use a new calibration at every threshold.",
                "note",
            )
        )
        head = pn.Column(
            title, self.slider, self.quality, self.status, styles=CARD, sizing_mode="stretch_width", margin=0
        )
        return pn.Column(head, self.charts, sizing_mode="stretch_width", styles={"gap": "18px"})

    def _show_quality(self, *_: Any) -> None:
        self.quality.set_html(quality_html(self.site, self.slider.value))

    def _draw(self, *_: Any) -> None:
        self._show_quality()
        try:
            charts = threshold_charts(self.site, self.state.filter, self.slider.value)
        except SourceError as error:
            self.status.set_html(error_html(self.site.study, error))
            return
        self.status.set_html(
            paragraph(f"Two-class deployment rates. {images_kept(self.site, self.state.filter)}.", "note")
        )
        if [card.chart.name for card in self.cards] != [chart.name for chart in charts]:
            self.cards = [Card(chart, level=3) for chart in charts]
            self.charts.objects = [card.view for card in self.cards]
        for card, chart in zip(self.cards, charts, strict=True):
            card.show(chart)
