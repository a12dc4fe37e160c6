"""Typer application, its help in groups, and the entry point."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

PANELS = ("Whole studies", "Inputs", "Detectors", "Estimates", "Results", "Clusters")  # in the order of --help


class GroupedHelp(typer.core.TyperGroup):
    """Group of commands whose help lists them by panel, each with its first sentence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse arguments that a command could not store: URLs with credentials, and names that are not UTF-8.

        Raises
        ------
        typer.Exit
            With status 2, if there is such an argument.
        """
        from patrolscope.pipeline.credentials import ADVICE, has_credentials, redacted
        from patrolscope.pipeline.names import is_utf8, shown

        for argument in args:
            if not is_utf8(argument):
                typer.echo(f"error: {shown(argument)} is not UTF-8; rename the file or folder", err=True)
                raise typer.Exit(2)
            if has_credentials(argument):
                typer.echo(f"error: {redacted(argument)}: {ADVICE}", err=True)
                raise typer.Exit(2)
        return list(super().parse_args(ctx, args))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        sections: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                sentence = " ".join((command.help or "").partition("\n\n")[0].split())
                sections.setdefault(str(vars(command).get("rich_help_panel")), []).append((name, sentence))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=GroupedHelp,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(requested: bool) -> None:
    if requested:
        from patrolscope import __version__

        typer.echo(f"patrolscope {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Estimate where police are deployed, from dashcam images to disparities with intervals."""


def main() -> None:
    """Run the command line."""
    # A queue or a lost terminal ends a command with a signal. Like Ctrl-C, it then removes temporary keys.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, signal.default_int_handler)
    app()
