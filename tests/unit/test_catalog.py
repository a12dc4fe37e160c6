"""The catalog of public data sets, and how a study finds their files."""

import hashlib
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from patrolscope.pipeline.contract.tables import PEOPLE_PUBLISHED
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography import readers
from patrolscope.pipeline.geography.catalog import (
    Fetched,
    cache_dir,
    layer_fingerprint,
    load_catalog,
    locate,
    parse_catalog,
)
from patrolscope.pipeline.geography.download import fetch, fetch_all
from patrolscope.pipeline.study.config import Layer, Layers, Settings
from patrolscope.pipeline.study.store import create_study

ENTRY = """
stations:
  title: Station houses
  agency: Police of Gotham
  address: https://data.gotham.test/stations.csv
  format: CSV
  license: public domain
  vintage: "2020"
  columns: {lat: lat, lng: [lng, lon]}
  files: [{name: stations.csv}]
  reader: read_stations
  used_by: [layers.stations]
"""


@pytest.fixture
def study(tmp_path):
    return create_study(tmp_path / "study", Settings())


@pytest.fixture
def entry():
    return parse_catalog(ENTRY, where="catalog")["stations"]


def test_every_default_layer_is_an_entry():
    entries = load_catalog()
    for _, layer in Layers():
        assert layer.entry in entries


def test_every_entry_names_a_reader_that_exists():
    for name, entry in load_catalog().items():
        assert entry.reader in {*readers.READERS, "read_felonies"}, name


def test_every_entry_has_a_source_and_a_license():
    for name, entry in load_catalog().items():
        assert entry.address.startswith(("https://", "package:")), name
        assert all((entry.title, entry.agency, entry.format, entry.license, entry.vintage, entry.used_by)), name


def test_the_catalog_and_the_readers_agree_on_columns():
    entries = load_catalog()
    complaints = {"felony_id", "date", "time", "category", "offense", "lat", "lng"}
    assert set(entries["nypd_complaints_historic"].columns) == complaints
    assert set(entries["acs_2020_b03002"].columns) == {"area", "name", *PEOPLE_PUBLISHED}


@pytest.mark.shared
def test_checksums_are_those_of_the_files(shared_data):
    paths = {path.name: path for path in shared_data.rglob("*") if path.is_file()}
    checked = [
        (file.name, file.sha256, hashlib.sha256(paths[file.name].read_bytes()).hexdigest())
        for entry in load_catalog().values()
        for file in entry.files
        if file.sha256 is not None
    ]
    assert len(checked) == 10
    assert all(said == found for _, said, found in checked), checked


def test_an_unknown_key_is_refused_with_its_place():
    with pytest.raises(SourceError, match=r"stations\.color"):
        parse_catalog(ENTRY + "  color: blue\n", where="catalog")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("  downloadable: false\n", "how"),
        ("  how: ask them\n", "how"),
        ("  files: [{name: 'stations_*.csv'}]\n", "pattern"),
        ("  files: []\n", "at least one"),
        ("  files: [{name: stations.csv, sha256: 12}]\n", "sha256"),
    ],
)
def test_an_invalid_entry_is_refused(line, complaint):
    key = line.strip().split(":")[0]
    text = "".join(row for row in ENTRY.splitlines(keepends=True) if not row.strip().startswith(f"{key}:")) + line
    with pytest.raises(SourceError, match=complaint):
        parse_catalog(text, where="catalog")


def test_a_name_that_would_leave_the_cache_is_refused():
    with pytest.raises(SourceError, match="folder of the cache"):
        parse_catalog(ENTRY.replace("stations:", "../stations:", 1), where="catalog")


def test_an_entry_is_immutable(entry):
    with pytest.raises(ValidationError):
        entry.title = "other"


def test_the_cache_folder_can_be_chosen(tmp_path):
    assert cache_dir(tmp_path) == tmp_path
    assert "patrolscope" in str(cache_dir())


def test_an_absent_file_is_reported_with_entry_address_and_command(study, tmp_path):
    layer = Layer(entry="zoning_block_groups")
    with pytest.raises(SourceError) as error:
        locate(layer, study, tmp_path / "cache")
    message = str(error.value)
    assert "`patrolscope fetch zoning_block_groups`" in message
    assert "`patrolscope fetch --from DIR zoning_block_groups`" in message
    assert load_catalog()["zoning_block_groups"].address in message
    assert "cbgs_zone_data.csv" in message


def test_an_absent_file_that_is_not_downloadable_is_reported_with_what_to_do(study, tmp_path):
    with pytest.raises(SourceError) as error:
        locate(Layer(entry="acs_2020_b19013"), study, tmp_path / "cache")
    assert load_catalog()["acs_2020_b19013"].how in str(error.value)
    assert "`patrolscope fetch acs_2020_b19013`" not in str(error.value)


def test_an_unknown_entry_is_reported_with_those_that_exist(study):
    with pytest.raises(SourceError, match=r"'nowhere'.*block_groups_2020"):
        locate(Layer(entry="nowhere"), study)


