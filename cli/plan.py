"""Table of the work that a study still needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from patrolscope.cli.errors import echo

if TYPE_CHECKING:
    from patrolscope.pipeline.engine.plan import Planned, Workers


_MANY_CAUSES = 4  # lines per stage


def cause_lines(causes: Sequence[tuple[str, int]]) -> list[str]:
    """Return why finished shards are rebuilt, as lines; `causes` has the number of shards, the largest first."""
    lines = [f"to rebuild: {cause} (shards: {count:,})" for cause, count in causes[:_MANY_CAUSES]]
    if others := sum(count for _, count in causes[_MANY_CAUSES:]):
        lines.append(f"to rebuild for other causes (shards: {others:,})")
    return lines


def print_plan(planned: list[Planned], pools: dict[str, Workers]) -> None:
    """Print stages with shards, memory, and hours, and the hours of every pool."""
    echo(f"{'stage':14} {'pool':8} {'shards':>8} {'done':>8} {'left':>22} {'GB/task':>10} {'hours':>10}")
    for work in planned:
        shards = "missing" if work.missing else "later" if work.shards is None else f"{work.shards:,}"
        left = "" if work.shards is None else f"{work.left:,} {work.unit}"
        hours = work.hours(pools)
        known = "" if work.shards is None else "unmeasured" if hours is None else f"{hours:.3f}"
        echo(
            f"{work.stage:14} {work.pool:8} {shards:>8} {work.done:>8,} {left:>22} {work.memory_gb or 2:>10.3g} "
            f"{known:>10}"
        )
        for line in cause_lines(work.causes):
            echo(f"{'':14} {line}")
    for name, workers in pools.items():
        mine = [work for work in planned if work.pool == name]
        hours = sum(work.hours(pools) or 0.0 for work in mine)
        slot_hours = sum(work.slot_hours or 0.0 for work in mine)
        # The sum excludes stages of unknown duration, and names them.
        unknown = [work.stage for work in mine if work.shards is None or work.slot_hours is None]
        without = f", without {', '.join(unknown)}" if unknown else ""
        unit = "GPU" if workers.offers == "GPU" else "core"
        total = f"{_hours(hours)} hours on {workers.slots} {unit}s, {_hours(slot_hours)} {unit} hours"
        echo(f"pool {name}: {total}{without}")


def _hours(hours: float) -> str:
    return "0" if hours == 0 else f"about {hours:.2f}" if hours >= 0.01 else "less than 0.01"
