"""SLB weights: each weight is a distribution over 2^b levels that sharpens into one of them.

Yang et al., "Searching for Low-Bit Weights in Quantized Neural Networks", NeurIPS 2020, section 3.
The levels are l = 2 i - (2^b - 1) and stand for l / (2^b - 1), evenly spread over [-1, 1]; in
training the weight is its expectation W_c under P = softmax(A / tau), afterwards the level of the
largest logit, W_q. |W_c - W_q| vanishes with tau (see `gap_bound`).
"""

import math
from functools import cache

import torch
from torch import nn

from seriatim.algo.quantisers.base import WeightQuantiser
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

MAX_SLB_BITS = 4
TAU_START = 0.1
INITIAL_SPREAD = 2.0
"""Standard deviations of a float weight that become the value 1 at initialisation."""


def levels(bits: int) -> torch.Tensor:
    """The 2^bits odd integer levels, ascending (int32)."""
    return 2 * torch.arange(2**bits, dtype=torch.int32) - (2**bits - 1)


def level_values(bits: int, dtype=torch.float32) -> torch.Tensor:
    """What the levels stand for: l / (2^bits - 1), in [-1, 1]."""
    return levels(bits).to(dtype) / (2**bits - 1)


CHUNK = 16384
"""Weights for each thread of a CPU that go through all steps of the expectation at a time, so that they stay in its cache."""

STARTS = ("weight", "normal", "he")


@cache
def _values(bits: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return level_values(bits, dtype).to(device)


def _pieces(logits: torch.Tensor, *others: torch.Tensor):
    """Matching pieces: of logits (..., m) as (m, n), of the others, which have a weight's shape, as (n,)."""
    planes = logits.movedim(-1, 0).reshape(logits.shape[-1], -1)
    size = CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else max(planes.shape[1], 1)
    return zip(planes.split(size, 1), *(t.reshape(-1).split(size) for t in others))


def _by_planes(logits: torch.Tensor) -> torch.Tensor:
    """Like the logits (..., m), uninitialised, each level's contiguous."""
    return logits.new_empty(logits.shape[-1], *logits.shape[:-1]).movedim(0, -1)


class _Expectation(torch.autograd.Function):
    """W_c = sum_i P_i v_i with dW_c/dA_i = P_i (v_i - W_c) / tau. Keeps no P: the backward pass computes it again."""

    @staticmethod
    def forward(ctx, logits, values, tau):
        weight = logits.new_empty(logits.shape[:-1])
        for some, w in _pieces(logits, weight):
            torch.mv(torch.softmax(some * (1 / tau), 0).T, values, out=w)
        ctx.save_for_backward(logits, values, weight)
        ctx.tau = tau
        return weight

    @staticmethod
    def backward(ctx, grad):
        logits, values, weight = ctx.saved_tensors
        slope = _by_planes(logits)
        pieces = zip(_pieces(logits, weight, grad.contiguous()), _pieces(slope))
        for (some, w, g), (out,) in pieces:
            torch.sub(values[:, None], w, out=out)
            out.mul_(torch.softmax(some * (1 / ctx.tau), 0)).mul_(g * (1 / ctx.tau))
        return slope, None, None


class _Tanh(torch.autograd.Function):
    """W_c = tanh(d / (2 tau)) with d = A_1 - A_0: the expectation for one bit."""

    @staticmethod
    def forward(ctx, difference, tau):
        weight = torch.mul(difference, 0.5 / tau).tanh_()
        ctx.save_for_backward(weight)
        ctx.tau = tau
        return weight

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, weight).mul_(0.5 / ctx.tau), None


def normalise(weight: torch.Tensor, spread: float = INITIAL_SPREAD) -> torch.Tensor:
    """`weight` in units of `spread` standard deviations of its output channel, within +-0.98."""
    unit = spread * deviations(weight)
    return (weight / unit.view(-1, *(1,) * (weight.ndim - 1))).clamp(-0.98, 0.98)


def deviations(weight: torch.Tensor) -> torch.Tensor:
    """(O,) standard deviation of each output channel."""
    return weight.flatten(1).std(1, correction=0).clamp_min(1e-12)


def logits_for(target: torch.Tensor, bits: int, tau: float) -> torch.Tensor:
    """Logits (..., 2^bits) whose expectation at `tau` is `target`, peaked at the level next to it.

    A_i / tau = theta v_i - kappa v_i^2: a discretised Gaussian as wide as two thirds of a step,
    tilted by theta until its mean is right (a table of the monotone function, interpolated).
    """
    values = level_values(bits, target.dtype).to(target.device)
    kappa = 0.5 * ((2**bits - 1) / 2 * 1.5) ** 2
    knots = torch.linspace(-0.98, 0.98, 4097, dtype=torch.float64)
    fine = level_values(bits, torch.float64)
    low = torch.full_like(knots, -4 * kappa - 20)
    high = -low
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.softmax(middle[:, None] * fine - kappa * fine**2, -1) @ fine < knots
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    place = (target.clamp(-0.98, 0.98) + 0.98) * (4096 / 1.96)
    left = place.long().clamp_(max=4095)
    table = low.to(target.device, target.dtype)
    theta = torch.lerp(table[left], table[left + 1], place - left)
    return tau * (theta[..., None] * values - kappa * values**2)


def gap_bound(logits: torch.Tensor, bits: int, tau: float) -> torch.Tensor:
    """Upper bound of |W_c - W_q|: max |v_i - v*| (2^b - 1) exp(-D / tau), D the top logits' gap."""
    values = level_values(bits, logits.dtype)
    top = logits.topk(2, -1)
    best = values[top.indices[..., 0]]
    spread = (values - best[..., None]).abs().amax(-1)
    return spread * (2**bits - 1) * torch.exp(-(top.values[..., 0] - top.values[..., 1]) / tau)


