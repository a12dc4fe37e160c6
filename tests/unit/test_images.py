"""The image index: its rows, skipped files, and the effect of changes to the image store."""

import io
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.pipeline.contract.tables import IMAGE_INDEX
from patrolscope.pipeline.detect.commands import adopt_sources, index_summary, list_again
from patrolscope.pipeline.detect.image_index import cut, image_id_of
from patrolscope.pipeline.detect.image_store import ImageStore
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES, indexed_shards
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study, open_study


def fill(folder, files) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content of {name}".encode())


def study_of(folder, *sources: str, **settings) -> Study:
    return create_study(folder, Settings.model_validate({"images": {"sources": sources, **settings}}))


def finish(study) -> pd.DataFrame:
    """Bring the index up to date as a run does, without a cluster."""
    for stage in (PREFIXES, INDEX):
        shards = stage.plan(study)
        for shard in unfinished(study, stage, shards, study.records(stage.name)):
            stage.finish(study, shard)
    files = [file for record in study.records(INDEX.name).values() for file in record.files]
    rows = pd.concat([study.read(file) for file in files], ignore_index=True)
    IMAGE_INDEX.check_key(rows)
    return rows.sort_values(["source", "path", "offset"], ignore_index=True)


def names(study) -> set[str]:
    return {name for name, *_ in indexed_shards(study)}


def dropped(study) -> dict[str, int]:
    lines = [line for record in study.records(INDEX.name).values() for line in record.ledger]
    reasons = {reason for line in lines for reason in line["dropped"]}
    return {reason: sum(line["dropped"].get(reason, 0) for line in lines) for reason in reasons}


def rides(count: int, images: int) -> list[str]:
    return [f"ride/{ride:032x}/{number}.jpg" for ride in range(count) for number in range(images)]


# Rows of the index.


@pytest.mark.parametrize("files", [rides(3, 4), rides(80, 2), ["a.jpg"], ["a.jpg", "x/b.png", "x/y/z/c.jpeg"]])
def test_every_image_of_a_folder_has_one_row_with_its_size_and_time(tmp_path, files):
    fill(tmp_path / "store", files)
    index = finish(study_of(tmp_path, "store"))
    assert index["path"].tolist() == sorted(files)
    assert index["image_id"].tolist() == [name.rsplit(".", 1)[0] for name in sorted(files)]
    sizes = [(tmp_path / "store" / name).stat().st_size for name in sorted(files)]
    assert index["bytes"].tolist() == sizes
    assert (pd.Timestamp.now("UTC") - index["modified_at_utc"]).max() < pd.Timedelta("10min")


def test_hidden_files_are_ignored_and_other_files_counted_by_reason(tmp_path):
    fill(tmp_path / "store", ["a.JPG", "b.txt", "c/d.pdf", ".hidden.jpg", ".git/e.jpg", "f.tar.gz", "noending"])
    study = study_of(tmp_path, "store")
    assert finish(study)["path"].tolist() == ["a.JPG"]
    assert dropped(study) == {
        "file without an image extension (.txt)": 1,
        "file without an image extension (.pdf)": 1,
        "file without an image extension": 1,
        "compressed tar file, whose images cannot be read one by one: unpack it to .tar": 1,
    }


def test_links_to_folders_are_not_followed(tmp_path):
    fill(tmp_path / "store", ["a/1.jpg"])
    (tmp_path / "store" / "a" / "up").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert finish(study_of(tmp_path, "store"))["path"].tolist() == ["a/1.jpg"]


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def test_images_in_tar_files_are_indexed_and_read_by_byte_range(tmp_path):
    (tmp_path / "store").mkdir()
    write_tar(tmp_path / "store" / "9f2c.tar", {"1.jpg": b"one", "1.json": b"{}", "2.jpg": b"two two"})
    write_tar(tmp_path / "store" / "part-0.tar", {"./ride/07aa/3.jpg": b"three", "../../out.jpg": b"x"})
    study = study_of(tmp_path, "store")
    index = finish(study)
    assert index["image_id"].tolist() == ["9f2c/1", "9f2c/2", "ride/07aa/3"]
    assert index["bytes"].tolist() == [3, 7, 5]
    store = ImageStore.of(study, "store")
    contents = [store.read(row.path, row.offset, row.offset + row.bytes) for row in index.itertuples()]
    assert contents == [b"one", b"two two", b"three"]
    assert dropped(study) == {
        "file without an image extension (.json)": 1,
        "tar member whose path leaves the tar file": 1,
    }


