"""Progress of stages and images on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from patrolscope.cli.plan import cause_lines
from patrolscope.pipeline.engine.run import Outcome, Progress

if TYPE_CHECKING:
    from rich.progress import TaskID

    from patrolscope.pipeline.engine.stage import Shard, Stage
    from patrolscope.pipeline.study.store import Record


@contextmanager
def show_progress() -> Iterator[TerminalProgress]:
    """Yield the progress of stages: a bar with rate and time left, and a line per finished stage."""
    console = Console(stderr=True)
    bar = Bar(
        TextColumn("{task.description:28}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield TerminalProgress(bar, console.print)


@contextmanager
def show_amount(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows the progress of one thing, from the amount done and in all."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


class TerminalProgress(Progress):
    """Progress listener that draws a bar."""

    def __init__(self, bar: Bar, output: Callable[..., None]) -> None:
        self.bar, self.output = bar, output
        self.task: TaskID | Any = None
        self.bytes = 0

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        self.output(text, highlight=False, style="yellow")

    def start(self, stage: Stage, done: int, total: int, causes: Sequence[tuple[str, int]]) -> None:
        """Add the bar of a stage, and say why finished shards are rebuilt."""
        self.bytes = 0
        for line in cause_lines(causes):
            self.output(f"{self._title(stage):28} {line}", highlight=False)
        self.task = self.bar.add_task(
            self._title(stage), completed=done, total=total, amount=f"of {total:,} {stage.unit}"
        )

    def advance(self, stage: Stage, shard: Shard, record: Record) -> None:
        """Advance the bar by a shard."""
        task = self.bar.tasks[self.bar.task_ids.index(self.task)]
        rate = f", {task.speed:,.0f} {stage.unit}/s" if task.speed else ""
        self.bytes += record.facts.get("bytes", 0)
        read = f", {self.bytes / 1e9:,.2f} GB" if self.bytes else ""
        self.bar.update(self.task, advance=shard.size, amount=f"of {task.total:,.0f} {stage.unit}{rate}{read}")

    def finish(self, stage: Stage, outcome: Outcome) -> None:
        """Replace the bar with the rows in, written, and dropped."""
        self.bar.remove_task(self.task)
        title = f"{self._title(stage):28}"
        if outcome.done_now == 0:
            self.output(f"{title} up to date", highlight=False)
            return
        self.output(f"{title} {outcome.rows_in:>12,} in {outcome.rows_out:>12,} out", highlight=False)
        for why, rows in outcome.dropped.items():
            self.output(f"{'':28} {rows:>12,} dropped: {why}", highlight=False, style="yellow")
        for what, rows in outcome.notes.items():
            self.output(f"{'':28} {rows:>12,} {what}", highlight=False, style="dim")

    def _title(self, stage: Stage) -> str:
        return f"stage {self.number:2} of {self.stages:2} {stage.name}"
