"""Levels 0 and +-2^(k / r): LogQuant, and what WEQ's activations share with it.

Positions are counted in sixteenths of an octave: `first` is that of the smallest magnitude, `step` (even)
the distance of two. So the thresholds half way between are whole sixteenths too, and rounding a logarithm
is an exact comparison with a power of a root of two.
"""

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from seriatim.algo.quantisers.base import ActivationQuantiser, MasterWeight, place
from seriatim.errors import ConfigError
from seriatim.formats import LOG_FRACTION_BITS, Format, Kind

OCTAVE = 16
CANDIDATES = 8
"""Full-scale ranges that an activation's first batch is tried with."""


@cache
def _root(residue: int) -> float:
    """The smallest float64 not below 2^(residue / 16), 0 <= residue < 16."""
    found = 2.0 ** (residue / OCTAVE)
    while Fraction(found) ** OCTAVE >= 2**residue:
        found = math.nextafter(found, 0)
    while Fraction(found) ** OCTAVE < 2**residue:
        found = math.nextafter(found, 4)
    return found


def power(position: int) -> float:
    """The smallest float64 not below 2^(position / 16)."""
    octave, residue = divmod(position, OCTAVE)
    return math.ldexp(_root(residue), octave)


def thresholds(first: int, step: int, count: int) -> Tensor:
    """(count,) float64: the smallest magnitudes that round to levels 1 to `count`."""
    return torch.tensor([power(first + step * m - step // 2) for m in range(count)], dtype=torch.float64)


def magnitude_codes(x: Tensor, first: int, step: int, count: int) -> Tensor:
    """Codes 0 to `count` of float64 magnitudes: round((16 log2 x - first) / step) + 1, half up, clipped."""
    return place(x, thresholds(first, step, count))


def log_format(bits: int, step: int, signed: bool) -> Format:
    shared = math.gcd(OCTAVE, step)
    return Format(Kind.LOG, bits, residues=OCTAVE // shared, signed=signed, step=step // shared)


def log_scale(first: int, step: int) -> float:
    """Scale of the integer values of `log_format`: the smallest magnitude over its integer."""
    return 2.0 ** (first / OCTAVE) * (2.0**-LOG_FRACTION_BITS if step % OCTAVE else 1.0)


def _step(root: int) -> int:
    if root not in (1, 2):
        raise ConfigError(f"LogQuant: root={root}: the base is 2 (root=1) or sqrt(2) (root=2)")
    return OCTAVE // root


def _range_of(peak: float, root: int) -> int:
    """FSR whose largest level is the one that `peak` rounds to."""
    return math.floor(root * math.log2(peak) + 0.5) + 1 if peak > 0 else 0


class LogQuantWeight(MasterWeight):
    """sign(w) 2^(e / root), e = round(root log2 |w|); signed log codes, straight-through gradient.

    Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", 2016, section 3:
    2^(b-1) - 1 magnitudes with e up to FSR - 1; what rounds below them is 0.

    Args:
        root: 1 for base 2, 2 for base sqrt(2).
        fsr: full-scale range in units of 1 / root octaves; None follows the largest weight.
    """

    MIN_BITS, MAX_BITS = 2, 6

    def __init__(self, weight: Tensor, bits: int, root: int = 1, fsr: int | None = None):
        super().__init__(weight, bits)
        self.root, self.fsr, self.step = root, fsr, _step(root)

    @property
    def format(self) -> Format:
        return log_format(self.bits, self.step, signed=True)

    @property
    def _count(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def _first(self) -> int:
        fsr = self.fsr
        if fsr is None:
            fsr = _range_of(float(self.master().abs().max()), self.root)
        return self.step * (fsr - self._count)

    @torch.no_grad()
    def codes(self) -> Tensor:
        w = self.master()
        magnitude = magnitude_codes(w.abs(), self._first(), self.step, self._count)
        return magnitude + ((w < 0) & (magnitude > 0)).int() * 2 ** (self.bits - 1)

    def scale(self) -> Tensor:
        return self.shared(log_scale(self._first(), self.step))


class LogQuantActivation(ActivationQuantiser):
    """0 and 2^b - 1 powers of the base up to FSR - 1, straight-through from 0 to the largest.

    The first training batch sets FSR: that of the least squared error among the `CANDIDATES` largest.
    """

    MAX_BITS = 5
    even = False

    def __init__(self, bits: int, root: int = 1, fsr: int | None = None):
        super().__init__(bits)
        self.root, self.step = root, _step(root)
        self.register_buffer("fsr", torch.tensor(0 if fsr is None else fsr))
        self.register_buffer("started", torch.tensor(fsr is not None))

    @property
    def format(self) -> Format:
        return log_format(self.bits, self.step, signed=False)

    @property
    def _count(self) -> int:
        return 2**self.bits - 1

    def _first(self) -> int:
        return self.step * (int(self.fsr) - self._count)

    @torch.no_grad()
    def observe(self, y: Tensor) -> None:
        if self.started:
            return
        x = y.double().clamp_min(0)
        largest = _range_of(float(x.max()), self.root)
        errors = []
        for fsr in range(largest, largest - CANDIDATES, -1):
            self.fsr.fill_(fsr)
            errors.append(float((self.real(x) - x).square().sum()))
        self.fsr.fill_(largest - errors.index(min(errors)))
        self.started.fill_(True)

    def thresholds(self) -> Tensor:
        return thresholds(self._first(), self.step, self._count)

    def scale(self) -> Tensor:
        return torch.tensor(log_scale(self._first(), self.step), dtype=torch.float64)

    def surrogate(self, y: Tensor) -> Tensor:
        return y.clamp(0, 2.0 ** ((int(self.fsr) - 1) / self.root))
