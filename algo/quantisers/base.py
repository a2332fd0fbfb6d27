"""The interface of all quantisers, and the one way from integer codes to real values.

A quantiser's real values are exactly `scale * format.values[code]`, in float64: its forward pass
returns them (cast to the dtype of its input), with the gradient of a surrogate that each paper
defines. So the integer form needs no conversion and cannot differ from what was trained.
"""

import torch
from torch import Tensor, nn

from seriatim.algo.codes import Codes
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

TABLE_BITS = 15
"""Magnitude bits of the largest entry of a codebook."""


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, surrogate, quantised):
        return quantised

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def straight(surrogate: Tensor, quantised: Tensor) -> Tensor:
    """`quantised`, bit for bit, with the gradient of `surrogate` (of the same shape)."""
    return _Straight.apply(surrogate, quantised)


def round_half_up(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5)


def elementwise(function, x: Tensor) -> Tensor:
    """`function` of the elements of x as a flat tensor, in the memory layout of x (searching and indexing would lose it)."""
    if not (x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        x = x.contiguous()
    return function(x.as_strided((x.numel(),), (1,), x.storage_offset())).as_strided(x.shape, x.stride())


def place(x: Tensor, thresholds: Tensor) -> Tensor:
    """How many of the ascending float64 `thresholds` each x has reached (int32), exactly."""
    edges = thresholds.to(x.device, x.dtype)
    edges = torch.where(edges.double() < thresholds.to(x.device), torch.nextafter(edges, edges.new_tensor(torch.inf)), edges)
    return elementwise(lambda flat: torch.bucketize(flat, edges, out_int32=True, right=True), x)


def encode(integers: Tensor, form: Format) -> Tensor:
    """Codes (int32) of integer values in a linear format: the inverse of `decode`."""
    if form.kind is Kind.BIPOLAR:
        return (integers.int() + 2**form.bits - 1) // 2
    return integers.int() + form.zero


def decode(codes: Tensor, forms: tuple[Format, ...]) -> Tensor:
    """Integer values (int64) of codes in one format, or one for each output channel (first axis)."""
    if len(forms) == 1 and forms[0].linear:
        return forms[0].value(codes.long())
    table = torch.tensor([form.values for form in forms], dtype=torch.int64, device=codes.device)
    if len(forms) == 1:
        return elementwise(lambda flat: table[0][flat], codes)
    return table.gather(1, codes.flatten(1).long()).view(codes.shape)


def levels_format(levels: list[int]) -> Format:
    """The narrowest format for these ascending integer levels: uint, bipolar or int where it has just
    these values (int: without its lowest), else a codebook, its table padded with the last level."""
    count = len(levels)
    bits = max(1, (count - 1).bit_length())
    if levels == list(range(2**bits)):
        return Format(Kind.UINT, bits)
    if levels == [2 * i - (2**bits - 1) for i in range(2**bits)]:
        return Format(Kind.BIPOLAR, bits)
    if levels == list(range(1 - 2 ** (bits - 1), 2 ** (bits - 1))):
        return Format(Kind.INT, bits)
    return Format(Kind.CODEBOOK, bits, table=tuple(levels) + (levels[-1],) * (2**bits - count))


def table_unit(largest: float) -> float:
    """2^-F with `largest` = R 2^-F, 2^14 <= R <= 2^15: the unit of a codebook's integers."""
    if largest == 0:
        return 1.0
    return 2.0 ** (torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item() - TABLE_BITS)


def check_bits(bits, lo: int, hi: int, what: str) -> None:
    """Raises ConfigError unless `bits` is an int within lo..hi."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not lo <= bits <= hi:
        raise ConfigError(f"{what} of {bits} bits: choose {lo}" + (f" to {hi}" if hi > lo else ""))


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises ConfigError for NaN, infinity, integers or an empty tensor."""
    if not tensor.is_floating_point():
        raise ConfigError(f"{what} of type {tensor.dtype}: a quantiser takes floating point; convert with .float()")
    if tensor.numel() == 0:
        raise ConfigError(f"{what} of shape {tuple(tensor.shape)}: there is nothing to quantise; leave this layer out")
    if not torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ConfigError(
            f"{what}: {bad} of {tensor.numel()} values are NaN or infinite; training has diverged, "
            "go back to an earlier state with a lower learning rate"
        )


def check_weight(weight: Tensor, name: str) -> None:
    """Raises ConfigError for fewer than two axes, and as `check_finite`."""
    if weight.ndim < 2:
        raise ConfigError(
            f"{name}: weight of shape {tuple(weight.shape)}: it has output channels first and at least "
            "one more axis; leave biases and norms out"
        )
    check_finite(weight, f"{name}: weight")


class WeightQuantiser(nn.Module):
    """A layer's weight, output channels first, and how it is quantised.

    Attributes:
        bits: of a code.
        formats: one `Format` for the tensor, or one for each output channel.
    """

    bits: int

    @property
    def formats(self) -> tuple[Format, ...]:
        return (self.format,)

    @property
    def format(self) -> Format:
        """The tensor's format.

        Raises:
            ConfigError: every output channel has its own (`formats`).
        """
        if len(self.formats) > 1:
            raise ConfigError(
                f"{type(self).__name__}: each output channel has its own {self.formats[0]}; read `formats`, "
                "or share one table over the layer (channelwise=False)"
            )
        return self.formats[0]

    @property
    def export_format(self) -> Format:
        """How integer networks name the format: a codebook without its table, which the values say."""
        form = self.formats[0]
        return Format(Kind.CODEBOOK, form.bits) if form.kind is Kind.CODEBOOK else form

    def codes(self) -> Tensor:
        """int32 codes in the weight's shape (`int` formats: signed)."""
        return encode(self.integers(), self.format)

    def integers(self) -> Tensor:
        """Integer values of the codes."""
        return decode(self.codes(), self.formats)

    def scale(self) -> Tensor:
        """(O,) float64, one for each output channel."""
        raise NotImplementedError

    @torch.no_grad()
    def real(self) -> Tensor:
        """The quantised weight in float64: scale * integers."""
        integers = self.integers()
        return integers.double() * self.scale().view(-1, *(1,) * (integers.ndim - 1))

    def inference(self) -> Tensor:
        """The float64 weight that eval mode computes with."""
        return self.real()

    def after_step(self) -> None:
        """What the paper does after the optimiser's step."""

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """What the paper does before an epoch, counted from 0."""


class MasterWeight(WeightQuantiser):
    """Keeps a float master weight; the forward pass returns the quantised one.

    Args:
        weight: (O, ...) the float weight to start at, of two axes or more.

    Raises:
        ConfigError: bits outside `MIN_BITS`..`MAX_BITS`, or a weight of fewer axes, empty or not finite.
    """

    MIN_BITS, MAX_BITS = 1, 8

    def __init__(self, weight: Tensor, bits: int):
        super().__init__()
        name = type(self).__name__
        check_bits(bits, self.MIN_BITS, self.MAX_BITS, f"{name}: weights")
        check_weight(weight, name)
        self.bits = bits
        self.weight = nn.Parameter(weight.detach().clone())

    def master(self) -> Tensor:
        """The float weight in float64, without gradient.

        Raises:
            ConfigError: it holds NaN or infinity.
        """
        check_finite(self.weight, f"{type(self).__name__}: weight")
        return self.weight.detach().double()

    def surrogate(self) -> Tensor:
        """What the gradient is taken of: the master weight, straight through."""
        return self.weight

    def forward(self) -> Tensor:
        return straight(self.surrogate(), self.real().to(self.weight.dtype))

    def shared(self, scale) -> Tensor:
        """(O,) float64 of one scale for the whole tensor."""
        device = self.weight.device
        return torch.as_tensor(scale, dtype=torch.float64, device=device).expand(self.weight.shape[0])


class ActivationQuantiser(nn.Module):
    """Quantises a layer's output, any shape; one scale for the tensor. A larger code is a larger value.

    Attributes:
        bits: of a code.
        format: of the codes.
        even: code = clip(floor(y / scale + 1/2 + `bias`), lo, hi); else the number of `thresholds` that y has reached.

    Raises:
        ConfigError: bits outside `MIN_BITS`..`MAX_BITS`.
    """

    MIN_BITS, MAX_BITS = 1, 8
    format: Format
    even = True
    bias = 0.0

    def __init__(self, bits: int):
        super().__init__()
        check_bits(bits, self.MIN_BITS, self.MAX_BITS, f"{type(self).__name__}: activations")
        self.bits = bits

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """What the paper does before an epoch, counted from 0."""

    def observe(self, y: Tensor) -> None:
        """Called with every training batch before it is quantised."""

    def thresholds(self) -> Tensor:
        """(2^bits - 1,) float64, ascending: the smallest y of codes 1, 2, ... where they are not `even`."""
        raise NotImplementedError

    def encode(self, y: Tensor) -> Tensor:
        """int32 codes of finite values, in the precision that they come in."""
        if not self.even:
            return place(y, self.thresholds())
        scale = self.scale().to(y.device, y.dtype)
        return torch.floor(y / scale + (0.5 + self.bias)).clamp_(self.format.lo, self.format.hi).int()

    @torch.no_grad()
    def codes(self, y: Tensor) -> Tensor:
        """int32 codes of y.

        Raises:
            ConfigError: y is empty, no floating point, or holds NaN or infinity.
        """
        check_finite(y, f"{type(self).__name__}: activations")
        return self.encode(y)

    def scale(self) -> Tensor:
        """0-dim float64."""
        raise NotImplementedError

    def surrogate(self, y: Tensor) -> Tensor:
        """What the gradient is taken of."""
        raise NotImplementedError

    @torch.no_grad()
    def real(self, y: Tensor) -> Tensor:
        """The quantised y in float64: scale * format.values[code]."""
        return decode(self.codes(y), (self.format,)).double() * self.scale()

    def quantise(self, y: Tensor) -> Codes:
        """y as `Codes`, for this project's layers: values and scale apart, unchecked."""
        if self.training:
            self.observe(y.detach())
        scale = self.scale().to(y.device, y.dtype)
        with torch.no_grad():
            values = decode(self.encode(y), (self.format,)).to(y.dtype)
        return Codes(straight(self.surrogate(y) / scale, values), scale, self.format)

    def forward(self, y: Tensor) -> Tensor:
        """The quantised y in its dtype.

        Raises:
            ConfigError: y is empty, no floating point, or holds NaN or infinity.
        """
        if self.training:
            check_finite(y, f"{type(self).__name__}: activations")
            self.observe(y.detach())
        return straight(self.surrogate(y), self.real(y).to(y.dtype))
