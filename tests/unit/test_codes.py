"""Codes that lost their leading zeros, and areas without residents."""

import json

import geopandas as gpd
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.pipeline.contract.tables import PEOPLE_VARIABLES
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import load_catalog
from patrolscope.pipeline.geography.codes import check_population, respell, respell_tables
from patrolscope.pipeline.geography.layers import AREAS_FILE, CENSUS_FILE
from patrolscope.pipeline.geography.readers.columns import select_rows
from patrolscope.pipeline.geography.stages import LAYERS
from patrolscope.pipeline.study.config import Layers, Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import create_study

FULL = ["060371000001", "060371000002", "360610001001"]
BARE = ["60371000001", "60371000002", "360610001001"]


def text(*codes: str) -> pd.Series:
    return pd.Series(codes, dtype="str", name="area")


def people(codes: list[str], persons: list[float] | float = 100.0) -> pd.DataFrame:
    return pd.DataFrame({"area": text(*codes)} | dict.fromkeys(PEOPLE_VARIABLES.values(), persons))


@pytest.mark.parametrize(
    ("codes", "spellings", "expected"),
    [
        (BARE, FULL, FULL),
        (FULL, BARE, BARE),
        (FULL, FULL, FULL),
        (["1", "2"], ["01", "3"], ["01", "2"]),
        (["1", "2"], ["01", "001", "2"], ["1", "2"]),  # 1 has two spellings
        (["1", "01"], ["001"], ["1", "01"]),  # two would become the same
        (["A1", "1A", ""], ["0A1", "01A", "0"], ["A1", "1A", ""]),
        (["0", "00"], ["0", "00"], ["0", "00"]),
    ],
)
def test_codes_are_spelled_as_in_the_other_file_where_only_zeros_differ(codes, spellings, expected):
    assert respell(text(*codes), spellings).tolist() == expected


@given(st.lists(st.text("01A", max_size=4), unique=True), st.lists(st.text("01A", max_size=4)))
def test_spelling_keeps_the_number_of_every_code_and_makes_no_two_the_same(codes, spellings):
    found = respell(text(*codes), spellings)
    assert [code.lstrip("0") for code in found] == [code.lstrip("0") for code in codes]
    assert not found.duplicated().any()


def test_areas_get_the_zeros_of_any_table_and_all_tables_the_codes_of_the_areas():
    zoning = gpd.GeoDataFrame({"district": ["R1"]}, geometry=[shapely.box(0, 0, 1, 1)])
    codes, tables, changed = respell_tables(text(*BARE), [people(BARE), None, zoning, people(FULL)])
    assert changed == 4
    assert codes.tolist() == FULL
    assert tables[0]["area"].tolist() == tables[3]["area"].tolist() == FULL
    assert tables[1] is None
    assert tables[2] is zoning


def test_areas_without_residents_are_counted_up_to_a_share():
    ledger = Ledger("layers", 0)
    codes = text(*[f"{number:03}" for number in range(200)])
    population = people(codes.tolist()[:199], persons=[float("nan"), *[1.0] * 198])
    check_population(codes, population, 0.01, ledger)
    assert ledger.notes == {"areas without residents in layers.population, such as 000: count as empty": 2}
    with pytest.raises(SourceError, match=r"no residents of 2 of 200 areas, such as '000'; .* at most 0\.5%"):
        check_population(codes, population, 0.005, ledger)


def test_a_study_without_a_population_is_not_counted():
    ledger = Ledger("layers", 0)
    check_population(text("1"), None, 0, ledger)
    assert ledger.notes == {}


def los_angeles(folder, codes: list, people_codes: list[str], **estimate) -> list:
    """The records of the layers of a study whose areas are squares with the given codes."""
    shapes = [shapely.box(-118.3 + n / 100, 34.0, -118.29 + n / 100, 34.01) for n in range(len(codes))]
    features = [
        {"type": "Feature", "properties": {"code": code}, "geometry": shape.__geo_interface__}
        for code, shape in zip(codes, shapes, strict=True)
    ]
    (folder / "areas.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    rows = [f"1500000US{code},1000,400,100,100,100" for code in people_codes]
    (folder / "people.csv").write_text("\n".join(["code,all,white,black,asian,hispanic", *rows, ""]))
    about = {
        "agency": "x",
        "address": "https://example.org/x",
        "downloadable": False,
        "how": "x",
        "license": "x",
        "vintage": "2020",
        "files": [{"name": "x"}],
        "used_by": ["layers"],
        "title": "x",
        "format": "x",
        "crs": None,
    }
    groups = {f"persons_{group}": group for group in ("white", "black", "asian", "hispanic")}
    catalog = {
        "my_areas": {**about, "columns": {"area": "code"}, "reader": "read_areas"},
        "my_people": {**about, "columns": {"area": "code", "persons": "all"} | groups, "reader": "read_population"},
    }
    (folder / "data_catalog.yaml").write_text(json.dumps(catalog))
    layers = dict.fromkeys(Layers.model_fields) | {
        "areas": {"entry": "my_areas", "path": "areas.geojson"},
        "population": {"entry": "my_people", "path": "people.csv"},
    }
    city = {"time_zone": "America/Los_Angeles", "crs": "EPSG:2229"}
    city["bounds"] = {"west": -118.4, "south": 33.9, "east": -118.1, "north": 34.2}
    study = create_study(
        folder, Settings.model_validate({"name": "LA", "city": city, "layers": layers, "estimate": estimate})
    )
    (shard,) = LAYERS.plan(study)
    return [study, LAYERS.finish(study, shard)]


def test_codes_that_a_geojson_keeps_as_numbers_get_their_zeros_back(tmp_path):
    codes = ["060371000001", "060371001001", "060371002001"]
    study, record = los_angeles(tmp_path, [int(code) for code in codes], codes)
    areas = study.read(AREAS_FILE)
    assert areas["area"].tolist() == study.read(CENSUS_FILE)["area"].tolist() == codes
    assert areas["persons"].tolist() == [1000, 1000, 1000]
    note = "codes of areas whose leading zeros differ between the layers: taken as the same"
    assert record.ledger[0]["notes"] == {note: 3}


def test_a_selection_by_prefix_finds_codes_that_lost_its_zero():
    entry = load_catalog()["acs_2020_b03002"].model_copy(update={"select": {"area": ("06037", "36061")}})
    codes = ["60371000001", "060371000002", "360610001001", "60590000001", "6037", "160371000001"]
    found = select_rows(pd.DataFrame({"area": text(*codes)}), entry, {"area": "area"})
    assert found["area"].tolist() == ["060371000001", "060371000002", "360610001001"]


def test_codes_that_have_nothing_in_common_are_refused_with_one_of_each(tmp_path):
    with pytest.raises(SourceError, match="3 of 3 areas, such as '1'; its first code is '060371000001'"):
        los_angeles(tmp_path, [1, 2, 3], ["060371000001"])


def test_missing_rows_of_the_population_can_be_allowed(tmp_path):
    study, record = los_angeles(tmp_path, ["1", "2", "3"], ["1", "2"], missing_population=0.5)
    assert study.read(AREAS_FILE)["persons"].tolist() == [1000, 1000, 0]
    assert record.ledger[0]["notes"] == {"areas without residents in layers.population, such as 3: count as empty": 1}
