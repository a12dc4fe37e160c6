"""Run stages in order: build what is missing or stale, skip what is up to date, and account for every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from patrolscope.pipeline.engine.distribute import finish_shards
from patrolscope.pipeline.engine.freshness import counted, listed_states, stale, with_current_versions
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.store import Record, Study

if TYPE_CHECKING:
    import distributed

LEDGER_FILE = "ledger.jsonl"
Ledgers = dict[str, list[str]]  # lines of the ledger, by stage


@dataclass(frozen=True)
class Outcome:
    """Result of running a stage, over all its shards."""

    stage: str
    shards: int
    done_now: int
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)


class Progress:
    """Progress listener without output; the CLI passes one that draws a bar."""

    number = 1  # of the current stage, from 1
    stages = 1  # of the run

    def start(self, stage: Stage, done: int, total: int, causes: Sequence[tuple[str, int]]) -> None:
        """Start a stage of which `done` of `total` units are up to date; count the shards to rebuild by cause.

        Parameters
        ----------
        stage : Stage
            Stage that starts.
        done, total : int
            Amount that is up to date, and in all, in the stage's unit.
        causes : sequence of (str, int)
            Causes for rebuilding shards, with their number, the most frequent first.
        """

    def advance(self, stage: Stage, shard: Shard, record: Record) -> None:
        """Count a finished shard.

        Parameters
        ----------
        stage : Stage
            Running stage.
        shard : Shard
            Finished shard.
        record : Record
            Its record.
        """

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        """End a stage."""


def run_stages(
    study: Study,
    stages: Sequence[Stage | Callable[[Study], Stage]],
    client: Callable[[], distributed.Client],
    progress: Progress | None = None,
) -> list[Outcome]:
    """Bring every stage up to date, in order, under the study's lock.

    Parameters
    ----------
    study : Study
        Study whose stages run.
    stages : sequence of Stage or callable
        A function of the study stands for a stage that is known only once the earlier ones are up to date.
    client : callable
        Called when the first shard has to be built, so that an up-to-date study needs no cluster.
    progress : Progress, optional
        Listener.

    Returns
    -------
    list of Outcome
        One per stage.

    Raises
    ------
    StudyLockedError
        If another run holds the study.
    PatrolscopeError
        From a stage. Finished shards are kept.
    """
    progress = progress or Progress()
    progress.stages = len(stages)
    outcomes = []
    with study.lock() as held:
        ledger: Ledgers = {}
        for number, stage in enumerate(stages, 1):
            progress.number = number
            made = stage if isinstance(stage, Stage) else stage(held)
            outcomes.append(_run_stage(held, made, client, progress, ledger))
    return outcomes


def _run_stage(
    study: Study, stage: Stage, client: Callable[[], distributed.Client], progress: Progress, ledger: Ledgers
) -> Outcome:
    shards = stage.plan(study)
    records = study.records(stage.name)
    damaged = study.damaged_records(stage.name, records)
    states = listed_states(study, stage) if records else {}
    causes = stale(study, stage, shards, records, states)
    todo = [shard for shard in shards if shard.name in causes]
    waiting = {shard.name: shard for shard in todo}
    total = sum(shard.size for shard in shards)
    progress.start(stage, total - sum(shard.size for shard in todo), total, counted(causes))
    # Check the workers first, so that an unsuitable cluster leaves finished shards untouched.
    finished = finish_shards(client(), study, stage, todo) if todo else iter(())
    # Delete stale records before rebuilding their shards, so that readers never see mixed versions.
    planned = {shard.name for shard in shards}
    kept = {name: record for name, record in records.items() if name in planned and name not in waiting}
    named = frozenset(file for record in kept.values() for file in record.files)
    for name, record in records.items():
        if name not in kept:
            study.discard(stage.name, record, keep=named)
        elif (current := with_current_versions(record, states)) != record:
            study.commit(stage.name, current)  # the next run need not read its files again
    for name in damaged:
        study.remove(name)
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
    """Return the lines of one stage in the ledger, one per step and shard."""
    return [json.dumps({"stage": stage, "shard": record.shard, **line}) for record in records for line in record.ledger]


def write_ledger(study: Study, known: Ledgers) -> None:
    """Write ledger.jsonl of all stages, always in the same order.

    Under the study's lock only the stages of this run change their records. Those of other stages are read once, and
    added to `known`.
    """
    stages = study.stages()
    for stage in stages:
        if stage not in known:
            known[stage] = ledger_lines(stage, study.records(stage).values())
    study.write_text((f"{line}\n".encode() for stage in stages for line in known[stage]), LEDGER_FILE)
