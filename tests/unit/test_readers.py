"""Readers of the public data sets, with the real files, and with small invented ones for errors."""

import gzip
import tempfile
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, Polygon, box

from patrolscope.pipeline.contract.tables import (
    B03002_PUBLISHED,
    FELONIES,
    PEOPLE_PUBLISHED,
    PEOPLE_VARIABLES,
    STATIONS,
)
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography import readers
from patrolscope.pipeline.geography.catalog import load_catalog, parse_catalog
from patrolscope.pipeline.geography.download import fetch
from patrolscope.pipeline.geography.readers import police
from patrolscope.pipeline.geography.readers.census import NO_ESTIMATE, parse_income
from patrolscope.pipeline.geography.readers.police import read_felonies
from patrolscope.pipeline.study.ledger import Ledger

ENTRIES = load_catalog()
NYPD = ENTRIES["nypd_complaints_historic"]
HERE = Path("incomes.csv")


def read(name, path, **changes):
    return readers.read_layer(ENTRIES[name].model_copy(update=changes), path)


def written(path, text):
    path.write_bytes(text.encode())
    return path


def shapefile_zip(path, frame, inside):
    """A zipped shapefile as agencies pack it."""
    folder = path.parent / "unpacked"
    folder.mkdir()
    # Where the frame has no coordinate system, neither has the archive.
    (frame if frame.crs else frame.set_crs(4326)).to_file(folder / Path(inside).name)
    if frame.crs is None:
        (folder / Path(inside).with_suffix(".prj").name).unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for part in sorted(folder.iterdir()):
            archive.write(part, f"{Path(inside).parent}/{part.name}")
    return path


def squares(count, crs, **columns):
    return gpd.GeoDataFrame(columns, geometry=[box(i, 0, i + 1, 1) for i in range(count)], crs=crs)


# The real files.


@pytest.mark.shared
def test_block_groups_clipped_to_the_shoreline(shared_data):
    frame = read("block_groups_2020", shared_data / "boundaries" / "nyc_block_groups_2020.parquet")
    assert list(frame.columns) == ["area", "geometry"]
    assert len(frame) == 6670
    assert frame["area"].dtype == "str"
    assert frame["area"].str.fullmatch("[0-9]{12}").all()
    assert frame.crs.to_epsg() == 4326
    assert frame.attrs["repaired"] == 0


@pytest.mark.shared
def test_tracts_carry_the_names_of_neighborhood_and_borough(shared_data):
    frame = read("tracts_2020", shared_data / "boundaries" / "nyc_census_tracts_2020.parquet")
    details = ["label", "tract_in_borough", "borough_tract", "borough_code"]
    codes = ["neighborhood_code", "community_district_code"]
    assert list(frame.columns) == ["tract", "neighborhood", "borough", *details, *codes, "geometry"]
    assert len(frame) == 2325
    assert (frame["borough_code"] + frame["tract_in_borough"] == frame["borough_tract"]).all()
    assert frame["tract"].str.fullmatch("[0-9]{11}").all()
    boroughs = {
        "36005": "Bronx",
        "36047": "Brooklyn",
        "36061": "Manhattan",
        "36081": "Queens",
        "36085": "Staten Island",
    }
    assert (frame["borough"] == frame["tract"].str[:5].map(boroughs)).all()


@pytest.mark.shared
def test_tracts_can_be_the_areas(shared_data):
    path = shared_data / "boundaries" / "nyc_census_tracts_2020.parquet"
    frame = readers.read_layer(ENTRIES["tracts_2020"], path, "read_areas")
    assert list(frame.columns) == ["area", "geometry"]
    assert frame["area"].str.len().eq(11).all()


@pytest.mark.shared
def test_neighborhoods_in_a_folder_inside_the_archive(shared_data):
    frame = read("neighborhoods_2020", shared_data / "boundaries" / "nynta2020_22c.zip")
    assert len(frame) == 262
    assert frame.crs.to_epsg() == 2263
    published = read("published_results", shared_data / "paper" / "neighborhood_aggregated_data.csv")
    assert len(published) == 217
    assert set(published["neighborhood"]) <= set(frame["region"])
    assert published["level"].between(0, 1).all()


@pytest.mark.shared
def test_boroughs_whose_coordinate_system_has_no_code(shared_data):
    frame = read("boroughs", shared_data / "boundaries" / "NYC-boroughs.zip")
    assert sorted(frame["region"]) == ["Bronx", "Brooklyn", "Manhattan", "Queens", "Staten Island"]
    assert frame.crs.to_epsg() == 4326


@pytest.mark.shared
def test_precincts_are_named_by_their_number(shared_data):
    frame = read("precincts_2020", shared_data / "boundaries" / "nypd_precincts_2020.geojson.gz")
    assert len(frame) == 77
    assert {"1", "123"} <= set(frame["region"])
    assert "116" not in set(frame["region"])


