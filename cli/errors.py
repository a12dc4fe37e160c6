"""Output, and errors that end a command with a message instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


def echo(text: str) -> None:
    """Print a line."""
    typer.echo(text)


@contextmanager
def handle_errors(stopped: str = "run the same command to resume") -> Iterator[None]:
    """End the command with a message and status 2 on a user's mistake. Defects keep their traceback.

    Parameters
    ----------
    stopped : str
        Advice after Ctrl-C, which ends the command with status 130.

    Raises
    ------
    typer.Exit
        With the status of the error.
    """
    from patrolscope.cluster.profiles import ClusterError
    from patrolscope.pipeline.credentials import redacted
    from patrolscope.pipeline.errors import PatrolscopeError
    from patrolscope.pipeline.study.remote import report_storage_faults

    try:
        with report_storage_faults():
            yield
    except (PatrolscopeError, ClusterError) as error:
        typer.secho(f"error: {redacted(str(error))}", err=True, fg="red" if sys.stderr.isatty() else None)
        raise typer.Exit(getattr(error, "status", 2)) from error
    except KeyboardInterrupt:
        typer.echo(f"stopped; {stopped}", err=True)
        raise typer.Exit(130) from None
