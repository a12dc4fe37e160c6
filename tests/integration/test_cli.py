"""The command line: a user's mistake ends with one clear message, status 2, and no stack trace."""

import gzip
import json
import re
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from patrolscope import cli
from patrolscope.cluster.connect import connection
from patrolscope.cluster.profiles import ClusterError
from patrolscope.pipeline.contract.tables import TABLES
from patrolscope.pipeline.study.store import open_study
from tests.released import write_released


def invoke(*arguments: str):
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "init", "fetch", "simulate", "ingest", "import-detections", "annotate", "estimate", "run", "export"),
        *("sensitivity", "evaluate", "reproduce", "compare", "release", "dictionary", "index", "detect"),
        *("power", "weights", "plan", "cluster", "streets", "train", "scenes", "dashboard", "map", "verify"),
    ],
)
def test_every_command_explains_itself(command):
    code, output = invoke(command, "--help")
    assert code == 0
    assert "Usage" in output


def test_a_folder_that_is_not_a_study_is_refused_with_advice(tmp_path):
    code, output = invoke("run", "--study", str(tmp_path))
    assert code == 2
    assert "has no study.yaml" in output
    assert "patrolscope init" in output


def test_init_creates_a_study_with_the_papers_defaults_and_does_not_overwrite_it(tmp_path):
    folder = str(tmp_path / "study")
    code, _ = invoke("init", folder, "--metadata", "raw", "--detections", "a", "--detections", "b")
    assert code == 0
    settings = open_study(folder).settings
    assert settings.estimate.threshold == 0.770508
    assert settings.sources.detections == (str((tmp_path.cwd() / "a").resolve()), str((tmp_path.cwd() / "b").resolve()))
    code, output = invoke("init", folder)
    assert code == 2
    assert "already" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("estimate: {treshold: 0.5}", "estimate.treshold: unknown setting"),
        ("estimate: {threshold: 1.5}", "estimate.threshold: got 1.5"),
        ("city: {time_zone: Mars/Olympus}", "not a time zone"),
        ("period: {start: 2020-12-01}", "start 2020-12-01 is after end"),
        ("[1, 2", "is not YAML"),
        ("- 1", "holds a list"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    code, output = invoke("run", "--study", str(tmp_path))
    assert code == 2
    assert message in output


def test_settings_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "study.yaml").write_bytes("name: x".encode("utf-16"))
    code, output = invoke("run", "--study", str(tmp_path))
    assert (code, "study.yaml is not UTF-8" in output) == (2, True)


def test_credentials_in_an_argument_are_refused_before_they_are_stored_or_repeated(tmp_path):
    for arguments in (
        ("run", "--study", "s3://AKIAIOSFODNN7EXAMPLE:hunter2hunter2hunter2@bucket/study"),
        ("ingest", "https://me:hunter2@example.org/raw.csv", "--study", str(tmp_path / "study")),
    ):
        code, output = invoke(*arguments)
        assert (code, "hunter2" in output, "~/.aws/credentials" in output.replace("\n", " ")) == (2, False, True)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_raw_files_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "study.yaml").write_text("name: empty")
    code, output = invoke("ingest", "--study", str(tmp_path))
    assert code == 2
    assert "sources.metadata" in output