@pytest.mark.shared
def test_population_of_the_renamed_table(shared_data):
    frame = read("acs_2020_b03002", shared_data / "census" / "nyc_cbgs_ethnicity_table.csv")
    assert list(frame.columns) == ["area", "name", *B03002_PUBLISHED]
    assert len(frame) == 6807
    assert frame["area"].str.fullmatch("[0-9]{12}").all()
    assert frame["b03002_001e"].sum() == 8_379_552
    assert frame["b03002_001m"].iloc[0] == 12
    # The parts add up, so no two columns are swapped.
    total, *parts = (frame[f"b03002_{number:03d}e"] for number in range(1, 22))
    assert (parts[0] + parts[10] == total).all()
    for whole, races in ((parts[0], parts[1:10]), (parts[10], parts[11:20])):
        assert (sum(races[:7]) == whole).all()
        assert (races[7] + races[8] == races[6]).all()
    # The same cells, read plainly; of the groups whose order could be mistaken.
    plain = pd.read_csv(shared_data / "census" / "nyc_cbgs_ethnicity_table.csv")
    for variable, published in B03002_PUBLISHED.items():
        assert (plain[published] == frame[variable]).all(), variable
    assert {PEOPLE_PUBLISHED[group]: name for group, name in PEOPLE_VARIABLES.items()} == {
        "Estimate_Total": "b03002_001e",
        "Estimate_Total_Not_Hispanic_or_Latino_White_alone": "b03002_003e",
        "Estimate_Total_Not_Hispanic_or_Latino_Black_or_African_American_alone": "b03002_004e",
        "Estimate_Total_Not_Hispanic_or_Latino_Asian_alone": "b03002_006e",
        "Estimate_Total_Hispanic_or_Latino": "b03002_012e",
    }


@pytest.mark.shared
def test_income_with_the_ends_of_the_scale(shared_data):
    frame = read("acs_2020_b19013", shared_data / "census" / "ACSDT5Y2020.B19013-Data.csv")
    assert list(frame.columns) == ["area", "income_usd", "income_margin_usd"]
    assert len(frame) == 6807
    assert frame["income_usd"].isna().sum() == 1102
    assert frame["income_margin_usd"].isna().sum() == 1102 + 68
    assert (frame["income_usd"].isna() <= frame["income_margin_usd"].isna()).all()
    assert (frame["income_usd"] == 250_000).sum() == 63
    assert (frame["income_usd"] == 2_500).sum() == 5


@pytest.mark.shared
def test_zoning_keeps_the_area_without_shares(shared_data):
    frame = read("zoning_block_groups", shared_data / "zoning" / "cbgs_zone_data.csv").set_index("area")
    assert len(frame) == 6807
    assert frame.loc["360610225000"].isna().all()
    reached = (frame >= 0.5).sum()
    assert reached.to_dict() == {"share_r": 5907, "share_c": 383, "share_m": 276}


@pytest.mark.shared
def test_stations_are_numbered_in_the_order_of_the_precincts(shared_data):
    houses = read("precinct_houses", shared_data / "nypd" / "nypd_precinct_locs.csv")
    assert list(houses.columns) == STATIONS.names
    assert houses["station_id"].tolist() == list(range(77))
    precincts = read("precincts_2020", shared_data / "boundaries" / "nypd_precincts_2020.geojson.gz")
    ordered = precincts.assign(number=precincts["region"].astype(int)).sort_values("number", ignore_index=True)
    points = gpd.GeoSeries(gpd.points_from_xy(houses["lng"], houses["lat"]), crs=4326)
    assert ordered.geometry.contains(points).all()


@pytest.mark.shared
def test_tract_counts_of_the_census(shared_data):
    frame = read("decennial_2020_tracts", shared_data / "census" / "nyc_decennialcensusdata_2010_2020_change.xlsx")
    assert len(frame) == 2327
    assert frame["tract"].str.fullmatch("[0-9]{11}").all()
    groups = ["hispanic", "white", "black", "asian", "other", "two_or_more"]
    assert list(frame) == ["tract", "persons", *(f"persons_{g}" for g in groups), *(f"percent_{g}" for g in groups)]
    parts = frame[[f"persons_{group}" for group in groups]].sum(axis=1)
    assert (parts == frame["persons"]).all()
    for group in groups:
        share = 100 * frame[f"persons_{group}"] / frame["persons"]
        np.testing.assert_allclose(frame[f"percent_{group}"].fillna(0), share.fillna(0), atol=0.0501)


@pytest.mark.shared
def test_tracts_lie_in_districts_that_have_names(shared_data):
    file = "2020_Census_Tracts_to_2020_NTAs_and_CDTAs_Equivalency.csv"
    frame = read("tract_places_2020", shared_data / "census" / file).set_index("tract")
    assert len(frame) == 2327
    assert (frame["community_district"].str[:4] == frame["community_district_code"]).all()
    tracts = read("tracts_2020", shared_data / "boundaries" / "nyc_census_tracts_2020.parquet").set_index("tract")
    for name in frame.columns.intersection(tracts.columns):
        assert (tracts[name] == frame[name].reindex(tracts.index)).all(), name


