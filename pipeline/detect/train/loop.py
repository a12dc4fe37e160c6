"""The training itself: epochs, checkpoints, early stop; started again, it goes on where it was."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.detect.base import choose_device, choose_precision, dtype_of
from pipeline.detect.decode import decode
from pipeline.detect.official import save_checkpoint
from pipeline.detect.train.augment import MAX_PIXELS, Pictures, sample
from pipeline.detect.train.curves import write_curves
from pipeline.detect.train.data import Collection, check_classes, class_mapping, read_collection, without
from pipeline.detect.train.evaluate import Quality, best_thresholds, find, quality
from pipeline.detect.train.loss import Criterion, Loss
from pipeline.detect.train.network import network_from, new_network
from pipeline.detect.train.ranks import Ranks
from pipeline.detect.train.schedule import Average, Schedule, accumulated, make_optimizer
from pipeline.detect.train.settings import Recipe, changed, recipe_of
from pipeline.detect.yolov7 import Network
from pipeline.errors import TrainingError
from pipeline.seeds import stream

BEST_FILE, STATE_FILE, SETTINGS_FILE, RESULT_FILE = "best.pt", "state.pt", "training.json", "evaluation.json"
_THREADS = 8  # that make samples; a CPU that trains needs its cores itself

Say = Callable[[str], None]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """What a training was asked for; the same must be asked to go on with it."""

    data: str
    variant: str | None = "yolov7-tiny"
    weights: str | None = None
    width: float = 1.0
    size: int = 640  # pixels, longer side
    epochs: int = 300
    batch: int = 16
    seed: int = 0
    patience: int = 100  # epochs without a better one, after which it stops
    changes: Sequence[str] = ()  # of the recipe, NAME=VALUE
    classes: Sequence[str] = ()  # what a class of the labels is called here, THEIRS=OURS
    precision: str = "auto"  # of the forward pass: fp16 on a GPU and fp32 elsewhere, or bf16
    device: str = "auto"


@dataclass
class _State:
    """Where a training stands at the end of an epoch."""

    epoch: int = 0  # epochs done
    iterations: int = 0
    best: float = -1.0  # fitness
    best_epoch: int = 0
    rows: list[dict[str, float]] | None = None


def train(asked: Asked, out: Path, *, resume: bool = False, say: Say, ranks: Ranks | None = None) -> None:
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
        _open_folder(out, asked, resume=resume)
    else:
        say = _silent
    cv2.setNumThreads(1)
    collection, sizes = _readable(read_collection(Path(asked.data), class_mapping(asked.classes)), say)
    for line in (*collection.summary(), *check_classes(collection)):
        say(line)
    device = choose_device(asked.device)
    if device.type == "cuda" and ranks.world > 1:
        device = torch.device("cuda", ranks.local)
    network = _network(asked, collection, say)
    name, recipe = recipe_of(asked.variant, network.architecture.levels, from_weights=asked.weights is not None)
    recipe = changed(recipe, asked.changes)
    stride = network.strides[-1]
    if asked.size % stride:
        raise TrainingError(
            f"size {asked.size} is no multiple of the network's stride {stride}: {-(-asked.size // stride) * stride}"
        )
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


def _open_folder(out: Path, asked: Asked, *, resume: bool) -> None:
    told = json.dumps(asdict(asked), indent=1)
    there = out / SETTINGS_FILE
    if out.is_file():
        raise TrainingError(f"{out} is a file: name a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        if not there.is_file():
            raise TrainingError(f"{out} is not empty and holds no training: name a new or empty folder")
        if not resume:
            raise TrainingError(f"{out} holds a training already: --resume goes on with it, or name another folder")
        before = json.loads(there.read_text(encoding="utf-8"))
        differing = [
            key for key, value in asdict(asked).items() if key != "device" and before.get(key) != _as_json(value)
        ]
        if differing:
            key = differing[0]
            raise TrainingError(
                f"{out} holds a training with {key} {before.get(key)!r}, now asked {asdict(asked)[key]!r}: "
                "ask for the same to go on with it"
            )
        return
    if resume:
        raise TrainingError(f"{out} holds no training to go on with: leave --resume out")
    out.mkdir(parents=True, exist_ok=True)
    there.write_text(told, encoding="utf-8")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _readable(collection: Collection, say: Say) -> tuple[Collection, dict[str, Floats]]:
    """The collection without images that can not be decoded, which are listed; and width and height by split."""
    sizes: dict[str, tuple[int, int]] = {}
    for one in itertools.chain(*collection.splits.values()):
        found = decode(one.path.read_bytes(), max_pixels=MAX_PIXELS)
        if found.pixels is not None:
            sizes[one.name] = found.pixels.shape[1], found.pixels.shape[0]
    broken = {one.name for some in collection.splits.values() for one in some} - sizes.keys()
    collection = without(collection, broken, "can not be decoded, left out") if broken else collection
    for fault in collection.faults:
        say(fault)
    by_split = {split: [sizes[one.name] for one in some] for split, some in collection.splits.items()}
    return collection, {split: np.array(some, dtype=np.float64).reshape(-1, 2) for split, some in by_split.items()}


def _network(asked: Asked, collection: Collection, say: Say) -> Network:
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
        asked: Asked,
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
        self.pictures = Pictures(collection.splits["train"], asked.size)
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
        found = evaluate(self.average.network, self.collection, "validation", self.asked.size, self.device, self.sizes)
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
                made = [future.result() for future in begun]
                names = [self.pictures.examples[number].name for number in group]
                yield *collate(made), names

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
    """Images (n, 3, size, size) uint8 and targets (t, 6) of samples: image, class, centre, size."""
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
    """Evaluate the best weights as a detector would load them, and write what was found."""
    from pipeline.detect.checkpoint import read_checkpoint

    network = read_checkpoint(training.out / BEST_FILE).network().to(training.device)
    asked, collection = training.asked, training.collection
    split = "test" if collection.splits["test"] else "validation"
    found = evaluate(network, collection, split, asked.size, training.device, training.sizes)
    chosen_on = collection.splits["validation"]
    thresholds = best_thresholds(
        chosen_on, find(network, chosen_on, asked.size, training.device), collection.class_names
    )
    content = {
        "split": split,
        "images": len(training.collection.splits[split]),
        "best_epoch": training.state.best_epoch,
        "epochs": training.state.epoch,
        "seconds": round(sum(row["seconds"] for row in training.state.rows or []), 1),
        "thresholds": thresholds,  # best F1 of images of the validation split
        **found.as_dict(),
    }
    (training.out / RESULT_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    training.say(
        f"best epoch {training.state.best_epoch}; on the {split} split AP {found.ap50:.3f} at 0.5, "
        f"{found.ap:.3f} at 0.5 to 0.95"
    )
    for name, facts in found.by_class.items():
        shown = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}"
            for key, value in facts.items()
            if key != "boxes" and value is not None
        )
        training.say(f"  {name}: {facts['boxes']:g} boxes{', ' + shown if shown else ''}")
