"""Registry of all stages: their order, which follows from what they read and write, and what is derived from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from patrolscope.pipeline.engine.entries import ENTRIES, StageEntry

if TYPE_CHECKING:
    from patrolscope.pipeline.study.store import Study


def ordered(entries: Iterable[StageEntry] = ENTRIES) -> list[StageEntry]:
    """Return entries so that each one follows those it depends on.

    Among entries that are ready, those that open files outside the study come first, so that a missing file fails in
    seconds, not hours. Otherwise the order of `ENTRIES` holds.

    Raises
    ------
    ValueError
        If entries depend on each other.
    """
    place = {entry.name: number for number, entry in enumerate(ENTRIES)}
    waiting = sorted(entries, key=lambda entry: (not entry.opens, place.get(entry.name, len(place))))
    order: list[StageEntry] = []
    while waiting:
        ready = next((entry for entry in waiting if not any(map(entry.depends_on, waiting))), None)
        if ready is None:
            raise ValueError(f"stages {', '.join(entry.name for entry in waiting)} depend on each other")
        waiting.remove(ready)
        order.append(ready)
    return order


ORDER = {entry.name: entry for entry in ordered()}


def rank(stage: str) -> int:
    """Return the position of a stage in the order of all stages. Unknown stages come last."""
    name = stage if stage in ORDER else stage.partition("-")[0]  # detect-RESULT
    return [*ORDER, name].index(name)


def core_seconds(stage: str) -> float | None:
    """Return the measured time on one core per unit of a stage, or None."""
    return ORDER[stage].core_seconds if stage in ORDER else None


def filtering() -> list[str]:
    """Return the names of the stages that lead from the lines of the raw files to the analyzed images."""
    return [name for name, entry in ORDER.items() if entry.filters_images]


def inputs(stage: str) -> list[str]:
    """Return the names of the stages that a stage depends on directly, in the order of a run."""
    return [name for name, entry in ORDER.items() if ORDER[stage].depends_on(entry)]


def behind(stage: str, *, since: Iterable[str] = ()) -> list[StageEntry]:
    """Return a stage and all it depends on, in the order of a run.

    Parameters
    ----------
    stage : str
        Name of the last stage.
    since : iterable of str
        Names of stages that are included, but whose own inputs are not followed.
    """
    found: dict[str, StageEntry] = {}
    waiting = [ORDER[stage]]
    while waiting:
        entry = waiting.pop()
        found[entry.name] = entry
        if entry.name not in since:
            waiting += [other for other in ENTRIES if entry.depends_on(other) and other.name not in found]
    return ordered(found.values())


def command_stages(command: str, study: Study) -> list[Any]:
    """Return the stages that a command runs for a study, as `Stage` objects or functions of the study, in order."""
    return [entry.load() for entry in ORDER.values() if command in entry.commands and entry.belongs_to(study)]


def table_of_stages() -> str:
    """Return the README's table of stages, in the order of a run."""
    lines = ["| stage | commands | reads | writes | what it does |", "| --- | --- | --- | --- | --- |"]
    for name, entry in ORDER.items():
        reads, writes = (
            ", ".join(f"`{path}`" for path in paths if not path.startswith("manifest/"))
            for paths in ((*entry.opens, *entry.reads), entry.writes)
        )
        lines.append(f"| {name} | {', '.join(entry.commands)} | {reads} | {writes} | {entry.help} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_of_stages())  # noqa: T201