@pytest.mark.shared
def test_attributes_of_the_citys_block_groups(shared_data):
    frame = read("block_group_attributes_2020", shared_data / "census" / "tl_2020_36_bg20.dbf").set_index("area")
    assert len(frame) == 6807
    code = frame["state"] + frame["county"] + frame["tract_code"] + frame["block_group"]
    assert (code == frame.index).all()
    shapes = read("block_groups_2020", shared_data / "boundaries" / "nyc_block_groups_2020.parquet").set_index("area")
    points = gpd.GeoSeries(gpd.points_from_xy(frame["internal_lng"], frame["internal_lat"]), frame.index, crs=4326)
    assert shapes.geometry.contains(points.loc[shapes.index]).sum() > 6579 - 1
    assert (frame.loc[shapes.index, "land_sqm"] == 0).sum() == 84


@pytest.mark.shared
@pytest.mark.parametrize(
    ("layout", "rows", "felonies", "unplaced"), [("35col", 2444, 754, 13), ("24col", 2464, 755, 41)]
)
def test_complaints_in_both_layouts(shared_data, layout, rows, felonies, unplaced):
    path = shared_data / "nypd" / f"NYPD_Complaint_Data_Historic_sample_{layout}.csv"
    ledger = Ledger("felonies", 0)
    frame = read_felonies(path, NYPD, category="FELONY", time_zone="America/New_York", ledger=ledger)
    assert ledger.close(len(frame)) == {
        "step": "felonies",
        "rows_in": rows,
        "rows_out": felonies - unplaced,
        "dropped": {"category is not FELONY": rows - felonies, "no position": unplaced},
        "notes": {},
    }
    pd.testing.assert_frame_equal(frame, FELONIES.conform(frame))
    # The same with plain pandas.
    raw = pd.read_csv(path, dtype=str, encoding="utf-8-sig", na_values=["", "NA"], keep_default_na=False)
    raw = raw[(raw["LAW_CAT_CD"] == "FELONY") & raw["Latitude"].notna()].set_index("CMPLNT_NUM")
    local = pd.to_datetime(raw["CMPLNT_FR_DT"] + raw["CMPLNT_FR_TM"], format="%m/%d/%Y%H:%M:%S")
    expected = local.dt.tz_localize("America/New_York").loc[frame["felony_id"]]
    assert (expected.to_numpy() == frame["started_at_utc"].to_numpy()).all()
    assert (raw["Latitude"].astype(float).loc[frame["felony_id"]].to_numpy() == frame["lat"].to_numpy()).all()


def test_the_embedded_city_agrees_with_itself(tmp_path):
    frames = {name: read(name, fetch(name, ENTRIES[name], tmp_path)) for name in ENTRIES if name.startswith("embedded")}
    tracts = frames["embedded_tracts"]
    assert len(tracts) == 2325
    assert tracts["tract"].str.fullmatch("[0-9]{11}").all()
    assert set(tracts["neighborhood"]) == set(frames["embedded_neighborhoods"]["region"])
    assert set(tracts["borough"]) == set(frames["embedded_boroughs"]["region"])
    assert all(frame.crs.to_epsg() == 4326 for frame in frames.values())


# Invented boundaries.


def test_only_the_city_is_read_from_the_state_and_water_stays(tmp_path):
    state = squares(4, 4269, GEOID=["360050001000", "360010001001", "360610001001", "360859901000"], ALAND=[0, 9, 9, 0])
    path = shapefile_zip(tmp_path / "tl_2020_36_bg.zip", state, "./tl_2020_36_bg.shp")
    frame = read("block_groups_2020", path)
    assert frame["area"].tolist() == ["360050001000", "360610001001", "360859901000"]
    assert frame.crs.to_epsg() == 4269


def test_the_portal_writes_names_in_small_letters(tmp_path):
    path = tmp_path / "2020_Census_Tracts.geojson"
    named = {"geoid": ["36061000100"], "ntaname": ["The Battery"], "borocode": ["1"]}
    details = {"ctlabel": ["1"], "ct2020": ["000100"], "boroct2020": [1000100.0], "nta2020": ["MN0101"]}
    districts = {"cdta2020": ["MN01"], "cdtaname": ["MN01 Tribeca"], "cdeligibil": [None]}
    squares(1, 4326, **named, **details, **districts, shape_leng=["1.5"], shape_area=["2.25"]).to_file(path)
    (tract,) = read("tracts_2020", path).drop(columns="geometry").to_dict("records")
    assert np.isnan(tract.pop("cdbg_eligibility"))
    assert tract == {
        "tract": "36061000100",
        "neighborhood": "The Battery",
        "borough": "Manhattan",
        "label": "1",
        "tract_in_borough": "000100",
        "borough_tract": "1000100",
        "borough_code": "1",
        "neighborhood_code": "MN0101",
        "community_district_code": "MN01",
        "community_district": "MN01 Tribeca",
        "shape_length_ft": 1.5,
        "shape_area_sqft": 2.25,
    }


@pytest.mark.parametrize("cell", ["large", "-1", "inf"])
def test_an_invalid_tract_size_is_refused(tmp_path, cell):
    path = tmp_path / "tracts.geojson"
    named = {"geoid": ["36061000100", "36061000200"], "ntaname": ["Here"] * 2, "borocode": ["1"] * 2}
    squares(2, 4326, **named, shape_area=["2.25", cell]).to_file(path)
    with pytest.raises(SourceError, match=f"shape_area is '{cell}'; expected a number, at least 0"):
        read("tracts_2020", path)


