"""Tables of areas, tracts, and regions: sums and margins by hand, and facts about New York."""

import itertools

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from patrolscope.pipeline.contract.tables import AREAS, B03002_PUBLISHED, CENSUS, REGIONS, TRACTS
from patrolscope.pipeline.crs import SQFT_PER_SQMI
from patrolscope.pipeline.geography.catalog import load_catalog
from patrolscope.pipeline.geography.census import (
    ESTIMATES,
    MARGINS,
    build_census,
    build_regions,
    build_tracts,
    community_districts,
    with_places,
)
from patrolscope.pipeline.geography.layers import (
    BOUNDARIES_FILE,
    REGIONS_FILE,
    TRACTS_FILE,
    build_areas,
    read_area_tables,
)
from patrolscope.pipeline.geography.stages import plan_layers, process_layers
from patrolscope.pipeline.study.store import create_study
from tests.unit.test_layers import CODES, SQUARES

CRS = "EPSG:2263"


def areas(**columns) -> gpd.GeoDataFrame:
    """Three squares of an area each: `AREAS`."""
    known = {"area": CODES, "area_sqft": [1e6, 2e6, 3e6], "borough": "Manhattan", "zone": ["R", "R", None], **columns}
    frame = gpd.GeoDataFrame(known, geometry=SQUARES, crs="EPSG:4326")
    for column in AREAS:
        if column.name not in frame:
            frame[column.name] = 0.0 if column.kind == "float64" else pd.Series([None] * 3, dtype="str")
    return gpd.GeoDataFrame(AREAS.conform(frame))


def population(estimates: list[float], margins: list[float], codes=tuple(CODES)) -> pd.DataFrame:
    """Population with the same estimate and margin for all counts of an area."""
    cells = {name: estimates if name.endswith("e") else margins for name in B03002_PUBLISHED}
    return pd.DataFrame({"area": list(codes), "name": "Somewhere", **cells})


def census(frame: gpd.GeoDataFrame, **layers) -> pd.DataFrame:
    return build_census(frame, **dict.fromkeys(("population", "income", "attributes", "precincts")) | layers, crs=CRS)


def tracts(**columns) -> gpd.GeoDataFrame:
    known = {"tract": ["36061000200", "36061000100"], "neighborhood": ["B", "A"], "borough": "Manhattan", **columns}
    return gpd.GeoDataFrame(known, geometry=SQUARES[1::-1], crs="EPSG:4326")


# Areas.


