"""The nets: one definition each, float until `quantize_` makes it low-bit.

`forward` takes float images holding the codes 0..255 and gives logits (N, classes). The first layer
reads pixels as they are; its batch norm does what a normalisation of the input would do.
"""

import torch
from torch import nn

from seriatim.algo.acts import Codes
from seriatim.algo.layers import IMAGE, SLB, AveragePool, Layer, MaxPool
from seriatim.algo.slb import SLBWeight
from seriatim.algo.tasks import Classification
from seriatim.errors import ConfigError


class Net(nn.Module):
    """Base: `channels` and `image_size` of its data, the `task` it is trained for, `quantisation` once it is low-bit."""

    name = ""
    channels = 3
    image_size = 32
    task = Classification()
    quantisation: SLB | None = None

    def graph(self, x):
        """The layers in order, on Codes or floats."""
        raise NotImplementedError

    def simulate(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of the graph that is trained, in floating point."""
        if self.quantisation is None:
            return self.answer(self.graph(images / 255))
        return self.answer(self.graph(Codes(images, images.new_tensor(1 / 255), IMAGE)))

    def answer(self, y: torch.Tensor) -> torch.Tensor:
        """What the graph gives as the task takes it: logits (N, classes)."""
        return y.flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float images holding codes 0..255 (N, C, H, W) to logits (N, classes).

        A low-bit net in eval mode computes its integer network: exported at the first call and
        again after `train()` or for another image size.
        """
        if self.quantisation is None or self.training:
            return self.simulate(images)
        from seriatim.algo.export import export_integer

        size, kept = tuple(images.shape[2:]), self.__dict__.get("_integer")
        if kept is None or kept[0] != size:
            kept = self.__dict__["_integer"] = size, export_integer(self, size)
        network = kept[1]
        return self.answer(network(images.int())) * network.unit

    def train(self, mode: bool = True):
        self.__dict__.pop("_integer", None)
        return super().train(mode)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = Layer(cin, cout, 3, stride, 1)
        self.conv2 = Layer(cout, cout, 3, 1, 1, wide=True)
        changes = stride != 1 or cin != cout
        self.downsample = Layer(cin, cout, 1, stride, relu=False) if changes else None

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), residual)


def _stage(cin, cout, blocks, stride):
    first = BasicBlock(cin, cout, stride)
    return nn.Sequential(first, *(BasicBlock(cout, cout, 1) for _ in range(blocks - 1)))


class ResNet18(Net):
    """ImageNet's topology (He et al., CVPR 2016, table 1) at any image size from 32 up."""

    name, image_size = "resnet18", 64

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(3, 64, 7, 2, 3, wide=True, role="stem")
        self.maxpool = MaxPool(3, 2, 1)
        self.layer1 = _stage(64, 64, 2, 1)
        self.layer2 = _stage(64, 128, 2, 2)
        self.layer3 = _stage(128, 256, 2, 2)
        self.layer4 = _stage(256, 512, 2, 2)
        self.avgpool = AveragePool()
        self.fc = Layer(512, classes, 1, relu=False, role="classifier")

    def graph(self, x):
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x))


class ResNet20(Net):
    """CIFAR's topology (He et al., CVPR 2016, section 4.2), 1x1 convolutions as shortcuts."""

    name = "resnet20"

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(3, 16, 3, 1, 1, wide=True, role="stem")
        self.layer1 = _stage(16, 16, 3, 1)
        self.layer2 = _stage(16, 32, 3, 2)
        self.layer3 = _stage(32, 64, 3, 2)
        self.avgpool = AveragePool()
        self.fc = Layer(64, classes, 1, relu=False, role="classifier")

    def graph(self, x):
        return self.fc(self.avgpool(self.layer3(self.layer2(self.layer1(self.conv1(x))))))


class Digits(Net):
    """A net for 8x8 grey digits that trains in seconds and holds every kind of layer but sums."""

    name, channels, image_size = "digits", 1, 8

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(1, 16, 3, 1, 1, wide=True, role="stem")
        self.conv2 = Layer(16, 16, 3, 1, 1)
        self.conv3 = Layer(16, 16, 3, 1, 1, wide=True)
        self.maxpool = MaxPool(2)
        self.fc = Layer(16, classes, 4, relu=False, role="classifier")

    def graph(self, x):
        x = self.conv1(x)
        return self.fc(self.maxpool(self.conv3(self.conv2(x), x)))


NETS = {net.name: net for net in (ResNet18, ResNet20, Digits)}


def build(name: str, classes: int = 10) -> Net:
    """The float net `name`.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NETS:
        raise ConfigError(f"net {name!r}: choose one of {', '.join(NETS)}")
    return NETS[name](classes).to(memory_format=torch.channels_last)


def quantize_(net: Net, config: SLB) -> Net:
    """Make a float net low-bit in place, starting at its weights; returns it.

    Raises:
        ConfigError: the net is quantised already.
    """
    if net.quantisation is not None:
        raise ConfigError(f"{net.name} is quantised already ({net.quantisation}): build a new net")
    for module in net.modules():
        if isinstance(module, Layer | AveragePool):
            module.quantize_(config)
    net.quantisation = config
    return net


def slb_weights(net: nn.Module) -> list[SLBWeight]:
    return [module for module in net.modules() if isinstance(module, SLBWeight)]


def set_temperature(net: nn.Module, tau: float) -> None:
    """Temperature of every SLB weight.

    Raises:
        ConfigError: tau not positive.
    """
    if not tau > 0:
        raise ConfigError(f"temperature {tau}: it must be positive; use set_hard for the limit 0")
    for module in slb_weights(net):
        module.tau = tau


def set_hard(net: nn.Module, hard: bool = True) -> None:
    """Run the training graph with the argmax weights W_q."""
    for module in slb_weights(net):
        module.hard = hard
