"""Options that several commands share, and conversions of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patrolscope.cli.errors import echo, handle_errors


def absolute(path: str) -> str:
    """Return a path as an absolute one; URLs stay unchanged."""
    return path if "://" in path else str(Path(path).resolve())


def name_or_number(text: str) -> int | str:
    """Return a number as int, and other text unchanged."""
    return int(text) if text.isdecimal() else text


def _migrated(root: str | None) -> str | None:
    """Rename outdated settings of the study before a command opens it."""
    if root is not None:
        with handle_errors():
            from patrolscope.pipeline.study.migration import migrate_settings

            for line in migrate_settings(root):
                echo(line)
    return root


StudyOption = Annotated[str, typer.Option("--study", "-s", callback=_migrated, help="Study folder: a path or URL.")]
OptionalStudyOption = Annotated[
    str | None,
    typer.Option("--study", "-s", callback=_migrated, help="Study folder whose cost is also shown: a path or URL."),
]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", help="Cluster profile (name or .yaml file), scheduler file (.json), or tcp://host:port."),
]
