"""Training in two processes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.labeled_squares import write  # noqa: E402


@pytest.mark.slow
def test_two_processes_have_the_same_loss_curve_as_one(tmp_path):
    """Batch norms and means over positives cover the whole batch; the last batch is smaller and has an odd size."""
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
        assert done.stdout.count("epoch 3 of 3") == 1, "only the first process logs"
    losses = {}
    for name in starts:
        rows = csv.DictReader((tmp_path / name / "curves.csv").read_text().splitlines())
        losses[name] = [float(row["loss"]) for row in rows]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True)["network"] for name in starts)
    assert any(not torch.equal(one[key], two[key]) for key in one), "equal rounding, as if there was one process"
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-7)