def test_a_damaged_tar_file_is_counted_and_stops_nothing(tmp_path):
    (tmp_path / "store").mkdir()
    write_tar(tmp_path / "store" / "a.tar", {"1.jpg": bytes(5_000), "2.jpg": bytes(5_000)})
    content = (tmp_path / "store" / "a.tar").read_bytes()
    (tmp_path / "store" / "a.tar").write_bytes(content[:6_200])
    fill(tmp_path / "store", ["b.jpg", "c.tar"])
    study = study_of(tmp_path, "store")
    assert finish(study)["image_id"].tolist()[-1] == "b"
    assert dropped(study) == {
        "damaged part of a tar file, around which images are indexed: a.tar": 1,
        "damaged part of a tar file, around which images are indexed: c.tar": 1,
    }


def test_links_in_a_tar_file_are_images_with_the_content_of_their_target(tmp_path):
    (tmp_path / "store").mkdir()
    with tarfile.open(tmp_path / "store" / "a.tar", "w") as tar:
        header = tarfile.TarInfo("ride/0.jpg")
        header.size = 3
        tar.addfile(header, io.BytesIO(b"one"))
        for name, kind, target in [
            ("ride/1.jpg", tarfile.LNKTYPE, "ride/0.jpg"),
            ("ride/2.jpg", tarfile.SYMTYPE, "1.jpg"),
            ("ride/3.jpg", tarfile.SYMTYPE, "3.jpg"),
            ("ride/4.jpg", tarfile.LNKTYPE, "."),
            ("ride/5.jpg", tarfile.CHRTYPE, ""),
        ]:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    study = study_of(tmp_path, "store")
    index = finish(study)
    assert sorted(index["image_id"]) == ["ride/0", "ride/1", "ride/2"]
    assert index["bytes"].tolist() == [3, 3, 3]
    assert set(index["offset"]) == {512}
    assert dropped(study) == {"link that leads to no file": 2, "device, FIFO, or socket": 1}


@pytest.mark.parametrize("top", [True, False])
def test_links_and_special_files_are_counted_by_reason(tmp_path, top):
    fill(tmp_path / "store", ["a/1.jpg"] if top else rides(70, 1))
    folder = tmp_path / "store" if top else tmp_path / "store" / "ride"
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "itself").symlink_to("itself")
    (folder / "nowhere.jpg").symlink_to("nowhere")
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo.jpg")
    study = study_of(tmp_path, "store")
    assert len(finish(study)) == (1 if top else 70)
    assert dropped(study) == {
        "link that leads to no file": 3,
        "link to a folder, which is not followed": 1,
        "device, FIFO, or socket": 1,
    }


def test_names_that_are_not_utf8_are_counted_and_stop_nothing(tmp_path):
    fill(tmp_path / "store", ["ride/a/1.jpg"])
    for name in (b"ride/a/caf\xe9.jpg", b"ride/caf\xe9/1.jpg", b"caf\xe9.tar"):
        path = tmp_path / "store" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"content")
    with tarfile.open(tmp_path / "store" / "b.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("ride/b/1.jpg", "ride/b/caf\xe9.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    study = study_of(tmp_path, "store")
    assert sorted(finish(study)["image_id"]) == ["ride/a/1", "ride/b/1"]
    assert dropped(study) == {"name that is not UTF-8": 4}


@pytest.mark.parametrize(
    ("path", "member", "expected"),
    [
        ("ride/9f/1.jpg", None, "ride/9f/1"),
        ("ride/9f/2020.10.05.jpg", None, "ride/9f/2020.10.05"),
        ("ride/9f.tar", "1.jpg", "ride/9f/1"),
        ("part-1.tar", "ride/9f/1.jpg", "ride/9f/1"),
    ],
)
def test_the_id_of_an_image_is_its_path_without_the_extension(path, member, expected):
    assert image_id_of(path, member) == expected


# Invalid sources.


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "nowhere does not exist; expected a folder"), ("file.jpg", "file.jpg is a file; expected a folder")],
)
def test_a_source_that_is_not_a_folder_is_rejected_and_nothing_written(tmp_path, source, message):
    fill(tmp_path, ["file.jpg"])
    with pytest.raises(SourceError, match=message):
        adopt_sources(str(tmp_path / "study"), [str(tmp_path / source)])
    assert not (tmp_path / "study").exists()