def test_the_one_wanted_file_of_an_archive_is_read(tmp_path):
    path = tmp_path / "nycgiszoningfeatures_202212shp.zip"
    shapefile_zip(path, squares(3, 2263, ZONEDIST=["R6B", "R6B", "PARK"]), "features/nyzd.shp")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("features/nyco.shp", b"another layer")
    assert read("zoning_districts", path)["district"].tolist() == ["R6B", "R6B", "PARK"]
    with pytest.raises(SourceError, match=r"nyzd\.shp, features/nyco\.shp of the form \*\.shp"):
        read("zoning_districts", path, member="*.shp")


def test_a_number_stored_with_a_point_is_a_code_without(tmp_path):
    path = tmp_path / "precincts.geojson"
    squares(2, 4326, precinct=[5.0, 13.0]).to_file(path)
    assert read("precincts_2020", path)["region"].tolist() == ["5", "13"]


def test_a_broken_polygon_is_repaired_and_counted(tmp_path):
    bow_tie = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    path = tmp_path / "areas.parquet"
    gpd.GeoDataFrame(
        {"GEOID": ["360050001001", "360050001002"]}, geometry=[bow_tie, box(5, 5, 6, 6)], crs=4326
    ).to_parquet(path)
    frame = read("block_groups_2020", path)
    assert frame.attrs["repaired"] == 1
    assert frame.geometry.is_valid.all()
    assert shapely.area(frame.geometry.to_numpy()).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("shape", [None, Polygon(), LineString([(0, 0), (1, 1)])])
def test_an_area_without_a_polygon_is_refused(tmp_path, shape):
    path = tmp_path / "areas.parquet"
    gpd.GeoDataFrame(
        {"GEOID": ["360050001001", "360050001002"]}, geometry=[box(0, 0, 1, 1), shape], crs=4326
    ).to_parquet(path)
    with pytest.raises(SourceError, match="1 rows without a polygon, first '360050001002'"):
        read("block_groups_2020", path)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"BLOCK": ["360050001001", "360050001002"]}, "no column GEOID or GEOID20; it has BLOCK, geometry"),
        ({"GEOID": ["360050001001", "360050001001"]}, "the area '360050001001' occurs in several rows"),
        ({"GEOID": ["360050001001", None]}, "1 rows have no GEOID"),
        ({"GEOID": [1.5, 2.0]}, "GEOID is 1.5; expected a whole number"),
        ({"GEOID": ["061", "062"]}, "no row of the city"),
    ],
)
def test_boundaries_without_usable_codes_are_refused(tmp_path, columns, complaint):
    path = tmp_path / "areas.parquet"
    squares(2, 4326, **columns).to_parquet(path)
    with pytest.raises(SourceError, match=complaint) as error:
        read("block_groups_2020", path)
    assert str(path) in str(error.value)


def test_an_unknown_borough_code_is_refused(tmp_path):
    path = tmp_path / "tracts.parquet"
    squares(1, 4326, GEOID=["36061000100"], NTAName=["Here"], BoroCode=[6]).to_parquet(path)
    with pytest.raises(SourceError, match="BoroCode is '6'; expected one of 1, 2, 3, 4, 5"):
        read("tracts_2020", path)


def test_feet_without_a_coordinate_system_are_not_taken_for_degrees(tmp_path):
    path = shapefile_zip(tmp_path / "boroughs.zip", squares(200, None, BoroName=list(map(str, range(200)))), "x/b.shp")
    with pytest.raises(SourceError, match="EPSG:4326 does not fit its coordinates"):
        read("boroughs", path)


def test_degrees_without_a_coordinate_system_are_those_of_the_entry(tmp_path):
    path = shapefile_zip(tmp_path / "boroughs.zip", squares(2, None, BoroName=["a", "b"]), "x/b.shp")
    assert read("boroughs", path).crs.to_epsg() == 4326


@pytest.mark.parametrize("name", ["areas.zip", "areas.parquet", "areas.geojson", "areas.geojson.gz", "areas.dbf"])
def test_a_file_that_holds_no_boundaries_is_refused_by_name(tmp_path, name):
    path = written(tmp_path / name, "<html>Service unavailable</html>")
    with pytest.raises(SourceError, match=r"areas\..*is not a boundary file"):
        read("block_groups_2020", path)


def test_a_table_without_polygons_is_refused(tmp_path):
    pd.DataFrame({"GEOID": ["360050001001"]}).to_csv(tmp_path / "areas.csv")
    with pytest.raises(SourceError, match="table without polygons"):
        read("block_groups_2020", tmp_path / "areas.csv")


def test_an_entry_whose_reader_is_not_for_layers_is_refused(tmp_path):
    with pytest.raises(SourceError, match="'read_felonies' is not a reader of layers"):
        read("nypd_complaints_historic", tmp_path / "x.csv")


# Invented tables.

B03002 = "GEO_ID,NAME,B03002_001E,B03002_003E,B03002_004E,B03002_006E,B03002_012E,\n"


