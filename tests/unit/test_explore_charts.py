"""Charts of the dashboards, the words around them, and static pages: safe whatever names the data have."""

import io
import itertools
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from patrolscope.dashboards.app.cards import Card, HtmlPane, html_table, paragraph
from patrolscope.dashboards.app.cards import share as share_text
from patrolscope.dashboards.app.charts import Chart
from patrolscope.dashboards.app.gallery import BANDS, GalleryImage, read_images, thumbnail
from patrolscope.dashboards.app.messages import error_html, missing_html
from patrolscope.dashboards.app.neighborhood_table import matching_names, static_table, tabulator
from patrolscope.dashboards.app.run_page import scheduler_html
from patrolscope.dashboards.app.static import Page, Section
from patrolscope.dashboards.charts import bokeh_renderer, matplotlib_renderer
from patrolscope.dashboards.charts.disparities import interval_chart
from patrolscope.dashboards.charts.ranking import ranking_chart
from patrolscope.dashboards.charts.specs import IntervalSeries, Row, Style
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import create_study
from tests.image_files import encoded, picture, png_that_claims

# Panel's own table sorts its frames in place, which pandas will not have in a version to come.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Markup(HTMLParser):
    """Tags with their attributes, and the text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._skip = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.text += data


def groups(*names):
    frame = pd.DataFrame({"group": names, "estimate": np.linspace(2, 0.5, len(names))})
    return frame.assign(
        key=frame["group"],
        lower=frame["estimate"] * 0.9,
        upper=frame["estimate"] * 1.1,
        images=1_000,
        none_positive=False,
        few=False,
        borough=EVIL,
        deployment_rate=1.0,
    )


def specified(*series):
    """An interval chart of some series, with a row per group of the first."""
    return interval_chart(series, [Row(group, group) for group in series[0].table["group"]], title="By group")


def drawn_on_a_page(*series, alt=""):
    return bokeh_renderer.draw(specified(*series), alt=alt)


def evil_chart():
    rows = groups("Bronx", EVIL)
    drawn = drawn_on_a_page(IntervalSeries(EVIL, rows), alt=EVIL)
    return Chart("race", EVIL, EVIL, EVIL, drawn, ((EVIL, "#000000", "o"),), rows)


@pytest.mark.parametrize(
    "html",
    [
        evil_chart().head(),
        evil_chart().foot(),
        paragraph(EVIL),
        html_table(pd.DataFrame({EVIL: [EVIL]}), EVIL),
        static_table(groups(EVIL)),
        GalleryImage("<script>alert(1)", 0.5, 1, b"").html(),
        GalleryImage(EVIL, 0.5, 1, None, EVIL).html(),
        missing_html(EVIL, EVIL),
        scheduler_html(f"http://localhost/{EVIL}"),
    ],
    ids=range(9),
)
def test_names_from_data_are_text_and_never_tags(html):
    found = Markup(html)
    assert not {"script", "onerror"} & {tag for tag, _ in found.tags}
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert "alert(1)" in found.text + "".join(
        str(value) for _, attributes in found.tags for value in attributes.values()
    )


def test_a_static_page_with_a_wicked_name_runs_no_script_of_it():
    class Site:
        name, simulated = EVIL, EVIL

    content = {}
    html = Page(EVIL, (Section(evil_chart(), static_table(groups(EVIL)), wide=True),)).render(
        Site, "index.html", content
    )
    found = Markup(html)
    assert "alert(1)" in found.text
    # Bokeh's file, its charts, the page's own.
    assert [attributes.get("src") for tag, attributes in found.tags if tag == "script"] == ["bokeh.min.js", None, None]
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert EVIL in content["race.csv"].decode().replace('""', '"')


def test_words_on_a_page_are_escaped_once_whenever_they_change():
    pane = HtmlPane(paragraph(EVIL))
    for _ in range(2):
        assert type(pane.object) is str  # a Markup would be taken for escaped on its way to the browser
        assert "&lt;script&gt;" in pane.object
        sent = pane.get_root().text
        assert "&amp;lt;script&amp;gt;" in sent
        pane.set_html(paragraph(EVIL + " again"))


def test_a_table_of_names_shows_them_as_plain_text():
    table = tabulator(groups("Harlem", EVIL)[["group", "borough", "estimate", "few", "none_positive"]])
    assert table.formatters["Neighborhood"] == {"type": "plaintext"}
    assert table.formatters["Borough"] == {"type": "plaintext"}
    assert table.value["Neighborhood"].tolist() == ["Harlem", EVIL]


def test_a_search_takes_a_text_as_it_is():
    table = groups("East Harlem (North)", "Harlem (South)", "SoHo").assign(few=[False, True, False])
    assert matching_names(table, "harlem (") == ["East Harlem (North)"]
    assert matching_names(table, "  ") == []
    assert matching_names(table, ".*") == []


# Charts.


def test_an_interval_chart_shows_the_numbers_of_its_rows():
    rows = groups("Bronx", "Queens")
    ours = IntervalSeries("ours", rows)
    theirs = IntervalSeries("published", rows.assign(estimate=1.0), Style("#2f8f6b", "s"))
    drawn = drawn_on_a_page(ours, theirs, alt="two boroughs")
    assert drawn.y_range.factors == ["Queens", "Bronx"]  # from below
    assert drawn.html_attributes == {"role": "img", "aria-label": "two boroughs"}
    assert drawn.xaxis.axis_label == "relative rate (city average = 1)"
    sources = [one.data_source.data for one in drawn.renderers if one.glyph.__class__.__name__ == "Scatter"]
    for series, data in zip((ours, theirs), sources, strict=True):
        assert list(data["group"]) == ["Bronx", "Queens"]
        for column in ("estimate", "lower", "upper"):
            np.testing.assert_array_equal(data[column], series.table[column])
    lanes = [place[1] for data in sources for place in data["y"][:1]]
    assert lanes[0] > lanes[1]  # the first one above


@pytest.mark.parametrize(("ends", "kind"), [((0.8, 1.2), "Linear"), ((0.1, 4.0), "Log"), ((0.0, 4.0), "Linear")])
def test_widely_spread_ratios_are_on_a_logarithmic_axis_of_base_two(ends, kind):
    rows = groups("a", "b").assign(estimate=ends, lower=ends, upper=ends)
    drawn = drawn_on_a_page(IntervalSeries("ours", rows))
    assert type(drawn.x_scale).__name__ == f"{kind}Scale"
    assert drawn.x_range.start < min(ends)
    assert drawn.x_range.end > max(ends)


def test_a_group_without_a_positive_image_has_an_open_marker_and_one_without_an_interval_a_dot():
    rows = groups("a", "b").assign(none_positive=[True, False], lower=np.nan, upper=np.nan)
    drawn = drawn_on_a_page(IntervalSeries("ours", rows))
    data = next(one.data_source.data for one in drawn.renderers if one.glyph.__class__.__name__ == "Scatter")
    assert list(data["face"]) == ["#ffffff", "#3b7dc4"]
    assert np.isfinite(data["at"]).all()


def test_pages_and_files_draw_the_same_numbers():
    spec = specified(IntervalSeries("ours", groups("a", "b", "c")), IntervalSeries("published", groups("a", "b", "c")))
    page = bokeh_renderer.draw(spec, alt="")
    axes = matplotlib_renderer.draw(spec).axes[0]
    dots = [one.data_source.data["estimate"] for one in page.renderers if one.glyph.__class__.__name__ == "Scatter"]
    marks = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(np.concatenate(dots), np.concatenate(marks))
    assert [float(tick) for tick in page.xaxis.ticker.ticks] == [float(tick) for tick in axes.get_xticks()]
    assert axes.get_xlabel() == page.xaxis.axis_label


def test_chosen_neighborhoods_are_named_in_the_ranking():
    rows = groups("a", "b", "c", "d")
    drawn = bokeh_renderer.draw(ranking_chart(rows, ["b", "d"]), alt="")
    named = [
        name
        for one in drawn.renderers
        if one.glyph.__class__.__name__ == "Text"
        for name in one.data_source.data["text"]
    ]
    assert sorted(named) == ["b", "d"]
    ranks = {
        name: rank
        for one in drawn.renderers
        if one.glyph.__class__.__name__ == "Scatter"
        for name, rank in zip(one.data_source.data["of"], one.data_source.data["x"], strict=True)
    }
    assert ranks == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_a_card_saves_what_it_shows_at_the_moment():
    first = Chart(
        "first", "First", figure=drawn_on_a_page(IntervalSeries("ours", groups("a"))), frame=pd.DataFrame({"a": [1]})
    )
    card = Card(first)
    card.show(Chart("second", "Second", frame=pd.DataFrame({"a": [2]})))
    shown = {button.label: button for button in card.view[-1] if button.visible}
    assert list(shown) == ["CSV"]  # there is no picture of it
    assert shown["CSV"].filename == "second.csv"
    assert shown["CSV"].callback().read() == b"a\n2\n"
    assert card.view[-1].get_root().html_attributes == {"role": "group", "aria-label": "Save: First"}


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(1, 3, "33.3%"), (1, 10_000, "0.01%"), (0, 5, "0%"), (0, 0, "\u2013")]
)
def test_shares_in_words(part, whole, text):
    assert share_text(part, whole) == text


# Messages.


def test_a_message_names_no_folder(tmp_path):
    study = create_study(tmp_path / "secret" / "study", Settings())
    for error in (
        StageNotRunError(f"{study.root} has no estimates/tables.csv yet: run `patrolscope run --study {study.root}`"),
        SourceError(f"{study.path('estimates/tables.csv')} has no column group; /other/secret/place/file.csv has"),
        SourceError("s3://secret-bucket/secret/file.csv cannot be read"),
    ):
        html = error_html(study, error)
        assert "secret" not in html
    kept = error_html(study, SourceError(f"{study.path('estimates/tables.csv')} has no column group, 1/2 and/or more"))
    assert "estimates/tables.csv has no column group, 1/2 and/or more" in kept
    assert "patrolscope run --study STUDY" in error_html(
        study, StageNotRunError(f"run `patrolscope run --study {study.root}`")
    )


def test_a_message_names_no_folder_with_a_blank_in_its_name(tmp_path):
    gone = str(tmp_path / "my secret" / "the press" / "images of a day.csv")
    settings = {"sources": {"metadata": [gone], "validation": "the labels/validation set.csv"}}
    study = create_study(tmp_path / "study", Settings.model_validate(settings))
    assert error_html(study, SourceError(f"{gone} does not exist")) == (
        '<p class="status warning">images of a day.csv does not exist</p>'
    )
    assert "the labels/validation set.csv" in error_html(
        study, SourceError("the labels/validation set.csv does not exist")
    )


@pytest.mark.parametrize("address", ["", "javascript:alert(1)", "file:///etc/passwd", "tcp://127.0.0.1:8786"])
def test_only_an_address_of_the_web_becomes_a_link_to_dasks_dashboard(address):
    assert scheduler_html(address) == ""
    assert 'href="http://127.0.0.1:8787/status"' in scheduler_html("http://127.0.0.1:8787/status")


# Images.


@pytest.fixture
def store(tmp_path):
    """A study with an index of three images, one of them in a tar file, and another file beside the store."""
    import tarfile

    folder = tmp_path / "study" / "store" / "ride"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(picture(color=(10, 20, 30))))
    (folder / "b.jpg").write_bytes(encoded(picture(color=(200, 20, 30))))
    packed = encoded(picture(color=(10, 200, 30)))
    with tarfile.open(folder / "more.tar", "w") as tar:
        member = tarfile.TarInfo("ride/c.jpg")
        member.size = len(packed)
        tar.addfile(member, io.BytesIO(packed))
    (tmp_path / "study" / "outside.jpg").write_bytes(encoded(picture()))
    study = create_study(tmp_path / "study", Settings.model_validate({"images": {"sources": ["store"]}}))
    for stage in (PREFIXES, INDEX):
        for shard in stage.plan(study):
            stage.finish(study, shard)
    return study


def shards_of(study):
    rows = pd.concat([study.read(file) for file in study.files("image_index")])
    return dict(zip(rows["image_id"], rows["shard"], strict=True))


def test_images_of_the_index_are_read_from_files_and_from_tar_files(store):
    found = read_images(store, shards_of(store))
    assert sorted(found) == ["ride/a", "ride/b", "ride/c"]
    assert found["ride/a"] == store.read_bytes("store", "ride", "a.jpg")
    assert found["ride/c"] == encoded(picture(color=(10, 200, 30)))


@pytest.mark.parametrize("wanted", ["../outside", "ride/../../outside", "/etc/passwd", "outside", "store/ride/a"])
def test_what_is_not_in_the_index_is_not_read(store, wanted):
    shard = next(iter(shards_of(store).values()))
    assert read_images(store, {wanted: shard}) == {}
    assert read_images(store, {"ride/a": "no such shard"}) == {}


@pytest.mark.parametrize(
    "path",
    ["../outside.jpg", "ride/../../outside.jpg", "/etc/hostname", "./ride/a.jpg", "..\\outside.jpg"],
)
def test_an_index_that_points_outside_of_its_store_is_refused(store, path):
    file = store.files("image_index")[0]
    rows = store.read(file)
    from patrolscope.pipeline.contract.tables import IMAGE_INDEX

    image, shard = rows["image_id"].iloc[0], rows["shard"].iloc[0]
    store.write(IMAGE_INDEX, IMAGE_INDEX.conform(rows.assign(path=path)), file)
    with pytest.raises(SourceError, match="not below its image store"):
        read_images(store, {image: shard})


def test_an_index_that_names_another_store_is_refused(store):
    file = store.files("image_index")[0]
    rows = store.read(file)
    from patrolscope.pipeline.contract.tables import IMAGE_INDEX

    store.write(IMAGE_INDEX, IMAGE_INDEX.conform(rows.assign(source="/etc")), file)
    with pytest.raises(SourceError, match="not below its image store"):
        read_images(store, {rows["image_id"].iloc[0]: rows["shard"].iloc[0]})


def test_an_image_that_is_gone_is_left_out(store):
    store.fs.rm_file(store.path("store/ride/a.jpg"))
    assert sorted(read_images(store, shards_of(store))) == ["ride/b", "ride/c"]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_thumbnail_has_its_boxes_where_they_are(form):
    content = encoded(picture(960, 480, color=(120, 120, 120)), form)
    boxes = np.array([[480.0, 240.0, 720.0, 360.0, 0.9, 1.0], [0.0, 0.0, 900.0, 470.0, 0.01, 1.0]])
    small = Image.open(io.BytesIO(thumbnail(content, boxes, max_pixels=10**6)))
    assert small.size == (360, 180)

    def is_edge(x, y):
        red, _, blue = small.getpixel((x, y))
        return red - blue > 80

    assert is_edge(225, 135)  # in the middle of the lower edge of the first box
    assert not is_edge(225, 112)  # inside
    assert not is_edge(150, 176)  # a box of a score so low is not drawn


@pytest.mark.parametrize("content", [b"", b"<html>", encoded(picture())[:200], png_that_claims(100_000, 100_000)])
def test_what_can_not_be_decoded_has_no_thumbnail(content):
    assert thumbnail(content, np.empty((0, 6)), max_pixels=10**6) is None


def test_ranges_of_scores_fill_the_unit_interval_from_the_top():
    assert BANDS[0] == (0.95, 1.0)
    assert BANDS[-1] == (0.0, 0.05)
    assert all(low == upper for (low, _), (_, upper) in itertools.pairwise(BANDS))
