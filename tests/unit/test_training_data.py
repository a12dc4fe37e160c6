"""Reading of labeled images from a folder, and rejected input."""

import json
from collections import Counter

import numpy as np
import pytest

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.train.check import check
from patrolscope.pipeline.train.data import check_classes, class_mapping, read_collection
from tests.image_files import of_every_kind
from tests.labeled_squares import NAMES, SIDE, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "data", 24)


def everything(collection):
    return {example.name: example.boxes for examples in collection.splits.values() for example in examples}


def test_yolo_text_and_coco_json_of_the_same_images_give_the_same_collection(tmp_path, folder):
    yolo, coco = read_collection(folder), read_collection(write(tmp_path / "coco", 24, form="coco"))
    assert yolo.class_names == coco.class_names == ("red", "blue")
    assert {split: [example.name for example in examples] for split, examples in yolo.splits.items()} == {
        split: [example.name for example in examples] for split, examples in coco.splits.items()
    }
    for name, boxes in everything(yolo).items():
        np.testing.assert_allclose(boxes, everything(coco)[name], atol=1e-9)
    assert yolo.faults == coco.faults == ()


def test_all_images_of_a_ride_are_in_the_split_of_splits_csv(folder):
    found = read_collection(folder)
    assert {split: {example.ride for example in examples} for split, examples in found.splits.items()} == {
        "train": {f"ride{n}" for n in range(6)},
        "validation": {"ride6"},
        "test": {"ride7"},
    }


def test_without_splits_csv_rides_are_split_by_name_and_stay_when_others_are_added(tmp_path):
    few, many = (write(tmp_path / f"{rides}", rides, rides=rides) for rides in (60, 64))
    where = []
    for folder in (few, many):
        (folder / "splits.csv").unlink()
        found = read_collection(folder)
        where.append({example.ride: split for split, examples in found.splits.items() for example in examples})
    assert where[0].items() <= where[1].items()
    shares = Counter(where[1].values())
    assert 40 <= shares["train"] <= 56
    assert min(shares.values()) >= 2


def test_rides_of_one_place_are_in_the_same_split(tmp_path):
    rides = 64
    folder = write(tmp_path / "data", rides, rides=rides)
    place = {f"ride{n}": f"place{n % 16}" for n in range(rides)}
    (folder / "splits.csv").write_text("ride,place\n" + "".join(f"{r},{p}\n" for r, p in place.items()))
    where = {}
    for split, examples in read_collection(folder).splits.items():
        for example in examples:
            where.setdefault(place[example.ride], set()).add(split)
    assert len(where) == 16
    assert {frozenset(splits) for splits in where.values()} == {
        frozenset({split}) for split in ("train", "validation", "test")
    }


def test_a_ride_in_two_splits_is_rejected(folder):
    with (folder / "splits.csv").open("a") as file:
        file.write("ride3,test\n")
    with pytest.raises(SourceError, match="assigns ride 'ride3' to both train and test"):
        read_collection(folder)


def test_an_image_without_a_label_file_has_no_boxes(folder):
    name = next(name for name, boxes in everything(read_collection(folder)).items() if len(boxes))
    (folder / "labels" / name).with_suffix(".txt").unlink()
    assert everything(read_collection(folder))[name].shape == (0, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.5 0.5 0.5 0.1 0.1", "expected class, center x, center y, width, height"),
        ("0 0.5 0.5 0.1", "expected class, center x, center y, width, height"),
        ("0 0.5 nan 0.1 0.1", "expected class, center x, center y, width, height"),
        ("red 0.5 0.5 0.1 0.1", "expected class, center x, center y, width, height"),
    ],
)
def test_an_invalid_label_is_rejected_with_file_and_line(folder, line, message):
    (folder / "labels" / "ride0" / "0000.txt").write_text(line)
    with pytest.raises(SourceError, match=message) as refused:
        read_collection(folder)
    assert "0000.txt line 1" in str(refused.value)


