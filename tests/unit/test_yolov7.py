"""The network: layers, names, and sizes of the published files, and feature maps compared with plain functions."""

from dataclasses import replace

import pytest
import torch

from patrolscope.pipeline.detect.models.architecture import (
    Layer,
    from_official,
    guess_variant,
    to_official,
    variant,
    variant_names,
)
from patrolscope.pipeline.detect.models.yolov7 import Network, build
from patrolscope.pipeline.errors import WeightsError
from tests import reference_yolov7 as reference
from tests.official_form import LEAKY, SMALL, save

# Measured on the official networks: layers, keys, and parameters of training and published form; parameters when fused;
# parameters of the training form with 2 classes.
PUBLISHED = {
    "yolov7": ((106, 106), (566, 560), (37_622_682, 37_620_125), 36_905_341, 37_191_162 + 5_394 * 2),
    "yolov7-tiny": ((78, 78), (344, 338), (6_228_762, 6_227_101), 6_219_709, 6_012_282 + 2_706 * 2),
    "yolov7x": ((122, 122), (644, 638), (71_347_394, 71_344_389), 71_311_741, 70_808_354 + 6_738 * 2),
    "yolov7-w6": ((123, 119), (668, 628), (82_312_436, 70_426_236), 70_394_300, 80_927_156 + 17_316 * 2),
    "yolov7-e6": ((145, 141), (896, 856), (111_898_292, 97_246_652), 97_202_940, 110_397_884),
    "yolov7-d6": ((167, 163), (1028, 988), (154_709_364, 133_810_044), 133_757_052, 152_909_436),
    "yolov7-e6e": ((266, 262), (1490, 1450), (166_408_884, 151_757_244), 151_687_420, 164_908_476),
}
LEAD_CHANNELS = {
    "yolov7": [256, 512, 1024],
    "yolov7-tiny": [128, 256, 512],
    "yolov7x": [320, 640, 1280],
    "yolov7-w6": [256, 512, 768, 1024],
    "yolov7-e6": [320, 640, 960, 1280],
    "yolov7-d6": [384, 768, 1152, 1536],
    "yolov7-e6e": [320, 640, 960, 1280],
}
KEYS = {
    "yolov7": {
        "model.0.conv.weight": (32, 3, 3, 3),
        "model.51.cv5.bn.running_var": (512,),
        "model.102.rbr_1x1.0.weight": (256, 128, 1, 1),
        "model.105.im.2.implicit": (1, 255, 1, 1),
        "model.105.anchor_grid": (3, 1, 3, 1, 1, 2),
    },
    "yolov7-tiny": {"model.77.m.0.bias": (255,)},
    "yolov7-e6e": {"model.265.m.0.weight": (255, 320, 1, 1), "model.265.m2.3.bias": (255,)},
}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_have_the_layers_keys_and_parameters_of_the_official_networks(name):
    layers, keys, sizes, fused, for_two = PUBLISHED[name]
    training = variant(name)
    forms = (training, training.deployed())
    networks = [build(form) for form in forms]
    assert tuple(len(form.layers) for form in forms) == layers
    assert tuple(len(network.state_dict()) for network in networks) == keys
    assert tuple(map(parameters, networks)) == sizes
    assert [conv.in_channels for conv in networks[1].head.m] == LEAD_CHANNELS[name]
    assert networks[0].strides == (8, 16, 32, 64)[: len(LEAD_CHANNELS[name])]
    assert parameters(build(variant(name, 2))) == for_two
    shapes = {key: tuple(tensor.shape) for key, tensor in networks[0].state_dict().items()}
    assert KEYS.get(name, {}).items() <= shapes.items()
    # Fusing removes layers that only training needs.
    assert [parameters(network.fuse()) for network in networks] == [fused, fused]


@pytest.mark.parametrize("name", variant_names())
def test_a_variant_is_identified_by_its_layers_in_either_form(name):
    training = variant(name, 2)
    assert guess_variant(from_official(to_official(training))) == name
    assert guess_variant(from_official(to_official(training.deployed()))) == name
    altered = replace(training.layers[3], channels=72)
    assert guess_variant(replace(training, layers=(*training.layers[:3], altered, *training.layers[4:]))) is None


def test_runs_of_the_compact_notation_equal_the_layers_of_yolov7():
    """E and F are compared with the same layers listed one by one."""
    from patrolscope.pipeline.detect.models.architecture import _run

    layers = variant("yolov7").layers
    assert tuple(_run("E", [64, 4, 256], 3, 4, "SiLU")) == layers[4:12]
    assert tuple(_run("F", [256, 4, 256], 55, 56, "SiLU")) == layers[56:64]


def test_only_the_tiny_variant_has_another_activation():
    activations = {name: {layer.activation for layer in variant(name).layers} - {None} for name in variant_names()}
    assert activations.pop("yolov7-tiny") == {"LeakyReLU(0.1)"}
    assert all(names == {"SiLU"} for names in activations.values())


