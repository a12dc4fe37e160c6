"""A study whose truth is known, and whose inputs look exactly like the real ones.

Rides are runs of images along streets; every neighbourhood has a true level, the chance that an image there shows
police; a detector of known precision and recall finds them. Random numbers belong to a quantity, a day and a block of
rides, never to a worker, so the same arguments give the same bytes on any cluster.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import shapely
from pydantic import Field, ValidationError

from pipeline import simulate_public as public
from pipeline.catalog import load_catalog
from pipeline.config import City, Frozen, Layer, Layers, Period, Settings, Sources
from pipeline.contract import Table
from pipeline.errors import SettingsError, SourceError
from pipeline.layers import build_areas, read_layer
from pipeline.ledger import Ledger
from pipeline.readers import read_levels
from pipeline.run import Progress, run_stages
from pipeline.seeds import stream
from pipeline.simulate_detector import Detector, draw_boxes, fit_detector
from pipeline.spatial.coverage import Coverage
from pipeline.stages import Shard, Stage
from pipeline.store import SETTINGS_FILE, Record, Study, create_study, open_study
from pipeline.streets import Streets, displaced
from pipeline.tables import AREAS

if TYPE_CHECKING:
    import distributed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

ARGUMENTS_FILE = "simulation.json"
METADATA_FOLDER, LABELS_FOLDER = "source/metadata", "source/labels"
TRUTH_FILE, CITY_FILE = "truth/truth.json", "truth/city.parquet"
HEADER = b"image_ref,timestamp,lat,lng,split\n"

DEVELOPMENT_SHARE = 0.1  # of the images have split 0
REPEATED_SHARE = 1 / 20_000  # of the rows stand in their file twice
BLOCK_RIDES = 256  # rides made at a time: about 51,000 images, 30 MB
RIDE_IMAGES = (60, 340)  # shortest and longest ride
IMAGES_PER_LABELLED = 20  # a labelled image is one of this many: about 10 of a ride
IMAGES_PER_DAY = 10_000  # a study of few images has few days
MOST_DAYS = 42  # 5 October to 15 November 2020, the days analysed in the reference study

_HOUR_MS = 3_600_000
# Rides of vehicles for hire by local hour: few at night, most between morning and evening.
_RIDES_BY_HOUR = np.array(
    [2.0, 1.4, 1.0, 0.9, 1.0, 1.6, 3.0, 4.8, 5.8, 6.0, 6.0, 6.2, 6.4, 6.4, 6.5, 6.6, 6.6, 6.6, 6.2, 5.6, 5.0, 4.4, 3.6, 2.8]
)
_IMAGES_BY_WEEKDAY = (1.0, 1.0, 1.0, 1.05, 1.1, 1.0, 0.8)  # Monday first
_INTERVAL_S = (3.0, 7.0)  # between images; each ride has its own
_SPEED_M_PER_S = 6.0  # median: traffic and red lights included
_GPS_SD_M, _GPS_LIMIT_M = 2.5, 8.0  # along each axis
_POSITION_DECIMALS = 6  # 0.1 m

# Published levels by neighbourhood relative to their mean: these shares of the neighbourhoods lie below them
# (paper_results, 217 neighbourhoods). Lowest to highest is a factor of 19.
_LEVEL_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_RELATIVE_LEVELS = (0.239, 0.36, 0.53, 0.815, 1.257, 2.223, 4.543)
MEAN_LEVEL = 0.0098  # over the images; published: 0.0098 over the people

SIMULATED_CITY = Table(
    "city",
    row="one area and the true share of images there that show police",
    key=("area",),
    columns=(
        AREAS["area"],
        AREAS["neighbourhood"],
        # A simulated truth has no published name, and is no estimate.
        *Table("truth", "", (), ()).columns,
        AREAS["geometry"],
    ),
)
