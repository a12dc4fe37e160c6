"""Downloads from a real server on this machine: whole, interrupted, resumed, refused; and files from a folder."""

import hashlib
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.catalog import AcceptedFile, CatalogEntry, load_catalog, locate
from patrolscope.pipeline.geography.download import fetch, fetch_all
from patrolscope.pipeline.study.config import Layer, Settings
from patrolscope.pipeline.study.store import create_study

CONTENT = np.random.default_rng(3).bytes(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Shop:
    """What the server sells, and what was asked of it."""

    content: bytes = CONTENT
    tag: str | None = '"v1"'
    changed: str | None = None  # Last-Modified
    ranges: bool = True
    says_length: bool = True
    ends_after: int | None = None  # bytes, then the connection breaks
    stalls: bool = False  # instead of breaking
    status: int = 200
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: Shop

    def do_GET(self):
        shop = self.shop
        shop.asked.append(dict(self.headers))
        self.close_connection = True
        if shop.status != 200:
            self.send_error(shop.status)
            return
        first = self._first_byte()
        if first is not None and first >= len(shop.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(shop.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = shop.content[first or 0 :]
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{len(shop.content) - 1}/{len(shop.content)}")
        for name, value in (("ETag", shop.tag), ("Last-Modified", shop.changed)):
            if value is not None:
                self.send_header(name, value)
        self.send_header(*(("Content-Length", str(len(body))) if shop.says_length else ("Connection", "close")))
        self.end_headers()
        body = body[: shop.ends_after]
        self.wfile.write(body)
        self.wfile.flush()
        shop.sent.append(len(body))
        while shop.stalls:
            time.sleep(0.05)

    def _first_byte(self):
        shop = self.shop
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not shop.ranges or self.headers.get("If-Range") not in (shop.tag, shop.changed):
            return None
        return int(asked[1])

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sold = Shop()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisTest", (Handler,), {"shop": sold}))
    sold.address = f"http://127.0.0.1:{server.server_address[1]}/data.bin"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield sold
    sold.stalls = False
    server.shutdown()
    thread.join()
    server.server_close()


def entry_for(address, sha256=DIGEST, **changes):
    fields = {
        "title": "Some data",
        "agency": "Gotham",
        "address": address,
        "format": "CSV",
        "license": "none",
        "vintage": "2020",
        "columns": {},
        "files": (AcceptedFile(name="data.bin", sha256=sha256), AcceptedFile(name="data_*.csv")),
        "reader": "read_areas",
        "used_by": ("tests",),
    }
    return CatalogEntry(**{**fields, **changes})


def get(shop, cache, **changes):
    return fetch("some_data", entry_for(shop.address, **changes), cache, progress=False)


def files_in(cache):
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


WHOLE = ["some_data.json", "some_data/data.bin"]


# From the network.


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_file_comes_whole_and_is_not_asked_for_again(shop, tmp_path, sha256):
    path = get(shop, tmp_path, sha256=sha256)
    assert path == tmp_path / "some_data" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == WHOLE
    assert get(shop, tmp_path, sha256=sha256) == path
    assert len(shop.asked) == 1
    assert "Range" not in shop.asked[0]


@pytest.mark.parametrize(("tag", "changed"), [('"v1"', None), ('W/"v1"', "Mon, 05 Oct 2020 08:00:00 GMT")])
def test_an_interrupted_download_asks_only_for_the_rest(shop, tmp_path, tag, changed):
    shop.tag, shop.changed, shop.ends_after = tag, changed, 400_000
    with pytest.raises(SourceError, match=r"run the same command to resume"):
        get(shop, tmp_path)
    had = (tmp_path / "some_data" / "data.bin.part").stat().st_size
    assert 300_000 < had <= 400_000
    assert not (tmp_path / "some_data" / "data.bin").exists()
    shop.ends_after = None
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.asked[1]["Range"] == f"bytes={had}-"
    assert shop.asked[1]["If-Range"] == (changed or tag)
    assert shop.sent == [400_000, len(CONTENT) - had]
    assert files_in(tmp_path) == WHOLE


def test_a_download_that_is_interrupted_again_and_again_ends_whole(shop, tmp_path):
    shop.ends_after = 300_000
    for _ in range(3):
        with pytest.raises(SourceError):
            get(shop, tmp_path, sha256=None)
    assert get(shop, tmp_path, sha256=None).read_bytes() == CONTENT


def test_a_killed_download_goes_on_where_it_stopped(shop, tmp_path):
    shop.ends_after, shop.stalls = 500_000, True
    program = (
        "import sys; from pathlib import Path; from patrolscope.pipeline.geography.catalog import CatalogEntry;"
        "from patrolscope.pipeline.geography.download import fetch;"
        "fetch('some_data', CatalogEntry.model_validate_json(sys.argv[1]), Path(sys.argv[2]), progress=False)"
    )
    command = [sys.executable, "-c", program, entry_for(shop.address).model_dump_json(), str(tmp_path)]
    process = subprocess.Popen(command)
    part = tmp_path / "some_data" / "data.bin.part"
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 400_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(SourceError, match="being fetched by another process"):
            get(shop, tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    had = part.stat().st_size
    shop.ends_after, shop.stalls = None, False
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.asked[-1]["Range"] == f"bytes={had}-"
    assert files_in(tmp_path) == WHOLE


def interrupted(shop, cache, **changes):
    shop.ends_after = 400_000
    with pytest.raises(SourceError):
        get(shop, cache, **changes)
    shop.ends_after = None


def test_a_server_that_can_not_resume_sends_everything_again(shop, tmp_path):
    shop.ranges = False
    interrupted(shop, tmp_path)
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.sent == [400_000, len(CONTENT)]


def test_a_file_that_has_changed_in_between_is_taken_anew(shop, tmp_path):
    interrupted(shop, tmp_path, sha256=None)
    shop.content, shop.tag = CONTENT[::-1], '"v2"'
    assert get(shop, tmp_path, sha256=None).read_bytes() == CONTENT[::-1]


def test_a_server_that_names_no_version_is_asked_for_everything(shop, tmp_path):
    shop.tag = None
    interrupted(shop, tmp_path)
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert "Range" not in shop.asked[1]


def test_what_another_address_left_is_not_continued(shop, tmp_path):
    interrupted(shop, tmp_path)
    shop.address += "?issue=2"
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert "Range" not in shop.asked[1]


def test_a_download_that_stopped_after_the_last_byte_is_complete(shop, tmp_path):
    interrupted(shop, tmp_path)
    (tmp_path / "some_data" / "data.bin.part").write_bytes(CONTENT)
    assert get(shop, tmp_path).read_bytes() == CONTENT
    assert shop.sent == [400_000]


def test_a_part_that_is_too_long_is_thrown_away(shop, tmp_path):
    interrupted(shop, tmp_path)
    (tmp_path / "some_data" / "data.bin.part").write_bytes(CONTENT + b"x")
    assert get(shop, tmp_path).read_bytes() == CONTENT


def test_a_length_that_the_server_does_not_say_is_no_obstacle(shop, tmp_path):
    shop.says_length = False
    assert get(shop, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_left(shop, tmp_path):
    shop.content = CONTENT[:-1] + b"\x00"
    with pytest.raises(SourceError, match=DIGEST):
        get(shop, tmp_path)
    assert files_in(tmp_path) == []
    shop.content = CONTENT
    assert get(shop, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_of_the_server_is_reported_with_the_address(shop, tmp_path, status):
    shop.status = status
    with pytest.raises(SourceError, match=rf"{status}.*{re.escape(shop.address)}"):
        get(shop, tmp_path)
    assert files_in(tmp_path) == []


def test_no_network_is_reported_with_the_address(tmp_path):
    address = "http://127.0.0.1:9/data.bin"  # nothing listens on the discard port
    with pytest.raises(SourceError, match=re.escape(address)):
        fetch("some_data", entry_for(address), tmp_path, progress=False)


def test_a_file_that_was_spoiled_in_the_cache_is_fetched_again(shop, tmp_path):
    path = get(shop, tmp_path, sha256=None)
    path.write_bytes(b"short")
    assert get(shop, tmp_path, sha256=None).read_bytes() == CONTENT


def test_a_catalog_with_another_checksum_fetches_again(shop, tmp_path):
    get(shop, tmp_path)
    shop.content = CONTENT[::-1]
    new = hashlib.sha256(shop.content).hexdigest()
    assert get(shop, tmp_path, sha256=new).read_bytes() == shop.content


def test_progress_is_drawn_from_where_the_download_goes_on(shop, tmp_path, capsys):
    interrupted(shop, tmp_path)
    assert capsys.readouterr().err == ""
    fetch("some_data", entry_for(shop.address), tmp_path)
    drawn = capsys.readouterr().err
    assert "data.bin" in drawn
    assert "100%" in drawn
    assert "1.00M/1.00M" in drawn


def test_what_can_not_be_downloaded_is_refused_with_what_to_do(tmp_path):
    entry = load_catalog()["acs_2020_b03002"]
    with pytest.raises(SourceError) as error:
        fetch("acs_2020_b03002", entry, tmp_path)
    assert str(error.value) == entry.how


def test_a_cache_that_can_not_be_written_is_reported(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(SourceError, match="cannot write to the cache"):
        fetch("some_data", entry_for("https://data.gotham.test"), tmp_path / "cache")


# From a folder.


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    return folder


def take(folder, cache, **changes):
    return fetch("some_data", entry_for("https://data.gotham.test", **changes), cache, from_dir=folder)


def test_a_file_is_found_below_a_folder(folder, tmp_path):
    (folder / "deep" / "er" / "data.bin").write_bytes(CONTENT)
    path = take(folder, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path / "cache") == WHOLE


def test_the_official_file_is_preferred(folder, tmp_path):
    (folder / "data_2020.csv").write_bytes(b"other")
    (folder / "deep" / "data.bin").write_bytes(CONTENT)
    assert take(folder, tmp_path / "cache").name == "data.bin"


def test_a_file_that_matches_a_pattern_keeps_its_name(folder, tmp_path):
    (folder / "data_2020.csv").write_bytes(b"other")
    path = take(folder, tmp_path / "cache")
    assert path == tmp_path / "cache" / "some_data" / "data_2020.csv"


def test_another_file_of_the_entry_takes_the_place_of_the_first(folder, tmp_path):
    (folder / "data_2020.csv").write_bytes(b"one")
    take(folder, tmp_path / "cache")
    (folder / "data.bin").write_bytes(CONTENT)
    take(folder, tmp_path / "cache")
    assert files_in(tmp_path / "cache") == WHOLE


def test_several_files_that_match_are_named(folder, tmp_path):
    for name in ("data_1.csv", "data_2.csv"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"data_1\.csv.*data_2\.csv"):
        take(folder, tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


def test_a_folder_without_the_file_is_reported_with_what_was_looked_for(folder, tmp_path):
    with pytest.raises(SourceError, match=r"holds no file for some_data.*data\.bin, data_\*\.csv"):
        take(folder, tmp_path / "cache")


def test_a_folder_that_is_none_is_reported(tmp_path):
    with pytest.raises(SourceError, match="nowhere is not a folder"):
        take(tmp_path / "nowhere", tmp_path / "cache")


def test_a_file_of_a_folder_with_a_wrong_checksum_is_refused_and_nothing_is_left(folder, tmp_path):
    (folder / "data.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(SourceError, match=DIGEST):
        take(folder, tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


def test_a_file_that_can_be_had_elsewhere_replaces_nothing_when_it_is_bad(folder, tmp_path):
    (folder / "data.bin").write_bytes(CONTENT)
    path = take(folder, tmp_path / "cache")
    (folder / "data.bin").write_bytes(b"bad")
    with pytest.raises(SourceError):
        take(folder, tmp_path / "cache")
    assert path.read_bytes() == CONTENT


@pytest.mark.shared
def test_the_real_data_come_from_their_folder(shared_data, tmp_path):
    lines = list(fetch_all([], cache=tmp_path / "cache", from_dir=shared_data))
    absent = {line.split(":")[0] for line in lines if ": none of " in line}
    assert absent == {"nypd_complaints_historic", "zoning_districts"}
    study = create_study(tmp_path / "study", Settings())
    for _, layer in study.settings.layers:
        if layer.entry not in absent:
            assert locate(layer, study, tmp_path / "cache")[1].is_file()
    with pytest.raises(SourceError, match="patrolscope fetch nypd_complaints_historic"):
        locate(Layer(entry="nypd_complaints_historic"), study, tmp_path / "cache")
