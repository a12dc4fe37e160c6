"""What colors mean: as HTML beside the map, and as a figure under a poster."""

from __future__ import annotations

import math

from matplotlib.ticker import MaxNLocator

from patrolscope.analysis.stages.results import FEW_IMAGES
from patrolscope.dashboards.charts.style import INK
from patrolscope.dashboards.maps.city_maps import EMPTY, HATCH, LEAST_IMAGES, LEVEL_CENTERS, LEVEL_LABELS
from patrolscope.dashboards.maps.compose import STREET_FT, TABLES, Measure, Painter, Scales

_LAST = 0.88  # of a scale: a mark beyond it would touch the one at the end


def unit_of(measure: Measure, place: str) -> str:
    """What a color stands for, with its unit; `place` is what one of the level is called."""
    return {
        "images": f"images in a square of {STREET_FT:.0f} ft (logarithmic scale)",
        "share": "% of images with a detected police vehicle, around each point",
        "level": f"two-class level of each {place}, times the average over residents",
    }[measure]


def ticks_of(measure: Measure, scales: Scales) -> list[tuple[float, str]]:
    """Marks of a scale: where (0 to 1) and what."""
    if measure == "level":
        steps = len(LEVEL_CENTERS)
        return [
            ((place + 0.5) / steps, LEVEL_LABELS[center])
            for place, center in enumerate(LEVEL_CENTERS.tolist())
            if center in LEVEL_LABELS
        ]
    if measure == "share":
        percent = 100 * scales.share
        marks = [(tick / percent, f"{tick:g}") for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, percent)]
        end = f"{percent:.2g}"
    else:
        top = math.log10(scales.images)
        marks = [(power / top, f"{10**power:,}") for power in range(int(top) + 1)]
        end = f"{scales.images:,.0f}"
    # What is more has the last color, too.
    return [mark for mark in marks if mark[0] <= _LAST] + [(1.0, f"\u2265 {end}")]


def notes_of(measure: Measure, level: str) -> list[tuple[str, str]]:
    """Colors beside the scale: CSS background and what it means."""
    hatched = f"repeating-linear-gradient(135deg,#fff 0 3px,{HATCH} 3px 5px)"
    return {
        "images": [],
        "share": [(EMPTY, f"under {LEAST_IMAGES:,} images within a mile")],
        "level": [
            (hatched, f"under {FEW_IMAGES} images, or none with police"),
            (EMPTY, "no images" if level == "area" else "no images where people live"),
        ],
    }[measure]


def legend_html(painter: Painter, measure: Measure, level: str) -> str:
    """The legend of the map in a browser, which shows police stations, too."""
    colors = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in TABLES[measure]]
    if measure == "level":
        share = 100 / len(colors)
        stops = ",".join(f"{color} {at * share:.2f}% {(at + 1) * share:.2f}%" for at, color in enumerate(colors))
    else:
        stops = ",".join(colors[::15] + colors[-1:])
    marks = "".join(
        f'<span style="position:absolute;left:{100 * place:.1f}%;transform:translateX(-50%);white-space:nowrap">'
        f"{text}</span>"
        for place, text in ticks_of(measure, painter.scales)
    )
    notes = "".join(
        f'<span style="display:inline-flex;align-items:center;margin:2px 14px 0 0"><span aria-hidden="true" '
        f'style="display:inline-block;width:26px;height:13px;margin-right:6px;border:1px solid #ccc;'
        f'background:{color}"></span>{text}</span>'
        for color, text in notes_of(measure, level)
    )
    if len(painter.city.stations_ft):
        notes += (
            '<span style="display:inline-flex;align-items:center;margin:2px 14px 0 0"><span aria-hidden="true" '
            f'style="width:8px;height:8px;margin-right:6px;background:{INK}"></span>police station</span>'
        )
    return (
        '<div role="img" aria-label="Legend" style="font-size:13px;max-width:560px;margin:2px 0 8px">'
        f"<div>{unit_of(measure, painter.city.names[level][0])}</div>"
        f'<div style="height:12px;margin:3px 14px 0;background:linear-gradient(90deg,{stops})"></div>'
        f'<div style="position:relative;height:18px;margin:0 14px">{marks}</div>'
        f'<div style="display:flex;flex-wrap:wrap">{notes}</div></div>'
    )
