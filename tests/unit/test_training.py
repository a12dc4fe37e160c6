"""Augmentation, schedule, and training: it learns, resumes, and stops on an invalid loss."""

import csv
import itertools
import json
import math

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
from patrolscope.pipeline.train.augment import (  # noqa: E402
    ImageCache,
    common_shape,
    jitter_colors,
    large_enough,
    sample,
    shift_and_scale,
)
from patrolscope.pipeline.train.data import read_collection  # noqa: E402
from patrolscope.pipeline.train.evaluate import best_thresholds, quality  # noqa: E402
from patrolscope.pipeline.train.loop import collate, train  # noqa: E402
from patrolscope.pipeline.train.network import narrowed, network_from, new_network  # noqa: E402
from patrolscope.pipeline.train.schedule import Schedule, averaged_model, batches_per_step, cosine, make_optimizer  # noqa: E402
from patrolscope.pipeline.train.settings import RECIPES, Recipe, TrainingOptions, apply_changes  # noqa: E402
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


def run(data, out, *, resume=False, **changes):
    """Train a small network and return the lines of the log."""
    options = {"width": 0.02, "size": 64, "epochs": 3, "batch": 8, "seed": 1, "device": "cpu", **changes}
    lines = []
    train(TrainingOptions(str(data), **options), out, resume=resume, log=lines.append)
    return lines


def weights(out):
    return read_checkpoint(out / "best.pt").state, torch.load(out / "state.pt", weights_only=True)


def curves(out):
    return list(csv.DictReader((out / "curves.csv").read_text().splitlines()))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Augmentation.


def cache(data, shape=(SIDE, SIDE)):
    return ImageCache(read_collection(data).splits["train"], shape)


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (64, 128)])
@pytest.mark.parametrize("recipe", [Recipe(mosaic=1.0, mixup=0.0), Recipe(mosaic=0.0, mixup=0.0)])
def test_boxes_move_with_their_pixels(data, recipe, shape):
    """Only squares are colored: a box contains its color, and almost nothing colored is outside of boxes."""
    plain = RECIPES["tiny"].__class__(**{**vars(recipe), "hue": 0, "saturation": 0, "value": 0})
    images, boxes_seen = cache(data, shape), 0
    for number in range(40):
        pixels, boxes = sample(images, number % 18, plain, 3, number)
        assert pixels.shape == (*shape, 3)
        left = np.abs(pixels.astype(int)[:, :, None] - COLORS).sum(3) < 60
        for kind, x, y, w, h in boxes:
            x1, x2 = (x - w / 2) * shape[1], (x + w / 2) * shape[1]
            y1, y2 = (y - h / 2) * shape[0], (y + h / 2) * shape[0]
            inside = left[math.ceil(y1) + 1 : int(y2) - 1, math.ceil(x1) + 1 : int(x2) - 1, int(kind)]
            assert inside.size < 40 or inside.mean() > 0.9
            left[max(int(y1) - 1, 0) : math.ceil(y2) + 1, max(int(x1) - 1, 0) : math.ceil(x2) + 1] = False
            boxes_seen += 1
        # Slivers of clipped squares remain.
        assert left.any(2).mean() < 0.03
    assert boxes_seen > 20


def test_a_sample_depends_only_on_seed_epoch_and_number(data):
    recipe = RECIPES["p5"]
    first = [sample(cache(data), number, recipe, 5, 2) for number in (1, 2, 3)]
    again = [sample(cache(data), number, recipe, 5, 2) for number in (3, 2, 1)][::-1]
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
    assert not np.array_equal(sample(cache(data), 1, recipe, 5, 3)[0], first[0][0])
    assert not np.array_equal(sample(cache(data), 1, recipe, 6, 2)[0], first[0][0])


def test_images_that_exceed_the_cache_are_read_again_unchanged(data):
    examples = read_collection(data).splits["train"]
    kept, read = ImageCache(examples, (48, 48)), ImageCache(examples, (48, 48), keep_bytes=0)
    for number in (0, 1, 0):
        assert np.array_equal(kept.read(number)[0], read.read(number)[0])
    assert kept.read(0)[0].shape == (48, 48, 3)


