"""Commands for clusters: show, launch, status, stop."""

from __future__ import annotations

from typing import Annotated

import typer

from patrolscope.cli.app import app
from patrolscope.cli.errors import echo, handle_errors
from patrolscope.cli.execution import command_stages, pools_of
from patrolscope.cli.options import OptionalStudyOption

cluster_app = typer.Typer(
    help="Explain cluster profiles, and manage schedulers that outlive a command.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cluster_app, name="cluster", rich_help_panel="Clusters")
ProfileArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="Name, .yaml file, or scheduler file of a profile.")
]


@cluster_app.command()
def show(profile: ProfileArgument, study: OptionalStudyOption = None) -> None:
    """Show job scripts, cores, GPUs, and hours of every pool, without starting anything."""
    with handle_errors():
        from patrolscope.cli.plan import print_plan
        from patrolscope.cluster.jobs import describe, job_script
        from patrolscope.cluster.profiles import Address, load_profile
        from patrolscope.pipeline.engine.plan import plan_stages
        from patrolscope.pipeline.study.store import open_study

        loaded = load_profile(profile)
        if isinstance(loaded, Address):
            echo(f"running scheduler at {loaded.address}: see `patrolscope cluster status {profile}`")
            return
        for name, pool in loaded.pools.items():
            echo(f"--- pool {name}: {describe(pool)}")
            echo(job_script(loaded, name))
        if study is not None:
            pools = pools_of(profile)
            print_plan(plan_stages(open_study(study), command_stages("run", study), pools), pools)


@cluster_app.command()
def launch(
    profile: ProfileArgument,
    file: Annotated[
        str | None, typer.Option(help="Scheduler file (.json) to write. Default: in the profile's folder.")
    ] = None,
) -> None:
    """Keep a scheduler and its pools running until `stop` or Ctrl-C. Other commands take its file as --cluster."""
    with handle_errors():
        from patrolscope.cluster import launch as launching

        launching.launch(profile, file, echo)


@cluster_app.command()
def status(profile: ProfileArgument) -> None:
    """Show address, dashboard, workers, and tasks of a launched scheduler."""
    with handle_errors():
        from patrolscope.cluster import launch as launching

        for line in launching.status(profile):
            echo(line)


@cluster_app.command()
def stop(profile: ProfileArgument) -> None:
    """Stop a launched scheduler with its workers and jobs."""
    with handle_errors():
        from patrolscope.cluster import launch as launching

        echo(launching.stop(profile))