class SLBWeight(WeightQuantiser):
    """The SLB weight of one layer.

    One bit keeps the single logit d = A_1 - A_0 (W_c = tanh(d / (2 tau))), more bits keep all
    2^bits. `hard` uses W_q in the forward pass, which gives the logits no gradient.

    Args:
        shape: of the weight, output channels first.
        bits: 1 to 4.
        weight: a trained float weight to start at, or None for random logits.
        start: "weight" (where there is one), or logits from scratch: "normal" from N(0, deviation), "he" from N(0, 2 / fan in).
        deviation: of the normal start (default: tau).
        channel_scale: learn a factor for each output channel, which starts at `INITIAL_SPREAD` standard deviations of the
            channel's float weights.

    Raises:
        ConfigError: bits outside 1..4, tau not positive, or another start.
    """

    def __init__(self, shape, bits: int, weight: torch.Tensor | None = None, tau=TAU_START, *, start="weight",
                 deviation: float | None = None, channel_scale=False):  # fmt: skip
        super().__init__()
        if not 1 <= bits <= MAX_SLB_BITS:
            raise ConfigError(
                f"SLB weights of {bits} bits: it searches among 2^b levels, b = 1 to {MAX_SLB_BITS}; "
                "choose one of these, or uniform weights for 5 to 8"
            )
        if not tau > 0:
            raise ConfigError(f"SLB: temperature {tau}: it must be positive")
        if start not in STARTS:
            raise ConfigError(f"SLB: start {start!r}: choose one of {', '.join(STARTS)}")
        self.bits, self.tau, self.hard = bits, tau, False
        if weight is None or start != "weight":
            wide = (2 / max(math.prod(shape[1:]), 1)) ** 0.5 if start == "he" else tau if deviation is None else deviation
            full = tuple(shape) if bits == 1 else (*shape, 2**bits)
            logits = torch.randn(full) * (wide * 2**0.5 if bits == 1 else wide)  # one bit: the difference of two
        elif bits == 1:
            logits = 2 * tau * torch.atanh(normalise(weight.detach()))
        else:
            logits = logits_for(normalise(weight.detach()), bits, tau)
        self.logits = nn.Parameter(logits if bits == 1 else _by_planes(logits).copy_(logits))
        self.log_scale = None
        if channel_scale:
            own = torch.ones(shape[0]) if weight is None else INITIAL_SPREAD * deviations(weight.detach())
            self.log_scale = nn.Parameter(own.log())

    @property
    def format(self) -> Format:
        return Format(Kind.BIPOLAR, self.bits)

    def forward(self) -> torch.Tensor:
        """The weight of the training graph, in [-1, 1] times the channel's scale."""
        weight = self.expectation() if not self.hard else self.integers().to(self.logits.dtype) / (2**self.bits - 1)
        if self.log_scale is None:
            return weight
        return weight * self.log_scale.exp().view(-1, *(1,) * (weight.ndim - 1))

    def expectation(self) -> torch.Tensor:
        """W_c, in [-1, 1]."""
        if self.bits == 1:
            return _Tanh.apply(self.logits, self.tau)
        return _Expectation.apply(self.logits, _values(self.bits, self.logits.dtype, self.logits.device), self.tau)

    @torch.no_grad()
    def integers(self) -> torch.Tensor:
        """W_q as int32 levels (odd). A tie takes the upper level of one bit, else the lowest."""
        if self.bits == 1:
            return torch.where(self.logits >= 0, 1, -1).int()
        return 2 * self.logits.argmax(-1).int() - (2**self.bits - 1)

    def scale(self) -> torch.Tensor:
        """(O,) float64: W_q = integers() * scale."""
        unit = torch.full((self.logits.shape[0],), 1 / (2**self.bits - 1), dtype=torch.float64, device=self.logits.device)
        return unit if self.log_scale is None else unit * self.log_scale.detach().double().exp()


class UniformWeight(WeightQuantiser):
    """Uniform int(bits) weights, one scale for each output channel, straight-through gradient.

    What `quant=slb` uses for 5 to 8 bits, where searching 2^b levels is too costly.
    The scale is max |w| / (2^(bits-1) - 1) of the channel.
    """

    def __init__(self, shape, bits: int, weight: torch.Tensor | None = None):
        super().__init__()
        if not 2 <= bits <= 8:
            raise ConfigError(f"uniform weights of {bits} bits: choose 2 to 8, or SLB for 1 bit")
        self.bits = bits
        if weight is None:
            weight = nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out")
        self.weight = nn.Parameter(weight.detach().clone())

    @property
    def format(self) -> Format:
        return Format(Kind.INT, self.bits)

    @torch.no_grad()
    def peak(self) -> torch.Tensor:
        """(O,) largest magnitude of each output channel."""
        return self.weight.flatten(1).abs().amax(1).clamp_min(1e-12)

    def _step(self) -> torch.Tensor:
        step = self.peak() / (2 ** (self.bits - 1) - 1)
        return step.view(-1, *(1,) * (self.weight.ndim - 1))

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            step = self._step()
            rounded = torch.floor(self.weight / step + 0.5) * step
        return self.weight + (rounded - self.weight).detach()

    @torch.no_grad()
    def integers(self) -> torch.Tensor:
        """int32 weights within +-(2^(bits-1) - 1)."""
        return torch.floor(self.weight / self._step() + 0.5).int()

    def scale(self) -> torch.Tensor:
        """(O,) float64: the weight is integers() * scale."""
        return self._step().flatten().double()
