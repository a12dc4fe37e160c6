"""Official checkpoints load without the official code, and nothing in a file is executed."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patrolscope.pipeline.detect.models.architecture import from_official, variant
from patrolscope.pipeline.detect.models.yolov7 import Network
from patrolscope.pipeline.detect.weights.checkpoint import read_checkpoint
from patrolscope.pipeline.detect.weights.checkpoint_writer import save_checkpoint
from patrolscope.pipeline.detect.weights.restricted_unpickler import LEGACY_MAGIC, ForbiddenNameError
from patrolscope.pipeline.errors import WeightsError
from tests import reference_yolov7 as reference
from tests.official_form import LEAKY, SMALL, model, save


@pytest.fixture
def file(tmp_path):
    return tmp_path / "best.pt"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old container"])
def test_an_official_checkpoint_loads_without_the_official_classes(file, legacy):
    state = save(file, legacy=legacy)["model"]
    assert not {"models", "models.yolo", "models.common"} & set(sys.modules)
    checkpoint = read_checkpoint(file)
    assert checkpoint.class_names == ("officer", "vehicle")
    properties = (checkpoint.source, checkpoint.folded, checkpoint.stored_as, checkpoint.epoch)
    assert properties == ("model", False, "float16", -1)
    assert checkpoint.architecture == from_official(SMALL)
    assert checkpoint.variant is None
    assert checkpoint.state.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in checkpoint.state.items())
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        maps = checkpoint.network()(images)
    for feature_map, expected in zip(maps, reference.forward(SMALL, state, images), strict=True):
        torch.testing.assert_close(feature_map, expected, atol=1e-4, rtol=1e-4)


def test_averaged_weights_are_preferred(file):
    def with_ema(content, classes):
        torch.manual_seed(8)
        content["ema"] = model(classes, SMALL, ["officer", "vehicle"])
        content["updates"], content["epoch"] = 12, 3

    states = save(file, change=with_ema)
    checkpoint = read_checkpoint(file)
    assert (checkpoint.source, checkpoint.epoch) == ("ema", 3)
    key = "model.1.conv.weight"
    assert torch.equal(checkpoint.state[key], states["ema"][key])
    assert not torch.equal(checkpoint.state[key], states["model"][key])


def test_a_checkpoint_of_an_unfinished_training_loads(file):
    """It contains an optimizer state, a fitness as numpy array, and text beside the model."""
    momentum = {"state": {0: {"momentum_buffer": torch.randn(100)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    save(file, optimizer=momentum, best_fitness=np.array([0.5]), training_results="1/300\n", ema=None, wandb_id=None)
    assert read_checkpoint(file).source == "model"


def test_anchors_come_from_the_tensors_and_not_from_the_settings(file):
    def other_anchors(content, _classes):
        content["model"].model[-1].anchor_grid *= 2

    save(file, change=other_anchors)
    assert read_checkpoint(file).architecture.anchors[0] == (20, 26, 32, 60, 66, 46)


def test_a_folded_checkpoint_is_not_folded_again(file):
    """It still contains ia and im, which are already folded in."""
    images = torch.rand(1, 3, 64, 64)
    expected = []

    def fold(content, _classes):
        whole = content["model"].float()
        fused = Network(from_official(SMALL)).load({k: v.clone() for k, v in whole.state_dict().items()}).fuse()
        with torch.inference_mode():
            expected.extend(fused(images))
        for layer, ours in zip(whole.model, fused.model, strict=True):
            # Read by auxiliary heads only, and still folded by the official code.
            unused = isinstance(ours, nn.Identity)
            for name, module in list(layer.named_modules()):
                if type(module).__name__ == "Conv":
                    convolution = module.conv if unused else (ours.get_submodule(name) if name else ours).conv
                    module.conv = nn.Conv2d(20, 20, 3) if unused else convolution
                    del module.bn
            if type(layer).__name__ == "RepConv":
                del layer.rbr_dense, layer.rbr_1x1, layer.rbr_identity
                layer.rbr_reparam = ours.rbr_reparam
        whole.model[-1].m = fused.head.m

    save(file, change=fold)
    checkpoint = read_checkpoint(file)
    assert checkpoint.folded
    assert "model.15.ia.0.implicit" in checkpoint.state
    network = checkpoint.network()
    assert network.head.ia is None
    with torch.inference_mode():
        maps = network.fuse()(images)
    assert all(torch.equal(*pair) for pair in zip(maps, expected, strict=True))


@pytest.mark.parametrize("name", ["small", "leaky", "yolov7-tiny"])
def test_a_written_checkpoint_has_the_official_form_and_loads(file, name):
    architecture = {"small": from_official(SMALL), "leaky": from_official(LEAKY)}.get(name) or variant(name, 2)
    network, ema = Network(architecture), Network(architecture)
    names = ["officer", "vehicle"][: architecture.classes]
    save_checkpoint(file, network, class_names=names, ema=ema, epoch=4, image_size=640)
    assert "models" not in sys.modules
    checkpoint = read_checkpoint(file)
    assert checkpoint.architecture == architecture
    properties = (checkpoint.source, checkpoint.epoch, checkpoint.image_size, checkpoint.class_names)
    assert properties == ("ema", 4, 640, tuple(names))
    for key, tensor in ema.state_dict().items():
        assert torch.equal(checkpoint.state[key], tensor.half().float() if tensor.is_floating_point() else tensor)
    # The file names official classes only, not those of this package.
    with zipfile.ZipFile(file) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"cmodels.yolo\nModel\n" in program
    assert b"pipeline" not in program


def test_a_fused_network_is_not_written(file):
    with pytest.raises(ValueError, match="save it before it is fused"):
        save_checkpoint(file, Network(from_official(LEAKY)).fuse(), class_names=["vehicle"])


class Runs:
    """Object that calls a function when it is unpickled without restrictions."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def containers(evil, folder):
    """Save the same object in every form of file that could contain it."""

    def write(path, **options):
        torch.save({"epoch": -1, "model": evil}, path, **options)

    write(folder / "zip.pt")
    write(folder / "legacy.pt", _use_new_zipfile_serialization=False)
    write(folder / "protocol4.pt", pickle_protocol=4)
    save(
        folder / "deep.pt", change=lambda content, _classes: content["model"].yaml.update(evil=evil), settings={**SMALL}
    )
    (folder / "second.pt").write_bytes(LEGACY_MAGIC + pickle.dumps(evil, protocol=2))
    return sorted(folder.glob("*.pt"))


