"""The wide file: against plain merges of the layer files, in every form, stopped, and pointed at the wrong place."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import shapely
from typer.testing import CliRunner

from patrolscope import cli
from patrolscope.pipeline.contract.tables import B03002_PUBLISHED, PUBLISHED
from patrolscope.pipeline.engine.run import Progress
from patrolscope.pipeline.errors import ContractError, SettingsError, StageNotRunError, StorageError
from patrolscope.pipeline.export.export import export_published
from patrolscope.pipeline.export.wide import image_columns, load_gazetteer, wide
from patrolscope.pipeline.study.store import create_study, open_study
from tests.wide_study import reference, wide_study

WINDOWS_H = (1, 3, 6)
# The authors' dictionary, in its order; {} is table B03002, as in their table of counts.
DICTIONARY_TEXT = """
    image_ref timestamp lat lng split conf has_prediction time_and_date_of_image hour day_of_week day_of_month month
    weekend phase nighttime geometry
    point_of_nearest_crime_1hr desc_of_nearest_crime_1hr time_of_nearest_crime_1hr distance_from_nearest_crime_1hr
    point_of_nearest_crime_3hr desc_of_nearest_crime_3hr time_of_nearest_crime_3hr distance_from_nearest_crime_3hr
    point_of_nearest_crime_6hr desc_of_nearest_crime_6hr time_of_nearest_crime_6hr distance_from_nearest_crime_6hr
    distance_from_nearest_police_station index_right index STATEFP20 COUNTYFP20 TRACTCE20 BLKGRPCE20 GEOID20 NAMELSAD20
    MTFCC20 FUNCSTAT20 ALAND20 AWATER20 INTPTLAT20 INTPTLON20 NAME
    {}
    GEO_ID median_household_income density_cbg centroid index_ct ctlabel borocode boroname ct2020 boroct2020 cdeligibil
    ntaname nta2020 cdta2020 cdtaname geoid shape_leng shape_area Pop_20 BCT2020 GeoID Hsp_20P WNH_20P BNH_20P ANH_20P
    ONH_20P NH2pl_20P density_tract
