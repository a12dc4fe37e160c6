"""Settings of a study: study.yaml, read once into frozen objects. The defaults are the paper's, for New York.

Another city is another study.yaml and other entries of data_catalog.yaml.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from patrolscope.pipeline.errors import SettingsError

Share = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Refuses unknown keys, and changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Box(Frozen):
    """Extent of the city, EPSG:4326 degrees; a position outside it is a broken reading."""

    # New York City with the waters around it, about 5 km beyond the outermost tract.
    west: float = Field(-74.32, ge=-180, le=180)
    south: float = Field(40.44, ge=-90, le=90)
    east: float = Field(-73.64, ge=-180, le=180)
    north: float = Field(40.97, ge=-90, le=90)

    @model_validator(mode="after")
    def _has_extent(self) -> Box:
        if self.west >= self.east or self.south >= self.north:
            raise ValueError("west is to be less than east, and south less than north")
        return self


class Sun(Frozen):
    """Where sunrise and sunset are taken: astral's entry "New York" by default."""

    latitude: float = Field(40.71666666666667, ge=-90, le=90)
    longitude: float = Field(-74.0, ge=-180, le=180)


class City(Frozen):
    """The place: clock, map projection, extent."""

    name: str = "New York City"
    time_zone: str = "America/New_York"
    crs: str = "EPSG:2263"  # NAD 83 / New York Long Island, US survey feet: distances and areas
    bounds: Box = Box()
    sun: Sun = Sun()

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"{name!r} is not a time zone of the IANA database, such as America/New_York")
        return name

    @field_validator("crs")
    @classmethod
    def _projected(cls, code: str) -> str:
        from pyproj import CRS
        from pyproj.exceptions import CRSError

        try:
            crs = CRS.from_user_input(code)
        except CRSError as error:
            raise ValueError(f"{code!r} is not a coordinate system that PROJ knows") from error
        if not crs.is_projected:
            raise ValueError(f"{code!r} is in degrees; distances need a projected system, such as EPSG:2263")
        return code

    @property
    def clock(self) -> ZoneInfo:
        """The city's time zone."""
        return ZoneInfo(self.time_zone)


class Period(Frozen):
    """Days (local) that the images can be of; a time outside is a broken reading."""

    start: date = date(2020, 3, 1)
    end: date = date(2020, 11, 30)  # the last day, included

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self