def test_boxes_of_unknown_classes_are_left_out_and_listed(folder):
    label = folder / "labels" / "ride0" / "0000.txt"
    label.write_text("2 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.1 0.1\n")
    found = read_collection(folder)
    np.testing.assert_allclose(everything(found)["ride0/0000.png"], [[1, 0.5, 0.5, 0.1, 0.1]])
    assert found.faults == tuple(
        f"{label} line {line}: class {kind} is not one of the 2 in classes.txt, left out"
        for line, kind in ((1, 2), (3, -1))
    )


def test_boxes_are_clipped_to_the_image_and_corrections_are_listed(folder):
    (folder / "labels" / "ride0" / "0000.txt").write_text(
        "0 0.95 0.5 0.2 0.2\n1 0.5 0.5 0 0.2\n1 0.2 0.2 0.1 0.1\n1 0.2 0.2 0.1 0.1\n"
    )
    found = read_collection(folder)
    np.testing.assert_allclose(
        everything(found)["ride0/0000.png"], [[0, 0.925, 0.5, 0.15, 0.2], [1, 0.2, 0.2, 0.1, 0.1]], atol=1e-9
    )
    assert [fault.partition(": ")[2] for fault in found.faults] == [
        "a box extends beyond the image, clipped",
        "1 boxes without an area, left out",
        "1 duplicate boxes, left out",
    ]


def spoil(folder, what):
    if what == "no images":
        (folder / "images").rename(folder / "pictures")
    elif what == "no labels":
        (folder / "labels").rename(folder / "tags")
    elif what == "no classes":
        (folder / "classes.txt").unlink()
    elif what == "no class names":
        (folder / "classes.txt").write_text("\n\n")
    elif what == "empty split":
        (folder / "splits.csv").write_text("ride,split\n" + "".join(f"ride{n},train\n" for n in range(8)))
    elif what == "unknown ride":
        (folder / "splits.csv").write_text("ride,split\nride0,train\n")
    elif what == "unknown split":
        (folder / "splits.csv").write_text("ride,split\nride0,training\n")
    else:
        (folder / "splits.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no images", "has no folder images"),
        ("no labels", "has neither labels/ nor a .json nor annotations/"),
        ("no classes", "has no classes.txt"),
        ("no class names", "classes.txt is empty"),
        ("empty split", "the validation split of .* is empty"),
        ("unknown ride", "has no row for ride 'ride1'"),
        ("unknown split", "assigns ride 'ride0' to 'training'"),
        ("other columns", "no usable rows; expected columns ride and split"),
    ],
)
def test_an_unusable_folder_is_rejected_in_one_line(folder, what, message):
    spoil(folder, what)
    with pytest.raises(SourceError, match=message) as refused:
        read_collection(folder)
    assert "\n" not in str(refused.value)


def test_a_document_that_is_not_coco_is_rejected(tmp_path):
    folder = write(tmp_path / "coco", 24, form="coco")
    document = json.loads((folder / "all.json").read_text())
    del document["categories"]
    (folder / "all.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="is not a COCO file"):
        read_collection(folder)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"category_id": 99}, "annotation 0: class 99 is not one of the categories, left out"),
        ({"image_id": -5}, "annotation 0: image -5 is not listed in the file, left out"),
    ],
)
def test_an_annotation_that_contradicts_its_coco_document_is_left_out_and_listed(tmp_path, change, fault):
    folder = write(tmp_path / "coco", 24, form="coco")
    boxes = sum(map(len, everything(read_collection(folder)).values()))
    document = json.loads((folder / "all.json").read_text())
    document["annotations"][0].update(change)
    (folder / "all.json").write_text(json.dumps(document))
    found = read_collection(folder)
    assert found.faults == (f"all.json: {fault}",)
    assert sum(map(len, everything(found).values())) == boxes - 1


