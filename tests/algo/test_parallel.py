import os
import subprocess
import sys

import pytest
import torch

from seriatim import cli
from seriatim.algo import train
from seriatim.algo.train import read_state

RECIPE = """
net = "digits"
dataset = "digits"
quantised = {quantised}
[[stages]]
sizes = [[8, 1]]
batch = 64
images = 320
rate = {rate}
optimizer = "{optimizer}"
weight_decay = 0.0
shift = 4
flip = false
calibration = 128
"""


def torchrun(*words, cwd):
    """Two processes, gloo; their output."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "seriatim.cli"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launch, *words], cwd=cwd, capture_output=True, text=True, timeout=600, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_two_processes_train_what_one_does(tmp_path, monkeypatch, capsys):
    """Five steps each of a float net and of a 2-bit net, whose activations' scales are learned too, by SGD: parameters and
    statistics agree to float32's rounding, which the order of sums decides. (Adam divides by the root of gradients that may
    be all rounding.)"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text(RECIPE.format(quantised="false", rate=0.02, optimizer="sgd"))
    (tmp_path / "q.toml").write_text(RECIPE.format(quantised="true", rate=0.002, optimizer="sgd"))
    common = ["train", "--net", "digits", "--quiet", "--threads", "1"]
    commands = [
        [*common, "--quant", "float", "--recipe", "f.toml", "--out", "{}/float.pt"],
        [*common, "--w", "2", "--a", "2", "--recipe", "q.toml", "--start", "one/float.pt", "--out", "{}/net.ckpt"],
    ]
    for words, state in zip(commands, ("float.0.pt", "net.0.pt")):
        assert train.main(cli.parser().parse_args([word.format("one") for word in words])) == 0
        alone = capsys.readouterr().out.splitlines()
        shown = torchrun(*[word.format("two") for word in words], cwd=tmp_path).splitlines()
        assert len(shown) == len(alone)  # the second process is silent
        one, two = (read_state(tmp_path / folder / state) for folder in ("one", "two"))
        assert one["history"][0]["loss"] == pytest.approx(two["history"][0]["loss"], rel=1e-4)
        for name, value in one["net"].items():
            other = two["net"][name]
            far = float((value.double() - other.double()).abs().max())
            assert torch.allclose(value.double(), other.double(), rtol=2e-3, atol=2e-4), f"{name} differs by {far}"
