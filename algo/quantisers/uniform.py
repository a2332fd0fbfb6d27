"""Evenly spaced levels: DoReFa-Net, LSQ's weights, PACT."""

import torch
from torch import Tensor, nn

from seriatim.algo.quantisers.base import ActivationQuantiser, MasterWeight, round_half_up
from seriatim.formats import Format, Kind


class DoReFaWeight(MasterWeight):
    """2 q(tanh w / (2 max |tanh w|) + 1/2) - 1 with q of b bits on [0, 1]; for one bit E|w| sign(w).

    Zhou et al., "DoReFa-Net", 2016, equations 7 to 9: q is straight-through, tanh and the maximum are
    differentiated; one bit is straight-through as a whole.
    """

    @property
    def format(self) -> Format:
        return Format(Kind.BIPOLAR, self.bits)

    @torch.no_grad()
    def integers(self) -> Tensor:
        w = self.master()
        if self.bits == 1:
            return torch.where(w >= 0, 1, -1).int()
        top = 2**self.bits - 1
        tanh = torch.tanh(w)
        unit = tanh / (2 * tanh.abs().max().clamp_min(1e-12)) + 0.5
        return (2 * round_half_up(unit * top) - top).int()

    def scale(self) -> Tensor:
        return self.shared(self.master().abs().mean() if self.bits == 1 else 1 / (2**self.bits - 1))

    def surrogate(self) -> Tensor:
        if self.bits == 1:
            return self.weight
        tanh = torch.tanh(self.weight)
        return tanh / tanh.abs().max().clamp_min(1e-12)


class LSQWeight(MasterWeight):
    """s clip(round(w / s), -2^(b-1), 2^(b-1) - 1) with a learned step s for the layer.

    Esser et al., "Learned Step Size Quantization", ICLR 2020: the gradient of s is round(w/s) - w/s inside
    and the bound outside, times 1 / sqrt(N Q_P); s starts at 2 mean |w| / sqrt(Q_P).
    """

    MIN_BITS = 2

    def __init__(self, weight: Tensor, bits: int):
        super().__init__(weight, bits)
        start = 2 * self.weight.detach().abs().mean().clamp_min(1e-12) / self.format.hi**0.5
        self.step = nn.Parameter(start)

    @property
    def format(self) -> Format:
        return Format(Kind.INT, self.bits)

    def scale(self) -> Tensor:
        """|step|, so that an optimiser's step beyond 0 does no more than mirror it."""
        return self.shared(self.step.detach().double().abs().clamp_min(1e-12))

    @torch.no_grad()
    def integers(self) -> Tensor:
        ratio = self.master() / self.scale()[0]
        return round_half_up(ratio).clamp(self.format.lo, self.format.hi).int()

    def surrogate(self) -> Tensor:
        slow = (self.weight.numel() * self.format.hi) ** -0.5
        step = self.step.abs().clamp_min(1e-12)
        step = step * slow + (step * (1 - slow)).detach()
        clipped = (self.weight / step).clamp(self.format.lo, self.format.hi)
        return step * (clipped + (round_half_up(clipped) - clipped).detach())


class DoReFaActivation(ActivationQuantiser):
    """q(clip(y, 0, 1)) of b bits, straight-through inside [0, 1] (DoReFa-Net, section 2.5)."""

    @property
    def format(self) -> Format:
        return Format(Kind.UINT, self.bits)

    def scale(self) -> Tensor:
        return torch.tensor(1 / self.format.hi, dtype=torch.float64)

    def surrogate(self, y: Tensor) -> Tensor:
        return y.clamp(0, 1)


class PACTActivation(ActivationQuantiser):
    """Clips at a learned alpha and quantises [0, alpha] evenly.

    Choi et al., "PACT", 2018, equations 1 to 3: dy/dalpha is 1 from alpha on and 0 below. The paper adds an L2
    penalty on alpha: give `alpha` a weight decay.
    """

    def __init__(self, bits: int, alpha: float = 10.0):
        super().__init__(bits)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    @property
    def format(self) -> Format:
        return Format(Kind.UINT, self.bits)

    def scale(self) -> Tensor:
        return self.alpha.detach().double().clamp_min(1e-12) / self.format.hi

    def surrogate(self, y: Tensor) -> Tensor:
        return torch.where(y >= self.alpha, self.alpha.to(y.dtype), torch.relu(y))
