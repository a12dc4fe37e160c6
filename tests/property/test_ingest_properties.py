import csv
import io
import math
import re
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from unittest import mock
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from patrolscope.pipeline.contract.tables import TABLES
from patrolscope.pipeline.geography.curve_order import hilbert_key
from patrolscope.pipeline.intake import raw_lines
from patrolscope.pipeline.intake.days import Calendar, cut_day, limits_of
from patrolscope.pipeline.intake.raw_csv import parse_header, read_rows
from patrolscope.pipeline.intake.raw_lines import cut_lines, owned_lines, packed_lines
from patrolscope.pipeline.study.config import Settings
from tests.raw_study import accounts, finish, metadata, quarantine, raw_study
from tests.strategies import frames, raw_files

DEFAULT = Settings()


# A second reader, row by row in plain Python, written from docs/method.md and the reasons.


def reference_fields(line: str) -> list[str] | None:
    """Fields of a line; None if a quote does not enclose a whole field."""
    fields, rest = [], line
    while True:
        if rest.startswith('"'):
            quoted = re.match(r'"((?:[^"]|"")*)"(?=,|$)', rest, re.DOTALL)
            if quoted is None:
                return None
            fields.append(quoted[1].replace('""', '"'))
            rest = rest[quoted.end() :]
        else:
            field, _, _ = rest.partition(",")
            if '"' in field:
                return None
            fields.append(field)
            rest = rest[len(field) :]
        if not rest:
            return fields
        rest = rest[1:]


def reference_number(text: str, pattern: str) -> float | int | None:
    if re.fullmatch(pattern, text, re.ASCII) is None:
        return None
    if "." in pattern:
        return float(text) if math.isfinite(float(text)) else None
    return int(text) if abs(int(text)) < 10**18 else None


def reference_row(raw: bytes) -> tuple[dict | None, str]:
    """The row of a line, or the reason of its rejection."""
    line = raw.removesuffix(b"\r")
    if not line:
        return None, "empty line"
    if line.startswith(b"\xef\xbb\xbf"):
        return None, "byte order mark inside the file"
    if b"\r" in line:
        return None, "carriage return inside the line"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None, "not UTF-8"
    fields = reference_fields(text)
    if fields is None:
        return None, "quotes do not enclose a whole field"
    assert fields == next(csv.reader([text]))
    if len(fields) != 5:
        return None, "wrong number of fields"
    whole, decimal = r"-?[0-9]+", r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    forms = {"timestamp": whole, "lat": decimal, "lng": decimal, "split": whole}
    texts = dict(zip(("image_ref", *forms), fields, strict=True))
    numbers = {name: texts[name].strip(" \t") for name in forms}
    for name, number in numbers.items():
        if not number:
            return None, f"missing {name}"
    row = {"image_ref": texts["image_ref"]}
    row |= {name: reference_number(numbers[name], form) for name, form in forms.items()}
    return (None, reason) if (reason := reference_fault(row)) else (row, "")


def reference_fault(row: dict) -> str:
    if not row["image_ref"]:
        return "missing image_ref"
    for name in ("timestamp", "lat", "lng", "split"):
        if row[name] is None:
            return f"unreadable {name}"
    parts = row["image_ref"].split("/")
    strange = any(part in ("", ".", "..") for part in parts) or re.search(r"[\x00-\x1f\x7f\\]", row["image_ref"])
    if len(parts) != 3 or parts[0] != "ride" or strange:
        return "image_ref is not ride/<ride>/<file>"
    if row["split"] not in (0, 1):
        return "split is not 0 or 1"
    box = DEFAULT.city.bounds
    if not (box.south <= row["lat"] <= box.north and box.west <= row["lng"] <= box.east):
        return "position outside the city"
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row["timestamp"])
    except OverflowError:
        return "time outside the study"
    during = DEFAULT.period.start <= at.astimezone(DEFAULT.city.clock).date() <= DEFAULT.period.end
    return "" if during else "time outside the study"


def reference_ingest(files: dict[str, bytes]) -> tuple[dict, dict, int]:
    """Rows by (file, row), reasons by (file, line), number of duplicates."""
    rows, bad, seen, duplicates = {}, {}, set(), 0
    for name in sorted(files, key=lambda name: int(name.split(".")[0])):
        lines = files[name].removeprefix(b"\xef\xbb\xbf").split(b"\n")[1:]
        for place, line in enumerate(lines[:-1] if lines[-1] == b"" else lines):
            row, reason = reference_row(line)
            if row is None:
                bad[name, place + 2] = reason
                continue
            image = (row["split"], row["lat"], row["lng"], row["timestamp"])
            duplicates += image in seen
            if image not in seen:
                rows[name, place] = row
            seen.add(image)
    return rows, bad, duplicates


