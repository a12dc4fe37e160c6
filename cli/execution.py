"""Stages of a command: running them on a cluster, and checking beforehand that its pools suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from patrolscope.cli.errors import handle_errors

if TYPE_CHECKING:
    import distributed

    from patrolscope.pipeline.engine.plan import Workers
    from patrolscope.pipeline.engine.stage import Stage
    from patrolscope.pipeline.study.store import Study


def command_stages(command: str, root: str) -> list[Any]:
    """Return the stages that a command runs for a study, once those it reads from have run."""
    from patrolscope.pipeline.engine import registry
    from patrolscope.pipeline.engine.freshness import check_inputs
    from patrolscope.pipeline.study.store import open_study

    study = open_study(root)
    check_inputs(command, study)
    return registry.command_stages(command, study)


def execute(root: str, stages: Sequence[Stage | Callable[[Study], Stage]], cluster: str) -> Study:
    """Run stages on a cluster, and return the study.

    Parameters
    ----------
    root : str
        Path or URL of the study.
    stages : sequence of Stage or callable
        Stages in order.
    cluster : str
        Value of --cluster.
    """
    with handle_errors():
        from functools import cache

        from patrolscope.cli.progress import show_progress
        from patrolscope.cluster.connect import connection
        from patrolscope.pipeline.engine.plan import check_capacity, plan_stages
        from patrolscope.pipeline.engine.run import run_stages
        from patrolscope.pipeline.study.store import open_study

        study = open_study(root)
        with show_progress() as progress, connection(cluster, progress.log) as client:

            @cache
            def checked_client() -> distributed.Client:
                # Before a job is submitted.
                pools = pools_of(cluster)
                planned = plan_stages(study, stages, pools)
                check_capacity(planned, pools)
                if any(work.wants == "GPU" and not work.is_done for work in planned):
                    for line in without_gpus(pools):
                        progress.log(line)
                return client()

            run_stages(study, stages, checked_client, progress)
        return study


def pools_of(cluster: str) -> dict[str, Workers]:
    """Return the pools of a profile or of a running scheduler."""
    from patrolscope.cluster.connect import connection, running_pools
    from patrolscope.cluster.profiles import Address, load_profile
    from patrolscope.pipeline.engine.plan import Workers

    profile = load_profile(cluster)
    if isinstance(profile, Address):
        with connection(cluster) as client:
            pools = running_pools(client())
    else:
        pools = profile.facts
    return {name: Workers(**facts) for name, facts in pools.items()}


def without_gpus(pools: dict[str, Workers]) -> list[str]:
    """Return a line if no pool has GPUs."""
    from patrolscope.cluster.profiles import gpus_here

    if any(workers.offers == "GPU" for workers in pools.values()):
        return []
    hint = "; this machine has some, which --cluster local-gpu uses" if gpus_here() else ""
    return [f"no pool has GPUs: the detector runs on CPU workers{hint}"]