"""
DICTIONARY = DICTIONARY_TEXT.format(" ".join(B03002_PUBLISHED.values())).split()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return wide_study(tmp_path_factory.mktemp("wide") / "study")


@pytest.fixture(scope="module")
def expected(study):
    return reference(study)


@pytest.fixture(scope="module")
def gazetteer(study):
    return load_gazetteer(study, study.record("layers").fingerprint)


@pytest.fixture(scope="module")
def whole(study, client, tmp_path_factory):
    """The one file as Parquet."""
    return Path(export_published(study, str(tmp_path_factory.mktemp("out") / "w.parquet"), client=lambda: client))


def columns_of_b03002(shared_data: Path) -> list[str]:
    return list(pd.read_csv(shared_data / "census" / "nyc_cbgs_ethnicity_table.csv", nrows=0).columns)[2:]


def test_the_columns_are_those_of_the_dictionary_then_zone_and_precinct(whole):
    assert len(DICTIONARY) == 114
    assert pq.read_schema(whole).names == PUBLISHED.names == [*DICTIONARY, "zone", "precinct"]


@pytest.mark.shared
def test_the_counts_are_in_the_order_of_the_authors_table(shared_data):
    assert list(B03002_PUBLISHED.values()) == columns_of_b03002(shared_data)


@pytest.mark.parametrize("column", [*DICTIONARY, "zone", "precinct"])
def test_a_column_equals_plain_merges_of_the_layer_files(column, whole, expected):
    got = pq.read_table(whole, columns=[column])[column].to_pandas()
    wanted = expected[column]
    assert len(got) == len(wanted) == 6_000
    missing = wanted.isna().to_numpy()
    assert (got.isna().to_numpy() == missing).all()
    assert not missing.all()
    got, wanted = got[~missing], wanted[~missing]
    if column in ("geometry", "centroid") or column.startswith("point_of"):
        away_ft = shapely.distance(shapely.from_wkt(got.to_numpy()), np.array(wanted.tolist(), dtype=object))
        assert away_ft.max() < 0.001
    elif PUBLISHED[column].kind in ("float64", "int64", "int8"):
        # The reference measures with another library: sizes and densities agree to rounding.
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=1e-9)
    else:
        assert got.tolist() == wanted.tolist()


def test_the_made_up_study_holds_what_could_go_wrong(expected):
    assert expected["GEOID20"].isna().any()
    assert (expected["GEOID20"].notna() & expected["geoid"].isna()).any()
    offsets = expected["time_and_date_of_image"].str[-6:]
    assert set(offsets) == {"-04:00", "-05:00"}
    assert expected["ntaname"].dropna().str.contains('"').all()


@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_rows_do_not_depend_on_how_the_images_were_cut(pieces, study, gazetteer, whole):
    images = pd.concat([study.read(file, columns=image_columns(WINDOWS_H)) for file in study.files("annotated")])
    edges = np.linspace(0, len(images), pieces + 1).astype(int)
    zone = study.settings.city.time_zone
    parts = [wide(images.iloc[start:end], gazetteer, WINDOWS_H, zone) for start, end in itertools.pairwise(edges)]
    assert pa.concat_tables(parts).equals(pq.read_table(whole))


def test_one_file_and_many_as_csv_and_as_parquet_hold_the_same(study, whole, client, tmp_path):
    table = pq.read_table(whole)
    folder = Path(export_published(study, str(tmp_path / "many"), client=lambda: client))
    files = sorted(folder.rglob("*.parquet"))
    assert len(files) == len(study.files("annotated")) > 3
    assert pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).equals(table)

    schema = table.schema.remove_metadata()
    convert = pyarrow.csv.ConvertOptions(
        column_types={field.name: field.type for field in schema},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )

    def csv(path: Path) -> pa.Table:
        return pyarrow.csv.read_csv(path, convert_options=convert).cast(table.schema)

    one = Path(export_published(study, str(tmp_path / "w.csv"), client=lambda: client))
    assert csv(one).equals(table)
    folder = Path(export_published(study, str(tmp_path / "texts"), form="csv", client=lambda: client))
    assert pa.concat_tables([csv(file) for file in sorted(folder.rglob("*.csv"))]).equals(table)


def test_codes_are_plain_digits_and_flags_are_0_or_1(whole):
    table = pq.read_table(whole, columns=["GEOID20", "GEO_ID", "geoid", "GeoID", "COUNTYFP20", "nighttime"]).to_pandas()
    for name in ("GEOID20", "GEO_ID", "geoid", "GeoID"):
        assert table[name].dropna().str.fullmatch("[0-9]{11}").all()
    assert set(table["COUNTYFP20"].dropna()) == {"061"}
    assert set(table["nighttime"]) == {0, 1}


class StoppedError(Exception):
    """The export was stopped."""


class StoppedAfterTwo(Progress):
    def __init__(self):
        self.parts = 0

    def advance(self, stage, shard, record):
        self.parts += 1
        if self.parts == 2:
            raise StoppedError


class Watched(Progress):
    def __init__(self):
        self.done_before, self.made = {}, {}

    def start(self, stage, done, total, causes):
        self.done_before[stage.name], self.made[stage.name] = done, 0

    def advance(self, stage, shard, record):
        self.made[stage.name] += record.rows_out


def test_an_interrupted_export_resumes_and_writes_the_same_file(study, whole, client, tmp_path):
    out = tmp_path / "w.parquet"
    with pytest.raises(StoppedError):
        export_published(study, str(out), client=lambda: client, progress=StoppedAfterTwo())
    assert not out.exists()
    left_half = tmp_path / "w.parquet.parts" / "published" / ".part.parquet.0123.tmp"
    left_half.write_bytes(b"PAR1")
    watched = Watched()
    export_published(study, str(out), client=lambda: client, progress=watched)
    assert watched.done_before["export"] > 0
    assert watched.done_before["export"] + watched.made["export"] == watched.made["join"] == 6_000
    assert pq.read_table(out).equals(pq.read_table(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.parquet", "w.parquet.json"]


def test_an_export_that_was_killed_with_its_file_in_place_recognizes_it(study, client, tmp_path, monkeypatch):
    def killed(*_arguments):
        raise StoppedError

    out = tmp_path / "w.csv"
    with monkeypatch.context() as patched:
        patched.setattr("patrolscope.pipeline.export.export._write_note", killed)
        with pytest.raises(StoppedError):
            export_published(study, str(out), client=lambda: client)
    content = out.read_bytes()
    export_published(study, str(out), client=lambda: client)
    assert out.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.csv", "w.csv.json"]


def no_client():
    raise AssertionError("unexpected work")


def test_only_a_stale_export_is_written_again(study, client, tmp_path):
    out = str(tmp_path / "w.parquet")
    export_published(study, out, client=lambda: client)
    assert export_published(study, out, client=no_client) == out
    note = Path(f"{out}.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"made_from": "something else"}))
    with pytest.raises(AssertionError, match="unexpected work"):
        export_published(study, out, client=no_client)


# Errors.


@pytest.mark.parametrize(
    ("name", "what"),
    [("w.csv", ""), ("w.parquet", ""), ("w.csv", ".json"), ("w.csv", ".parts/mine.txt"), ("folder", "/mine.txt")],
)
def test_other_files_are_overwritten_only_with_force(name, what, study, client, tmp_path):
    out = tmp_path / name
    mine = Path(f"{out}{what}")
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(SettingsError, match=rf"{name}.* not .*--force"):
        export_published(study, str(out), client=no_client)
    assert mine.read_text() == "mine"
    export_published(study, str(out), client=lambda: client, force=True)
    export_published(study, str(out), client=no_client)


def test_a_file_that_was_changed_since_is_not_overwritten(study, client, tmp_path):
    out = tmp_path / "w.parquet"
    export_published(study, str(out), client=lambda: client)
    out.write_text("mine")
    with pytest.raises(SettingsError, match="did not write it"):
        export_published(study, str(out), client=no_client)


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_refused(study, tmp_path):
    (tmp_path / "w.csv").mkdir()
    (tmp_path / "w").write_text("mine")
    with pytest.raises(SettingsError, match=r"w\.csv is a folder"):
        export_published(study, str(tmp_path / "w.csv"), client=no_client, force=True)
    with pytest.raises(SettingsError, match="w is a file"):
        export_published(study, str(tmp_path / "w"), client=no_client, force=True)


def test_an_unwritable_folder_is_named(study, tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("w.csv", "folder"):
        with pytest.raises(StorageError, match="cannot create folder"):
            export_published(study, str(tmp_path / "file" / name), client=no_client)


def test_a_study_is_no_place_for_an_export(study):
    with pytest.raises(SettingsError, match="is a study"):
        export_published(study, study.root, client=no_client, force=True)


def test_the_form_is_named_once_and_known(study, tmp_path):
    with pytest.raises(SettingsError, match=r"--format csv conflicts with .*w\.parquet, which ends in \.parquet"):
        export_published(study, str(tmp_path / "w.parquet"), form="csv", client=no_client)
    with pytest.raises(SettingsError, match="--format feather is unknown; expected csv or parquet"):
        export_published(study, str(tmp_path / "w"), form="feather", client=no_client)
    assert not list(tmp_path.iterdir())


def test_the_error_for_a_study_without_annotations_names_the_command(study, tmp_path):
    bare = create_study(tmp_path / "bare", study.settings)
    with pytest.raises(StageNotRunError, match="patrolscope run"):
        export_published(bare, str(tmp_path / "w.csv"), client=no_client)
    for folder in ("manifest", "areas"):
        shutil.copytree(Path(study.base) / folder, Path(bare.base) / folder)
    with pytest.raises(StageNotRunError, match=r"(\d+) of \1 files of annotated/ .* run `patrolscope annotate --study"):
        export_published(open_study(bare.root), str(tmp_path / "w.csv"), client=no_client)


def test_the_error_for_a_study_without_census_tables_names_the_command(study, tmp_path):
    older = create_study(tmp_path / "older", study.settings)
    for folder in ("manifest", "areas", "annotated"):
        shutil.copytree(Path(study.base) / folder, Path(older.base) / folder)
    Path(older.path("areas", "census.parquet")).unlink()
    with pytest.raises(StageNotRunError, match=r"no areas/census\.parquet.*run `patrolscope annotate --study"):
        export_published(older, str(tmp_path / "w.csv"), client=no_client)


def test_a_felony_that_only_the_source_knows_keeps_its_time(study, gazetteer):
    images = study.read(study.files("annotated")[0], columns=image_columns(WINDOWS_H))
    zone = study.settings.city.time_zone
    ours, trusted = (
        wide(frame, gazetteer, WINDOWS_H, zone)
        for frame in (images, images.assign(felony_6h_id=np.nan).astype(images.dtypes))
    )
    assert trusted["time_of_nearest_crime_6hr"].equals(ours["time_of_nearest_crime_6hr"])
    assert trusted["point_of_nearest_crime_6hr"].null_count == len(images)


def test_an_unknown_area_or_felony_is_refused(study, gazetteer):
    images = study.read(study.files("annotated")[0], columns=image_columns(WINDOWS_H))
    zone = study.settings.city.time_zone
    with pytest.raises(ContractError, match=r"'36061999999' in annotated/ is not in areas/areas\.parquet"):
        wide(images.assign(area="36061999999"), gazetteer, WINDOWS_H, zone)
    later = images["felony_6h_started_at_utc"] + pd.Timedelta("1ms")
    with pytest.raises(ContractError, match=r"is not in areas/felonies\.parquet; run `patrolscope annotate`"):
        wide(images.assign(felony_6h_started_at_utc=later), gazetteer, WINDOWS_H, zone)


def test_the_command_prints_what_will_be_exported(study, tmp_path):
    arguments = ["export", "--study", study.root, "--out", str(tmp_path / "w.csv")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "--published" in result.output