def test_population_as_the_census_bureau_gives_it(tmp_path):
    text = B03002 + 'Geography,"Name",Total,White,Black,Asian,Hispanic,\n1500000US360050001001,"A, B",10,1,2,3,4,\n'
    frame = read("acs_2020_b03002", written(tmp_path / "t.csv", text))
    assert frame.to_dict("records") == [
        {
            "area": "360050001001",
            "name": "A, B",
            "b03002_001e": 10.0,
            "b03002_003e": 1.0,
            "b03002_004e": 2.0,
            "b03002_006e": 3.0,
            "b03002_012e": 4.0,
        }
    ]


def test_the_bureaus_whole_table_is_read_and_an_annotation_is_a_missing_margin(tmp_path):
    header = ",".join(f"B03002_{number:03d}{kind}" for number in range(1, 22) for kind in "EM")
    cells = ",".join(f"{number},{margin}" for number, margin in enumerate(["**", "***", "*****", *range(4, 22)], 1))
    text = f"GEO_ID,NAME,{header},\n1500000US360050001001,A,{cells},\n"
    (row,) = read("acs_2020_b03002", written(tmp_path / "t.csv", text))[[*B03002_PUBLISHED]].to_numpy().tolist()
    assert row[::2] == list(range(1, 22))
    assert np.isnan(row[1:6:2]).all()
    assert row[7::2] == list(range(4, 22))


@pytest.mark.parametrize("cell", ["-1", "few", "nan"])
def test_a_margin_that_is_not_a_number_is_refused_with_its_line(tmp_path, cell):
    text = B03002.replace("_003E,", "_003E,B03002_003M,") + f"1500000US360050001001,A,10,1,{cell},2,3,4,\n"
    with pytest.raises(SourceError, match=rf"t\.csv, line 2: '{cell}' is not a number for b03002_003m"):
        read("acs_2020_b03002", written(tmp_path / "t.csv", text))


def test_attributes_are_read_in_their_archive_and_without_the_years_suffix(tmp_path):
    names = ("STATEFP", "COUNTYFP", "TRACTCE", "BLKGRPCE", "GEOID", "NAMELSAD", "MTFCC", "FUNCSTAT")
    codes = ("36", "061", "000100", "1", "360610001001", "Block Group 1", "G5030", "S")
    numbers = {"ALAND": [12], "AWATER": [0], "INTPTLAT": ["+40.7"], "INTPTLON": ["-074.0"]}
    state = squares(1, 4269, **{name: [code] for name, code in zip(names, codes, strict=True)}, **numbers)
    path = shapefile_zip(tmp_path / "tl_2020_36_bg.zip", state, "./tl_2020_36_bg.shp")
    (row,) = read("block_group_attributes_2020", path).to_dict("records")
    assert row["area"] == "360610001001"
    assert (row["county"], row["land_sqm"], row["internal_lat"], row["internal_lng"]) == ("061", 12.0, 40.7, -74.0)


def test_a_file_without_attributes_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match=r"t\.dbf is not an attribute table"):
        read("block_group_attributes_2020", written(tmp_path / "t.dbf", "<html>Service unavailable</html>"))


def test_a_repeated_tract_is_refused(tmp_path):
    text = "GEOID,CDTACode,CDTAName\n36061000100,MN01,\n36061000100,MN02,B\n"
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(SourceError, match="the tract '36061000100' occurs in several rows"):
        read("tract_places_2020", path)


@pytest.mark.parametrize("cell", ["", "many", "-666666665", "nan", "inf", "1,234"])
def test_a_count_that_is_not_a_number_is_refused_with_its_line(tmp_path, cell):
    rows = "1500000US360050001001,A,10,1,2,3,4,\n" + f'1500000US360050001002,B,10,"{cell}",2,3,4,\n'
    with pytest.raises(SourceError, match=r"t\.csv, line 3: .* is not a number for b03002_003e"):
        read("acs_2020_b03002", written(tmp_path / "t.csv", B03002 + rows))


def test_a_repeated_area_is_refused(tmp_path):
    row = "1500000US360050001001,A,10,1,2,3,4,\n"
    with pytest.raises(SourceError, match="the area '360050001001' occurs in several rows"):
        read("acs_2020_b03002", written(tmp_path / "t.csv", B03002 + row + row))


