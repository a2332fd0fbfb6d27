"""Each kind of layer from PyTorch to the machine: export, proof, TVM, ISA simulator and RTL, element by element."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seriatim.algo.export import agreement, export_integer, prove_network
from seriatim.algo.layers import SLB, AveragePool, Dropout, Layer, MaxPool
from seriatim.algo.nets import Net, quantize_, set_hard
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.errors import ConfigError
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor

SEED = 11
CONFIG = dataclasses.replace(Config(), m=2, n=4, k=32, axi_bits=32)
KINDS = {
    "groups": lambda: Layer(12, 24, 3, 1, 1, groups=3),
    "depthwise": lambda: Layer(12, 12, 3, 2, 1, groups=12),
    "dilation": lambda: Layer(12, 16, 3, 1, (2, 1), dilation=(2, 1)),
    "unequal": lambda: Layer(12, 16, (3, 2), (1, 2), (1, 0)),
    "one-sided padding": lambda: Layer(12, 16, 3, 2, (0, 0, 1, 1)),
    "bias": lambda: Layer(12, 16, 3, 1, 1, bn=False),
    "bias, signed": lambda: Layer(12, 16, 1, bn=False, relu=False),
    "bias, depthwise": lambda: Layer(12, 12, 3, 1, 1, groups=12, bn=False),
    "fully connected": lambda: Layer(12, 40, (9, 8), bn=False),
    "windowed average": lambda: AveragePool(3, 2, 1),
    "unequal average": lambda: AveragePool((3, 2), (2, 1)),
    "unequal maximum": lambda: MaxPool((2, 3), (1, 2), (1, 0)),
}


class Single(Net):
    """A stem, one layer of the kind under test, and a classifier over whatever map it leaves."""

    name, channels, image_size = "single", 2, 9

    def __init__(self, kind: str):
        super().__init__()
        self.stem = Layer(2, 12, (3, 4), 1, (1, 1), role="stem")
        self.tested, self.dropout = KINDS[kind](), Dropout()
        with torch.no_grad():
            shape = self.tested(self.stem(torch.zeros(2, 2, 9, 9))).shape
        self.fc = Layer(shape[1], 5, shape[2:], role="classifier")

    def graph(self, x):
        return self.fc(self.dropout(self.tested(self.stem(x))))


def low_bit(kind: str, w: int, a: int):
    print("seed", SEED)
    torch.manual_seed(SEED)
    net = Single(kind)
    for name, bias in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias, 0, 0.2)
    quantize_(net, SLB(w, a))
    images = torch.randint(0, 256, (2, 2, 9, 9)).float()
    with torch.no_grad():
        net.train()(images)
        net(images)
    set_hard(net)
    return net.eval(), images


def check_on(level: str, network, codes: torch.Tensor) -> None:
    artefact = compile_network(network, codes, CONFIG, generate)
    assert artefact.cpu_fallback == []
    executor = Executor(CONFIG, opener(level))
    logits = artefact.run(codes.numpy(), executor=executor)
    (run,) = executor.runs
    expected = network.codes(codes)
    assert [layer.name for layer in run.compiled.layers] == list(expected)
    for layer in run.compiled.layers:
        found = expected[layer.name].numpy()
        assert len(np.unique(found)) > 2, f"{layer.name} is dead: the comparison would show nothing"
        np.testing.assert_array_equal(run.tensors[layer.out], found, err_msg=layer.name)
    np.testing.assert_array_equal(logits, expected["fc"])


@pytest.mark.parametrize("kind", KINDS)
def test_integer_form_is_proven_and_runs_on_the_isa_simulator(kind):
    net, images = low_bit(kind, 2, 4)
    network = export_integer(net, exact=True)
    assert not any(proof.failing for proof in prove_network(network))
    assert min(agreement(net, network, images).values()) == 1
    check_on("isa", network, images.int())


@pytest.mark.rtl
@pytest.mark.parametrize("kind", KINDS)
def test_runs_on_the_rtl(kind):
    net, images = low_bit(kind, 1, 8)
    check_on("rtl", export_integer(net), images[:1].int())


def test_float_layers_are_plain_pytorch():
    x = torch.randn(2, 12, 9, 7)
    layer = Layer(12, 24, (3, 2), (2, 1), (1, 0, 2, 1), dilation=(1, 2), groups=4, bn=False)
    torch.nn.init.normal_(layer.bias)
    wanted = F.conv2d(F.pad(x, (0, 1, 1, 2)), layer.weight, layer.bias, (2, 1), 0, (1, 2), 4).relu()
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    assert torch.equal(AveragePool((3, 2), 2, 1)(x), F.avg_pool2d(x, (3, 2), 2, 1))
    assert torch.equal(AveragePool()(x), x.mean((2, 3), keepdim=True))


def test_a_layer_without_batch_norm_starts_at_its_float_weights_and_keeps_its_gain():
    """Scaling a channel scales its factor alone; what the temperature does to the weights, it does not to the outputs.."""
    torch.manual_seed(SEED)
    layer = Layer(8, 4, 3, bn=False)
    with torch.no_grad():
        layer.weight[2] *= 10
    weight = layer.weight.detach().clone()
    layer.quantize_(SLB(1, 8))
    started = layer.quantiser() * layer.factor(layer.quantiser()).view(-1, 1, 1, 1)
    assert (started - weight).norm() < 0.15 * weight.norm()
    assert layer.log_alpha.shape == (4,) and (layer.log_alpha[2] - layer.log_alpha[0]).exp() > 5
    sizes = []
    for tau in (0.1, 0.03, 0.001):
        layer.quantiser.tau = tau
        soft = layer.quantiser()
        sizes.append(((soft * layer.factor(soft).view(-1, 1, 1, 1)).square().mean((1, 2, 3)), soft.abs().mean()))
    assert torch.allclose(sizes[0][0], sizes[2][0], rtol=1e-5) and sizes[2][1] > 1.5 * sizes[0][1]


@pytest.mark.parametrize("arguments, words", [
    (dict(cin=12, cout=8, kernel=3, groups=5), "5 groups.*multiples"),
    (dict(cin=12, cout=8, kernel=3, groups=0), "0 groups"),
    (dict(cin=0, cout=8, kernel=3), "0 to 8 channels"),
    (dict(cin=12, cout=8, kernel=0), "kernel 0: give a whole number of at least 1"),
    (dict(cin=12, cout=8, kernel=3, stride=(1, 2, 3)), r"stride \(1, 2, 3\).*pair"),
    (dict(cin=12, cout=8, kernel=3, padding=-1), "padding -1"),
    (dict(cin=12, cout=8, kernel=3, padding=(1, 1, 1)), "padding"),
    (dict(cin=12, cout=8, kernel=3, dilation=0), "dilation 0"),
    (dict(cin=12, cout=8, kernel=3, role="tail"), "role 'tail': choose one of stem"),
])  # fmt: skip
def test_shapes_that_do_not_exist_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Layer(**arguments)


def test_logits_at_many_places_are_refused():
    net, _ = low_bit("groups", 1, 8)
    with pytest.raises(ConfigError, match="image size 11x9: single would give logits at 3x1 places; its usual size is 9"):
        export_integer(net, (11, 9))
