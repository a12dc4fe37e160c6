"""A small study with all layers, and its published file computed from the layer files in plain pandas."""

import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study
from tests.integration.studies import TO_ANNOTATED
from tests.small_city import BLOCK, SOUTH, WEST, areas, simulated

ATTRIBUTES = {
    "STATEFP20": "36",
    "COUNTYFP20": "061",
    "MTFCC20": "G5030",
    "FUNCSTAT20": "S",
}
PERCENTS = ["Hsp_20P", "WNH_20P", "BNH_20P", "ANH_20P", "ONH_20P", "NH2pl_20P"]
SHIFT = 0.01  # degrees between two complaints that share number and start


def tracts() -> gpd.GeoDataFrame:
    """Two tracts in each row of areas, of three and of two; the last row has only the first. In the portal's form."""
    rows, columns = np.divmod(np.arange(9), 2)
    shapes = [
        shapely.box(
            WEST + BLOCK * (0, 3)[column], SOUTH + BLOCK * row, WEST + BLOCK * (3, 5)[column], SOUTH + BLOCK * (row + 1)
        )
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    number = [f"{row:03d}{column:03d}" for row, column in zip(rows, columns, strict=True)]
    named = {
        "geoid": [f"36061{code}" for code in number],
        "ctlabel": [f"{row}.{column:02d}" for row, column in zip(rows, columns, strict=True)],
        "borocode": "1",
        "boroname": "Manhattan",
        "ct2020": number,
        "boroct2020": [f"1{code}" for code in number],
        "cdeligibil": ["E", "I", None] * 3,
        "ntaname": [f'Row {row}, "North"' for row in rows],
        "nta2020": [f"MN010{row}" for row in rows],
        "cdta2020": [f"MN0{row // 2}" for row in rows],
        "shape_leng": ["1234.5", None, "1.25"] * 3,
        "shape_area": ["98765.5", None, "0"] * 3,
    }
    return gpd.GeoDataFrame(named, geometry=shapely.set_precision(shapes, 1e-6), crs="EPSG:4326")


def tract_counts() -> pd.DataFrame:
    """Census counts in the form of the city's workbook; the second tract is empty, the third missing."""
    codes = tracts()["geoid"]
    table = pd.DataFrame({"GeoType": "CT2020", "GeoID": codes, "BCT2020": "1" + codes.str[5:]})
    table["Pop_20"] = 100 * np.arange(len(table))
    for place, percent in enumerate(PERCENTS):
        table[percent.removesuffix("P")] = table["Pop_20"] * place // 20
        table[percent] = (place * 5.5 + np.arange(len(table)) / 10).round(1)
    table.loc[0, ["Pop_20", *PERCENTS]] = [0, *[None] * 6]
    return table.drop(index=2)


def precincts() -> gpd.GeoDataFrame:
    """Two precincts side by side over the lower three rows of areas."""
    top = SOUTH + 3 * BLOCK
    halves = [shapely.box(WEST, SOUTH, WEST + 2 * BLOCK, top), shapely.box(WEST + 2 * BLOCK, SOUTH, WEST + 9, top)]
    return gpd.GeoDataFrame({"precinct": [13, 5]}, geometry=halves, crs="EPSG:4326")


def attributes() -> gpd.GeoDataFrame:
    """Attributes of all areas but the first."""
    shapes = areas().iloc[1:].reset_index(drop=True)
    numbers = np.arange(len(shapes))
    own = {
        "TRACTCE20": shapes["geoid"].str[5:],
        "BLKGRPCE20": "0",
        "GEOID20": shapes["geoid"],
        "NAMELSAD20": [f"Area, number {number}" for number in numbers],
        "ALAND20": numbers * 1000,
        "AWATER20": numbers,
        "INTPTLAT20": [f"+{40.7 + number / 1000:.7f}" for number in numbers],
        "INTPTLON20": [f"-0{74 - number / 1000:.7f}" for number in numbers],
    }
    return gpd.GeoDataFrame(ATTRIBUTES | own, geometry=shapes.geometry.to_numpy(), crs="EPSG:4269")


def write_layers(folder: Path) -> dict[str, dict[str, str]]:
    """Write the layers that a simulated study lacks, and return their settings."""
    tracts().to_file(folder / "tracts.geojson", driver="GeoJSON")
    precincts().to_file(folder / "precincts.geojson", driver="GeoJSON")
    named = pd.DataFrame({"GEOID": tracts()["geoid"], "CDTAName": tracts()["cdta2020"] + " District"})
    named.loc[named["CDTAName"].str.startswith("MN02"), "CDTAName"] = ""
    named.to_csv(folder / "places.csv", index=False)
    with pd.ExcelWriter(folder / "counts.xlsx") as book:
        pd.DataFrame({"notes": ["none"]}).to_excel(book, sheet_name="notes", index=False)
        tract_counts().to_excel(book, sheet_name="2020", index=False, startrow=3)
    (folder / "unpacked").mkdir()
    attributes().to_file(folder / "unpacked" / "tl_2020_36_bg20.shp")
    with zipfile.ZipFile(folder / "tl_2020_36_bg20.zip", "w") as archive:
        for part in sorted((folder / "unpacked").iterdir()):
            archive.write(part, part.name)
    return {
        "tracts": {"entry": "tracts_2020", "path": "tracts.geojson"},
        "precincts": {"entry": "precincts_2020", "path": "precincts.geojson"},
        "tract_places": {"entry": "tract_places_2020", "path": "places.csv"},
        "tract_counts": {"entry": "decennial_2020_tracts", "path": "counts.xlsx"},
        "area_attributes": {"entry": "block_group_attributes_2020", "path": "tl_2020_36_bg20.zip"},
    }


def wide_study(folder: Path) -> Study:
    """An annotated study of 6,000 images, some of them in the night in which the clocks go back."""
    made = simulated(folder)
    complaints = pd.read_csv(folder / "source" / "complaints.csv", dtype="str", keep_default_na=False)
    # Numbers of two complaints at the same time, in both orders.
    again = complaints[complaints["Latitude"].ne("") & complaints["LAW_CAT_CD"].eq("FELONY")]
    again = again.assign(Latitude=(again["Latitude"].astype(float) + SHIFT).astype(str))
    half = len(again) // 2
    both = pd.concat([again.iloc[:half], complaints, again.iloc[half:]])
    both.to_csv(folder / "source" / "complaints.csv", index=False)
    content = made.settings.model_dump(mode="json")
    content["layers"] |= write_layers(folder)
    content["ingest"]["slice_rows"] = 900
    study = create_study(folder, Settings.model_validate(content))
    for stage in TO_ANNOTATED:
        for shard in stage.plan(study):
            stage.finish(study, shard)
    return study


def iso(instants: pd.Series) -> list[str | None]:
    """Local times as ISO 8601, one by one."""
    local = instants.dt.tz_convert("America/New_York")
    return [None if pd.isna(one) else one.isoformat(timespec="milliseconds") for one in local]


def reference(study: Study) -> pd.DataFrame:
    """The published file by plain merges of the images with the layer files; points as shapely geometries."""
    folder = Path(study.base)
    images = pd.concat([study.read(file) for file in study.files("annotated")], ignore_index=True)
    wide = images[["image_ref", "lat", "lng", "split", "conf", "hour", "day_of_week", "day_of_month", "month"]].copy()
    wide[["phase", "precinct"]] = images[["phase", "precinct"]]
    for flag in ("has_prediction", "weekend", "nighttime"):
        wide[flag] = images[flag].astype(int)
    wide["timestamp"] = (images["captured_at_utc"] - pd.Timestamp(0, tz="UTC")) // pd.Timedelta("1ms")
    wide["time_and_date_of_image"] = iso(images["captured_at_utc"])
    wide["geometry"] = gpd.GeoSeries(gpd.points_from_xy(images["lng"], images["lat"]), crs=4326).to_crs(2263)
    wide["distance_from_nearest_police_station"] = images["station_distance_ft"]
    _add_felonies(wide, images, pd.read_csv(folder / "source" / "complaints.csv", dtype={"CMPLNT_NUM": "str"}))

    shapes = gpd.read_file(folder / "areas.geojson")[["geoid", "geometry"]].rename(columns={"geoid": "GEOID20"})
    shapes = shapes.sort_values("GEOID20", ignore_index=True).to_crs(2263)
    shapes["index_right"] = shapes["index"] = np.arange(len(shapes))
    shapes["GEO_ID"] = shapes["GEOID20"]
    people = pd.read_csv(folder / "source" / "population.csv")
    people["GEOID20"] = people["GEOID20"].str[-11:]
    income = pd.read_csv(folder / "source" / "income.csv", dtype="str", index_col=False).iloc[1:]
    income = pd.DataFrame(
        {
            "GEOID20": income["GEO_ID"].str[-11:],
            "median_household_income": income["B19013_001E"].replace(
                {"-": None, "250,000+": "250000", "2,500-": "2500"}
            ),
        }
    )
    income["median_household_income"] = income["median_household_income"].astype(float)
    zones = pd.read_csv(folder / "source" / "zoning.csv", dtype={"GEOID20": "str"})
    zones["zone"] = [next((zone for zone in "RCM" if row[zone] >= 0.5), None) for row in zones.to_dict("records")]
    known = attributes().drop(columns="geometry")
    known[["INTPTLAT20", "INTPTLON20"]] = known[["INTPTLAT20", "INTPTLON20"]].astype(float)
    block_groups = (
        shapes.merge(people, on="GEOID20", how="left")
        .merge(income, on="GEOID20", how="left")
        .merge(zones[["GEOID20", "zone"]], on="GEOID20", how="left")
        .merge(known, on="GEOID20", how="left")
    )
    block_groups["density_cbg"] = block_groups["Estimate_Total"] / (shapes.area / 27_878_400)
    block_groups["centroid"] = shapes.centroid

    ground = tracts().sort_values("geoid", ignore_index=True).to_crs(2263)
    ground["index_ct"] = np.arange(len(ground))
    measured = {"shape_leng": ground.length, "shape_area": ground.area}
    for name, value in measured.items():
        ground[name] = ground[name].astype(float).fillna(value)
    names = ground["cdta2020"].map(lambda code: code if code == "MN02" else f"{code} District")
    counts = tract_counts().drop(columns=["GeoType"])
    ground = ground.assign(cdtaname=names, geoid_again=ground["geoid"]).merge(
        counts.drop(columns="BCT2020"), left_on="geoid", right_on="GeoID", how="left"
    )
    ground["GeoID"] = ground["geoid"]
    ground["BCT2020"] = ground["boroct2020"]
    ground["density_tract"] = ground["Pop_20"] / (ground.area / 27_878_400)
    inside = block_groups.set_geometry("centroid", crs=2263)[["GEOID20", "centroid"]].sjoin(
        ground[["geoid", "geometry"]], predicate="within", how="left"
    )
    block_groups = block_groups.merge(inside[["GEOID20", "geoid"]], on="GEOID20", how="left")
    block_groups = pd.DataFrame(block_groups.drop(columns="geometry")).merge(
        pd.DataFrame(ground.drop(columns="geometry")), on="geoid", how="left"
    )
    return wide.assign(GEOID20=images["area"]).merge(block_groups, on="GEOID20", how="left")


def _add_felonies(wide: pd.DataFrame, images: pd.DataFrame, complaints: pd.DataFrame) -> None:
    began = pd.to_datetime(
        complaints["CMPLNT_FR_DT"] + " " + complaints["CMPLNT_FR_TM"], format="%m/%d/%Y %H:%M:%S", errors="coerce"
    )
    felonies = complaints.assign(
        began=began.dt.tz_localize("America/New_York", ambiguous=np.ones(len(began), bool)).dt.tz_convert("UTC")
    )
    felonies = felonies[felonies["Latitude"].notna() & felonies["LAW_CAT_CD"].eq("FELONY") & felonies["began"].notna()]
    places = gpd.points_from_xy(felonies["Longitude"], felonies["Latitude"], crs=4326).to_crs(2263)
    felonies = felonies[["CMPLNT_NUM", "began", "OFNS_DESC"]].assign(
        point=places, began=felonies["began"].dt.as_unit("ms")
    )
    for hours in (1, 3, 6):
        columns = {
            "CMPLNT_NUM": images[f"felony_{hours}h_id"],
            "began": images[f"felony_{hours}h_started_at_utc"],
            "said": images[f"felony_{hours}h_distance_ft"],
            "image": wide["geometry"],
            "row": np.arange(len(images)),
        }
        pairs = pd.DataFrame(columns).dropna(subset="CMPLNT_NUM").merge(felonies, on=["CMPLNT_NUM", "began"])
        away = shapely.distance(pairs["image"].to_numpy(), pairs["point"].to_numpy())
        pairs = pairs.assign(off=np.abs(away - pairs["said"])).sort_values(["row", "off"]).drop_duplicates("row")
        assert pairs["off"].max() < 1e-3
        pairs = pairs.set_index("row").reindex(np.arange(len(images)))
        wide[f"point_of_nearest_crime_{hours}hr"] = pairs["point"].to_numpy()
        wide[f"desc_of_nearest_crime_{hours}hr"] = pairs["OFNS_DESC"].to_numpy()
        wide[f"time_of_nearest_crime_{hours}hr"] = iso(pairs["began"])
        wide[f"distance_from_nearest_crime_{hours}hr"] = pairs["said"].to_numpy()
