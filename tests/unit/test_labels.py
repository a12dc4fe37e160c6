import os
import uuid

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from patrolscope.pipeline.contract.tables import DETECTIONS
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.intake import detection_files as labels
from patrolscope.pipeline.intake.detection_files import read_labels
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import create_study

OFFICER = b"0 0.5 0.5 0.1 0.1 0.9\n"
VEHICLE = b"1 0.4 0.4 0.2 0.2 0.25\n"


def read(*contents: bytes, police_class: int = 1) -> tuple[pd.DataFrame, dict[str, int]]:
    ledger = Ledger("labels", len(contents))
    found = read_labels(contents, police_class=police_class, ledger=ledger)
    return found, ledger.close(len(found))["notes"]


def label_study(folder, files: dict[str, bytes], roots=("labels",), **detection):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return create_study(folder, Settings.model_validate({"sources": {"detections": roots}, "detection": detection}))


def finish(study) -> pd.DataFrame:
    for shard in LABELS.plan(study):
        LABELS.finish(study, shard)
    parts = [study.read(file) for file in study.files("detections")]
    detections = pd.concat(parts).sort_values("image_id", ignore_index=True)
    DETECTIONS.check_key(detections)
    return detections


# One file.


def test_the_score_is_the_highest_confidence_of_the_police_class():
    found, _ = read(VEHICLE + OFFICER + b"1 0.1 0.1 0.1 0.1 0.35\n")
    assert found.to_dict("records") == [{"status": "scored", "score": 0.35, "score_any": 0.9, "boxes": 3}]


def test_a_file_without_a_police_box_is_scored_and_has_no_score():
    found, _ = read(OFFICER)
    assert found["status"].tolist() == ["scored"]
    assert found["score"].isna().all()
    assert found["score_any"].tolist() == [0.9]


def test_an_empty_file_is_an_image_without_a_box():
    found, notes = read(b"", b"\n \n", VEHICLE)
    assert found["status"].tolist() == ["scored"] * 3
    assert found["boxes"].tolist() == [0, 0, 1]
    assert found["score_any"].isna().tolist() == [True, True, False]
    assert notes == {"detection file without lines: image without boxes": 2}


def test_lines_that_the_detector_appended_again_count_once():
    found, notes = read(2 * (VEHICLE + OFFICER), VEHICLE, VEHICLE)
    assert found["boxes"].tolist() == [2, 1, 1]
    assert notes == {"box repeated in the same file: counted once": 2}


def test_boxes_without_confidence_make_a_file_unreadable_never_a_negative():
    found, notes = read(VEHICLE + b"1 0.4 0.4 0.2 0.2\n", VEHICLE)
    assert found["status"].tolist() == ["unreadable", "scored"]
    assert found.loc[0, ["score", "score_any"]].isna().all()
    assert notes == {"detection file with a box without confidence: unreadable": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"1 0.4 0.4 0.2 0.2 nan",
        b"1 0.4 0.4 0.2 0.2 1.01",
        b"1 0.4 0.4 0.2 0.2 -0.1",
        b"1 0.4 0.4 0.2 1e999 0.5",
        b"1.0 0.4 0.4 0.2 0.2 0.5",
        b"-1 0.4 0.4 0.2 0.2 0.5",
        b"1 0.4 0.4 0.2 0.2 0.5 0.5",
        b"1,0.4,0.4,0.2,0.2,0.5",
        b"1 0.4 0.4 0.2\r0.2 0.5",
        b"police 0.4 0.4 0.2 0.2 0.5",
        b"\xff\xfe1 0.4",
        b"\x00",
    ],
)
def test_a_line_that_is_not_a_box_makes_only_its_file_unreadable(line):
    found, notes = read(VEHICLE, VEHICLE + line + b"\n" + OFFICER, OFFICER)
    assert found["status"].tolist() == ["scored", "unreadable", "scored"]
    assert found["boxes"].tolist() == [1, 0, 1]
    assert notes == {"detection file with a line that is not a box: unreadable": 1}


def test_a_file_on_disk_that_is_far_too_large_is_not_read_to_its_end(tmp_path):
    study = label_study(tmp_path, {"labels/a.txt": VEHICLE * 500_000, "labels/b.txt": VEHICLE})
    assert labels._head(f"{tmp_path}/labels/a.txt").startswith(VEHICLE)
    assert len(labels._head(f"{tmp_path}/labels/a.txt")) <= 2 * labels.LARGEST_FILE + 2**14
    assert finish(study)["status"].tolist() == ["unreadable", "scored"]


def test_a_file_that_is_far_too_large_is_unreadable():
    found, notes = read(VEHICLE * 60_000)
    assert found["status"].tolist() == ["unreadable"]
    assert notes == {"detection file larger than 1 MiB: unreadable": 1}