def test_a_table_with_another_header_is_refused_with_the_names_it_has(tmp_path):
    with pytest.raises(SourceError, match="no column B03002_001E or Estimate_Total; it has GEO_ID, total"):
        read("acs_2020_b03002", written(tmp_path / "t.csv", "GEO_ID,total\n1500000US360050001001,3\n"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00G", b'GEO_ID,B19013_001E\n"open,1\n'])
def test_a_table_that_is_not_csv_is_refused_by_name(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(SourceError, match=r"t\.csv is not a CSV file"):
        read("acs_2020_b19013", tmp_path / "t.csv")


def test_a_file_that_is_not_a_workbook_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match=r"t\.xlsx is not Excel workbook"):
        read("decennial_2020_tracts", written(tmp_path / "t.xlsx", "no workbook"))


def test_stations_can_bring_their_numbers(tmp_path):
    path = written(tmp_path / "s.csv", "precinct,lat,lng\n9,40.7,-74\n5,40.8,-73.9\n")
    columns = {"lat": ("lat",), "lng": ("lng",), "station_id": ("precinct",)}
    assert read("precinct_houses", path, columns=columns)["station_id"].tolist() == [9, 5]


@pytest.mark.parametrize(
    ("row", "complaint"), [("north,-74", "line 2: 'north'"), ("95,-74", "between -90 and 90"), ("40,", "line 2: ''")]
)
def test_a_station_without_valid_coordinates_is_refused(tmp_path, row, complaint):
    with pytest.raises(SourceError, match=complaint) as error:
        read("precinct_houses", written(tmp_path / "s.csv", f"lat,lng\n{row}\n"))
    assert "s.csv" in str(error.value)


# Income cells.


@given(st.integers(0, 10**9), st.booleans(), st.sampled_from(["", "+", "-"]), st.sampled_from(["", " "]))
def test_an_income_is_the_number_that_it_shows(usd, thousands, end, blank):
    cell = f"{blank}{usd:,}{end}" if thousands else f"{blank}{usd}{end}"
    assert parse_income(pd.Series([cell], dtype="str"), HERE).tolist() == [float(usd)]


@given(st.text(max_size=12))
def test_any_other_cell_is_missing_or_refused(cell):
    cells = pd.Series([cell], dtype="str")
    try:
        income = parse_income(cells, HERE).iloc[0]
    except SourceError as error:
        assert repr(cell) in str(error)  # noqa: PT017 - what is raised depends on the drawn text
        return
    assert (np.isnan(income) and cell.strip() in NO_ESTIMATE) or income >= 0


def test_the_bureaus_annotations_are_missing_incomes():
    cells = pd.Series(["-", "**", "***", "N", "(X)", "", "66,250", "250,000+", "2,500-"], dtype="str")
    assert parse_income(cells, HERE).tolist()[6:] == [66_250.0, 250_000.0, 2_500.0]
    assert parse_income(cells, HERE).isna().sum() == 6


def test_an_income_that_is_unreadable_names_its_line():
    with pytest.raises(SourceError, match=r"incomes\.csv, line 7: '1,23' is not a median income"):
        parse_income(pd.Series(["5", "1,23"], index=[6, 7], dtype="str"), HERE)


# Invented complaints.

HEADER = "CMPLNT_NUM,CMPLNT_FR_DT,CMPLNT_FR_TM,OFNS_DESC,LAW_CAT_CD,Latitude,Longitude"
PLACE = "40.7,-74.0"


def complaints(path, *rows, newline="\n"):
    path.write_bytes(newline.join([HEADER, *rows, ""]).encode())
    return path


def felonies(path, category="FELONY", entry=NYPD):
    ledger = Ledger("felonies", 0)
    frame = read_felonies(path, entry, category=category, time_zone="America/New_York", ledger=ledger)
    return frame, ledger.close(len(frame))


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        ("10/05/2020,12:00:00", "2020-10-05T16:00:00"),
        ("12/05/2020,12:00:00", "2020-12-05T17:00:00"),
        ("11/01/2020,01:30:00", "2020-11-01T05:30:00"),  # occurs twice: daylight time
        ("11/01/2020,00:59:59", "2020-11-01T04:59:59"),
        ("11/01/2020,02:00:00", "2020-11-01T07:00:00"),
        ("03/08/2020,02:30:00", "2020-03-08T07:00:00"),  # does not exist: the first moment that does
        ("03/08/2020,03:00:00", "2020-03-08T07:00:00"),
        ("01/01/1900,00:00:00", "1900-01-01T05:00:00"),
    ],
)
def test_a_start_is_read_by_the_citys_clock(tmp_path, local, utc):
    frame, _ = felonies(complaints(tmp_path / "c.csv", f"1,{local},ARSON,FELONY,{PLACE}"))
    assert frame["started_at_utc"].tolist() == [pd.Timestamp(utc, tz="UTC")]
    assert str(frame["started_at_utc"].dtype) == "datetime64[ms, UTC]"


@pytest.mark.parametrize(
    "when",
    [
        "10/05/2020,24:00:00",
        "10/05/1015,12:00:00",
        "12/31/1899,23:59:59",
        "13/05/2020,12:00:00",
        "02/30/2020,1:00:00",
        ",",
        "10/05/2020,",
        ",12:00:00",
    ],
)
def test_an_unreadable_start_is_dropped_and_counted(tmp_path, when):
    good = f"2,10/05/2020,12:00:00,ARSON,FELONY,{PLACE}"
    frame, account = felonies(complaints(tmp_path / "c.csv", f"1,{when},ARSON,FELONY,{PLACE}", good))
    assert frame["felony_id"].tolist() == ["2"]
    assert account["dropped"] == {"unreadable start": 1}


@pytest.mark.parametrize(
    "place", [",", "0,0", "0.0,0", "NA,NA", "(null),(null)", "nan,-74", "40.7,", "inf,-74", "91,-74", "40,-181"]
)
def test_a_felony_without_a_position_is_dropped_and_counted(tmp_path, place):
    frame, account = felonies(complaints(tmp_path / "c.csv", f"1,10/05/2020,12:00:00,ARSON,FELONY,{place}"))
    assert len(frame) == 0
    assert account["dropped"] == {"no position": 1}