def test_coco_images_that_are_missing_or_not_listed_are_reported(tmp_path):
    folder = write(tmp_path / "coco", 24, form="coco")
    (folder / "images/ride0/0000.png").rename(folder / "images/ride0/other.png")
    assert read_collection(folder).faults == (
        "images/ride0/other.png: not in any label file, left out",
        "images/ride0/0000.png: listed but missing",
    )


def test_a_class_without_boxes_is_reported_and_a_set_without_boxes_is_rejected(folder):
    for path in (folder / "labels").rglob("*.txt"):
        path.write_text("".join(line for line in path.read_text().splitlines(True) if line.startswith("0")))
    assert list(check_classes(read_collection(folder))) == [
        "no box of 'blue' in the train split: the detector cannot learn it"
    ]
    for path in (folder / "labels").rglob("*.txt"):
        path.write_text("")
    with pytest.raises(SourceError, match="the train split has no boxes"):
        list(check_classes(read_collection(folder)))


def test_the_summary_counts_images_boxes_and_classes(folder):
    found = read_collection(folder)
    boxes = np.concatenate([example.boxes for example in found.splits["train"]])
    red, blue = (int((boxes[:, 0] == kind).sum()) for kind in (0, 1))
    empty = sum(not len(example.boxes) for example in found.splits["train"])
    share = [sum(kind in example.boxes[:, 0] for example in found.splits["train"]) / 18 for kind in (0, 1)]
    assert found.summary()[0] == (
        f"train: 18 images, {empty} without a box; {red} red (in {share[0]:.1%} of the images), "
        f"{blue} blue (in {share[1]:.1%} of the images)"
    )


def as_voc(folder):
    """Write the labels as Pascal VOC."""
    for name, boxes in everything(read_collection(folder)).items():
        objects = "".join(
            f"<object><name>{NAMES[int(k)]}</name><bndbox><xmin>{(x - w / 2) * SIDE}</xmin>"
            f"<ymin>{(y - h / 2) * SIDE}</ymin>"
            f"<xmax>{(x + w / 2) * SIDE}</xmax><ymax>{(y + h / 2) * SIDE}</ymax></bndbox></object>"
            for k, x, y, w, h in boxes
        )
        path = folder / "annotations" / f"{name.replace('/', '-')}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"<annotation><filename>{name.rpartition('/')[2]}</filename><size><width>{SIDE}</width><height>{SIDE}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )


def as_scale(folder):
    """Write the labels as a task export of Scale AI."""
    tasks = [
        {
            "task_id": name,
            "status": "completed",
            "params": {"attachment": f"https://storage.example/some%20set/{name}?token=1"},
            "response": {
                "annotations": [
                    {
                        "type": "box",
                        "label": NAMES[int(k)],
                        "left": (x - w / 2) * SIDE,
                        "top": (y - h / 2) * SIDE,
                        "width": w * SIDE,
                        "height": h * SIDE,
                    }
                    for k, x, y, w, h in boxes
                ]
            },
        }
        for name, boxes in everything(read_collection(folder)).items()
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))


@pytest.mark.parametrize("convert", [as_voc, as_scale])
def test_other_formats_of_the_same_labels_give_the_same_collection(folder, convert):
    before = everything(read_collection(folder))
    convert(folder)
    (folder / "labels").rename(folder / "other")
    (folder / "classes.txt").unlink()
    found = read_collection(folder)
    assert found.class_names == ("blue", "red"), "neither format numbers its classes"
    assert found.faults == ()
    for name, boxes in everything(found).items():
        renumbered = np.column_stack([1 - boxes[:, 0], boxes[:, 1:]])
        np.testing.assert_allclose(np.sort(renumbered, axis=0), np.sort(before[name], axis=0), atol=1e-9)