def test_a_study_can_name_a_file_of_its_own(study):
    own = Path(study.root) / "mine" / "houses.csv"
    own.parent.mkdir()
    own.write_text("lat,lng\n40.7,-74.0\n")
    entry, path = locate(Layer(entry="precinct_houses", path="mine/houses.csv"), study)
    assert path == own
    assert entry == load_catalog()["precinct_houses"]


def test_a_file_that_study_yaml_names_and_that_is_missing_is_refused(study):
    with pytest.raises(SourceError, match=r"mine/houses\.csv"):
        locate(Layer(entry="precinct_houses", path="mine/houses.csv"), study)


def test_a_study_of_another_city_brings_its_own_entries(study):
    (Path(study.root) / "data_catalog.yaml").write_text(ENTRY)
    (Path(study.root) / "houses.csv").write_text("lat,lon\n40.7,-74.0\n")
    entry, path = locate(Layer(entry="stations", path="houses.csv"), study)
    assert entry.agency == "Police of Gotham"
    assert readers.read_layer(entry, path)["lng"].tolist() == [-74.0]
    with pytest.raises(SourceError, match=r"add its path to study[.]yaml"):
        locate(Layer(entry="stations"), study)


def test_the_embedded_city_needs_no_cache(study, tmp_path):
    entry, path = locate(Layer(entry="embedded_tracts"), study, tmp_path / "cache")
    assert path.is_file()
    assert fetch("embedded_tracts", entry, tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


def fetched_file(tmp_path):
    """A small file in the cache, under an entry that has no fixed checksum."""
    source = tmp_path / "folder"
    source.mkdir(exist_ok=True)
    (source / "ACSDT5Y2020.B19013-Data.csv").write_text("lat,lng\n40.7,-74.0\n")
    entry = load_catalog()["acs_2020_b19013"]
    return fetch("acs_2020_b19013", entry, tmp_path / "cache", from_dir=source, progress=False)


def test_a_cached_file_of_another_size_is_reported(study, tmp_path):
    path = fetched_file(tmp_path)
    layer = Layer(entry="acs_2020_b19013")
    assert locate(layer, study, tmp_path / "cache")[1] == path
    with path.open("a") as file:
        file.write("x")
    with pytest.raises(SourceError, match=r"not the file that was fetched.*patrolscope fetch --from DIR"):
        locate(layer, study, tmp_path / "cache")


def test_a_fingerprint_follows_the_content_of_the_file(tmp_path, entry):
    path = tmp_path / "stations.csv"
    path.write_text("lat,lng\n1,2\n")
    first = layer_fingerprint(entry, path)
    os.utime(path, (0, 0))
    assert layer_fingerprint(entry, path) == first
    path.write_text("lat,lng\n1,3\n")
    assert layer_fingerprint(entry, path) != first


def test_a_fingerprint_depends_on_how_the_file_is_read(tmp_path, entry):
    path = tmp_path / "stations.csv"
    path.write_text("lat,lng\n1,2\n")
    other = entry.model_copy(update={"columns": {"lat": ("lng",), "lng": ("lat",)}})
    retitled = entry.model_copy(update={"title": "Houses"})
    assert layer_fingerprint(entry, path) != layer_fingerprint(other, path)
    assert layer_fingerprint(entry, path) == layer_fingerprint(retitled, path)


def test_a_fingerprint_is_the_same_in_the_cache_and_outside(tmp_path):
    path = fetched_file(tmp_path)
    entry = load_catalog()["acs_2020_b19013"]
    copy = tmp_path / "copy.csv"
    copy.write_bytes(path.read_bytes())
    assert layer_fingerprint(entry, path) == layer_fingerprint(entry, copy)
    path.write_text("lat,lng\n40.8,-74.0\n")  # same size, touched
    assert layer_fingerprint(entry, path) != layer_fingerprint(entry, copy)


def test_the_record_of_a_cached_file_gives_its_source(tmp_path):
    path = fetched_file(tmp_path)
    record = Fetched.model_validate_json((tmp_path / "cache" / "acs_2020_b19013.json").read_bytes())
    assert record.file == path.name
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.bytes == path.stat().st_size
    assert record.source == str(tmp_path / "folder" / path.name)
    assert record.fetched_at.endswith("+00:00")


def test_a_checkout_uses_the_catalog_at_its_top():
    path = Path(__file__).parents[2] / "data_catalog.yaml"
    assert load_catalog() == parse_catalog(path.read_text(), where=str(path))


def test_fetching_everything_from_a_folder_skips_missing_files(tmp_path):
    fetched_file(tmp_path)
    lines = list(fetch_all([], cache=tmp_path / "cache", from_dir=tmp_path / "folder", progress=False))
    assert len(lines) == len(load_catalog())
    assert [line for line in lines if "ACSDT5Y2020.B19013-Data.csv (0.0 MB)" in line]
    assert [line for line in lines if line.startswith("boroughs: none of Borough_Boundaries.geojson")]


def test_fetching_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no data set 'boros'"):
        list(fetch_all(["boros"], cache=tmp_path))
