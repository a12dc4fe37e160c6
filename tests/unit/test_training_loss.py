"""Assignment and loss equal plain loops (tests/reference_training.py) on random outputs."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from patrolscope.pipeline.detect.models.architecture import variant  # noqa: E402
from patrolscope.pipeline.detect.models.yolov7 import Network, build  # noqa: E402
from patrolscope.pipeline.train import assign as assignment  # noqa: E402
from patrolscope.pipeline.train.loss import Criterion, ciou  # noqa: E402
from patrolscope.pipeline.train.network import narrowed  # noqa: E402
from patrolscope.pipeline.train.settings import RECIPES  # noqa: E402
from tests import reference_training as reference  # noqa: E402


def outputs(generator, levels, size, strides, classes, images=2):
    return [
        torch.from_numpy(generator.normal(0, 1.5, (images, 3, size // s, size // s, 5 + classes)))
        for s in strides[:levels]
    ]


def some_targets(generator, count, classes, images=2):
    sides = np.exp(generator.uniform(np.log(0.02), np.log(0.7), (count, 2)))
    centers = generator.uniform(0.01, 0.99, (count, 2))
    # Two targets of one image at nearly the same location compete for the same cells.
    centers[1], sides[1] = centers[0] + 0.01, sides[0] * 1.1
    image = generator.integers(0, images, count)
    image[1] = image[0]
    return np.column_stack([image, generator.integers(0, classes, count), centers, sides])


def as_floats(network):
    return torch.as_tensor(network.head.anchors).double().tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "classes"), [("yolov7-tiny", 2), ("yolov7-tiny", 1), ("yolov7-w6", 3)])
def test_the_loss_and_its_parts_equal_plain_loops(name, classes, seed):
    generator = np.random.default_rng(seed)
    with torch.device("cpu"):
        network = Network(narrowed(variant(name, classes), 0.02))
    size = 128
    maps = outputs(generator, len(network.strides), size, network.strides, classes)
    auxiliary = outputs(generator, len(network.strides), size, network.strides, classes) if "w6" in name else None
    targets = some_targets(generator, 7, classes)
    recipe = RECIPES["p6" if auxiliary else "tiny"]
    found = Criterion(network, recipe, size)(maps + (auxiliary or []), torch.from_numpy(targets).float())
    expected = reference.loss(
        [values.float().numpy() for values in maps],
        torch.from_numpy(targets).float().tolist(),
        as_floats(network),
        network.strides,
        gains={"box": recipe.box, "objectness": recipe.objectness, "classes": recipe.classes},
        size=size,
        classes=classes,
        auxiliary=None if auxiliary is None else [values.float().numpy() for values in auxiliary],
    )
    assert (float(found.total), found.box, found.objectness, found.classes) == pytest.approx(expected, rel=2e-5)
    assert found.box > 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("reach", "best"), [(0.5, 10), (1.0, 20)])
def test_the_assignment_equals_plain_loops(seed, reach, best):
    generator = np.random.default_rng(100 + seed)
    network = build(variant("yolov7-tiny", 2))
    maps = [values.float() for values in outputs(generator, 3, 160, network.strides, 2)]
    targets = torch.from_numpy(some_targets(generator, 9, 2)).float()
    anchors = torch.as_tensor(network.head.anchors).float()
    found = assignment.assign(maps, targets, anchors, network.strides, reach=reach, best=best)
    got = sorted(
        (level, *cell, number)
        for level, positives in enumerate(found)
        for *cell, number in torch.stack(
            [getattr(positives.cells, name) for name in ("image", "anchor", "row", "column")] + [positives.targets], 1
        ).tolist()
    )
    expected = reference.assign(
        [values.numpy() for values in maps], targets.tolist(), anchors.double().tolist(), network.strides, reach, best
    )
    assert got == sorted((*cell, number) for cell, number in expected)
    assert got


@pytest.mark.parametrize(("reach", "most"), [(assignment.LEAD_REACH, 3), (assignment.AUXILIARY_REACH, 5)])
def test_a_target_has_at_most_three_cells_per_anchor_and_five_for_the_auxiliary_head(reach, most):
    target = torch.tensor([[0, 0, 0.531, 0.523, 0.1, 0.1]])
    found = assignment.candidates(target, torch.tensor([[1.0, 1.0], [40.0, 40.0]]), (10, 10), reach)
    assert len(found.row) == most
    assert set(found.anchor.tolist()) == {0}, "the other anchor's sides differ by more than 4"


def test_an_image_without_targets_contributes_objectness_only():
    with torch.device("cpu"):
        network = Network(narrowed(variant("yolov7-tiny", 2), 0.02))
    criterion = Criterion(network, RECIPES["tiny"], 64)
    maps = [torch.zeros(1, 3, 64 // s, 64 // s, 7) for s in network.strides]
    found = criterion(maps, torch.zeros(0, 6))
    assert found.box == 0
    assert found.classes == 0
    assert found.objectness == pytest.approx(1.0 * 0.01 * math.log(2) * (4 + 1 + 0.4))


def test_ciou_equals_plain_arithmetic_and_is_one_for_equal_boxes():
    generator = np.random.default_rng(3)
    a, b = (np.column_stack([generator.uniform(0, 5, (50, 2)), generator.uniform(0.2, 4, (50, 2))]) for _ in "ab")
    got = ciou(torch.from_numpy(a), torch.from_numpy(b)).tolist()
    assert got == pytest.approx([reference.ciou(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)], rel=1e-9)
    assert ciou(torch.from_numpy(a), torch.from_numpy(a)).tolist() == pytest.approx([1.0] * 50, abs=1e-6)


def test_gains_under_the_settings_of_the_study_are_the_published_ones():
    with torch.device("cpu"):
        network = Network(narrowed(variant("yolov7-e6e", 2), 0.01))
    gains = Criterion(network, RECIPES["p6"], 1280).gains
    assert gains == pytest.approx({"box": 0.0375, "objectness": 2.1, "classes": 0.005625})
