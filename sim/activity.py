"""Switching activity of the array, reckoned from the words of an instruction in the order of its steps.

The hardware counts the same in `hw/activity.py`, step by step; here whole instructions are taken at once, since each weight plane
meets the same act words again. Words are bits (uint8, 0 or 1), lanes last.
"""

import numpy as np


def plane_pairs(a_bits: int, w_bits: int) -> list[tuple[int, int]]:
    """(act plane, wgt plane), counted from the most significant, in the order of the array's passes: by falling significance, and
    within one from the highest weight plane down."""
    return [(drop - w, w) for drop in range(a_bits + w_bits - 1) for w in range(w_bits) if 0 <= drop - w < a_bits]


def _packed(words: np.ndarray) -> np.ndarray:
    """Bits (..., K) as words of 32 (..., K / 32)."""
    return np.packbits(words, -1).view(np.uint32)


def _distance(a: np.ndarray, b: np.ndarray, axis=None) -> np.ndarray:
    """Bits in which packed words differ, summed over `axis`."""
    return np.bitwise_count(a ^ b).sum(axis, dtype=np.int64)


class _Register:
    """An operand register and its flips so far; `last` is its word, packed (rows, K / 32), None before the first."""

    def __init__(self):
        self.last, self.flips = None, 0

    def take(self, words: np.ndarray):
        """Registers packed words (steps, rows, K / 32) one after the other."""
        self.flips += int(_distance(words[1:], words[:-1]))
        self.jump(words[0], words[-1])

    def jump(self, first: np.ndarray, last: np.ndarray):
        """Registers a sequence whose inner flips are counted already, from `first` to `last`."""
        if self.last is not None:
            self.flips += int(_distance(self.last, first))
        self.last = last

    def passes(self, planes: np.ndarray, order: list[int]):
        """For planes (planes, sequences, steps, rows, K / 32): each sequence goes over its steps once for each plane in `order`.
        Counts the flips within sequences; returns the words that each begins and ends with (sequences, rows, K / 32)."""
        uses = np.bincount(order, minlength=len(planes))
        self.flips += int(uses @ _distance(planes[:, :, 1:], planes[:, :, :-1], (1, 2, 3, 4)))
        for before, after in zip(order, order[1:]):
            self.flips += int(_distance(planes[before, :, -1], planes[after, :, 0]))
        return planes[order[0], :, 0], planes[order[-1], :, -1]


class Activity:
    """Ones of all products, and flips of the act and the wgt register, since the start of a program."""

    def __init__(self):
        self.ones, self.act, self.wgt = 0, _Register(), _Register()

    def conv(self, act: list[np.ndarray], wgt: list[np.ndarray]):
        """A CONV. For each column tile the act words (planes, positions, taps, M, K), which may be one array for all, and the wgt
        words (planes, taps, N, K)."""
        act_order, wgt_order = zip(*plane_pairs(len(act[0]), len(wgt[0])))
        positions, tiles = act[0].shape[1], len(act)
        firsts, lasts, wgt_ends = [], [], []
        packed = lanes = None
        for g, (a, w) in enumerate(zip(act, wgt)):
            if packed is None or a is not act[g - 1]:
                packed, lanes = _packed(a), a.sum((0, 1, 3), dtype=np.int64)  # ones by tap and lane
            self.ones += int((lanes * w.sum((0, 2), dtype=np.int64)).sum())
            first, last = self.act.passes(packed, act_order)
            firsts.append(first)
            lasts.append(last)
            before = self.wgt.flips
            ends = self.wgt.passes(_packed(w)[:, None], wgt_order)
            self.wgt.flips += (self.wgt.flips - before) * (positions - 1)  # every position sees the same weights
            wgt_ends.append([end[0] for end in ends])
        firsts, lasts = (np.stack(ends, 1).reshape(positions * tiles, *packed.shape[-2:]) for ends in (firsts, lasts))
        self.act.flips += int(_distance(lasts[:-1], firsts[1:]))
        self.act.jump(firsts[0], lasts[-1])
        for g, (_, last) in enumerate(wgt_ends):  # from tile to tile, and from the last to the next position's first
            rounds = positions if g < tiles - 1 else positions - 1
            self.wgt.flips += rounds * int(_distance(last, wgt_ends[(g + 1) % tiles][0]))
        self.wgt.jump(wgt_ends[0][0], wgt_ends[-1][1])

    def pool(self, act: np.ndarray):
        """A POOL: act words (steps, M, K)."""
        self.act.take(_packed(act))
