"""Requantisation: the one integer function between an accumulator and the next layer's codes."""

import numpy as np


def requant(acc, m, b, shift: int, lo: int, hi: int, res=None, m2: int = 0) -> np.ndarray:
    """clip((m * acc + m2 * res + b) >> shift, lo, hi) in int64, floor shift.

    Rounding half up is the caller's: half of 2^shift is part of `b`.

    No overflow: |acc|, |m|, |m2| and |res| are below 2^31, so each product is below 2^62 and their
    sum below 2^63 - 2^32; the exporter and the compiler prove from the layer's own accumulator
    bound that the sum with `b` fits 64 bits too. Outside that proof the result wraps, as int64 does.

    Args:
        acc: integer accumulators (N, C, H, W).
        m, b: integers that broadcast against `acc`: (C,) stands for (C, 1, 1).
        shift: 0 to 63.
        lo, hi: bounds of the result.
        res: integer values of the residual, shaped like `acc`, or None.
        m2: the residual's multiplier.

    Returns:
        int64 codes shaped like `acc`.

    Raises:
        ValueError: shift outside 0..63, or lo above hi.
    """
    if not 0 <= shift <= 63:
        raise ValueError(f"shift {shift}: 64-bit sums are shifted by 0 to 63")
    if lo > hi:
        raise ValueError(f"bounds {lo} to {hi}: lo must not be above hi")
    m, b = (np.asarray(a, np.int64) for a in (m, b))
    m, b = (a.reshape(-1, 1, 1) if a.ndim == 1 else a for a in (m, b))
    total = m * np.asarray(acc, np.int64) + b
    if res is not None:
        total = total + np.int64(m2) * np.asarray(res, np.int64)
    return np.clip(total >> np.int64(shift), lo, hi)


def encode(v, thresholds) -> np.ndarray:
    """Codes of a layer whose levels are not evenly spaced: how many of the ascending `thresholds` each v has reached.

    v is what `requant` gives without bounds (32 bits of it are enough).
    """
    return np.searchsorted(np.asarray(thresholds, np.int64), np.asarray(v, np.int64), side="right")
