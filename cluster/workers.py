"""Pools of workers under one scheduler, each scaled by the tasks that need it."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import dask
import distributed
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from patrolscope.cluster.jobs import job_spec, listed_jobs
from patrolscope.cluster.profiles import LOOPBACK, Pool, Profile

BALANCE_EVERY_S = 1.0
LOST_AFTER_S = 10.0  # a job without workers for this long has ended; a nanny restarts a worker within a few seconds
RETRY_AFTER_S = 30.0  # until another job is submitted after the queue rejected or lost one
LIST_EVERY_S = 30.0  # between queries of the queue's job list while jobs wait
OFFERS = "offers"  # metadata key of the maximum amount of each resource, read by pipeline.engine.distribute
POOLS = "pools"  # metadata key of the capacity of each pool, read by cluster.connect


class Pools(distributed.SpecCluster):  # type: ignore[misc]  # distributed ships no types
    """One scheduler and the jobs of all pools of a profile.

    Dask's Adaptive scales workers of one kind only. Here, a task counts for the pools that offer its resources.

    Raises
    ------
    RuntimeError, OSError, ValueError
        If the scheduler cannot start.
    """

    def __init__(self, profile: Profile, security: Security | None) -> None:
        self.profile = profile
        self.problems: dict[str, str] = {}  # with the jobs of a pool, by its name, until jobs are submitted again
        self.log: Callable[[str], None] | None = None  # receives each problem once
        self._logged: dict[str, str] = {}
        self._numbers = dict.fromkeys(profile.pools, 0)  # of the next job
        self._positions: dict[str, int] = {}  # of jobs in their pool
        self._needed_at = dict.fromkeys(profile.pools, -math.inf)  # last time that all jobs of a pool were needed
        self._seen_at: dict[str, float] = {}  # last time that a job had a worker
        self._submit_at = dict.fromkeys(profile.pools, -math.inf)  # earliest time for the next jobs of a pool
        self._list_at = math.inf  # next query of the job list; infinite if no job waits
        self._balancing: PeriodicCallback | None = None
        address = profile.scheduler
        super().__init__(
            scheduler={
                "cls": distributed.Scheduler,
                "options": {
                    "protocol": "tls://" if security else "tcp://",
                    "host": address.host or (None if address.interface else LOOPBACK[0]),
                    "interface": address.interface,
                    "port": address.port,
                    "dashboard_address": address.dashboard,
                    "security": security,
                    # Report a shard whose worker died at once; pipeline.engine.distribute retries it alone.
                    "allowed_failures": 0,
                },
            },
            security=security,
            silence_logs="CRITICAL",
            name=f"patrolscope-{profile.name}",
        )
        self.sync(self._begin)

    async def _begin(self) -> None:
        self.scheduler.set_metadata([OFFERS], self.profile.offers)
        self.scheduler.set_metadata([POOLS], self.profile.facts)
        await self._balance()
        self._balancing = PeriodicCallback(self._balance, BALANCE_EVERY_S * 1000)
        self._balancing.start()

    async def _close(self) -> None:
        if self._balancing is not None:
            self._balancing.stop()
        if self.scheduler is not None and self.scheduler.status != Status.running:
            self.shutdown_scheduler = False  # `stop` has ended it; Dask would retry to reach it for long
        await super()._close()

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster would resubmit a lost job, even if its pool no longer needs it.
        Cluster._update_worker_status(self, op, msg)  # noqa: SLF001
        self._update_seen()  # a worker can come and go between two balancing rounds

    # The number of jobs.

    def targets(self) -> dict[str, int]:
        """Return the number of jobs that the tasks need in each pool, within its bounds."""
        targets = dict.fromkeys(self.profile.pools, 0)
        for resources, tasks in self._tasks().items():
            left = tasks
            for name, pool in self._suitable_pools(resources):
                jobs = min(math.ceil(left / pool.slots), pool.maximum - targets[name])
                targets[name] += jobs
                left = max(0, left - jobs * pool.slots)
        return {name: max(targets[name], pool.minimum) for name, pool in self.profile.pools.items()}

    def _tasks(self) -> Counter[frozenset[str]]:
        """Count unfinished tasks by the resources that they need."""
        state = self.scheduler
        tasks: list[Any] = [*state.unrunnable, *state.queued]
        for worker in state.workers.values():
            tasks += worker.processing
        return Counter(frozenset(task.resource_restrictions or ()) for task in tasks)

    def _suitable_pools(self, resources: frozenset[str]) -> Iterable[tuple[str, Pool]]:
        """Return pools whose workers offer all resources; for tasks without any, the CPU pools if there are some."""
        pools = self.profile.pools.items()
        suitable = [(name, pool) for name, pool in pools if resources <= set(pool.worker_resources)]
        return suitable if resources else [(name, pool) for name, pool in suitable if pool.kind == "cpu"] or suitable

    # Submitting and canceling jobs.

    async def _balance(self) -> None:
        """Submit and cancel jobs until every pool has its target."""
        if self.status != Status.running or self.scheduler.status != Status.running:
            return
        now = time.monotonic()
        self._drop_lost(now)
        await self._drop_canceled(now)
        targets = self.targets()
        leaving: list[str] = []
        for name, target in targets.items():
            jobs = self.jobs(name)
            if len(jobs) <= target:
                self._needed_at[name] = now
            if len(jobs) < target and now >= self._submit_at[name]:
                self._add_jobs(name, target - len(jobs))
            elif len(jobs) > target and now - self._needed_at[name] >= self.profile.pools[name].idle_s:
                idle = [job for job in jobs if not any(worker.processing for worker in self._workers_of(job))]
                leaving += sorted(idle, key=lambda job: bool(self._workers_of(job)))[: len(jobs) - target]
        if leaving:
            workers = [worker.name for job in leaving for worker in self._workers_of(job)]
            await self.scheduler.retire_workers(names=workers, close_workers=True)
            for job in leaving:
                self._drop(job)
        await self._apply(now)

    def jobs(self, pool: str) -> list[str]:
        """Return the jobs of a pool that are waiting in the queue or running."""
        return [job for job in self.worker_spec if job.rpartition("-")[0] == pool]

    def _workers_of(self, job: str) -> list[Any]:
        names = {f"{job}{suffix}" for suffix in self.worker_spec[job].get("group", [""])}
        return [worker for worker in self.scheduler.workers.values() if str(worker.name) in names]

    def _update_seen(self) -> None:
        now = time.monotonic()
        for job in self.worker_spec:
            if self._workers_of(job):
                self._seen_at[job] = now

    def _drop_lost(self, now: float) -> None:
        """Drop jobs that have lost their workers, as they ended or were killed; pools that need them get new ones."""
        self._update_seen()
        for job in list(self.worker_spec):
            ended = job in self.workers and self.workers[job].status in (Status.closed, Status.failed)
            if ended or now - self._seen_at.get(job, now) >= LOST_AFTER_S:
                self._drop(job)

    async def _drop_canceled(self, now: float) -> None:
        """Drop jobs that left the queue before they had a worker, as they were canceled or failed at their start."""
        waiting = {job: worker.job_id for job, worker in self._submitted() if job not in self._seen_at}
        if not waiting:
            self._list_at = math.inf
            return
        if self._list_at == math.inf:
            self._list_at = now + LIST_EVERY_S
        if now < self._list_at:
            return
        self._list_at = now + LIST_EVERY_S
        listed = await listed_jobs(self.profile.kind)
        if listed is None:
            return
        for job in sorted(waiting.keys() - self._seen_at.keys()):  # a worker may have started in the meantime
            if waiting[job] not in listed:
                self._drop(job)
                self._report(
                    job,
                    f"job {waiting[job]} left the queue before its worker started; it was canceled or failed (see "
                    f"{self.profile.home / 'logs'}); another job will be submitted in {RETRY_AFTER_S:g} s",
                )

    def _submitted(self) -> list[tuple[str, Any]]:
        return [(job, worker) for job, worker in self.workers.items() if getattr(worker, "job_id", None) is not None]

    def _report(self, job: str, problem: str) -> None:
        pool = job.rpartition("-")[0]
        self.problems[pool] = f"pool {pool}: {problem}"
        self._submit_at[pool] = time.monotonic() + RETRY_AFTER_S
        if self.log is not None and self._logged.get(pool) != self.problems[pool]:
            self._logged[pool] = self.problems[pool]
            self.log(self.problems[pool])

    def _add_jobs(self, pool: str, jobs: int) -> None:
        for _ in range(jobs):
            taken = {self._positions[job] for job in self.jobs(pool)}
            position = next(number for number in itertools.count() if number not in taken)
            security = self.security if self._is_secure else None
            name, spec = job_spec(self.profile, pool, self._numbers[pool], position, security)
            self._numbers[pool] += 1
            self._positions[name] = position
            self.worker_spec[name] = spec

    @property
    def _is_secure(self) -> bool:
        return bool(self.security.require_encryption)

    def _drop(self, job: str) -> None:
        self.worker_spec.pop(job, None)
        self._seen_at.pop(job, None)
        self._positions.pop(job, None)

    async def _apply(self, now: float) -> None:
        """Let SpecCluster submit and cancel jobs, and record the message of a queue that rejects one."""
        try:
            await self._correct_state()
            self.problems = {pool: text for pool, text in self.problems.items() if now < self._submit_at[pool]}
        except (RuntimeError, OSError, ValueError, TimeoutError) as error:
            reason = _in_one_line(error)
            for job, worker in list(self.workers.items()):
                if worker.status != Status.running:
                    worker.status = Status.failed
                    del self.workers[job]
                    self._drop(job)
                    self._report(job, f"cannot start its jobs: {reason}")


def _in_one_line(error: Exception) -> str:
    """Return the queue system's own message from the error of dask-jobqueue."""
    text = str(error)
    _, marker, message = text.partition("stderr:\n")
    return " ".join((message if marker else text).split()) or type(error).__name__


def quiet() -> Any:
    """Set Dask's configuration for schedulers and workers that are started here."""
    return dask.config.set(
        {
            # Workers would report the time of garbage collection for every shard, and users cannot act on that.
            "distributed.admin.system-monitor.gil.enabled": False,
            # By default, each server checks its event loop 50 times per second, which takes 2.6% of a core in a
            # scheduler with two idle workers. Dask reports pauses of at least 3 s.
            "distributed.admin.tick.interval": "500ms",
        }
    )
