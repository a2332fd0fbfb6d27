"""Requantisation: the one integer definition that PyTorch's eval mode, the ISA simulator and the RTL's tests share."""

import numpy as np


def requant(acc, m, b, shift: int, lo: int, hi: int, res=None, m2: int = 0) -> np.ndarray:
    """q = clip((m * acc + m2 * res + b) >> shift, lo, hi), with a floor shift (the half is folded into b).

    `acc`, `m`, `b` and `res` are integers that broadcast: acc and m of 32 bits, m2 of 32, res of at most 17, b of 64. The products
    have at most 63 and 49 bits and the compiler proves that the sum stays inside 64, so int64 is exact. Returns int64.
    """
    total = np.asarray(m, np.int64) * np.asarray(acc, np.int64) + np.asarray(b, np.int64)
    if res is not None:
        total = total + np.int64(m2) * np.asarray(res, np.int64)
    return np.clip(total >> np.int64(shift), lo, hi)
