"""Augmentation, schedule and the training itself: it learns, goes on where it was, and stops when numbers end."""

import csv
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from patrolscope.pipeline.detect.models.architecture import variant  # noqa: E402
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint  # noqa: E402
from patrolscope.pipeline.detect.weights.training_result import trained_threshold  # noqa: E402
from patrolscope.pipeline.errors import PatrolscopeError, TrainingError, WeightsError  # noqa: E402
from patrolscope.pipeline.seeds import stream  # noqa: E402
from patrolscope.pipeline.train import loop  # noqa: E402
from patrolscope.pipeline.train.augment import Pictures, moved, recolored, sample, shape_of_all, worth_keeping  # noqa: E402
from patrolscope.pipeline.train.data import read_collection  # noqa: E402
from patrolscope.pipeline.train.evaluate import best_thresholds, quality  # noqa: E402
from patrolscope.pipeline.train.loop import collate, train  # noqa: E402
from patrolscope.pipeline.train.network import narrowed, network_from, new_network  # noqa: E402
from patrolscope.pipeline.train.schedule import Average, Schedule, accumulated, cosine, make_optimizer  # noqa: E402
from patrolscope.pipeline.train.settings import RECIPES, Recipe, TrainingOptions, changed  # noqa: E402
from tests import official_form  # noqa: E402
from tests.labeled_squares import COLORS, NAMES, SIDE, write  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("squares") / "data", 48)


def asked(data, **changes):
    given = {"width": 0.02, "size": 64, "epochs": 3, "batch": 8, "seed": 1, "device": "cpu", **changes}
    return TrainingOptions(str(data), **given)


def told(data, out, *, resume=False, **changes):
    lines = []
    train(asked(data, **changes), out, resume=resume, say=lines.append)
    return lines


def weights(out):
    return read_checkpoint(out / "best.pt").state, torch.load(out / "state.pt", weights_only=True)


def curves(out):
    return list(csv.DictReader((out / "curves.csv").read_text().splitlines()))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Augmentation.


def pictures(data, shape=(SIDE, SIDE)):
    return Pictures(read_collection(data).splits["train"], shape)


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (64, 128)])
@pytest.mark.parametrize("recipe", [Recipe(mosaic=1.0, mixup=0.0), Recipe(mosaic=0.0, mixup=0.0)])
def test_boxes_go_where_their_pixels_go(data, recipe, shape):
    """Squares alone are colored: a box holds its color, and next to nothing colored is without a box."""
    plain = RECIPES["tiny"].__class__(**{**vars(recipe), "hue": 0, "saturation": 0, "value": 0})
    some, boxes_seen = pictures(data, shape), 0
    for number in range(40):
        pixels, boxes = sample(some, number % 18, plain, 3, number)
        assert pixels.shape == (*shape, 3)
        left = np.abs(pixels.astype(int)[:, :, None] - COLORS).sum(3) < 60
        for kind, x, y, w, h in boxes:
            x1, x2 = (x - w / 2) * shape[1], (x + w / 2) * shape[1]
            y1, y2 = (y - h / 2) * shape[0], (y + h / 2) * shape[0]
            inside = left[math.ceil(y1) + 1 : int(y2) - 1, math.ceil(x1) + 1 : int(x2) - 1, int(kind)]
            assert inside.size < 40 or inside.mean() > 0.9
            left[max(int(y1) - 1, 0) : math.ceil(y2) + 1, max(int(x1) - 1, 0) : math.ceil(x2) + 1] = False
            boxes_seen += 1
        # What is left over are slivers of squares that were cut away.
        assert left.any(2).mean() < 0.03
    assert boxes_seen > 20


def test_a_sample_follows_from_seed_epoch_and_number_alone(data):
    recipe = RECIPES["p5"]
    first = [sample(pictures(data), number, recipe, 5, 2) for number in (1, 2, 3)]
    again = [sample(pictures(data), number, recipe, 5, 2) for number in (3, 2, 1)][::-1]
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
    assert not np.array_equal(sample(pictures(data), 1, recipe, 5, 3)[0], first[0][0])
    assert not np.array_equal(sample(pictures(data), 1, recipe, 6, 2)[0], first[0][0])


def test_pictures_that_are_not_kept_are_read_again_and_are_the_same(data):
    examples = read_collection(data).splits["train"]
    kept, read = Pictures(examples, (48, 48)), Pictures(examples, (48, 48), keep_bytes=0)
    for number in (0, 1, 0):
        assert np.array_equal(kept.read(number)[0], read.read(number)[0])
    assert kept.read(0)[0].shape == (48, 48, 3)


