"""Studies that share their sources, for tests that run them differently."""

import hashlib
from pathlib import Path

import pandas as pd

from patrolscope.analysis.stages.calibrate import CALIBRATE
from patrolscope.analysis.stages.cells import CELLS_STAGE
from patrolscope.analysis.stages.clusters import CLUSTERS, PARTS
from patrolscope.analysis.stages.estimate import ESTIMATE
from patrolscope.analysis.stages.hourly import HOURLY_STAGE, RECALIBRATE
from patrolscope.analysis.stages.replicates import REPLICATE
from patrolscope.dashboards.stages import MAPS, REPORT, SENSITIVITY
from patrolscope.pipeline.geography.layers import LAYERS
from patrolscope.pipeline.intake.detection_files import LABELS
from patrolscope.pipeline.intake.ingest import ARRANGE, READ, SET_ASIDE
from patrolscope.pipeline.matching.annotate import ANNOTATE
from patrolscope.pipeline.matching.keys import KEYS
from patrolscope.pipeline.matching.match import MATCH
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study

TO_ANNOTATED = [LAYERS, READ, SET_ASIDE, ARRANGE, LABELS, KEYS, MATCH, ANNOTATE]
TO_ESTIMATES = [*TO_ANNOTATED, CALIBRATE, CELLS_STAGE, PARTS, CLUSTERS, REPLICATE, ESTIMATE]
EVERY_STAGE = [*TO_ESTIMATES, RECALIBRATE, HOURLY_STAGE, SENSITIVITY, MAPS, REPORT]


def branch(study: Study, name: str, **changes: dict) -> Study:
    """A new study beside another, with the same sources and with some settings changed."""
    folder = Path(study.base).parent / f"{Path(study.base).name}-{name}"
    folder.mkdir()
    for shared in ("source", "truth"):
        (folder / shared).symlink_to(Path(study.base) / shared)
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
