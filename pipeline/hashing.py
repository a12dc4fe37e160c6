"""64-bit keys of image names and image paths, computed in one pass over Arrow buffers.

The path key covers the reference without its extension (a dot and one to five ASCII letters or digits). The name key
covers the part of the path after the last slash. Text is hashed as UTF-8 bytes.

The hash reads eight bytes at a time and mixes them with the finalizer of splitmix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014). Among 24.8 million different names, the probability that any
two share a key is n^2 / 2^65 = 1.7e-5. The same holds for paths, which are hashed with a different seed.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Keys = npt.NDArray[np.uint64]
NAME_SEED = np.uint64(0x243F6A8885A308D3)  # digits of pi
PATH_SEED = np.uint64(0x13198A2E03707344)
LONGEST_ENDING = 5  # letters or digits after the dot of an extension
_DOT, _SLASH = np.uint8(ord(".")), np.uint8(ord("/"))


def image_keys(texts: pa.Array | pa.ChunkedArray) -> tuple[Keys, Keys]:
    """Compute name and path keys of image references.

    Parameters
    ----------
    texts : pyarrow.Array or ChunkedArray of string, length n
        Image paths with or without an extension.

    Returns
    -------
    tuple of two ndarrays of uint64, shape (n,)
        Name keys and path keys.
    """
    starts, content = _bytes(texts)
    names, paths = np.empty(len(texts), dtype=np.uint64), np.empty(len(texts), dtype=np.uint64)
    if len(texts):
        _fill_keys(content, starts, names, paths)
    return names, paths


def text_keys(texts: pa.Array | pa.ChunkedArray) -> Keys:
    """Compute keys of whole strings, shape (n,), extension included."""
    starts, content = _bytes(texts)
    keys = np.empty(len(texts), dtype=np.uint64)
    if len(texts):
        _fill_text_keys(content, starts, keys)
    return keys


def _bytes(texts: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return byte offsets of the texts (n + 1,) and the bytes of all texts."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = texts.cast(pa.large_string())
    _, offsets, content = texts.buffers()
    if not len(texts):
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    starts = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return starts, np.frombuffer(content or b"", dtype=np.uint8)


@nb.njit(cache=True, nogil=True)
def _fill_text_keys(content: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], keys: Keys) -> None:
    for row in range(len(keys)):
        keys[row] = _hash(content, starts[row], starts[row + 1], PATH_SEED)


@nb.njit(cache=True, nogil=True)
def _fill_keys(content: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], names: Keys, paths: Keys) -> None:
    for row in range(len(names)):
        start = starts[row]
        end = _before_ending(content, start, starts[row + 1])
        leaf = end
        while leaf > start and content[leaf - 1] != _SLASH:
            leaf -= 1
        names[row] = _hash(content, leaf, end, NAME_SEED)
        paths[row] = _hash(content, start, end, PATH_SEED)


@nb.njit(cache=True, inline="always")
def _before_ending(content: npt.NDArray[np.uint8], start: int, stop: int) -> int:
    """Return the offset of the extension of the text in bytes [start, stop), or `stop` without one."""
    dot = stop - 1
    while dot >= start and stop - dot <= LONGEST_ENDING and _is_letter_or_digit(content[dot]):
        dot -= 1
    return dot if start <= dot < stop - 1 and content[dot] == _DOT else stop


@nb.njit(cache=True, inline="always")
def _is_letter_or_digit(byte: int) -> bool:
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122


@nb.njit(cache=True)
def _hash(content: npt.NDArray[np.uint8], start: int, stop: int, seed: np.uint64) -> np.uint64:
    # Hash the length first, so that zero padding of the last word is not mistaken for content.
    key = mix(seed ^ np.uint64(stop - start))
    at = start
    while at + 8 <= stop:
        word = np.uint64(0)
        for place in range(8):
            word |= np.uint64(content[at + place]) << np.uint64(8 * place)
        key = mix(key ^ word)
        at += 8
    if at < stop:
        word = np.uint64(0)
        for place in range(stop - at):
            word |= np.uint64(content[at + place]) << np.uint64(8 * place)
        key = mix(key ^ word)
    return key


@nb.njit(cache=True, inline="always")
def mix(key: np.uint64) -> np.uint64:
    """Apply the finalizer of splitmix64."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
