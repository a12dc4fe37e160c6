"""Settings of a study: study.yaml, read once into frozen objects. Defaults are those of the paper, for New York.

Another city needs another study.yaml and other entries of data_catalog.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from patrolscope.pipeline.credentials import ADVICE, has_credentials
from patrolscope.pipeline.errors import SettingsError
from patrolscope.safe_yaml import YamlFileError
from patrolscope.safe_yaml import load_yaml as read_yaml

Share = Annotated[float, Field(ge=0, le=1)]


# Names of tzdata that are an offset or a rule, not a place. UTC is a choice that nobody makes by mistake.
_WITHOUT_PLACE = frozenset(
    [
        *("EST", "MST", "HST", "EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT", "WET", "CET", "MET", "EET", "GMT", "GMT0"),
        *("GMT+0", "GMT-0", "Greenwich", "UCT", "Universal", "Zulu", "Factory", "localtime", "posixrules"),
    ]
)
_MOST_CLOCK_ERROR_H = 4.0  # western China, on the time of Beijing, has 3; daylight saving adds 1
_SUN_MARGIN = 1.0  # degrees of a location outside the box: 4 minutes of sunrise


class Frozen(BaseModel):
    """Settings that reject unknown keys, and changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Box(Frozen):
    """Extent of the city, in degrees of EPSG:4326. Locations outside are broken readings."""

    # New York City with the waters around it, about 5 km beyond the outermost tract.
    west: float = Field(-74.32, ge=-180, le=180)
    south: float = Field(40.44, ge=-90, le=90)
    east: float = Field(-73.64, ge=-180, le=180)
    north: float = Field(40.97, ge=-90, le=90)

    @model_validator(mode="after")
    def _has_extent(self) -> Box:
        if self.west >= self.east or self.south >= self.north:
            raise ValueError(
                f"got west {self.west}, east {self.east}, south {self.south}, north {self.north}; expected west < east "
                "and south < north, in degrees; a box over the antimeridian is not supported"
            )
        return self

    @property
    def center(self) -> Sun:
        """Center of the box, for sunrise and sunset."""
        return Sun(latitude=(self.south + self.north) / 2, longitude=(self.west + self.east) / 2)

    def contains(self, latitude: float, longitude: float, margin: float = 0) -> bool:
        """Return whether a location is in the box, or at most `margin` degrees outside."""
        return (
            self.south - margin <= latitude <= self.north + margin
            and self.west - margin <= longitude <= self.east + margin
        )


class Sun(Frozen):
    """Location for sunrise and sunset. Default: astral's entry "New York"."""

    latitude: float = Field(40.71666666666667, ge=-90, le=90)
    longitude: float = Field(-74.0, ge=-180, le=180)


class City(Frozen):
    """City: clock, projection, and extent, which must fit together."""

    name: str = "New York City"
    time_zone: str = "America/New_York"
    crs: str = "EPSG:2263"  # NAD 83 / New York Long Island, US survey feet: distances and areas
    bounds: Box = Box()
    sun: Sun = Sun()  # another city: the center of its bounds, unless set

    @model_validator(mode="before")
    @classmethod
    def _sun_over_the_city(cls, content: Any) -> Any:
        """Put the sun over the center of a box that does not contain the default location."""
        if not isinstance(content, dict) or content.get("sun") is not None or content.get("bounds") is None:
            return content
        try:
            bounds = Box.model_validate(content["bounds"])
        except ValidationError:
            return content  # reported as a fault of bounds
        here = bounds.contains(Sun().latitude, Sun().longitude)
        return content | {"sun": Sun() if here else bounds.center}

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"{name!r} is not a time zone; expected a name such as America/New_York")
        if name in _WITHOUT_PLACE or (name.startswith("Etc/") and name != "Etc/UTC"):
            raise ValueError(
                f"{name!r} is an offset without a place, and without its rules of daylight saving time; expected a "
                "name such as America/New_York"
            )
        return name

    @field_validator("crs")
    @classmethod
    def _projected(cls, code: str) -> str:
        from patrolscope.pipeline.crs import city_crs

        city_crs(code)
        return code

    @model_validator(mode="after")
    def _fits_together(self) -> City:
        from patrolscope.pipeline.crs import check_scale

        box = self.bounds
        check_scale(self.crs, box.west, box.south, box.east, box.north)
        if not box.contains(self.sun.latitude, self.sun.longitude, _SUN_MARGIN):
            raise ValueError(
                f"sun is at latitude {self.sun.latitude:.4g}, longitude {self.sun.longitude:.4g}, outside bounds; "
                "remove city.sun to use the center of city.bounds, or set it to a location there"
            )
        ahead_h = datetime(2020, 1, 1, tzinfo=self.clock).utcoffset() or timedelta()
        apart_h = (ahead_h / timedelta(hours=1) - box.center.longitude / 15 + 12) % 24 - 12
        if abs(apart_h) > _MOST_CLOCK_ERROR_H and self.time_zone not in ("UTC", "Etc/UTC"):
            raise ValueError(
                f"the clock of time_zone {self.time_zone} is {abs(apart_h):.1f} hours from the sun at the center of "
                "bounds; set city.time_zone to that of the city, and check that west and east are longitudes"
            )
        return self

    @property
    def clock(self) -> ZoneInfo:
        """Time zone of the city."""
        return ZoneInfo(self.time_zone)


