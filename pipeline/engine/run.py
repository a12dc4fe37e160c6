"""Run stages in order: do what is missing, leave what is up to date, account for every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from patrolscope.pipeline.engine.distribute import finish_shards
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.store import Record, Study

if TYPE_CHECKING:
    import distributed

LEDGER_FILE = "ledger.jsonl"
Ledgers = dict[str, list[str]]  # lines of the ledger, by stage


@dataclass(frozen=True)
class Outcome:
    """What a stage did."""

    stage: str
    shards: int
    done_now: int
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


class Progress:
    """Told how a stage gets on. This one says nothing; the command line passes one that draws."""

    def start(self, stage: Stage, done: int, total: int) -> None:
        """A stage begins with `done` of `total` units finished earlier."""

    def advance(self, stage: Stage, shard: Shard, record: Record) -> None:
        """A shard has been finished."""

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        """A stage has ended."""


def run_stages(
    study: Study,
    stages: Sequence[Stage | Callable[[Study], Stage]],
    client: Callable[[], distributed.Client],
    progress: Progress | None = None,
) -> list[Outcome]:
    """Bring every stage up to date, in order, under the study's lock.

    Parameters
    ----------
    stages : in place of a stage, a function that gives it once the earlier ones are up to date
    client : called when the first shard has to be made, so that an up-to-date study needs no cluster

    Raises
    ------
    StudyLockedError : another run is writing into the study
    PatrolscopeError : from a stage; what was finished stays finished
    """
    with study.lock() as held:
        ledger: Ledgers = {}
        return [
            _run_stage(held, stage if isinstance(stage, Stage) else stage(held), client, progress or Progress(), ledger)
            for stage in stages
        ]


def unfinished(study: Study, stage: Stage, shards: Sequence[Shard], records: dict[str, Record]) -> list[Shard]:
    """Shards without an up-to-date record, or whose files have gone."""
    # Listed by folder: asked one by one, the 124,000 files of a detector would be as many requests to an object store.
    there = {file for folder in stage.folders for file in study.find(folder)} if records else set()
    return [
        shard
        for shard in shards
        if shard.name not in records
        or records[shard.name].fingerprint != stage.fingerprint(shard)
        or not all(file in there or study.exists(file) for file in records[shard.name].files)
    ]


def outdated(study: Study, stages: Sequence[Stage]) -> list[str]:
    """Names of stages whose output is not what the settings and sources of today would make."""
    names = []
    for stage in stages:
        try:
            shards = stage.plan(study)
        except StageNotRunError:
            names.append(stage.name)
            continue
        if unfinished(study, stage, shards, study.records(stage.name)):
            names.append(stage.name)
    return names


def _run_stage(
    study: Study, stage: Stage, client: Callable[[], distributed.Client], progress: Progress, ledger: Ledgers
) -> Outcome:
    shards = stage.plan(study)
    records = study.records(stage.name)
    todo = unfinished(study, stage, shards, records)
    waiting = {shard.name: shard for shard in todo}
    total = sum(shard.size for shard in shards)
    progress.start(stage, total - sum(shard.size for shard in todo), total)
    # Workers are asked for first: what they can not do costs nothing that was finished.
    finished = finish_shards(client(), study, stage, todo) if todo else iter(())
    # A record that no longer holds goes before its shard is made again: a reader never sees old and new together.
    planned = {shard.name for shard in shards}
    kept = {name: record for name, record in records.items() if name in planned and name not in waiting}
    named = frozenset(file for record in kept.values() for file in record.files)
    for name, record in records.items():
        if name not in kept:
            study.discard(stage.name, record, keep=named)
    for folder in stage.folders:
        study.sweep(folder, keep=named)
    for record in finished:
        kept[record.shard] = record
        progress.advance(stage, waiting[record.shard], record)
    outcome = _outcome(stage, [kept[shard.name] for shard in shards], len(todo))
    ledger[stage.name] = ledger_lines(stage.name, sorted(kept.values(), key=lambda record: record.shard))
    write_ledger(study, ledger)
    progress.finish(stage, outcome)
    return outcome


def _outcome(stage: Stage, records: Sequence[Record], done_now: int) -> Outcome:
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for record in records:
        for line in record.ledger:
            dropped.update(line["dropped"])
            notes.update(line["notes"])
    return Outcome(
        stage=stage.name,
        shards=len(records),
        done_now=done_now,
        rows_in=sum(record.rows_in for record in records),
        rows_out=sum(record.rows_out for record in records),
        dropped=dict(dropped),
        notes=dict(notes),
    )


def ledger_lines(stage: str, records: Iterable[Record]) -> list[str]:
    """Lines of the ledger of one stage: one a step and shard."""
    return [json.dumps({"stage": stage, "shard": record.shard, **line}) for record in records for line in record.ledger]


def write_ledger(study: Study, known: Ledgers) -> None:
    """Write ledger.jsonl of all stages, always in the same order; records of stages that are not known yet are read.

    Under the study's lock records change with the stages of this run alone: those of others are read once.
    """
    stages = study.stages()
    for stage in stages:
        if stage not in known:
            known[stage] = ledger_lines(stage, study.records(stage).values())
    study.write_text((f"{line}\n".encode() for stage in stages for line in known[stage]), LEDGER_FILE)
