"""Dependencies, imports between rooms, and the speed of --help."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# Packages with another name on conda-forge.
CONDA_NAMES = {"matplotlib-base": "matplotlib", "python-tzdata": "tzdata", "python-xxhash": "xxhash"}


def test_environment_yml_and_pyproject_name_the_same_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {Requirement(text).name: str(Requirement(text).specifier) for text in project["dependencies"]}
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    texts = [text for text in conda if isinstance(text, str)] + next(e["pip"] for e in conda if isinstance(e, dict))
    theirs = {CONDA_NAMES.get(one.name, one.name): str(one.specifier) for one in map(Requirement, texts)}
    assert theirs.pop("python") == project["requires-python"]
    theirs.pop("pip")
    assert theirs == ours


@pytest.mark.parametrize(("file", "extras"), [("requirements.lock", None), ("requirements-lowest.txt", ["test"])])
def test_pinned_versions_are_those_that_pyproject_allows(file, extras):
    """`make lock` resolves both files; a bound that rose since would be tested with a version below it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(text for name in extras or optional for text in optional[name])]
    pinned = {}
    for line in (ROOT / file).read_text().splitlines():
        requirement = Requirement(line)
        pinned.setdefault(canonicalize_name(requirement.name), []).append(next(iter(requirement.specifier)).version)
    for requirement in map(Requirement, wanted):
        if requirement.name != "patrolscope":
            assert all(map(requirement.specifier.contains, pinned[canonicalize_name(requirement.name)])), requirement


def test_imports_point_one_way():
    """cli -> dashboards -> analysis -> pipeline; cluster imports none of them."""
    forbidden = {
        "pipeline": ("analysis", "dashboards", "cluster", "cli"),
        "analysis": ("dashboards", "cluster", "cli"),
        "dashboards": ("cluster", "cli"),
        "cluster": ("pipeline", "analysis", "dashboards", "cli"),
    }
    for package, others in forbidden.items():
        for file in (ROOT / package).rglob("*.py"):
            for line in file.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith("patrolscope"):
                    assert words[1].split(".")[1] not in others, f"{file.name}: {line}"


def test_only_distribute_imports_dask():
    for file in (ROOT / "pipeline").rglob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        knows = any(line.split()[1].split(".")[0] in ("dask", "distributed", "dask_geopandas") for line in lines)
        assert knows == (file.name == "distribute.py"), file.name


def test_engine_and_study_import_lower_rooms_only():
    lower = {"contract", "study", "engine", "errors", "credentials", "crs", "hashing", "names", "seeds"}
    for room, allowed in (("study", lower - {"engine"}), ("engine", lower)):
        for file in (ROOT / "pipeline" / room).glob("*.py"):
            rooms = re.findall(
                r"^\s*(?:from|import) patrolscope\.pipeline\.(\w+)", file.read_text(), flags=re.MULTILINE
            )
            assert set(rooms) <= allowed, f"{file.name}: {rooms}"