def test_an_unknown_protocol_is_rejected(tmp_path):
    with pytest.raises(SourceError, match=r"cannot list nosuch://x .*expected a folder"):
        adopt_sources(str(tmp_path / "study"), ["nosuch://x"])


def test_a_source_inside_another_one_is_rejected(tmp_path):
    fill(tmp_path / "store", ["a/1.jpg"])
    study = study_of(tmp_path, "store", "store/a")
    with pytest.raises(SourceError, match=r"images\.sources: .* hold the same files"):
        PREFIXES.plan(study)


def test_a_folder_without_images_is_an_error(tmp_path):
    fill(tmp_path / "store", ["a.txt"])
    study = study_of(tmp_path, "store")
    for stage in (PREFIXES, INDEX):
        for shard in stage.plan(study):
            stage.finish(study, shard)
    with pytest.raises(SourceError, match="holds no image"):
        index_summary(study)


# Changes to the image store.


def test_a_run_reuses_the_index_and_listing_again_finds_changes(tmp_path):
    fill(tmp_path / "store", rides(12, 30))
    study = study_of(tmp_path, "store", shard_images=40)
    finish(study)
    before = names(study)
    fill(tmp_path / "store", [f"ride/{99:032x}/{number}.jpg" for number in range(30)])
    finish(study)
    assert names(study) == before
    list_again(study)
    finish(study)
    assert len(names(study) - before) == 1
    assert before < names(study)

    changed = tmp_path / "store" / f"ride/{3:032x}" / "7.jpg"
    changed.write_bytes(b"another image")
    before = names(study)
    list_again(study)
    finish(study)
    assert (len(before - names(study)), len(names(study) - before)) == (1, 1)
    list_again(study)
    assert names(study) == set()


def test_an_interrupted_listing_is_resumed(tmp_path):
    fill(tmp_path / "store", rides(12, 2))
    study = study_of(tmp_path, "store")
    finish(study)
    list_again(study)
    for shard in PREFIXES.plan(study):
        PREFIXES.finish(study, shard)
    first, *others = INDEX.plan(study)
    INDEX.finish(study, first)
    list_again(study)
    left = unfinished(study, INDEX, INDEX.plan(study), study.records(INDEX.name))
    assert left == others


folder_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=20)


def rows(sizes) -> list[dict]:
    return [
        {"source": "s", "path": f"{folder:03d}/{n:03d}.jpg", "member": None, "offset": None, "bytes": 1, "version": "v"}
        for folder, size in sizes
        for n in range(size)
    ]


@given(folder_sizes, st.integers(1, 40))
def test_shards_hold_every_image_once_in_order_within_the_maximum(sizes, max_images):
    all_rows = rows(enumerate(sizes))
    shards = cut(all_rows, max_images)
    assert [row for _, images in shards for row in images] == all_rows
    assert all(0 < len(images) <= max_images for _, images in shards)
    assert len({name for name, _ in shards}) == len(shards)


