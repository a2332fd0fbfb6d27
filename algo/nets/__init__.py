"""The nets: one definition each, float until `quantize_` makes it low-bit.

`forward` takes float images holding the codes 0..255 and gives logits (N, classes), or an image. The first layer
reads pixels as they are; its batch norm does what a normalisation of the input would do.
"""

from dataclasses import dataclass

import torch
from torch import nn

from seriatim.algo.layers import Layer
from seriatim.algo.nets.base import Net
from seriatim.algo.nets.mobilenet import MobileNetV1, MobileNetV1Half, MobileNetV1Quarter
from seriatim.algo.nets.plain import AlexNet, AlexNet64, Digits, VGGSmall
from seriatim.algo.nets.resnet import ResNet18, ResNet20, ResNet34, ResNet50
from seriatim.algo.nets.vdsr import VDSR
from seriatim.algo.quantisers.model import quantize_  # noqa: F401  for those who take it from here
from seriatim.algo.quantisers.norm import set_hard  # noqa: F401  likewise
from seriatim.algo.slb import SLBWeight
from seriatim.errors import ConfigError

NETS = {
    net.name: net
    for net in (
        ResNet18, ResNet34, ResNet50, ResNet20, VGGSmall, AlexNet, AlexNet64, MobileNetV1, MobileNetV1Half,
        MobileNetV1Quarter, VDSR, Digits,
    )
}  # fmt: skip


def build(name: str, classes: int | None = None) -> Net:
    """The float net `name`, for so many classes (default: the net's own, 10 for classifiers; an image net's are its channels).

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NETS:
        raise ConfigError(f"net {name!r}: choose one of {', '.join(NETS)}")
    net = NETS[name]() if classes is None else NETS[name](classes)
    return net.to(memory_format=torch.channels_last)


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


@dataclass(frozen=True)
class Size:
    """How large a net is: parameters (weights, biases, batch norms' scales and offsets), multiply-accumulates of one image."""

    parameters: int
    macs: int


@torch.no_grad()
def size_of(net: Net, image_size: int | None = None) -> Size:
    """Parameters of a float net, and multiply-accumulates of its convolutions and fully connected layers for one image.

    Raises:
        ConfigError: a low-bit net, or an image size that the net cannot take.
    """
    if net.quantisation is not None:
        raise ConfigError(f"{net.name} is quantised: count the float net, its weights are the same in number")
    edge, macs = image_size or net.image_size, []
    hooks = [
        module.register_forward_hook(lambda layer, _, y: macs.append(y[0, 0].numel() * layer.weight.numel()))
        for module in net.modules() if isinstance(module, Layer)
    ]  # fmt: skip
    training = net.training
    try:
        net.eval()(torch.zeros(1, net.channels, edge, edge))
    except RuntimeError as error:
        usual = f"its usual size is {net.image_size}"
        raise ConfigError(f"image size {edge}: {net.name} cannot take it ({error}); {usual}") from error
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return Size(sum(p.numel() for p in net.parameters()), sum(macs))
