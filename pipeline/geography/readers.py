"""Readers of the public data sets: one a format, which knows the file's quirks and refuses what it does not know.

A reader takes the file and its entry of data_catalog.yaml, which says what the columns are called there. Codes are
text in every frame. `read_felonies` alone needs settings of the study and stands apart.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS

from patrolscope.pipeline.contract.tables import B03002_PUBLISHED, CENSUS, FELONIES, PEOPLE_VARIABLES, STATIONS
from patrolscope.pipeline.errors import ContractError, SourceError
from patrolscope.pipeline.geography.catalog import CatalogEntry
from patrolscope.pipeline.study.ledger import Ledger

# Text that stands for an empty cell in exports of the city's portal (older and newer ones).
_NO_VALUE = ("", "NA", "(null)")
# Annotations in place of an estimate (table notes of the ACS): none, not applicable, too few sample cases.
_NO_ESTIMATE = ("", "-", "*", "**", "***", "*****", "N", "(X)", "null")
_INCOME = r"(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?[+-]?"
# Of source text at a time: bounds the memory of a reader of the 2 GB files.
_BLOCK_BYTES = 8 * 2**20
_FIRST_YEAR = 1900  # earlier ones in the police's files are slips of the pen


def read_layer(entry: CatalogEntry, path: Path, reader: str | None = None) -> pd.DataFrame:
    """Frame of a data set, as its reader makes it.

    Parameters
    ----------
    reader : name of another reader than the entry's own: "read_areas" takes tracts as the areas of a study

    Raises
    ------
    SourceError : the file is not in the form that the reader expects; names the file and what is wrong
    """
    name = reader or entry.reader
    if name not in READERS:
        raise SourceError(f"{entry.title}: {name!r} reads no layer; there are {', '.join(READERS)}")
    return READERS[name](path, entry)


# Boundaries. The CRS is the file's own.

# What a file of tracts can say of them beside code and names; measures are numbers, the others text.
_MEASURES = ("shape_length_ft", "shape_area_sqft")
TRACT_DETAILS = (
    "label",
    "tract_in_borough",
    "borough_tract",
    "borough_code",
    "neighborhood_code",
    "community_district_code",
    "community_district",
    "cdbg_eligibility",
    *_MEASURES,
)


def read_areas(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Areas of the finest level: area (code), geometry. Tracts serve, too. Areas that are all water are kept."""
    own = "area" if "area" in entry.columns else "tract"
    return _boundaries(path, entry, {"area": own}, key="area")