def test_rectangles_hold_every_image_and_no_more_than_a_stride_beyond():
    sizes = np.array([[640.0, 360], [320, 180], [1000, 500]])
    assert shape_of_all(sizes, 416, 32) == (256, 416)
    assert shape_of_all(sizes[:, ::-1], 416, 32) == (416, 256)
    assert shape_of_all(np.array([[640.0, 640], [100, 50]]), 64, 32) == (64, 64)


def test_boxes_are_dropped_by_side_area_and_aspect():
    before = np.array([[10.0, 10.0]] * 5)
    after = np.array([[10.0, 10], [1.9, 9], [3, 3], [4, 3], [9.9, 0.4]])
    assert worth_keeping(before, after).tolist() == [True, False, False, True, False]


def test_without_scale_and_shift_the_middle_of_the_canvas_stays():
    still = Recipe(scale=0.0, translate=0.0)

    class Middle:
        def uniform(self, low, high, size=None):
            return np.full(size, (low + high) / 2) if size else low

    canvas = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    pixels, boxes = moved(canvas, np.array([[0, 20.0, 24, 40, 44]]), (32, 32), still, Middle())
    assert np.array_equal(pixels, canvas[16:48, 16:48])
    assert boxes.tolist() == [[0, 4, 8, 24, 28]]


def test_colors_stay_where_no_gain_is_asked_for():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    assert recolored(pixels, Recipe(hue=0, saturation=0, value=0), stream(1, "x")) is pixels
    assert not np.array_equal(recolored(pixels, Recipe(), stream(1, "x")), pixels)


def test_a_batch_numbers_the_targets_by_image():
    images, targets = collate(
        [
            (np.zeros((4, 4, 3), np.uint8), np.array([[1, 0.5, 0.5, 0.2, 0.2]])),
            (np.full((4, 4, 3), 9, np.uint8), np.zeros((0, 5))),
            (np.zeros((4, 4, 3), np.uint8), np.array([[0, 0.1, 0.1, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.1]])),
        ]
    )
    assert images.shape == (3, 3, 4, 4)
    assert images[1].unique().tolist() == [9]
    assert targets[:, 0].tolist() == [0, 2, 2]
    assert targets[:, 1].tolist() == [1, 0, 1]


# Schedule.