def test_every_row_is_accounted_for(tmp_path):
    at = "10/05/2020,12:00:00"
    path = complaints(
        tmp_path / "c.csv",
        f"1,{at},ARSON,FELONY,{PLACE}",
        f"2,{at},ARSON,MISDEMEANOR,{PLACE}",
        f"3,{at},ARSON,,{PLACE}",
        f"4,{at},ARSON,FELONY,",  # a cell short
        f",{at},ARSON,FELONY,{PLACE}",
        f"1,{at},FORGERY,FELONY,{PLACE}",
        f"6,{at},(null),FELONY,{PLACE}",
        "7,10/05/2020,12:00",  # truncated
    )
    frame, account = felonies(path)
    assert account["rows_in"] == 8
    assert account["dropped"] == {"category is not FELONY": 2, "no complaint number": 1, "wrong number of cells": 2}
    assert account["notes"] == {"complaint number repeats that of an earlier row": 1}
    assert frame["offense"].tolist()[:2] == ["ARSON", "FORGERY"]
    assert frame["offense"].isna().tolist() == [False, False, True]


def test_another_category_can_be_selected(tmp_path):
    rows = [f"{i},10/05/2020,12:00:00,X,{kind},{PLACE}" for i, kind in enumerate(["FELONY", "VIOLATION"])]
    frame, _ = felonies(complaints(tmp_path / "c.csv", *rows), category="VIOLATION")
    assert frame["felony_id"].tolist() == ["1"]


def test_felonies_are_sorted_by_start_then_by_number(tmp_path):
    rows = [
        f"{number},10/05/2020,{time},ARSON,FELONY,{PLACE}"
        for number, time in (("100", "12:00:00"), ("7", "13:00:00"), ("99", "12:00:00"), ("99H2", "12:00:00"))
    ]
    frame, _ = felonies(complaints(tmp_path / "c.csv", *rows))
    assert frame["felony_id"].tolist() == ["99", "99H2", "100", "7"]


def test_a_bom_windows_line_ends_and_gzip_change_nothing(tmp_path):
    row = f'1,10/05/2020,12:00:00,"ARSON, ""ATTEMPTED""",FELONY,{PLACE}'
    plain, _ = felonies(complaints(tmp_path / "c.csv", row))
    assert plain["offense"].tolist() == ['ARSON, "ATTEMPTED"']
    text = b"\xef\xbb\xbf" + complaints(tmp_path / "w.csv", row, newline="\r\n").read_bytes()
    (tmp_path / "w.csv").write_bytes(text)
    (tmp_path / "w.csv.gz").write_bytes(gzip.compress(text))
    for name in ("w.csv", "w.csv.gz"):
        pd.testing.assert_frame_equal(felonies(tmp_path / name)[0], plain)


def test_the_result_does_not_depend_on_how_the_file_is_cut(tmp_path, monkeypatch):
    kinds = ("OTHER", "FELONY", "FELONY")
    rows = [
        f'{i * 7919 % 1000},10/{1 + i % 28:02d}/2020,{i % 24:02d}:00:00,"A\nB",{kinds[i % 3]},{PLACE}'
        for i in range(1000)
    ]
    path = complaints(tmp_path / "c.csv", *rows)
    whole, account = felonies(path)
    assert len(whole) == 666
    monkeypatch.setattr(police, "_BLOCK_BYTES", 1000)
    cut, account_of_cut = felonies(path)
    pd.testing.assert_frame_equal(cut, whole)
    assert account_of_cut == account


