"""Small released results with made-up numbers, for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES, group_labels
from patrolscope.analysis.stages.published import Released

PLACES = {
    "borough": ("", "Bronx", "Brooklyn", "Manhattan", "Queens", "Staten Island"),
    "neighborhood": ("", "Gramercy", "East Village", "Rikers Island", "Rosedale", "Bushwick (West)"),
}


def made_released(analysis: str, *, replicates: int = 20, seed: int = 1) -> Released:
    """Results of one analysis; those of boroughs and neighborhoods have a group without a name, as published."""
    keys = PLACES.get(analysis) or tuple(group_labels(analysis))
    generator = np.random.default_rng([seed, *analysis.encode()])
    means = generator.uniform(0.004, 0.02, len(keys))
    noise = generator.normal(1, 0.03, (replicates, len(keys) + 1))
    return Released(keys, 0.01, means, 0.01 * noise[:, 0], means * noise[:, 1:])


def write_released(folder: Path, *analyses: str, **changes: int) -> Path:
    """Folder with the files of some analyses, of all nine when none is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for analysis in analyses or PUBLISHED_FILES:
        (folder / PUBLISHED_FILES[analysis]).write_text(made_released(analysis, **changes).to_json())
    return folder


def change(folder: Path, analysis: str, edit) -> None:
    """Let `edit` change the content of one file."""
    path = folder / PUBLISHED_FILES[analysis]
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