@given(st.integers(2, 400), st.floats(0.001, 1))
def test_the_learning_rate_falls_from_one_to_its_last_share(epochs, last):
    rates = [cosine(epoch, epochs, last) for epoch in range(epochs + 1)]
    assert rates[0] == pytest.approx(1)
    assert rates[-1] == pytest.approx(last)
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[epochs // 2] == pytest.approx((1 + last) / 2, abs=2 / epochs)


def test_warm_up_lasts_three_epochs_or_a_thousand_iterations_and_never_more_than_a_quarter():
    assert Schedule(RECIPES["p5"], 300, 500).warmup == 1_500
    assert Schedule(RECIPES["p5"], 300, 100).warmup == 1_000
    assert Schedule(RECIPES["p5"], 10, 100).warmup == 250
    short = changed(RECIPES["p5"], ["warmup_epochs=0.5", "warmup_iterations=0"])
    assert Schedule(short, 10, 100).warmup == 50


def test_warm_up_raises_weights_from_zero_and_lowers_biases_from_a_tenth():
    network, recipe = new_network("yolov7-tiny", classes=2, width=0.02, seed=0), RECIPES["tiny"]
    optimizer, schedule = make_optimizer(network, recipe, 16), Schedule(recipe, 100, 40)
    seen = []
    for iteration in (0, 500, 1_000):
        schedule.set(optimizer, iteration)
        seen.append({group["name"]: (group["lr"], group["momentum"]) for group in optimizer.param_groups})
    half = recipe.lr0 * cosine(12, 100, recipe.lrf) / 2
    full = recipe.lr0 * cosine(25, 100, recipe.lrf)
    assert seen[0] == {"others": (0, 0.8), "kernels": (0, 0.8), "biases": (0.1, 0.8)}
    assert seen[1]["kernels"] == pytest.approx((half, (0.8 + 0.937) / 2))
    assert seen[1]["biases"] == pytest.approx((0.05 + half, (0.8 + 0.937) / 2))
    assert list(seen[2].values()) == [pytest.approx((full, 0.937))] * 3


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-w6"])
def test_only_kernels_of_convolutions_decay_and_every_parameter_is_in_one_group(name):
    network = new_network(name, classes=2, width=0.02, seed=0)
    optimizer = make_optimizer(network, RECIPES["p5"], 48)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert by_name["kernels"]["weight_decay"] == pytest.approx(5e-4 * 48 * 1 / 64)
    assert by_name["biases"]["weight_decay"] == by_name["others"]["weight_decay"] == 0
    numbers = {id(parameter): key for key, group in by_name.items() for parameter in group["params"]}
    assert len(numbers) == sum(len(group["params"]) for group in by_name.values())
    for key, parameter in network.named_parameters():
        kind = (
            "biases"
            if key.endswith(".bias")
            else "kernels"
            if parameter.ndim == 4 and "implicit" not in key
            else "others"
        )
        assert numbers[id(parameter)] == kind, key
    assert optimizer.defaults["nesterov"]


def test_batches_are_gathered_until_they_make_sixty_four():
    assert [accumulated(batch, RECIPES["p5"]) for batch in (1, 16, 24, 64, 200)] == [64, 4, 3, 1, 1]


def test_the_average_follows_the_weights_by_its_decay():
    network = new_network("yolov7-tiny", classes=1, width=0.02, seed=0)
    average = Average(network)
    before = {name: value.clone() for name, value in average.network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for update in (1, 2):
        average.update(network)
        decay = 0.9999 * (1 - math.exp(-update / 2000))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                before[name] = decay * before[name] + (1 - decay) * value
                torch.testing.assert_close(average.network.state_dict()[name], before[name])


# The network.


def test_a_narrowed_network_has_the_same_layers_with_fewer_channels():
    whole, narrow = variant("yolov7-tiny", 2), narrowed(variant("yolov7-tiny", 2), 0.25)
    assert [layer.sources for layer in whole.layers] == [layer.sources for layer in narrow.layers]
    pairs = {(a.channels, b.channels) for a, b in zip(whole.layers, narrow.layers, strict=True) if a.channels}
    assert pairs == {(32, 8), (64, 16), (128, 32), (256, 64), (512, 128)}
    assert narrowed(whole, 1) is whole


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_a_new_network_expects_few_objects(name):
    network = new_network(name, classes=3, width=0.02, seed=4)
    for convs in [network.head.m] + ([network.head.m2] if network.head.m2 is not None else []):
        for module, stride in zip(convs, network.strides, strict=True):
            bias = module.bias.view(3, -1)
            # The convolution's own first biases are below 1.
            assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() < 1
            assert (bias[:, 5:] - math.log(0.6 / (3 - 0.99))).abs().max() < 1


def test_weights_for_other_classes_are_taken_over_where_they_fit(tmp_path):
    official_form.save(tmp_path / "other.pt", names=("a", "b"))
    network, line = network_from(tmp_path / "other.pt", classes=4, seed=0)
    own, given = network.state_dict(), read_checkpoint(tmp_path / "other.pt").state
    fitting = [name for name in own if name in given and own[name].shape == given[name].shape]
    assert all(torch.equal(own[name], given[name]) for name in fitting)
    assert line == (
        f"other.pt: {len(fitting)} of {len(own)} tensors taken over; its detection layer is for 2 classes, not 4: "
        "it begins anew"
    )
    assert network.head.m[0].weight.shape[0] == 3 * 9
    _, line = network_from(tmp_path / "other.pt", classes=2, seed=0)
    assert line == f"other.pt: {len(own)} of {len(own)} tensors taken over"


# The quality.


def test_finding_what_is_labeled_has_precision_one_and_worse_boxes_less(data):
    examples = read_collection(data).splits["train"]
    sizes = np.full((len(examples), 2), float(SIDE))
    perfect = []
    for one in examples:
        kind, x, y, w, h = (one.boxes * np.array([1, SIDE, SIDE, SIDE, SIDE])).T
        perfect.append(
            np.column_stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, np.full(len(x), 0.9), kind]).astype("f4")
        )
    found = quality(examples, perfect, NAMES, sizes)
    assert (found.ap50, found.ap) == pytest.approx((1, 1))
    assert [facts["image_ap"] for facts in found.by_class.values()] == pytest.approx([1, 1])
    shifted = [boxes + np.array([0.2 * SIDE * 0.15, 0, 0.2 * SIDE * 0.15, 0, 0, 0], "f4") for boxes in perfect]
    worse = quality(examples, shifted, NAMES, sizes)
    assert worse.ap50 == pytest.approx(1)
    assert 0.3 < worse.ap < 0.95
    nothing = quality(examples, [np.zeros((0, 6), "f4")] * len(examples), NAMES, sizes)
    assert (nothing.ap50, nothing.ap) == (0, 0)


