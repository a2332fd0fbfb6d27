"""BinaryConnect and XNOR-Net: weights and activations of one bit, bipolar1."""

import torch
from torch import Tensor

from seriatim.algo.quantisers.base import ActivationQuantiser, MasterWeight, straight
from seriatim.formats import Format, Kind

BIPOLAR1 = Format(Kind.BIPOLAR, 1)


def sign(x: Tensor) -> Tensor:
    """+1 for x >= 0, else -1 (int32)."""
    return torch.where(x >= 0, 1, -1).int()


class SignWeight(MasterWeight):
    """Weights that are the signs of their master copy."""

    MAX_BITS = 1

    @property
    def format(self) -> Format:
        return BIPOLAR1

    @torch.no_grad()
    def integers(self) -> Tensor:
        return sign(self.master())


class BinaryConnectWeight(SignWeight):
    """+-1 by the sign, straight-through gradient; the optimiser's step is followed by a clip to [-1, 1].

    Courbariaux et al., "BinaryConnect", NeurIPS 2015, section 2. `stochastic` draws +1 with probability
    clip((w + 1) / 2, 0, 1) in training, from torch's global generator; the integers are deterministic.
    """

    def __init__(self, weight: Tensor, bits: int = 1, stochastic: bool = False):
        super().__init__(weight, bits)
        self.stochastic = stochastic

    def scale(self) -> Tensor:
        return self.shared(1.0)

    def forward(self) -> Tensor:
        if not (self.stochastic and self.training):
            return super().forward()
        probability = ((self.master() + 1) / 2).clamp(0, 1)
        drawn = 2 * torch.bernoulli(probability) - 1
        return straight(self.weight, drawn.to(self.weight.dtype))

    @torch.no_grad()
    def after_step(self) -> None:
        self.weight.clamp_(-1, 1)


class XNORWeight(SignWeight):
    """alpha sign(w), alpha = mean |w| of the output channel.

    Rastegari et al., "XNOR-Net", ECCV 2016, sections 3.1 and 3.2; the gradient is the paper's,
    dC/dw = dC/dw~ (1/n + alpha [|w| < 1]) with n weights in a channel.
    """

    def scale(self) -> Tensor:
        return self.master().flatten(1).abs().mean(1)

    def surrogate(self) -> Tensor:
        alpha = self.scale().view(-1, *(1,) * (self.weight.ndim - 1)).to(self.weight.dtype)
        return self.weight / self.weight[0].numel() + alpha * self.weight.clamp(-1, 1)


class SignActivation(ActivationQuantiser):
    """The sign, with the gradient of clip(y, -1, 1) (XNOR-Net, section 3.2).

    The paper's factor K, which differs by output position, is left out: a tensor has one scale.
    """

    MAX_BITS = 1
    format = BIPOLAR1
    bias = 0.5

    def __init__(self, bits: int = 1):
        super().__init__(bits)

    def encode(self, y: Tensor) -> Tensor:
        return (y >= 0).int()

    def scale(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def surrogate(self, y: Tensor) -> Tensor:
        return y.clamp(-1, 1)
