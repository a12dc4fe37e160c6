"""Preloaded by the worker processes of a job with several GPUs: each sees its own alone."""

import os

import distributed


def dask_setup(worker: distributed.Worker) -> None:
    """Leave this process the GPU of its number, before anything asks for the driver."""
    _, _, index = str(worker.name).rpartition("-")
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")  # what the queue gave to the job
    os.environ["CUDA_VISIBLE_DEVICES"] = granted.split(",")[int(index)] if granted else index
