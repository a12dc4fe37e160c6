"""Keys of names and paths equal those of a plain loop over bytes and are unique."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patrolscope.pipeline.hashing import NAME_SEED, PATH_SEED, image_keys, text_keys

# Few characters, so that extensions, folders, and repeated names are common. References contain no line feed.
PARTS = st.text("ab.09/é_-", max_size=9) | st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
REFS = st.lists(PARTS | st.builds("{}/{}{}".format, PARTS, PARTS, st.sampled_from([".jpg", ".JPEG", ".", ""])))


def path_of(ref: str) -> str:
    return re.sub(r"\.[A-Za-z0-9]{1,5}\Z", "", ref)


def name_of(ref: str) -> str:
    return re.sub(r"^.*/", "", path_of(ref))


def mixed(key: int) -> int:
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    return key ^ (key >> 31)


def hashed(text: str, seed: int) -> int:
    content = text.encode()
    key = mixed(seed ^ len(content))
    for at in range(0, len(content), 8):
        key = mixed(key ^ int.from_bytes(content[at : at + 8], "little"))
    return key


@given(refs=REFS)
@example(refs=["ride/9f2c/07.jpg", "07", "a.b", ".jpg", "ride/.jpg", "x.abcdef", "x.jpg.", "x.jp-g", "", "é.jpg"])
def test_keys_equal_those_of_a_plain_loop_over_bytes(refs):
    names, paths = image_keys(pa.array(refs, type=pa.string()))
    assert names.tolist() == [hashed(name_of(ref), int(NAME_SEED)) for ref in refs]
    assert paths.tolist() == [hashed(path_of(ref), int(PATH_SEED)) for ref in refs]


@given(texts=REFS)
@example(texts=["", "9f2c.jpg", "9f2c.png"])
def test_keys_of_whole_texts_include_the_extension(texts):
    assert text_keys(pa.array(texts, type=pa.string())).tolist() == [hashed(text, int(PATH_SEED)) for text in texts]
    assert text_keys(pa.chunked_array([texts, texts[:1]], type=pa.string())).tolist()[: len(texts)] == (
        text_keys(pa.array(texts, type=pa.string())).tolist()
    )


@given(refs=REFS)
def test_two_references_share_a_key_only_if_they_share_the_name_or_path(refs):
    names, paths = image_keys(pa.array(refs, type=pa.string()))
    for keys, text_of in ((names, name_of), (paths, path_of)):
        by_text = {text_of(ref): key for ref, key in zip(refs, keys, strict=True)}
        assert [by_text[text_of(ref)] for ref in refs] == keys.tolist()
        assert len(set(by_text.values())) == len(by_text)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_keys_do_not_depend_on_the_arrow_layout(kind):
    refs = [f"ride/{number % 3}/{number}.jpg" for number in range(20)]
    whole = pa.array(refs, type=kind)
    pieces = pa.chunked_array([whole.slice(0, 3), whole.slice(3, 0), whole.slice(3)])
    for expected, got in zip(image_keys(pa.array(refs)), image_keys(pieces), strict=True):
        np.testing.assert_array_equal(got, expected)
    for expected, got in zip(image_keys(pa.array(refs)), image_keys(whole.slice(5, 4)), strict=True):
        np.testing.assert_array_equal(got, expected[5:9])


def test_a_million_names_that_differ_in_digits_have_distinct_keys():
    names, paths = image_keys(pa.array([f"20201005-{number:07d}-119.jpg" for number in range(1_000_000)]))
    assert len(np.unique(names)) == len(np.unique(paths)) == 1_000_000
    assert len(np.intersect1d(names, paths)) == 0
