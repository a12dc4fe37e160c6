"""Runs of a study on an object store, with its sources and with workers as separate processes."""

import re

import pytest

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import create_study, open_study
from tests.integration.test_run import patrolscope
from tests.small_city import simulated

pytestmark = pytest.mark.slow


def run(study):
    process = patrolscope("run", "--study", study.root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def files(study, *folders):
    return {name: study.read_bytes(name) for folder in folders for name in study.find(folder)}


def test_a_study_on_an_object_store_has_the_tables_of_one_on_disk(tmp_path, s3, client):
    local = simulated(tmp_path / "study", images=1_000, days=1)
    settings = local.settings.model_dump(mode="json")
    settings["estimate"]["replicates"] = 50
    for layer in settings["layers"].values():  # data sets stay on this machine
        if layer is not None:
            layer["path"] = local.path(layer["path"])
    local = create_study(local.root, Settings.model_validate(settings))
    s3.mkdir("studies")
    s3.put(f"{local.root}/", "studies/city", recursive=True)
    remote = open_study("s3://studies/city")
    run_stages(local, registry.command_stages("run", local), lambda: client)
    run(remote)
    tables = [files(study, "annotated", "estimates", "sensitivity", "replicates") for study in (local, remote)]
    assert tables[0].keys() == tables[1].keys()
    assert [name for name in tables[0] if tables[0][name] != tables[1][name]] == []
    assert remote.read_bytes("ledger.jsonl") == local.read_bytes("ledger.jsonl")
    # Nothing is left to do, and no unfinished file remains.
    assert not re.search(r" in +[\d,]+ out", run(remote))
    assert [name for name in remote.find("") if name.endswith((".tmp", ".lock"))] == []