def test_the_threshold_is_the_one_with_the_best_f1_over_all_cuts(data):
    examples = read_collection(data).splits["train"]
    generator = np.random.default_rng(4)
    found, scores = [], []
    for one in examples:
        shows = (one.boxes[:, 0] == 0).any()
        scores.append((bool(shows), float(np.float32(generator.beta(4, 2) if shows else generator.beta(2, 4)))))
        found.append(np.array([[0, 0, 9, 9, scores[-1][1], 0]], "f4"))

    def f1(cut):
        right = sum(shows and score > cut for shows, score in scores)
        return 2 * right / (sum(score > cut for _, score in scores) + sum(shows for shows, _ in scores))

    threshold = best_thresholds(examples, found, NAMES)["red"]
    assert f1(threshold) == pytest.approx(max(f1(score - 1e-6) for _, score in scores))


# The training.


def test_a_training_that_is_stopped_and_resumed_has_the_weights_of_one_that_is_not(data, tmp_path, monkeypatch):
    told(data, tmp_path / "whole")
    epoch = loop._Training._epoch

    def stop_after_one(training):
        if training.state.epoch == 1:
            raise KeyboardInterrupt
        epoch(training)

    monkeypatch.setattr(loop._Training, "_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        told(data, tmp_path / "cut")
    monkeypatch.setattr(loop._Training, "_epoch", epoch)
    lines = told(data, tmp_path / "cut", resume=True)
    assert "goes on after epoch 1" in lines
    (best, state), (other_best, other_state) = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert same(best, other_best)
    for part in ("network", "average"):
        assert same(state[part], other_state[part])
    assert state["updates"] == other_state["updates"] > 0


def test_the_same_seed_gives_the_same_weights_and_another_one_others(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        told(data, tmp_path / name, seed=seed, epochs=1)
    a, b, c = (weights(tmp_path / name)[1]["network"] for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_what_a_training_leaves_behind(data, tmp_path):
    lines = told(data, tmp_path / "out", epochs=2)
    checkpoint = read_checkpoint(tmp_path / "out" / "best.pt")
    assert checkpoint.class_names == NAMES
    assert checkpoint.image_size == 64
    assert checkpoint.stored_as == "float16"
    rows = curves(tmp_path / "out")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["split"] == "test"
    assert set(result["by_class"]) == set(result["thresholds"]) == set(NAMES)
    for number, name in enumerate(NAMES):
        for wanted in (number, name):
            carried = trained_threshold(str(tmp_path / "out" / "best.pt"), wanted)
            assert carried == (result["thresholds"][name] or None)
    assert any(line.startswith("epoch 2 of 2: loss") for line in lines)
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_images_that_are_wide_are_learned_as_wide(data, tmp_path):
    wide = write(tmp_path / "wide", 24, shape=(48, 96))
    seen, loss = set(), loop._Training._loss

    def looked_at(training, images, targets):
        seen.add(tuple(images.shape[2:]))
        return loss(training, images, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Training, "_loss", looked_at)
        told(wide, tmp_path / "square", epochs=1)
        told(wide, tmp_path / "out", epochs=1, rectangular=True)
    assert seen == {(64, 64), (32, 64)}


def test_what_is_refused_before_it_begins_leaves_no_folder(tmp_path):
    data = write(tmp_path / "data", 24)
    (data / "images/ride0/0000.png").write_bytes(b"no image")
    for changes in ({"strict": True}, {"size": 72}, {"changes": ("lr0=-1",)}):
        with pytest.raises(PatrolscopeError):
            told(data, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()


def test_a_training_goes_on_from_its_own_weights(data, tmp_path):
    told(data, tmp_path / "a", epochs=1)
    lines = told(data, tmp_path / "b", epochs=1, variant=None, weights=str(tmp_path / "a" / "best.pt"), width=1.0)
    assert any("tensors taken over" in line and "anew" not in line for line in lines)
    assert any("recipe custom" in line for line in lines)


def test_a_loss_that_is_no_number_stops_says_where_and_keeps_the_last_good_epoch(data, tmp_path, monkeypatch):
    loss, calls = loop._Training._loss, []

    def spoilt(training, images, targets):
        calls.append(1)
        if len(calls) == training.batches + 2:
            with torch.no_grad():
                training.network.head.m[0].bias.fill_(math.nan)
        return loss(training, images, targets)

    monkeypatch.setattr(loop._Training, "_loss", spoilt)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, batch 2 of 5 \(ride.*state.pt is of epoch 1"):
        told(data, tmp_path / "out")
    _, state = weights(tmp_path / "out")
    assert state["state"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in state["network"].values())


def test_it_stops_when_no_epoch_is_better(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: loop.Quality(0.1, 0.1, {}))
    lines = told(data, tmp_path / "out", epochs=9, patience=2)
    assert "no better epoch in 2: stopped" in lines
    assert len(curves(tmp_path / "out")) == 3


def test_images_that_can_not_be_decoded_are_left_out_and_listed(tmp_path):
    data = write(tmp_path / "data", 24)
    (data / "images/ride0/0000.png").write_bytes(b"no image")
    lines = told(data, tmp_path / "out", epochs=1)
    assert "images/ride0/0000.png: can not be decoded, left out" in lines
    assert any(line.startswith("train: 17 images") for line in lines)


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ("foreign", {}, "is not empty and holds no training"),
        ("trained", {}, "holds a training already: --resume goes on"),
        ("trained", {"resume": True, "seed": 9}, "holds a training with seed 1, now asked 9"),
        ("nothing", {"resume": True}, "holds no training to go on with"),
        ("file", {}, "is a file"),
        ("nothing", {"size": 72}, "size 72 is no multiple of the network's stride 32: 96"),
    ],
)
def test_a_folder_of_something_else_is_refused(data, tmp_path, before, changes, message):
    out = tmp_path / "out"
    if before == "foreign":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    elif before == "trained":
        told(data, out, epochs=1)
    elif before == "file":
        out.write_text("mine")
    with pytest.raises(TrainingError, match=message):
        told(data, out, **{"epochs": 1, **changes})


def test_folded_weights_are_refused(data, tmp_path):
    def fold(content, classes):
        for module in content["model"].modules():
            if hasattr(module, "bn"):
                del module.bn

    official_form.save(tmp_path / "folded.pt", settings=official_form.LEAKY, names=("a",), change=fold)
    with pytest.raises(WeightsError, match="folded for inference"):
        network_from(tmp_path / "folded.pt", classes=1, seed=0)


def test_auxiliary_heads_are_trained_with_the_others(data, tmp_path):
    told(data, tmp_path / "out", variant="yolov7-w6", epochs=1)
    start = new_network("yolov7-w6", classes=2, width=0.02, seed=1).state_dict()
    trained = weights(tmp_path / "out")[1]["network"]
    moved_names = [name for name in start if ".m2." in name and not torch.equal(start[name], trained[name])]
    assert len(moved_names) == 8
    assert read_checkpoint(tmp_path / "out" / "best.pt").architecture.head.kind == "IAuxDetect"


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """Batch norms and means over positives are those of the whole batch, of which the last is smaller, and uneven."""
    data = write(tmp_path / "data", 128)
    options = ["--width", "0.02", "--size", "96", "--epochs", "3", "--batch", "39", "--threads", "1", "--device", "cpu"]
    options += ["--set", "nominal_batch=39"]
    cli = str(Path(__file__).parents[1] / "double_precision.py")
    starts = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    for name, start in starts.items():
        done = subprocess.run(
            [*start, cli, "train", str(data), "--out", str(tmp_path / name), *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 3 of 3") == 1, "the first process speaks for all"
    one, two = ([float(row["loss"]) for row in curves(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)
    (_, a), (_, b) = (weights(tmp_path / name) for name in ("one", "two"))
    assert not same(a["network"], b["network"]), "rounded alike, as if the second process had nothing to do"
    for key, value in a["network"].items():
        torch.testing.assert_close(b["network"][key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_minute_of_training_finds_most_squares(tmp_path):
    data = write(tmp_path / "data", 320, seed=5)
    # A step every batch, with the learning rate of 64 images a step: AP was 0.93 to 0.99 over seeds.
    changes = ("nominal_batch=16", "lr0=0.04", "mosaic=0")
    told(data, tmp_path / "out", width=0.125, size=96, epochs=32, batch=16, changes=changes)
    rows = [{key: float(value) for key, value in row.items()} for row in curves(tmp_path / "out")]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["ap50"] > 0.6
    assert result["by_class"]["red"]["image_auc"] > 0.9
