"""Work that a study still needs, before any of it starts: shards, memory, hours, and whether the workers suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.freshness import counted, stale
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import PatrolscopeError, PlanError, SourceError, WeightsError
from patrolscope.pipeline.study.store import Study


@dataclass(frozen=True)
class Workers:
    """Capacity of the workers of one pool."""

    offers: str  # CPU or GPU
    memory_gb: float  # of a worker process
    tasks: int  # at a time per process
    slots: int  # tasks at a time in the whole pool, at its largest


@dataclass(frozen=True)
class Planned:
    """Planned work of a stage."""

    stage: str
    unit: str
    pool: str  # whose workers do it
    memory_gb: float  # per task
    shards: int | None  # None: unknown until earlier stages are done
    done: int
    left: int  # in the stage's unit
    slot_hours: float | None  # on one core or one GPU; None: no rate was measured
    missing: str = ""  # error of an input outside the study that does not exist
    wants: str = ""  # GPU, for stages that are fastest there
    causes: Sequence[tuple[str, int]] = ()  # why finished shards are rebuilt, and how many, most first

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.shards is not None and self.done >= self.shards

    def hours(self, pools: Mapping[str, Workers]) -> float | None:
        """Return the hours that the whole pool needs."""
        if self.slot_hours is None or self.shards is None:
            return None
        return self.slot_hours / max(1, min(pools[self.pool].slots, self.shards - self.done))


def plan_stages(
    study: Study, stages: Iterable[Stage | Callable[[Study], Stage]], pools: Mapping[str, Workers]
) -> list[Planned]:
    """Return the remaining work of every stage and the pool that does it.

    Parameters
    ----------
    study : Study
        Study to plan for.
    stages : iterable of Stage or callable
        Stages in order, as `run_stages` takes them. The number of shards of a stage that plans from records of an
        unfinished one is unknown.
    pools : mapping of str to Workers
        Pools by name.
    """
    planned: list[Planned] = []
    for stage in stages:
        current = _planned(study, stage, pools)
        if current.shards == 0 and not all(before.is_done for before in planned):
            current = replace(current, shards=None, slot_hours=None)  # earlier stages may add some
        planned.append(current)
    return planned


def _planned(study: Study, stage: Stage | Callable[[Study], Stage], pools: Mapping[str, Workers]) -> Planned:
    shards: list[Shard] | None
    missing = ""
    try:
        made = stage if isinstance(stage, Stage) else stage(study)
        shards = made.plan(study)
    except PatrolscopeError as error:
        shards = None
        # Other errors are about output that an earlier stage has not written yet.
        missing = str(error) if isinstance(error, (SourceError, WeightsError)) else ""
        if not isinstance(stage, Stage):
            # The name of the stage is part of a result that does not exist yet.
            name = getattr(stage, "__name__", "stage").removesuffix("_stage")
            return Planned(name, "", _pool_for("GPU", pools), 0.0, None, 0, 0, None, missing, "GPU")
        made = stage
    pool = _pool_for(made.resource, pools)
    if shards is None:
        return Planned(made.name, made.unit, pool, made.memory_gb, None, 0, 0, None, missing, made.resource)
    records = study.records(made.name)
    found = stale(study, made, shards, records)
    todo = [shard for shard in shards if shard.name in found]
    left = sum(shard.size for shard in todo)
    finished = [shard for shard in shards if shard.name in records]
    size = sum(shard.size for shard in finished)
    seconds = sum(records[shard.name].seconds for shard in finished)
    # Rates measured in the study itself take precedence.
    rate_s = seconds / size if size and seconds else registry.core_seconds(made.name)
    hours = 0.0 if not left else None if rate_s is None else left * rate_s / 3600
    done = len(shards) - len(todo)
    return Planned(
        made.name,
        made.unit,
        pool,
        made.memory_gb,
        len(shards),
        done,
        left,
        hours,
        wants=made.resource,
        causes=counted(found),
    )


def _pool_for(resource: str, pools: Mapping[str, Workers]) -> str:
    """Return the pool that offers the resource, else one for rows, else any."""
    for offer in (resource or "CPU", "CPU"):
        for name, workers in pools.items():
            if workers.offers == offer:
                return name
    return next(iter(pools))


def check_capacity(planned: Sequence[Planned], pools: Mapping[str, Workers]) -> None:
    """Reject a plan that exceeds the memory of the workers.

    Raises
    ------
    PlanError
        If a task of an unfinished stage needs more memory than a worker offers.
    """
    for work in planned:
        workers = pools[work.pool]
        offered_gb = workers.memory_gb / workers.tasks
        if not work.is_done and work.memory_gb > offered_gb:
            shared = "" if workers.tasks == 1 else f" to each of {workers.tasks} tasks"
            raise PlanError(
                f"{work.stage} needs {work.memory_gb:g} GB per task; pool {work.pool} offers {offered_gb:.2g} GB"
                f"{shared}; raise memory_gb or lower processes in the cluster profile"
            )


def check_inputs(planned: Sequence[Planned]) -> None:
    """Reject a plan with missing inputs.

    Raises
    ------
    PlanError
        If sources or weights are missing or unreadable. Each one is named once.
    """
    missing = dict.fromkeys(work.missing for work in planned if work.missing)
    if missing:
        raise PlanError("\n".join(missing))