class Sources(Frozen):
    """What a study is made from: paths or URLs, relative ones from the study folder."""

    metadata: tuple[str, ...] = ()  # raw daily CSV files, folders or glob patterns
    detections: tuple[str, ...] = ()  # folders of YOLO label files
    processed: str | None = None  # text file, one image a line: which were run through the detector
    validation: str | None = None  # labeled images for the calibration
    test: str | None = None  # labeled images for the evaluation
    truth: str | None = None  # true levels of a simulated study, folder

    @field_validator("metadata", "detections", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Layer(Frozen):
    """A public data set: an entry of data_catalog.yaml, or a file of one's own in that entry's format."""

    entry: str
    path: str | None = None


class Layers(Frozen):
    """Data sets that a study joins its images to; null where a city has none."""

    areas: Layer = Layer(entry="block_groups_2020")
    area_attributes: Layer | None = Layer(entry="block_group_attributes_2020")
    tracts: Layer | None = Layer(entry="tracts_2020")
    tract_places: Layer | None = Layer(entry="tract_places_2020")
    tract_counts: Layer | None = Layer(entry="decennial_2020_tracts")
    neighborhoods: Layer | None = Layer(entry="neighborhoods_2020")
    boroughs: Layer | None = Layer(entry="boroughs")
    precincts: Layer | None = Layer(entry="precincts_2020")
    population: Layer | None = Layer(entry="acs_2020_b03002")
    income: Layer | None = Layer(entry="acs_2020_b19013")
    zoning: Layer | None = Layer(entry="zoning_block_groups")
    stations: Layer | None = Layer(entry="precinct_houses")
    complaints: Layer | None = Layer(entry="nypd_complaints_historic")

    @field_validator("*", mode="before")
    @classmethod
    def _entry_alone(cls, value: Any) -> Any:
        return {"entry": value} if isinstance(value, str) else value


class Images(Frozen):
    """Where the images lie, and how they are run through the detector."""

    sources: tuple[str, ...] = ()  # folders or URLs (s3://, gs://); relative ones from the study folder
    shard_images: int = Field(2_000, ge=1)  # at most in one piece of the detector's work
    weights: str | None = None  # of the detector: path or URL
    trust_weights: bool = False  # read weights that can not be read without running code that stands in them
    size: int = Field(1280, ge=32, le=8192)  # pixels, longer side of what the network sees (the paper's)
    min_score: Share = 0.01  # boxes of a lower confidence are left out (the paper's)
    nms_iou: Share = 0.45  # of two boxes of a class that overlap more, the better one stays
    classes: tuple[int | str, ...] = ()  # by name or number; none: all that the weights know
    augment: bool = False  # test-time augmentation: three passes, of which one is mirrored
    batch: int | None = Field(None, ge=1)  # images in one pass; null: what fits the device's memory
    max_megapixels: float = Field(50, gt=0, le=1000)  # a larger image is not decoded: status too_large
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: CUDA where there is one
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"  # auto: fp16 on CUDA, fp32 on a CPU
    jpeg: Literal["auto", "cpu", "device"] = "auto"  # who decodes plain JPEGs; auto: nvJPEG on CUDA where there is one
    compile: bool = False  # torch.compile: a minute at the start, then faster

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("classes", mode="before")
    @classmethod
    def _one_or_many_classes(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value


class Detection(Frozen):
    """How detector output is read."""

    # Where detections come from: label files (sources.detections) or images (images.weights); null: from what is given.
    source: Literal["labels", "detect"] | None = None

    class_names: tuple[str, ...] = ("police officer", "police vehicle")  # by class number, from 0
    police_class: str | int = "police vehicle"  # the class that conf is taken from, by name or number
    prediction_above: Share = 0.001  # has_prediction: any box of any class above this score

    @property
    def police_class_number(self) -> int:
        """Number of the class that conf is taken from."""
        if isinstance(self.police_class, int):
            return self.police_class
        return self.class_names.index(self.police_class)

    @model_validator(mode="after")
    def _class_exists(self) -> Detection:
        if isinstance(self.police_class, str) and self.police_class not in self.class_names:
            known = ", ".join(self.class_names)
            raise ValueError(f"police_class {self.police_class!r} is not in class_names ({known})")
        if isinstance(self.police_class, int) and self.police_class < 0:
            raise ValueError(f"police_class {self.police_class} is a class number from 0 on")
        return self


class Ingest(Frozen):
    """How raw files are read.

    How they are cut, and in which order their rows lie, changes no result.
    """

    block_bytes: int = Field(64 * 2**20, ge=2**10)  # of source text in one task
    slice_rows: int = Field(1_000_000, ge=1, le=10_000_000)  # at most about this many rows of a day in one file
    trust: bool = False  # take what an annotated file says of a computed column; else compute, and report differences
    keep_unknown: bool = False  # keep columns that are not known, as text, in supplied/
    order_hours: int = Field(4, ge=1, le=24)  # rows of a day lie by blocks of so many hours, then along the curve


class Annotate(Frozen):
    """What is measured for every image."""

    felony_windows_h: tuple[int, ...] = (1, 3, 6)
    felony_category: str = "FELONY"
    # How a point finds its area: by our index, or by dask-geopandas' spatial join, which gives the same some 40 times
    # slower and is there to check the index with (benchmarks/annotate.py).
    join: Literal["index", "reference"] = "index"
    phase_from: date = date(2020, 9, 1)  # local day from which phase is 1

    @field_validator("felony_windows_h")
    @classmethod
    def _whole_hours(cls, hours: tuple[int, ...]) -> tuple[int, ...]:
        if list(hours) != sorted(set(hours)) or any(not 1 <= h <= 48 for h in hours):
            raise ValueError(f"{list(hours)}: whole hours from 1 to 48, rising, none twice")
        return hours


class Estimate(Frozen):
    """From images to disparities."""

    first_day: date = date(2020, 10, 5)  # local; before it coverage of the city is not representative (section 3)
    split: Literal[0, 1] = 1  # 0 is the tenth on which the model was developed
    threshold: Share = 0.770508  # an image is classified positive above it
    zone_share: Share = 0.5  # of a block group's area, to count as that zone
    correlation_persons: int = Field(500, ge=0)  # areas of more persons enter the correlations
    replicates: int = Field(100, ge=2, le=1_000_000)
    # What is drawn with replacement: single images, as published, or whole rides, days or areas, whose images are not
    # independent. Figures show the first one.
    bootstrap: tuple[Literal["image", "ride", "day", "area"], ...] = ("image", "ride")
    predictions: tuple[Literal["two_class", "station_adjusted"], ...] = ("two_class",)
    resample_calibration: bool = False  # draw the validation set anew in each replicate, too; not for station_adjusted
    interval: Literal["percentile", "basic", "normal", "bca"] = "percentile"
    interval_percent: float = Field(95, gt=0, lt=100)
    seed: int = Field(20230612, ge=0)

    @field_validator("bootstrap", "predictions", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("bootstrap", "predictions")
    @classmethod
    def _none_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError("at least one, and none twice")
        return names


class Sensitivity(Frozen):
    """What the estimates are made again under: each variant changes one thing. An empty list leaves a kind out."""

    thresholds: tuple[Share, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)  # each calibrated again at that threshold
    best_f1: bool = True  # and the threshold with the best F1 on the validation set
    calibrations: tuple[Literal["logistic", "isotonic"], ...] = ("logistic", "isotonic")
    geographies: tuple[Literal["tract"], ...] = ("tract",)  # areas whose means are weighted, instead of the study's
    minimum_images: tuple[Annotated[int, Field(ge=1)], ...] = (10, 100, 1000)  # areas with fewer are left out
    dates: tuple[Literal["halves", "months", "every-day"], ...] = ("halves", "months", "every-day")
    times: tuple[Literal["day", "night", "weekdays", "weekend"], ...] = ("day", "night", "weekdays", "weekend")
    even_hours: bool = True  # every hour of the day counts the same within an area
    people_share: Share = 0.5  # a variant whose areas hold less of the base's people is not compared
    replicates: int = Field(200, ge=2)  # of the bootstrap over days
    ranked_images: int = Field(200, ge=1)  # neighborhoods with fewer are in no ranking

    @field_validator("thresholds", "calibrations", "geographies", "minimum_images", "dates", "times")
    @classmethod
    def _none_twice(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("one of them stands twice")
        return values


class Settings(Frozen):
    """Everything in study.yaml."""

    name: str = "patrolscope study"
    cache: str | None = None  # folder of fetched data sets; null: the user's cache folder
    simulated: str = ""  # says what in the study is simulated; shown on every figure and on the report
    city: City = City()
    period: Period = Period()
    sources: Sources = Sources()
    layers: Layers = Layers()
    images: Images = Images()
    detection: Detection = Detection()
    ingest: Ingest = Ingest()
    annotate: Annotate = Annotate()
    estimate: Estimate = Estimate()
    sensitivity: Sensitivity = Sensitivity()


def parse_settings(text: str, *, where: str) -> Settings:
    """Settings from the text of a study.yaml; `where` names it in errors.

    Raises
    ------
    SettingsError : not YAML, an unknown key, an impossible value; every fault of the file is named
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SettingsError(f"{where} holds a {type(content).__name__}; expected keys such as city: or sources:")
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{where}:\n{_faults(error)}") from error


def with_changes(settings: Settings, changes: dict[str, dict[str, Any]]) -> Settings:
    """Settings with some values of some sections replaced, such as those given on the command line.

    Raises
    ------
    SettingsError : an impossible value, named with what it may be
    """
    content = settings.model_dump(mode="json")
    for section, values in changes.items():
        content[section] |= values
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"not possible:\n{_faults(error)}") from error


def dump_settings(settings: Settings) -> str:
    """Text of study.yaml: every setting, also those left at their default."""
    content = settings.model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        if fault["type"] == "extra_forbidden":
            lines.append(f"  {place}: unknown key; remove it or mend its name")
        else:
            lines.append(f"  {place}: got {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
