"""The built distributions install one package and run without the repository."""

import email
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

NOTEBOOK = """
import json
import patrolscope

study = patrolscope.open_study("study")
analyses = sorted(study.results["estimates/tables"]["analysis"].unique())
print(json.dumps([patrolscope.__file__, len(study.tables["annotated"]), analyses, list(study.figures)]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, a wheel of the repository, and a wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")

    def build(source, *kinds):
        command = [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            *kinds,
            "--outdir",
            str(folder / "-".join(kinds)),
            source,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    build(str(ROOT), "--sdist")
    (sdist,) = (folder / "--sdist").glob("*.tar.gz")
    build(str(ROOT), "--wheel")
    (direct,) = (folder / "--wheel").glob("*.whl")
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xzf", str(sdist), "-C", str(unpacked), "--strip-components", "1"], check=True)
    direct = direct.rename(folder / f"direct-{direct.name}")
    build(str(unpacked), "--wheel")
    (from_sdist,) = (folder / "--wheel").glob("*.whl")
    return direct, from_sdist


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_installs_nothing_but_patrolscope(distributions):
    direct, _ = distributions
    assert {name.split("/")[0] for name in names_in(direct)} == {"patrolscope"}


def test_a_wheel_from_the_sdist_holds_the_same_files(distributions):
    direct, from_sdist = distributions
    assert names_in(direct) == names_in(from_sdist)


def test_the_wheel_holds_every_tracked_file_of_its_rooms(distributions):
    rooms = ("cli", "pipeline", "analysis", "dashboards", "cluster")
    listed = subprocess.run(["git", "ls-files", *rooms, "data_catalog.yaml"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    held = names_in(distributions[0])
    assert {f"patrolscope/{name}" for name in listed.stdout.split()} - held == set()
    assert "patrolscope/py.typed" in held


def test_a_small_study_runs_from_the_wheel_without_the_repository(distributions, tmp_path):
    home = tmp_path / "environment"
    venv.create(home, symlinks=True, with_pip=False)
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(packages)
        metadata = email.message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))))
    # Third-party packages come from this environment. Its .pth files, such as that of an editable patrolscope, are not
    # processed for a folder that is on the path through a .pth file itself.
    (packages / "third_party.pth").write_text(sysconfig.get_path("purelib"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "pipeline.py").write_text("raise ImportError('a user has a module of this name')")

    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(*arguments):
        done = subprocess.run(
            [home / "bin" / "python", *arguments], cwd=work, env=alone, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "patrolscope", "simulate", "study", "--images", "2000", "--days", "1")
    python("-m", "patrolscope", "run", "--study", "study")
    where, rows, analyses, figures = json.loads(python("-c", NOTEBOOK))
    assert Path(where).is_relative_to(packages)
    assert 1_900 < rows <= 2_000
    assert len(analyses) == 9
    assert "figures/map" in figures
    assert metadata["Name"] == "patrolscope"
