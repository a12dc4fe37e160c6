"""Ingestion of raw CSV with validation, compared with a DuckDB copy of the same files to Parquet."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import distributed
import duckdb
import numpy as np

from benchmarks.measure import Comparison, best_of, two_workers
from benchmarks.workloads import write_raw_files
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.intake.stages import STAGES
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import create_study


def run(*, quick: bool) -> list[Comparison]:
    """Run with 1 and 5 million rows (quick: 200,000) in daily files, on two workers and two threads.

    `ingest` reads, validates, drops duplicates, orders along the curve, and writes one file per day; the peer copies.
    """
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch, two_workers() as client:
        return [
            compare(Path(scratch) / str(rows), rows, days, client)
            for rows, days in ([(200_000, 2)] if quick else [(1_000_000, 4), (5_000_000, 10)])
        ]


def compare(folder: Path, rows: int, days: int, client: distributed.Client) -> Comparison:
    """Run both on the same files; write `study` and `copy.parquet` to `folder`."""
    files = write_raw_files(folder / "raw", rows, days)
    settings = Settings.model_validate({"sources": {"metadata": [str(folder / "raw")]}})

    def ours() -> None:
        shutil.rmtree(folder / "study", ignore_errors=True)
        *_, ingest = run_stages(create_study(folder / "study", settings), STAGES, lambda: client)
        if ingest.rows_out != rows:
            raise ValueError(f"ingest wrote {ingest.rows_out} of {rows} rows")

    def peer() -> None:
        with duckdb.connect(config={"threads": 2}) as connection:
            connection.execute("set enable_progress_bar = false")
            copied = f"select * from read_csv({[str(file) for file in files]})"
            connection.execute(f"copy ({copied}) to '{folder}/copy.parquet' (format parquet)")

    peer()  # fills the page cache and loads the code before the measurement
    ours()
    # Alternate, so that other load on the machine affects both.
    ours_s, peer_s = np.array([(best_of(ours, 1), best_of(peer, 1)) for _ in range(3)]).min(axis=0)
    return Comparison(f"ingest {rows:,} rows of raw CSV", float(ours_s), float(peer_s), "s", 0.7, "DuckDB, plain copy")