@pytest.mark.parametrize("command", ["estimate", "sensitivity"])
def test_a_stage_with_missing_input_names_the_command_for_it(command, tmp_path):
    (tmp_path / "v.csv").write_text(
        "ground_truth,Model_predicted_score,lat,lng,timestamp\n1,0.9,40.7,-74,1602086400000\n"
    )
    (tmp_path / "study.yaml").write_text("cache: nothing-fetched\nsources: {validation: v.csv}")
    code, output = invoke(command, "--study", str(tmp_path))
    assert (code, f"run `patrolscope ingest --study {tmp_path}`" in output.replace("\n", "")) == (2, True)
    code, output = invoke("run", "--study", str(tmp_path))
    assert code == 2
    assert "block_groups_2020" in output
    assert "patrolscope fetch" in output
    code, output = invoke("release", "--study", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (code, f"run `patrolscope run --study {tmp_path}`" in output.replace("\n", "")) == (2, True)


def test_an_unknown_cluster_profile_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_text("name: x")
    code, output = invoke("run", "--study", str(tmp_path), "--cluster", "slrum")
    assert code == 2
    assert "no cluster profile 'slrum'" in output


def test_the_dictionary_explains_every_column_of_every_table():
    code, output = invoke("dictionary", "--json")
    assert code == 0
    pages = json.loads(output)
    assert [page["table"] for page in pages] == [table.name for table in TABLES]
    assert all(column["meaning"] for page in pages for column in page["columns"])
    code, output = invoke("dictionary", "metadata")
    assert code == 0
    assert "captured_at_utc" in output
    code, output = invoke("dictionary", "metadatas")
    assert code == 2
    assert "no table 'metadatas'" in output


def test_a_local_cluster_listens_on_loopback_alone():
    with connection("local") as client:
        info = client().scheduler_info()
        addresses = [info["address"], *info["workers"]]
        assert all(address.startswith("tcp://127.0.0.1:") for address in addresses), addresses
        assert client().dashboard_link.startswith("http://127.0.0.1:")


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("patrolscope.cluster.connect.CONNECT_TIMEOUT_S", 1)
    with connection("tcp://127.0.0.1:9") as client, pytest.raises(ClusterError, match="no scheduler answers"):
        client()


def test_ingest_takes_sources_and_flags_creates_the_study_and_prints_changes(tmp_path, client):
    from patrolscope.pipeline.study.store import open_study
    from tests.annotated_csv import published_frame, to_csv

    (tmp_path / "annotated.csv").write_bytes(to_csv(published_frame(50).assign(speed=3)))
    root = str(tmp_path / "study")
    source = str(tmp_path / "annotated.csv")
    ingest = ("ingest", "--cluster", client.scheduler.address, "--study", root)
    code, output = invoke(*ingest, source, "--trust", "--keep-unknown")
    assert code == 0
    assert (
        f"{root}/study.yaml now has sources.metadata: {source}; ingest.trust: true; ingest.keep_unknown: true\n"
    ) in output
    study = open_study(root)
    assert study.settings.ingest.trust
    assert study.read(study.files("supplied")[0])["kept_speed"].unique().tolist() == ["3"]

    code, output = invoke(*ingest)
    assert (code, "now has" in output) == (0, False)
    code, output = invoke(*ingest, "--recompute")
    assert f"{root}/study.yaml now has ingest.trust: false\n" in output
    assert open_study(root).settings.ingest.keep_unknown


def test_a_mistyped_source_leaves_the_settings_unchanged(tmp_path):
    missing = str(tmp_path / "missing.csv")
    code, output = invoke("ingest", missing, "--study", str(tmp_path / "new"))
    assert (code, "missing.csv holds no file" in output) == (2, True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "study.yaml").write_text("sources: {metadata: raw.csv}")
    assert invoke("ingest", missing, "--study", str(tmp_path))[0] == 2
    assert (tmp_path / "study.yaml").read_text() == "sources: {metadata: raw.csv}"


def test_ingest_without_study_and_sources_explains_how_to_create_one(tmp_path):
    code, output = invoke("ingest", "--study", str(tmp_path / "nowhere"), "--trust")
    assert code == 2
    assert "is not a study" in output
    assert not (tmp_path / "nowhere").exists()


def test_reproduce_and_compare_write_their_folders_and_name_missing_results(tmp_path):
    a, b = write_released(tmp_path / "a"), write_released(tmp_path / "b", "race", "zone", seed=2)
    code, output = invoke("reproduce", str(b), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "race_residential_zones_only_bootstraps.json" in output
    assert (tmp_path / "out" / "tables.csv").is_file()
    code, output = invoke("compare", str(a), str(b), "--out", str(tmp_path / "both"))
    assert code == 0
    assert f"B: {b}, without race_residential" in output
    assert "Hispanic or Latino" in output
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"comparison.csv", "summary.csv"}
    code, _ = invoke("compare", str(a), str(b), "--out", str(tmp_path / "both"))
    assert code == 0
    code, output = invoke("compare", str(a), str(b), "--out", str(b))
    assert (code, "not an earlier result" in output) == (2, True)


def test_unreadable_results_end_with_one_line(tmp_path):
    folder = write_released(tmp_path / "a", "race")
    (folder / "race_bootstraps.json").write_text('{"point_estimate": {')
    for arguments in (
        ("reproduce", str(folder), "--out", str(tmp_path / "out")),
        ("compare", str(folder), str(folder)),
    ):
        code, output = invoke(*arguments)
        assert code == 2
        (line,) = [line for line in output.splitlines() if line.startswith("error:")]
        assert "race_bootstraps.json is not valid JSON" in line
    assert not (tmp_path / "out").exists()


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "1.csv").write_text("image_ref,timestamp,lat,lng,split\n")
    code, output = invoke("ingest", "--study", str(tmp_path / "study"), str(tmp_path / "1.csv"))
    assert (code, "no image could be read" in output.replace("\n", " ")) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("map", "--out", "."), "is not a PNG file; expected a name"),
        (("map", "--out", "city.pdf"), "is not a PNG file; expected a name"),
        (("dashboard", "--allow", "http://name"), "is not an origin; expected host:port"),
        (("dashboard", "--published", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_an_impossible_map_or_page_is_refused_before_any_work(arguments, message, tmp_path):
    (tmp_path / "study.yaml").write_text("name: x")
    code, output = invoke(*arguments, "--study", str(tmp_path))
    assert (code, message in output) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]


def test_help_lists_commands_in_groups_with_whole_sentences():
    code, output = invoke("--help")
    assert code == 0
    titles = [line for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[1:] == ["Whole studies:", "Inputs:", "Detectors:", "Estimates:", "Results:", "Clusters:"]
    sentences = re.split(r"\n  (?=[a-z])", output.partition("Whole studies:")[2])
    assert all(re.sub(r"\n\n.*", "", sentence, flags=re.DOTALL).rstrip().endswith(".") for sentence in sentences[1:])


def test_the_version_is_that_of_the_package():
    assert invoke("--version") == (0, f"patrolscope {version('patrolscope')}\n")


def test_files_found_to_be_damaged_while_they_are_read_are_listed_at_once_and_can_be_skipped(tmp_path, client):
    from patrolscope.pipeline.study.store import open_study
    from tests.raw_study import HEADER, raw_study

    lines = [b"ride/r/f%d.jpg,%d,40.7,-73.95,1\n" % (k, 1_602_086_400_000 + 1000 * k) for k in range(20_000)]
    packed = gzip.compress(HEADER + b"".join(lines))
    files = {f"{number}.csv.gz": packed[:-9] for number in range(4)} | {"4.csv.gz": packed}
    root = raw_study(tmp_path, files).root
    ingest = ("ingest", "--cluster", client.scheduler.address, "--study", root)
    code, output = invoke(*ingest)
    assert (code, "4 files are damaged" in output) == (2, True)
    assert all(f"{number}.csv.gz is unreadable" in output.replace("\n", "") for number in range(4))
    assert "4.csv.gz" not in output
    assert "--skip-bad-files" in output
    code, output = invoke(*ingest, "--skip-bad-files")
    assert code == 0, output
    records = open_study(root).records("read").values()
    assert sum(record.rows_out for record in records) == 20_000
    assert sum(count for record in records for count in record.ledger[0]["notes"].values()) == 4
    assert invoke(*ingest)[0] == 0
    assert invoke(*ingest, "--refuse-bad-files")[0] == 2
