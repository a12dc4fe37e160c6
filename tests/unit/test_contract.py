import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.contract.columns import POINT_COLUMN, Column, Table
from patrolscope.pipeline.contract.tables import ANNOTATED, AREA_CLASS_COUNTS, AREAS, METADATA, TABLES, annotated_table
from patrolscope.pipeline.errors import ContractError
from patrolscope.pipeline.study.geoparquet import to_arrow, to_frame
from tests.strategies import frames

IMAGES = Table(
    "images",
    row="one image",
    key=("image_id",),
    columns=(
        Column("image_id", "string", "path of the image"),
        Column("score", "float64", "highest confidence", unit="1", low=0, high=1, nullable=True, published="conf"),
        Column("status", "string", "how it went", allowed=("scored", "missing")),
        Column("boxes", "int32", "number of boxes", low=0),
    ),
)


def images(**changes) -> pd.DataFrame:
    good = {"image_id": ["a", "b"], "score": [0.5, None], "status": ["scored", "missing"], "boxes": [1, 0]}
    return pd.DataFrame({**good, **changes})


# Conform.


def test_a_valid_frame_is_returned_in_the_declared_order_and_types():
    given_frame = images()[["boxes", "status", "score", "image_id"]].assign(note="left out")
    before = given_frame.copy()
    got = IMAGES.conform(given_frame)
    assert {name: str(dtype) for name, dtype in got.dtypes.items()} == {
        "image_id": "str",
        "score": "float64",
        "status": "str",
        "boxes": "int32",
    }
    pd.testing.assert_frame_equal(given_frame, before)


def test_conform_keeps_the_index():
    frame = images().set_axis([7, 9])
    assert IMAGES.conform(frame).index.tolist() == [7, 9]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_id": ["a", None]}, r"images\.image_id: 1 of 2 values are wrong, first .*a value in every row"),
        ({"score": [0.5, 1.5]}, r"images\.score: 1 of 2 values are wrong, first 1\.5; expected between 0 and 1 1"),
        ({"status": ["scored", "lost"]}, r"images\.status: .*'lost'; expected one of scored, missing"),
        ({"boxes": [1, -1]}, r"images\.boxes: .*-1; expected between 0 and inf"),
        ({"boxes": [1, 2.5]}, r"images\.boxes: float64 does not fit int32"),
        ({"boxes": [1, 2**40]}, r"images\.boxes: int64 does not fit int32"),
        ({"boxes": [1, None]}, r"images\.boxes: float64 does not fit int32"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_count_example_and_what_was_expected(changes, complaint):
    with pytest.raises(ContractError, match=complaint):
        IMAGES.conform(images(**changes))


def test_a_missing_column_is_refused_with_the_columns_that_are_there():
    with pytest.raises(ContractError, match="images needs score, boxes; the frame has image_id, status"):
        IMAGES.conform(images().drop(columns=["score", "boxes"]))


def test_two_rows_with_the_same_key_are_refused():
    with pytest.raises(ContractError, match=r"2 rows share the key image_id, first .*'a'"):
        IMAGES.check_key(images(image_id=["a", "a"]))
    IMAGES.check_key(images())


NEW_YORK = pd.Series(pd.to_datetime(["2020-10-05 12:00"])).dt.tz_localize("America/New_York")


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("bool", [0, 1], [False, True]),
        ("int8", [1.0, -2.0], [1, -2]),
        ("int8", [1.0, np.nan], [1, None]),
        ("bool", pd.Series([True, None], dtype=object), [True, None]),
        ("string", [36061, 36081], ["36061", "36081"]),
        ("float64", pd.Series([1, None], dtype="Int64"), [1.0, np.nan]),
        ("instant", NEW_YORK, [pd.Timestamp("2020-10-05 16:00", tz="UTC")]),
    ],
)
def test_a_cast_that_keeps_every_value_is_made(kind, values, expected):
    got = Column("x", kind, "any", nullable=True).cast(pd.Series(values), "table")
    pd.testing.assert_series_equal(got, pd.Series(expected, dtype=got.dtype))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bool", ["yes", "no"]),
        ("bool", [0, 2]),
        ("bool", pd.Series([True, None], dtype=object)),
        ("int8", [300]),
        ("int64", [1e19]),
        ("string", [36061.0]),
        ("float64", ["1.5"]),
        ("instant", [1_601_884_800_000]),
        ("instant", pd.to_datetime(["2020-10-05"])),
        ("instant", pd.to_datetime(["2020-10-05 12:00:00.000001"], utc=True)),
        ("wall_time", NEW_YORK),
    ],
)
def test_a_cast_that_would_change_a_value_is_refused(kind, values):
    with pytest.raises(ContractError, match=r"table\.x: .* does not fit"):
        Column("x", kind, "any", nullable=kind != "bool").cast(pd.Series(values), "table")


