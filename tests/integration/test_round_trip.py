"""Round trip: the exported wide file of a study, ingested as an annotated file, gives the same values."""

import pandas as pd
import pytest

from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.export.export import export_published
from patrolscope.pipeline.study.store import Study, create_study
from tests.integration.studies import TO_ANNOTATED

# The position of a row in its file differs.
OF_THE_SOURCE = ["source", "source_row"]
KEY = ["image_ref", "captured_at_utc"]


def annotated(study: Study) -> pd.DataFrame:
    rows = pd.concat([study.read(file) for file in study.files("annotated")], ignore_index=True)
    return rows.drop(columns=OF_THE_SOURCE).sort_values(KEY, ignore_index=True)


def notes(study: Study) -> dict[str, int]:
    counted: dict[str, int] = {}
    for record in study.records("annotate").values():
        for line in record.ledger:
            for what, rows in line["notes"].items():
                counted[what] = counted.get(what, 0) + rows
    return counted


@pytest.fixture(scope="module")
def wide_csv(finished, client, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("export") / "annotated.csv")
    return export_published(finished, out, client=lambda: client)


@pytest.fixture
def again(finished, wide_csv, tmp_path):
    """Function that creates a study from the wide file alone, with settings of ingest."""

    def make(name: str, **ingest) -> Study:
        content = finished.settings.model_dump(mode="json")
        content["sources"] |= {"metadata": [wide_csv], "detections": []}
        for layer in content["layers"].values():
            if layer and layer["path"]:
                layer["path"] = finished.resolve(layer["path"])
        content["ingest"] |= ingest
        return create_study(tmp_path / name, type(finished.settings).model_validate(content))

    return make


def test_values_computed_from_the_wide_file_equal_those_in_it(finished, again, client):
    study = again("recomputed")
    run_stages(study, TO_ANNOTATED, lambda: client)
    pd.testing.assert_frame_equal(annotated(study), annotated(finished), rtol=1e-9)
    said = notes(study)
    assert said["detections taken from the annotated file"] == len(annotated(finished))
    assert [what for what in said if "differs" in what] == []
    assert not study.exists("differences")


def test_trusted_values_are_the_same(finished, again, client):
    study = again("trusted", trust=True)
    run_stages(study, TO_ANNOTATED, lambda: client)
    pd.testing.assert_frame_equal(annotated(study), annotated(finished), rtol=1e-9)
    assert notes(study)["area: taken from the source"] == int(annotated(finished)["area"].notna().sum())


def test_a_changed_value_is_reported(finished, again, wide_csv, client, tmp_path):
    rows = pd.read_csv(wide_csv, dtype="str", keep_default_na=False)
    rows.loc[[3, 30_000], "hour"] = [str((int(hour) + 1) % 24) for hour in rows.loc[[3, 30_000], "hour"]]
    changed = tmp_path / "changed.csv"
    rows.to_csv(changed, index=False)
    study = again("changed")
    content = study.settings.model_dump(mode="json")
    content["sources"]["metadata"] = [str(changed)]
    study = create_study(study.root, type(study.settings).model_validate(content))
    run_stages(study, TO_ANNOTATED, lambda: client)
    pd.testing.assert_frame_equal(annotated(study), annotated(finished), rtol=1e-9)
    assert notes(study)["hour: the source differs from what was computed"] == 2
    shown = pd.concat([study.read(file) for file in study.files("differences")], ignore_index=True)
    assert sorted(shown["source_row"]) == [3, 30_000]
    assert set(shown["column"]) == {"hour"}
    assert ((shown["supplied"].astype(int) - shown["computed"].astype(int)) % 24 == 1).all()