def test_the_auxiliary_heads_of_e6e_read_layers_before_the_sums():
    training = variant("yolov7-e6e")
    assert [training.layers[index].sources for index in range(261, 265)] == [(186,), (161,), (136,), (112,)]
    assert training.deployed().layers[-1] == Layer("Detect", (257, 258, 259, 260))
    assert not {261, 262, 263, 264} & set(training.needed_for(training.lead_sources))


@pytest.fixture(params=[SMALL, LEAKY], ids=["every kind", "leaky"])
def settings(request):
    return request.param


@pytest.fixture
def example(settings, tmp_path):
    """Random tensors of the official form, images, and their feature maps by the plain functions."""
    state = save(tmp_path / "small.pt", settings, names=["vehicle", "officer"][: settings["nc"]])["model"]
    images = torch.rand(2, 3, 64, 96)
    return state, images, reference.forward(settings, state, images)


def test_the_network_equals_the_plain_functions(settings, example):
    state, images, expected = example
    network = build(from_official(settings)).load(state).eval()
    with torch.inference_mode():
        maps = network(images)
    assert [feature_map.shape for feature_map in maps] == [feature_map.shape for feature_map in expected]
    for pair in zip(maps, expected, strict=True):
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


def test_a_fused_network_computes_the_same(settings, example):
    state, images, expected = example
    network = build(from_official(settings)).load(state).fuse()
    assert not [name for name in network.state_dict() if ".bn." in name or "rbr_dense" in name or ".im." in name]
    with torch.inference_mode():
        maps = network(images)
    for actual, plain in zip(maps, expected, strict=True):
        assert (actual.sigmoid() - plain.sigmoid()).abs().max() < 1e-4
        torch.testing.assert_close(actual, plain, atol=1e-3, rtol=1e-4)


def test_fusing_twice_changes_nothing(example):
    state, images, _ = example
    network = build(from_official(SMALL if len(state) > 40 else LEAKY)).load(state).fuse()
    with torch.inference_mode():
        once = network(images)
        twice = network.fuse()(images)
    assert all(torch.equal(*pair) for pair in zip(once, twice, strict=True))


def test_in_training_mode_auxiliary_feature_maps_follow_the_lead_ones():
    network = Network(from_official(SMALL)).train()
    assert [tuple(feature_map.shape) for feature_map in network(torch.rand(1, 3, 64, 64))] == [
        (1, 3, 8, 8, 7),
        (1, 3, 4, 4, 7),
        (1, 3, 8, 8, 7),
        (1, 3, 4, 4, 7),
    ]
    assert len(network.eval()(torch.rand(1, 3, 64, 64))) == 2


def test_tensors_outside_the_layer_list_are_rejected_by_name():
    network = Network(from_official(SMALL))
    state = network.state_dict()
    with pytest.raises(WeightsError, match=r"lack 1 tensors .* model\.1\.conv\.weight"):
        build(from_official(SMALL)).load({k: v for k, v in state.items() if k != "model.1.conv.weight"})
    with pytest.raises(WeightsError, match=r"outside their layer list: model\.99\.x"):
        build(from_official(SMALL)).load({**state, "model.99.x": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"model\.3\.conv\.weight has shape \(1, 1\)"):
        build(from_official(SMALL)).load({**state, "model.3.conv.weight": torch.zeros(1, 1)})


@pytest.mark.parametrize(
    ("where", "row", "message"),
    [
        (1, [-1, 1, "Focus", [8, 3]], "layer 1 of the model is of kind 'Focus'"),
        (1, [-1, 3, "Conv", [8, 3, 1]], "repeated 3 times"),
        (1, [-1, 1, "Conv", [8, 3, 1, "None", 4]], r"\(Conv\) has arguments"),
        (1, [-1, 1, "Conv", [8, 3, 1, "None", 1, "__import__('os')"]], 'has the activation "__import__'),
        (1, [-1, 1, "Conv", ["nc", 3, 1]], "expected sizes"),
        (1, [4, 1, "Conv", [8, 3, 1]], "expected earlier layers"),
        (1, "Conv", "from, repeats, kind, arguments"),
        (4, [[3, 1], 1, "Shortcut", [1]], r"layer 4 of the model \(Shortcut\) cannot read layers"),
        (5, [-1, 1, "MP", [3]], r"\(MP\) has arguments \[3\]"),
    ],
)
def test_layers_that_no_variant_has_are_rejected_in_one_line(where, row, message):
    rows = [*SMALL["backbone"]]
    rows[where] = row
    with pytest.raises(WeightsError, match=message) as raised:
        build(from_official({**SMALL, "backbone": rows}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width_multiple": 0.5}, "width_multiple of the model is 0.5"),
        ({"anchors": 3}, "anchors of the model are 3"),
        ({"nc": "two"}, "nc of the model is 'two'"),
        ({"anchors": [[10, 13, 16, 30, 33, 23]]}, "reads 4 layers; expected 2"),
        ({"head": []}, "0 detection layers"),
        ({"head": None}, "head of the model's settings is not a list"),
    ],
)
def test_settings_that_no_variant_has_are_rejected(change, message):
    with pytest.raises(WeightsError, match=message):
        from_official({**SMALL, **change})


def test_the_error_for_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"network 'yolov8' is unknown; expected one of yolov7, yolov7-tiny"):
        variant("yolov8")
