"""Phrases that no native speaker writes are rejected; each pattern names what to write instead.

`python tests/unit/test_prose.py PATH ...` lists the matches in some files or folders.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PHRASES = {
    r"\bcan not\b": "cannot",
    r"\btold\b": "reported, notified",
    r"\b(anew|oftener)\b": "again, more often",
    r"\b(drawn?|draws|drawing|made|makes?|asked) again\b": "resampled, recomputed, rebuilt",
    r'^\s*"""(What|Which|Why|Who|That|Of|The same)\b': "an imperative verb or a noun phrase",
    r'^\s*"""\(': "a summary; the shape belongs in Returns",
    r"\bmend(s|ed|ing)?\b": "fix, correct",
    r"\bbe had\b|\bhad back\b": "available, recovered",
    r"(?<![Tt]here )\b(is|are|was|can be) no (?!longer\b|more\b|lower\b|larger\b)[a-z]+": "is not a",
    r"\bname another\b": "choose a different",
    r"\b(is|are) expected\b(?! to\b)": "expected ...",
    r"; says (which|what|why|how)\b|\bsays? nothing\b": "the message names; is uninformative",
    r"\b(is|are|was|were) asked for\b": "requested",
    r"\b(is|are|was|be) said\b": "reported, shown",
    r"\bwhoever\b": "anyone who",
    r"\b(for a reader|in words)\b": "display name, as text",
    r"\bnot there\b(?!:|\.\w)": "missing, does not exist",
    r"\bstands? (in(?! for)|under|beside|there|twice|at)\b|\b(none|there|stood) twice\b": "is in; duplicate",
    r"\bso many\b(?! that)": "n, this many",
    r"\bsome (?=\d|hundred|ten\b)": "about",
    r"\b(rising|falling)\b": "ascending, descending",
    r"\bgo(es)? on\b(?! the)": "continue, resume",
    r"\bfrom [\w.{}()-]*[\d}][\w.{}()-]* on\b": "from ... onward, at least",
    r"\b(is|are) to (be|go|use|train|take|say)\b|\bshall\b": "must, will",
    r"\bas (it is|they are)(?=[.,;:)]|$)": "unchanged",
    r"\bno evidence\b": "unprocessed",
    r"\b(row|mark|shard|dot|core|GB|kB|bytes) an? [a-z]+\b|\b(images|shards) a (second|shard|day)\b": "per",
    r"[\d}] %(?= [a-z]|[.,;:)\"<]|$)": "95%",
    r"(?i)neighbour|colour|centre|licence|catalogue|labell(?!edby)|analysed|analyse\b|behaviour": "US spelling",
    r"(?i)(optim|summar|recogn|standard|util|final)is(e|ed|er|es|ing|ation)\b": "US spelling",
    r"(?i)offence|artefact|learnt|\bgrey|metres?\b": "US spelling",
}
# The names of earlier versions, which a migration must spell.
EARLIER_NAMES = {"CHANGELOG.md", "pipeline/study/migration.py", "tests/unit/test_migration.py"}
FOLDERS = {".ci", "analysis", "benchmarks", "cli", "cluster", "dashboards", "docs", "pipeline", "src", "tests"}
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".html", ".js", ".css", ".cff", ".ini"}


def text_files() -> list[Path]:
    """Text files of the repository, without links, data, hidden folders such as environments, and this file."""
    tops = [path for path in ROOT.iterdir() if path.is_file() or path.name in FOLDERS]
    found = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*")))]
    left_out = {Path(__file__).resolve(), *((ROOT / name).resolve() for name in EARLIER_NAMES)}
    return [
        file
        for file in found
        if (file.suffix in SUFFIXES or file.name in ("Makefile", "run"))
        and file.is_file()
        and not file.is_symlink()
        and file.resolve() not in left_out
    ]


def matches(pattern: str, files: list[Path]) -> list[str]:
    """Places in which a pattern occurs, as `file:line: text`."""
    wanted = re.compile(pattern)
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if wanted.search(line)
    ]


@pytest.fixture(scope="module")
def files():
    return text_files()


@pytest.mark.parametrize("pattern", PHRASES)
def test_a_phrase_to_avoid_is_nowhere(pattern, files):
    found = matches(pattern, files)
    assert not found, f"write {PHRASES[pattern]!r}:\n" + "\n".join(found)


if __name__ == "__main__":
    paths = tuple(sys.argv[1:])
    chosen = [file for file in text_files() if not paths or str(file.relative_to(ROOT)).startswith(paths)]
    for phrase, instead in PHRASES.items():
        for place in matches(phrase, chosen):
            print(f"{place}   [{instead}]")
