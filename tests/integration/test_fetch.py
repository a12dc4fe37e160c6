"""Downloads from a real server: complete, interrupted, resumed, and refused; and files from a folder."""

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
from tests.waiting import wait_until

CONTENT = np.random.default_rng(3).bytes(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Behavior of the server, and the requests it got."""

    content: bytes = CONTENT
    tag: str | None = '"v1"'
    changed: str | None = None  # Last-Modified
    ranges: bool = True
    sends_length: bool = True
    ends_after: int | None = None  # bytes, then the connection breaks
    stalls: bool = False  # instead of breaking
    status: int = 200
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self):
        server = self.state
        server.requests.append(dict(self.headers))
        self.close_connection = True
        if server.status != 200:
            self.send_error(server.status)
            return
        first = self._first_byte()
        if first is not None and first >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.content[first or 0 :]
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        for name, value in (("ETag", server.tag), ("Last-Modified", server.changed)):
            if value is not None:
                self.send_header(name, value)
        self.send_header(*(("Content-Length", str(len(body))) if server.sends_length else ("Connection", "close")))
        self.end_headers()
        body = body[: server.ends_after]
        self.wfile.write(body)
        self.wfile.flush()
        server.sent.append(len(body))
        while server.stalls:
            time.sleep(0.05)

    def _first_byte(self):
        server = self.state
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not server.ranges or self.headers.get("If-Range") not in (server.tag, server.changed):
            return None
        return int(asked[1])

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sold = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisTest", (Handler,), {"state": sold}))
    sold.address = f"http://127.0.0.1:{http.server_address[1]}/data.bin"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield sold
    sold.stalls = False
    http.shutdown()
    thread.join()
    http.server_close()


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


def get(server, cache, **changes):
    return fetch("some_data", entry_for(server.address, **changes), cache, progress=False)


def files_in(cache):
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


WHOLE = ["some_data.json", "some_data/data.bin"]


# From the network.


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_file_is_downloaded_completely_and_only_once(server, tmp_path, sha256):
    path = get(server, tmp_path, sha256=sha256)
    assert path == tmp_path / "some_data" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == WHOLE
    assert get(server, tmp_path, sha256=sha256) == path
    assert len(server.requests) == 1
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize(("tag", "changed"), [('"v1"', None), ('W/"v1"', "Mon, 05 Oct 2020 08:00:00 GMT")])
def test_an_interrupted_download_requests_only_the_rest(server, tmp_path, tag, changed):
    server.tag, server.changed, server.ends_after = tag, changed, 400_000
    with pytest.raises(SourceError, match=r"run the same command to resume"):
        get(server, tmp_path)
    had = (tmp_path / "some_data" / "data.bin.part").stat().st_size
    assert 300_000 < had <= 400_000
    assert not (tmp_path / "some_data" / "data.bin").exists()
    server.ends_after = None
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={had}-"
    assert server.requests[1]["If-Range"] == (changed or tag)
    assert server.sent == [400_000, len(CONTENT) - had]
    assert files_in(tmp_path) == WHOLE


def test_a_download_that_is_interrupted_repeatedly_is_complete_in_the_end(server, tmp_path):
    server.ends_after = 300_000
    for _ in range(3):
        with pytest.raises(SourceError):
            get(server, tmp_path, sha256=None)
    assert get(server, tmp_path, sha256=None).read_bytes() == CONTENT


def test_a_killed_download_resumes_where_it_stopped(server, tmp_path):
    server.ends_after, server.stalls = 500_000, True
    program = (
        "import sys; from pathlib import Path; from patrolscope.pipeline.geography.catalog import CatalogEntry;"
        "from patrolscope.pipeline.geography.download import fetch;"
        "fetch('some_data', CatalogEntry.model_validate_json(sys.argv[1]), Path(sys.argv[2]), progress=False)"
    )
    command = [sys.executable, "-c", program, entry_for(server.address).model_dump_json(), str(tmp_path)]
    process = subprocess.Popen(command)
    part = tmp_path / "some_data" / "data.bin.part"
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 400_000, process=process)
        with pytest.raises(SourceError, match="being fetched by another process"):
            get(server, tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    had = part.stat().st_size
    server.ends_after, server.stalls = None, False
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={had}-"
    assert files_in(tmp_path) == WHOLE


def interrupted(server, cache, **changes):
    server.ends_after = 400_000
    with pytest.raises(SourceError):
        get(server, cache, **changes)
    server.ends_after = None


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.ranges = False
    interrupted(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == [400_000, len(CONTENT)]


def test_a_file_that_changed_in_between_is_downloaded_again(server, tmp_path):
    interrupted(server, tmp_path, sha256=None)
    server.content, server.tag = CONTENT[::-1], '"v2"'
    assert get(server, tmp_path, sha256=None).read_bytes() == CONTENT[::-1]


def test_a_server_without_versions_sends_the_whole_file(server, tmp_path):
    server.tag = None
    interrupted(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


def test_a_part_from_another_address_is_not_continued(server, tmp_path):
    interrupted(server, tmp_path)
    server.address += "?issue=2"
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


def test_a_download_that_stopped_after_the_last_byte_is_complete(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / "some_data" / "data.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == [400_000]


def test_a_part_that_is_too_long_is_discarded(server, tmp_path):
    interrupted(server, tmp_path)
    (tmp_path / "some_data" / "data.bin.part").write_bytes(CONTENT + b"x")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_download_works_without_a_length(server, tmp_path):
    server.sends_length = False
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    server.content = CONTENT[:-1] + b"\x00"
    with pytest.raises(SourceError, match=DIGEST):
        get(server, tmp_path)
    assert files_in(tmp_path) == []
    server.content = CONTENT
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_of_the_server_is_reported_with_the_address(server, tmp_path, status):
    server.status = status
    with pytest.raises(SourceError, match=rf"{status}.*{re.escape(server.address)}"):
        get(server, tmp_path)
    assert files_in(tmp_path) == []


def test_no_network_is_reported_with_the_address(tmp_path):
    address = "http://127.0.0.1:9/data.bin"  # nothing listens on the discard port
    with pytest.raises(SourceError, match=re.escape(address)):
        fetch("some_data", entry_for(address), tmp_path, progress=False)


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server, tmp_path):
    path = get(server, tmp_path, sha256=None)
    path.write_bytes(b"short")
    assert get(server, tmp_path, sha256=None).read_bytes() == CONTENT


def test_a_catalog_with_another_checksum_fetches_again(server, tmp_path):
    get(server, tmp_path)
    server.content = CONTENT[::-1]
    new = hashlib.sha256(server.content).hexdigest()
    assert get(server, tmp_path, sha256=new).read_bytes() == server.content


def test_progress_starts_where_the_download_resumes(server, tmp_path, capsys):
    interrupted(server, tmp_path)
    assert capsys.readouterr().err == ""
    fetch("some_data", entry_for(server.address), tmp_path)
    drawn = capsys.readouterr().err
    assert "data.bin" in drawn
    assert "100%" in drawn
    assert "1.00M/1.00M" in drawn


def test_an_entry_without_download_is_refused_with_advice(tmp_path):
    entry = load_catalog()["acs_2020_b03002"]
    with pytest.raises(SourceError) as error:
        fetch("acs_2020_b03002", entry, tmp_path)
    assert str(error.value) == entry.how


def test_a_read_only_cache_is_reported(tmp_path):
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


def test_a_folder_without_the_file_is_reported_with_the_expected_names(folder, tmp_path):
    with pytest.raises(SourceError, match=r"holds no file for some_data.*data\.bin, data_\*\.csv"):
        take(folder, tmp_path / "cache")


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(SourceError, match="nowhere is not a folder"):
        take(tmp_path / "nowhere", tmp_path / "cache")


def test_a_file_of_a_folder_with_a_wrong_checksum_is_refused_and_nothing_is_left(folder, tmp_path):
    (folder / "data.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(SourceError, match=DIGEST):
        take(folder, tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


def test_a_damaged_file_from_elsewhere_replaces_nothing(folder, tmp_path):
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
