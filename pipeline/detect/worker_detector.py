"""The detector of a worker process, which is loaded once and kept between shards."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import fsspec

from patrolscope.pipeline.detect import detector as detectors
from patrolscope.pipeline.detect.detector import Detector
from patrolscope.pipeline.detect.inference import Batch
from patrolscope.pipeline.errors import StageNotRunError, WeightsError
from patrolscope.pipeline.intake.raw_files import identity
from patrolscope.pipeline.study.remote import remote_errors
from patrolscope.pipeline.study.store import Study, fingerprint

# Threads that read and decode. One thread keeps ahead of a network on a CPU.
_GPU_THREADS = 8


@dataclass
class WorkerDetector:
    """Detector of this process, and the batch that fits its device."""

    detector: Detector
    batch: Batch
    threads: int  # that read and decode
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by the shard that uses the device


_loaded: dict[str, WorkerDetector] = {}
_loading = threading.Lock()


def worker_detector(study: Study) -> WorkerDetector:
    """Return the detector that the study's settings describe, in place of any other one in this process.

    Raises
    ------
    StageNotRunError
        If study.yaml does not name weights.
    WeightsError
        If the weights cannot be opened or do not support an option.
    """
    settings = study.settings.images
    path = weights_path(study)
    options: dict[str, Any] = {
        "size": settings.size,
        "min_score": settings.min_score,
        "nms_iou": settings.nms_iou,
        "classes": settings.classes or None,
        "augment": settings.augment,
        "device": settings.device,
        "precision": settings.precision,
        "compile": settings.compile,
        "jpeg": settings.jpeg,
        "trust": settings.trust_weights,
    }
    key = fingerprint(path, weights_version(path), options, settings.batch)
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            on_gpu = settings.device != "cpu" and _has_gpu()
            detector = detectors.load_detector(path, **options)
            _loaded[key] = WorkerDetector(
                detector,
                Batch(settings.batch or detector.default_batch()),
                min(_GPU_THREADS, len(os.sched_getaffinity(0))) if on_gpu else 1,
            )
        return _loaded[key]


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def weights_path(study: Study) -> str:
    """Return the path or URL of the study's weights.

    Raises
    ------
    StageNotRunError
        If study.yaml does not name weights.
    """
    weights = study.settings.images.weights
    if weights is None:
        raise StageNotRunError(
            f"study.yaml names no weights; run `patrolscope detect --weights FILE --study {study.root}`"
        )
    return study.resolve(weights)


def weights_version(path: str) -> tuple[int, str]:
    """Return size and version of a weights file.

    Raises
    ------
    WeightsError
        If the file does not exist or cannot be reached.
    """
    try:
        fs, place = fsspec.core.url_to_fs(path)
        return identity(fs, str(place))
    except FileNotFoundError as error:
        raise WeightsError(f"no weights at {path}; correct --weights, or images.weights in study.yaml") from error
    except (ValueError, ImportError) as error:
        raise WeightsError(f"images.weights: cannot open {path} ({error}); expected a path or URL") from error
    except remote_errors() as error:
        raise WeightsError(f"cannot reach the weights at {path} ({error})") from error