def test_line_ends_blanks_and_a_byte_order_mark_do_not_matter():
    plain, _ = read(VEHICLE + OFFICER)
    other, _ = read(b"\xef\xbb\xbf" + VEHICLE.replace(b" ", b"\t ").replace(b"\n", b"\r\n") + b" " + OFFICER.rstrip())
    assert_frame_equal(other, plain)


@given(
    files=st.lists(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([0.1, 0.25, 0.5]), st.floats(0, 1, allow_subnormal=False)),
            max_size=5,
        ),
        max_size=8,
    )
)
def test_scores_are_those_of_a_plain_loop_over_the_boxes(files):
    contents = [b"".join(b"%d %g 0.5 0.1 0.1 %g\n" % box for box in boxes) for boxes in files]
    found, _ = read(*contents)
    for boxes, got in zip(files, found.itertuples(), strict=True):
        different = {(number, place, float(f"{conf:g}")) for number, place, conf in boxes}
        police = [conf for number, _, conf in different if number == 1]
        assert got.boxes == len(different)
        assert got.score == max(police) if police else np.isnan(got.score)
        assert got.score_any == max(conf for *_, conf in different) if different else np.isnan(got.score_any)


@pytest.mark.shared
def test_real_output_of_a_detector_that_ran_four_times_has_seven_boxes(shared_data):
    folder = shared_data / "yolo_outputs"
    four_times = (folder / "bus_save_txt_save_conf_rerun_4x.txt").read_bytes()
    without = [(folder / f"{name}_save_txt_no_conf.txt").read_bytes() for name in ("bus", "horses")]
    found, notes = read(four_times, *without, police_class=5)
    assert found["status"].tolist() == ["scored", "unreadable", "unreadable"]
    assert found["boxes"].tolist() == [7, 0, 0]
    confs = [float(line.split()[5]) for line in four_times.splitlines() if line.startswith(b"5 ")]
    assert found["score"][0] == max(confs)
    assert notes["box repeated in the same file: counted once"] == 21


# The stage.


def test_every_detection_file_below_the_root_is_one_row_named_by_its_path(tmp_path):
    files = {"labels/ride/9f2c/07.txt": VEHICLE, "labels/08.txt": OFFICER, "labels/.hidden.txt": VEHICLE}
    study = label_study(tmp_path, {**files, "labels/ride/readme.md": b"", "labels/ride/9f2c/a.b.txt": b""})
    detections = finish(study)
    assert detections["image_id"].tolist() == ["08", "ride/9f2c/07", "ride/9f2c/a.b"]
    assert detections["boxes"].tolist() == [1, 1, 0]


def test_the_police_class_is_the_one_of_the_settings(tmp_path):
    study = label_study(tmp_path, {"labels/a.txt": VEHICLE + OFFICER}, police_class="police officer")
    assert finish(study)["score"].tolist() == [0.9]


@pytest.mark.parametrize("files_per_shard", [1, 3, 7, 20_000])
def test_detections_do_not_depend_on_the_size_of_shards(files_per_shard, tmp_path, monkeypatch):
    files = {
        f"labels/{folder}{place:02d}.txt": b"1 0.5 0.5 0.1 0.1 %g\n" % (place / 20)
        for folder in ("", "a/", "a/b/", "c/")
        for place in range(5)
    }
    monkeypatch.setattr(labels, "FILES_PER_SHARD", files_per_shard)
    study = label_study(tmp_path, files)
    shards = LABELS.plan(study)
    assert [shard.size for shard in shards[:-1]] == [files_per_shard] * (len(shards) - 1)
    detections = finish(study)
    assert detections["image_id"].tolist() == sorted(name[len("labels/") : -4] for name in files)
    assert detections["score"].tolist() == [int(name[-2:]) / 20 for name in detections["image_id"]]


@pytest.mark.parametrize("batch_bytes", [1, 1000, 2**24])
def test_detections_do_not_depend_on_how_many_files_are_read_at_once(batch_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_BATCH_BYTES", batch_bytes)
    boxes = {place: b"".join(b"1 0.5 0.5 0.1 0.1 0.%03d\n" % n for n in range(place)) for place in (1, 2, 600, 900)}
    study = label_study(
        tmp_path, {f"labels/{place:03d}-{n:03d}.txt": boxes[place] for place in boxes for n in range(90)}
    )
    detections = finish(study)
    assert detections["boxes"].tolist() == sorted(list(boxes) * 90)
    assert detections["score"].tolist() == [(boxes - 1) / 1000 for boxes in detections["boxes"]]


def test_shards_do_not_depend_on_the_order_in_which_the_folder_is_listed(tmp_path, monkeypatch):
    study = label_study(tmp_path, {f"labels/{ride}/{place}.txt": VEHICLE for ride in "ba" for place in range(9)})
    planned = LABELS.plan(study)
    listed = os.scandir

    class Backwards:
        def __init__(self, place):
            self.entries = listed(place)

        def __enter__(self):
            return reversed(list(self.entries))

        def __exit__(self, *_):
            self.entries.close()

    monkeypatch.setattr(labels.os, "scandir", Backwards)
    assert LABELS.plan(study) == planned


def test_a_changed_file_makes_only_its_shard_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "FILES_PER_SHARD", 2)
    study = label_study(tmp_path, {f"labels/{place}.txt": VEHICLE for place in range(6)})
    finish(study)
    (tmp_path / "labels" / "3.txt").write_bytes(VEHICLE + OFFICER)
    todo = unfinished(study, LABELS, LABELS.plan(study), study.records("labels"))
    assert [shard.name for shard in todo] == ["00-00001"]