class Period(Frozen):
    """Local days of the images. Times outside are broken readings."""

    start: date = date(2020, 3, 1)
    end: date = date(2020, 11, 30)  # last day, inclusive

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}")
        return self


class Sources(Frozen):
    """Sources of a study: paths or URLs; relative paths start at the study folder."""

    metadata: tuple[str, ...] = ()  # raw daily CSV files, folders or glob patterns
    detections: tuple[str, ...] = ()  # folders of YOLO text files with detector output
    processed: str | None = None  # text file, one processed image per line
    validation: str | None = None  # labeled images for the calibration
    test: str | None = None  # labeled images for the evaluation
    truth: str | None = None  # folder with the true rates of a simulated study

    @field_validator("metadata", "detections", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Layer(Frozen):
    """Public data set: an entry of data_catalog.yaml, or another file in the format of that entry."""

    entry: str
    path: str | None = None


class Layers(Frozen):
    """Data sets that images are joined to; null if a city has none."""

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
    """Image store and detector."""

    sources: tuple[str, ...] = ()  # folders or URLs (s3://, gs://); relative paths start at the study folder
    shard_images: int = Field(2_000, ge=1)  # most images per shard of the detector
    weights: str | None = None  # path or URL of the detector's weights
    trust_weights: bool = False  # open weights that cannot be read without running code in the file
    size: int = Field(1280, ge=32, le=8192)  # pixels, longer side of the network's input (paper: 1280)
    min_score: Share = 0.01  # lowest confidence of a box (paper: 0.01)
    nms_iou: Share = 0.45  # of two boxes of a class with a larger IoU, the one with the higher score is kept
    classes: tuple[int | str, ...] = ()  # by name or number; empty: all classes of the weights
    augment: bool = False  # test-time augmentation: three passes, one of them mirrored
    batch: int | None = Field(None, ge=1)  # images per pass; null: as many as fit the memory of the device
    max_megapixels: float = Field(50, gt=0, le=1000)  # larger images are not decoded: status too_large
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: CUDA if available
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"  # auto: fp16 on CUDA, fp32 on a CPU
    jpeg: Literal["auto", "cpu", "device"] = "auto"  # decoder of plain JPEGs; auto: nvJPEG on CUDA if available
    compile: bool = False  # torch.compile: takes a minute at the start, then runs faster

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("classes", mode="before")
    @classmethod
    def _one_or_many_classes(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value


class Detection(Frozen):
    """Interpretation of detector output."""

    # Origin of detections: files (labels: sources.detections) or images (detect: images.weights). null: the one that is
    # set.
    source: Literal["labels", "detect"] | None = None

    class_names: tuple[str, ...] = ("police officer", "police vehicle")  # by class number, from 0
    police_class: str | int = "police vehicle"  # class behind conf, by name or number
    prediction_above: Share = 0.001  # has_prediction: a box of any class scores higher

    @property
    def police_class_number(self) -> int:
        """Number of the class behind conf."""
        if isinstance(self.police_class, int):
            return self.police_class
        return self.class_names.index(self.police_class)

    @model_validator(mode="after")
    def _class_exists(self) -> Detection:
        if isinstance(self.police_class, str) and self.police_class not in self.class_names:
            known = ", ".join(self.class_names)
            raise ValueError(f"police_class {self.police_class!r} is not in class_names ({known})")
        if isinstance(self.police_class, int) and self.police_class < 0:
            raise ValueError(
                f"police_class {self.police_class} is negative; expected a name, or a number of at least 0"
            )
        return self


class Ingest(Frozen):
    """Reading of raw files.

    Sizes and order influence no result.
    """

    block_bytes: int = Field(64 * 2**20, ge=2**10)  # source text per task
    slice_rows: int = Field(1_000_000, ge=1, le=10_000_000)  # about the most rows of a day per file
    trust: bool = False  # use supplied columns instead of computed ones; else compute them and report differences
    keep_unknown: bool = False  # keep unrecognized columns as text, in supplied/
    skip_bad_files: bool = False  # skip raw files that cannot be read, and count them; else refuse all files
    order_hours: int = Field(4, ge=1, le=24)  # per block of rows of a day; rows in a block follow a curve


class Annotate(Frozen):
    """Annotation of every image."""

    felony_windows_h: tuple[int, ...] = (1, 3, 6)
    felony_category: str = "FELONY"
    phase_from: date = date(2020, 9, 1)  # first local day of phase 1

    @field_validator("felony_windows_h")
    @classmethod
    def _whole_hours(cls, hours: tuple[int, ...]) -> tuple[int, ...]:
        if list(hours) != sorted(set(hours)) or any(not 1 <= h <= 48 for h in hours):
            raise ValueError(f"{list(hours)}: expected distinct whole hours from 1 to 48 in ascending order")
        return hours


# Values of the settings that a preset stands for. `published` reproduces the paper; its intervals are too narrow.
PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {
        "bootstrap": ("ride",),
        "resample_calibration": True,
        "replicates": 1_000,
        "interval": "percentile",
        "gamma_below_effective": 200.0,
        "census_error": True,
    },
    "published": {
        "bootstrap": ("image",),
        "resample_calibration": False,
        "replicates": 100,
        "interval": "percentile",
        "gamma_below_effective": 0.0,
        "census_error": False,
    },
}


_OF_PRESETS = frozenset(PRESETS["published"])


class Estimate(Frozen):
    """Estimation of disparities."""

    first_day: date = date(2020, 10, 5)  # local; image coverage of the city is not representative before it (section 3)
    split: Literal[0, 1] = 1  # 0 is the tenth of images on which the model was developed
    threshold: Share = 0.770508  # images with a higher score are positive
    zone_share: Share = 0.5  # of a block group's area, to belong to a zone
    missing_population: Share = 0.01  # most areas without residents in layers.population; they count as empty
    correlation_persons: int = Field(500, ge=0)  # correlations include areas with more residents
    preset: Literal["recommended", "published"] = "recommended"  # gives the defaults of the settings up to census_error
    replicates: int = Field(1_000, ge=2, le=1_000_000)
    # Resampling units: single images, as published, or whole rides, days, or areas, whose images are not independent.
    # Figures show the first one. Single images take the place of rides in a study without rides.
    bootstrap: tuple[Literal["image", "ride", "day", "area"], ...] = ("ride",)
    resample_calibration: bool = True  # also resample the validation set in each replicate; not for station_adjusted
    interval: Literal["percentile", "basic", "normal", "bca"] = "percentile"
    gamma_below_effective: float = Field(200, ge=0)  # gamma intervals of groups with fewer
    census_error: bool = True  # also draw the residents of population groups in each replicate
    predictions: tuple[Literal["two_class", "station_adjusted"], ...] = ("two_class",)
    influence_share: Share = 0.2  # single areas that make a larger share of a ratio's variance are named
    interval_percent: float = Field(95, gt=0, lt=100)
    seed: int = Field(20230612, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, content: Any) -> Any:
        """Fill in the values of the preset; the defaults are those of `recommended`."""
        published = isinstance(content, dict) and content.get("preset") == "published"
        return {**PRESETS["published"], **content} if published else content

    @property
    def of_preset(self) -> frozenset[str]:
        """Names of the settings that have the value of the preset."""
        return frozenset(name for name, value in PRESETS[self.preset].items() if getattr(self, name) == value)

    @property
    def preset_in_use(self) -> str:
        """Name of the preset, or `custom` if one of its values is changed."""
        return self.preset if self.of_preset == _OF_PRESETS else "custom"

    @field_validator("bootstrap", "predictions", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("bootstrap", "predictions")
    @classmethod
    def _none_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) != len(names):
            raise ValueError("expected at least one value, without duplicates")
        return names


class Sensitivity(Frozen):
    """Variants of the estimates, each with one change. An empty list omits a kind."""

    thresholds: tuple[Share, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)  # each with its own calibration
    best_f1: bool = True  # also the threshold with the best F1 on the validation set
    calibrations: tuple[Literal["logistic", "isotonic"], ...] = ("logistic", "isotonic")
    geographies: tuple[Literal["tract"], ...] = ("tract",)  # geographies instead of the study's areas
    minimum_images: tuple[Annotated[int, Field(ge=1)], ...] = (10, 100, 1000)  # areas with fewer images are excluded
    dates: tuple[Literal["halves", "months", "every-day"], ...] = ("halves", "months", "every-day")
    times: tuple[Literal["day", "night", "weekdays", "weekend"], ...] = ("day", "night", "weekdays", "weekend")
    even_hours: bool = True  # variant in which every hour of the day has the same weight within an area
    people_share: Share = 0.5  # variants whose areas hold a smaller share of the residents are not compared
    replicates: int = Field(200, ge=2)  # bootstrap over days
    ranked_images: int = Field(200, ge=1)  # neighborhoods with fewer images are not ranked

    @field_validator("thresholds", "calibrations", "geographies", "minimum_images", "dates", "times")
    @classmethod
    def _none_twice(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("expected distinct values")
        return values


class Settings(Frozen):
    """Content of study.yaml."""

    name: str = "patrolscope study"
    cache: str | None = None  # folder of fetched data sets; null: the user's cache folder
    simulated: str = ""  # note on simulated data, shown on every figure and in the report
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

    @model_validator(mode="before")
    @classmethod
    def _without_credentials(cls, content: Any) -> Any:
        if any(map(has_credentials, _texts(content))):
            raise ValueError(ADVICE)
        return content


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _texts(item)


def load_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Return the content of a study.yaml before validation; `where` names the file in errors.

    Raises
    ------
    SettingsError
        If the text is not YAML, or not a mapping, or has duplicate keys.
    """
    try:
        return read_yaml(text, where=where)
    except YamlFileError as error:
        raise SettingsError(str(error)) from error


def parse_settings(text: str, *, where: str) -> Settings:
    """Return the settings in the text of a study.yaml; `where` names the file in errors.

    Raises
    ------
    SettingsError
        If the text is not YAML, or has unknown or duplicate keys or invalid values. The message names all of them.
    """
    try:
        return Settings.model_validate(load_yaml(text, where=where))
    except ValidationError as error:
        raise SettingsError(f"{where}:\n{_faults(error)}") from error


def with_changes(settings: Settings, changes: dict[str, dict[str, Any]]) -> Settings:
    """Return settings with some values replaced, by section and name.

    Raises
    ------
    SettingsError
        If a value is invalid. The message names the values that are possible.
    """
    content = settings.model_dump(mode="json")
    for section, values in changes.items():
        if section == "estimate" and "preset" in values:
            # The new preset gives its own values.
            content[section] = {name: value for name, value in content[section].items() if name not in _OF_PRESETS}
        content[section] |= values
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"invalid settings:\n{_faults(error)}") from error


def dump_settings(settings: Settings) -> str:
    """Return the text of study.yaml with every setting, including defaults, but not those that the preset gives."""
    content = settings.model_dump(mode="json")
    given = settings.estimate.of_preset
    content["estimate"] = {name: value for name, value in content["estimate"].items() if name not in given}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])) or "(top level)"
        if fault["type"] == "extra_forbidden":
            names = ", ".join(_names(fault["loc"][:-1]))
            lines.append(f"  {key}: unknown setting; expected one of {names}; correct or remove it")
        else:
            # A section is not repeated: its message names the values that do not fit together.
            got = "" if isinstance(fault["input"], dict) else f"got {_short(fault['input'])}: "
            lines.append(f"  {key}: {got}{fault['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    """Quote a value for a message, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _names(section: tuple[int | str, ...]) -> list[str]:
    """Return the names of settings in a section."""
    model: Any = Settings
    for name in section:
        if not (isinstance(name, str) and name in model.model_fields):
            break
        types = (model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation))
        model = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, Frozen)), model)
    return list(model.model_fields)