@settings(max_examples=50)
@given(frame=frames(METADATA, min_rows=1), column=st.sampled_from(METADATA.names), data=st.data())
def test_one_missing_value_anywhere_is_found(frame, column, data):
    row = data.draw(st.integers(0, len(frame) - 1))
    spoiled = frame.astype({column: object})
    spoiled.loc[row, column] = None
    with pytest.raises(ContractError, match=f"metadata.{column}"):
        METADATA.conform(spoiled)


# What comes from a declaration.


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_meta_schema_and_check_agree(table):
    empty = table.empty()
    assert list(empty) == table.names
    assert table.conform(empty).dtypes.tolist() == empty.dtypes.tolist()
    if table.point is not None:
        stored = [name for name in table.names if name not in table.point]
        assert [name for name in table.arrow_schema().names if name != POINT_COLUMN] == stored
        back = to_frame(to_arrow(table, empty, "EPSG:2263"), None)
        assert back.dtypes.to_dict() == empty.dtypes.to_dict()
    elif table.geometry is None:
        assert table.arrow_schema().names == table.names
        back = pa.Table.from_pandas(empty, schema=table.arrow_schema(), preserve_index=False).to_pandas()
        assert back.dtypes.tolist() == empty.dtypes.tolist()
    else:
        assert empty.geometry.name == table.geometry


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_has_a_meaning_and_every_measure_a_unit(table):
    for column in table:
        assert column.meaning
        if column.kind == "float64":
            assert column.unit, f"{table.name}.{column.name}"
        if column.name.endswith("_ft"):
            assert column.unit == "ft"


def test_the_schema_carries_units_meanings_and_published_names():
    field = IMAGES.arrow_schema().field("score")
    assert field.metadata == {b"meaning": b"highest confidence", b"unit": b"1", b"published_name": b"conf"}
    assert field.nullable
    assert not IMAGES.arrow_schema().field("boxes").nullable
    assert IMAGES.arrow_schema().metadata == {b"table": b"images", b"row": b"one image", b"key": b"image_id"}


def test_published_names_are_those_of_the_released_data():
    published = ANNOTATED.published_names()
    assert published["captured_local"] == "time_and_date_of_image"
    assert published["felony_3h_distance_ft"] == "distance_from_nearest_crime_3hr"
    assert published["station_distance_ft"] == "distance_from_nearest_police_station"
    assert len(set(published.values())) == len(published)


def test_the_felony_columns_follow_the_windows_of_the_study():
    names = annotated_table((2,)).names
    assert "felony_2h_distance_ft" in names
    assert not any(name.startswith(("felony_1h", "felony_3h", "felony_6h")) for name in names)


def test_the_fingerprint_changes_with_names_and_types_but_not_with_meanings():
    def of(**changes) -> str:
        column = {"name": "x", "kind": "int8", "meaning": "a number", "nullable": False, **changes}
        return Table("t", row="r", key=(), columns=(Column(**column),)).fingerprint()

    assert of(meaning="the same number") == of()
    assert len({of(), of(name="y"), of(kind="int16"), of(nullable=True)}) == 4


def test_a_declaration_that_contradicts_itself_is_refused():
    column = Column("x", "int8", "a number")
    with pytest.raises(ValueError, match="declares a column twice"):
        Table("t", row="r", key=(), columns=(column, column))
    with pytest.raises(ValueError, match=r"key or point columns \['y'\] are not declared"):
        Table("t", row="r", key=("y",), columns=(column,))


def test_a_table_with_a_geometry_conforms_to_a_geodataframe_with_its_crs():
    values = {column.name: [0.0] if column.kind == "float64" else ["R"] for column in AREAS}
    shape = gpd.GeoSeries([shapely.box(0, 0, 1, 1)], crs="EPSG:2263")
    got = AREAS.conform(gpd.GeoDataFrame({**values, "geometry": shape}, geometry="geometry"))
    assert got.crs == "EPSG:2263"
    assert list(got) == AREAS.names


def test_a_key_may_hold_a_missing_area():
    AREA_CLASS_COUNTS.check_key(pd.DataFrame({"area": [None, None, "a"], "positive": [True, False, True]}))