def test_rectangular_samples_fit_every_image_within_one_stride():
    sizes = np.array([[640.0, 360], [320, 180], [1000, 500]])
    assert common_shape(sizes, 416, 32) == (256, 416)
    assert common_shape(sizes[:, ::-1], 416, 32) == (416, 256)
    assert common_shape(np.array([[640.0, 640], [100, 50]]), 64, 32) == (64, 64)


def test_boxes_are_dropped_by_side_area_and_aspect():
    before = np.array([[10.0, 10.0]] * 5)
    after = np.array([[10.0, 10], [1.9, 9], [3, 3], [4, 3], [9.9, 0.4]])
    assert large_enough(before, after).tolist() == [True, False, False, True, False]


def test_without_scale_and_shift_the_center_of_the_canvas_is_cut_out():
    unchanged = Recipe(scale=0.0, translate=0.0)

    class Midpoint:
        def uniform(self, low, high, size=None):
            return np.full(size, (low + high) / 2) if size else low

    canvas = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    pixels, boxes = shift_and_scale(canvas, np.array([[0, 20.0, 24, 40, 44]]), (32, 32), unchanged, Midpoint())
    assert np.array_equal(pixels, canvas[16:48, 16:48])
    assert boxes.tolist() == [[0, 4, 8, 24, 28]]


def test_colors_stay_the_same_without_color_gains():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    assert jitter_colors(pixels, Recipe(hue=0, saturation=0, value=0), stream(1, "x")) is pixels
    assert not np.array_equal(jitter_colors(pixels, Recipe(), stream(1, "x")), pixels)