def test_classes_are_renamed_merged_and_left_out(folder):
    before = everything(read_collection(folder))
    joined = read_collection(folder, {"red": "color", "blue": "color"})
    assert joined.class_names == ("color",)
    assert all((boxes[:, 0] == 0).all() for boxes in everything(joined).values())
    assert sum(map(len, everything(joined).values())) == sum(map(len, before.values()))
    blue = read_collection(folder, {"red": ""})
    assert blue.class_names == ("blue",)
    assert sum(map(len, everything(blue).values())) == sum((boxes[:, 0] == 1).sum() for boxes in before.values())
    with pytest.raises(SourceError, match="the labels have no such class; expected one of red, blue"):
        read_collection(folder, {"green": "red"})


def test_classes_txt_orders_the_classes_of_any_format(folder):
    as_scale(folder)
    (folder / "labels").rename(folder / "other")
    (folder / "classes.txt").write_text("blue\nvehicle\n")
    joined = read_collection(folder, {"red": "vehicle"})
    assert (joined.class_names, joined.faults) == (("blue", "vehicle"), ())
    red = sum((boxes[:, 0] == 1).sum() for boxes in everything(joined).values())
    assert read_collection(folder).faults == (f"{red} boxes of class 'red', which is not in classes.txt, left out",)


def test_class_options_are_theirs_and_ours():
    assert class_mapping(["cop car = police vehicle", "dog="]) == {"cop car": "police vehicle", "dog": ""}
    with pytest.raises(SourceError, match="THEIRS=OURS"):
        class_mapping(["cop car"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation", "is not valid XML"),
        ("<labels/>", "is not a Pascal VOC file: root element is 'labels'"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares a document type or entities"),
        (
            "<annotation><filename>0000.png</filename><object><name>red</name></object></annotation>",
            "size or bndbox is not numeric",
        ),
    ],
)
def test_xml_without_labels_is_rejected(folder, content, message):
    (folder / "labels").rename(folder / "other")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "a.xml").write_text(content)
    with pytest.raises(SourceError, match=message):
        read_collection(folder)


def test_an_image_with_too_many_pixels_is_reported_by_the_check(folder):
    content = of_every_kind()["webp.webp"][0]
    (folder / "images/ride0/0000.png").write_bytes(
        content[:15] + b"X" + content[16:]
    )  # 103 billion pixels according to its header
    (folder / "labels").rename(folder / "other")
    (folder / "annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for image in (folder / "images").rglob("*.png"):
        content = f"<filename>{image.name}</filename><object><name>{NAMES[0]}</name>{box}</object>"
        (folder / f"annotations/{image.stem}.xml").write_text(f"<annotation>{content}</annotation>")
    assert any("images/ride0/0000.png: cannot be decoded, left out" in line for line in check(folder, size=96))


def test_check_reports_contents_and_every_fault(folder):
    (folder / "images/ride0/0000.png").write_bytes(b"no image")
    (folder / "images/ride6/copy.png").write_bytes((folder / "images/ride1/0001.png").read_bytes())
    (folder / "labels/ride2/0002.txt").write_text("0 0.95 0.5 0.2 0.2")
    lines = list(check(folder, size=96))
    assert lines[0].startswith("train: 17 images")
    assert "100.0% of the boxes match an anchor of yolov7-tiny" in lines
    at = lines.index("3 faults:")
    assert [line.strip().rpartition("/data/")[2] for line in lines[at + 1 :]] == [
        "labels/ride2/0002.txt: a box extends beyond the image, clipped",
        "images/ride0/0000.png: cannot be decoded, left out",
        "images/ride1/0001.png: identical to images/ride6/copy.png, in train and validation: training data leak",
    ]


def test_strict_check_fails_after_reporting_every_fault(folder):
    assert list(check(folder, size=96, strict=True))[-1] == "0 faults"
    (folder / "images/ride6/copy.png").write_bytes((folder / "images/ride1/0001.png").read_bytes())
    (folder / "labels/ride2/0002.txt").write_text("0 0.95 0.5 0.2 0.2")
    lines = []
    with pytest.raises(SourceError, match="found 2 faults; --strict allows none"):
        lines.extend(check(folder, size=96, strict=True))
    assert lines == list(check(folder, size=96))
