"""The whole project in one test: train a little, compile through TVM, run on the RTL, compare every layer."""

import dataclasses

import numpy as np
import torch

from seriatim.algo import data
from seriatim.algo.export import export_integer
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_
from seriatim.algo.train import Recipe, fit
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor

CONFIG = dataclasses.replace(Config(), m=2, n=4, k=32, axi_bits=32)


def test_train_compile_simulate():
    torch.manual_seed(0)
    net = quantize_(build("digits"), SLB(weight_bits=1, act_bits=4))
    fit(net, data.digits(True), Recipe(((8, 2),), batch=64, rate=5e-3, optimizer="adam", weight_decay=0, shift=0, flip=False),
        log=lambda line: None)
    network = export_integer(net)
    held_out = data.digits(False)
    images = held_out.images[:3].reshape(3, 1, 8, 8).astype(np.int32)

    artefact = compile_network(network, torch.from_numpy(images), CONFIG, generate)
    assert artefact.cpu_fallback == []
    executor = Executor(CONFIG, opener("rtl"))
    logits = artefact.run(images, executor=executor)

    expected = {name: codes.numpy() for name, codes in network.codes(torch.from_numpy(images)).items()}
    run, = executor.runs
    assert [layer.name for layer in run.compiled.layers] == list(expected)
    for layer in run.compiled.layers:
        assert len(np.unique(expected[layer.name])) > 1, f"{layer.name} is dead: the comparison would show nothing"
        np.testing.assert_array_equal(run.tensors[layer.out], expected[layer.name], err_msg=layer.name)
    np.testing.assert_array_equal(logits, expected["fc"])
    assert run.counts.cycles == sum(sum(layer[c] for c in list(layer)[:8]) for layer in run.counts.layers) > 0
