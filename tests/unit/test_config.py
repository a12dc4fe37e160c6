from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.pipeline.credentials import has_credentials, redacted
from patrolscope.pipeline.errors import SettingsError
from patrolscope.pipeline.study.config import (
    PRESETS,
    Estimate,
    Settings,
    dump_settings,
    parse_settings,
    with_changes,
)


def refused(text: str) -> str:
    with pytest.raises(SettingsError) as error:
        parse_settings(text, where="study.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY@bucket/raw",
        "https://user:hunter2@example.org/images",
        "https://example.org/a.csv?X-Amz-Credential=AKIA%2F2020&X-Amz-Signature=abcdef",
        "https://account.blob.core.windows.net/c/a.csv?sv=2020&sig=Zm9v",
    ],
)
def test_credentials_in_a_url_are_refused_without_repeating_them(url):
    with pytest.raises(SettingsError, match="in the environment, such as AWS_ACCESS_KEY_ID") as caught:
        parse_settings(f"sources: {{metadata: ['{url}']}}", where="study.yaml")
    assert not any(secret in str(caught.value) for secret in ("wJalr", "hunter2", "abcdef", "Zm9v"))
    assert not any(secret in redacted(f"cannot read {url}: no") for secret in ("wJalr", "hunter2", "abcdef", "Zm9v"))


@pytest.mark.parametrize("url", ["s3://bucket/a:b@c/d", "sftp://user@host/raw", "https://example.org/?page=2", "a:b@c"])
def test_other_urls_are_not_taken_for_ones_with_credentials(url):
    assert not has_credentials(url)
    assert redacted(url) == url


def test_the_defaults_are_those_of_the_recommended_preset():
    assert Estimate() == Estimate(**PRESETS["recommended"])
    assert Estimate().preset_in_use == "recommended"


def test_a_preset_gives_its_values_and_a_changed_one_makes_it_custom():
    published = parse_settings("estimate: {preset: published}", where="study.yaml").estimate
    assert (published.bootstrap, published.replicates, published.resample_calibration) == (("image",), 100, False)
    assert published.preset_in_use == "published"
    custom = parse_settings("estimate: {preset: published, replicates: 101}", where="study.yaml").estimate
    assert (custom.replicates, custom.census_error, custom.preset_in_use) == (101, False, "custom")


def test_a_written_preset_can_be_changed_in_one_place():
    text = dump_settings(Settings())
    assert "preset: recommended" in text
    assert "resample_calibration" not in text
    changed = parse_settings(text.replace("preset: recommended", "preset: published"), where="study.yaml")
    assert changed.estimate.preset_in_use == "published"
    again = with_changes(
        with_changes(Settings(), {"estimate": {"replicates": 7}}), {"estimate": {"preset": "published"}}
    )
    assert again.estimate.preset_in_use == "published"
    own = with_changes(Settings(), {"estimate": {"replicates": 7}})
    assert parse_settings(dump_settings(own), where="study.yaml") == own


def test_an_unknown_preset_is_one_fault():
    with pytest.raises(SettingsError) as caught:
        parse_settings("estimate: {preset: publshed}", where="study.yaml")
    assert str(caught.value).splitlines()[1:] == [
        "  estimate.preset: got 'publshed': Input should be 'recommended' or 'published'"
    ]


def test_the_other_defaults_are_the_papers():
    defaults = Settings()
    assert defaults.estimate.threshold == 0.770508
    assert defaults.estimate.first_day == date(2020, 10, 5)
    assert defaults.estimate.split == 1
    assert defaults.estimate.interval_percent == 95
    assert defaults.estimate.zone_share == 0.5
    assert defaults.estimate.correlation_persons == 500
    assert defaults.annotate.felony_windows_h == (1, 3, 6)
    assert defaults.annotate.phase_from == date(2020, 9, 1)
    assert defaults.city.crs == "EPSG:2263"
    assert defaults.city.time_zone == "America/New_York"
    assert defaults.detection.police_class_number == 1
    assert defaults.detection.prediction_above == 0.001


def test_an_empty_file_means_the_defaults():
    assert parse_settings("", where="study.yaml") == parse_settings("# nothing\n", where="study.yaml") == Settings()


