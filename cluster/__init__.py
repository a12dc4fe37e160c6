"""Machines: where the work runs. Knows schedulers and workers, nothing about police cars."""
