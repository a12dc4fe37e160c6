"""Colors, sizes, and text that all charts share."""

from __future__ import annotations

INK = "#1b1f24"
MUTED = "#646d78"
GRID = "#8b949e"
# Distinguishable with color blindness, and with a contrast of 3:1 on white and nearly black pages.
BLUE = "#3b7dc4"
ORANGE = "#cf6f14"
GREEN = "#2f8f6b"
PURPLE = "#8a5a9e"
WARNING = "#b45309"

PT_PER_INCH = 72
# Width of a phone's page at the same text size, and half the width of a page on a screen.
WIDTH_PT = 350.0
SHEET_PT = 500.0  # figures with several panels
TEXT_PT = 9.0
SMALL_PT = 7.5
LABEL_PT = SMALL_PT + 0.5

MEASURE = "Deployment rate: probability that an image shows a police vehicle, relative to the city average"
RELATIVE_RATE = "relative rate (city average = 1)"
