"""The layer that all nets are built of: convolution, batch norm, residual add, ReLU, quantiser.

A `Layer` is float until `quantize_` puts quantisers into it; then it passes `Codes` on. The
residual is added before the ReLU, so that the whole tail (batch norm, bias, residual, ReLU, scales)
is one requantisation in the integer network.
"""

import torch
import torch.nn.functional as F
from torch import nn

from seriatim.algo.codes import Codes
from seriatim.algo.quantisers.base import ActivationQuantiser, WeightQuantiser
from seriatim.algo.quantisers.scheme import SLB, Scheme  # noqa: F401  SLB: for those who take it from here
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

IMAGE = Format(Kind.UINT, 8)
"""Format of the stem's input: 8-bit pixels."""

OUTPUTS = {"classifier": 0.01, "image": 0.001}
"""Roles of layers that give a net's output: the deviation of the weights that they start at."""

ROLES = ("stem", "body", *OUTPUTS)


def _pair(value, what: str, least: int) -> tuple[int, int]:
    """`value` for rows and columns: one number for both, or a pair."""
    found = (value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 2 or not all(isinstance(n, int) and n >= least for n in found):
        raise ConfigError(f"{what} {value!r}: give a whole number of at least {least}, or a pair for rows and columns")
    return found


def _border(value) -> tuple[int, int, int, int]:
    """`value` as (top, left, bottom, right): one number, a pair for rows and columns, or all four."""
    if not isinstance(value, int) and len(value) == 4 and all(isinstance(n, int) and n >= 0 for n in value):
        return tuple(value)
    return _pair(value, "padding", 0) * 2


def _padded(x: torch.Tensor, padding: tuple[int, int, int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """`x`, and the padding on both sides that is still to be done: all of it where opposite sides agree."""
    top, left, bottom, right = padding
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom)), (0, 0)


class Layer(nn.Module):
    """conv -> batch norm or bias -> (+ residual) -> (ReLU) -> quantiser.

    Args:
        cin, cout: channels. A fully connected layer is one whose kernel covers the map.
        kernel, stride, dilation: a number, or a pair for rows and columns.
        padding: also (top, left, bottom, right). Its value is 0.
        groups: of channels that are convolved apart; `cin` of them make a depthwise convolution.
        bn: False for a bias instead of batch norm (a low-bit layer then learns a factor for each channel).
        relu: False for a residual branch and for what gives the net's output.
        ceiling: where the float net's ReLU clips (6 for ReLU6), or None; a low-bit net's clips at its largest code.
        wide: the output feeds a residual add: stored with at least 8 bits.
        role: "stem" (reads the image), "body", "classifier" (bias, real logits) or "image" (bias, a residual: real pixels, in
            units of 1/255 as the codes 0..255 that the integer network gives).

    Raises:
        ConfigError: shapes, groups or a role that do not exist.
    """

    def __init__(self, cin, cout, kernel, stride=1, padding=0, *, dilation=1, groups=1, bn=True, relu=True, ceiling=None,
                 wide=False, role="body"):  # fmt: skip
        super().__init__()
        self.stride, self.dilation = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
        self.padding, self.groups = _border(padding), groups
        if min(cin, cout, groups) < 1 or cin % groups or cout % groups:
            raise ConfigError(f"{cin} to {cout} channels in {groups} groups: both must be multiples of the groups")
        if role not in ROLES:
            raise ConfigError(f"role {role!r}: choose one of {', '.join(ROLES)}")
        self.shape = (cout, cin // groups, *_pair(kernel, "kernel", 1))
        self.gives_output = role in OUTPUTS
        self.relu, self.wide, self.role = relu and not self.gives_output, wide, role
        self.ceiling = ceiling
        bn = bn and not self.gives_output
        weight = nn.init.kaiming_normal_(torch.empty(self.shape), mode="fan_out" if bn else "fan_in")
        if self.gives_output:
            weight.normal_(0, OUTPUTS[role])
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bn = nn.BatchNorm2d(cout) if bn else None
        self.bias = None if bn else nn.Parameter(torch.zeros(cout))
        self.quantiser, self.act, self.log_alpha, self.read_bits = None, None, None, None

    def quantize_(self, scheme: Scheme) -> None:
        """Put quantisers in, starting at the float weight, which leaves. Raises ConfigError: see `quantisers`."""
        self.adopt(self.quantisers(scheme))

    def quantisers(
        self, scheme: Scheme | None, weight: WeightQuantiser | None = None
    ) -> tuple[WeightQuantiser, ActivationQuantiser | None, int]:
        """Weight quantiser (`weight`, or a new one), output quantiser and the most planes to read, for `adopt`.

        Raises:
            ConfigError: a scheme that leaves a half float: an integer network has no float layers.
        """
        if scheme is None or scheme.weight is None or scheme.act is None:
            raise ConfigError(
                "a layer of an integer network cannot stay float: give it a scheme with weights and activations, of 8 bits "
                "for instance"
            )
        act = None if self.gives_output else scheme.output(signed=not self.relu, stream=self.wide)
        return weight or scheme.weight_quantiser(self.weight), act, IMAGE.bits if self.role == "stem" else scheme.act_bits

    def adopt(self, quantisers: tuple[WeightQuantiser, ActivationQuantiser | None, int]) -> None:
        start, self.weight = self.weight, None
        self.quantiser, self.act, self.read_bits = quantisers
        if self.bn is None:
            with torch.no_grad():
                fit, channels = self.quantiser(), (1, 2, 3) if self.role != "classifier" else (0, 1, 2, 3)
                ratio = (start * fit).sum(channels) / fit.square().sum(channels).clamp_min(1e-12)
                self.log_alpha = nn.Parameter(torch.zeros_like(ratio))
                self.log_alpha += (ratio / self.factor(fit)).clamp_min(1e-4).log()

    def factor(self, weight: torch.Tensor) -> torch.Tensor:
        """What a low-bit layer without batch norm multiplies its sums with `weight` by: (C,), of a classifier one number.

        A channel's factor is over the root mean square of its weights (a classifier's is not), as in weight normalisation: where
        SLB's weights grow with the falling temperature the gain stays, as it does behind batch norm.
        """
        alpha = self.log_alpha.exp()
        if self.role == "classifier":
            return alpha
        size = weight.square().mean((1, 2, 3)).sqrt()
        return alpha / torch.where(size > 0, size, 1)

    def forward(self, x, residual=None):
        """Float tensors in a float net; Codes in, Codes (where it gives the net's output: reals) out otherwise."""
        quantised = self.quantiser is not None
        weight = self.quantiser() if quantised else self.weight
        codes, padding = _padded(x.read(self.read_bits) if quantised else x, self.padding)
        y = F.conv2d(codes, weight, None, self.stride, padding, self.dilation, self.groups)
        if self.bn is not None:
            y = self.bn(y)
        else:
            if quantised:
                unit = x.unit(self.read_bits) * self.factor(weight)
                y = y * unit.reshape(-1, 1, 1)
            y = y + self.bias.view(-1, 1, 1)
        if residual is not None:
            y = y + (residual.real() if quantised else residual)
        if quantised:
            return y if self.act is None else self.act.quantise(y)
        if not self.relu:
            return y
        return torch.relu(y) if self.ceiling is None else y.clamp(0, self.ceiling)


class MaxPool(nn.Module):
    """Maximum over windows, of codes as of reals: rounding is monotone, so the two agree.

    Args:
        kernel, stride, padding: a number, or a pair for rows and columns.
    """

    def __init__(self, kernel, stride=None, padding=0):
        super().__init__()
        self.kernel = _pair(kernel, "kernel", 1)
        self.stride = self.kernel if stride is None else _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)

    def forward(self, x):
        if isinstance(x, Codes):
            return x._replace(tensor=F.max_pool2d(x.tensor, self.kernel, self.stride, self.padding))
        return F.max_pool2d(x, self.kernel, self.stride, self.padding)


class AveragePool(nn.Module):
    """Mean over windows, zeros of the padding counted too; quantised again, to what its readers take.

    Args:
        kernel, stride, padding: a number, or a pair for rows and columns; no kernel: the whole map.
    """

    def __init__(self, kernel=None, stride=None, padding=0):
        super().__init__()
        self.kernel = None if kernel is None else _pair(kernel, "kernel", 1)
        self.stride = self.kernel if stride is None else _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.act = None

    def quantize_(self, scheme: Scheme) -> None:
        self.act = scheme.activation()

    def forward(self, x):
        y = x if self.act is None else x.real()
        if self.kernel is None:
            y = y.mean((2, 3), keepdim=True)
        else:
            y = F.avg_pool2d(y, self.kernel, self.stride, self.padding)
        return y if self.act is None else self.act.quantise(y)


class Dropout(nn.Dropout):
    """For the training of float nets: codes pass through, as everything does in eval mode."""

    def forward(self, x):
        return x if isinstance(x, Codes) else super().forward(x)