def read_tracts(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Tracts: tract (code), neighborhood and borough (names), geometry; of `TRACT_DETAILS` what the file has."""
    names = {name: name for name in ("tract", "neighborhood", "borough")}
    return _boundaries(path, entry, names, key="tract", may_have=TRACT_DETAILS)


def read_tract_places(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Which places a tract lies in: tract (code), and of `TRACT_DETAILS` what the file has."""
    table = _text_table(path, {"tract": entry.columns["tract"]}, _details(entry, TRACT_DETAILS))
    _refuse_twice(table["tract"], path)
    for name in table.columns.intersection([*_MEASURES]):
        table[name] = _numbers(table[name], path, name, may_lack=True)
    return table.mask(table == "").reset_index(drop=True)


def read_places(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Neighborhoods, boroughs or precincts: place (name or number), geometry."""
    return _boundaries(path, entry, {"place": "place"}, key="place")


def read_districts(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Zoning districts: place (such as R6B), geometry; a kind of district has many polygons."""
    return _boundaries(path, entry, {"place": "place"}, key=None)


def _boundaries(
    path: Path, entry: CatalogEntry, names: dict[str, str], *, key: str | None, may_have: tuple[str, ...] = ()
) -> gpd.GeoDataFrame:
    """Polygons with columns `names` (ours -> the entry's); attrs["repaired"] counts those that were not valid.

    Columns `may_have` (ours, and the entry's) are there when the file has them; their empty cells are missing.
    """
    raw = _polygons(path, entry)
    if not isinstance(raw, gpd.GeoDataFrame):
        raise SourceError(f"{path} holds a table without polygons; expected {entry.format}")
    columns = {}
    for ours, role in names.items():
        values = _text(raw[_name_in_file(path, entry.columns[role], raw.columns)], path)
        columns[ours] = _decoded(values, entry.codes.get(role, {}), path)
    for ours, accepted in _details(entry, may_have).items():
        if (name := _first_there(accepted, raw.columns)) is not None:
            columns[ours] = _detail(raw[name], path, number=ours in _MEASURES)
    shapes, repaired = _valid(raw.geometry)
    frame = gpd.GeoDataFrame(columns, geometry=shapes, crs=_crs(raw, path, entry))
    frame = _selected(frame, entry, names)
    if key is not None:
        _refuse_twice(frame[key], path)
    bare = ~frame.geom_type.isin(["Polygon", "MultiPolygon"]) | frame.geometry.is_empty
    if bare.any():
        raise SourceError(f"{path}: {int(bare.sum())} rows without a polygon, first {frame[bare].iloc[0, 0]!r}")
    frame = frame.reset_index(drop=True)
    frame.attrs["repaired"] = repaired
    return frame


def _details(entry: CatalogEntry, may_have: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {name: entry.columns[name] for name in may_have if name in entry.columns}


def _detail(values: pd.Series[Any], path: Path, *, number: bool) -> pd.Series[Any]:
    """A column that can lack values: codes and names as text, measures as numbers."""
    known = values.notna() & (values.astype("str").str.strip() != "")
    if not known.any():
        return pd.Series(np.nan, index=values.index, dtype="float64" if number else "str")
    if not number:
        return _text(values[known], path).reindex(values.index)
    numbers = pd.to_numeric(values.where(known), errors="coerce").astype("float64")
    bad = known & ~numbers.between(0, np.inf, inclusive="left")
    if bad.any():
        raise SourceError(f"{path}: {values.name} holds {values[bad].iloc[0]!r}; expected a number, at least 0")
    return numbers


def _polygons(path: Path, entry: CatalogEntry) -> gpd.GeoDataFrame:
    """Content of a boundary file of any format that occurs."""
    try:
        if path.suffix == ".parquet":
            return gpd.read_parquet(path)
        if path.suffix == ".zip":
            return gpd.read_file(f"/vsizip/{path}/{_member(path, entry.member)}")
        if path.suffix == ".gz":
            return gpd.read_file(f"/vsigzip/{path}")
        return gpd.read_file(path)
    except (DataSourceError, DataLayerError, zipfile.BadZipFile, pa.ArrowException, ValueError) as error:
        raise SourceError(f"{path} is no boundary file ({error}); expected {entry.format}") from error


def _member(path: Path, pattern: str) -> str:
    # The official archives keep the shapefile in a folder, where GDAL does not find it by itself.
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if fnmatchcase(name, pattern) and not name.startswith("__MACOSX")]
    if len(found) != 1:
        raise SourceError(f"{path} holds {', '.join(found) or 'no file'} of the form {pattern}; expected exactly one")
    return found[0]


def _crs(raw: gpd.GeoDataFrame, path: Path, entry: CatalogEntry) -> CRS:
    """Coordinate system of the file; the entry's where the file has none, or degrees without a code.

    The portal's exports of borough boundaries are in degrees of "WGS84(DD)", which no register knows.
    """
    if raw.crs is None or (raw.crs.to_epsg() is None and raw.crs.is_geographic):
        if entry.crs is None:
            raise SourceError(f"{path} does not say its coordinate system: give it as crs in data_catalog.yaml")
        crs = CRS.from_user_input(entry.crs)
        if crs.is_geographic and not _are_degrees(raw.total_bounds):
            raise SourceError(f"{path} does not say its coordinate system, and {entry.crs} does not fit its numbers")
        return crs
    return raw.crs


def _are_degrees(bounds: np.ndarray) -> bool:
    west, south, east, north = bounds
    return bool(west >= -180 and south >= -90 and east <= 180 and north <= 90)


def _valid(shapes: gpd.GeoSeries) -> tuple[np.ndarray, int]:
    """Polygons with invalid ones repaired, and how many those were."""
    values = shapes.to_numpy().copy()
    broken = ~shapely.is_valid(values) & ~shapely.is_missing(values)
    values[broken] = shapely.make_valid(values[broken], method="structure", keep_collapsed=False)
    return values, int(broken.sum())


# Tables.


def read_population(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """People of each area by origin and race: area (code), b03002_001e, b03002_001m, ...; name where the file has it.

    Reads table B03002 as data.census.gov gives it, and with the names that the study's authors gave its columns. The
    estimates of `PEOPLE_VARIABLES` must be there, under the entry's names or those; others are taken where they are.
    A margin is missing where the bureau gives an annotation instead.
    """
    names = {name: (name.upper(), published) for name, published in B03002_PUBLISHED.items()}
    needed = {"area": entry.columns["area"]}
    for role, name in PEOPLE_VARIABLES.items():
        needed[name] = tuple(dict.fromkeys((*entry.columns.get(role, ()), *names.pop(name))))
    table = _census_table(path, entry, needed, names | _details(entry, ("name",)))
    columns = {
        name: _numbers(_without_annotations(table[name]), path, name, may_lack=True)
        if name.endswith("m")
        else _numbers(table[name], path, name)
        for name in B03002_PUBLISHED
        if name in table
    }
    return pd.DataFrame({**table[table.columns.intersection(["area", "name"])], **columns}).reset_index(drop=True)


def _without_annotations(cells: pd.Series[str]) -> pd.Series[str]:
    text = cells.str.strip()
    return text.mask(text.isin(_NO_ESTIMATE), "")


def read_income(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Median household income: area (code), income_usd, income_margin_usd; missing where there is no estimate.

    The margin is there when the file has it; it is missing, too, where the income lies at an end of the scale.
    """
    needed = {name: entry.columns[name] for name in ("area", "income_usd")}
    table = _census_table(path, entry, needed, _details(entry, ("income_margin_usd",)))
    columns = {name: parse_income(table[name], path) for name in table if name != "area"}
    return pd.DataFrame({"area": table["area"], **columns}).reset_index(drop=True)


def read_area_attributes(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """What the Census Bureau's boundary file says of an area: area (code), and the entry's columns that `CENSUS` has.

    Reads the table beside the shapes (.dbf), alone or in its archive; land and water in square meters.
    """
    where = str(path) if path.suffix == ".dbf" else f"/vsizip/{path}/{_member(path, entry.member)}"
    try:
        raw = pyogrio.read_dataframe(where, read_geometry=False)
    except (DataSourceError, DataLayerError) as error:
        raise SourceError(f"{path} is no table of attributes ({error}); expected {entry.format}") from error
    columns = {
        ours: _text(raw[_name_in_file(path, accepted, raw.columns)], path) for ours, accepted in entry.columns.items()
    }
    table = _selected(pd.DataFrame(columns), entry, {"area": "area"})
    _refuse_twice(table["area"], path)
    for name in table:
        if CENSUS[str(name)].kind == "float64":
            table[name] = _numbers(table[name], path, str(name), low=-180)
    return table.reset_index(drop=True)


def parse_income(cells: pd.Series[str], path: Path) -> pd.Series[float]:
    """US dollars of the Census Bureau's income cells; the ends of the scale, `2,500-` and `250,000+`, are taken as is.

    Raises
    ------
    SourceError : a cell that is neither a number nor one of the bureau's annotations; names file and line
    """
    text = cells.str.strip()
    missing = text.isin(_NO_ESTIMATE)
    _refuse_cells(cells, ~missing & ~text.str.fullmatch(_INCOME), path, "a median income, such as 66,250 or 250,000+")
    amount = text.mask(missing).str.replace(",", "").str.rstrip("+-")
    return amount.astype("float64")


def read_zoning(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Share of each area in each kind of district: area (code), share_r, share_c, share_m (0 to about 1.05).

    Empty shares are missing.
    """
    names = ("share_r", "share_c", "share_m")
    table = _census_table(path, entry, {name: entry.columns[name] for name in ("area", *names)})
    shares = {name: _numbers(table[name], path, name, may_lack=True) for name in names}
    return pd.DataFrame({"area": table["area"], **shares}).reset_index(drop=True)


def read_stations(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Police stations: `STATIONS`. Numbered in the order of the file from 0, unless the entry names a column."""
    names = {name: columns for name, columns in entry.columns.items() if name in STATIONS.names}
    table = _text_table(path, names)
    frame = pd.DataFrame({name: _numbers(table[name], path, name, low=-180) for name in names}).reset_index(drop=True)
    if "station_id" not in names:
        frame["station_id"] = np.arange(len(frame))
    try:
        frame = STATIONS.conform(frame)
        STATIONS.check_key(frame)
    except ContractError as error:
        raise SourceError(f"{path}: {error}") from error
    return frame


def read_levels(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """Published levels: neighborhood (name), level (mean calibrated probability of police in an image, 0 to 1)."""
    table = _text_table(path, {name: entry.columns[name] for name in ("neighborhood", "level")})
    _refuse_twice(table["neighborhood"], path)
    level = _numbers(table["level"], path, "level")
    return pd.DataFrame({"neighborhood": table["neighborhood"], "level": level}).reset_index(drop=True)


def read_tract_counts(path: Path, entry: CatalogEntry) -> pd.DataFrame:
    """People of each tract in the 2020 census: tract (code), persons, persons_white, ... as the entry names them.

    Columns percent_... are shares as published, whose cells may be empty.
    """
    try:
        # The first sheet explains; three lines of titles stand above the names.
        raw = pd.read_excel(path, sheet_name=1, header=3, dtype="str", keep_default_na=False)
    except (ValueError, IndexError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is not {entry.format}: {error}") from error
    table = pd.DataFrame(
        {ours: raw[_name_in_file(path, names, raw.columns)] for ours, names in entry.columns.items()}
    ).set_axis(raw.index + 5)
    table = table[table["level"] == "CT2020"]
    _refuse_twice(table["tract"], path)
    groups = [name for name in entry.columns if name not in ("level", "tract")]
    counts = {name: _numbers(table[name], path, name, may_lack=name.startswith("percent_")) for name in groups}
    return pd.DataFrame({"tract": table["tract"], **counts}).reset_index(drop=True)


def _census_table(
    path: Path,
    entry: CatalogEntry,
    names: Mapping[str, tuple[str, ...]],
    may_have: Mapping[str, tuple[str, ...]] | None = None,
) -> pd.DataFrame:
    """Text of the columns of the entry's areas; codes without the `1500000US` that names their level."""
    table = _text_table(path, names, may_have)
    # Downloads of data.census.gov have a second line of headings, in words.
    table = table[table["area"] != "Geography"]
    table["area"] = table["area"].str.replace(r"^\d{7}US", "", regex=True)
    table = _selected(table, entry, {"area": "area"})
    _refuse_twice(table["area"], path)
    return table


def _text_table(
    path: Path, names: Mapping[str, tuple[str, ...]], may_have: Mapping[str, tuple[str, ...]] | None = None
) -> pd.DataFrame:
    """Columns of a small CSV file as text, under our names; the index is the line in the file, the header is 1.

    Columns `names` must be there, columns `may_have` are taken where they are.
    """
    try:
        # index_col=False: a comma at the end of every line does not shift the columns.
        raw = pd.read_csv(path, dtype="str", keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error
    columns = {ours: raw[_name_in_file(path, accepted, raw.columns)] for ours, accepted in names.items()}
    for ours, accepted in (may_have or {}).items():
        if (name := _first_there(accepted, raw.columns)) is not None:
            columns[ours] = raw[name]
    return pd.DataFrame(columns).set_axis(raw.index + 2)


# Incidents of the police, in files of gigabytes.

_COMPLAINTS = {
    "felony_id": "CMPLNT_NUM",
    "date": "CMPLNT_FR_DT",
    "time": "CMPLNT_FR_TM",
    "category": "LAW_CAT_CD",
    "offense": "OFNS_DESC",
    "lat": "Latitude",
    "lng": "Longitude",
}


def read_felonies(path: Path, *, category: str, time_zone: str) -> tuple[pd.DataFrame, Ledger]:
    """Complaints of one category with a known start and place (`FELONIES`), and where the others went.

    Sorted by start, then by complaint number as a number. Streams: memory grows with what is kept, not with the file.

    Parameters
    ----------
    path : NYPD Complaint Data, CSV of 24 or 35 columns, plain or gzip
    category : value of LAW_CAT_CD, such as FELONY
    time_zone : of the clock times in the file (IANA name)

    Local time in the hour that occurs twice is the first pass; a time that does not exist becomes the first that does.

    Raises
    ------
    SourceError : the file lacks a column, or is not CSV
    """
    ledger = Ledger("felonies", 0)
    parts = [
        _felonies(rows, ledger, category=category, time_zone=time_zone)
        for rows in _text_batches(path, _COMPLAINTS, ledger)
    ]
    felonies = pd.concat([FELONIES.empty(), *parts], ignore_index=True)
    repeated = int(felonies["felony_id"].duplicated().sum())
    if repeated:
        ledger.note("complaint number stands in an earlier row, too", repeated)
    number = pd.to_numeric(felonies["felony_id"].str.extract(r"^([0-9]{1,15})", expand=False))
    felonies = felonies.assign(_number=number).sort_values(
        ["started_at_utc", "_number", "felony_id"], ignore_index=True, kind="stable"
    )
    return FELONIES.conform(felonies), ledger


def _felonies(rows: pa.Table, ledger: Ledger, *, category: str, time_zone: str) -> pd.DataFrame:
    wanted = rows.filter(pc.equal(rows["category"], category))
    ledger.drop(len(rows) - len(wanted), why=f"category is not {category}")
    frame = wanted.to_pandas()
    frame = ledger.keep(frame, frame["felony_id"] != "", why="no complaint number")
    frame = _with_position(frame, ledger)
    frame["started_at_utc"] = _start(frame["date"], frame["time"], time_zone)
    frame = ledger.keep(frame, frame["started_at_utc"].notna(), why="start can not be read")
    frame["offense"] = frame["offense"].mask(frame["offense"].isin(_NO_VALUE))
    return FELONIES.conform(frame)


def _text_batches(path: Path, names: dict[str, str], ledger: Ledger) -> Iterator[pa.Table]:
    """Pieces of a large CSV file under our names, all text without blanks around it.

    Every row is counted in the ledger; those with too few or too many cells (a truncated last line) are dropped.
    """
    _check_header(path, names)
    ragged: list[int] = []

    def drop(row: Any) -> str:
        ragged.append(row.actual_columns)  # only noted: this runs on threads of Arrow's parser
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(names.values()),
        column_types=dict.fromkeys(names.values(), pa.string()),
        strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=drop)
    read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        with (
            pa.input_stream(str(path)) as stream,
            pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                ledger.rows_in += len(batch)
                cells = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                yield pa.table(cells, names=list(names))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is not a CSV file in UTF-8: {error}") from error
    ledger.rows_in += len(ragged)
    ledger.drop(len(ragged), why="wrong number of cells")


def _check_header(path: Path, names: dict[str, str]) -> None:
    """Refuse a file whose header lacks a column: before gigabytes of it are read."""
    try:
        with pa.input_stream(str(path)) as stream:
            first = stream.read(2**16).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise SourceError(f"{path} can not be read: {error}") from error
    header = next(csv.reader(first.splitlines()), [])
    for column in names.values():
        _name_in_file(path, (column,), pd.Index(header))


def _with_position(frame: pd.DataFrame, ledger: Ledger) -> pd.DataFrame:
    """Rows with a position on earth; (0, 0) stands for an unknown one."""
    lat, lng = (pd.to_numeric(frame[name], errors="coerce").astype("float64") for name in ("lat", "lng"))
    known = lat.between(-90, 90) & lng.between(-180, 180) & ~((lat == 0) & (lng == 0))
    return ledger.keep(frame.assign(lat=lat, lng=lng), known, why="no position")


def _start(date: pd.Series[str], time: pd.Series[str], time_zone: str) -> pd.Series[pd.Timestamp]:
    local = _parsed(date + " " + time, "%m/%d/%Y %H:%M:%S")
    daylight = np.ones(len(local), dtype=bool)  # the first pass of the hour that occurs twice
    instants = local.dt.tz_localize(time_zone, ambiguous=daylight, nonexistent="shift_forward")
    return instants.dt.tz_convert("UTC").dt.as_unit("ms")


def _parsed(text: pd.Series[str], form: str) -> pd.Series[pd.Timestamp]:
    """Times in a form; missing where they can not be read, as 24:00:00, or lie before 1900."""
    times = pd.to_datetime(text, format=form, errors="coerce").astype("datetime64[ms]")
    return times.where(times.dt.year >= _FIRST_YEAR)


# What the readers share.


def _first_there(accepted: tuple[str, ...], there: pd.Index[str]) -> str | None:
    return next((name for name in accepted if name in there), None)


def _name_in_file(path: Path, accepted: tuple[str, ...], there: pd.Index[str]) -> str:
    """The first accepted name that a file has."""
    name = _first_there(accepted, there)
    if name is not None:
        return name
    raise SourceError(f"{path} has no column {' or '.join(accepted)}; it has {', '.join(map(str, there)) or 'none'}")


def _text(values: pd.Series[Any], path: Path) -> pd.Series[str]:
    """Codes and names as text; whole numbers without a point (a shapefile keeps 5 as 5.0)."""
    if values.isna().any():
        raise SourceError(f"{path}: {int(values.isna().sum())} rows have no {values.name}; every row needs one")
    if pd.api.types.is_numeric_dtype(values):
        whole = values.astype("int64")
        if (whole != values).any():
            raise SourceError(f"{path}: {values.name} holds {values[whole != values].iloc[0]}, which is no code")
        values = whole
    return values.astype("str").str.strip()


def _decoded(values: pd.Series[str], codes: dict[str, str], path: Path) -> pd.Series[str]:
    if not codes:
        return values
    unknown = ~values.isin(codes)
    if unknown.any():
        raise SourceError(f"{path}: {values.name} is {values[unknown].iloc[0]!r}; expected one of {', '.join(codes)}")
    return values.map(codes).astype("str")


def _selected(frame: Any, entry: CatalogEntry, names: dict[str, str]) -> Any:
    """Rows that the entry selects; `names` says which of its columns each of ours is."""
    for ours, role in names.items():
        if begins := entry.select.get(role):
            frame = frame[frame[ours].str.startswith(begins)]
    return frame


def _refuse_twice(keys: pd.Series[str], path: Path) -> None:
    if len(keys) == 0:
        raise SourceError(f"{path} holds no row of the city: is it the right file?")
    twice = keys.duplicated()
    if twice.any():
        raise SourceError(f"{path}: the {keys.name} {keys[twice].iloc[0]!r} stands in several rows; expected in one")


def _refuse_cells(cells: pd.Series[str], bad: pd.Series[bool], path: Path, expected: str) -> None:
    if bad.any():
        line, cell = next(cells[bad].items())
        raise SourceError(f"{path}, line {line}: {cell!r} is not {expected} ({int(bad.sum())} such cells)")


def _numbers(
    cells: pd.Series[str], path: Path, name: str, *, may_lack: bool = False, low: float = 0
) -> pd.Series[float]:
    """Numbers of a column; a cell that is none, or lies below `low`, is refused with its line."""
    numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    bad = ~numbers.between(low, np.inf, inclusive="left")
    if may_lack:
        bad &= cells != ""
    _refuse_cells(cells, bad, path, f"a number for {name}, at least {low:g}")
    return numbers


READERS: dict[str, Callable[[Path, CatalogEntry], pd.DataFrame]] = {
    reader.__name__: reader
    for reader in (
        read_areas,
        read_tracts,
        read_tract_places,
        read_places,
        read_districts,
        read_population,
        read_income,
        read_area_attributes,
        read_zoning,
        read_stations,
        read_levels,
        read_tract_counts,
    )
}
