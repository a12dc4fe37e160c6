"""The registry of stages agrees with the stages themselves, with the order of a run, and with the README."""

from dataclasses import replace
from pathlib import Path

import pytest

from patrolscope.pipeline.detect.stages import WEIGHTS
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.stage import Stage
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Record, create_study

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"labeled": {"labels": None}, "evaluate": {"threshold": "0.5", "replicates": 2, "labels": None}}


@pytest.fixture
def study(tmp_path):
    """A study whose weights were opened."""
    (tmp_path / "weights.pt").write_bytes(b"weights")
    study = create_study(tmp_path, Settings.model_validate({"images": {"weights": "weights.pt", "sources": "store"}}))
    (opened,) = WEIGHTS.plan(study)
    facts = {"result": "yolov7-1234", "detector": "", "police_class": 1}
    study.commit("weights", Record((), 1, 1, shard=opened.name, fingerprint=WEIGHTS.fingerprint(opened), facts=facts))
    return study


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_agrees_with_its_stage(entry, study):
    loaded = entry.load()
    if entry.name in OPTIONS:
        loaded = loaded(**OPTIONS[entry.name])
    stage = loaded if isinstance(loaded, Stage) else loaded(study)
    assert stage.name.partition("-")[0] == entry.name
    assert stage.unit == entry.unit
    assert stage.folders == () or {folder.partition("/yolov7-")[0] for folder in stage.folders} == set(entry.writes)


def test_every_stage_runs_after_those_it_depends_on():
    order = list(registry.ORDER)
    for name, entry in registry.ORDER.items():
        assert all(order.index(other) < order.index(name) for other in registry.inputs(name))
        written = [path for other in registry.ENTRIES for path in other.writes]
        for path in entry.reads:
            assert any(f"{other}/".startswith(f"{path}/") for other in written), f"no stage writes {path}"


def test_stages_that_open_files_outside_the_study_run_first():
    run = [name for name, entry in registry.ORDER.items() if "run" in entry.commands]
    assert run[:6] == ["layers", "weights", "prefixes", "calibrate", "read", "labels"]
    assert all(registry.ORDER[name].opens for name in run[:6])
    assert not any(registry.ORDER[name].opens for name in run[6:])


def test_stages_that_depend_on_each_other_are_rejected():
    first, second = (replace(registry.ORDER["read"], name=name, opens=()) for name in ("first", "second"))
    entries = [replace(first, reads=("b",), writes=("a",)), replace(second, reads=("a",), writes=("b",))]
    with pytest.raises(ValueError, match="first, second depend on each other"):
        registry.ordered(entries)


def test_a_study_has_the_stages_of_its_inputs(study, tmp_path):
    plain = create_study(tmp_path / "plain", Settings())
    with_images = [name for name, entry in registry.ORDER.items() if entry.belongs_to(study)]
    without = [name for name, entry in registry.ORDER.items() if entry.belongs_to(plain)]
    assert set(with_images) - set(without) == {"weights", "prefixes", "index", "detect"}
    assert "streets" not in with_images
    study.write_bytes(b"", "scenes", "images.csv")
    assert registry.ORDER["streets"].belongs_to(study)


def test_a_release_checks_what_its_estimates_come_from():
    names = [entry.name for entry in registry.behind("estimate", since=["annotate"])]
    assert {"layers", "annotate", "calibrate", "replicates", "estimate"} <= set(names)
    assert not {"read", "ingest", "labels", "match", "figures"} & set(names)


def test_the_table_of_stages_in_the_readme_is_current():
    readme = (ROOT / "README.md").read_text()
    assert registry.table_of_stages() in readme, "python -m patrolscope.pipeline.engine.registry prints it"
