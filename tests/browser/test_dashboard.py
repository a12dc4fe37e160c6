"""Dashboards in a real browser: actions of a reader and the resulting pages."""

import http.client
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from patrolscope.dashboards.maps.stages import POINTS
from patrolscope.pipeline.engine.run import run_stages
from tests.integration.studies import branch

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)"),
]
PAGES = {"map": "Map", "disparities": "Disparities", "detector": "Detector", "coverage": "Coverage", "run": "Run"}
WAIT_MS = 60_000


def serve(study, *options):
    """Start a server in a subprocess, and return it with the address of its map."""
    server = subprocess.Popen(
        [sys.executable, "-m", "patrolscope", "dashboard", "--study", study.root, "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in server.stdout:
        if match := re.search(r"http://\S+/map", line):
            return server, match[0]
    server.stdout.close()
    raise AssertionError(f"the server ended with {server.wait()}")


@pytest.fixture(scope="module")
def address(finished, client):
    run_stages(finished, [POINTS], lambda: client)
    server, address = serve(finished)
    yield address
    server.terminate()
    server.wait(30)
    server.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser, request):
    """Return a function that opens a page. The teardown fails on errors in its console."""
    pages, errors = [], []

    def open_(url, width=1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
        page.goto(url)
        pages.append(page)
        return page

    yield open_
    for number, page in enumerate(pages):
        folder = os.environ.get("PATROLSCOPE_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{folder}/{request.node.name}-{number}.png", full_page=True)
        page.close()
    assert errors == []


def image_number(page):
    """Return the number of the image on the map."""
    return page.evaluate(f"() => {_DRAWN}")


def wait_for_address(page, pattern):
    """Wait until the page has updated its address."""
    page.wait_for_function("pattern => new RegExp(pattern).test(window.location.href)", arg=pattern)


def wait_for_image(page, after):
    """Return the number of the image after which the map does not change."""
    page.wait_for_function(f"() => {_DRAWN} > {after}")
    seen = 0
    while seen != (seen := image_number(page)):
        page.wait_for_timeout(1_000)
    return seen


_DRAWN = "(window.Bokeh?.documents[0]?.get_model_by_name('picture')?.data.number[0] ?? 0)"


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_opens_without_errors(address, open_page, path, width):
    page = open_page(address.replace("/map", f"/{path}"), width)
    waits_for = r"shards done" if path == "run" else r"of [\d,]+ images"
    page.get_by_text(re.compile(waits_for)).first.wait_for(state="attached")
    assert page.title().startswith(PAGES[path])
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).inner_text() == PAGES[path]
    assert page.get_by_role("link", name=PAGES[path], exact=True).get_attribute("aria-current") == "page"
    page.wait_for_timeout(1_500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "wider than the screen"


def test_a_filter_changes_the_count_the_map_and_the_address(address, open_page):
    page = open_page(address)
    page.wait_for_function(f"() => {_DRAWN} > 0")
    before = image_number(page)
    page.get_by_label("Light").select_option("Night")
    wait_for_address(page, "light=night")
    wait_for_image(page, before)
    share = page.get_by_text(re.compile(r"of [\d,]+ images \(")).first.inner_text()
    assert not share.endswith("(100.0%)")
    page.get_by_role("button", name="Show all images").click()
    page.get_by_text(re.compile(r"\(100.0%\)")).first.wait_for()
    page.wait_for_function("() => !window.location.search.includes('light')")


def test_an_address_contains_the_whole_view(address, open_page):
    page = open_page(
        f"{address}?hours=6-20&light=day&measure=deployment-rate&geography=borough&selected=Queens&at=90000,60000,50.00"
    )
    page.get_by_role("heading", name="Queens").wait_for()
    assert page.get_by_label("Light").input_value() == "Daylight"
    assert page.get_by_label("From hour").input_value() == "06:00"
    assert page.get_by_label("Geography").input_value() == "boroughs"
    page.get_by_role("link", name="Coverage").click()
    wait_for_address(page, "/coverage.*hours=6-20")
    page.get_by_text(re.compile(r"of [\d,]+ images \(")).first.wait_for()
    assert page.get_by_label("From hour").input_value() == "06:00"


def test_the_map_can_be_moved_without_a_mouse(address, open_page):
    page = open_page(address)
    page.wait_for_function(f"() => {_DRAWN} > 0")
    before = image_number(page)
    zoom_in = page.get_by_role("button", name="+", exact=True)
    zoom_in.focus()
    page.keyboard.press("Enter")
    before = wait_for_image(page, before)
    wait_for_address(page, "at=")
    first = page.evaluate("window.location.href")
    page.get_by_role("button", name="\u2192", exact=True).focus()
    page.keyboard.press("Enter")
    wait_for_image(page, before)
    page.wait_for_function(f"() => window.location.href !== {first!r}")
    page.get_by_role("button", name="Show whole city").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => !window.location.search.includes('at=')")


def test_a_wheel_zooms_and_a_click_selects_a_region(address, open_page):
    page = open_page(f"{address}?measure=deployment-rate")
    before = wait_for_image(page, 0)
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + 0.62 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    assert wait_for_image(page, before) == before + 1, "an image was painted before both axes had moved"
    page.mouse.click(x, y)
    wait_for_address(page, "selected=")
    page.get_by_role("heading", level=2).first.wait_for()
    page.get_by_text(re.compile(r"[\d,]+ positive.* · [\d,]+ residents")).wait_for()


def test_the_tooltip_shows_the_region_except_during_a_drag(address, open_page):
    page = open_page(address)
    wait_for_image(page, 0)
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + 0.62 * box["width"], box["y"] + 0.5 * box["height"]
    tooltip = page.get_by_role("tooltip")
    page.mouse.move(x, y, steps=3)
    tooltip.wait_for(state="visible")
    assert re.search(r"times the city average|relative rate", tooltip.inner_text())
    assert re.search(r"[\d,]+ images, [\d,]+ positive.*\n[\d,]+ residents", tooltip.inner_text())
    near = tooltip.bounding_box()
    assert abs(near["x"] - x) < 40
    page.mouse.down()
    page.mouse.move(x - 60, y + 30, steps=4)
    assert not tooltip.is_visible()
    page.mouse.up()
    page.mouse.move(x, y, steps=3)
    tooltip.wait_for(state="visible")
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] - 60)
    tooltip.wait_for(state="hidden")


