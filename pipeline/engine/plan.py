"""What a study still needs, before anything is begun: shards, memory, hours; and whether workers can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from patrolscope.pipeline.engine.run import unfinished
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import PatrolscopeError, PlanError, SourceError, WeightsError
from patrolscope.pipeline.study.store import Study

# Seconds of one core for one unit of a stage, where the study itself has not measured any yet: a simulated study of a
# million images on two cores (seconds of the records divided by the sizes of the shards).
CORE_SECONDS = {
    "layers": 6.3,
    "read": 9.3e-9,
    "ingest": 6.0e-7,
    "labels": 2.8e-5,
    "keys": 0.011,
    "match": 0.47,
    "annotate": 3.7e-6,
    "calibrate": 0.23,
    "counts": 2.0e-6,
    "unit_counts": 0.05,
    # One by image takes 3 ms, of 24.8 million images too; one by ride, of which there are as many, 10 ms there.
    "replicates": 0.0065,
    "estimate": 0.9,
    "map": 6.7,
    "report": 0.3,
}


@dataclass(frozen=True)
class Workers:
    """Workers of one pool, as far as a plan looks at them."""

    offers: str  # CPU or GPU
    memory_gb: float  # of a worker process
    tasks: int  # that a process works on at a time
    slots: int  # tasks that the whole pool works on at a time, at its largest


@dataclass(frozen=True)
class Planned:
    """A stage as the plan sees it."""

    stage: str
    unit: str
    pool: str  # whose workers do it
    memory_gb: float  # of one task
    shards: int | None  # None: not known before earlier stages are done
    done: int
    left: int  # in the stage's unit
    slot_hours: float | None  # of one core, or of one GPU; None: no rate has been measured
    missing: str = ""  # what it needs from outside the study and does not find
    wants: str = ""  # GPU, where the stage is best done by one

    @property
    def is_done(self) -> bool:
        """Whether nothing is left of it."""
        return self.shards is not None and self.done >= self.shards

    def hours(self, pools: Mapping[str, Workers]) -> float | None:
        """Hours that the whole pool needs."""
        if self.slot_hours is None or self.shards is None:
            return None
        return self.slot_hours / max(1, min(pools[self.pool].slots, self.shards - self.done))


def plan_stages(
    study: Study, stages: Iterable[Stage | Callable[[Study], Stage]], pools: Mapping[str, Workers]
) -> list[Planned]:
    """What every stage has to do still, and which pool does it.

    A stage that plans from an earlier one's records has no number of shards until that one is done.
    """
    planned: list[Planned] = []
    for stage in stages:
        one = _planned(study, stage, pools)
        unfinished_before = any(not before.is_done for before in planned)
        if unfinished_before and one.shards == 0:
            one = replace(one, shards=None, slot_hours=None)  # it may get some from what is not there yet
        planned.append(one)
    return planned


def _planned(study: Study, stage: Stage | Callable[[Study], Stage], pools: Mapping[str, Workers]) -> Planned:
    shards: list[Shard] | None
    missing = ""
    try:
        made = stage if isinstance(stage, Stage) else stage(study)
        shards = made.plan(study)
    except PatrolscopeError as error:
        shards = None
        # Another error is of what an earlier stage has not written yet.
        missing = str(error) if isinstance(error, (SourceError, WeightsError)) else ""
        if not isinstance(stage, Stage):
            # It does not know its own name yet.
            name = getattr(stage, "__name__", "stage").removesuffix("_stage")
            return Planned(name, "", _pool_for("GPU", pools), 0.0, None, 0, 0, None, missing, "GPU")
        made = stage
    pool = _pool_for(made.resource, pools)
    if shards is None:
        return Planned(made.name, made.unit, pool, made.memory_gb, None, 0, 0, None, missing, made.resource)
    records = study.records(made.name)
    todo = unfinished(study, made, shards, records)
    left = sum(shard.size for shard in todo)
    finished = [shard for shard in shards if shard.name in records]
    size = sum(shard.size for shard in finished)
    seconds = sum(records[shard.name].seconds for shard in finished)
    # What the study has measured itself goes before what was measured elsewhere.
    rate_s = seconds / size if size and seconds else CORE_SECONDS.get(made.name)
    hours = 0.0 if not left else None if rate_s is None else left * rate_s / 3600
    done = len(shards) - len(todo)
    return Planned(made.name, made.unit, pool, made.memory_gb, len(shards), done, left, hours, wants=made.resource)


def _pool_for(resource: str, pools: Mapping[str, Workers]) -> str:
    """The pool whose workers do it: those that offer the resource, else those for rows, else any."""
    for wanted in (resource or "CPU", "CPU"):
        for name, workers in pools.items():
            if workers.offers == wanted:
                return name
    return next(iter(pools))


def refuse_what_does_not_fit(planned: Sequence[Planned], pools: Mapping[str, Workers]) -> None:
    """Refuse a plan while it is one.

    Raises
    ------
    PlanError : a task of a stage that has something to do needs more memory than a worker has for it
    """
    for one in planned:
        workers = pools[one.pool]
        room_gb = workers.memory_gb / workers.tasks
        if not one.is_done and one.memory_gb > room_gb:
            among = "" if workers.tasks == 1 else f" for each of its {workers.tasks} tasks at a time"
            raise PlanError(
                f"{one.stage} needs {one.memory_gb:g} GB a task, a worker of pool {one.pool} has {room_gb:.2g}{among}: "
                "raise memory_gb, or lower processes or workers, in the cluster profile"
            )


def refuse_what_is_missing(planned: Sequence[Planned]) -> None:
    """Refuse a plan whose stages do not find what they need.

    Raises
    ------
    PlanError : sources or weights are not there, or can not be read; each is told once
    """
    missing = dict.fromkeys(one.missing for one in planned if one.missing)
    if missing:
        raise PlanError("\n".join(missing))