@given(folder_sizes, st.integers(8, 40), st.data())
def test_a_folder_that_fills_an_eighth_of_a_shard_changes_no_other_shard(sizes, max_images, data):
    sizes = [max(size, -(-max_images // 8)) for size in sizes]
    added = data.draw(st.integers(0, len(sizes) - 1))
    after = {name for name, _ in cut(rows(enumerate(sizes)), max_images)}
    before = {name for name, _ in cut(rows(pair for pair in enumerate(sizes) if pair[0] != added), max_images)}
    assert before <= after


def test_an_additional_image_changes_few_shards():
    for sizes in ([1_000], [2] * 500):
        before = rows(enumerate(sizes))
        after = before[:400] + rows([(200, 3)])[2:] + before[400:] if len(sizes) > 1 else before[:400] + before[401:]
        old, new = ({name for name, _ in cut(images, 50)} for images in (before, after))
        assert len(old) > 20
        assert len(old ^ new) <= 6


# Object stores.


def test_a_bucket_is_indexed_like_a_folder(tmp_path, s3):
    files = [*rides(5, 3), "top.jpg", "notes.txt"]
    s3.mkdir("dashcams")
    s3.pipe({f"dashcams/store/{name}": f"content of {name}".encode() for name in files})
    study = study_of(tmp_path / "remote", "s3://dashcams/store", shard_images=2)
    index = finish(study)
    fill(tmp_path / "store", files)
    local = finish(study_of(tmp_path / "local", str(tmp_path / "store"), shard_images=2))
    columns = ["image_id", "path", "bytes"]
    pd.testing.assert_frame_equal(index[columns], local[columns])
    store = ImageStore.of(study, "s3://dashcams/store")
    assert store.read(index["path"][0]) == f"content of {index['path'][0]}".encode()
    assert store.read("gone.jpg") is None

    before = names(study)
    s3.pipe(f"dashcams/store/ride/{1:032x}/0.jpg", b"another image")
    s3.pipe(f"dashcams/store/ride/{2:032x}/0.jpg", f"content of ride/{2:032x}/0.jpg".encode())
    list_again(study)
    finish(study)
    assert len(before - names(study)) == 1  # a file that is written again with the same content has the same version


def test_images_in_a_tar_file_of_a_bucket_are_read_in_part(tmp_path, s3):
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": bytes([number]) * 2_000 for number in range(20)})
    s3.mkdir("packed")
    s3.put(str(tmp_path / "a.tar"), "packed/ride/9f.tar")
    study = study_of(tmp_path, "s3://packed")
    index = finish(study)
    assert len(index) == 20
    store = ImageStore.of(study, "s3://packed")
    row = index.iloc[7]
    assert store.read(row["path"], row["offset"], row["offset"] + row["bytes"]) == bytes([7]) * 2_000


def test_a_missing_bucket_is_reported_in_one_line_without_secrets(tmp_path, s3):
    with pytest.raises(SourceError, match=r"images\.sources: s3://nosuchbucket/x does not exist") as caught:
        adopt_sources(str(tmp_path / "study"), ["s3://nosuchbucket/x"])
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_is_reported_in_one_line(tmp_path, s3, monkeypatch):
    from botocore.exceptions import EndpointConnectionError

    def unreachable(*_arguments, **_options):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    monkeypatch.setattr(type(s3), "isdir", unreachable)
    with pytest.raises(SourceError, match=r"cannot list s3://dashcams/x .*127\.0\.0\.1:9"):
        adopt_sources(str(tmp_path / "study"), ["s3://dashcams/x"])


def test_adopting_sources_creates_a_study_and_reports_it_once(tmp_path):
    fill(tmp_path / "store", ["a.jpg"])
    root, source = str(tmp_path / "study"), str(tmp_path / "store")
    (line,) = adopt_sources(root, [source])
    assert line.endswith(f"study.yaml now has images.sources: {source}")
    assert adopt_sources(root, [source]) == adopt_sources(root, []) == []
    assert open_study(root).settings.images.sources == (source,)


class WithoutRanges(BaseHTTPRequestHandler):
    """Server that ignores byte ranges, as some file servers do."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(1000))

    def log_message(self, *_arguments) -> None:
        pass


def test_a_server_that_ignores_byte_ranges_is_reported_in_one_line():
    with ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        store = ImageStore(root, fsspec.filesystem("http"), root)
        assert store.read("a.jpg") == bytes(1000)
        with pytest.raises(SourceError, match="expected a server that answers byte ranges"):
            store.read("a.tar", 100, 200)
        server.shutdown()
