"""Run benchmarks: `python -m benchmarks annotate bootstrap [--quick] [--json FILE]`, or `all`."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pkgutil
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.coverage import Coverage
from benchmarks.measure import Comparison

HELPERS = {"__main__", "measure", "simulated_studies", "workloads"}


def names() -> list[str]:
    """Return the names of all benchmarks, which are the modules here except helpers."""
    return sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in HELPERS)


def main() -> None:
    """Run the selected benchmarks, print a table, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*names(), "all"], help="Benchmarks to run.")
    parser.add_argument("--quick", action="store_true", help="Use small sizes; takes at most 45 seconds.")
    parser.add_argument("--json", type=Path, help="File for the results.")
    options = parser.parse_args()
    rows: list[Comparison | Coverage] = []
    for name in names() if "all" in options.names else options.names:
        rows += importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)
    show([row for row in rows if isinstance(row, Comparison)])
    show_coverage([row for row in rows if isinstance(row, Coverage)])
    if options.json is not None:
        options.json.write_text(json.dumps([row.to_row() for row in rows], indent=1))


def show(rows: list[Comparison]) -> None:
    """Print the comparison."""
    if not rows:
        return
    grid = Table(title=f"{os.cpu_count()} cores, Python {platform.python_version()}")
    for heading in ("benchmark", "ours", "peer", "unit", "ratio", "goal", "name of peer"):
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


def show_coverage(rows: list[Coverage]) -> None:
    """Print coverage of nominal 95% intervals, a table per kind of study."""
    for study in dict.fromkeys(row.study for row in rows):
        grid = Table(title=f"Coverage of 95% intervals: {study}")
        for heading in ("quantity", "cases", "recommended", "goal", "composite", "published", "Wilson (scipy)"):
            grid.add_column(heading)
        for row in (row for row in rows if row.study == study):
            goal = "" if not row.goal else f"{row.goal:g} {'met' if row.met else 'MISSED'}"
            wilson = "" if math.isnan(row.wilson) else f"{row.wilson:.3f}"
            ours = f"{row.recommended:.3f} ± {row.error:.3f}"
            grid.add_row(
                row.quantity, f"{row.cases:,}", ours, goal, f"{row.composite:.3f}", f"{row.published:.3f}", wilson
            )
        Console(width=160).print(grid)


if __name__ == "__main__":
    main()