@given(
    settings=st.builds(
        lambda name, metadata, threshold, blocks, windows, entry: Settings.model_validate(
            {
                "name": name,
                "sources": {"metadata": metadata},
                "estimate": {"threshold": threshold},
                "ingest": {"block_bytes": blocks},
                "annotate": {"felony_windows_h": sorted(windows)},
                "layers": {"areas": entry, "zoning": None},
            }
        ),
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"])),
        st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]))),
        st.floats(0, 1),
        st.integers(2**10, 2**40),
        st.sets(st.integers(1, 48)),
        st.sampled_from(["block_groups_2020", {"entry": "tracts_2020", "path": "own.geojson"}]),
    )
)
def test_settings_that_are_written_and_read_are_the_same(settings):
    assert parse_settings(dump_settings(settings), where="study.yaml") == settings


def test_settings_do_not_change_after_reading():
    with pytest.raises(ValueError, match="frozen"):
        Settings().name = "another"


def test_another_city_is_another_file():
    other = parse_settings(
        """
        city:
          name: London
          time_zone: Europe/London
          crs: EPSG:27700
          bounds: {west: -0.6, south: 51.2, east: 0.4, north: 51.8}
        layers: {areas: lsoa_2021, boroughs: null, complaints: {entry: crimes, path: crimes.csv}}
        """,
        where="study.yaml",
    )
    assert other.city.clock.key == "Europe/London"
    assert other.layers.areas.entry == "lsoa_2021"
    assert other.layers.boroughs is None
    assert other.layers.complaints.path == "crimes.csv"


def test_one_source_may_be_written_without_a_list():
    assert parse_settings("sources: {metadata: raw, detections: labels}", where="-").sources.metadata == ("raw",)


@pytest.mark.parametrize(("police_class", "number"), [("police officer", 0), ("police vehicle", 1), (7, 7)])
def test_the_police_class_is_given_by_name_or_number(police_class, number):
    assert (
        Settings.model_validate({"detection": {"police_class": police_class}}).detection.police_class_number == number
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "estimate: {treshold: 0.5}",
            "estimate.treshold: unknown setting; expected one of first_day, split, ",
        ),
        ("citty: {}", "citty: unknown setting; expected one of name, cache, "),
        ("estimate: {threshold: 1.5}", "estimate.threshold: got 1.5: Input should be less than or equal to 1"),
        ("estimate: {replicates: 1}", "estimate.replicates: got 1"),
        ("estimate: {split: 2}", "estimate.split: got 2"),
        ("estimate: {first_day: yesterday}", "estimate.first_day: got 'yesterday'"),
        ("estimate: {interval_percent: 100}", "estimate.interval_percent: got 100"),
        ("city: {time_zone: New York}", "city.time_zone: got 'New York': 'New York' is not a time zone"),
        ("city: {crs: EPSG:4326}", "is in degrees; expected a projected system"),
        ("city: {crs: EPSG:1}", "is not a coordinate system"),
        ("city: {bounds: {west: -73, east: -74, south: 40, north: 41}}", "expected west < east"),
        ("city: {bounds: {west: -74, east: -73, south: 40, north: 95}}", "city.bounds.north: got 95"),
        ("period: {start: 2020-12-01, end: 2020-11-30}", "start 2020-12-01 is after end 2020-11-30"),
        ("annotate: {felony_windows_h: [3, 1]}", "distinct whole hours from 1 to 48 in ascending order"),
        ("annotate: {felony_windows_h: [0]}", "distinct whole hours from 1 to 48 in ascending order"),
        (
            "detection: {police_class: tank}",
            "police_class 'tank' is not in class_names (police officer, police vehicle)",
        ),
        ("detection: {police_class: -1}", "police_class -1 is negative; expected a name"),
        ("ingest: {block_bytes: 10}", "ingest.block_bytes: got 10"),
        ("ingest: {slice_rows: 0}", "ingest.slice_rows: got 0"),
        ("- a list", "study.yaml holds a list; expected keys"),
        ("a: [", "study.yaml is not YAML"),
        ("name: a\nname: b", "duplicate key 'name'"),
        ("city: {name: a, crs: EPSG:2263, name: b}", "duplicate key 'name'"),
        ("layers: {areas: {entry: a, file: b}}", "layers.areas.file: unknown setting; expected one of entry, path"),
    ],
)
def test_invalid_settings_are_refused_with_key_and_value(text, complaint):
    message = refused(text)
    assert complaint in message
    assert message.startswith("study.yaml")


def test_every_fault_of_a_file_is_named_at_once():
    message = refused("nmae: a\nestimate: {threshold: 2, split: 5}\nperiod: {start: never}")
    for place in ("nmae", "estimate.threshold", "estimate.split", "period.start"):
        assert place in message
