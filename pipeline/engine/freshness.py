"""Shards that have to be built, and why: missing, made from other inputs, or with damaged files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.entries import StageEntry
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SourceError, StageNotRunError, WeightsError
from patrolscope.pipeline.study.files import FileState
from patrolscope.pipeline.study.store import Record, Study

NOT_BUILT = "not built yet"
# Keys of a shard's work that identify the version of the file at `path`.
_OF_FILE = {"bytes", "modified", "checksum"}


def listed_states(study: Study, stage: Stage) -> dict[str, FileState]:
    """Return the states of all files in the folders of a stage, by path.

    An object store would otherwise get one request for each of the 124,000 files of a detector.
    """
    return {name: state for folder in stage.folders for name, state in study.states(folder).items()}


def stale(
    study: Study,
    stage: Stage,
    shards: Sequence[Shard],
    records: Mapping[str, Record],
    states: Mapping[str, FileState] | None = None,
) -> dict[str, str]:
    """Return why shards have to be built, by name and in order; shards that are up to date are left out.

    Parameters
    ----------
    study : Study
        Study with the files.
    stage : Stage
        Stage of the shards.
    shards : sequence of Shard
        Planned shards.
    records : mapping of str to Record
        Records of the stage, by name of the shard.
    states : mapping of str to FileState, optional
        Result of `listed_states`, if it is known.
    """
    states = listed_states(study, stage) if states is None else states
    damaged = set(study.damaged_records(stage.name, records))
    found = {}
    for shard in shards:
        if shard.name not in records:
            file = study.record_file(stage.name, shard.name)
            found[shard.name] = f"{file} is damaged or of another version" if file in damaged else NOT_BUILT
        elif records[shard.name].fingerprint != stage.fingerprint(shard):
            found[shard.name] = _changed(records[shard.name], stage, shard)
        elif not stage.accepts(study, records[shard.name]):
            found[shard.name] = "the settings no longer allow what it left out"
        elif cause := damage(study, records[shard.name], states):
            found[shard.name] = cause
    return found


def counted(causes: Mapping[str, str]) -> list[tuple[str, int]]:
    """Count the shards of `stale` by cause, the most frequent first, without those that were never built."""
    return Counter(cause for cause in causes.values() if cause != NOT_BUILT).most_common()


def _changed(record: Record, stage: Stage, shard: Shard) -> str:
    before, now = record.inputs, stage.inputs(shard)
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if "path" in shard.work and _OF_FILE.issuperset(names):
        return f"{shard.work['path']} changed"
    return f"{', '.join(names) or 'the stage'} changed"


def damage(study: Study, record: Record, states: Mapping[str, FileState], *, read_all: bool = False) -> str:
    """Return which file of a record is missing or differs from it, and how; empty if all are as recorded.

    A file of the recorded size and version is taken as unchanged. One of another version, such as a copy, is read, and
    compared by its checksum.

    Parameters
    ----------
    study : Study
        Study with the files.
    record : Record
        Record of a finished shard.
    states : mapping of str to FileState
        Listed files; others are looked up.
    read_all : bool, default False
        Whether to compare the checksum of every file.
    """
    for name in record.files:
        digest = record.digests.get(name)
        state = states.get(name) or study.states(name).get(name)
        if state is None:
            return f"{name} is missing"
        if digest is None:
            return f"{name} has no checksum"
        if state.size != digest.size:
            return f"{name} has {state.size:,} bytes instead of {digest.size:,}"
        if (read_all or state.version != digest.version) and study.digest(name).checksum != digest.checksum:
            return f"{name} was changed"
    return ""


def with_current_versions(record: Record, states: Mapping[str, FileState]) -> Record:
    """Return a record with the current versions of its files, which have been compared."""
    digests = {
        name: digest._replace(version=states[name].version) if name in states else digest
        for name, digest in record.digests.items()
    }
    return replace(record, digests=digests)


def unfinished(study: Study, stage: Stage, shards: Sequence[Shard], records: Mapping[str, Record]) -> list[Shard]:
    """Return the shards that have to be built, in order.

    Parameters
    ----------
    study : Study
        Study with the files.
    stage : Stage
        Stage of the shards.
    shards : sequence of Shard
        Planned shards.
    records : mapping of str to Record
        Records of the stage, by name of the shard.
    """
    causes = stale(study, stage, shards, records)
    return [shard for shard in shards if shard.name in causes]


def outdated(study: Study, stages: Sequence[Stage]) -> list[str]:
    """Return the names of stages whose output is missing or stale."""
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


def check_inputs(command: str, study: Study) -> None:
    """Reject a command whose stages read what another command has to write first.

    A stage cannot tell missing output from output that a study does not have: without its imported detections, a
    study would have no positive image.

    Parameters
    ----------
    command : str
        Command of the stages.
    study : Study
        Study of the stages.

    Raises
    ------
    StageNotRunError
        If such a stage has not run, or not to its end. The message names its command.
    """
    entries = [entry for entry in registry.ORDER.values() if command in entry.commands and entry.belongs_to(study)]
    for entry in entries:
        for name in registry.inputs(entry.name):
            other = registry.ORDER[name]
            if other in entries or "run" not in other.commands or not other.belongs_to(study):
                continue
            if not _is_complete(study, other):
                first = next(one for one in other.commands if one != "run")
                raise StageNotRunError(
                    f"{entry.name} reads the output of {name}, which has not run, or not to its end; run "
                    f"`patrolscope {first} --study {study.root}`, or `patrolscope run --study {study.root}` for all"
                )


def _is_complete(study: Study, entry: StageEntry) -> bool:
    made = entry.load()
    try:
        stage = made if isinstance(made, Stage) else made(study)
        shards, records, states = stage.plan(study), study.records(stage.name), listed_states(study, stage)
        # One that was built from other settings is complete as well: which stages to run is the user's choice.
        return all(shard.name in records and not damage(study, records[shard.name], states) for shard in shards)
    except StageNotRunError:
        return False
    except (SourceError, WeightsError):
        # Its own inputs are gone, such as raw files that were archived. What it wrote from them stays good.
        return any(name == entry.name or name.startswith(f"{entry.name}-") for name in study.stages())
