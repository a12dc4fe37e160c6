"""Studies that share their sources, for tests that run them differently."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study


def to(stage: str) -> list[Any]:
    """Stages of `ingest` and all those behind a stage, for a study with detection files instead of images."""
    entries = {*registry.behind(stage), *(entry for entry in registry.ENTRIES if "ingest" in entry.commands)}
    wanted = [entry for entry in registry.ordered(entries) if entry.only_with in ("", "sources.detections")]
    return [entry.load() for entry in wanted if "run" in entry.commands]


TO_ANNOTATED = to("annotate")
TO_ESTIMATES = to("estimate")
EVERY_STAGE = to("report")


def branch(study: Study, name: str, **changes: dict) -> Study:
    """A new study beside another, with the same sources and with some settings changed."""
    return branch_at(study, Path(study.base).parent / f"{Path(study.base).name}-{name}", **changes)


def branch_at(study: Study, folder: Path, **changes: dict) -> Study:
    """A new study in a folder, with the sources of another and with some settings changed."""
    folder.mkdir(parents=True)
    for shared in ("source", "truth"):
        shutil.copytree(Path(study.base) / shared, folder / shared, copy_function=os.link)
    content = study.settings.model_dump(mode="json")
    for section, values in changes.items():
        content[section] |= values
    return create_study(folder, Settings.model_validate(content))


def table(study: Study, name: str, key: list[str]) -> pd.DataFrame:
    """All rows of a table, sorted by key."""
    rows = pd.concat([study.read(file) for file in study.files(name)], ignore_index=True)
    return rows.sort_values(key, ignore_index=True)


def estimates(study: Study) -> dict[str, str]:
    """Digest of every table, set of replicates and summary."""
    folder = Path(study.path("estimates"))
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.suffix in (".json", ".csv")
    }
