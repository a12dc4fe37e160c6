"""Preload script for the worker processes of a job with several GPUs; each process gets one of them."""

import os

import distributed


def dask_setup(worker: distributed.Worker) -> None:
    """Restrict this process to the GPU with its own number, before anything loads the driver."""
    _, _, index = str(worker.name).rpartition("-")
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")  # of the job, set by the queue system
    os.environ["CUDA_VISIBLE_DEVICES"] = granted.split(",")[int(index)] if granted else index
