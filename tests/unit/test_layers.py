"""Areas of a study, built from its own small layers."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from patrolscope.pipeline.crs import SQFT_PER_SQMI
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.layers import build_areas, read_area_tables, zone_of
from patrolscope.pipeline.geography.stages import LAYERS
from patrolscope.pipeline.geography.zones import zone_of_district, zone_shares
from patrolscope.pipeline.study.config import Layer, Layers, Settings
from patrolscope.pipeline.study.store import create_study, study_at

CODES = ["360610001001", "360610001002", "360610002001"]
SQUARES = [shapely.box(-74.0 + 0.01 * n, 40.70, -73.99 + 0.01 * n, 40.71) for n in range(3)]


def study_of(folder, *, crs: str = "EPSG:4326"):
    """Three block groups in a row; one tract contains the centroids of the first two, and the third is unpopulated."""
    areas = gpd.GeoDataFrame({"GEOID20": CODES}, geometry=SQUARES, crs="EPSG:4326").to_crs(crs)
    areas.to_parquet(folder / "areas.parquet")
    tract = {"GEOID": ["36061000100"], "BoroCode": [1], "NTAName": ["Gramercy"]}
    gpd.GeoDataFrame(tract, geometry=[shapely.box(-74.0, 40.7, -73.98, 40.71)], crs="EPSG:4326").to_parquet(
        folder / "tracts.parquet"
    )
    zones = {"GEOID20": CODES, "C": [0.5, 0.5, 0.2], "M": [0.0, 0.5, 0.2], "R": [0.5, 0.0, 0.499], "max_zone": "R"}
    pd.DataFrame(zones).to_csv(folder / "zones.csv", index=False)
    nothing = dict.fromkeys(name for name in Layers.model_fields if name != "areas")
    layers = {
        "areas": {"entry": "block_groups_2020", "path": "areas.parquet"},
        "tracts": {"entry": "tracts_2020", "path": "tracts.parquet"},
        "zoning": {"entry": "zoning_block_groups", "path": "zones.csv"},
    }
    return create_study(folder, Settings.model_validate({"layers": nothing | layers}))


def built(study):
    return build_areas(study, read_area_tables(study))


def test_a_district_is_residential_by_its_letter_before_commercial_and_manufacturing():
    names = pd.Series(["R6B", "C4-2", "M1-5/R9", "PARK", "M3-1", "BPC", "8"], dtype="str")
    assert zone_of_district(names).fillna("none").tolist() == ["R", "C", "R", "R", "M", "C", "none"]


def test_zone_shares_count_overlapping_districts_once():
    ground = "EPSG:2263"
    areas = gpd.GeoDataFrame(
        {"area": ["a", "b", "c"]},
        geometry=[shapely.box(at, 0, at + 100, 100) for at in (0, 100, 200)],
        crs=ground,
    )
    districts = gpd.GeoDataFrame(
        {"district": ["R1", "R2", "C1", "M1", "Z"]},
        geometry=[
            shapely.box(0, 0, 60, 100),
            shapely.box(40, 0, 120, 100),  # overlaps R1: counts once
            shapely.box(120, 0, 200, 50),
            shapely.box(120, 50, 200, 100),
            shapely.box(200, 0, 300, 100),  # unknown zone
        ],
        crs=ground,
    ).to_crs("EPSG:4326")
    shares = zone_shares(areas, districts, ground).set_index("area")
    assert shares.loc["a"].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert shares.loc["b"].tolist() == pytest.approx([0.2, 0.4, 0.4], abs=1e-6)
    assert shares.loc["c"].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_districts_themselves_can_be_the_zoning_layer(tmp_path):
    study = study_of(tmp_path)
    kinds = gpd.GeoDataFrame({"ZONEDIST": ["R5", "M1-1"]}, geometry=SQUARES[:2], crs="EPSG:4326")
    kinds.to_file(tmp_path / "nyzd.shp")
    layers = study.settings.layers.model_copy(update={"zoning": Layer(entry="zoning_districts", path="nyzd.shp")})
    study = create_study(tmp_path, study.settings.model_copy(update={"layers": layers}))
    assert built(study).set_index("area")["zone"].fillna("none").to_dict() == dict(
        zip(CODES, ["R", "M", "none"], strict=True)
    )


def test_an_area_has_the_tract_neighborhood_and_borough_of_its_centroid(tmp_path):
    areas = built(study_of(tmp_path)).set_index("area")
    assert areas["tract"].tolist()[:2] == ["36061000100"] * 2
    assert areas["neighborhood"].tolist()[:2] == ["Gramercy"] * 2
    assert areas["borough"].tolist()[:2] == ["Manhattan"] * 2
    # The third is outside all tracts: missing, not derived from its code.
    assert areas.loc[CODES[2], ["tract", "neighborhood", "borough"]].isna().all()


def test_sizes_are_in_square_feet_and_an_area_without_a_count_has_density_zero(tmp_path):
    areas = built(study_of(tmp_path))
    # 0.01 by 0.01 degree at 40.7 degrees north: about 845 by 1,110 meters.
    np.testing.assert_allclose(areas["area_sqft"], 845 * 1110 * 10.7639, rtol=0.01)
    assert (areas["persons"] == 0).all()
    assert (areas["density_per_sqmi"] == 0).all()
    assert areas["income_usd"].isna().all()
    assert SQFT_PER_SQMI == 27_878_400


def test_boundaries_in_feet_end_in_degrees_as_those_in_degrees_do(tmp_path):
    (tmp_path / "feet").mkdir()
    (tmp_path / "degrees").mkdir()
    feet = built(study_of(tmp_path / "feet", crs="EPSG:2263"))
    degrees = built(study_of(tmp_path / "degrees"))
    assert feet.crs == degrees.crs == "EPSG:4326"
    assert shapely.hausdorff_distance(feet.geometry.values, degrees.geometry.values).max() < 1e-9
    # Boundaries in degrees stay unchanged to the last bit.
    assert shapely.equals_exact(degrees.geometry.values, np.array(SQUARES), 0).all()


@pytest.mark.parametrize(
    ("shares", "zone"),
    [
        ((0.5, 0.5, 0.0), "R"),
        ((0.0, 0.5, 0.5), "C"),
        ((0.0, 0.0, 0.5), "M"),
        ((0.49, 0.49, 0.02), None),
        ((np.nan, np.nan, np.nan), None),
    ],
)
def test_a_zone_covers_half_the_area_and_residential_comes_first(shares, zone):
    zoning = pd.DataFrame([["a", *shares]], columns=["area", "share_r", "share_c", "share_m"])
    found = zone_of(zoning, pd.Series(["a", "not in the table"]), 0.5)
    assert found.isna().tolist() == [zone is None, True]
    assert zone is None or found.iloc[0] == zone


def test_the_stage_refuses_a_layer_outside_the_city_and_counts_features_outside(tmp_path):
    study = study_of(tmp_path)
    west_half = {"city": {"bounds": {"west": -74.1, "south": 40.6, "east": -73.995, "north": 40.8}}}
    part = study_at(study.root, Settings.model_validate(study.settings.model_dump(mode="json") | west_half))
    output = LAYERS.process(part, LAYERS.plan(part)[0])
    assert output.ledger[0]["notes"]["areas outside city.bounds"] == 2
    other = {"city": {"bounds": {"west": -74.1, "south": 40.9, "east": -73.9, "north": 41.0}}}
    elsewhere = study_at(study.root, Settings.model_validate(study.settings.model_dump(mode="json") | other))
    with pytest.raises(SourceError, match=r"block_groups_2020: none of its 3 features is in city\.bounds"):
        LAYERS.process(elsewhere, LAYERS.plan(elsewhere)[0])
    assert LAYERS.fingerprint(LAYERS.plan(part)[0]) != LAYERS.fingerprint(LAYERS.plan(study)[0])
