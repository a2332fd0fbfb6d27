"""WEQ: levels that maximise the weighted entropy.

Park et al., "Weighted-Entropy-based Quantization for Deep Neural Networks", CVPR 2017. Weights, section 4.1
and Algorithm 1: the sorted importances w^2 are cut into clusters that maximise
S = -sum I_n P_n log P_n (I: mean importance, P: share of the weights). Activations, section 4.2 and
Algorithm 2: logarithmic levels whose offset and base, in sixteenths of an octave, maximise S.
"""

import math

import numpy as np
import torch
from torch import Tensor

from seriatim.algo.quantisers.base import ActivationQuantiser, MasterWeight, table_unit
from seriatim.algo.quantisers.logarithm import (
    OCTAVE,
    log_format,
    log_scale,
    power,
    thresholds,
)  # fmt: skip
from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind

MAX_STEP = 32
"""Largest distance of two activation levels that is searched: two octaves."""

MAX_SHIFT = 32
"""Most octaves between two activation levels, so that their integers fit 48 bits."""

OFFSETS = 512
"""Positions below the largest activation that are searched for the smallest level: 32 octaves."""


class Importances:
    """Sorted importances and the weighted entropy of their partitions. A partition is its cuts,
    c_0 = 0 < c_1 < ... < c_N = n."""

    def __init__(self, importances: np.ndarray):
        self.sorted = np.sort(np.asarray(importances, dtype=np.float64))
        self.n = len(self.sorted)
        self._sums = np.concatenate([[0.0], np.cumsum(self.sorted)])
        lengths = np.arange(self.n + 1, dtype=np.float64)
        lengths[0] = 1  # an empty cluster's sum is 0 as well
        self._logs = np.log(lengths / self.n)

    def part(self, i, j):
        """I P log P of the cluster i..j-1, negated: what it adds to S."""
        return (self._sums[i] - self._sums[j]) * self._logs[np.subtract(j, i)] / self.n

    def entropy(self, cuts: np.ndarray) -> float:
        """S of a partition."""
        return float(self.part(cuts[:-1], cuts[1:]).sum())

    def search(self, clusters: int) -> np.ndarray:
        """Cuts by Algorithm 1: from clusters of equal counts, each cut in turn to its best place
        between its neighbours, while S increases. A local optimum."""
        cuts = np.linspace(0, self.n, clusters + 1).astype(np.int64)
        best, moved = self.entropy(cuts), True
        while moved:
            moved = False
            for k in range(1, clusters):
                places = np.arange(cuts[k - 1] + 1, cuts[k + 1])
                both = self.part(cuts[k - 1], places) + self.part(places, cuts[k + 1])
                trial = cuts.copy()
                trial[k] = places[both.argmax()]
                entropy = self.entropy(trial)
                if entropy > best:
                    cuts, best, moved = trial, entropy, True
        return cuts

    def optimum(self, clusters: int) -> np.ndarray:
        """Cuts of the largest S, by dynamic programming over the number of clusters.

        With F the running sum, part(i, j) = -(F(j) - F(i)) log((j - i) / n) / n has the mixed derivative
        (F'(i) + F'(j) - (F(j) - F(i)) / (j - i)) / (j - i) / n, not negative since F' ascends: the best
        predecessor of j ascends with j. So O(clusters n log n) finds the same as trying all.
        """
        n = self.n
        best = self.part(0, np.arange(n + 1))
        before = []
        for k in range(2, clusters + 1):
            ends = np.arange(k, n + 1) if k < clusters else np.array([n])
            choice, value = self._extend(best, ends, k - 1)
            best = np.full(n + 1, -np.inf)
            best[ends] = value
            previous = np.zeros(n + 1, dtype=np.int64)
            previous[ends] = choice
            before.append(previous)
        cuts = [n]
        for previous in reversed(before):
            cuts.append(int(previous[cuts[-1]]))
        return np.array([0, *cuts[::-1]])

    def _extend(self, best: np.ndarray, ends: np.ndarray, least: int):
        """For each end j the start i in least..j-1 of the largest best[i] + part(i, j), and that value.
        Solves every second end between the starts that its solved neighbours chose."""
        choice, value = np.zeros(len(ends), np.int64), np.zeros(len(ends))
        stride = 1 << max(len(ends) - 1, 0).bit_length()
        while stride:
            at = np.arange(stride - 1, len(ends), 2 * stride)
            if len(at):
                left, right = at - stride, at + stride
                low = np.where(left >= 0, choice[left.clip(0)], least)
                bounded = np.minimum(choice[right.clip(max=len(ends) - 1)], ends[at] - 1)
                high = np.where(right < len(ends), bounded, ends[at] - 1)
                choice[at], value[at] = self._best_starts(best, ends[at], low, high)
            stride //= 2
        return choice, value

    def _best_starts(self, best, ends, low, high):
        counts = high - low + 1
        begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
        starts = np.arange(counts.sum()) - np.repeat(begin - low, counts)
        values = best[starts] + self.part(starts, np.repeat(ends, counts))
        top = np.maximum.reduceat(values, begin)
        hits = np.flatnonzero(values == np.repeat(top, counts))
        return starts[hits[np.searchsorted(hits, begin)]], top

    def levels(self, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Representatives r_k = sqrt(I_k), and the boundaries sqrt(s[c_k]) between them (one fewer)."""
        sums = self._sums[cuts[1:]] - self._sums[cuts[:-1]]
        return np.sqrt(sums / np.diff(cuts)), np.sqrt(self.sorted[cuts[1:-1]])


class WEQWeight(MasterWeight):
    """Codebook weights by weighted entropy, clustered anew for every forward pass; straight-through.

    The table holds the negative levels from -r_{N/2-1} up, then the others: 2^b entries.

    Args:
        exact: the optimum by dynamic programming; else Algorithm 1.
        folded: cluster |w| of both signs together, as the authors' code does: a symmetric table. Else
            negative and non-negative weights apart, as the paper says.
    """

    def __init__(self, weight: Tensor, bits: int, exact: bool = False, folded: bool = True):
        super().__init__(weight, bits)
        self.exact, self.folded = exact, folded

    def _levels(self, magnitudes: np.ndarray):
        """Representatives (2^(b-1), padded with the last) and boundaries of one sign's magnitudes."""
        half = 2 ** (self.bits - 1)
        if not len(magnitudes):
            return np.zeros(half), np.empty(0)
        found = Importances(np.square(magnitudes))
        clusters = min(half, found.n)
        cuts = found.optimum(clusters) if self.exact else found.search(clusters)
        levels, boundaries = found.levels(cuts)
        return np.pad(levels, (0, half - clusters), mode="edge"), boundaries

    def _quantise(self) -> tuple[Tensor, Format, float]:
        """Codes, format and unit."""
        w = self.master().cpu().numpy()
        negative = w < 0
        if self.folded:
            lower = upper = self._levels(np.abs(w).ravel())
        else:
            lower, upper = self._levels(-w[negative]), self._levels(w[~negative])
        unit = table_unit(max(lower[0].max(), upper[0].max()))
        half = 2 ** (self.bits - 1)
        below = half - 1 - np.searchsorted(lower[1], -w, side="right")
        above = half + np.searchsorted(upper[1], w, side="right")
        codes = torch.from_numpy(np.where(negative, below, above).astype(np.int32))
        table = np.rint(np.concatenate([-lower[0][::-1], upper[0]]) / unit).astype(np.int64)
        return codes.to(self.weight.device), Format(Kind.CODEBOOK, self.bits, table=tuple(table.tolist())), unit

    @property
    def format(self) -> Format:
        return self._quantise()[1]

    @torch.no_grad()
    def codes(self) -> Tensor:
        return self._quantise()[0]

    def scale(self) -> Tensor:
        return self.shared(self._quantise()[2])

    @torch.no_grad()
    def real(self) -> Tensor:
        codes, form, unit = self._quantise()
        return torch.tensor(form.table, dtype=torch.float64, device=codes.device)[codes.long()] * unit


def possible_steps(bits: int, max_shift: int) -> list[int]:
    """Even steps, up to `MAX_STEP`, with at most `max_shift` octaves between the smallest and the largest level.

    Raises:
        ConfigError: max_shift outside 1..`MAX_SHIFT`, or none is small enough.
    """
    if not 1 <= max_shift <= MAX_SHIFT:
        raise ConfigError(f"WEQ: max_shift={max_shift}: a shifter has 1 to {MAX_SHIFT} places")
    gaps = 2**bits - 2
    steps = [s for s in range(2, MAX_STEP + 1, 2) if s * gaps <= OCTAVE * max_shift]
    if not steps:
        raise ConfigError(
            f"WEQ: activations of {bits} bits with max_shift={max_shift}: even the smallest step spans "
            f"{2 * gaps / OCTAVE:g} octaves; use fewer bits or a wider shifter"
        )
    return steps


def search_levels(activations: Tensor, bits: int, max_shift: int) -> tuple[int, int, float]:
    """(fsr, step, S) of the largest weighted entropy for 2^bits levels of non-negative activations.

    Args:
        max_shift: most octaves from the smallest level to the largest: the shifter's width.

    Raises:
        ConfigError: no activation is positive, or no step fits `max_shift`.
    """
    count = 2**bits - 1
    peak = float(activations.max())
    if not peak > 0:
        raise ConfigError(
            "WEQ: no activation is positive: there is no range to search; the layer's ReLU is dead, "
            "lower the learning rate"
        )
    highest = math.floor(OCTAVE * math.log2(peak)) + 1
    lowest = highest - OFFSETS
    edges = torch.tensor([power(e) for e in range(lowest, highest + 1)], dtype=torch.float64)
    place = torch.bucketize(activations.double().flatten().cpu(), edges, right=True)
    counted = torch.bincount(place, minlength=len(edges) + 1)[1:]
    reached = counted.flip(0).cumsum(0).flip(0).numpy()  # activations at or above each edge
    total, level = activations.numel(), np.arange(count)
    best = None
    for step in possible_steps(bits, max_shift):
        first = np.arange(lowest, highest + 1)[:, None] + step // 2
        at = first - step // 2 + step * np.arange(count + 1) - lowest
        above = np.where(at < len(reached), reached[at.clip(max=len(reached) - 1)], 0)
        above[:, -1] = 0  # the top level takes everything beyond
        share = (above[:, :-1] - above[:, 1:]) / total
        # relative to the peak's octave, so that doubled activations give doubled entropies bit for bit
        value = 2.0 ** ((first - highest + step * level) / OCTAVE)
        entropies = -(value * share * np.log(np.where(share > 0, share, 1))).sum(1)
        k = int(entropies.argmax())
        if best is None or entropies[k] > best[2]:
            best = int(first[k, 0]), step, float(entropies[k])
    return best[0], best[1], best[2] * 2.0 ** (highest / OCTAVE)


class WEQActivation(ActivationQuantiser):
    """ReLU and 2^b levels 0, 2^(fsr/16), 2^((fsr+step)/16), ...: log codes, fsr in the scale.

    fsr and step are searched on every training batch, as in the paper; the last stay for inference.
    A batch without a positive activation leaves them. Straight-through from 0 to the largest level.
    """

    even = False

    def __init__(self, bits: int, max_shift: int = 15):
        super().__init__(bits)
        self.max_shift = max_shift
        possible_steps(bits, max_shift)
        self.register_buffer("fsr", torch.tensor(0))
        self.register_buffer("step", torch.tensor(2))

    @property
    def format(self) -> Format:
        return log_format(self.bits, int(self.step), signed=False)

    @torch.no_grad()
    def observe(self, y: Tensor) -> None:
        if not (y > 0).any():
            return
        fsr, step, _ = search_levels(y.clamp_min(0), self.bits, self.max_shift)
        self.fsr.fill_(fsr)
        self.step.fill_(step)

    def thresholds(self) -> Tensor:
        return thresholds(int(self.fsr), int(self.step), 2**self.bits - 1)

    def scale(self) -> Tensor:
        return torch.tensor(log_scale(int(self.fsr), int(self.step)), dtype=torch.float64)

    def surrogate(self, y: Tensor) -> Tensor:
        return y.clamp(0, 2.0 ** ((int(self.fsr) + int(self.step) * (2**self.bits - 2)) / OCTAVE))


def layer_widths(scheme: str, layers: int, first: int = 6, last: int = 2) -> list[int]:
    """Widths for each layer by the schemes of the paper's Table 2, all of the same total.

    The widths fall evenly from `first` to `last` (dec) or are the same ones in another order: rising (inc),
    large in the middle (concave), large at both ends (convex, the best top-5 there).

    Raises:
        ConfigError: an unknown scheme, no layer, or widths outside 1..8.
    """
    if layers < 1 or not 1 <= last <= first <= 8:
        raise ConfigError(
            f"layer widths from {first} to {last} for {layers} layers: choose 1 <= last <= first <= 8 and a layer or more"
        )
    falling = [math.floor(first - (first - last) * i / max(layers - 1, 1) + 0.5) for i in range(layers)]
    orders = {
        "dec": falling,
        "inc": falling[::-1],
        "convex": falling[::2] + falling[1::2][::-1],
        "concave": falling[::-1][::2] + falling[::-1][1::2][::-1],
    }
    if scheme not in orders:
        raise ConfigError(f"layer widths {scheme!r}: choose one of {', '.join(orders)}")
    return orders[scheme]