def test_an_area_takes_its_row_of_every_table_whatever_their_order():
    people = population([1.0, 2.0], [3.0, 4.0], codes=(CODES[2], CODES[0]))
    income = pd.DataFrame({"area": [CODES[1]], "income_usd": [50_000.0], "income_margin_usd": [np.nan]})
    frame = census(areas(), population=people, income=income)
    assert list(frame) == CENSUS.names
    np.testing.assert_array_equal(frame["b03002_007e"], [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(frame["b03002_007m"], [4.0, np.nan, 3.0])
    np.testing.assert_array_equal(frame["income_usd"], [np.nan, 50_000.0, np.nan])
    assert frame["name"].isna().tolist() == [False, True, False]


def test_without_layers_everything_but_the_centroid_is_missing():
    frame = census(areas())
    centroids = gpd.GeoSeries(SQUARES, crs=4326).to_crs(CRS).centroid
    np.testing.assert_allclose(frame["centroid_x_ft"], centroids.x)
    np.testing.assert_allclose(frame["centroid_y_ft"], centroids.y)
    others = frame.drop(columns=["area", "centroid_x_ft", "centroid_y_ft"])
    assert others.isna().all(axis=None)


def test_an_area_lies_in_the_precinct_that_holds_its_centroid():
    # The first precinct ends a little beyond the middle of the second square.
    shapes = [shapely.box(-74.0, 40.7, -73.984, 40.71), shapely.box(-73.984, 40.7, -73.98, 40.71)]
    precincts = gpd.GeoDataFrame({"region": ["5", "13"]}, geometry=shapes, crs="EPSG:4326")
    found = census(areas(), precincts=precincts)["precinct"]
    assert found.tolist()[:2] == ["5", "5"]
    assert found.isna().tolist() == [False, False, True]


# Tracts.


def test_a_tract_file_comes_before_the_other_one_and_a_district_without_a_name_is_its_code():
    own = tracts(neighborhood_code=["own2", "own1"], community_district_code=["MN02", "MN01"])
    other = {"neighborhood_code": ["other"], "community_district": ["MN01 Tribeca"], "label": ["1"]}
    frame = with_places(own, pd.DataFrame({"tract": ["36061000100"], **other}))
    assert frame["neighborhood_code"].tolist() == ["own2", "own1"]
    assert frame["community_district"].tolist() == ["MN02", "MN01 Tribeca"]
    assert frame["label"].isna().tolist() == [True, False]
    assert frame["cdbg_eligibility"].isna().all()
    assert with_places(tracts(), None)["community_district"].isna().all()


def test_tracts_are_sorted_and_have_the_density_of_their_census_count():
    counts = pd.DataFrame({"tract": ["36061000100"], "persons": [1000.0], "percent_white": [12.5]})
    frame = build_tracts(with_places(tracts(shape_area_sqft=[7.0, np.nan]), None), counts, CRS)
    assert frame["tract"].tolist() == ["36061000100", "36061000200"]
    # 0.01 by 0.01 degree at 40.7 degrees north: about 845 by 1,110 meters.
    np.testing.assert_allclose(frame["area_sqft"], 845 * 1110 * 10.7639, rtol=0.01)
    np.testing.assert_allclose(frame["shape_length_ft"], 2 * (845 + 1110) * 3.28084, rtol=0.01)
    assert frame["shape_area_sqft"].tolist() == [frame["area_sqft"].iloc[0], 7.0]
    assert frame["density_per_sqmi"].iloc[0] == 1000 / (frame["area_sqft"].iloc[0] / SQFT_PER_SQMI)
    assert frame["percent_white"].iloc[0] == 12.5
    # Not in the table: missing, neither 0 nor guessed.
    assert frame[["persons", "percent_white", "density_per_sqmi"]].iloc[1].isna().all()


def test_a_study_without_tracts_has_an_empty_table_of_them():
    frame = build_tracts(None, None, CRS)
    assert list(frame) == TRACTS.names
    assert len(frame) == len(community_districts(frame)) == 0


def test_a_community_district_is_the_union_of_its_tracts():
    named = with_places(tracts(community_district=["MN01", "MN01"]), None)
    (district,) = community_districts(build_tracts(named, None, CRS)).itertuples()
    assert (district.geography, district.region) == ("community_district", "MN01")
    assert district.geometry.symmetric_difference(shapely.box(-74.0, 40.7, -73.98, 40.71)).area < 1e-15


def test_tracts_that_do_not_meet_exactly_make_a_district_without_holes():
    off = 3e-10  # degrees
    left = shapely.Polygon([(0, 0), (1, 0), (1, 0.5 + off), (1, 1), (0, 1)])
    right = shapely.Polygon([(1, 0), (2, 0), (2, 1), (1, 1), (1 + off, 0.3), (1, 0.2)])
    assert not shapely.coverage_is_valid([left, right])
    named = with_places(tracts(community_district="MN01").set_geometry([left, right], crs="EPSG:4326"), None)
    (district,) = community_districts(named).geometry
    assert district.is_valid
    assert district.geom_type == "Polygon"
    assert len(district.interiors) == 0
    assert district.area == pytest.approx(2, abs=1e-8)


# Regions.


def test_counts_add_up_and_margins_are_the_root_of_the_sum_of_squares():
    frame = areas(community_district=["MN01", "MN02", "MN01"])
    known = census(frame, population=population([10.0, 20.0, 30.0], [3.0, 12.0, 4.0]))
    regions = build_regions(
        frame,
        known,
        tracts(borough_code="1", community_district=None, neighborhood_code=None, community_district_code=None),
    ).set_index(["geography", "region"])
    borough = regions.loc["borough", "Manhattan"]
    assert (borough["code"], borough["areas"], borough["area_sqft"]) == ("1", 3, 6e6)
    assert set(borough[ESTIMATES]) == {60.0}
    assert set(borough[MARGINS]) == {13.0}  # 3, 12, 4
    assert borough["density_per_sqmi"] == pytest.approx(60 / (6e6 / 27_878_400))
    district = regions.loc["community_district", "MN01"]
    assert (district["areas"], district["b03002_021e"], district["b03002_021m"]) == (2, 40.0, 5.0)
    residential = regions.loc["zone", "R"]
    assert (residential["areas"], residential["b03002_001e"]) == (2, 30.0)
    assert set(regions.index.get_level_values("geography")) == {"borough", "community_district", "zone"}


def test_estimates_of_zero_add_their_largest_margin_once_and_a_missing_margin_makes_the_sums_missing():
    frame = areas(community_district=["MN01", "MN01", "MN02"])
    for estimates, margins, expected in (
        ([0.0, 0.0, 30.0], [12.0, 5.0, 9.0], 15.0),
        ([0.0, 10.0, 30.0], [0.0, 12.0, 9.0], 15.0),
        ([0.0, 10.0, 30.0], [12.0, np.nan, 9.0], np.nan),
        ([10.0, 0.0, 30.0], [12.0, np.nan, 9.0], np.nan),
    ):
        known = census(frame, population=population(estimates, margins))
        regions = build_regions(frame, known, with_places(tracts(), None)).set_index(["geography", "region"])
        found = regions.loc[("borough", "Manhattan"), MARGINS].to_numpy(dtype=float)
        np.testing.assert_array_equal(found, np.full(len(MARGINS), expected))


def test_an_area_without_counts_adds_nothing_and_a_place_of_such_areas_has_none():
    frame = areas(zone=["R", "R", "M"])
    known = census(frame, population=population([10.0], [3.0], codes=CODES[:1]))
    regions = build_regions(frame, known, with_places(tracts(), None)).set_index(["geography", "region"])
    residential, works = regions.loc["zone", "R"], regions.loc["zone", "M"]
    assert (residential["b03002_001e"], residential["b03002_001m"], residential["areas"]) == (10.0, 3.0, 2)
    assert works[[*ESTIMATES, *MARGINS, "density_per_sqmi"]].isna().all()


def test_a_name_of_two_places_has_no_code():
    shared = with_places(tracts(neighborhood="Park", neighborhood_code=["MN01", "MN02"]), None)
    frame = areas(neighborhood="Park")
    regions = build_regions(frame, census(frame), shared).set_index(["geography", "region"])
    assert pd.isna(regions.loc[("neighborhood", "Park"), "code"])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_regions_do_not_depend_on_the_order_of_areas(order):
    frame = areas(neighborhood=["A", "A", "B"])
    known = census(frame, population=population([3.0, 1e6, 7.0], [12.0, 345.0, 1.0]))
    shuffled = [table.iloc[list(order)].reset_index(drop=True) for table in (frame, known)]
    regions, again = (build_regions(*pair, with_places(tracts(), None)) for pair in ((frame, known), shuffled))
    pd.testing.assert_frame_equal(regions, again)


# The real city.


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    """New York after the stage of layers: its study."""
    from patrolscope.pipeline.study.config import Layers, Settings

    files = {
        "areas": "boundaries/nyc_block_groups_2020.parquet",
        "area_attributes": "census/tl_2020_36_bg20.dbf",
        "tracts": "boundaries/nyc_census_tracts_2020.parquet",
        "tract_places": "census/2020_Census_Tracts_to_2020_NTAs_and_CDTAs_Equivalency.csv",
        "tract_counts": "census/nyc_decennialcensusdata_2010_2020_change.xlsx",
        "neighborhoods": "boundaries/nynta2020_22c.zip",
        "boroughs": "boundaries/NYC-boroughs.zip",
        "precincts": "boundaries/nypd_precincts_2020.geojson.gz",
        "population": "census/nyc_cbgs_ethnicity_table.csv",
        "income": "census/ACSDT5Y2020.B19013-Data.csv",
        "zoning": "zoning/cbgs_zone_data.csv",
        "stations": "nypd/nypd_precinct_locs.csv",
    }
    layers = {
        name: {"entry": getattr(Layers(), name).entry, "path": str(shared_data / file)} for name, file in files.items()
    }
    settings = Settings.model_validate({"layers": layers | {"complaints": None}})
    study = create_study(tmp_path_factory.mktemp("real"), settings)
    (shard,) = plan_layers(study)
    process_layers(study, shard)
    return study


@pytest.mark.shared
def test_every_tract_of_new_york_has_its_places_and_its_census_count(real):
    frame = real.read(TRACTS_FILE, geometry=True)
    assert len(frame) == 2325
    assert frame["community_district"].nunique() == 71
    assert frame["neighborhood_code"].nunique() == 262
    assert frame["persons"].sum() == 8_804_190  # New York City in the census of 2020
    complete = frame[["label", "borough_code", "borough_tract", "persons", "community_district", "density_per_sqmi"]]
    assert complete.notna().all(axis=None)
    np.testing.assert_allclose(frame["area_sqft"], frame.to_crs(CRS).area)


@pytest.mark.shared
def test_regions_of_new_york_are_plain_sums_over_its_block_groups(real, shared_data):
    regions = real.read(REGIONS_FILE)
    assert list(regions) == REGIONS.names
    assert regions.groupby("geography").size().to_dict() == {
        "borough": 5,
        "community_district": 71,
        "neighborhood": 259,
        "precinct": 77,
        "zone": 3,
    }
    people = pd.read_csv(shared_data / "census" / "nyc_cbgs_ethnicity_table.csv")
    people.index = people["GEOID20"].str[-12:]
    frame = build_areas(real, read_area_tables(real)).set_index("area")
    names = dict(B03002_PUBLISHED)
    for geography in ("borough", "zone", "community_district"):
        for region, inside in frame.groupby(geography):
            mine = people.loc[inside.index]
            row = regions[(regions["geography"] == geography) & (regions["region"] == region)].iloc[0]
            assert row["areas"] == len(inside)
            for name, published in names.items():
                cells = mine[published].to_numpy(dtype=float)
                expected = cells.sum()
                if name.endswith("m"):
                    zero = mine[published.replace("MoE_", "Estimate_")].to_numpy(dtype=float) == 0
                    expected = np.sqrt((cells[~zero] ** 2).sum() + (cells[zero] ** 2).max(initial=0))
                assert row[name] == pytest.approx(expected, rel=1e-12)
    assert regions.loc[regions["geography"] == "zone", "region"].tolist() == ["C", "M", "R"]


@pytest.mark.shared
def test_boundaries_of_new_york_hold_every_geography_and_districts_cover_the_tracts(real):
    boundaries = real.read(BOUNDARIES_FILE, geometry=True)
    assert boundaries.is_valid.all()
    districts = boundaries[boundaries["geography"] == "community_district"].to_crs(CRS).set_index("region")
    tracts = real.read(TRACTS_FILE, geometry=True).to_crs(CRS)
    plain = tracts.dissolve("community_district")
    np.testing.assert_allclose(districts.area, plain.area.loc[districts.index], rtol=1e-9)
    assert shapely.coverage_is_valid(districts.geometry.to_numpy())


@pytest.mark.shared
def test_every_geography_has_the_codes_that_the_city_gives_it(real):
    regions = real.read(REGIONS_FILE)
    by_geography = dict(iter(regions.groupby("geography")))
    district = by_geography["community_district"]
    assert (district["region"].str[:4] == district["code"]).all()
    assert dict(by_geography["borough"][["region", "code"]].to_numpy()) == {
        name: code for code, name in load_catalog()["tracts_2020"].codes["borough"].items()
    }
    assert by_geography["neighborhood"]["code"].str.fullmatch("[A-Z]{2}[0-9]{4}").all()