@settings(max_examples=80)
@given(first=raw_files(), second=raw_files(), block_bytes=st.integers(1024, 4096), slice_rows=st.integers(1, 50))
def test_every_line_of_a_damaged_file_is_a_row_a_duplicate_or_in_quarantine_with_its_reason(
    first, second, block_bytes, slice_rows
):
    files = {"1602000000000.csv": first, "999.csv": second}
    with tempfile.TemporaryDirectory() as folder:
        ingest = {"block_bytes": block_bytes, "slice_rows": slice_rows}
        study = raw_study(Path(folder), files, ingest=ingest)
        records = finish(study)
        got, bad = metadata(study), quarantine(study)
    rows, reasons, duplicates = reference_ingest(files)
    assert dict(zip(zip(bad["source"], bad["line"], strict=True), bad["reason"], strict=True)) == reasons
    assert sorted(rows) == list(zip(got["source"], got["source_row"], strict=True))
    expected = [rows[key] for key in sorted(rows)]
    assert got["image_ref"].tolist() == [row["image_ref"] for row in expected]
    assert got["ride_id"].tolist() == [row["image_ref"].split("/")[1] for row in expected]
    assert got["captured_at_utc"].astype("int64").tolist() == [row["timestamp"] for row in expected]
    assert got[["lat", "lng", "split"]].to_dict("records") == [
        {name: row[name] for name in ("lat", "lng", "split")} for row in expected
    ]
    lines_in, rows_out, set_aside, dropped = accounts(records)
    assert lines_in == rows_out + set_aside + dropped
    assert (rows_out, set_aside, dropped) == (len(rows), len(reasons), duplicates)


@settings(max_examples=150)
@given(raw=raw_files(), piece_bytes=st.integers(1, 400))
def test_a_row_does_not_depend_on_other_rows(raw, piece_bytes):
    header = parse_header(raw, where="raw.csv")
    text = raw[header.end :]
    whole = read_rows([text], header.columns, limits_of(DEFAULT))
    with mock.patch.object(raw_lines, "PIECE_BYTES", piece_bytes):
        cut = read_rows(cut_lines(text), header.columns, limits_of(DEFAULT))
    assert cut.rows.combine_chunks().equals(whole.rows.combine_chunks())
    assert_frame_equal(cut.bad, whole.bad)
    assert cut.lines == whole.lines


@given(text=st.text("ab\n", max_size=60).map(str.encode), first=st.integers(0, 3), block=st.integers(1, 70))
def test_blocks_of_any_size_own_every_line_once_and_whole(text, first, block):
    text = b"h" * first + text
    pieces = [
        bytes(
            owned_lines(
                lambda start, stop: text[start:stop], start, min(start + block, len(text)), first=first, end=len(text)
            )
        )
        for start in range(first, len(text), block)
    ]
    assert b"".join(pieces) == text[first:]
    filled = [piece for piece in pieces if piece]
    assert all(piece.endswith(b"\n") for piece in filled[:-1])


@given(text=st.text("ab\n", max_size=60).map(str.encode), piece=st.integers(1, 70))
def test_a_packed_file_comes_in_whole_lines(text, piece):
    pieces = list(packed_lines(io.BytesIO(text), piece))
    assert b"".join(pieces) == text
    assert all(one.endswith(b"\n") for one in pieces[:-1])


@pytest.mark.parametrize("zone", ["America/New_York", "America/Havana", "Asia/Kathmandu", "Pacific/Apia"])
@given(data=st.data())
def test_the_calendar_finds_the_local_day_of_every_instant(zone, data):
    clock = ZoneInfo(zone)
    period = DEFAULT.period.model_copy(update={"start": datetime(2011, 3, 1, tzinfo=UTC).date()})
    calendar = Calendar.of(period, clock)
    moments = st.integers(int(calendar.midnights_ms[0]), int(calendar.midnights_ms[-1]) - 1)
    ms = data.draw(moments)
    (number,) = calendar.bins(np.array([ms]))
    assert calendar.days[number // 256] == datetime.fromtimestamp(ms / 1000, clock).date()


@given(rows=st.lists(st.integers(0, 9), max_size=30), most=st.integers(1, 20))
def test_a_day_is_cut_so_that_no_slice_exceeds_its_limit(rows, most):
    counts = np.array(rows, dtype=np.int64)
    ranges = cut_day(counts, most)
    assert sum(counts[first:stop].sum() for first, stop in ranges) == counts.sum()
    assert all(counts[first:stop].sum() <= max(most, counts[first:stop].max()) for first, stop in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


@given(points=st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=20))
def test_the_curve_equals_the_textbook_algorithm(points):
    x, y = np.array(points).T
    expected = [textbook_hilbert(*point) for point in points]
    assert hilbert_key(x, y, (0, 0, 65536, 65536)).tolist() == expected


def textbook_hilbert(x: int, y: int) -> int:
    """Distance along the curve, bit by bit."""
    distance, side = 0, 1 << 15
    while side:
        right, up = int(x & side > 0), int(y & side > 0)
        distance += side * side * ((3 * right) ^ up)
        if not up:
            if right:
                x, y = 65535 - x, 65535 - y
            x, y = y, x
        side >>= 1
    return distance


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@settings(max_examples=25)
@given(data=st.data())
def test_a_frame_drawn_from_a_table_conforms_to_it(table, data):
    frame = data.draw(frames(table))
    checked = table.conform(frame)
    pd.testing.assert_frame_equal(pd.DataFrame(checked), pd.DataFrame(frame))
    if table.key:
        table.check_key(frame)
