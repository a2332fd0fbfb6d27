"""What low-bit layers hand to one another."""

from typing import NamedTuple

import torch

from seriatim.formats import Format, Kind


class _Floor(torch.autograd.Function):
    """floor(2^-drop x), straight through."""

    @staticmethod
    def forward(ctx, x, drop):
        ctx.drop = drop
        return torch.mul(x, 2.0**-drop).floor_()

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.0**-ctx.drop, None


class Codes(NamedTuple):
    """Integer values in a float tensor, their scale (0-dim tensor) and the format of their codes.

    The values of `uint` and `int` are the codes themselves. The scale stays apart, so that no layer multiplies by one that
    requantisation takes up anyway.
    """

    tensor: torch.Tensor
    scale: torch.Tensor
    format: Format

    def seen(self, bits: int) -> Format:
        """The format that a reader of at most `bits` planes sees: the top planes of `uint` and `int`, all of any other."""
        if self.format.kind not in (Kind.UINT, Kind.INT):
            return self.format
        return self.format.top(min(bits, self.format.bits))

    def read(self, bits: int) -> torch.Tensor:
        """Values as that reader sees them; the gradient goes straight through."""
        drop = self.format.bits - self.seen(bits).bits
        return _Floor.apply(self.tensor, drop) if drop else self.tensor

    def unit(self, bits: int) -> torch.Tensor:
        """Scale of what that reader sees."""
        return self.scale * 2.0 ** (self.format.bits - self.seen(bits).bits)

    def real(self) -> torch.Tensor:
        return self.tensor * self.scale
