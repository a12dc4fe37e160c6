"""The page of the detector: how well it tells images apart, what another threshold would do, and what it saw."""

from __future__ import annotations

import asyncio
import contextlib
from functools import lru_cache
from typing import Any

import pandas as pd
import panel as pn
from markupsafe import Markup

from patrolscope.analysis.stages.calibrate import TwoClass, read_labeled_sets, two_class
from patrolscope.analysis.stages.evaluate import Evaluation, ScoreCounts, evaluate_sets, quality_at
from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.charts import (
    CARD,
    Card,
    Chart,
    HtmlPane,
    cards,
    chart_of,
    html_table,
    paragraph,
)
from patrolscope.dashboards.app.gallery import AT_ONCE, BANDS, Gallery, load_gallery, show
from patrolscope.dashboards.app.messages import message, not_yet, told
from patrolscope.dashboards.app.parts import images_left, levels_at
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.charts.disparities import TITLES, interval_chart, rows_of_groups
from patrolscope.dashboards.charts.evaluation import NAMES, calibration_chart, precision_recall_chart, roc_chart
from patrolscope.dashboards.charts.specs import IntervalSeries, Style
from patrolscope.dashboards.charts.style import BLUE, MEASURE, ORANGE
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.pipeline.errors import PatrolscopeError, SourceError, StageNotRunError

REPLICATES = 200
# Analyses that are shown at a chosen threshold.
KINDS = {name: TITLES[name] for name in ("race", "borough", "income")}
_GALLERY_STYLE = """
:host { contain: inline-size; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; }
figure { margin: 0; } img { width: 100%; display: block; border-radius: 4px; background: #eef0f3; }
figcaption { font-size: .82rem; color: #5a636e; overflow-wrap: anywhere; }
.gone { background: #eef0f3; border-radius: 4px; padding: 40px 12px; text-align: center; color: #5a636e; }
"""


# What is shown.


@lru_cache(maxsize=2)
def evaluation_of(site: Site) -> Evaluation | None:
    """The detector on the study's labeled sets at its own threshold; None where it has no set of both kinds."""
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
def tallies(site: Site) -> dict[str, ScoreCounts]:
    """Labeled images by score and truth, a set each."""
    return {
        name: ScoreCounts.of(one["ground_truth"], one["score"]) for name, one in read_labeled_sets(site.study).items()
    }


def quality_table_at(site: Site, threshold: float) -> pd.DataFrame:
    """Precision and recall on every labeled set at a threshold: set, and the columns of `quality_at`."""
    percent = site.study.settings.estimate.interval_percent
    parts = [
        quality_at(tally, threshold, interval_percent=percent).assign(set=name) for name, tally in tallies(site).items()
    ]
    return pd.concat(parts, ignore_index=True)


def quality_html(site: Site, threshold: float) -> Markup:
    """The same in words and figures, as HTML."""
    rows = quality_table_at(site, threshold)

    def told_of(row: pd.Series[Any]) -> str:
        if not row["of"]:
            return UNKNOWN
        return f"{row['estimate']:.3f} ({row['lower']:.3f} to {row['upper']:.3f}), {row['hits']:,} of {row['of']:,}"

    table = pd.DataFrame(
        {
            "Labeled set": [NAMES[name] for name in rows["set"].unique()],
            **{
                quantity.capitalize(): [told_of(row) for _, row in rows[rows["quantity"] == quantity].iterrows()]
                for quantity in ("precision", "recall")
            },
        }
    )
    return html_table(table, "Precision and recall at this threshold", text=list(table.columns))


