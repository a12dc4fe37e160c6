"""Stages, their planning, and their execution on a Dask cluster."""
