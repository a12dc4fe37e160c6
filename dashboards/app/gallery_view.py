"""View of the gallery on the detector page: images by score, their statuses, and unprocessed images."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import panel as pn
from markupsafe import Markup

from patrolscope.dashboards.app.cards import CARD, HtmlPane, paragraph
from patrolscope.dashboards.app.gallery import BANDS, FAINT, PAGE_IMAGES, Gallery, load_gallery, load_page
from patrolscope.dashboards.app.messages import error_html, message, missing_html
from patrolscope.dashboards.app.site import Site
from patrolscope.pipeline.errors import PatrolscopeError, StageNotRunError

_STYLE = """
:host { contain: inline-size; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; }
figure { margin: 0; } img { width: 100%; display: block; border-radius: 4px; background: #eef0f3; }
figcaption { font-size: .82rem; color: #5a636e; overflow-wrap: anywhere; }
.gone { background: #eef0f3; border-radius: 4px; padding: 40px 12px; text-align: center; color: #5a636e; }
"""


def gallery_view(site: Site) -> pn.viewable.Viewable:
    """Return the gallery, which loads after the rest of the page because it reads hundreds of files."""
    column = pn.Column(message(paragraph("Loading detections \u2026")), sizing_mode="stretch_width", margin=0)

    def fill() -> None:
        try:
            column.objects = [_gallery(site)]
        except PatrolscopeError as error:
            column.objects = [message(error_html(site.study, error))]

    async def load_and_fill() -> None:
        with contextlib.suppress(PatrolscopeError):  # `fill` shows it
            await asyncio.to_thread(load_gallery, site.study)
        fill()

    if pn.state.curdoc is None:
        fill()
    else:
        pn.state.onload(load_and_fill)
    return column


def _gallery(site: Site) -> pn.viewable.Viewable:
    """Return the gallery, or the commands that create its tables."""
    try:
        gallery = load_gallery(site.study)
    except StageNotRunError:
        return message(
            Markup("<h2>Images</h2>")
            + missing_html("The image index is", "index IMAGES")
            + missing_html("Detections of the images are", "detect --weights WEIGHTS")
            + paragraph("Detections imported from detection files have no images to show.", "note")
        )
    return _GalleryView(gallery).view


class _GalleryView:
    """Gallery of one session."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        names = {
            f"{low:.2f} to {high:.2f}: {len(rows)} {'image' if len(rows) == 1 else 'images'}": number
            for number, ((low, high), rows) in enumerate(zip(BANDS, gallery.bands, strict=True))
            if rows
        }
        self.band = pn.widgets.Select(label="Score", options=names, width=240)
        self.previous = pn.widgets.Button(label="Previous", width=100)
        self.next = pn.widgets.Button(label="Next", width=100)
        self.start = 0
        self.images = HtmlPane(style=_STYLE)
        self.band.param.watch(self._select_band, "value")
        self.previous.on_click(lambda _: self._turn(-PAGE_IMAGES))
        self.next.on_click(lambda _: self._turn(PAGE_IMAGES))
        self._turn(0)

    @property
    def view(self) -> pn.viewable.Viewable:
        """Images, counts by status, and the table of unprocessed images."""
        gallery = self.gallery
        counts = "; ".join(f"{images:,} {status.replace('_', ' ')}" for status, images in gallery.statuses.items())
        sample = (
            ""
            if gallery.sampled_files == gallery.files
            else f" The gallery samples {gallery.sampled_files:,} of {gallery.files:,} detection shards."
        )
        head = HtmlPane(
            Markup("<h2>Images</h2>")
            + paragraph(f"{counts}.{sample} Boxes with a score of at least {FAINT} and the best box are shown.", "note")
        )
        parts: list[pn.viewable.Viewable] = [head]
        if self.band.options:
            turn = pn.Row(self.previous, self.next, margin=(20, 0, 0, 0))
            parts += [pn.FlexBox(self.band, turn, sizing_mode="stretch_width"), self.images]
        else:
            parts.append(HtmlPane(paragraph("No image has a box of a police vehicle.")))
        parts.append(_unprocessed_view(gallery))
        return pn.Column(*parts, styles=CARD, sizing_mode="stretch_width", margin=0)

    def _select_band(self, *_: Any) -> None:
        self.start = 0
        self._turn(0)

    def _turn(self, by: int) -> None:
        if self.band.value is None:
            return
        number = len(self.gallery.bands[self.band.value])
        self.start = min(max(0, self.start + by), max(0, (number - 1) // PAGE_IMAGES * PAGE_IMAGES))
        self.previous.disabled, self.next.disabled = self.start == 0, self.start + PAGE_IMAGES >= number
        try:
            images = load_page(self.gallery, self.band.value, self.start)
        except PatrolscopeError as error:
            self.images.set_html(error_html(self.gallery.study, error))
            return
        figures = Markup("").join(image.html() for image in images)
        self.images.set_html(Markup('<div class="gallery">{}</div>').format(figures))


def _unprocessed_view(gallery: Gallery) -> pn.viewable.Viewable:
    """Return the unprocessed images as a table of plain text."""
    if gallery.unprocessed.empty:
        return HtmlPane(Markup('<p class="note">Every image was processed.</p>'))
    table = gallery.unprocessed.rename(columns={"image_id": "Image", "status": "Status"})
    return pn.Column(
        HtmlPane(
            Markup("<h3>Unprocessed images</h3>")
            + paragraph(f"The first {len(table):,}. Rates exclude unprocessed images.", "note")
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
