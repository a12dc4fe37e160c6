"""Legends of the map: quantity and unit, marks of the color scale, and other colors."""

from __future__ import annotations

import math

from matplotlib.ticker import MaxNLocator

from patrolscope.analysis.stages.results import FEW_IMAGES
from patrolscope.dashboards.charts.style import INK
from patrolscope.dashboards.maps.city_maps import EMPTY, HATCH, LEAST_IMAGES, RATE_CENTERS, RATE_LABELS
from patrolscope.dashboards.maps.painter import STREET_FT, TABLES, Measure, Painter, Scales

_LAST = 0.88  # of a scale: later marks would touch the one at the end


def unit_of(measure: Measure, region: str) -> str:
    """Return the quantity and unit of a measure; `region` is the display name of one region of the geography."""
    return {
        "images": f"images per square of {STREET_FT:.0f} ft (log scale)",
        "detection-rate": "detection rate around each point: % of images with a detected police vehicle",
        "deployment-rate": f"two-class deployment rate of each {region}, relative to the city average",
    }[measure]


def ticks_of(measure: Measure, scales: Scales) -> list[tuple[float, str]]:
    """Return the marks of a color scale: position (0 to 1) and label."""
    if measure == "deployment-rate":
        steps = len(RATE_CENTERS)
        return [
            ((index + 0.5) / steps, RATE_LABELS[center])
            for index, center in enumerate(RATE_CENTERS.tolist())
            if center in RATE_LABELS
        ]
    if measure == "detection-rate":
        percent = 100 * scales.detection_rate
        marks = [(tick / percent, f"{tick:g}") for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, percent)]
        end = f"{percent:.2g}"
    else:
        top = math.log10(scales.images)
        marks = [(power / top, f"{10**power:,}") for power in range(int(top) + 1)]
        end = f"{scales.images:,.0f}"
    return [mark for mark in marks if mark[0] <= _LAST] + [(1.0, f"\u2265 {end}")]


def notes_of(measure: Measure, geography: str) -> list[tuple[str, str]]:
    """Return colors outside the scale: CSS background and meaning."""
    hatched = f"repeating-linear-gradient(135deg,#fff 0 3px,{HATCH} 3px 5px)"
    return {
        "images": [],
        "detection-rate": [(EMPTY, f"under {LEAST_IMAGES:,} images within a mile")],
        "deployment-rate": [
            (hatched, f"under {FEW_IMAGES} images, or none positive"),
            (EMPTY, "no images" if geography == "area" else "no images in areas with residents"),
        ],
    }[measure]


def legend_html(painter: Painter, measure: Measure, geography: str) -> str:
    """Render the legend of the map in the browser, which also shows police stations.

    Parameters
    ----------
    painter : Painter
        Painter of the map, with its color scale.
    measure : Measure
        Quantity that the map shows.
    geography : str
        Geography of the map.
    """
    colors = ["#{:02x}{:02x}{:02x}".format(*map(int, color)) for color in TABLES[measure]]
    if measure == "deployment-rate":
        share = 100 / len(colors)
        stops = ",".join(f"{color} {at * share:.2f}% {(at + 1) * share:.2f}%" for at, color in enumerate(colors))
    else:
        stops = ",".join(colors[::15] + colors[-1:])
    marks = "".join(
        f'<span style="position:absolute;left:{100 * position:.1f}%;transform:translateX(-50%);white-space:nowrap">'
        f"{text}</span>"
        for position, text in ticks_of(measure, painter.scales)
    )
    notes = "".join(
        f'<span style="display:inline-flex;align-items:center;margin:2px 14px 0 0"><span aria-hidden="true" '
        f'style="display:inline-block;width:26px;height:13px;margin-right:6px;border:1px solid #ccc;'
        f'background:{color}"></span>{text}</span>'
        for color, text in notes_of(measure, geography)
    )
    if len(painter.city.stations_ft):
        notes += (
            '<span style="display:inline-flex;align-items:center;margin:2px 14px 0 0"><span aria-hidden="true" '
            f'style="width:8px;height:8px;margin-right:6px;background:{INK}"></span>police station</span>'
        )
    return (
        '<div role="img" aria-label="Legend" style="font-size:13px;max-width:560px;margin:2px 0 8px">'
        f"<div>{unit_of(measure, painter.city.names[geography][0])}</div>"
        f'<div style="height:12px;margin:3px 14px 0;background:linear-gradient(90deg,{stops})"></div>'
        f'<div style="position:relative;height:18px;margin:0 14px">{marks}</div>'
        f'<div style="display:flex;flex-wrap:wrap">{notes}</div></div>'
    )
