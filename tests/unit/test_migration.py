"""Studies of earlier versions: settings and stages under their old names."""

import uuid

import pytest
import yaml

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.errors import SettingsError, StudyLockedError
from patrolscope.pipeline.study.config import Settings, parse_settings
from patrolscope.pipeline.study.migration import SETTINGS, migrate_settings, remove_renamed_stages
from patrolscope.pipeline.study.store import Record, create_study, open_study
from tests.integration.test_cli import invoke

EARLIER = """
# Comments are lost.
city: {name: Gotham, box: {west: -74.0, south: 40.5, east: -73.0, north: 41.0}}
sources: {metadata: raw, labels: found}
layers:
  neighbourhoods: neighbourhoods_2020
  areas: {entry: embedded_neighbourhoods, path: own.geojson}
images: {score_above: 0.02, iou_above: 0.5}
annotate: {join: reference}
estimate: {redraw_calibration: true}
sensitivity: {levels: []}
"""


def test_settings_under_old_names_are_renamed_once(tmp_path):
    (tmp_path / "study.yaml").write_text(EARLIER)
    with pytest.raises(SettingsError, match="unknown setting"):
        open_study(tmp_path)
    lines = migrate_settings(tmp_path)
    assert {line.split()[0] for line in lines if "is now" in line or "was removed" in line} >= set(SETTINGS)
    assert "layers.neighborhoods: neighbourhoods_2020 is now neighborhoods_2020" in lines
    assert len(lines) == len(SETTINGS) + 3
    settings = open_study(tmp_path).settings
    assert settings.city.name == "Gotham"
    assert settings.city.bounds.north == 41
    assert settings.sources.detections == ("found",)
    assert settings.layers.neighborhoods.entry == "neighborhoods_2020"
    assert settings.layers.areas.model_dump() == {"entry": "embedded_neighborhoods", "path": "own.geojson"}
    assert (settings.images.min_score, settings.images.nms_iou) == (0.02, 0.5)
    assert settings.estimate.resample_calibration
    assert settings.sensitivity.geographies == ()
    assert (tmp_path / "study.yaml.bak").read_text() == EARLIER
    assert migrate_settings(tmp_path) == []
    assert (tmp_path / "study.yaml.bak").read_text() == EARLIER


def test_a_current_study_is_unchanged(tmp_path):
    text = "# mine\ncity: {bounds: {west: -74}}\n"
    (tmp_path / "study.yaml").write_text(text)
    assert migrate_settings(tmp_path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
    assert (tmp_path / "study.yaml").read_text() == text
    assert migrate_settings(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {labels: a, detections: b}", "sources.labels is an earlier name of sources.detections; .* remove"),
        ("images: {score_above: 0.1}\nimages: {min_score: 0.1}", "duplicate key 'images'"),
        ("sources: {labels: a, labels: b}", "duplicate key 'labels'"),
        ("- 1", "holds a list"),
    ],
)
def test_conflicting_settings_are_refused_and_nothing_is_written(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        migrate_settings(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
    code, output = invoke("plan", "--study", str(tmp_path))
    assert (code, "error: " in output, "Traceback" in output) == (2, True, False)


def test_a_command_prints_the_renamed_settings(tmp_path):
    (tmp_path / "study.yaml").write_text("images: {score_above: 0.02}\nsources: {metadata: missing.csv}\n")
    code, output = invoke("ingest", "--study", str(tmp_path))
    assert code == 2
    assert "images.score_above is now images.min_score" in output
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["images"] == {"min_score": 0.02}
    assert "is now" not in invoke("ingest", "--study", str(tmp_path))[1]


@pytest.fixture(params=["local", "memory"])
def study(request, tmp_path):
    """A study with an old stage `map`, a stage `known` without files, and current stages."""
    study = create_study(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}", Settings())
    for stage, files in (("map", ("figures/map.png",)), ("known", ()), ("annotate", ("annotated/a.parquet",))):
        for file in files:
            study.write_bytes(b"content", file)
        study.commit(stage, Record(files, 1, 1, shard="one", fingerprint="f"))
    return study


def test_stages_under_old_names_are_removed_with_their_output(study):
    lines = remove_renamed_stages(study, registry.ORDER)
    assert [line.partition(":")[0] for line in lines] == ["stage known is now match_index", "stage map is now figures"]
    assert study.stages() == ["annotate"]
    assert study.exists("annotated/a.parquet")
    assert not study.exists("figures")
    assert remove_renamed_stages(study, registry.ORDER) == []


def test_stages_that_still_exist_are_kept(study):
    assert remove_renamed_stages(study, {*registry.ORDER, "map", "known"}) == []
    assert study.stages() == ["annotate", "known", "map"]


def test_nothing_is_removed_while_a_run_holds_the_study(study):
    with study.lock(), pytest.raises(StudyLockedError):
        remove_renamed_stages(study, registry.ORDER)
    assert study.stages() == ["annotate", "known", "map"]


def test_a_study_from_before_presets_gets_the_recommended_one_and_keeps_its_own_values(tmp_path):
    before = (
        "estimate:\n  threshold: 0.6\n  replicates: 100\n  bootstrap: [image, ride]\n  resample_calibration: false\n"
        "  interval: bca\n"
    )
    (tmp_path / "study.yaml").write_text(before)
    lines = migrate_settings(tmp_path)
    assert "estimate.preset is recommended now" in lines[0]
    assert "your own values of interval are kept" in lines[0]
    rules = parse_settings((tmp_path / "study.yaml").read_text(), where="study.yaml").estimate
    assert (rules.threshold, rules.interval, rules.replicates, rules.bootstrap) == (0.6, "bca", 1_000, ("ride",))
    assert (tmp_path / "study.yaml.bak").read_text() == before
    assert migrate_settings(tmp_path) == []


def test_a_short_study_yaml_needs_no_preset(tmp_path):
    (tmp_path / "study.yaml").write_text("estimate: {replicates: 100}\n")
    assert migrate_settings(tmp_path) == []
