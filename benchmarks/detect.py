"""Detection, compared with bare forward passes, a plain loop, ultralytics predict, and Ray Data; memory.

With a CUDA device, also images per second, utilization of the device, and time spent waiting for images.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import distributed
import numpy as np
import numpy.typing as npt
import psutil
import torch
from PIL import Image

from benchmarks.measure import Comparison, best_of, two_workers
from patrolscope.pipeline.detect import boxes
from patrolscope.pipeline.detect.decode import decode
from patrolscope.pipeline.detect.detector import Detector, load_detector
from patrolscope.pipeline.detect.inference import Batch, Clock, infer
from patrolscope.pipeline.detect.models.architecture import variant
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES, WEIGHTS, detect_stage
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.detect.weights.checkpoint_writer import save_checkpoint
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study

SIZE, THREADS, MANY_PIXELS = 640, 2, 50_000_000
_CLASSES = ("police officer", "police vehicle")


def run(*, quick: bool) -> list[Comparison]:
    """Run with 400 images of 1280 x 720 (quick: 32) and yolov7-tiny with random weights at 640 pixels."""
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch, two_workers() as client:
        folder = Path(scratch)
        files = write_images(folder / "store", 32 if quick else 400)
        weights = write_weights(folder / "tiny.pt", "yolov7-tiny")
        rows = [*compare_loops(folder, weights, files, client), *compare_ultralytics(folder, files, client)]
        if importlib.util.find_spec("ray") is None:
            print("skipped Ray Data: not installed; run pip install 'patrolscope[bench]'")
        else:
            rows.append(compare_ray(folder, weights, files, client))
        rows.append(compare_memory(folder, 500 if quick else 10_000))
    report_gpu(quick=quick)
    return rows


# Workload.


def write_images(store: Path, count: int, width: int = 1280, height: int = 720) -> list[Path]:
    """Write JPEGs of about 200 KB in folders of 20; they are in the page cache afterwards."""
    rng = np.random.default_rng(4)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (45, 80, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + rng.integers(-8, 9, pixels.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
        file = store / f"{number // 20:04d}" / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(file, quality=80)
        files.append(file)
    return files


def write_weights(file: Path, name: str) -> Path:
    """Write a checkpoint with random weights, which is as fast as a trained one.

    The low objectness bias keeps almost all boxes below the threshold, as on a real street.
    """
    torch.manual_seed(1)
    network = Network(variant(name, len(_CLASSES)))
    with torch.no_grad():
        for conv in network.head.m:
            conv.bias.view(3, -1)[:, 4] -= 12
    save_checkpoint(file, network, class_names=_CLASSES)
    return file


def make_study(folder: Path, name: str, weights: Path, **images: Any) -> Study:
    """Return a study of the images in `folder`/store, in shards of 20."""
    settings_of_images = {
        "sources": [str(folder / "store")],
        "weights": str(weights),
        "size": SIZE,
        "shard_images": 20,
        "device": "cpu",
        **images,
    }
    shutil.rmtree(folder / name, ignore_errors=True)
    settings = {"images": settings_of_images, "detection": {"police_class": 1}}
    return create_study(folder / name, Settings.model_validate(settings))


def stage_seconds(folder: Path, weights: Path, files: list[Path], client: distributed.Client, **images: Any) -> float:
    """Time the whole stage, from files to Parquet, with existing image index and loaded weights."""
    study = make_study(folder, "study", weights, **images)
    run_stages(study, [WEIGHTS, PREFIXES, INDEX], lambda: client)

    def work() -> None:
        stage = detect_stage(study)
        for record in study.records(stage.name).values():
            study.discard(stage.name, record)
        outcome = run_stages(study, [stage], lambda: client)[0]
        if outcome.rows_out != len(files):
            raise ValueError(f"the stage processed {outcome.rows_out} of {len(files)} images")

    work()
    return best_of(work)


# Peers.


def compare_loops(folder: Path, weights: Path, files: list[Path], client: distributed.Client) -> list[Comparison]:
    """Compare with bare forward passes over prepared tensors, and with a plain loop of decoding, forward pass, and NMS.

    The loop runs with the default memory format and with that of the stage, which explains most of the gain on a CPU.
    """
    ours_s = stage_seconds(folder, weights, files, client)
    task = (str(weights), str(files[0]))

    def in_both() -> None:
        shares = [len(files) // 2, len(files) - len(files) // 2]
        workers = list(client.scheduler_info()["workers"])
        each = [
            client.submit(forward_passes, *task, share, 1, workers=[worker], pure=False)
            for worker, share in zip(workers, shares, strict=True)
        ]
        client.gather(each)

    name = f"detect {len(files)} images, yolov7-tiny at {SIZE}"
    return [
        Comparison(name, ours_s, best_of(in_both), "s", 0.85, "forward passes only, two processes"),
        Comparison(
            name, ours_s, best_of(lambda: forward_passes(*task, len(files), THREADS)), "s", 0.85,
            "forward passes only, two threads",
        ),
        Comparison(
            name, ours_s, best_of(lambda: one_at_a_time(weights, files, torch.contiguous_format)), "s", 1.3,
            "one image at a time, two threads",
        ),
        Comparison(
            name, ours_s, best_of(lambda: one_at_a_time(weights, files, torch.channels_last)), "s", 1.0,
            "one image at a time, channels last",
        ),
    ]  # fmt: skip


def forward_passes(weights: str, file: str, count: int, threads: int) -> None:
    """Run forward passes over a prepared tensor with the default batch size of a CPU."""
    torch.set_num_threads(threads)
    detector, network = _bare(weights)
    pixels = decode(Path(file).read_bytes(), max_pixels=MANY_PIXELS).pixels
    ready = torch.as_tensor(detector.prepare(pixels))[None].to(torch.float32, memory_format=torch.channels_last) / 255
    ready = ready.repeat(detector.default_batch(), 1, 1, 1)
    with torch.inference_mode():
        for _ in range(count // len(ready)):
            network(ready)


def one_at_a_time(weights: Path, files: list[Path], order: torch.memory_format) -> None:
    """Run a plain loop of decoding, letterbox, forward pass, and NMS."""
    detector = load_detector(str(weights), size=SIZE, threads=THREADS, device="cpu")  # sets the threads of torch
    network = read_checkpoint(weights).network().fuse().to(memory_format=order)
    anchors = cast("torch.Tensor", network.head.anchor_grid).reshape(len(network.strides), -1, 2)
    with torch.inference_mode():
        for file in files:
            pixels = decode(file.read_bytes(), max_pixels=MANY_PIXELS).pixels
            image = torch.as_tensor(detector.prepare(pixels))[None].to(torch.float32, memory_format=order) / 255
            (rows,) = boxes.decode(network(image), anchors, network.strides)
            boxes.select(rows, min_score=0.01, nms_iou=0.45, classes=None)


@lru_cache(maxsize=1)
def _bare(weights: str) -> tuple[Detector, Network]:
    network = read_checkpoint(Path(weights)).network().fuse().to(memory_format=torch.channels_last)
    return load_detector(weights, size=SIZE, threads=1, device="cpu"), network


def compare_ultralytics(folder: Path, files: list[Path], client: distributed.Client) -> list[Comparison]:
    """Compare with ultralytics predict in batches of 16, with the same ultralytics model."""
    from ultralytics import YOLO

    model = YOLO("yolo11n.yaml", verbose=False)
    model.save(folder / "yolo11n.pt")
    ours_s = stage_seconds(folder, folder / "yolo11n.pt", files, client, trust_weights=True)
    model = YOLO(folder / "yolo11n.pt")

    def predict() -> None:
        for start in range(0, len(files), 16):
            batch = [str(file) for file in files[start : start + 16]]
            model.predict(batch, imgsz=SIZE, conf=0.01, iou=0.45, verbose=False, device="cpu")

    predict()
    return [
        Comparison(f"detect {len(files)} images, yolo11n", ours_s, best_of(predict), "s", 1.0, "ultralytics predict")
    ]


class _RayModel:
    """Actor of a Ray Data pipeline with the same decoding, detector, and thresholds."""

    def __init__(self, weights: str) -> None:
        self.detector = load_detector(weights, size=SIZE, threads=1, device="cpu")

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
        scores = []
        for content in batch["bytes"]:
            pixels = decode(content, max_pixels=MANY_PIXELS).pixels
            (boxes,) = self.detector.predict(self.detector.prepare(pixels)[None], [pixels.shape[:2]])
            scores.append(float(boxes[:, 4].max()) if len(boxes) else 0.0)
        return {"path": list(batch["path"]), "score": scores}


def compare_ray(folder: Path, weights: Path, files: list[Path], client: distributed.Client) -> Comparison:
    """Compare with a Ray Data pipeline with two actors, from files to Parquet, excluding the startup of Ray."""
    import ray

    ours_s = stage_seconds(folder, weights, files, client)
    ray.init(num_cpus=THREADS, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False

    def pipeline() -> None:
        shutil.rmtree(folder / "ray", ignore_errors=True)
        images = ray.data.read_binary_files([str(file) for file in files], include_paths=True)
        model = {"concurrency": THREADS, "num_cpus": 0.5, "fn_constructor_args": (str(weights),)}
        images.map_batches(_RayModel, batch_size=20, **model).write_parquet(str(folder / "ray"))

    try:
        pipeline()
        peer_s = best_of(pipeline)
    finally:
        ray.shutdown()
    return Comparison(f"detect {len(files)} images, yolov7-tiny at {SIZE}", ours_s, peer_s, "s", 1.1, "Ray Data")


def compare_memory(folder: Path, images: int) -> Comparison:
    """Compare the memory of this process after all images and after a tenth, with 320 x 180 images at 64 pixels."""
    weights = folder / "tiny.pt"
    files = write_images(folder / "small", 50, 320, 180)
    detector = load_detector(str(weights), size=64, threads=1, device="cpu")
    process = psutil.Process()

    def held_mb(count: int) -> float:
        contents = [file.read_bytes() for file in files]
        infer(
            detector,
            lambda position: contents[position % len(contents)],
            count,
            batch=Batch(4),
            threads=1,
            max_pixels=MANY_PIXELS,
        )
        return process.memory_info().rss / 2**20

    early = held_mb(images // 10)
    return Comparison(
        f"memory after {images:,} images", held_mb(images), early, "MB", 0.95, "memory after a tenth of them"
    )


# GPU.


def report_gpu(*, quick: bool) -> None:
    """Print images per second, utilization, and waiting time of two detectors in fp16, if there is a GPU."""
    if not torch.cuda.is_available():
        print("skipped GPU: torch finds none")
        return
    utilization_now = gpu_utilization()
    with tempfile.TemporaryDirectory(prefix="patrolscope-bench-") as scratch:
        folder = Path(scratch)
        contents = [file.read_bytes() for file in write_images(folder / "store", 64)]
        for name, size in (("yolov7-e6e", 1280), ("yolov7", 640)):
            weights = write_weights(folder / f"{name}.pt", name)
            for jpeg in ("cpu", "auto"):
                detector = load_detector(str(weights), size=size, precision="fp16", jpeg=jpeg)
                decoder = "simplejpeg" if detector.jpegs is None else "nvJPEG"
                line = measure_loop(
                    detector, contents, 128 if quick else 2_000, threads=8, utilization_now=utilization_now
                )
                print(f"{name} at {size}, fp16, JPEGs by {decoder}: {line}")


def measure_loop(
    detector: Detector, contents: list[bytes], count: int, *, threads: int, utilization_now: Callable[[], int] | None
) -> str:
    """Return images per second, utilization, and share of time spent waiting, as text."""
    batch = Batch(detector.default_batch())

    def work(images: int, clock: Clock) -> None:
        read: Callable[[int], bytes] = lambda position: contents[position % len(contents)]  # noqa: E731
        infer(detector, read, images, batch=batch, threads=threads, max_pixels=MANY_PIXELS, clock=clock)

    work(2 * batch.size, Clock())
    clock, start_s = Clock(), time.perf_counter()
    with sampled_utilization(utilization_now) as percent:
        work(count, clock)
    seconds = time.perf_counter() - start_s
    busy = f"{np.mean(percent):.0f}%" if percent else "unknown"
    return (
        f"{count / seconds:,.1f} images per second in batches of {batch.size}, utilization {busy}, "
        f"waiting for images {clock.waiting_s / seconds:.0%} of the time"
    )


@contextmanager
def sampled_utilization(utilization_now: Callable[[], int] | None, every_s: float = 0.1) -> Iterator[list[int]]:
    """Sample the utilization of the device while the block runs, percent; empty if it is unavailable."""
    percent: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while utilization_now is not None and not done.wait(every_s):
            percent.append(utilization_now())

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sample)
        try:
            yield percent
        finally:
            done.set()
    sampling.result()


def gpu_utilization() -> Callable[[], int] | None:
    """Return a function for the current utilization of the GPU, percent, or None; requires nvidia-ml-py."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        torch.cuda.utilization()
    except (RuntimeError, pynvml.NVMLError):  # unavailable for a partition of a GPU
        return None
    return torch.cuda.utilization
