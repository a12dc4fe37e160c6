"""Small studies from raw files, with their stages run without a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from patrolscope.pipeline.contract.tables import METADATA, QUARANTINE
from patrolscope.pipeline.engine.stage import Stage
from patrolscope.pipeline.intake.stages import STAGES
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Record, Study, create_study

HEADER = b"image_ref,timestamp,lat,lng,split\n"


def raw_study(folder: Path, files: dict[str, bytes], **settings: Any) -> Study:
    """A study in `folder` whose raw files are `files`; `settings` as in study.yaml."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return create_study(folder, Settings.model_validate({"sources": {"metadata": "raw"}, **settings}))


def finish(study: Study, stages: Sequence[Stage] = STAGES) -> dict[str, list[Record]]:
    """Records of all shards, by stage."""
    return {stage.name: [stage.finish(study, shard) for shard in stage.plan(study)] for stage in stages}


def metadata(study: Study) -> pd.DataFrame:
    """All of metadata/, sorted by its key."""
    return _read(study, METADATA.name, ["source", "source_row"]) if study.exists("metadata") else METADATA.empty()


def quarantine(study: Study) -> pd.DataFrame:
    """All of quarantine/, sorted by its key."""
    return _read(study, QUARANTINE.name, ["source", "line"]) if study.exists("quarantine") else QUARANTINE.empty()


def _read(study: Study, table: str, key: list[str]) -> pd.DataFrame:
    parts = [study.read(file) for file in study.files(table)]
    return pd.concat(parts).sort_values(key, ignore_index=True)


def accounts(records: dict[str, list[Record]]) -> tuple[int, int, int, int]:
    """Lines in, rows out, lines in quarantine, duplicates, from the ledgers."""
    duplicates = sum(line["dropped"].get("duplicate", 0) for one in records["ingest"] for line in one.ledger)
    return (
        sum(one.rows_in for one in records["read"]),
        sum(one.rows_out for one in records["ingest"]),
        sum(one.rows_out for one in records["quarantine"]),
        duplicates,
    )
