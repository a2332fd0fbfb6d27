"""LQ-Net: levels are the sums +-v_1 +- ... +-v_b of a learned basis.

Zhang et al., "LQ-Nets", ECCV 2018, sections 3.2 and 3.3. Weights have a basis for each output channel and
signs; activations one for the tensor and the bits 0 and 1, so that 0 is a level. Every forward pass in
training does one step of QEM (nearest level, then least squares), averaged into the basis.
"""

import torch
from torch import Tensor

from seriatim.algo.quantisers.base import ActivationQuantiser, MasterWeight, table_unit
from seriatim.formats import Format, Kind

MAX_BITS = 4
MOMENTUM = 0.9
START_STEPS = 20
"""Steps of QEM, not averaged, that the first basis is fitted with."""


def patterns(bits: int, low: int) -> Tensor:
    """(2^bits, bits) float64: what each code's bits stand for, `low` or 1, least significant first."""
    bit = torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1
    return torch.where(bit == 1, 1, low).double()


def tables(basis: Tensor, low: int) -> tuple[Tensor, float]:
    """(R, 2^b) int64 levels of each row's basis (R, b), and their unit. The basis is rounded, so the
    levels stay sums of it."""
    unit = table_unit(float(basis.abs().sum(1).max()))
    rounded = torch.round(basis / unit)
    return (rounded @ patterns(basis.shape[1], low).to(basis.device).T).long(), unit


def nearest(x: Tensor, levels: Tensor) -> Tensor:
    """(R, n) int64 codes of the level (R, 2^b) next to each x (R, n), the upper one half way between."""
    ordered, code = levels.double().sort(dim=1, stable=True)
    middle = (ordered[:, 1:] + ordered[:, :-1]) / 2
    place = torch.searchsorted(middle.contiguous(), x.contiguous(), right=True)
    return code.gather(1, place)


def fit(x: Tensor, codes: Tensor, bits: int, low: int) -> Tensor:
    """(R, b) the basis of least squared error for given codes, from each code's count and sum."""
    rows = x.shape[0], 2**bits
    count = torch.zeros(rows, dtype=torch.float64, device=x.device)
    count.scatter_add_(1, codes, torch.ones_like(x))
    total = torch.zeros_like(count).scatter_add_(1, codes, x)
    p = patterns(bits, low).to(x.device)
    gram = p.T @ (count[:, :, None] * p)
    # codes that never differ in a bit leave its share open: a vanishing ridge shares it evenly
    gram = gram + 1e-9 * x.shape[1] * torch.eye(bits, dtype=torch.float64, device=x.device)
    return torch.linalg.solve(gram, (total @ p)[..., None])[..., 0]


def qem(x: Tensor, basis: Tensor, low: int) -> Tensor:
    """One step: the nearest levels of `basis` for x (R, n), then the best basis for these."""
    levels, unit = tables(basis, low)
    return fit(x, nearest(x / unit, levels), basis.shape[1], low)


def start(x: Tensor, bits: int, low: int) -> Tensor:
    """A basis for x (R, n): evenly spaced levels over twice the mean magnitude, then QEM."""
    span = 2 * x.abs().mean(1, keepdim=True).clamp_min(1e-12)
    basis = span / (2**bits - 1) * 2.0 ** torch.arange(bits, dtype=torch.float64, device=x.device)
    for _ in range(START_STEPS):
        basis = qem(x, basis, low)
    return basis


def _format(bits: int, table: Tensor) -> Format:
    return Format(Kind.CODEBOOK, bits, table=tuple(table.tolist()))


class LQNetWeight(MasterWeight):
    """Codebook weights of a learned basis, straight-through gradient.

    Args:
        channelwise: a basis for each output channel, as in the paper; else one for the layer.
    """

    MAX_BITS = MAX_BITS

    def __init__(self, weight: Tensor, bits: int, channelwise: bool = True):
        super().__init__(weight, bits)
        self.channelwise = channelwise
        self.register_buffer("basis", start(self._rows(), bits, -1))

    def _rows(self) -> Tensor:
        w = self.master()
        return w.flatten(1) if self.channelwise else w.reshape(1, -1)

    @property
    def formats(self) -> tuple[Format, ...]:
        return tuple(_format(self.bits, row) for row in tables(self.basis.double(), -1)[0])

    @torch.no_grad()
    def codes(self) -> Tensor:
        levels, unit = tables(self.basis.double(), -1)
        return nearest(self._rows() / unit, levels).view(self.weight.shape).int()

    def scale(self) -> Tensor:
        return self.shared(tables(self.basis.double(), -1)[1])

    def forward(self) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.basis.lerp_(qem(self._rows(), self.basis.double(), -1).to(self.basis.dtype), 1 - MOMENTUM)
        return super().forward()


class LQNetActivation(ActivationQuantiser):
    """Codebook activations of a learned basis; the gradient passes from 0 to the top level."""

    MAX_BITS = MAX_BITS
    even = False

    def __init__(self, bits: int):
        super().__init__(bits)
        self.register_buffer("basis", 2.0 ** torch.arange(bits, dtype=torch.float64)[None])
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def _levels(self) -> tuple[Tensor, float]:
        """The integer levels, ascending from 0, and their unit: a code is the rank of its level."""
        levels, unit = tables(self.basis.double().clamp_min(0), 0)
        return levels[0].sort().values, unit

    @property
    def format(self) -> Format:
        return _format(self.bits, self._levels()[0])

    def thresholds(self) -> Tensor:
        levels, unit = self._levels()
        return (levels[1:] + levels[:-1]).double() / 2 * unit

    def scale(self) -> Tensor:
        return torch.tensor(self._levels()[1], dtype=torch.float64)

    @torch.no_grad()
    def observe(self, y: Tensor) -> None:
        x = y.double().clamp_min(0).reshape(1, -1)
        if not self.started:
            self.basis.copy_(start(x, self.bits, 0))
            self.started.fill_(True)
        else:
            self.basis.lerp_(qem(x, self.basis.double(), 0).to(self.basis.dtype), 1 - MOMENTUM)

    def surrogate(self, y: Tensor) -> Tensor:
        top = float(self.scale()) * max(self.format.values)
        return y.clamp(0, top)
