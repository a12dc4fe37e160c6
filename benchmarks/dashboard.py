"""Dashboard at full size: map images compared with a plain Datashader pass, and latency in a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pandas as pd
import psutil

from benchmarks.measure import Comparison, best_of, two_workers
from benchmarks.workloads import simulated_study
from patrolscope.analysis.estimators.raster import Extent, count
from patrolscope.analysis.stages.calibrate import CALIBRATE
from patrolscope.analysis.stages.counts import analyzed
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.maps.aggregated_grid import CELLS, COARSE
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.packing import TILES
from patrolscope.dashboards.maps.painter import View, window_around
from patrolscope.dashboards.maps.points import Window
from patrolscope.dashboards.maps.stages import POINTS
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.matching.stages import ANNOTATE, KEYS, MATCH
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Study, open_study

STUDY = "PATROLSCOPE_BENCH_STUDY"  # finished study to measure instead of a simulated one
COLUMNS, ROWS = 960, 640
PIXELS_FT = {"city": 170.0, "borough": 40.0, "street": 4.0}
STEPS = 12  # of a walk at each scale
USERS = 5
# Without a GPU, a browser draws faster than by emulating one.
CHROMIUM = ["--no-sandbox", "--disable-gpu"]


def run(*, quick: bool) -> list[Comparison]:
    """Run with 24.8 million images (quick: 300,000) and a map of 960 x 640 pixels."""
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch:
        with two_workers() as client:
            study = _finished(Path(scratch), client, quick=quick)
        site = Site.load(study)
        rows = [*compare_rasters(site), *measure_map_images(site)]
        del site
        return [*rows, *measure_browser(study)]


def _finished(scratch: Path, client: distributed.Client, *, quick: bool) -> Study:
    """Return a study with packed points; workers are stopped before the measurement."""
    if STUDY in os.environ:
        study = open_study(os.environ[STUDY])
    else:
        study = simulated_study(scratch / "study", 300_000 if quick else 24_803_854, client)
        run_stages(study, [LABELS, KEYS, MATCH, ANNOTATE, CALIBRATE], lambda: client)
    run_stages(study, [POINTS], lambda: client)
    return study


def walk(site: Site, pixel_ft: float, steps: int, seed: int = 3) -> Iterator[Window]:
    """Yield windows along a random walk with changing scale; separate seeds avoid hits in the cache of the server."""
    wide, tall = site.city.size_ft
    rng = np.random.default_rng(seed)
    x_ft, y_ft = (0.6 + 0.01 * rng.random()) * wide, (0.5 + 0.01 * rng.random()) * tall
    for step in range(steps):
        angle = rng.uniform(0, 2 * np.pi)
        x_ft = float(np.clip(x_ft + np.cos(angle) * COLUMNS / 3 * pixel_ft, 0.3 * wide, 0.8 * wide))
        y_ft = float(np.clip(y_ft + np.sin(angle) * ROWS / 3 * pixel_ft, 0.3 * tall, 0.8 * tall))
        yield window_around(x_ft, y_ft, pixel_ft * (1, 0.8, 1.25)[step % 3], COLUMNS, ROWS)


def compare_rasters(site: Site) -> list[Comparison]:
    """Compare counts per pixel with a plain Datashader pass over all images.

    The counts must agree except for points that rounding to 1/64 foot moves across the edge of a pixel: a share of 0.01
    divided by the width of a pixel in feet. At coarse scales, where counts of grid cells are used, add a quarter of the
    side of a cell in each direction. Each moved point counts twice, where it is missing and where it is extra.
    """
    rules = site.study.settings.estimate
    ledger = Ledger("benchmark", 0)
    columns = ["x_ft", "y_ft", "conf", "processed", "split", "captured_local"]
    annotated = (site.study.read(name, columns) for name in site.study.files("annotated"))
    every = pd.concat([analyzed(images, rules, ledger) for images in annotated], ignore_index=True)
    rows = []
    for name, pixel_ft in PIXELS_FT.items():
        window = next(walk(site, pixel_ft, 1))
        west, south = site.points.box[0] + window.west_ft, site.points.box[1] + window.south_ft
        extent = Extent(west, south, window.pixel_ft, COLUMNS, ROWS)
        peer = count(every, extent, threshold=rules.threshold)
        ours, _ = site.points.raster(window, Filter())
        moved = int(np.abs(ours.astype(np.int64) - peer.images).sum())
        cell_ft = max(site.city.size_ft) / TILES / CELLS
        off_ft = 0.02 + (cell_ft if window.pixel_ft >= COARSE * cell_ft else 0)
        if moved > off_ft / window.pixel_ft * ours.sum():
            raise ValueError(
                f"{name}: {moved} of {int(ours.sum())} images are in different pixels than with Datashader"
            )
        ours_s = best_of(lambda window=window: site.points.raster(window, Filter()), 5)
        peer_s = best_of(lambda extent=extent: count(every, extent, threshold=rules.threshold))
        images = f"{site.points.images:,}"
        rows.append(Comparison(f"count {images} images, {name}", ours_s, peer_s, "s", 5, "Datashader, all points"))
    return rows


def measure_map_images(site: Site) -> list[Comparison]:
    """Time complete map images on the server along a walk: median and 95th percentile."""
    site.warm()
    rows = []
    for seed, measure in enumerate(("images", "detection-rate", "deployment-rate")):
        times_s = []
        for pixel_ft in PIXELS_FT.values():
            for window in walk(site, pixel_ft, STEPS, seed):
                view = View(window, measure)  # type: ignore[arg-type]
                start_s = time.perf_counter()
                site.painter.paint(view)
                times_s.append(time.perf_counter() - start_s)
        rows += limits(f"map image of {measure}, on the server", times_s)
    filters = [Filter(hours=(hour, 20)) for hour in range(6)]
    window = next(walk(site, PIXELS_FT["city"], 1))
    times_s = []
    for keep in filters:
        start_s = time.perf_counter()
        site.painter.paint(View(window, "deployment-rate", "area", keep))
        times_s.append(time.perf_counter() - start_s)
    rows.append(Comparison("map image after a change of filters", max(times_s), 0.5, "s", 1, "limit"))
    return rows


def limits(name: str, times_s: list[float]) -> list[Comparison]:
    """Compare median and 95th percentile with their limits."""
    return [
        Comparison(f"{name}, median", float(np.median(times_s)), 0.15, "s", 1, "limit"),
        Comparison(f"{name}, 95th percentile", float(np.percentile(times_s, 95)), 0.3, "s", 1, "limit"),
    ]


# Browser.

_HERE = "here\n"  # printed by another user when the map is visible

# Number of the map image in the browser.
_SHOWN = "(window.Bokeh?.documents[0]?.get_model_by_name('picture')?.data.number[0] ?? 0)"
# Milliseconds from the next wheel, drag, or input event until the map shows the last map image that arrives within a
# second, and the number of map images. An image is visible at the end of the frame in which it arrives; the time is
# taken at the start of the next frame.
_WATCH = f"""() => {{ window.seen = new Promise((resolve) => {{
  const shown = () => {_SHOWN};
  const before = shown(); let start = null, last = before, had = false, at = null;
  const begin = (event) => {{ if (start === null && (event.type !== 'pointermove' || event.buttons))
    start = performance.now(); }};
  for (const kind of ['wheel', 'pointermove', 'input']) window.addEventListener(kind, begin, true);
  const look = () => {{ const now = performance.now();
    if (had) {{ at = now; had = false; }}
    if (start !== null && shown() > last) {{ last = shown(); had = true; }}
    if (at !== null && now - start > 1000) resolve([at - start, last - before]);
    else requestAnimationFrame(look); }};
  look(); }}); }}"""


def measure_browser(study: Study) -> list[Comparison]:
    """Measure opening, moving, and filtering in a browser, with and without other users; memory of the server."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("skipped browser: chromium or playwright is not installed")
        return []
    with served(study) as (address, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        opened_s = [first_image_s(browser, address) for _ in range(3)]
        rows = [Comparison("open the page, until the first map image", min(opened_s), 3.0, "s", 1, "limit")]
        rows += limits("pan or zoom", moves_s(browser, address, 1))
        rows.append(Comparison("change of filters", filter_s(browser, address), 0.5, "s", 1, "limit"))
        with others(address, wander_without_browser):
            rows += limits(f"pan or zoom with {USERS - 1} remote users", moves_s(browser, address, 2))
        with others(address, wander):
            # Twice as many rounds, since waiting for other users varies most.
            times_s = moves_s(browser, address, 3, rounds=6)
            rows += limits(f"pan or zoom with {USERS - 1} users on the same cores", times_s)
            held_gb = psutil.Process(server.pid).memory_info().rss / 2**30
        browser.close()
    return [*rows, Comparison(f"memory of the server, {USERS} users", held_gb, 2.0, "GB", 1, "limit")]


@contextmanager
def served(study: Study) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the study in a separate process; yield the address of its map and the process."""
    command = [sys.executable, "-m", "patrolscope", "dashboard", "--study", study.root, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            for line in server.stdout or ():
                if found := re.search(r"http://\S+/map", line):
                    yield found[0], server
                    break
        finally:
            server.terminate()


def first_image_s(browser: Any, address: str) -> float:
    """Return seconds from navigation to a map image of the size of the browser window."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    start_s = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_function(f"() => {_SHOWN} > 1")
    took_s = time.perf_counter() - start_s
    page.close()
    return took_s


def moves_s(browser: Any, address: str, seed: int, rounds: int = 3) -> list[float]:
    """Return the latency of moves along a scripted walk with the mouse, from the city to single streets.

    Separate seeds avoid hits in the cache of the server.
    """
    rng = np.random.default_rng(seed)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_function(f"() => {_SHOWN} > 1")
    page.wait_for_timeout(1_000)
    box = page.locator("canvas").first.bounding_box()
    x, y = box["x"] + 0.6 * box["width"], box["y"] + 0.45 * box["height"]
    times_s, images = [], []
    for move in ["pan", "zoom", "pan", "zoom", "pan", "pan"] * rounds:
        page.evaluate(_WATCH)
        page.mouse.move(x, y)
        if move == "zoom":
            page.mouse.wheel(0, -400)
        else:
            page.mouse.down()
            page.mouse.move(x - int(rng.integers(90, 150)), y + int(rng.integers(40, 80)))
            page.mouse.up()
        took_ms, count = page.evaluate("() => window.seen")
        times_s.append(took_ms / 1_000)
        images.append(count)
    page.close()
    print(f"{np.mean(images):.2f} map images per move")
    return times_s


def filter_s(browser: Any, address: str) -> float:
    """Return the median time from a change of light or hour to its map image."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_function(f"() => {_SHOWN} > 1")
    page.wait_for_timeout(1_000)
    times_s = []
    for label, option in (("Light", "Night"), ("Light", "Daylight"), ("From hour", "07:00"), ("To hour", "18:59")):
        page.evaluate(_WATCH)
        page.get_by_label(label).select_option(option)
        times_s.append(page.evaluate("() => window.seen")[0] / 1_000)
    page.close()
    return float(np.median(times_s))


@contextmanager
def others(address: str, activity: Callable[[str, float], None]) -> Iterator[None]:
    """Run other users, one process each, who move about once per second."""
    code = (
        f"import sys; from benchmarks.dashboard import {activity.__name__} as act; act(sys.argv[1], float(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, address, str(90)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(USERS - 1)
        ]
        try:
            for process in processes:
                if process.stdout is None or process.stdout.readline() != _HERE:
                    raise RuntimeError("a user process ended before the map was visible")
            yield
        finally:
            for process in processes:
                process.terminate()


def wander(address: str, for_s: float) -> None:
    """Pan and zoom at random locations for some time."""
    from playwright.sync_api import sync_playwright

    rng = np.random.default_rng(os.getpid())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_function(f"() => {_SHOWN} > 1")
        box = page.locator("canvas").first.bounding_box()
        print(_HERE, end="", flush=True)
        end_s = time.monotonic() + for_s
        while time.monotonic() < end_s:
            x, y = (box[a] + rng.uniform(0.3, 0.7) * box[side] for a, side in (("x", "width"), ("y", "height")))
            page.mouse.move(x, y)
            page.mouse.wheel(0, float(rng.choice([-300, 300])))
            page.wait_for_timeout(1_500)


def wander_without_browser(address: str, for_s: float) -> None:
    """Request and receive map images without drawing, like a user with a browser on a different machine."""
    import panel as pn  # noqa: F401 - its models are on the page
    from bokeh.client import pull_session
    from bokeh.models import Plot

    rng = np.random.default_rng(os.getpid())
    with pull_session(url=address) as session:
        (plot,) = session.document.select({"type": Plot, "name": "map"})
        across, up = plot.x_range, plot.y_range
        middle = np.array([across.start + across.end, up.start + up.end]) / 2
        sides = np.array([across.end - across.start, up.end - up.start])
        print(_HERE, end="", flush=True)
        end_s = time.monotonic() + for_s
        while time.monotonic() < end_s:
            x, y = middle + rng.uniform(-0.2, 0.2, 2) * sides
            wide, tall = sides * float(rng.choice([0.05, 0.2, 0.5]))
            plot.tags = [x - wide / 2, x + wide / 2, y - tall / 2, y + tall / 2]
            time.sleep(1.5)
            session.force_roundtrip()