@pytest.mark.parametrize(
    ("call", "arguments", "name"),
    [
        (os.system, ("touch {marker}",), r"(posix|nt)\.system"),
        (eval, ("open({marker!r}, 'w')",), r"(__builtin__|builtins)\.eval"),
        (__import__, ("os",), r"(__builtin__|builtins)\.__import__"),
        (torch.serialization.load, ("{marker}",), r"torch\.serialization\.load"),
    ],
    ids=["os.system", "eval", "module", "torch.load"],
)
def test_a_malicious_file_is_rejected_by_name_and_runs_nothing(tmp_path, call, arguments, name):
    marker = tmp_path / "ran"
    evil = Runs(call, *(argument.format(marker=str(marker)) for argument in arguments))
    files = containers(evil, tmp_path)
    assert len(files) == 5
    for file in files:
        with pytest.raises(ForbiddenNameError, match=f"names {name}, .* nothing in it was executed"):
            read_checkpoint(file)
    assert not marker.exists()


def test_plain_pickle_does_run_the_malicious_object(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {marker}")))
    assert marker.exists()


def test_bound_methods_of_a_folded_model_are_ignored(file):
    """A bound method is stored as getattr of a module, and neither is looked up."""

    def bound(content, _classes):
        content["model"].model[1].forward = Runs(getattr, content["model"].model[1], "fuseforward")

    save(file, change=bound)
    assert read_checkpoint(file).class_names == ("officer", "vehicle")


def test_a_file_cannot_change_the_stand_in_for_a_function(file):
    """BUILD on a function would set its attributes, and so change it for all later calls."""
    program = b"\x80\x02ctorch._utils\n_rebuild_parameter\n}U\x01xK\x01sb."
    raw(file, program)
    with pytest.raises(WeightsError, match="functions have no state"):
        read_checkpoint(file)


def raw(file, program, **entries):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
        for name, content in entries.items():
            archive.writestr(f"a/{name}", content)


def tensor_program(size, stride, numbers=4):
    """Return a pickle that rebuilds one tensor."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Numbers(), 0, size, stride, False, {})

    class Numbers:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", numbers) if isinstance(item, Numbers) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"model": Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "stride"),
    [((10**9,), (0,)), ((5,), (1,)), ((2, 3), (2, 1)), ((-1,), (1,)), ((2,), (1, 1)), ((True,), (1,))],
)
def test_a_tensor_larger_than_its_storage_is_rejected(file, size, stride):
    raw(file, tensor_program(size, stride), **{"data/0": bytes(16)})
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(file)


def test_a_memo_index_that_would_fill_the_memory_is_rejected(file):
    """One instruction of the pickle uses memo index 2^31 - 1; the unpickler in C would allocate all lower ones."""
    raw(file, b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(WeightsError, match="expected an official YOLOv7 model"):
        read_checkpoint(file)


def test_compressed_files_are_rejected(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}." + bytes(1000))
    with pytest.raises(WeightsError, match="compressed"):
        read_checkpoint(file)


def drop(name):
    return lambda content, _classes: vars(content["model"]).pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, _k: c.update(model=c["model"].state_dict()), "only a state dict"),
        (lambda c, _k: c.update(model=None), "has a NoneType under 'model'; expected an official YOLOv7 model"),
        (
            lambda c, k: c.update(model=nn.Conv2d(1, 1, 1)),
            r"has a .*conv\.Conv2d under 'model'; expected an official YOLOv7 model",
        ),
        (drop("yaml"), "has no settings"),
        (lambda c, _k: setattr(c["model"], "names", ["officer"]), r"2 classes and the names \['officer'\]"),
        (lambda c, _k: setattr(c["model"], "yaml", {**SMALL, "nc": 3}), "has 2 classes; expected 3"),
        (
            lambda c, k: c["model"].model.__setitem__(2, k["Focus"]()),
            r"layer 2 of the model is a models\.common\.Focus",
        ),
        (lambda c, _k: setattr(c["model"].model[9], "f", [8, 4]), r"layer 9 \(Concat\) of the model reads \[8, 4\]"),
        (lambda c, _k: setattr(c["model"].model[1], "act", nn.ReLU()), "layer 1 has the activation ReLU"),
        (lambda c, _k: c["model"].model.pop(-1), "has 15 layers; expected 16"),
        (lambda c, _k: delattr(c["model"].model[-1], "anchor_grid"), "anchor_grid of the model has shape None"),
        (lambda c, _k: delattr(c["model"].model[1].bn, "running_mean"), r"lack 1 tensors .*model\.1\.bn\.running_mean"),
    ],
)
def test_other_contents_are_rejected_in_one_line(file, change, message):
    save(file, change=change)
    with pytest.raises(WeightsError, match=message) as raised:
        read_checkpoint(file).network()
    assert "\n" not in str(raised.value)


def test_other_files_than_checkpoints_are_rejected_in_one_line(file):
    save(file)
    whole = file.read_bytes()
    legacy = file.with_name("legacy.pt")
    save(legacy, legacy=True)
    wrong = {
        b"": "starts with",
        b"not a checkpoint": "not a torch checkpoint; it starts with b'not '",
        whole[: len(whole) // 2]: "truncated or damaged",
        whole[:100]: "truncated or damaged",
        legacy.read_bytes()[:-50]: "truncated or damaged",
        legacy.read_bytes()[:300]: "truncated or damaged",
    }
    for content, message in wrong.items():
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as raised:
            read_checkpoint(file)
        assert "\n" not in str(raised.value)
    torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(WeightsError, match="only a state dict"):
        read_checkpoint(file)
    torch.save(torch.ones(3), file)
    with pytest.raises(WeightsError, match="contains a single StoredTensor"):
        read_checkpoint(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(WeightsError, match=r"has no data\.pkl"):
        read_checkpoint(file)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_file_is_read_or_rejected_without_a_traceback(tmp_path_factory, data):
    """Random bytes of the pickle are changed, in an intact container."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        folder.mkdir()
        save(folder / "whole.pt", LEAKY, names=["vehicle"])
    with zipfile.ZipFile(folder / "whole.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    program = bytearray(entries[name])
    for _ in range(data.draw(st.integers(1, 3))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(folder / "damaged.pt", "w") as archive:
        for entry, content in (entries | {name: bytes(program)}).items():
            archive.writestr(entry, content)
    message = None
    try:
        network = read_checkpoint(folder / "damaged.pt").network()
    except WeightsError as error:
        message = str(error)
    if message is None:
        assert isinstance(network, Network)
    else:
        assert "\n" not in message
        assert len(message) < 400