def test_targets_of_a_batch_carry_the_number_of_their_image():
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
def test_the_learning_rate_decreases_from_one_to_its_last_share(epochs, last):
    rates = [cosine(epoch, epochs, last) for epoch in range(epochs + 1)]
    assert rates[0] == pytest.approx(1)
    assert rates[-1] == pytest.approx(last)
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[epochs // 2] == pytest.approx((1 + last) / 2, abs=2 / epochs)


def test_warm_up_takes_three_epochs_or_1000_iterations_but_at_most_a_quarter_of_the_training():
    assert Schedule(RECIPES["p5"], 300, 500).warmup == 1_500
    assert Schedule(RECIPES["p5"], 300, 100).warmup == 1_000
    assert Schedule(RECIPES["p5"], 10, 100).warmup == 250
    short = apply_changes(RECIPES["p5"], ["warmup_epochs=0.5", "warmup_iterations=0"])
    assert Schedule(short, 10, 100).warmup == 50


def test_warm_up_increases_the_rate_of_weights_from_zero_and_decreases_that_of_biases():
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
def test_only_convolution_kernels_decay_and_every_parameter_is_in_one_group(name):
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


def test_batches_are_accumulated_to_about_64_images():
    assert [batches_per_step(batch, RECIPES["p5"]) for batch in (1, 16, 24, 64, 200)] == [64, 4, 3, 1, 1]


def test_the_averaged_weights_follow_the_published_decay():
    network = new_network("yolov7-tiny", classes=1, width=0.02, seed=0)
    average = averaged_model(network)
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for update in (1, 2):
        average.update_parameters(network)
        decay = 0.9999 * (1 - math.exp(-update / 2000))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                before[name] = decay * before[name] + (1 - decay) * value
                torch.testing.assert_close(average.module.state_dict()[name], before[name])


# The network.


def test_a_narrowed_network_has_the_same_layers_with_fewer_channels():
    whole, narrow = variant("yolov7-tiny", 2), narrowed(variant("yolov7-tiny", 2), 0.25)
    assert [layer.sources for layer in whole.layers] == [layer.sources for layer in narrow.layers]
    pairs = {(a.channels, b.channels) for a, b in zip(whole.layers, narrow.layers, strict=True) if a.channels}
    assert pairs == {(32, 8), (64, 16), (128, 32), (256, 64), (512, 128)}
    assert narrowed(whole, 1) is whole


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6"])
def test_a_new_network_predicts_few_objects(name):
    network = new_network(name, classes=3, width=0.02, seed=4)
    for convs in [network.head.m] + ([network.head.m2] if network.head.m2 is not None else []):
        for module, stride in zip(convs, network.strides, strict=True):
            bias = module.bias.view(3, -1)
            # The random biases of a convolution are below 1.
            assert (bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs().max() < 1
            assert (bias[:, 5:] - math.log(0.6 / (3 - 0.99))).abs().max() < 1


def test_weights_for_other_classes_are_loaded_where_they_fit(tmp_path):
    official_form.save(tmp_path / "other.pt", names=("a", "b"))
    network, line = network_from(tmp_path / "other.pt", classes=4, seed=0)
    own, given = network.state_dict(), read_checkpoint(tmp_path / "other.pt").state
    fitting = [name for name in own if name in given and own[name].shape == given[name].shape]
    assert all(torch.equal(own[name], given[name]) for name in fitting)
    assert line == (
        f"other.pt: {len(fitting)} of {len(own)} tensors loaded; new detection layer (4 classes instead of 2)"
    )
    assert network.head.m[0].weight.shape[0] == 3 * 9
    _, line = network_from(tmp_path / "other.pt", classes=2, seed=0)
    assert line == f"other.pt: {len(own)} of {len(own)} tensors loaded"


# The quality.


def test_perfect_boxes_have_average_precision_one_and_shifted_boxes_less(data):
    examples = read_collection(data).splits["train"]
    sizes = np.full((len(examples), 2), float(SIDE))
    perfect = []
    for example in examples:
        kind, x, y, w, h = (example.boxes * np.array([1, SIDE, SIDE, SIDE, SIDE])).T
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


def test_the_threshold_has_the_best_f1_of_all_thresholds(data):
    examples = read_collection(data).splits["train"]
    generator = np.random.default_rng(4)
    found, scores = [], []
    for example in examples:
        shows = (example.boxes[:, 0] == 0).any()
        scores.append((bool(shows), float(np.float32(generator.beta(4, 2) if shows else generator.beta(2, 4)))))
        found.append(np.array([[0, 0, 9, 9, scores[-1][1], 0]], "f4"))

    def f1(threshold):
        correct = sum(shows and score > threshold for shows, score in scores)
        return 2 * correct / (sum(score > threshold for _, score in scores) + sum(shows for shows, _ in scores))

    threshold = best_thresholds(examples, found, NAMES)["red"]
    assert f1(threshold) == pytest.approx(max(f1(score - 1e-6) for _, score in scores))


# The training.


def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(data, tmp_path, monkeypatch):
    run(data, tmp_path / "whole")
    epoch = loop._Training._epoch

    def stop_after_one(training):
        if training.state.epoch == 1:
            raise KeyboardInterrupt
        epoch(training)

    monkeypatch.setattr(loop._Training, "_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut")
    monkeypatch.setattr(loop._Training, "_epoch", epoch)
    lines = run(data, tmp_path / "cut", resume=True)
    assert "resuming after epoch 1" in lines
    (best, state), (other_best, other_state) = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert same(best, other_best)
    for part in ("network", "average"):
        assert same(state[part], other_state[part])
    assert state["updates"] == other_state["updates"] > 0


def test_weights_depend_on_the_seed(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(data, tmp_path / name, seed=seed, epochs=1)
    a, b, c = (weights(tmp_path / name)[1]["network"] for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_a_training_writes_checkpoint_curves_and_evaluation(data, tmp_path):
    lines = run(data, tmp_path / "out", epochs=2)
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
        for police_class in (number, name):
            threshold = trained_threshold(str(tmp_path / "out" / "best.pt"), police_class)
            assert threshold == (result["thresholds"][name] or None)
    assert any(line.startswith("epoch 2 of 2: loss") for line in lines)
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_rectangular_training_keeps_the_aspect_ratio_of_wide_images(data, tmp_path):
    wide = write(tmp_path / "wide", 24, shape=(48, 96))
    seen, loss = set(), loop._Training._loss

    def record_shape(training, images, targets):
        seen.add(tuple(images.shape[2:]))
        return loss(training, images, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Training, "_loss", record_shape)
        run(wide, tmp_path / "square", epochs=1)
        run(wide, tmp_path / "out", epochs=1, rectangular=True)
    assert seen == {(64, 64), (32, 64)}


def test_a_rejected_training_leaves_no_folder(tmp_path):
    data = write(tmp_path / "data", 24)
    (data / "images/ride0/0000.png").write_bytes(b"no image")
    for changes in ({"strict": True}, {"size": 72}, {"changes": ("lr0=-1",)}):
        with pytest.raises(PatrolscopeError):
            run(data, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()


def test_a_training_can_start_from_its_own_weights(data, tmp_path):
    run(data, tmp_path / "a", epochs=1)
    lines = run(data, tmp_path / "b", epochs=1, variant=None, weights=str(tmp_path / "a" / "best.pt"), width=1.0)
    assert any("tensors loaded" in line and "new detection layer" not in line for line in lines)
    assert any("recipe custom" in line for line in lines)


def test_an_invalid_loss_stops_the_training_and_keeps_the_last_good_epoch(data, tmp_path, monkeypatch):
    loss, calls = loop._Training._loss, []

    def spoil(training, images, targets):
        calls.append(1)
        if len(calls) == training.batches + 2:
            with torch.no_grad():
                training.network.head.m[0].bias.fill_(math.nan)
        return loss(training, images, targets)

    monkeypatch.setattr(loop._Training, "_loss", spoil)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, batch 2 of 5 \(ride.*state.pt holds epoch 1"):
        run(data, tmp_path / "out")
    _, state = weights(tmp_path / "out")
    assert state["state"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in state["network"].values())


def test_training_stops_without_improvement(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: loop.Quality(0.1, 0.1, {}))
    lines = run(data, tmp_path / "out", epochs=9, patience=2)
    assert "stopped: no improvement in 2 epochs" in lines
    assert len(curves(tmp_path / "out")) == 3


def test_images_that_cannot_be_decoded_are_left_out_and_listed(tmp_path):
    data = write(tmp_path / "data", 24)
    (data / "images/ride0/0000.png").write_bytes(b"no image")
    lines = run(data, tmp_path / "out", epochs=1)
    assert "images/ride0/0000.png: cannot be decoded, left out" in lines
    assert any(line.startswith("train: 17 images") for line in lines)


@pytest.mark.parametrize(
    ("before", "changes", "message"),
    [
        ("foreign", {}, "is not empty and holds no training"),
        ("trained", {}, "already holds a training; add --resume"),
        ("trained", {"resume": True, "seed": 9}, "holds a training with seed 1, not 9"),
        ("nothing", {"resume": True}, "holds no training to resume"),
        ("file", {}, "is a file"),
        ("nothing", {"size": 72}, "--size 72 is not a multiple of the network's stride 32; use 96"),
    ],
)
def test_an_unsuitable_folder_or_size_is_rejected(data, tmp_path, before, changes, message):
    out = tmp_path / "out"
    if before == "foreign":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    elif before == "trained":
        run(data, out, epochs=1)
    elif before == "file":
        out.write_text("mine")
    with pytest.raises(TrainingError, match=message):
        run(data, out, **{"epochs": 1, **changes})


def test_folded_weights_are_rejected(data, tmp_path):
    def fold(content, classes):
        for module in content["model"].modules():
            if hasattr(module, "bn"):
                del module.bn

    official_form.save(tmp_path / "folded.pt", settings=official_form.LEAKY, names=("a",), change=fold)
    with pytest.raises(WeightsError, match="folded for inference"):
        network_from(tmp_path / "folded.pt", classes=1, seed=0)


def test_auxiliary_heads_are_trained_too(data, tmp_path):
    run(data, tmp_path / "out", variant="yolov7-w6", epochs=1)
    start = new_network("yolov7-w6", classes=2, width=0.02, seed=1).state_dict()
    trained = weights(tmp_path / "out")[1]["network"]
    changed = [name for name in start if ".m2." in name and not torch.equal(start[name], trained[name])]
    assert len(changed) == 8
    assert read_checkpoint(tmp_path / "out" / "best.pt").architecture.head.kind == "IAuxDetect"


@pytest.mark.slow
def test_a_minute_of_training_detects_most_squares(tmp_path):
    data = write(tmp_path / "data", 320, seed=5)
    # One step per batch, with the learning rate for 64 images per step; AP was 0.93 to 0.99 over seeds.
    changes = ("nominal_batch=16", "lr0=0.04", "mosaic=0")
    run(data, tmp_path / "out", width=0.125, size=96, epochs=32, batch=16, changes=changes)
    rows = [{key: float(value) for key, value in row.items()} for row in curves(tmp_path / "out")]
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["ap50"] > 0.6
    assert result["by_class"]["red"]["image_auc"] > 0.9
