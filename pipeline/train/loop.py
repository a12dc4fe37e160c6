"""Training loop of YOLOv7 with checkpoints, early stopping, and resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patrolscope.pipeline.detect.device import choose_device, choose_precision, dtype_of
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.detect.weights.checkpoint_writer import save_checkpoint
from patrolscope.pipeline.errors import TrainingError
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.train.augment import ImageCache, common_shape, sample
from patrolscope.pipeline.train.curves import write_curves
from patrolscope.pipeline.train.data import Collection
from patrolscope.pipeline.train.evaluate import Quality, detect, quality
from patrolscope.pipeline.train.folder import (
    BEST_FILE,
    STATE_FILE,
    Log,
    check_folder,
    check_stride,
    create_folder,
    read_data,
    write_quality,
)
from patrolscope.pipeline.train.loss import Criterion, Loss
from patrolscope.pipeline.train.network import network_from, new_network
from patrolscope.pipeline.train.ranks import Ranks
from patrolscope.pipeline.train.schedule import Schedule, averaged_model, batches_per_step, make_optimizer
from patrolscope.pipeline.train.settings import Recipe, TrainingOptions, apply_changes, choose_recipe

_THREADS = 8  # that prepare samples for a GPU; on a CPU, training needs the cores itself

Floats = npt.NDArray[np.float64]


@dataclass
class _State:
    """Progress of a training at the end of an epoch."""

    epoch: int = 0  # epochs done
    iterations: int = 0
    best: float = -1.0  # fitness
    best_epoch: int = 0
    rows: list[dict[str, float]] | None = None


def train(options: TrainingOptions, out: Path, *, resume: bool = False, log: Log, ranks: Ranks | None = None) -> None:
    """Train a network; write its best weights, learning curves, and quality on the test (or validation) split.

    Parameters
    ----------
    options : TrainingOptions
        Options of the training.
    out : Path
        New or empty folder, or with `resume` the folder of an interrupted training.
    resume : bool, default False
        Continue after the last finished epoch.
    log : callable
        Receives one line of progress at a time.
    ranks : Ranks or None, default None
        Processes that share the work, each of which calls this function. None: this process alone.

    Raises
    ------
    SourceError
        If the data cannot be used.
    WeightsError
        If the initial weights cannot be used.
    TrainingError
        If the folder is not empty or holds a different training, or if the loss becomes infinite or NaN.
    """
    ranks = ranks or Ranks()
    if ranks.is_first:
        check_folder(out, options, resume=resume)
    else:
        log = _discard
    cv2.setNumThreads(1)
    collection, sizes = read_data(options, log)
    device = choose_device(options.device)
    if device.type == "cuda" and ranks.world > 1:
        device = torch.device("cuda", ranks.local)
    network = _initial_network(options, collection, log)
    from_weights = options.weights is not None
    name, recipe = choose_recipe(options.variant, network.architecture.feature_maps, from_weights=from_weights)
    recipe = apply_changes(recipe, options.changes)
    check_stride(options.size, network.strides[-1])
    if ranks.is_first:
        create_folder(out, options)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    log(f"{parameters:,} parameters, recipe {name}, {options.size} pixels, on {device}")
    # Convolutions are faster in this memory format.
    placed = network.to(device).to(memory_format=torch.channels_last)
    training = _Training(options, out, collection, sizes, placed, recipe, device, log, ranks)
    if resume and (out / STATE_FILE).is_file():
        training.load()
    training.run()
    if ranks.is_first:
        _finish(training)


def _discard(_text: str) -> None:
    """Ignore log lines of all processes but the first."""


def _initial_network(options: TrainingOptions, collection: Collection, log: Log) -> Network:
    classes = len(collection.class_names)
    if options.weights is not None:
        network, line = network_from(Path(options.weights), classes=classes, seed=options.seed)
        log(line)
        return network
    return new_network(options.variant or "yolov7-tiny", classes=classes, width=options.width, seed=options.seed)


class _Training:
    """Network, optimizer, and state of a training."""

    def __init__(
        self,
        options: TrainingOptions,
        out: Path,
        collection: Collection,
        sizes: dict[str, Floats],
        network: Network,
        recipe: Recipe,
        device: torch.device,
        log: Log,
        ranks: Ranks,
    ) -> None:
        self.options, self.out, self.collection, self.log = options, out, collection, log
        self.network, self.device, self.ranks = network, device, ranks
        shape = options.size, options.size
        if options.rectangular:
            shape = common_shape(sizes["train"], options.size, network.strides[-1])
        self.cache = ImageCache(collection.splits["train"], shape)
        self.batches = math.ceil(len(self.cache.examples) / options.batch)
        self.recipe = recipe
        self.schedule = Schedule(recipe, options.epochs, self.batches)
        self.average = averaged_model(network)  # before its batch norms are shared
        self.averaged_network = cast("Network", self.average.module)
        ranks.share_norms(network)
        self.optimizer = make_optimizer(network, recipe, options.batch)
        self.criterion = Criterion(network, recipe, options.size, ranks)
        self.dtype = dtype_of(choose_precision(options.precision, device))
        # Scaling keeps small gradients in half precision.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.sizes = sizes
        self.state = _State(rows=[])
        self.waiting_s = 0.0  # for samples, in this epoch

    def run(self) -> None:
        """Train the remaining epochs."""
        self.optimizer.zero_grad()
        while self.state.epoch < self.options.epochs:
            if self.state.epoch - self.state.best_epoch >= self.options.patience:
                self.log(f"stopped: no improvement in {self.options.patience} epochs")
                break
            self._epoch()

    def _epoch(self) -> None:
        start_s = time.perf_counter()
        epoch = self.state.epoch
        order = stream(self.options.seed, "order of images", epoch).permutation(len(self.cache.examples))
        sums = np.zeros(3)
        self.waiting_s = 0.0
        self.network.train()
        for number, (images, targets, names) in enumerate(self._batches(order, epoch)):
            self.schedule.set(self.optimizer, self.state.iterations)
            loss = self._loss(images, targets)
            parts = self.ranks.total(torch.tensor([loss.box, loss.objectness, loss.classes])).numpy()
            if not np.isfinite(parts).all():
                raise TrainingError(
                    f"the loss is {float(parts.sum())} in epoch {epoch + 1}, batch {number + 1} of {self.batches} "
                    f"({', '.join(names[:4])}, ...); {self._last_good()}; check these images or change --batch"
                )
            sums += parts
            torch.autograd.backward(self.scaler.scale(loss.total))
            self._step(last=number + 1 == self.batches)
            self.state.iterations += 1
        self.state.epoch += 1
        if self.ranks.is_first:
            self._end_epoch(sums / self.batches, start_s)
        # All processes need the best epoch in order to stop together.
        self.state.best_epoch = int(self.ranks.from_first(self.state.best_epoch))

    def _end_epoch(self, parts: Floats, start_s: float) -> None:
        """Evaluate, write checkpoints and curves, and log the epoch."""
        trained_s = time.perf_counter()
        found = evaluate(
            self.averaged_network, self.collection, "validation", self.options.size, self.device, self.sizes
        )
        evaluating_s = time.perf_counter() - trained_s
        box, objectness, classes = parts.tolist()
        row = {
            "epoch": self.state.epoch,
            "iterations": self.state.iterations,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "box": box,
            "objectness": objectness,
            "classes": classes,
            "loss": box + objectness + classes,
            "ap50": found.ap50,
            "ap": found.ap,
            "seconds": time.perf_counter() - start_s,
            "waiting_s": self.waiting_s,
            "evaluating_s": evaluating_s,
        }
        rows = self.state.rows = [*(self.state.rows or []), row]
        if found.fitness > self.state.best:
            self.state.best, self.state.best_epoch = found.fitness, self.state.epoch
            self._save_best()
        self._save_state()
        write_curves(self.out, rows)
        self.log(
            f"epoch {self.state.epoch} of {self.options.epochs}: loss {row['loss']:.4f} (box {box:.4f}, object "
            f"{objectness:.4f}, class {classes:.4f}), AP {found.ap50:.3f} at IoU 0.5, {found.ap:.3f} at 0.5 to 0.95, "
            f"{row['seconds']:.0f} s"
        )

    def _loss(self, images: Tensor, targets: Tensor) -> Loss:
        """Compute the contribution of this process's images to the loss."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            pixels = images.to(self.device, non_blocking=True).float() / 255
            maps = self.network(pixels.to(memory_format=torch.channels_last))
        return self.criterion(maps, targets.to(self.device))

    def _step(self, *, last: bool) -> None:
        # The last batches of an epoch make a step too, so that a checkpoint includes all gradients.
        if last or (self.state.iterations + 1) % batches_per_step(self.options.batch, self.recipe) == 0:
            self.ranks.sum_gradients(self.network)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.average.update_parameters(self.network)

    def _batches(self, order: npt.NDArray[np.int64], epoch: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield the batches of an epoch; the next one is prepared while the network uses the current one."""
        numbers = order.tolist()
        groups = [
            self.ranks.part(numbers[start : start + self.options.batch])
            for start in range(0, len(numbers), self.options.batch)
        ]
        threads = _THREADS if self.device.type == "cuda" else 1
        with ThreadPoolExecutor(threads) as pool:

            def begin(group: list[int]) -> list[Any]:
                return [
                    pool.submit(sample, self.cache, number, self.recipe, self.options.seed, epoch) for number in group
                ]

            ahead = begin(groups[0])
            for position, group in enumerate(groups):
                current, ahead = ahead, begin(groups[position + 1]) if position + 1 < len(groups) else []
                start_s = time.perf_counter()
                batch = collate([future.result() for future in current])
                self.waiting_s += time.perf_counter() - start_s
                names = [self.cache.examples[number].name for number in group]
                yield *batch, names

    # Files.

    def _save_best(self) -> None:
        aside = self.out / ".best.pt"
        save_checkpoint(
            aside,
            self.averaged_network,
            class_names=self.collection.class_names,
            epoch=-1,
            best_fitness=self.state.best,
            image_size=self.options.size,
        )
        aside.replace(self.out / BEST_FILE)

    def _save_state(self) -> None:
        aside = self.out / ".state.pt"
        torch.save(
            {
                "state": asdict(self.state),
                "network": self.network.state_dict(),
                "average": self.averaged_network.state_dict(),
                "updates": int(self.average.n_averaged) - 1,  # it starts at 1
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
            aside,
        )
        aside.replace(self.out / STATE_FILE)

    def load(self) -> None:
        """Restore the state after the last finished epoch."""
        content = torch.load(self.out / STATE_FILE, map_location=self.device, weights_only=True)
        self.state = _State(**content["state"])
        self.network.load_state_dict(content["network"])
        self.averaged_network.load_state_dict(content["average"])
        self.average.n_averaged.fill_(content["updates"] + 1)
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.log(f"resuming after epoch {self.state.epoch}")

    def _last_good(self) -> str:
        if not self.state.epoch:
            return "no epoch finished"
        return f"{self.out / STATE_FILE} holds epoch {self.state.epoch}, {BEST_FILE} epoch {self.state.best_epoch}"


def collate(samples: Sequence[tuple[npt.NDArray[np.uint8], Floats]]) -> tuple[Tensor, Tensor]:
    """Combine samples into a batch.

    Returns
    -------
    images : Tensor of uint8, shape (n, 3, height, width)
        RGB pixels.
    targets : Tensor of float, shape (t, 6)
        Image, class, center x, center y, width, height; the last four as shares of the image.
    """
    images = torch.from_numpy(np.stack([pixels.transpose(2, 0, 1) for pixels, _ in samples]))
    rows = [np.column_stack([np.full(len(boxes), image), boxes]) for image, (_, boxes) in enumerate(samples)]
    return images, torch.from_numpy(np.concatenate(rows)).float()


def evaluate(
    network: Network, collection: Collection, split: str, size: int, device: torch.device, sizes: dict[str, Floats]
) -> Quality:
    """Evaluate a network on a split.

    Parameters
    ----------
    network : Network
        Network in its training form; it is not modified.
    collection : Collection
        Labeled images.
    split : str
        Name of the split.
    size : int
        Longer side of the network input, pixels.
    device : torch.device
        Device to run on.
    sizes : dict of ndarray, shape (n, 2)
        Width and height of the images per split, pixels.
    """
    examples = collection.splits[split]
    return quality(examples, detect(network, examples, size, device), collection.class_names, sizes[split])


def _finish(training: _Training) -> None:
    """Evaluate the best weights, loaded as a detector loads them."""
    network = read_checkpoint(training.out / BEST_FILE).network().to(training.device)
    write_quality(
        training.out,
        training.collection,
        training.sizes,
        lambda examples: detect(network, examples, training.options.size, training.device),
        best_epoch=training.state.best_epoch,
        rows=training.state.rows or [],
        log=training.log,
    )
