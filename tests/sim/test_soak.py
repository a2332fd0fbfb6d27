"""The soak: its nets are what it promises, one runs on every level, and a failure leaves what repeats it."""

import json

import numpy as np
import pytest

from seriatim import cli
from seriatim.compiler import ir
from seriatim.sim import random_layers, soak

SEED = 35
"""A net with a residual and a pool."""


@pytest.mark.unit
def test_nets_are_varied_and_repeat():
    nets = [soak.draw(seed) for seed in range(60)]
    layers = [layer for net in nets for layer in net.region.layers]
    convs = [layer for layer in layers if isinstance(layer, ir.Conv)]
    assert {net.geometry for net in nets} == set(random_layers.GEOMETRIES)
    assert {type(layer) for layer in layers} == {ir.Conv, ir.MaxPool, ir.SumPool}
    assert sum(layer.res is not None for layer in convs) > 20 and any(layer.groups > 1 for layer in convs)
    assert {layer.w_format.bits for layer in convs} == set(range(1, 9)) == {layer.x_read.bits for layer in convs}
    assert any(len(net.region.readers(tensor)) > 1 for net in nets for tensor in net.region.tensors.values())
    again = soak.draw(nets[3].seed)
    assert again.describe() == nets[3].describe() and np.array_equal(again.x, nets[3].x)


@pytest.mark.rtl
def test_one_net_on_every_level(capsys):
    net = soak.draw(SEED)
    assert any(isinstance(layer, ir.Conv) and layer.res for layer in net.region.layers)
    assert any(isinstance(layer, ir.MaxPool | ir.SumPool) for layer in net.region.layers)
    assert cli.main(["soak", "--seed", str(SEED)]) == 0
    assert f"1 net(s), {len(net.region.layers)} layers, 0 of them on the CPU" in capsys.readouterr().out


@pytest.mark.rtl
def test_a_difference_stops_and_is_kept(capsys, monkeypatch, tmp_path):
    """One code of a convolution that is wrong on the machine's levels."""
    monkeypatch.chdir(tmp_path)
    plain = soak.compile_net

    def wrong(net):
        expected, by_tvm, artefact = plain(net)
        name = next(layer.name for layer in net.region.layers if isinstance(layer, ir.Conv))
        for codes in (expected, by_tvm):
            codes[name] = codes[name].copy()
            codes[name].flat[-1] ^= 1
        return expected, by_tvm, artefact

    monkeypatch.setattr(soak, "compile_net", wrong)
    assert cli.main(["soak", "--minutes", "1", "--seed", str(SEED)]) == 1
    error = capsys.readouterr().err
    assert "the ISA simulator differs from PyTorch in layer" in error and f"replay: seriatim soak --seed {SEED}" in error
    folder = tmp_path / "build" / "soak" / f"seed-{SEED}"
    repro = json.loads((folder / "repro.json").read_text())
    assert repro["seed"] == SEED and repro["config"]["k"] in (32, 64, 128) and "MismatchError" in repro["error"]
    with np.load(folder / "net.npz") as arrays:
        assert np.array_equal(arrays["x"], soak.draw(SEED).x)


def test_the_interpreter_agrees_too():
    net = soak.draw(SEED)
    expected, _, _ = soak.compile_net(net)
    by_interpreter = ir.interpret(net.region, {"x": net.x})
    assert all(np.array_equal(codes, by_interpreter[name]) for name, codes in expected.items())