def test_a_file_with_a_header_only_has_no_felonies(tmp_path):
    frame, account = felonies(complaints(tmp_path / "c.csv"))
    pd.testing.assert_frame_equal(frame, FELONIES.empty())
    assert account["rows_in"] == 0


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column CMPLNT_NUM; it has none"),
        (b"CMPLNT_NUM,Latitude\n1,2\n", "no column CMPLNT_FR_DT; it has CMPLNT_NUM, Latitude"),
        (HEADER.encode() + b"\n1,10/05/2020,12:00:00,CAF\xc9,FELONY,40.7,-74.0\n", "is not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_holds_no_complaints_is_refused_by_name(tmp_path, content, complaint):
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(SourceError, match=complaint) as error:
        felonies(tmp_path / "c.csv")
    assert "c.csv" in str(error.value)


def test_an_archive_cut_short_is_refused(tmp_path):
    whole = gzip.compress(
        complaints(tmp_path / "c.csv", *[f"{i},10/05/2020,12:00:00,A,FELONY,{PLACE}" for i in range(9999)]).read_bytes()
    )
    (tmp_path / "c.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"c\.csv\.gz"):
        felonies(tmp_path / "c.csv.gz")


# Crimes of other cities.


CHICAGO = """ID,Date,Primary Type,FBI Code,Latitude,Longitude
1,10/05/2020 01:30:00 PM,HOMICIDE,01A,41.88,-87.63
2,10/05/2020 12:00:00 AM,THEFT,06,41.88,-87.63
3,10/06/2020 11:59:59 PM,ROBBERY,03,41.88,-87.63
"""
COLUMNS = {"felony_id": ("ID",), "date": ("Occurred", "Date"), "lat": ("Latitude",), "lng": ("Longitude",)}


def another_city(**changes):
    """The entry of a file of Chicago's form, which has one column for date and time."""
    return NYPD.model_copy(update={"columns": COLUMNS, "time_format": "%m/%d/%Y %I:%M:%S %p"} | changes)


def test_the_columns_of_another_citys_crimes_are_those_of_its_entry(tmp_path):
    columns = COLUMNS | {"category": ("FBI Code",), "offense": ("Primary Type",)}
    entry = another_city(columns=columns, codes={"category": {"01A": "FELONY", "03": "FELONY", "06": "MISDEMEANOR"}})
    frame, account = felonies(written(tmp_path / "c.csv", CHICAGO), entry=entry)
    assert frame[["felony_id", "offense"]].to_numpy().tolist() == [["1", "HOMICIDE"], ["3", "ROBBERY"]]
    assert frame["started_at_utc"].tolist() == [
        pd.Timestamp("2020-10-05T17:30:00Z"),
        pd.Timestamp("2020-10-07T03:59:59Z"),
    ]
    assert account["dropped"] == {"category is not FELONY": 1}


def test_without_a_column_of_categories_all_crimes_count(tmp_path):
    frame, account = felonies(written(tmp_path / "c.csv", CHICAGO), entry=another_city())
    assert frame["felony_id"].tolist() == ["2", "1", "3"]
    assert frame["offense"].isna().all()
    assert account["dropped"] == {}


def test_an_entry_that_names_too_few_columns_is_refused_with_those_it_needs(tmp_path):
    entry = another_city(columns={"felony_id": ("ID",), "lat": ("Latitude",), "lng": ("Longitude",)})
    with pytest.raises(SourceError, match="does not name date; expected felony_id, date, lat, lng"):
        felonies(written(tmp_path / "c.csv", CHICAGO), entry=entry)


def test_a_file_whose_dates_are_all_unreadable_is_refused_with_one_of_them(tmp_path):
    entry = another_city(time_format="%Y-%m-%d %H:%M:%S")
    message = r"none of 3 starts can be read, the first '10/05/2020 01:30:00 PM'; expected the form %Y-%m-%d %H:%M:%S"
    with pytest.raises(SourceError, match=message):
        felonies(written(tmp_path / "c.csv", CHICAGO), entry=entry)


@pytest.mark.parametrize("bad", ["%Q", "%H:%M:%S", "yesterday", "%Y-%m-%d %z", "%"])
def test_a_format_of_times_without_a_day_is_refused(bad):
    with pytest.raises(SourceError, match="time_format: Value error"):
        parse_catalog(yaml.safe_dump({"crimes": NYPD.model_dump(mode="json") | {"time_format": bad}}), where="x")


# Sentinels of the Census Bureau's API.


@pytest.mark.parametrize("cell", ["-666666666", "-999999999", "-888888888", "-555555555", "-333333333.0", "-222222222"])
def test_a_sentinel_of_the_bureaus_api_is_a_missing_value(tmp_path, cell):
    assert parse_income(pd.Series([cell, "66,250"]), HERE).fillna(0).tolist() == [0, 66_250]
    text = written(tmp_path / "i.csv", f"GEO_ID,B19013_001E,B19013_001M\n1500000US360050001001,{cell},{cell}\n")
    assert read("acs_2020_b19013", text).iloc[0, 1:].isna().all()
    names = [name.upper() for name in PEOPLE_VARIABLES.values()]
    header = ",".join(["GEO_ID", *names, "B03002_001M"])
    people = read(
        "acs_2020_b03002",
        written(tmp_path / "p.csv", f"{header}\n1500000US360050001001,{','.join([cell] * (len(names) + 1))}\n"),
    )
    assert people.drop(columns="area").isna().all(axis=None)
    shares = written(tmp_path / "z.csv", f"GEOID20,R,C,M\n360050001001,{cell},0.5,0.5\n")
    assert read("zoning_block_groups", shares)["share_r"].isna().all()


@pytest.mark.parametrize("cell", ["-666666665", "-66666666", "-1", "-111111111"])
def test_any_other_negative_number_is_refused(cell):
    with pytest.raises(SourceError, match="line 0"):
        parse_income(pd.Series([cell]), HERE)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=9)


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(CELLS, min_size=7, max_size=7)),
    noise=st.binary(max_size=9),
)
def test_any_file_of_crimes_is_refused_or_its_rows_add_up(rows, noise):
    good = ["1", "10/05/2020", "12:00:00", "ARSON", "FELONY", "40.7", "-74.0"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.csv"
        pd.DataFrame([*rows, good], columns=HEADER.split(",")).to_csv(path, index=False)
        path.write_bytes(path.read_bytes() + noise)
        try:
            _, account = felonies(path)
        except SourceError as error:
            assert "c.csv" in str(error)  # noqa: PT017 - some examples are refused
        else:
            assert account["rows_in"] == account["rows_out"] + sum(account["dropped"].values())
