"""The page of the detector: how well it tells images apart, what another threshold would do, and what it saw."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, Span
from markupsafe import Markup
from matplotlib.figure import Figure

from patrolscope.analysis.estimators.calibration import TwoClass, two_class
from patrolscope.analysis.stages.calibrate import read_labeled_sets
from patrolscope.analysis.stages.evaluate import Evaluation, ScoreCounts, evaluate_sets, quality_at
from patrolscope.analysis.stages.result_tables import from_the_highest
from patrolscope.analysis.stages.results import UNKNOWN
from patrolscope.dashboards.app.charts import (
    CARD,
    MARKERS,
    Card,
    Chart,
    HtmlPane,
    Line,
    bare,
    cards,
    html_table,
    interval_chart,
    line_chart,
    paragraph,
)
from patrolscope.dashboards.app.gallery import AT_ONCE, BANDS, Gallery, load_gallery, show
from patrolscope.dashboards.app.messages import message, not_yet, told
from patrolscope.dashboards.app.parts import images_left, levels_at
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
from patrolscope.pipeline.errors import PatrolscopeError, SourceError, StageNotRunError

REPLICATES = 200
DASHES = {"-": "solid", "--": "dashed", "-.": "dashdot"}
# What is told of a threshold's disparities.
KINDS = {"race": "By race and ethnicity", "borough": "By borough", "income": "By median household income"}
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
    above, hits, shows = facts["above_threshold"], facts["true_positives"], facts["positives"]
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
    part = "" if keep.is_all else keep.in_words()
    subtitle = f"{MEASURE}\nDot: two-class estimate, calibrated at the threshold"
    return interval_figure(dots, rows, title=title, subtitle=subtitle, simulated=simulated, part=part)


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
