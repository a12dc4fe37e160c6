"""Damaged, cut, joined, linked, and hostile tar files: every readable member is indexed, the rest is counted."""

import io
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.detect.tar_members import Member, tar_members

BODY = b"\xff\xd8" + bytes(1020) + b"\xff\xd9"  # with its header, a member takes 1,536 bytes
MEMBER = 1536
KINDS = {"file", "sparse", "hard link", "symbolic link", "special", "damage"}


def archive(ride: str = "ride", **options) -> bytearray:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for number in range(4):
            header = tarfile.TarInfo(f"{ride}/{number}.jpg")
            header.size = len(BODY)
            tar.addfile(header, io.BytesIO(BODY))
    return bytearray(file.getvalue())


def header(name: str = "x.jpg", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytearray:
    block = bytearray(tarfile.TarInfo(name).tobuf())
    block[124:136] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def walk(content: bytes) -> list[Member]:
    return list(tar_members(io.BytesIO(content), len(content)))


def found(content: bytes) -> tuple[list[str], int]:
    """Return the names of files and the number of damaged stretches."""
    members = walk(content)
    for member in members:
        if member.kind == "file":
            assert member.offset + member.bytes <= len(content)
    return [member.name for member in members if member.kind == "file"], [member.kind for member in members].count(
        "damage"
    )


def numbers(*numbers: int, ride: str = "ride") -> list[str]:
    return [f"{ride}/{number}.jpg" for number in numbers]


def flipped(content: bytearray, position: int) -> bytearray:
    content[position] ^= 1
    return content


def zeroed(content: bytearray, start: int, stop: int) -> bytearray:
    content[start:stop] = bytes(stop - start)
    return content


@pytest.mark.parametrize(
    ("content", "expected", "damaged"),
    [
        (archive(), numbers(0, 1, 2, 3), 0),
        (flipped(archive(), MEMBER + 148), numbers(0, 2, 3), 1),
        (flipped(archive(), 0), numbers(1, 2, 3), 1),
        (zeroed(archive(), MEMBER, MEMBER + 512), numbers(0, 2, 3), 1),
        (archive()[: MEMBER + 100], numbers(0), 1),
        (archive()[:MEMBER], numbers(0), 1),
        (archive()[: MEMBER + 700], numbers(0), 1),
        (archive()[: 4 * MEMBER], numbers(0, 1, 2, 3), 1),
        (archive("a") + archive("b"), numbers(0, 1, 2, 3, ride="a") + numbers(0, 1, 2, 3, ride="b"), 0),
        (archive() + b"not a tar file" * 100, numbers(0, 1, 2, 3), 1),
        (header(size=b"\xff" * 12) + archive(), numbers(0, 1, 2, 3), 1),
        (header(size=b"\x80" + b"\xff" * 11) + archive(), numbers(0, 1, 2, 3), 1),
        (header(size=b"77777777777\0") + archive(), numbers(0, 1, 2, 3), 1),
        (header(kind=b"L", size=b"\xff" * 12) + archive(), numbers(0, 1, 2, 3), 1),
        (header(kind=b"x", size=b"77777777777\0") + archive(), numbers(0, 1, 2, 3), 1),
        (header(kind=b"x", size=b"00000000010\0") + b"not pax!" + bytes(504) + archive(), numbers(0, 1, 2, 3), 1),
        (bytearray(), [], 1),
        (bytearray(b"\x1f\x8b" + bytes(5000)), [], 1),
        (bytearray(10_240), [], 0),
    ],
)
def test_readable_members_are_found_around_damage(content, expected, damaged):
    assert found(bytes(content)) == (expected, damaged)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_those_of_tarfile_for_long_names_and_every_format(tar_format):
    ride = "/".join(["r" * 40] * 3) if tar_format == tarfile.USTAR_FORMAT else "é" * 150 + "/r"
    content = bytes(archive(ride, format=tar_format))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert [(member.name, member.offset, member.bytes) for member in walk(content)] == expected


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_long_chain_of_extended_headers_takes_linear_time(kind):
    start_s = time.perf_counter()
    assert found(bytes(header(kind=kind) * 20_000 + archive()))[1] == 0
    assert time.perf_counter() - start_s < 30


def test_links_name_their_targets_in_the_archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind, target in ((tarfile.LNKTYPE, "./a/0.jpg"), (tarfile.SYMTYPE, "../a/0.jpg"), (tarfile.FIFOTYPE, "")):
            link = tarfile.TarInfo("b/1.jpg")
            link.type, link.linkname = kind, target
            tar.addfile(link)
    assert [(member.kind, member.target) for member in walk(file.getvalue())] == [
        ("hard link", "a/0.jpg"),
        ("symbolic link", "a/0.jpg"),
        ("special", ""),
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4 * MEMBER + 1023), st.binary(min_size=1, max_size=600)), max_size=4),
    st.integers(0, 10_240),
)
def test_any_damage_leaves_members_inside_the_file_or_counts(edits, length):
    content = archive()
    for position, replacement in edits:
        content[position : position + len(replacement)] = replacement
    content = content[:length]
    members = walk(bytes(content))
    assert {member.kind for member in members} <= KINDS
    for member in members:
        assert member.offset >= 0
        assert member.bytes >= 0
        assert member.offset + member.bytes <= len(content)
