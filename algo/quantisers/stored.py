"""Weights out of a checkpoint: codes, formats and scales as they were saved, whatever method found them."""

import torch
from torch import Tensor

from seriatim.algo.quantisers.base import WeightQuantiser
from seriatim.formats import Format


class StoredWeight(WeightQuantiser):
    """Fixed weights.

    Args:
        codes: int32, output channels first. formats: one, or one for each output channel. scale: (O,) float64.
    """

    def __init__(self, codes: Tensor, formats: tuple[Format, ...], scale: Tensor):
        super().__init__()
        self.bits = formats[0].bits
        self._formats, self._scale = tuple(formats), scale.double()
        self.register_buffer("stored", codes)
        self.register_buffer("one", torch.ones(()))  # of the type that the module computes in

    @property
    def formats(self) -> tuple[Format, ...]:
        return self._formats

    def codes(self) -> Tensor:
        return self.stored

    def scale(self) -> Tensor:
        return self._scale.to(self.stored.device)

    def forward(self) -> Tensor:
        return self.real().to(self.one.dtype)
