"""Settings and layers of other cities: what fits together, and what is refused."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from patrolscope.analysis.estimators.raster import in_feet
from patrolscope.pipeline.crs import city_crs, project_ft
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.extent import check_extent, count_outside
from patrolscope.pipeline.study.config import Box, City, Sun, parse_settings

CITIES = {
    "London": ("EPSG:27700", "Europe/London", -0.6, 51.2, 0.4, 51.8),
    "Sydney": ("EPSG:28356", "Australia/Sydney", 150.5, -34.2, 151.4, -33.5),
    "Sydney (GDA2020)": ("EPSG:7856", "Australia/Sydney", 150.5, -34.2, 151.4, -33.5),
    "Cape Town": ("EPSG:2048", "Africa/Johannesburg", 18.3, -34.1, 18.7, -33.7),
    "Prague": ("EPSG:5513", "Europe/Prague", 14.2, 49.9, 14.7, 50.2),
    "Wellington": ("EPSG:2193", "Pacific/Auckland", 174.6, -41.4, 175.0, -41.1),
    "Tromso": ("EPSG:25833", "Europe/Oslo", 18.6, 69.5, 19.3, 69.8),
    "Anchorage": ("EPSG:26906", "America/Anchorage", -150.3, 61.0, -149.4, 61.5),
    "Reykjavik": ("EPSG:32627", "Atlantic/Reykjavik", -22.1, 64.0, -21.6, 64.3),
    "Urumqi": ("EPSG:32645", "Asia/Shanghai", 87.4, 43.7, 87.8, 44.0),
    "two zones": ("EPSG:32632", "Europe/Oslo", 11.5, 59.7, 12.6, 60.1),
    "Kiritimati": ("EPSG:32604", "Pacific/Kiritimati", -157.6, 1.7, -157.2, 2.1),
}
CAPE_TOWN = "time_zone: Africa/Johannesburg, bounds: {west: 18.3, south: -34.1, east: 18.7, north: -33.7}"
CHICAGO = "time_zone: America/Chicago, bounds: {west: -87.8, south: 41.7, east: -87.5, north: 42.1}"


@pytest.mark.parametrize("name", CITIES)
def test_a_city_has_its_own_sun_and_axes_to_the_east_and_north(name):
    crs, time_zone, west, south, east, north = CITIES[name]
    box = {"west": west, "south": south, "east": east, "north": north}
    city = City.model_validate({"crs": crs, "time_zone": time_zone, "bounds": box})
    assert city.sun == Sun(latitude=(south + north) / 2, longitude=(west + east) / 2)
    lng, lat = city.sun.longitude, city.sun.latitude
    x_ft, y_ft = project_ft([lng, lng + 0.01, lng], [lat, lat, lat + 0.01], crs)
    length_ft = 0.01 * 365_000  # of a degree along the meridian, within 1%
    assert x_ft[1] - x_ft[0] == pytest.approx(length_ft * np.cos(np.radians(lat)), rel=0.02)
    assert y_ft[2] - y_ft[0] == pytest.approx(length_ft, rel=0.02)


def test_maps_and_points_of_a_system_with_axes_to_the_west_and_south_agree():
    square = gpd.GeoDataFrame(geometry=[shapely.box(18.4, -33.91, 18.41, -33.9)], crs="EPSG:4326")
    west, south, east, north = in_feet(square, "EPSG:2048").total_bounds
    x_ft, y_ft = project_ft([18.405], [-33.905], "EPSG:2048")
    assert west < x_ft[0] < east
    assert south < y_ft[0] < north
    # What is written beside the numbers names the turned system, so that other programs find the same place.
    back = gpd.GeoSeries(gpd.points_from_xy(x_ft * 1200 / 3937, y_ft * 1200 / 3937), crs=city_crs("EPSG:2048"))
    found = back.to_crs(4326)[0]
    assert (found.x, found.y) == pytest.approx((18.405, -33.905), abs=1e-7)


def test_new_york_keeps_its_system_and_astrals_sun():
    assert City().sun == Sun()
    assert City(bounds=Box(west=-74.1, south=40.6, east=-73.9, north=40.8)).sun == Sun()
    assert city_crs("EPSG:2263") == "EPSG:2263"


@pytest.mark.parametrize(
    ("city", "complaint"),
    [
        (f"crs: EPSG:3857, {CHICAGO}", "'EPSG:3857' has scale 1.35"),
        (f"crs: EPSG:4087, {CHICAGO}", "'EPSG:4087' has scale 1.35"),
        (f"crs: EPSG:32633, {CHICAGO}", "its UTM zone EPSG:32616"),
        (CAPE_TOWN, "'EPSG:2263' has scale"),
        (f"crs: EPSG:3031, {CAPE_TOWN}", "has axes to the north and north; expected east and north"),
        (f"crs: 'EPSG:32734+5773', {CAPE_TOWN}", "has 3 axes"),
        (f"crs: '+proj=longlat', {CHICAGO}", "is in degrees"),
        ("bounds: {west: 40.4, south: -74.3, east: 40.97, north: -73.6}", "check that west and east are longitudes"),
        ("bounds: {west: 177, south: -18.5, east: -179, north: -16}", "over the antimeridian is not supported"),
        ("time_zone: EST", "'EST' is an offset without a place"),
        ("time_zone: CET", "'CET' is an offset without a place"),
        ("time_zone: Etc/GMT+5", "'Etc/GMT+5' is an offset without a place"),
        ("time_zone: Australia/Sydney", "set city.time_zone to that of the city"),
        (f"crs: EPSG:32734, sun: {{latitude: 40.7, longitude: -74}}, {CAPE_TOWN}", "remove city.sun"),
    ],
)
def test_what_does_not_fit_the_city_is_refused_with_the_setting_to_change(city, complaint):
    with pytest.raises(SettingsError) as error:
        parse_settings(f"city: {{{city}}}", where="study.yaml")
    assert complaint in str(error.value)
    assert len(str(error.value).splitlines()) == 2  # the file, and the fault


def points(*places):
    return pd.DataFrame(places, columns=["lng", "lat"], dtype="float64")


def test_a_layer_of_another_city_is_refused():
    cape_town = Box(west=18.3, south=-34.1, east=18.7, north=-33.7)
    new_york = gpd.GeoDataFrame(geometry=[shapely.box(-74, 40.7, -73.9, 40.8)], crs="EPSG:4326").to_crs("EPSG:2263")
    for layer in (points((-74, 40.7), (-73.9, 40.8)), new_york):
        with pytest.raises(SourceError, match=r"houses: none of its \d features is in city\.bounds .*study\.yaml"):
            check_extent(layer, "houses", cape_town)


def test_a_layer_with_swapped_coordinates_is_refused_and_named_so():
    with pytest.raises(SourceError, match="latitude and longitude are swapped"):
        check_extent(points((40.7, -74)), "houses", Box())
    with pytest.raises(SourceError, match="latitude and longitude are swapped"):
        check_extent(gpd.GeoDataFrame(geometry=[shapely.box(40.7, -74, 40.8, -73.9)], crs=4326), "areas", Box())


def test_a_layer_partly_outside_is_counted_and_one_without_locations_passes():
    layer = points((-74, 40.7), (0, 0), (np.nan, np.nan))
    check_extent(layer, "houses", Box())
    assert count_outside(layer, Box()) == 1
    check_extent(points(), "houses", Box())
    check_extent(pd.DataFrame({"area": ["1"]}), "people", Box())
