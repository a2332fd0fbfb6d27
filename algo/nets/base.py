"""What every net has: its graph, written once, and the integer network that it computes in eval mode."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from seriatim.algo.codes import Codes
from seriatim.algo.layers import IMAGE
from seriatim.algo.quantisers.scheme import Scheme
from seriatim.algo.tasks import Classification


class Net(nn.Module):
    """Base of all nets.

    Attributes:
        name: on the command line. channels, image_size: of the images that it usually takes.
        dataset: that it is trained on by default. task: what it is trained for.
        short: fields of the `Recipe` for the training of a few minutes where no checkpoint ships, and its epochs.
        quantisation: once it is low-bit.
    """

    name = ""
    channels = 3
    image_size = 32
    dataset = "fashion-mnist"
    short: Mapping[str, Any] = MappingProxyType({"images": 2560, "batch": 64})
    task = Classification()
    quantisation: Scheme | None = None

    def spec(self) -> dict | None:
        """What a checkpoint needs to build the float net again, as JSON values; None: its name says it."""
        return None

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
