"""Damaged and missing files of a finished study: found by `verify` and `run`, and rebuilt."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.freshness import check_inputs
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import StorageError
from patrolscope.pipeline.study.store import Study, open_study
from tests.image_study import TO_ESTIMATES, tables_of
from tests.integration.studies import branch
from tests.integration.test_cli import invoke


@pytest.fixture
def study(undisturbed, tmp_path) -> Study:
    """Copy of a finished study."""
    folder = tmp_path / "study"
    shutil.copytree(undisturbed.base, folder)
    return replace(undisturbed, root=str(folder))


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file as a disk does it, without a trace in its size or modification time."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verify_finds_nothing_in_an_intact_study(study):
    code, output = invoke("verify", "--study", study.root)
    assert (code, "are as recorded" in output) == (0, True)


@pytest.mark.parametrize("folder", ["annotated", "metadata", "staging/keys", "areas", "estimates", "manifest/annotate"])
def test_a_flipped_bit_is_found_and_rebuilt(study, undisturbed, client, folder):
    file = min(path for path in Path(study.path(folder)).rglob("*") if path.is_file())
    flip(file, 8 * (file.stat().st_size // 2) + 3)
    name = str(file.relative_to(study.base))
    code, output = invoke("verify", "--study", study.root)
    assert (code, name in output, "`patrolscope run" in output.replace("\n", " ")) == (3, True, True)
    run_stages(study, TO_ESTIMATES, lambda: client)
    assert tables_of(study) == tables_of(undisturbed)
    assert invoke("verify", "--study", study.root)[0] == 0


def test_rows_of_a_table_with_a_flipped_bit_are_not_read(study):
    """Parquet pages have checksums of their own, for readers that do not look at records; the footer has none."""
    (name, *_) = study.files("annotated")
    path, rows = Path(study.path(name)), study.read(name)
    content = path.read_bytes()
    size = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    changed = 0
    for bit in range(37, 8 * size, 8 * size // 150):
        flip(path, bit)
        try:
            changed += not study.read(name).equals(rows)
        except StorageError as error:
            assert f"{name} of {study.root} is damaged" in str(error)  # noqa: PT017
        flip(path, bit)
    assert changed == 0


@pytest.mark.parametrize("change", ["truncated", "empty", "edited", "removed"])
def test_a_run_rebuilds_what_was_changed_and_says_why(study, undisturbed, client, change):
    (name, *_) = study.files("annotated")
    path = Path(study.path(name))
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "edited":
        frame = pd.read_parquet(path)
        frame.assign(distance_ft=0.0).to_parquet(path) if "distance_ft" in frame else frame.iloc[:-1].to_parquet(path)
    else:
        path.unlink()
    code, output = invoke("plan", "--study", study.root)
    assert code == 0
    assert f"to rebuild: {name}" in output
    run_stages(study, TO_ESTIMATES, lambda: client)
    assert tables_of(study) == tables_of(undisturbed)


def test_a_copy_of_a_study_rebuilds_nothing_but_what_reads_its_sources(undisturbed, client, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(undisturbed.base, copied, copy_function=shutil.copyfile)
    code, output = invoke("plan", "--study", str(copied))
    assert (code, "to rebuild: source/metadata/" in output) == (0, True)
    outcomes = run_stages(open_study(copied), TO_ESTIMATES, lambda: client)
    rebuilt = {outcome.stage for outcome in outcomes if outcome.done_now}
    assert rebuilt <= {name for name, entry in registry.ORDER.items() if entry.opens}


def test_stages_refuse_to_start_before_those_whose_output_they_read(finished):
    study = branch(finished, "without-labels")
    for command, missing, advice in (
        ("annotate", "labels", "import-detections"),
        ("estimate", "labels", "import-detections"),
        ("map --out city.png", "layers", "annotate"),
        ("evaluate --ground-truth labels.csv", "annotate", "annotate"),
    ):
        code, output = invoke(*command.split(), "--study", study.root)
        assert (code, f"reads the output of {missing}" in output) == (2, True), output
        assert f"`patrolscope {advice} --study" in output.replace("\n", " ")


def test_estimates_without_imported_detections_are_refused(finished, client):
    study = branch(finished, "not-imported")
    ingest = [registry.ORDER[name].load() for name in ("read", "quarantine", "ingest")]
    run_stages(study, ingest, lambda: client)
    for command in ("annotate", "estimate", "sensitivity"):
        code, output = invoke(command, "--study", study.root)
        assert (code, "reads the output of labels" in output) == (2, True), output
    # One of several shards is missing, as after an import that was interrupted.
    labels = registry.ORDER["labels"].load()
    run_stages(study, [labels], lambda: client)
    study.discard("labels", next(iter(study.records("labels").values())))
    assert invoke("annotate", "--study", study.root)[0] == 2
    # Label files that were archived after the import are not needed.
    run_stages(study, [labels], lambda: client)
    shutil.rmtree(study.path("source", "labels"))
    check_inputs("annotate", study)


def test_a_record_from_elsewhere_is_rebuilt_and_its_files_outside_stay(study, client, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (record, *_) = Path(study.path("manifest", "annotate")).glob("*.json")
    content = json.loads(record.read_text().partition("\n")[0])
    content["files"] = ["../victim.txt"]
    record.write_text(json.dumps(content))
    run_stages(study, TO_ESTIMATES, lambda: client)
    assert victim.read_text() == "mine"
