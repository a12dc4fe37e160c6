"""The training itself: epochs, checkpoints, early stop; started again, it goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from patrolscope.pipeline.train.augment import Pictures, sample, shape_of_all
from patrolscope.pipeline.train.curves import write_curves
from patrolscope.pipeline.train.data import Collection
from patrolscope.pipeline.train.evaluate import Quality, find, quality
from patrolscope.pipeline.train.folder import (
    BEST_FILE,
    STATE_FILE,
    Say,
    begin_folder,
    check_folder,
    read_set,
    write_quality,
)
from patrolscope.pipeline.train.loss import Criterion, Loss
from patrolscope.pipeline.train.network import network_from, new_network
from patrolscope.pipeline.train.ranks import Ranks
from patrolscope.pipeline.train.schedule import Average, Schedule, accumulated, make_optimizer
from patrolscope.pipeline.train.settings import Recipe, TrainingOptions, changed, recipe_of

_THREADS = 8  # that make samples; a CPU that trains needs its cores itself

Floats = npt.NDArray[np.float64]


@dataclass
class _State:
    """Where a training stands at the end of an epoch."""

    epoch: int = 0  # epochs done
    iterations: int = 0
    best: float = -1.0  # fitness
    best_epoch: int = 0
    rows: list[dict[str, float]] | None = None


def train(asked: TrainingOptions, out: Path, *, resume: bool = False, say: Say, ranks: Ranks | None = None) -> None:
    """Train a network and write its best weights, and their quality on the test split (without one: validation).

    Parameters
    ----------
    out : a new or empty folder, or with `resume` that of a training that was stopped
    ranks : the processes that share the work, each of which calls this; None: this one alone

    Raises
    ------
    SourceError, WeightsError : data or weights can not be used
    TrainingError : the folder is not empty, holds another training, or the loss is no number any more
    """
    ranks = ranks or Ranks()
    if ranks.is_first:
        check_folder(out, asked, resume=resume)
    else:
        say = _silent
    cv2.setNumThreads(1)
    collection, sizes = read_set(asked, say)
    device = choose_device(asked.device)
    if device.type == "cuda" and ranks.world > 1:
        device = torch.device("cuda", ranks.local)
    network = _network(asked, collection, say)
    name, recipe = recipe_of(asked.variant, network.architecture.feature_maps, from_weights=asked.weights is not None)
    recipe = changed(recipe, asked.changes)
    stride = network.strides[-1]
    if asked.size % stride:
        raise TrainingError(
            f"size {asked.size} is no multiple of the network's stride {stride}: {-(-asked.size // stride) * stride}"
        )
    if ranks.is_first:
        begin_folder(out, asked)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    say(f"{parameters:,} parameters, recipe {name}, {asked.size} pixels, on {device}")
    # Convolutions read this order of memory faster.
    placed = network.to(device).to(memory_format=torch.channels_last)
    training = _Training(asked, out, collection, sizes, placed, recipe, device, say, ranks)
    if resume and (out / STATE_FILE).is_file():
        training.load()
    training.run()
    if ranks.is_first:
        _finish(training)


def _silent(_text: str) -> None:
    """What processes but the first say."""


def _network(asked: TrainingOptions, collection: Collection, say: Say) -> Network:
    classes = len(collection.class_names)
    if asked.weights is not None:
        network, line = network_from(Path(asked.weights), classes=classes, seed=asked.seed)
        say(line)
        return network
    return new_network(asked.variant or "yolov7-tiny", classes=classes, width=asked.width, seed=asked.seed)


class _Training:
    """A network and all that changes while it learns."""

    def __init__(
        self,
        asked: TrainingOptions,
        out: Path,
        collection: Collection,
        sizes: dict[str, Floats],
        network: Network,
        recipe: Recipe,
        device: torch.device,
        say: Say,
        ranks: Ranks,
    ) -> None:
        self.asked, self.out, self.collection, self.say = asked, out, collection, say
        self.network, self.device, self.ranks = network, device, ranks
        shape = asked.size, asked.size
        if asked.rectangular:
            shape = shape_of_all(sizes["train"], asked.size, network.strides[-1])
        self.pictures = Pictures(collection.splits["train"], shape)
        self.batches = math.ceil(len(self.pictures.examples) / asked.batch)
        self.recipe = recipe
        self.schedule = Schedule(recipe, asked.epochs, self.batches)
        self.average = Average(network)  # with plain batch norms, which a checkpoint holds
        ranks.share_norms(network)
        self.optimizer = make_optimizer(network, recipe, asked.batch)
        self.criterion = Criterion(network, recipe, asked.size, ranks)
        self.dtype = dtype_of(choose_precision(asked.precision, device))
        # Half precision would lose small gradients.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.sizes = sizes
        self.state = _State(rows=[])
        self.waiting_s = 0.0  # of the epoch, for samples

    def run(self) -> None:
        """All epochs that are left."""
        self.optimizer.zero_grad()
        while self.state.epoch < self.asked.epochs:
            if self.state.epoch - self.state.best_epoch >= self.asked.patience:
                self.say(f"no better epoch in {self.asked.patience}: stopped")
                break
            self._epoch()

    def _epoch(self) -> None:
        start_s = time.perf_counter()
        epoch = self.state.epoch
        order = stream(self.asked.seed, "order of images", epoch).permutation(len(self.pictures.examples))
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
                    f"({', '.join(names[:4])}, ...): {self._last_good()}; look at these images, or take another --batch"
                )
            sums += parts
            torch.autograd.backward(self.scaler.scale(loss.total))
            self._step(last=number + 1 == self.batches)
            self.state.iterations += 1
        self.state.epoch += 1
        if self.ranks.is_first:
            self._end_epoch(sums / self.batches, start_s)
        # All need the best epoch to stop at the same one.
        self.state.best_epoch = int(self.ranks.from_first(self.state.best_epoch))

    def _end_epoch(self, parts: Floats, start_s: float) -> None:
        """Evaluate, write, tell."""
        learned_s = time.perf_counter()
        found = evaluate(self.average.network, self.collection, "validation", self.asked.size, self.device, self.sizes)
        evaluating_s = time.perf_counter() - learned_s
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
        self.say(
            f"epoch {self.state.epoch} of {self.asked.epochs}: loss {row['loss']:.4f} (box {box:.4f}, object "
            f"{objectness:.4f}, class {classes:.4f}), AP {found.ap50:.3f} at 0.5, {found.ap:.3f} at 0.5 to 0.95, "
            f"{row['seconds']:.0f} s"
        )

    def _loss(self, images: Tensor, targets: Tensor) -> Loss:
        """What this process's images add to the loss."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            shown = images.to(self.device, non_blocking=True).float() / 255
            maps = self.network(shown.to(memory_format=torch.channels_last))
        return self.criterion(maps, targets.to(self.device))

    def _step(self, *, last: bool) -> None:
        # What is left at the end of an epoch makes a step, too: a checkpoint then holds all that was learned.
        if last or (self.state.iterations + 1) % accumulated(self.asked.batch, self.recipe) == 0:
            self.ranks.sum_gradients(self.network)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.average.update(self.network)

    def _batches(self, order: npt.NDArray[np.int64], epoch: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Batches of the epoch; the next one is made while the network works on this one."""
        numbers = order.tolist()
        groups = [
            self.ranks.part(numbers[start : start + self.asked.batch])
            for start in range(0, len(numbers), self.asked.batch)
        ]
        threads = _THREADS if self.device.type == "cuda" else 1
        with ThreadPoolExecutor(threads) as pool:

            def begin(group: list[int]) -> list[Any]:
                return [
                    pool.submit(sample, self.pictures, number, self.recipe, self.asked.seed, epoch) for number in group
                ]

            ahead = begin(groups[0])
            for place, group in enumerate(groups):
                begun, ahead = ahead, begin(groups[place + 1]) if place + 1 < len(groups) else []
                asked_s = time.perf_counter()
                made = collate([future.result() for future in begun])
                self.waiting_s += time.perf_counter() - asked_s
                names = [self.pictures.examples[number].name for number in group]
                yield *made, names

    # Files.

    def _save_best(self) -> None:
        aside = self.out / ".best.pt"
        save_checkpoint(
            aside,
            self.average.network,
            class_names=self.collection.class_names,
            epoch=-1,
            best_fitness=self.state.best,
            image_size=self.asked.size,
        )
        aside.replace(self.out / BEST_FILE)

    def _save_state(self) -> None:
        aside = self.out / ".state.pt"
        torch.save(
            {
                "state": asdict(self.state),
                "network": self.network.state_dict(),
                "average": self.average.network.state_dict(),
                "updates": self.average.updates,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            },
            aside,
        )
        aside.replace(self.out / STATE_FILE)

    def load(self) -> None:
        """Go back to the end of the last epoch that was finished."""
        content = torch.load(self.out / STATE_FILE, map_location=self.device, weights_only=True)
        self.state = _State(**content["state"])
        self.network.load_state_dict(content["network"])
        self.average.network.load_state_dict(content["average"])
        self.average.updates = content["updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.say(f"goes on after epoch {self.state.epoch}")

    def _last_good(self) -> str:
        if not self.state.epoch:
            return "no epoch was finished"
        return f"{self.out / STATE_FILE} is of epoch {self.state.epoch}, {BEST_FILE} of epoch {self.state.best_epoch}"


def collate(made: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]]) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) uint8 and targets (t, 6) of samples: image, class, center, size."""
    images = torch.from_numpy(np.stack([pixels.transpose(2, 0, 1) for pixels, _ in made]))
    rows = [np.column_stack([np.full(len(boxes), image), boxes]) for image, (_, boxes) in enumerate(made)]
    return images, torch.from_numpy(np.concatenate(rows)).float()


def evaluate(
    network: Network, collection: Collection, split: str, size: int, device: torch.device, sizes: dict[str, Floats]
) -> Quality:
    """Quality of a network on a split."""
    examples = collection.splits[split]
    return quality(examples, find(network, examples, size, device), collection.class_names, sizes[split])


def _finish(training: _Training) -> None:
    """Evaluate the best weights as a detector would load them."""
    network = read_checkpoint(training.out / BEST_FILE).network().to(training.device)
    write_quality(
        training.out,
        training.collection,
        training.sizes,
        lambda examples: find(network, examples, training.asked.size, training.device),
        best_epoch=training.state.best_epoch,
        rows=training.state.rows or [],
        say=training.say,
    )