def test_a_swipe_over_the_map_scrolls_the_page(address, browser):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.goto(address)
    wait_for_image(page, 0)
    box = page.locator("canvas").first.bounding_box()
    assert box["height"] < 0.7 * 844, "no space is left for scrolling"
    ends = "Bokeh.documents[0].get_model_by_name('map').tags"
    before = page.evaluate(ends)
    fingers = phone.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, up in (("touchStart", 0), *(("touchMove", 15 * step) for step in range(1, 13)), ("touchEnd", None)):
        points = [] if up is None else [{"x": x, "y": y - up}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait_for_function("() => window.scrollY > 50")
    assert page.evaluate(ends) == before
    phone.close()


def test_a_region_is_found_by_its_name(address, open_page):
    page = open_page(address)
    page.wait_for_function(f"() => {_DRAWN} > 0")
    page.get_by_label("Find a region").press_sequentially("astoria (c")  # a list opens at every key
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    wait_for_address(page, "selected=Astoria")
    page.get_by_role("heading", name="Astoria (Central)").wait_for()


@pytest.mark.parametrize(("kind", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<?xml"), ("CSV", b"region,images")])
def test_the_map_can_be_saved(address, open_page, tmp_path, kind, start):
    page = open_page(address)
    page.wait_for_function(f"() => {_DRAWN} > 0")
    with page.expect_download() as waiting:
        page.get_by_text(kind, exact=True).click()
    waiting.value.save_as(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes().startswith(start)


@pytest.mark.parametrize("at", ["1,2,nan", "1e7,1e7,1e-300"])
def test_an_invalid_address_shows_the_default_map(address, open_page, at):
    page = open_page(
        f"{address}?hours=99-x&region=<script>alert(1)</script>:x&at={at}&geography=ward&selected=<b>x</b>"
    )
    page.get_by_text(re.compile(r"\(100.0%\)")).first.wait_for()
    assert wait_for_image(page, after=0) > 0
    assert page.get_by_label("Geography").input_value() == "neighborhoods"
    assert page.locator("script", has_text="alert(1)").count() == 0


def test_pages_contain_no_path_of_the_study(address, finished):
    for path in PAGES:
        with urllib.request.urlopen(address.replace("/map", f"/{path}"), timeout=120) as response:
            assert str(Path(finished.base).parent) not in response.read().decode()


def test_requests_from_other_origins_are_rejected(address):
    host = address.split("/")[2]
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    statuses = {}
    for origin in (f"http://{host}", "http://evil.example"):
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", "/map/ws", headers={**headers, "Origin": origin})
        statuses[origin] = connection.getresponse().status
        connection.close()
    assert statuses["http://evil.example"] == 403
    assert statuses[f"http://{host}"] != 403


def answer(address, path="/map", **headers):
    """Status, headers, and text of a request without a browser."""
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read().decode(errors="replace")
    connection.close()
    return found


@pytest.mark.parametrize("path", ["/map", "/map/ws", "/static/js/bokeh.min.js", "/nothing"])
def test_a_foreign_host_name_is_refused_on_every_path(address, path):
    """A page of another site could otherwise have its name resolved to this machine."""
    port = address.split("/")[2].partition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", ""):
        status, _, text = answer(address, path, Host=host, Origin=f"http://{host}")
        assert (status, "token" in text) in ((421, False), (400, False))


def test_pages_behind_https_are_admitted_by_their_port_and_others_are_not(finished, address):
    """A browser leaves out the port of https in the origin."""
    server, local = serve(finished, "--allow", "police.example:443")
    try:
        token = re.search(r'"token":"([^"]+)"', answer(local, Host="police.example")[2])[1]
        statuses = {}
        for origin in ("https://police.example", "https://evil.example"):
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": f"bokeh, {token}"}
            connection = http.client.HTTPConnection(local.split("/")[2], timeout=60)
            connection.request("GET", "/map/ws", headers={"Host": "police.example", "Origin": origin, **upgrade, **key})
            statuses[origin] = connection.getresponse().status
            connection.close()
        assert statuses == {"https://police.example": 101, "https://evil.example": 403}
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()


@pytest.mark.parametrize("path", ["/map", "/map?at=1e7,1e7,1e-300", "/static/js/bokeh.min.js", "/nothing"])
def test_every_answer_tells_browsers_to_keep_it_to_this_site(address, path):
    _, headers, _ = answer(address, path, Origin="http://evil.example")
    assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Access-Control-Allow-Origin"] is None


def test_the_script_for_embedding_is_not_readable_by_other_sites(address):
    status, headers, text = answer(address, "/map/autoload.js?bokeh-autoload-element=x", Origin="http://evil.example")
    assert (status, "token" in text) == (200, True)
    assert headers["Access-Control-Allow-Origin"] is None


def test_a_damaged_table_is_named_in_the_error(finished, client, open_page):
    other = branch(finished, "broken-table")
    for folder in Path(finished.base).iterdir():
        if folder.is_dir() and not other.exists(folder.name):
            shutil.copytree(folder, other.path(folder.name))
    other.write_bytes(b"analysis,group\n", "estimates", "tables.csv")
    result = subprocess.run(
        [sys.executable, "-m", "patrolscope", "dashboard", "--study", other.root, "--port", "0"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2
    assert "tables.csv" in result.stderr
    assert "Traceback" not in result.stderr
