"""Activation codes: unsigned or signed b-bit integers with one scale for each tensor.

code = clip(floor(y / s + 1/2), lo, hi), straight-through inside the range. The scale is learned
(Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2) or calibrated by an
exponential average of a percentile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from seriatim.algo.codes import Codes
from seriatim.algo.quantisers.base import ActivationQuantiser, check_finite
from seriatim.formats import Format, Kind

CHUNK = 65536
"""Elements for each thread of a CPU that go through all steps of quantising at a time, so that they stay in its cache."""


def _chunks(*tensors: torch.Tensor):
    """Matching flat pieces of dense tensors of one layout."""
    count = tensors[0].numel()
    size = CHUNK * torch.get_num_threads() if tensors[0].device.type == "cpu" else max(count, 1)
    return zip(*(t.as_strided((count,), (1,), t.storage_offset()).split(size) for t in tensors))


_shares = 1


@contextmanager
def share_of(count: int) -> Iterator[None]:
    """Within it, a tensor is one of `count` equal shares of a batch, whose losses are averaged: LSQ's gradient is scaled by the
    number of codes in the whole."""
    global _shares
    before, _shares = _shares, count
    try:
        yield
    finally:
        _shares = before


class _Quantise(torch.autograd.Function):
    """Rounding half up and clipping, with LSQ's gradient for log(scale)."""

    @staticmethod
    def forward(ctx, y, log_scale, lo, hi):
        scale = log_scale.exp()
        ratio = torch.empty_like(y)  # dense, whatever y is
        code = torch.empty_like(ratio)
        y = y if y.stride() == ratio.stride() else ratio.copy_(y)
        for source, quotient, rounded in _chunks(y, ratio, code):
            torch.div(source, scale, out=quotient)
            torch.add(quotient, 0.5, out=rounded).floor_().clamp_(lo, hi)
        ctx.save_for_backward(ratio, code, scale)
        ctx.range, ctx.shares = (lo, hi), _shares
        return code

    @staticmethod
    def backward(ctx, grad):
        ratio, code, scale = ctx.saved_tensors
        lo, hi = ctx.range
        grad = grad if grad.stride() == ratio.stride() else torch.empty_like(ratio).copy_(grad)
        inner, steps = torch.empty_like(ratio), None
        # d code / d log s is -ratio inside by the straight-through rule. The network sees
        # code * s, whose own factor s adds `code`: LSQ's  code - ratio  inside, the bound outside.
        for g, r, c, masked in _chunks(grad, ratio, code, inner):
            torch.ops.aten.hardtanh_backward.grad_input(g, r, lo - 0.5, hi + 0.5, grad_input=masked)
            if ctx.needs_input_grad[1]:
                found = torch.dot(g, c) - torch.dot(masked, r)
                steps = found if steps is None else steps + found
            masked.div_(scale)
        if steps is not None:
            steps = steps / (grad.numel() * ctx.shares * hi) ** 0.5
        return inner, steps, None, None


class Activation(ActivationQuantiser):
    """Quantises a layer's output to `bits` (stored) codes.

    Args:
        bits: stored width, 1 to 8.
        signed: int codes (a residual branch without ReLU) instead of uint.
        learned: LSQ's scale; else an exponential average of the `percentile` of |y|.

    The scale starts at the first training batch: the step that minimises its squared error, or where the readers take fewer
    planes, the one whose codes, as they see them, go best with it. (The range of 8 bits would put the threshold of a reader of
    one plane at half the largest value, and hardly a code of it would ever be 1.)

    Attributes:
        reads: planes that the readers take; None for all.

    Raises:
        ConfigError: bits outside 1..8.
    """

    def __init__(self, bits: int, signed=False, learned=True, percentile=0.9999, momentum=0.05):
        super().__init__(bits)
        self.format = Format(Kind.INT if signed else Kind.UINT, bits)
        self.learned, self.percentile, self.momentum, self.reads = learned, percentile, momentum, None
        self._known = False
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=learned)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def scale(self) -> torch.Tensor:
        return self.log_scale.detach().exp().double()

    def encode(self, y: torch.Tensor) -> torch.Tensor:
        return torch.floor(y / self.log_scale.exp() + 0.5).clamp_(self.format.lo, self.format.hi).int()

    @torch.no_grad()
    def _calibrate(self, y: torch.Tensor) -> None:
        sample = y.detach().flatten()[:: max(1, y.numel() // 65536)].float()
        lo, hi = self.format.lo, self.format.hi
        peak = sample.abs() if self.format.lo else sample.clamp_min(0)
        peak = peak.quantile(self.percentile).clamp_min(1e-6)
        if self.learned or not self.started:
            drop = self.format.bits - min(self.reads or self.format.bits, self.format.bits)
            steps = peak / max(hi, 1) * torch.linspace(0.05 if drop else 0.2, 1.2, 47, device=y.device)
            codes = torch.floor(sample[:, None] / steps + 0.5).clamp_(lo, hi)
            wanted = sample.clamp_min(min(lo, 0) * peak)[:, None]
            if drop:
                codes.mul_(2.0**-drop).floor_()
                codes -= codes.mean(0)
                fit = (codes * (wanted - wanted.mean())).sum(0) / codes.norm(dim=0).clamp_min(1e-12)
            else:
                fit = -(codes * steps - wanted).square().sum(0)
            self.log_scale.copy_(steps[fit.argmax()].log())
        else:
            new = (peak / max(hi, 1)).log()
            self.log_scale.lerp_(new, self.momentum)
        self.started.fill_(True)

    def _load_from_state_dict(self, *args, **kw):
        self._known = False
        super()._load_from_state_dict(*args, **kw)

    def _unstarted(self) -> bool:
        """Not started; asks the device only until it has."""
        self._known = self._known or bool(self.started)
        return not self._known

    def quantise(self, y: torch.Tensor) -> Codes:
        if y.dtype in (torch.float16, torch.bfloat16):
            y = y.float()  # autocast: half a code is less than these types resolve
        if self.training and (not self.learned or self._unstarted()):
            self._calibrate(y)
        code = _Quantise.apply(y, self.log_scale, self.format.lo, self.format.hi)
        # the consumers normalise the scale away (batch norm), so LSQ's factor s enters here as one
        return Codes(code, self.log_scale.detach().exp(), self.format)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        check_finite(y, f"{type(self).__name__}: activations")
        return self.quantise(y).real()
