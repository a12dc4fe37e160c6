"""Detector page: evaluation curves, the effect of a different threshold, and a gallery of images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.estimators.calibration import TwoClass, two_class
from patrolscope.analysis.estimators.detector_quality import ScoreCounts, quality_at
from patrolscope.analysis.stages.calibrate import read_labeled_sets
from patrolscope.analysis.stages.evaluate import Evaluation, evaluate_sets
from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.cards import CARD, Card, HtmlPane, cards, html_table, paragraph
from patrolscope.dashboards.app.charts import Chart, chart_of
from patrolscope.dashboards.app.filtered_results import images_kept, rates_at
from patrolscope.dashboards.app.gallery_view import gallery_view
from patrolscope.dashboards.app.messages import error_html, message
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.disparities import TITLES, interval_chart, rows_of_groups
from patrolscope.dashboards.charts.evaluation import NAMES, calibration_chart, precision_recall_chart, roc_chart
from patrolscope.dashboards.charts.specs import IntervalSeries, Style
from patrolscope.dashboards.charts.style import BLUE, MEASURE, ORANGE
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.pipeline.errors import SourceError

REPLICATES = 200
# Analyses that are shown at a chosen threshold.
KINDS = {name: TITLES[name] for name in ("race", "borough", "income")}


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
    """Return ROC curve, precision-recall curve, and calibration curve."""
    summary, points = evaluation.summary, evaluation.curves
    percent = f"{summary['interval_percent']:g}%"
    charts = []
    for name, metric, quantity, specify in (
        ("roc", "auc", "Area under the curve", roc_chart),
        ("precision_recall", "average_precision", "Average precision", precision_recall_chart),
    ):
        estimates = []
        for one in evaluation.sets:
            found = summary["sets"][one][metric]
            interval = f"{percent} interval {found['lower']:.3f} to {found['upper']:.3f}"
            estimates.append(f"{NAMES[one]} {found['estimate']:.3f} ({interval})")
        charts.append(
            chart_of(
                name,
                specify(evaluation, site.simulated),
                note=f"Line: all thresholds. Marker: threshold {summary['threshold']:.6g} of the study.",
                caption=f"{quantity}: {'; '.join(estimates)}.",
                frame=points[points["curve"] == name],
            )
        )
    bins = evaluation.calibration
    ends = []
    for one in evaluation.sets:
        rows = bins[bins["set"] == one]
        low, high = rows.iloc[0], rows.iloc[-1]
        ends.append(
            f"{NAMES[one]}: from {low['share']:.1%} at score {low['mean_score']:.2f} to {high['share']:.1%} at "
            f"{high['mean_score']:.2f}"
        )
    spec = calibration_chart(evaluation, site.simulated)
    return [*charts, chart_of("calibration", spec, note=spec.subtitle, caption=f"{'; '.join(ends)}.", frame=bins)]


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
    """Return charts of the relative rates at the study's threshold and at another one, each with its own calibration.

    Parameters
    ----------
    site : Site
        Study and its packed points.
    keep : Filter
        Images to count.
    threshold : float
        Second threshold, a score between 0 and 1.

    Raises
    ------
    SourceError
        If the threshold cannot be calibrated.
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
        # Without intervals there is nothing that could be degenerate.
        series = [
            IntervalSeries(name, one.drop(columns="none_positive", errors="ignore"), style)
            for name, one, style in (
                (f"threshold {given:.6g} of the study", both[0], Style(BLUE, "o")),
                (f"threshold {threshold:.3f}", both[1], Style(ORANGE, "D", size=3.4)),
            )
        ]
        rows = rows_of_groups(kind, both[0])
        pairs = both[0].merge(both[1], on="key", suffixes=("", "_at")).set_index("group")
        pairs = pairs.loc[[row.group for row in rows if row.group in pairs.index]]
        caption = "; ".join(
            f"{group} {row['estimate']:.2f}, then {row['estimate_at']:.2f}" for group, row in pairs.iterrows()
        )
        spec = interval_chart(
            series,
            rows,
            title=title,
            subtitle=f"{MEASURE}. Point: two-class estimate, calibrated at the threshold.",
            simulated=site.simulated,
            part="" if keep.is_all else keep.describe(),
        )
        frame = pd.concat([one.table.assign(threshold=at) for one, at in zip(series, (given, threshold), strict=True)])
        alt = f"{title} at two thresholds. {caption}."
        charts.append(chart_of(f"threshold_{kind}", spec, caption=f"{caption}.", frame=frame, alt=alt))
    return charts


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
