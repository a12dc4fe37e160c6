"""Labels without scores, and the images of a study that they name."""

import pandas as pd
import pytest

from patrolscope.analysis.stages.ground_truth import join_labels, named_in, read_labels
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.ledger import Ledger

RIDE = "ride/00aa"


def images(**changes) -> pd.DataFrame:
    """Five images of a study; the name `twice` stands in two rides."""
    references = [
        f"{RIDE}/one.jpg",
        f"{RIDE}/two.jpg",
        f"{RIDE}/twice.jpg",
        "ride/00bb/twice.jpg",
        f"{RIDE}/not_run.jpg",
    ]
    frame = pd.DataFrame({"image_ref": references, "source": "a", "source_row": range(5)})
    return frame.assign(conf=[0.9, None, 0.2, 0.3, None], processed=[True, True, True, True, False], **changes)


def labels(tmp_path, rows: dict[str, int], column: str = "image_ref") -> pd.DataFrame:
    path = tmp_path / "labels.csv"
    pd.DataFrame({column: list(rows), "ground_truth": list(rows.values())}).to_csv(path, index=False)
    return read_labels(str(path))


def joined(read: pd.DataFrame, frame: pd.DataFrame | None = None) -> tuple[pd.DataFrame, Ledger]:
    ledger = Ledger("labels", len(read))
    return join_labels(read, images() if frame is None else frame, ledger), ledger


@pytest.mark.parametrize("written", [f"{RIDE}/one.jpg", f"/store/{RIDE}/one.png", "00aa/one", "one.jpg", "one"])
@pytest.mark.parametrize("column", ["image_ref", "image"])
def test_an_image_is_found_by_its_reference_a_path_or_its_name(tmp_path, written, column):
    found, ledger = joined(labels(tmp_path, {written: 1}, column))
    assert found["image_ref"].tolist() == [f"{RIDE}/one.jpg"]
    assert found[["ground_truth", "score"]].to_numpy().tolist() == [[1, 0.9]]
    assert not ledger.dropped


def test_an_image_without_a_box_has_no_score():
    read = pd.DataFrame({"image": ["two"], "ground_truth": [0], "key": ["two"]})
    assert joined(read)[0]["score"].isna().all()


def test_labels_that_can_not_be_used_are_counted_with_their_reason(tmp_path):
    rows = {"one.jpg": 1, f"{RIDE}/one.jpg": 1, "twice": 1, "00bb/twice.jpg": 0, "not_run": 0, "nowhere.jpg": 1}
    found, ledger = joined(labels(tmp_path, rows))
    assert found["image_ref"].tolist() == [f"{RIDE}/one.jpg", "ride/00bb/twice.jpg"]
    assert dict(ledger.dropped) == {
        "no image of this name in annotated/": 1,
        "several images of this name in annotated/": 1,
        "a second label of the same image": 1,
        "not processed by the detector": 1,
    }
    ledger.close(len(found))


def test_an_image_that_the_study_holds_twice_is_refused(tmp_path):
    twice = pd.concat([images(), images()], ignore_index=True)
    with pytest.raises(SourceError, match="none of 1 labels names one image of the study"):
        joined(labels(tmp_path, {f"{RIDE}/one.jpg": 1}), twice)


def test_only_images_that_a_label_names_are_taken(tmp_path):
    read = labels(tmp_path, {"twice": 1, f"{RIDE}/two.jpg": 0})
    assert named_in(images(), read)["source_row"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"nowhere.jpg": 1}, "none of 1 labels names one image of the study, the first 'nowhere.jpg'"),
        ({"one.jpg": 1, f"{RIDE}/one.jpg": 0}, "1 images have two labels that differ: ride/00aa/one.jpg"),
        ({"not_run.jpg": 1}, "none of the 1 labeled images was run through the detector"),
    ],
)
def test_labels_that_say_nothing_of_the_study_are_refused(tmp_path, rows, message):
    with pytest.raises(SourceError, match=message):
        joined(labels(tmp_path, rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV file"),
        ("image_ref,truth\na,1\n", "has the columns image_ref, truth; expected ground_truth, and image_ref or image"),
        ("file,ground_truth\na,1\n", "expected ground_truth, and image_ref or image"),
        (
            "image_ref,ground_truth\na,1\nb,\n",
            "1 of 2 rows have a ground_truth that is neither 0 nor 1, the first nothing",
        ),
        ("image_ref,ground_truth\na,yes\n", "neither 0 nor 1, the first 'yes' in row 1"),
        ("image_ref,ground_truth\na,0.5\n", "neither 0 nor 1, the first '0.5' in row 1"),
        ("image_ref,ground_truth\n,1\n", "1 of 1 rows name no image"),
    ],
)
def test_a_labels_file_that_can_not_be_read_is_refused_with_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        read_labels(str(path))


def test_a_labels_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"none\.csv does not exist; --ground-truth"):
        read_labels(str(tmp_path / "none.csv"))
