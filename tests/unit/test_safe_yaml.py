"""The reader of all YAML files that users write: one line for every fault, in bounded time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.cluster.profiles import ClusterError, load_profile
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.catalog import parse_catalog
from patrolscope.pipeline.study.config import parse_settings
from patrolscope.safe_yaml import YamlFileError, load_yaml

LISTS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
FAULTS = [
    ("city: {}\nname: b\ncity: {}", "f.yaml, line 3: duplicate key 'city', first in line 1"),
    ("city:\n  name: a\n  crs: b\n  name: c", "f.yaml, line 4: duplicate key 'name', first in line 2"),
    (f"{'k' * 999}: 1\n{'k' * 999}: 2", "duplicate key 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...'"),
    ("<<: {a: 1, a: 2}", "duplicate key 'a'"),
    ("<<: {a: 1}\n<<: {b: 1}", "line 2: duplicate key '<<'"),
    ("1: a\ntrue: b", "line 2: duplicate key 'True'"),
    ("a:\n  b: 2020-02-30", "f.yaml, line 2: '2020-02-30': day is out of range for month"),
    ("a: 2020-01-01T99:00:00Z", "hour must be in 0..23"),
    ("a: " + "9" * 5000, "line 1: '9999999999999999999999999999999999999...' has 5,000 characters; expected a number"),
    ("a: 0x" + "f" * 5000, "has 5,002 characters"),
    ("a: 1" + "0" * 300_000, "has 300,001 characters"),
    ("a: 9223372036854775808", "expected a number below 2**63"),
    ("[" * 100_000, "line 1: more than 50 levels"),
    ("- " * 5000, "more than 50 levels"),
    (LISTS, "more than 100,000 values"),
    (MERGES, "more than 100,000 values"),
    ("a: &a [*a]", "*a contains itself"),
    ("a: *b", "found undefined alias"),
    ("a: !!python/object/apply:os.system [x]", "is not allowed; remove it"),
    ("a: !x 1", "tag '!x' is not allowed"),
    ("a: !!set {x}", "is not allowed"),
    ("a: !!int abc", "'abc' is not of type int"),
    ("a: !!timestamp noon", "'noon' is not of type timestamp"),
    ("a: !!bool q", "'q' is not of type bool"),
    ("a: !!int [1]", "expected a scalar node"),
    ("? [1]\n: 2", "a key is a list or mapping"),
    ("a: 1\n---\nb: 2", "is not YAML (line 2"),
    ("a: [", "f.yaml is not YAML (line 1"),
    ("a: \x00", "f.yaml is not YAML"),
    (b"a: 1\nb: \xe9", "f.yaml is not UTF-8 (line 2); save it as UTF-8"),
    ("a: 1\n".encode("utf-16"), "is not UTF-8"),
    ("[1]", "f.yaml holds a list; expected keys"),
    ("#" * 1_000_001, "has 1,000,001 bytes; expected at most 1,000,000"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("content", "complaint"), FAULTS, ids=[complaint for _, complaint in FAULTS])
def test_a_fault_is_one_line_with_its_place(content, complaint):
    with pytest.raises(YamlFileError) as error:
        load_yaml(content, where="f.yaml")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_ordinary_files_are_read():
    assert load_yaml("", where="-") == {}
    assert load_yaml(b"\xef\xbb\xbfname: caf\xc3\xa9", where="-") == {"name": "café"}
    text = "base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\nnumber: !!float 3\ntext: !!str 3"
    assert load_yaml(text, where="-") == {
        "base": {"x": 1, "y": 2},
        "other": {"x": 1, "y": 3},
        "number": 3.0,
        "text": "3",
    }


def test_all_files_of_the_project_are_read_with_the_same_rules(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("kind: local\nmemory_gb: 1\nkind: slurm\n")
    with pytest.raises(ClusterError, match=r"profile\.yaml, line 3: duplicate key 'kind', first in line 1"):
        load_profile(str(path))
    path.write_bytes(b"kind: \xff")
    with pytest.raises(ClusterError, match="not UTF-8"):
        load_profile(str(path))
    with pytest.raises(SourceError, match=r"data_catalog\.yaml, line 2: duplicate key 'a', first in line 1"):
        parse_catalog("a: {}\na: {}", where="data_catalog.yaml")
    with pytest.raises(SourceError, match="not UTF-8"):
        parse_catalog(b"a: \xff", where="data_catalog.yaml")
    with pytest.raises(SettingsError, match=r"study\.yaml, line 2: duplicate key 'name', first in line 1"):
        parse_settings("name: a\nname: b", where="study.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"address": "tcp://a:1", "address": "tcp://b:1"}', "duplicate key 'address'"),
        ("[" * 100_000, "is not JSON"),
        ('{"address": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_scheduler_file_is_read_with_the_same_care(tmp_path, text, complaint):
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    with pytest.raises(ClusterError) as error:
        load_profile(str(path))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("amount", [".inf", "-.inf", ".nan", "1.0e+300", "0"])
@pytest.mark.parametrize("form", ["memory_gb: {}", "pools: {{cpu: {{maximum: 1, memory_gb: {}}}}}"])
def test_memory_that_no_machine_has_is_refused(tmp_path, amount, form):
    path = tmp_path / "profile.yaml"
    path.write_text(f"kind: local\n{form.format(amount)}\n")
    with pytest.raises(ClusterError, match="memory_gb: Input should be"):
        load_profile(str(path))


@pytest.mark.parametrize(
    "text", ["images: {max_megapixels: .nan}", "estimate: {threshold: .nan}", "city: {sun: {latitude: .inf}}"]
)
def test_settings_are_finite(text):
    with pytest.raises(SettingsError, match="finite number"):
        parse_settings(text, where="study.yaml")


PIECES = [
    *(
        "a",
        "b",
        ": ",
        "- ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&x ",
        "*x",
        "<<",
        "? ",
        "!!int ",
        "!!set ",
        "!t ",
        "'",
    ),
    *(
        '"',
        "2020-02-30",
        "9" * 5000,
        ".inf",
        "~",
        "---\n",
        "|\n",
        "#",
        "\t",
        "%YAML 9\n",
        "\x00",
        "é",
        "\ud800",
        "1:99",
    ),
]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.binary(max_size=80)))
def test_any_text_is_a_mapping_or_one_line(content):
    try:
        result = load_yaml(content, where="f.yaml")
    except YamlFileError as error:
        message = str(error)
        result = {}
    else:
        message = "f.yaml"
    assert isinstance(result, dict)
    assert message.startswith("f.yaml")
    assert "\n" not in message
