"""Run benchmarks: `python -m benchmarks annotate bootstrap [--quick] [--json FILE]`, or `all`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.measure import Comparison

HELPERS = {"__main__", "measure", "workloads"}


def names() -> list[str]:
    """Benchmarks there are: every module here that is no helper."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in HELPERS)


def main() -> None:
    """Run what is asked for, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*names(), "all"], help="benchmarks to run")
    parser.add_argument("--quick", action="store_true", help="small sizes: ends within 45 seconds")
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    rows: list[Comparison] = []
    for name in names() if "all" in asked.names else asked.names:
        rows += importlib.import_module(f"benchmarks.{name}").run(quick=asked.quick)
    show(rows)
    if asked.json is not None:
        asked.json.write_text(json.dumps([row.to_row() for row in rows], indent=1))


def show(rows: list[Comparison]) -> None:
    """Print the comparison."""
    grid = Table(title=f"{os.cpu_count()} cores, Python {platform.python_version()}")
    for heading in ("what", "ours", "peer", "", "ratio", "goal", "peer is"):
        grid.add_column(heading)
    for row in rows:
        mark = "met" if row.ratio >= row.goal else "MISSED"
        grid.add_row(
            row.name,
            f"{row.ours:.4g}",
            f"{row.peer:.4g}",
            row.unit,
            f"{row.ratio:.3g}",
            f"{row.goal:g} {mark}",
            row.peer_name,
        )
    Console(width=160).print(grid)


if __name__ == "__main__":
    main()
