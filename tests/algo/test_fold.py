from fractions import Fraction

import numpy as np
import pytest

from seriatim.algo.fold import Folded, Tail, fold, prove, refine
from seriatim.errors import CompileError
from seriatim.sim.requant import requant


def random_tail(rng, residual: bool, bits=4, channels=6, bound=300) -> Tail:
    scale = rng.normal(0, 0.1, channels)
    extra = {}
    if residual:
        extra = {"residual": float(rng.normal(0, 0.7)), "residuals": np.arange(-8, 8)}
    return Tail(
        scale, rng.normal(3, 4, channels), np.full(channels, float(bound)), 0, 2**bits - 1, **extra
    )


def trained(tail: Tail, channel: int, acc: int, res: int) -> int:
    """The step function that was trained, in rationals."""
    real = Fraction(float(tail.scale[channel])) * acc + Fraction(tail.residual) * res
    real += Fraction(float(tail.offset[channel])) + Fraction(1, 2)
    return min(max(real.__floor__(), tail.lo), tail.hi)


def differing(tail: Tail, folded: Folded) -> set[int]:
    """Channels in which any reachable accumulator and residual give another code: all are tried."""
    wrong, bound = set(), int(tail.bound[0])
    acc = np.arange(-bound, bound + 1)
    for channel in range(len(folded.b)):
        for res in tail.residuals:
            found = requant(
                acc, folded.m[channel], folded.b[channel], folded.shift, tail.lo, tail.hi,
                np.full(acc.shape, res), folded.m2,
            )  # fmt: skip
            expected = [trained(tail, channel, int(a), int(res)) for a in acc]
            if (found != expected).any():
                wrong.add(channel)
    return wrong


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_proof_finds_exactly_the_channels_that_differ(seed, residual):
    print("seed", seed)
    tail = random_tail(np.random.default_rng(seed), residual)
    folded = fold(tail, "layer")
    assert set(prove(tail, folded, "layer").failing) == differing(tail, folded)
    coarse = 2.0 ** (folded.shift - 7)
    poor = Folded(
        np.rint(folded.m / coarse).astype(np.int64), np.rint(folded.b / coarse).astype(np.int64),
        round(folded.m2 / coarse), 7,
    )  # fmt: skip
    found = differing(tail, poor)
    assert found and set(prove(tail, poor, "layer").failing) == found


@pytest.mark.parametrize("seed", range(3))
def test_refining_mends_what_rounding_broke(seed):
    print("seed", seed)
    tail = random_tail(np.random.default_rng(seed), False, bound=100)
    folded = fold(tail, "layer")
    broken = Folded(folded.m, folded.b + (1 << folded.shift - 3), folded.m2, folded.shift)
    assert prove(tail, broken, "layer").failing
    mended = refine(tail, broken)
    assert not prove(tail, mended, "layer").failing and not differing(tail, mended)


def test_thresholds_on_integers_are_met_exactly():
    """M = 1/2, B = 0: every threshold t - 1/2 is met by an integer accumulator exactly."""
    tail = Tail(np.array([0.5, -0.5]), np.zeros(2), np.full(2, 600.0), 0, 255)
    folded = fold(tail, "layer")
    assert not prove(tail, folded, "layer").failing and not differing(tail, folded)
    low = Folded(folded.m, folded.b - 1, 0, folded.shift)
    assert len(prove(tail, low, "layer").failing) == 2


def test_dead_channel_and_large_offsets():
    tail = Tail(np.array([0.0, 1e-9, 0.1]), np.array([2.5, 1e12, -1e15]), np.full(3, 50.0), 0, 15)
    folded = fold(tail, "layer")
    assert not differing(tail, folded) and not prove(tail, folded, "layer").failing


def test_multipliers_use_their_bits():
    folded = fold(random_tail(np.random.default_rng(1), True), "layer")
    largest = max(abs(folded.m).max(), abs(folded.m2))
    assert 1 << 29 <= largest < 1 << 31 and 0 <= folded.shift <= 63


def test_refuses_what_cannot_fit():
    with pytest.raises(CompileError, match="stem.*32 bits"):
        fold(Tail(np.ones(1), np.zeros(1), np.array([2.0**31]), 0, 255), "stem")
    with pytest.raises(CompileError, match="not finite"):
        fold(Tail(np.array([np.nan]), np.zeros(1), np.ones(1), 0, 255), "stem")
