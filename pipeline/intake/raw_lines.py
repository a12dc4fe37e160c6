"""Lines of raw CSV files: which lines a block owns, how text is cut between lines, and faults in the form of lines.

A line ends with a line feed, or with a carriage return and a line feed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.intake.compression import Readable

HEADER_BYTES = 64 * 2**10  # upper limit of a header's size
LONGEST_LINE = 2**20  # bytes; longer lines are rejected, and would have to be held in memory
# Text that is read and parsed at once. It stays in the processor's cache between passes, and a bad line makes only this
# much text be parsed carefully, which takes 3.5 times as long.
PIECE_BYTES = 4 * 2**20
BEYOND_BYTES = 2**12  # read beyond a block, for the rest of its last line

_NEWLINE, _RETURN, _QUOTE, _COMMA = b'\n\r",'
_ZERO, _LOWER_X = b"0x"

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def owned_lines(
    read: Callable[[int, int], bytes | bytearray], start: int, stop: int, *, first: int, end: int
) -> memoryview:
    """Return the complete lines that start within a block of a file.

    The last line can end after the block. It is cut if it is longer than `LONGEST_LINE`.

    Parameters
    ----------
    read : callable
        Returns bytes [a, b) of the file.
    start, stop : int
        Bytes [start, stop) of the file are the block.
    first, end : int
        Start of the first line, and end of the file.
    """
    if start >= end:
        return memoryview(b"")
    begin = start if start == first else start - 1
    text = read(begin, min(stop + BEYOND_BYTES, end))  # mostly includes the rest of the last line
    cut = text.find(b"\n") + 1 if begin < start else 0
    if begin < start and not 0 < cut < stop - begin:
        return memoryview(b"")  # the block is inside a line that starts before it
    whole = text.find(b"\n", stop - begin - 1) + 1
    if whole or begin + len(text) >= end:
        return memoryview(text)[cut : whole or len(text)]
    pieces = [text[cut:]]
    at = begin + len(text)
    while at < end and at - stop <= LONGEST_LINE:
        piece = read(at, min(at + HEADER_BYTES, end))
        whole = piece.find(b"\n") + 1
        pieces.append(piece[:whole] if whole else piece)
        if whole:
            break
        at += len(piece)
    return memoryview(b"".join(pieces))


def packed_lines(file: Readable, piece_bytes: int) -> Iterator[bytes]:
    """Yield complete lines of a stream without random access, in pieces of about `piece_bytes`.

    Lines longer than `LONGEST_LINE` are cut, as in `owned_lines`.
    """
    rest = b""
    while piece := file.read(piece_bytes):
        piece = rest + piece
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield piece[:cut]
        rest = piece[cut:][: LONGEST_LINE + 1]
    if rest:
        yield rest


def cut_lines(text: bytes) -> Iterator[bytes]:
    """Cut a text between lines into pieces of about `PIECE_BYTES`."""
    at = 0
    while at < len(text):
        stop = text.rfind(b"\n", at, at + PIECE_BYTES) + 1 or text.find(b"\n", at) + 1 or len(text)
        yield text[at:stop]
        at = stop


@dataclass(frozen=True)
class ByteCounts:
    """Counts of special bytes in a text."""

    feeds: int
    quotes: int
    returns: int  # carriage returns without a line feed after them
    hexadecimal: int  # 0x and 0X
    beyond_ascii: int
    long_line: bool  # one is longer than LONGEST_LINE

    @classmethod
    def count(cls, data: npt.NDArray[np.uint8]) -> ByteCounts:
        """Count in one pass, without a copy."""
        feeds, quotes, returns, hexadecimal, high = (int(count) for count in _count_bytes(data))
        return cls(feeds, quotes, returns, hexadecimal, high, bool(_has_long_line(data)))


@nb.njit(cache=True, nogil=True)
def _count_bytes(data: npt.NDArray[np.uint8]) -> tuple[int, int, int, int, int]:
    """Count for `ByteCounts`, without branches, so that the compiler vectorizes the loops."""
    feeds, quotes, returns, hexadecimal, high = 0, 0, 0, 0, 0
    for byte in data:
        feeds += byte == _NEWLINE
        quotes += byte == _QUOTE
        high += byte >> 7
    for at in range(1, len(data)):
        before, byte = data[at - 1], data[at]
        returns += (before == _RETURN) & (byte != _NEWLINE)
        hexadecimal += (before == _ZERO) & ((byte | 32) == _LOWER_X)
    if len(data):
        returns += data[-1] == _RETURN
    return feeds, quotes, returns, hexadecimal, high


@nb.njit(cache=True, nogil=True)
def _has_long_line(data: npt.NDArray[np.uint8]) -> bool:
    start = 0
    while len(data) - start > LONGEST_LINE:
        feed = start + LONGEST_LINE
        while feed >= start and data[feed] != _NEWLINE:
            feed -= 1
        if feed < start:
            return True
        start = feed + 1
    return False


@dataclass(frozen=True)
class LineBounds:
    """Starts of the lines of a text, ends of their content, and positions of their line feeds."""

    starts: Rows
    ends: Rows
    feeds: Rows

    @classmethod
    def find(cls, data: npt.NDArray[np.uint8]) -> LineBounds:
        """Find the lines of a text."""
        feeds = np.flatnonzero(data == _NEWLINE)
        if len(data) and data[-1] != _NEWLINE:
            feeds = np.append(feeds, len(data))
        starts = np.append(0, feeds[:-1] + 1) if len(feeds) else feeds
        returns = (feeds > starts) & (data[feeds - 1] == _RETURN)
        return cls(starts, feeds - returns, feeds)

    def line_of(self, positions: Rows) -> Rows:
        """Return the line of each byte position."""
        return np.searchsorted(self.starts, positions, side="right") - 1


class Faults:
    """First fault of each line of a text."""

    def __init__(self, lines: int) -> None:
        self._reasons: list[str] = [""]
        self._codes = np.zeros(lines, dtype=np.int8)

    def mark(self, rows: Rows, reason: str) -> None:
        """Record a reason for those of `rows` that have none yet."""
        fresh = rows[self._codes[rows] == 0]
        if len(fresh):
            self._reasons.append(reason)
            self._codes[fresh] = len(self._reasons) - 1

    def sound(self) -> Mask:
        """Return whether each line is without a fault."""
        return self._codes == 0

    def reasons(self) -> tuple[Rows, list[str]]:
        """Return the rows with a fault, and the reason of each."""
        rows = np.flatnonzero(self._codes)
        return rows, [self._reasons[code] for code in self._codes[rows]]


def lines_with_byte_order_mark(data: npt.NDArray[np.uint8], starts: Rows) -> Rows:
    """Return the lines that begin with a byte order mark."""
    mark = np.frombuffer(codecs.BOM_UTF8, dtype=np.uint8)
    lines = np.flatnonzero(starts + len(mark) <= len(data))
    for offset, byte in enumerate(mark):
        lines = lines[data[starts[lines] + offset] == byte]
    return lines


def is_utf8(line: bytes) -> bool:
    """Return whether bytes are valid UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def badly_quoted_lines(data: npt.NDArray[np.uint8], bounds: LineBounds) -> Rows:
    """Return the lines in which a quote does not enclose a whole field, or is not closed.

    Quotes in a line alternately open and close: at the start of a field, and at its end. A doubled quote
    inside a field closes and reopens it. A line break inside quotes leaves both lines badly quoted.
    """
    at = np.flatnonzero(data == _QUOTE)
    if not len(at):
        return at
    line = bounds.line_of(at)
    first = np.append(True, line[1:] != line[:-1])
    number = np.arange(len(at))
    opens = (number - np.maximum.accumulate(np.where(first, number, 0))) % 2 == 0
    before = data[at - 1]
    after = data[np.minimum(at + 1, len(data) - 1)]
    starts_field = (at == bounds.starts[line]) | (before == _COMMA) | (before == _QUOTE)
    ends_field = (at + 1 == bounds.ends[line]) | (after == _COMMA) | (after == _QUOTE)
    unclosed = opens & np.append(first[1:], True)
    return np.unique(line[unclosed | np.where(opens, ~starts_field, ~ends_field)])
