"""Whole nets in log and codebook formats on the RTL: every layer equals PyTorch, and takes the cycles foretold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seriatim.algo.export import export_integer
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.algo.quantisers.scheme import Scheme
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor
from seriatim.sim.session import cycles

CONFIG = replace(Config(), shift_lanes=4)
ROOT2 = {"root": 2}
NETS = [
    ("alexnet_64", Scheme("logquant", 4, "logquant", 4), 64), ("mobilenet_v1_025", Scheme("logquant", 4, "logquant", 4), 32),
    ("mobilenet_v1_025", Scheme("logquant", 4, "logquant", 3, ROOT2, ROOT2), 32), ("resnet20", Scheme("weq", 3, "weq", 3), 32),
    ("resnet20", Scheme("lsq", 4, "logquant", 4), 32), ("resnet20", Scheme("logquant", 3, "lsq", 4), 32),
    ("resnet20", Scheme("qn", 3, "logquant", 3, {"levels": [-4, -2, -1, 0, 1, 2, 4]}), 32),
]  # fmt: skip


def low_bit(name: str, scheme: Scheme, size: int):
    """A net with statistics of random images, and these."""
    torch.manual_seed(1)
    net = build(name, 10)
    images = torch.randint(0, 256, (4, net.channels, size, size), generator=torch.Generator().manual_seed(2)).float()
    quantize_(net, scheme)
    with torch.no_grad():
        for _ in range(3):
            net.train()(images)
    set_hard(net)
    return net.eval(), images


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("name, scheme, size", NETS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_net_runs_whole_on_the_rtl(name, scheme, size):
    """11x11 windows of stride 4, 5x5 windows, depthwise layers, residual streams; base 2 and sqrt 2, tables of weights."""
    net, images = low_bit(name, scheme, size)
    network, codes = export_integer(net, size), images[:1].int()
    artefact = compile_network(network, codes, CONFIG, generate)
    assert artefact.cpu_fallback == []
    executor = Executor(CONFIG, opener("rtl"))
    artefact.run(codes.numpy(), executor=executor)
    (run,), expected = executor.runs, network.codes(codes)
    assert [layer.name for layer in run.compiled.layers] == list(expected)
    assert {layer.engine for layer in run.compiled.layers} >= {"shift-add"}
    for layer, counts in zip(run.compiled.layers, run.counts.layers):
        found = expected[layer.name].numpy()
        assert len(np.unique(found)) > 1, f"{layer.name} is dead: the comparison would show nothing"
        np.testing.assert_array_equal(run.tensors[layer.out], found, err_msg=layer.name)
        assert layer.cycles == pytest.approx(cycles(counts), rel=0.03), layer.name