def test_another_police_class_makes_all_shards_stale(tmp_path):
    study = label_study(tmp_path, {"labels/a.txt": VEHICLE})
    finish(study)
    other = label_study(tmp_path, {}, police_class=0)
    assert len(unfinished(other, LABELS, LABELS.plan(other), other.records("labels"))) == 1


def test_several_folders_are_read_and_none_twice(tmp_path):
    files = {"night/a.txt": VEHICLE, "day/b.txt": OFFICER}
    assert finish(label_study(tmp_path, files, roots=["night", "day"]))["image_id"].tolist() == ["a", "b"]
    for roots in (["night", "night/"], [".", "day"]):
        with pytest.raises(SourceError, match="hold the same files"):
            LABELS.plan(label_study(tmp_path, {}, roots=roots))


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match=r"sources\.detections: labels is not a folder"):
        LABELS.plan(label_study(tmp_path, {}))


def test_a_folder_without_detection_files_is_refused_as_an_unmounted_disk(tmp_path):
    with pytest.raises(
        SourceError, match=r"detections: labels holds no detection file .* check that the disk is mounted"
    ):
        LABELS.plan(label_study(tmp_path, {"labels/list.csv": b""}))


def test_files_added_during_a_run_are_reported(tmp_path):
    study = label_study(tmp_path, {"labels/a.txt": VEHICLE, "labels/c.txt": VEHICLE})
    (shard,) = LABELS.plan(study)
    label_study(tmp_path, {"labels/b.txt": VEHICLE})
    with pytest.raises(
        SourceError, match="labels had 2 detection files for shard 00-00000 when they were listed, and has 3"
    ):
        LABELS.finish(study, shard)


def test_a_study_without_label_folders_has_nothing_to_read(tmp_path):
    assert LABELS.plan(label_study(tmp_path, {}, roots=())) == []


def test_labels_on_an_object_store_are_read():
    root = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    for name, content in {"ride/a.txt": VEHICLE, "b.txt": b""}.items():
        store.pipe_file(f"{root.removeprefix('memory:/')}/labels/{name}", content)
    study = create_study(root, Settings.model_validate({"sources": {"detections": "labels"}}))
    assert finish(study)["image_id"].tolist() == ["b", "ride/a"]


def test_files_added_to_a_bucket_since_it_was_listed_are_read(tmp_path, s3):
    s3.mkdir("labels")
    elsewhere = type(s3)(skip_instance_cache=True)  # as another machine
    study = create_study(tmp_path, Settings.model_validate({"sources": {"detections": "s3://labels"}}))
    for names in (["a", "b [1]"], ["a", "b [1]", "c"]):
        elsewhere.pipe({f"labels/ride/{name}.txt": VEHICLE for name in names})
        assert finish(study)["image_id"].tolist() == [f"ride/{name}" for name in names]


def test_every_entry_beside_detection_files_is_counted_with_its_reason(tmp_path):
    study = label_study(tmp_path, {"labels/a.txt": VEHICLE, "labels/B.TXT": VEHICLE, "labels/deep/er/c.Txt": VEHICLE})
    folder = tmp_path / "labels"
    (folder / "a.json").write_text("{}")
    (folder / "classes").write_text("police")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(VEHICLE)
    (folder / "itself.txt").symlink_to(folder / "itself.txt")
    (folder / "up.txt").symlink_to(folder)
    (folder / "linked.txt").symlink_to(folder / "a.txt")
    os.mkfifo(folder / "pipe.txt")
    assert finish(study)["image_id"].tolist() == ["B", "a", "deep/er/c", "linked"]
    (line,) = study.records("labels")["left-out"].ledger
    assert line["notes"] == {
        "files that are not detection files (broken link, pipe, or device): not read": 2,
        "files that are not detection files (extension .json): not read": 1,
        "files that are not detection files (link to a folder): not read": 1,
        "files that are not detection files (name that is not UTF-8): not read": 1,
        "files that are not detection files (no extension): not read": 1,
    }
