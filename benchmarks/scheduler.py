"""Load of scheduler and client at one and ten times the size of the study; annotation on one and two workers.

The stages plan their shards from synthetic records, and `run_stages` submits them as usual, but each task only writes
an empty file. Scheduler (`patrolscope cluster launch`) and client run in separate processes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import distributed
import yaml

from benchmarks.measure import Comparison, workers
from benchmarks.workloads import simulated_study
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.stages.calibrate import CALIBRATION_FILE
from patrolscope.analysis.stages.replicates import BLOCK, REPLICATE
from patrolscope.pipeline.detect.image_index import BUCKETS
from patrolscope.pipeline.detect.stages import INDEX, WEIGHTS, detect_stage, plan_weights
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.matching.stages import ANNOTATE, KEYS, MATCH, load_reference_layers
from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.store import Output, Record, Study, create_study

DETECT_SHARDS, DAYS, BLOCKS = 12_400, 76, 100
IMAGES_PER_SHARD = 2_000
# Shards that run at the same time, as on 64 GPUs.
SLOTS = 64
ROUNDS = 15


@dataclass(frozen=True)
class Cost:
    """Load of scheduler and client over all stages."""

    shards: int
    scheduler_s: float  # CPU time
    wall_s: float
    again_s: float  # duration of a second run, which has nothing to do
    graph_bytes: int  # of the largest submitted graph
    client_gb: float  # peak memory of the client


def run(*, quick: bool) -> list[Comparison]:
    """Run with 12,400 detect shards, 76 days, and 100 blocks, and ten times that; quick: a hundredth and a tenth."""
    few, many = (measure_costs(times) for times in ((0.01, 0.1) if quick else (1, 10)))
    rows = []
    for cost in (few, many):
        workload = f"{cost.shards:,} shards of detect, annotate and replicates"
        rows += [
            Comparison(
                f"{workload}: scheduler, per shard", cost.scheduler_s / cost.shards * 1e3, 1.0, "ms", 1, "limit"
            ),
            Comparison(f"{workload}: largest graph", cost.graph_bytes / 1e6, 10.0, "MB", 1, "limit"),
            Comparison(f"{workload}: memory of the client", cost.client_gb, 1.0, "GB", 1, "limit"),
        ]
    for action, of_few_s, of_many_s in (
        ("run by idle tasks", few.wall_s, many.wall_s),
        ("found finished", few.again_s, many.again_s),
    ):
        one_s, one_of_few_s = of_many_s / many.shards, of_few_s / few.shards
        peer = f"patrolscope, {few.shards:,} shards"
        rows.append(
            Comparison(
                f"time per shard of {many.shards:,}, {action}", one_s * 1e3, one_of_few_s * 1e3, "ms", 1 / 1.3, peer
            )
        )
    return [*rows, *efficiency(200_000 if quick else 3_000_000)]


# Idle tasks.


def measure_costs(times: float) -> Cost:
    """Measure the load at a multiple of the size of the study, with the client in a separate process."""
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as folder, launched(Path(folder)) as file:
        script = f"from benchmarks.scheduler import print_costs; print_costs({folder!r}, {str(file)!r}, {times})"
        done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    return Cost(**json.loads(done.stdout))


@contextmanager
def launched(folder: Path) -> Iterator[Path]:
    """Start a scheduler with workers for `SLOTS` shards on loopback; yield its connection file."""
    pool = {"cores": SLOTS // 2, "processes": 1, "memory_gb": 2, "minimum": 2, "maximum": 2}
    profile = folder / "profile.yaml"
    content = {"kind": "local", "folder": str(folder / "home"), "tls": "none", "pools": {"cpu": pool}}
    profile.write_text(yaml.safe_dump(content))
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "patrolscope", "cluster", "launch", str(profile), "--file", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as scheduler:
        try:
            while not file.exists():
                if scheduler.poll() is not None:
                    raise RuntimeError(f"the scheduler ended with status {scheduler.returncode}")
                time.sleep(0.1)
            yield file
        finally:
            scheduler.terminate()


def print_costs(folder: str, file: str, times: float) -> None:
    """Run the stages twice on the scheduler of a connection file, and print the load as JSON."""
    study = plan_study(Path(folder) / "study", times)
    stages = [replace(stage, process=write_nothing) for stage in (detect_stage(study), ANNOTATE, REPLICATE)]
    with Counting(scheduler_file=file) as client:
        client.wait_for_workers(2)
        # Let scheduler and workers import the modules of the tasks.
        warm = Stage("warm", "shards", (), lambda _: [Shard(f"{number}", {}) for number in range(SLOTS)], write_nothing)
        run_stages(study, [warm], lambda: client)
        before_s = client.run_on_scheduler(time.process_time)
        start_s = time.perf_counter()
        outcomes = run_stages(study, stages, lambda: client)
        wall_s = time.perf_counter() - start_s
        scheduler_s = client.run_on_scheduler(time.process_time) - before_s
        start_s = time.perf_counter()
        run_stages(study, stages, lambda: client)
        cost = Cost(
            shards=sum(outcome.done_now for outcome in outcomes),
            scheduler_s=scheduler_s,
            wall_s=wall_s,
            again_s=time.perf_counter() - start_s,
            graph_bytes=client.graph_bytes,
            client_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )
    print(json.dumps(asdict(cost)))


class Counting(distributed.Client):  # type: ignore[misc]  # distributed ships no types
    """Client that records the size of the largest submitted graph."""

    graph_bytes = 0

    def _send_to_scheduler(self, msg: dict[str, Any]) -> None:
        if msg["op"] == "update-graph":
            expression = msg["expr_ser"]
            self.graph_bytes = max(self.graph_bytes, sum(map(len, map(memoryview, expression.frames))))
        super()._send_to_scheduler(msg)


def write_nothing(study: Study, shard: Shard) -> Output:
    """Write an empty file instead of the output of a stage."""
    file = study.write_bytes(b"", f"nothing/{shard.name}")
    return Output((file,), 0, 0)


def plan_study(folder: Path, times: float) -> Study:
    """Return a study with synthetic records of a multiple of its shards, but without tables."""
    settings = with_changes(
        Settings(),
        {
            "images": {"sources": ["store"], "weights": "weights.pt"},
            "sources": {"detections": ["labels"]},
            "estimate": {"replicates": round(BLOCKS * times) * BLOCK, "bootstrap": ["image"]},
        },
    )
    study = create_study(folder, settings)
    study.write_bytes(b"", "weights.pt")
    (weights,) = plan_weights(study)
    facts = {"result": "yolov7-e6e", "detector": "0" * 16, "police_class": 1}
    study.commit(
        WEIGHTS.name, Record((), 1, 1, shard=weights.name, fingerprint=WEIGHTS.fingerprint(weights), facts=facts)
    )
    for bucket in range(BUCKETS):
        shards = [
            (f"{number:016x}", IMAGES_PER_SHARD, IMAGES_PER_SHARD * 200_000)
            for number in range(bucket, round(DETECT_SHARDS * times), BUCKETS)
        ]
        file = f"image_index/{bucket:02}.parquet"
        study.commit(
            INDEX.name, Record((file,), 0, 0, shard=f"{bucket:02}", fingerprint=f"{bucket}", facts={"shards": shards})
        )
    for number in range(round(DAYS * times)):
        day = date(2020, 8, 15) + timedelta(days=number)
        file = f"metadata/day={day}/0.parquet"
        study.commit("ingest", Record((file,), 326_000, 326_000, shard=f"{day}", fingerprint=f"{number}"))
    for stage in ("layers", MATCH.name, "calibrate"):
        study.commit(stage, Record((), 1, 1, shard=stage, fingerprint=stage))
    calibration = {"two_class": asdict(TwoClass(0.77, 700, 540, 9_300, 20)), "adjusted": None, "quality": {}}
    study.write_bytes(json.dumps(calibration).encode(), CALIBRATION_FILE)
    return study


# Annotation with its real work.


def efficiency(images: int) -> list[Comparison]:
    """Compare the whole stage on one worker and on two, alternating, since the speed of shared cores varies.

    Both clusters of single-threaded workers run all the time; times are medians over rounds. Scheduler and client share
    the cores and use about 0.4 s of CPU time per round, for which one worker leaves a core free and two workers do not.
    """
    rounds_s: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as folder:
        with workers(2) as client:
            study = simulated_study(Path(folder) / "study", images, client)
            run_stages(study, [LABELS, KEYS, MATCH], lambda: client)
        with workers(1) as one, workers(2) as two:
            for client in (one, two):
                client.run(load_reference_layers, study, study.record("layers").content)
                _annotated_s(study, client)
            for _ in range(ROUNDS):
                for number, client in ((1, one), (2, two)):
                    rounds_s[number].append(_annotated_s(study, client))
                print(f"annotate: {rounds_s[1][-1]:.2f} s on one worker, {rounds_s[2][-1]:.2f} s on two", flush=True)
    workload = f"annotate {images:,} images, two workers, median of {ROUNDS} rounds"
    return [Comparison(workload, median(rounds_s[2]), median(rounds_s[1]), "s", 1.8, "patrolscope, one worker")]


def _annotated_s(study: Study, client: distributed.Client) -> float:
    for record in study.records(ANNOTATE.name).values():
        study.discard(ANNOTATE.name, record)
    start_s = time.perf_counter()
    run_stages(study, [ANNOTATE], lambda: client)
    return time.perf_counter() - start_s
