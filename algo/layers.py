"""The layer that all nets are built of: convolution, batch norm, residual add, ReLU, quantiser.

A `Layer` is float until `quantize_` puts quantisers into it; then it passes `Codes` on. The
residual is added before the ReLU, so that the whole tail (batch norm, bias, residual, ReLU, scales)
is one requantisation in the integer network.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from seriatim.algo.acts import Activation, Codes
from seriatim.algo.slb import MAX_SLB_BITS, TAU_START, SLBWeight, UniformWeight
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

IMAGE = Format(Kind.UINT, 8)
"""Format of the stem's input: 8-bit pixels."""

SIGNED_BITS = 8
STREAM_BITS = 8


@dataclass(frozen=True)
class SLB:
    """Quantisation by SLB.

    Args:
        weight_bits: 1..4 SLB levels, 5..8 uniform int weights.
        act_bits: 1..8, what every layer but the stem reads.
        first_last: None, or 8 for int8 weights in the stem and the classifier.
        tau: temperature that the logits start at.
        learned_scales: LSQ scales for the activations, else calibrated ones.

    Raises:
        ConfigError: a width outside 1..8, or first_last neither None nor 8.
    """

    weight_bits: int = 1
    act_bits: int = 8
    first_last: int | None = None
    tau: float = TAU_START
    learned_scales: bool = True

    def __post_init__(self):
        for name, bits in (("W", self.weight_bits), ("A", self.act_bits)):
            if not isinstance(bits, int) or not 1 <= bits <= 8:
                raise ConfigError(f"{name}={bits}: widths are 1 to 8 bits; choose one of these")
        if self.first_last not in (None, 8):
            raise ConfigError(
                f"FIRST_LAST={self.first_last}: leave it out (the stem and the classifier get W bits) "
                "or set 8"
            )

    def weight(self, layer: "Layer", start: torch.Tensor | None) -> nn.Module:
        bits = self.first_last if self.first_last and layer.role != "body" else self.weight_bits
        shape = tuple(layer.shape)
        if bits <= MAX_SLB_BITS:
            return SLBWeight(shape, bits, start, self.tau)
        return UniformWeight(shape, bits, start)


class Layer(nn.Module):
    """conv -> batch norm or bias -> (+ residual) -> (ReLU) -> quantiser.

    Args:
        cin, cout: channels.
        kernel, stride, padding: square, or a pair for the kernel.
        relu: False for a residual branch and the classifier.
        wide: the output feeds a residual add: stored with at least 8 bits.
        role: "stem" (reads the image), "body" or "classifier" (bias, no batch norm, real logits).
    """

    def __init__(self, cin, cout, kernel, stride=1, padding=0, *, relu=True, wide=False, role="body"):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        self.shape, self.stride, self.padding = (cout, cin, *kernel), stride, padding
        self.relu, self.wide, self.role = relu, wide, role
        weight = nn.init.kaiming_normal_(torch.empty(self.shape), mode="fan_out")
        classifier = role == "classifier"
        if classifier:
            weight.normal_(0, 0.01)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bn = None if classifier else nn.BatchNorm2d(cout)
        self.bias = nn.Parameter(torch.zeros(cout)) if classifier else None
        self.quantiser, self.act, self.log_alpha, self.read_bits = None, None, None, None

    def quantize_(self, config: SLB) -> None:
        """Put quantisers in, starting at the float weight, which leaves."""
        start, self.weight = self.weight, None
        self.quantiser = config.weight(self, start)
        self.read_bits = IMAGE.bits if self.role == "stem" else config.act_bits
        if self.role == "classifier":
            with torch.no_grad():
                fit = self.quantiser()
                ratio = (start * fit).sum() / fit.square().sum()
            self.log_alpha = nn.Parameter(ratio.clamp_min(1e-4).log())
        elif self.relu:
            stored = max(config.act_bits, STREAM_BITS) if self.wide else config.act_bits
            self.act = Activation(stored, learned=config.learned_scales)
        else:
            self.act = Activation(SIGNED_BITS, signed=True, learned=config.learned_scales)

    def forward(self, x, residual=None):
        """Float tensors in a float net; Codes in, Codes (the classifier: logits) out otherwise."""
        quantised = self.quantiser is not None
        weight = self.quantiser() if quantised else self.weight
        codes = x.read(self.read_bits) if quantised else x
        y = F.conv2d(codes, weight, None, self.stride, self.padding)
        if self.bn is not None:
            y = self.bn(y)
        else:
            if quantised:
                unit = x.scale * 2.0 ** (x.format.bits - self.read_bits) * self.log_alpha.exp()
                y = y * unit
            y = y + self.bias.view(-1, 1, 1)
        if residual is not None:
            y = y + (residual.real() if quantised else residual)
        if quantised:
            return y if self.act is None else self.act(y)
        return torch.relu(y) if self.relu else y


class MaxPool(nn.Module):
    """Maximum over windows, of codes as of reals: rounding is monotone, so the two agree."""

    def __init__(self, kernel, stride, padding=0):
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x):
        if isinstance(x, Codes):
            return x._replace(tensor=F.max_pool2d(x.tensor, self.kernel, self.stride, self.padding))
        return F.max_pool2d(x, self.kernel, self.stride, self.padding)


class GlobalPool(nn.Module):
    """Mean over the whole map; quantised again, to what the classifier reads."""

    def __init__(self):
        super().__init__()
        self.act = None

    def quantize_(self, config: SLB) -> None:
        self.act = Activation(config.act_bits, learned=config.learned_scales)

    def forward(self, x):
        if self.act is None:
            return x.mean((2, 3), keepdim=True)
        return self.act(x.real().mean((2, 3), keepdim=True))
