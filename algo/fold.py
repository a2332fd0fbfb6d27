"""Folding a layer's tail into integers: q = clip((m acc + m2 res + b) >> S), and its proof.

The trained function counts the edges that M acc + R res + B reaches, with real M, R, B: a monotone
step function of the accumulator for each channel and residual value. Edges at lo + 1/2, lo + 3/2, ... are
clip(floor(M acc + R res + B + 1/2), lo, hi); levels that are not evenly spaced have a table of them, which the integer
function rounds to thresholds. Two such functions are equal
exactly when they agree at each threshold T and at T - 1, so that b is chosen, where it can be, from
the interval in which every threshold agrees, and a channel without such a b is reported.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from seriatim.errors import CompileError

INT32_MAX = 2**31 - 1
WIDE_MAX = 2**48 - 1
"""Largest sum of log and codebook formats."""

KEPT, KEPT_BESIDE = 30, 24
"""Bits of the accumulators of log and codebook formats: alone, and where a residual is added to them."""

EDGE_BITS = 30
"""Magnitude bits of the largest threshold of a table."""


@dataclass(frozen=True)
class Tail:
    """The trained tail of one layer in float64, taken as exact rationals.

    Args:
        scale, offset: M and B (C,); `residual` is R.
        bound: (C,) largest |acc| that the channel's weights and input format allow.
        lo, hi: clip of the codes.
        residuals: every value that the residual takes (int64), or () for none.
        edges: (hi - lo,) float64, ascending, where the codes lo + 1, ... begin, in units of M acc; None: evenly, lo + 1/2, ...
    """

    scale: np.ndarray
    offset: np.ndarray
    bound: np.ndarray
    lo: int
    hi: int
    residual: float = 0.0
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    edges: np.ndarray | None = None

    @property
    def starts(self) -> np.ndarray:
        """(hi - lo,) float64: what M acc + R res + B must reach for each code above lo."""
        return np.arange(self.lo + 1, self.hi + 1) - 0.5 if self.edges is None else self.edges

    @property
    def half(self) -> float:
        """What b adds to B for the integer thresholds to stand for these."""
        return 0.5 if self.edges is None else 0.0

    @property
    def thresholds(self) -> np.ndarray:
        """(hi - lo,) int64 that (m acc + m2 res + b) >> S is compared with: the codes themselves, or the rounded edges."""
        if self.edges is None:
            return np.arange(self.lo + 1, self.hi + 1, dtype=np.int64)
        nearest = np.rint(self.edges).astype(np.int64)
        return np.where((self.edges > 0) & (nearest == 0), 1, nearest)  # so that 0 stays below a small edge


@dataclass(frozen=True)
class Folded:
    """Integer parameters: m int32 (C,), b int64 (C,), m2, shift."""

    m: np.ndarray
    b: np.ndarray
    m2: int
    shift: int


@dataclass(frozen=True)
class Proof:
    """What `prove` found for one layer.

    Attributes:
        channels, proven: how many there are, and for how many the two functions are equal.
        failing: {channel: thresholds that differ}.
        thresholds: how many were compared, over all channels and residual values.
    """

    name: str
    channels: int
    failing: dict[int, int]
    thresholds: int

    @property
    def proven(self) -> int:
        return self.channels - len(self.failing)


def dropped(tail: Tail, linear: bool, name: str) -> tuple[Tail, int]:
    """The tail of sums that leave out their lowest D bits, and D: 0 of linear operands, else so many that `KEPT` bits are left,
    or `KEPT_BESIDE` where the residual's multiplier, of 32 bits, bounds the shift and with it the precision of m.

    A sum without its lowest bits stands for the middle of those that it may have been.

    Raises:
        CompileError: a sum above 48 bits.
    """
    worst = int(tail.bound.max())
    if linear:
        return tail, 0
    if worst > WIDE_MAX:
        raise CompileError(
            f"{name}: a sum can reach {worst}, above {WIDE_MAX} (48 bits): use fewer bits, a smaller base, or fewer input "
            "channels"
        )
    drop = max(0, worst.bit_length() - (KEPT_BESIDE if tail.residual else KEPT))
    unit = 2.0**drop
    middle = tail.scale * (unit - 1) / 2
    bound = np.floor(tail.bound / unit) + (drop > 0)
    return replace(tail, scale=tail.scale * unit, offset=tail.offset + middle, bound=bound), drop


def fold(tail: Tail, name: str) -> Folded:
    """m, m2 and b with the largest shift whose products and sum provably fit.

    Raises:
        CompileError: an accumulator above 32 bits, values that are not finite, or no shift fits.
    """
    if not (np.isfinite(tail.scale).all() and np.isfinite(tail.offset).all()):
        raise CompileError(
            f"{name}: scale or offset is not finite; the statistics or the scale of this layer are "
            "broken, train or calibrate it again"
        )
    worst = int(tail.bound.max())
    if worst > INT32_MAX:
        raise CompileError(
            f"{name}: an accumulator can reach {worst}, above {INT32_MAX} (32 bits): use fewer bits "
            "or fewer input channels"
        )
    largest = max(float(np.abs(tail.scale).max()), abs(tail.residual), 2.0**-40)
    reach = int(np.abs(tail.residuals).max())
    # beyond this a channel is saturated for every accumulator: a larger offset changes nothing
    span = np.abs(tail.scale) * tail.bound + abs(tail.residual) * reach
    low, high = (tail.lo, tail.hi) if tail.edges is None else (tail.edges[0], tail.edges[-1])
    offset = np.clip(tail.offset, low - 2 - span, high + 2 + span)
    top = 62 - int(max(abs(low), high + 1)).bit_length()
    for shift in range(min(62, top), -1, -1):
        unit = 2.0**shift
        if largest * unit > INT32_MAX - 1:
            continue
        m = np.rint(tail.scale * unit).astype(np.int64)
        m2 = round(tail.residual * unit)
        biggest = np.abs(m).astype(float) * tail.bound + abs(m2) * reach
        if (biggest + np.abs((offset + 1) * unit)).max() < 2.0**62:
            b = np.rint((offset + tail.half) * unit).astype(np.int64)
            return Folded(m, b, m2, shift)
    raise CompileError(
        f"{name}: scale {largest:g} with accumulators up to {worst} leaves no shift for 64-bit sums; "
        "the layer's statistics are broken, calibrate it again"
    )


def _ceiling(numerator: np.ndarray, magnitude: np.ndarray, scale: float, exactly) -> np.ndarray:
    """ceil(numerator / scale) proven: where float64 is too close to an integer, by rationals."""
    quotient = numerator / scale
    result = np.ceil(quotient)
    error = (magnitude / abs(scale) + np.abs(quotient)) * 2.0**-50
    close = np.abs(quotient - np.rint(quotient)) <= error
    for index in zip(*np.nonzero(close), strict=True):
        result[index] = exactly(*index)
    return result


def _thresholds(tail: Tail, channel: int) -> np.ndarray:
    """(codes, residuals) smallest sign * acc that gives code t or more, clipped to what is reachable:
    [-bound, bound + 1]. sign is that of the channel's scale, which must not be 0."""
    scale, offset, bound = (float(a[channel]) for a in (tail.scale, tail.offset, tail.bound))
    starts = tail.starts[:, None]
    values = tail.residuals[None, :]
    numerator = starts - offset - tail.residual * values
    magnitude = np.abs(starts) + 1 + abs(offset) + np.abs(tail.residual * values)
    magnitude = np.broadcast_to(magnitude, numerator.shape)

    def exactly(i, j):
        exact = Fraction(float(starts[i, 0])) - Fraction(offset)
        exact -= Fraction(tail.residual) * int(values[0, j])
        return min(max(-((-exact) // Fraction(abs(scale))), -bound), bound + 1)

    found = _ceiling(numerator, magnitude, abs(scale), exactly)
    return np.clip(found, -bound, bound + 1).astype(np.int64)


def _check(tail: Tail, folded: Folded, channel: int) -> tuple[int, int, int, int]:
    """(least b, least b too large, thresholds that differ, thresholds) of one channel."""
    scale, bound, b = tail.scale[channel], int(tail.bound[channel]), int(folded.b[channel])
    target = (tail.thresholds[:, None] << folded.shift) - folded.m2 * tail.residuals[None, :]
    if scale == 0 or bound == 0:
        start = Fraction(float(tail.offset[channel]))
        trained = np.array(
            [start + Fraction(tail.residual) * int(r) for r in tail.residuals], dtype=object
        )
        edges = np.array([Fraction(float(edge)) for edge in tail.starts], dtype=object)[:, None]
        reached = trained[None, :] >= edges
        wrong = int(((b >= target) != reached.astype(bool)).sum())
        return b if not wrong else 1, b + 1 if not wrong else 0, wrong, target.size
    m = int(folded.m[channel]) * (1 if scale > 0 else -1)
    at = _thresholds(tail, channel)
    reachable, avoidable = at <= bound, at > -bound
    need = target - m * at
    below = need + m
    least = int(need[reachable].max(initial=-(2**62)))
    limit = int(below[avoidable].min(initial=2**62))
    wrong = int(((need > b) & reachable | (below <= b) & avoidable).sum())
    return least, limit, wrong, target.size


def refine(tail: Tail, folded: Folded) -> Folded:
    """The same with each channel's b moved, where needed and possible, to where every threshold
    agrees: then the integer function is the trained one for every reachable accumulator."""
    b = folded.b.copy()
    for channel in range(len(b)):
        least, limit, wrong, _ = _check(tail, folded, channel)
        if wrong and least < limit:
            b[channel] = (least + limit) // 2
    return Folded(folded.m, b, folded.m2, folded.shift)


def prove(tail: Tail, folded: Folded, name: str) -> Proof:
    """Compare the integer function with the trained one at every threshold T and T - 1.

    Every channel, every code and every residual code is covered; the comparison is exact.
    """
    failing, thresholds = {}, 0
    for channel in range(len(folded.b)):
        _, _, wrong, count = _check(tail, folded, channel)
        thresholds += count
        if wrong:
            failing[channel] = wrong
    return Proof(name, len(folded.b), failing, thresholds)