@lru_cache(maxsize=64)
def calibration_at(site: Site, threshold: float) -> TwoClass:
    """Calibration on the validation set at a threshold.

    Raises
    ------
    SourceError : all validation images lie on one side of it
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
    own = levels_at(site, keep, calibration_at(site, given), None)
    other = levels_at(site, keep, calibration_at(site, threshold), threshold)
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
            IntervalSeries(name, one.drop(columns="hollow", errors="ignore"), style)
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
            part="" if keep.is_all else keep.in_words(),
        )
        frame = pd.concat([one.table.assign(threshold=at) for one, at in zip(series, (given, threshold), strict=True)])
        alt = f"{title} at two thresholds. {caption}."
        charts.append(chart_of(f"threshold_{kind}", spec, caption=f"{caption}.", frame=frame, alt=alt))
    return charts


# The page.


def page(site: Site, state: State) -> pn.viewable.Viewable:
    """Curves, calibration, a threshold to move, and the images themselves."""
    parts = []
    if site.study.settings.sources.validation is None:
        parts.append(
            message(
                paragraph(
                    "The study names no labeled images: put a CSV file with ground_truth, Model_predicted_score, lat, "
                    "lng and timestamp under sources.validation of its study.yaml."
                )
            )
        )
    elif (evaluation := evaluation_of(site)) is None:
        parts.append(message(paragraph("No labeled set has images both with and without a police vehicle.")))
    else:
        parts.append(cards(*(Card(chart).view for chart in curve_charts(site, evaluation))))
        parts.append(_Threshold(site, state).view)
    return pn.Column(*parts, gallery_view(site), sizing_mode="stretch_width", styles={"gap": "18px"})


class _Threshold:
    """The threshold that a reader moves."""

    def __init__(self, site: Site, state: State) -> None:
        self.site, self.state = site, state
        given = site.study.settings.estimate.threshold
        self.slider = pn.widgets.FloatSlider(
            label="Threshold of the score", start=0, end=1, step=0.005, value=given, format="0.000", width=320
        )
        self.quality, self.said = HtmlPane(), HtmlPane()
        self.cards: list[Card] = []
        self.levels = cards()
        self.slider.param.watch(self._draw, "value_throttled")
        self.slider.param.watch(self._say, "value")
        state.param.watch(self._draw, "filter")
        self._draw()

    @property
    def view(self) -> pn.viewable.Viewable:
        """Slider, quality and levels."""
        title = HtmlPane(
            Markup("<h2>Another threshold</h2>")
            + paragraph(
                "An image is positive when its score is above the threshold. Precision and recall are those of "
                "labeled images, with Wilson's interval; every threshold is calibrated anew, and the levels follow.",
                "note",
            )
        )
        head = pn.Column(
            title, self.slider, self.quality, self.said, styles=CARD, sizing_mode="stretch_width", margin=0
        )
        return pn.Column(head, self.levels, sizing_mode="stretch_width", styles={"gap": "18px"})

    def _say(self, *_: Any) -> None:
        self.quality.say(quality_html(self.site, self.slider.value))

    def _draw(self, *_: Any) -> None:
        self._say()
        try:
            charts = threshold_charts(self.site, self.state.filter, self.slider.value)
        except SourceError as error:
            self.said.say(told(self.site.study, error))
            return
        self.said.say(
            paragraph(f"Levels by the two-class prediction: {images_left(self.site, self.state.filter)}.", "note")
        )
        if [card.chart.name for card in self.cards] != [chart.name for chart in charts]:
            self.cards = [Card(chart, level=3) for chart in charts]
            self.levels.objects = [card.view for card in self.cards]
        for card, chart in zip(self.cards, charts, strict=True):
            card.show(chart)


# Images.


def gallery_view(site: Site) -> pn.viewable.Viewable:
    """Images by score; they come after the rest of the page, as hundreds of files are looked through."""
    place = pn.Column(message(paragraph("Looking through the detections.")), sizing_mode="stretch_width", margin=0)

    def fill() -> None:
        try:
            place.objects = [_gallery(site)]
        except PatrolscopeError as error:
            place.objects = [message(told(site.study, error))]

    async def fill_later() -> None:
        with contextlib.suppress(PatrolscopeError):  # it is told by `fill`
            await asyncio.to_thread(load_gallery, site.study)
        fill()

    if pn.state.curdoc is None:
        fill()
    else:
        pn.state.onload(fill_later)
    return place


def _gallery(site: Site) -> pn.viewable.Viewable:
    """The gallery, or how to have one where the study has no images of its own."""
    try:
        gallery = load_gallery(site.study)
    except StageNotRunError:
        return message(
            Markup("<h2>Images</h2>")
            + not_yet("A list of the study's images is", "index IMAGES")
            + not_yet("Their detections are", "detect --weights WEIGHTS")
            + paragraph("Detections from label files have no images to be shown.", "note")
        )
    return _Images(gallery).view


class _Images:
    """The gallery of one session."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        names = {
            f"{low:.2f} to {high:.2f}: {len(found)} {'image' if len(found) == 1 else 'images'}": number
            for number, ((low, high), found) in enumerate(zip(BANDS, gallery.bands, strict=True))
            if found
        }
        self.band = pn.widgets.Select(label="Score", options=names, width=240)
        self.before = pn.widgets.Button(label="Previous", width=100)
        self.after = pn.widgets.Button(label="Next", width=100)
        self.start = 0
        self.images = HtmlPane(style=_GALLERY_STYLE)
        self.band.param.watch(self._choose, "value")
        self.before.on_click(lambda _: self._turn(-AT_ONCE))
        self.after.on_click(lambda _: self._turn(AT_ONCE))
        self._turn(0)

    @property
    def view(self) -> pn.viewable.Viewable:
        """Images, statuses, and the list of those without evidence."""
        gallery = self.gallery
        counted = "; ".join(f"{images:,} {status.replace('_', ' ')}" for status, images in gallery.statuses.items())
        sample = (
            ""
            if gallery.looked_at == gallery.files
            else f" The gallery is from {gallery.looked_at:,} of {gallery.files:,} parts of the detections."
        )
        head = HtmlPane(
            Markup("<h2>Images</h2>")
            + paragraph(f"{counted}.{sample} Boxes are the detector's, with their scores, from 0.1 on.", "note")
        )
        parts: list[pn.viewable.Viewable] = [head]
        if self.band.options:
            turn = pn.Row(self.before, self.after, margin=(20, 0, 0, 0))
            parts += [pn.FlexBox(self.band, turn, sizing_mode="stretch_width"), self.images]
        else:
            parts.append(HtmlPane(paragraph("No image has a box of a police vehicle.")))
        parts.append(refused_view(gallery))
        return pn.Column(*parts, styles=CARD, sizing_mode="stretch_width", margin=0)

    def _choose(self, *_: Any) -> None:
        self.start = 0
        self._turn(0)

    def _turn(self, by: int) -> None:
        if self.band.value is None:
            return
        number = len(self.gallery.bands[self.band.value])
        self.start = min(max(0, self.start + by), max(0, (number - 1) // AT_ONCE * AT_ONCE))
        self.before.disabled, self.after.disabled = self.start == 0, self.start + AT_ONCE >= number
        try:
            shown = show(self.gallery, self.band.value, self.start)
        except PatrolscopeError as error:
            self.images.say(told(self.gallery.study, error))
            return
        self.images.say(Markup('<div class="gallery">{}</div>').format(Markup("").join(one.html() for one in shown)))


def refused_view(gallery: Gallery) -> pn.viewable.Viewable:
    """Images that could not be looked at, as a table of plain text."""
    if gallery.refused.empty:
        return HtmlPane(Markup('<p class="note">Every image could be looked at.</p>'))
    table = gallery.refused.rename(columns={"image_id": "Image", "status": "Status"})
    return pn.Column(
        HtmlPane(
            Markup("<h3>Images that could not be looked at</h3>")
            + paragraph(f"The first {len(table):,}; they count as no evidence.", "note")
        ),
        pn.widgets.Tabulator(
            table,
            show_index=False,
            disabled=True,
            selectable=False,
            pagination="local",
            page_size=10,
            layout="fit_columns",
            sizing_mode="stretch_width",
            header_filters={name: {"type": "input", "func": "like", "placeholder": "find"} for name in table},
            formatters={name: {"type": "plaintext"} for name in table},
            theme="simple",
        ),
        sizing_mode="stretch_width",
    )
