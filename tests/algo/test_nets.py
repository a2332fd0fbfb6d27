"""The nets: their sizes against published figures, and each one whole on the machine."""

import copy

import numpy as np
import pytest
import torch

from seriatim.algo import trained
from seriatim.algo.export import agreement, export_integer
from seriatim.algo.layers import SLB
from seriatim.algo.nets import NETS, AlexNet, build, quantize_, set_hard, size_of
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.errors import ConfigError
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor

SEED = 3

TORCHVISION = {
    "resnet18": (11_689_512, 1.81), "resnet34": (21_797_672, 3.66), "resnet50": (25_557_032, 4.09),
    "alexnet": (61_100_840, 0.71),
}  # fmt: skip
"""num_params and GFLOPS (multiply-accumulates) of torchvision's IMAGENET1K_V1 weights, 1000 classes, 224x224."""

HOWARD = {"mobilenet_v1": (4.2, 569), "mobilenet_v1_050": (1.3, 149), "mobilenet_v1_025": (0.5, 41)}
"""Million parameters and million multiply-adds, Howard et al. 2017, tables 6 and 8, 224x224."""


@pytest.mark.parametrize("name", TORCHVISION)
def test_sizes_are_those_of_torchvision(name):
    size, (parameters, gmacs) = size_of(build(name, 1000), 224), TORCHVISION[name]
    assert size.parameters == parameters and round(size.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize("name", HOWARD)
def test_sizes_of_mobilenet_are_those_of_its_paper(name):
    size, (parameters, mmacs) = size_of(build(name, 1000), 224), HOWARD[name]
    assert round(size.parameters / 1e6, 1) == parameters and round(size.macs / 1e6) == mmacs


def test_sizes_for_cifar():
    """ResNet-20: He et al., table 6, 0.27 M. VGG-Small: counted from its description, 3x3 kernels over maps of 32, 16, 8."""
    assert round(size_of(build("resnet20")).parameters / 1e6, 2) == 0.27
    channels, maps = [3, 128, 128, 256, 256, 512, 512], [32, 32, 16, 16, 8, 8]
    kernels = [9 * a * b for a, b in zip(channels, channels[1:])]
    found, last = size_of(build("vgg_small")), 512 * 4 * 4 * 10
    assert found.parameters == sum(kernels) + 2 * sum(channels[1:]) + last + 10
    assert found.macs == sum(k * m * m for k, m in zip(kernels, maps)) + last


def low_bit(name, w, a, size):
    print("seed", SEED)
    torch.manual_seed(SEED)
    net = quantize_(build(name), SLB(w, a))
    images = torch.randint(0, 256, (2, net.channels, size, size)).float()
    with torch.no_grad():
        net.train()(images)
        net(images)
    set_hard(net)
    return net.eval(), images


WHOLE = [("mobilenet_v1_025", 1, 8, 32), ("alexnet_64", 1, 8, 64)]
LARGE = [
    ("mobilenet_v1", 1, 8, 64), ("alexnet", 1, 8, 224), ("vgg_small", 2, 4, 32), ("resnet34", 1, 8, 64), ("resnet50", 1, 8, 64),
]  # fmt: skip


@pytest.mark.parametrize("name, w, a, size", WHOLE + [pytest.param(*row, marks=pytest.mark.slow) for row in LARGE])
def test_whole_nets_run_on_the_isa_simulator(name, w, a, size):
    net, images = low_bit(name, w, a, size)
    network, codes = export_integer(net, size), images[:1].int()
    assert min(agreement(net, network, images[:1]).values()) > 0.98
    config = Config()
    artefact = compile_network(network, codes, config, generate)
    assert artefact.cpu_fallback == []
    executor = Executor(config, opener("isa"))
    artefact.run(codes.numpy(), executor=executor)
    (run,), expected = executor.runs, network.codes(codes)
    assert [layer.name for layer in run.compiled.layers] == list(expected)
    for layer in run.compiled.layers:
        found = expected[layer.name].numpy()
        assert len(np.unique(found)) > 2, f"{layer.name} is dead: the comparison would show nothing"
        np.testing.assert_array_equal(run.tensors[layer.out], found, err_msg=layer.name)


@pytest.mark.parametrize("name", NETS)
def test_every_net_can_be_trained_and_sampled(name):
    net = NETS[name]
    codes, _ = trained.sample_images(name, 1)
    assert codes.shape == (1, net.channels, net.image_size, net.image_size) and codes.dtype == np.uint8
    assert net.name == name and set(net.short) <= {"images", "batch", "epochs", "shift", "flip"}


def test_what_a_net_cannot_take_is_refused():
    class Tiny(AlexNet):
        name, image_size = "alexnet_32", 32

    with pytest.raises(ConfigError, match="image size 32: alexnet_32 needs 63 at least"):
        Tiny()
    with pytest.raises(ConfigError, match="image size 8: vgg_small cannot take it.*32"):
        size_of(build("vgg_small"), 8)
    net = quantize_(build("vgg_small"), SLB())
    with pytest.raises(ConfigError, match="count the float net"):
        size_of(net)
    with pytest.raises(ConfigError, match="image size 40x40: vgg_small would give logits at 2x2 places"):
        export_integer(net, 40)


def test_a_float_net_drops_out_in_training_alone():
    torch.manual_seed(SEED)
    net, image = build("alexnet_64"), torch.randint(0, 256, (1, 3, 64, 64)).float()
    with torch.no_grad():
        net.fc.weight.normal_(0, 1)
        assert not torch.equal(net.train()(image), net(image))
        assert torch.equal(net.eval()(image), copy.deepcopy(net)(image))
