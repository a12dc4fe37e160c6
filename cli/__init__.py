"""Command line: one module per group of commands. A command parses, calls, prints, and returns an exit code.

Heavy imports stay inside the commands, so that --help is instant.
"""

from patrolscope.cli import cluster, detect, estimate, intake, publish, study, train
from patrolscope.cli.app import app, main

__all__ = ["app", "cluster", "detect", "estimate", "intake", "main", "publish", "study", "train"]
