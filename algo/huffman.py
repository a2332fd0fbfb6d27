"""Canonical Huffman codes over small alphabets, and the entropy that bounds them.

Huffman, "A Method for the Construction of Minimum-Redundancy Codes", Proc. IRE 1952. A code's words follow from their lengths
(shorter first, then by symbol), so that a table stores the lengths alone.
"""

import heapq

import numpy as np

LENGTH_BITS = 6
"""Bits of one length in a table: the words of fewer than 2^40 symbols are shorter than 64 bits."""


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol: -sum p log2 p; 0 for no symbols."""
    counts = np.asarray(counts, dtype=np.float64)
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log2(share)).sum()) + 0.0


def word_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol's word, 0 for symbols that do not occur and for one that occurs alone."""
    lengths = np.zeros(len(counts), dtype=np.int64)
    heap = [(int(n), i, (i,)) for i, n in enumerate(counts) if n]
    heapq.heapify(heap)
    while len(heap) > 1:
        few, _, one = heapq.heappop(heap)
        more, first, two = heapq.heappop(heap)
        lengths[[*one, *two]] += 1
        heapq.heappush(heap, (few + more, first, one + two))
    return lengths


class Huffman:
    """The code of least mean length for symbols 0 .. len(counts) - 1 that occur so often.

    Attributes:
        lengths: bits of each word. words: each word as an integer.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.lengths = word_lengths(self.counts)
        self.words = np.zeros(len(self.lengths), dtype=np.int64)
        word, length = 0, 0
        for symbol in np.argsort(self.lengths, kind="stable"):
            if self.lengths[symbol]:
                word <<= int(self.lengths[symbol]) - length
                length = int(self.lengths[symbol])
                self.words[symbol] = word
                word += 1

    @property
    def bits(self) -> int:
        """Of all the symbols that were counted, encoded."""
        return int((self.counts * self.lengths).sum())

    @property
    def table_bits(self) -> int:
        return len(self.counts) * LENGTH_BITS

    def encode(self, symbols: np.ndarray) -> np.ndarray:
        """Bits (uint8, 0 or 1) of the words one after the other, highest bit first."""
        lengths, words = self.lengths[symbols], self.words[symbols]
        ends = np.cumsum(lengths)
        place = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return (np.repeat(words, lengths) >> np.repeat(lengths, lengths) - 1 - place & 1).astype(np.uint8)

    def decode(self, bits: np.ndarray, count: int) -> np.ndarray:
        """The `count` symbols that `encode` made these bits of."""
        if not self.lengths.any():
            return np.full(count, self.counts.argmax())
        symbols = {(int(n), int(w)): s for s, (n, w) in enumerate(zip(self.lengths, self.words)) if n}
        found, word, length = [], 0, 0
        for bit in bits:
            word, length = word << 1 | int(bit), length + 1
            if (length, word) in symbols:
                found.append(symbols[length, word])
                word, length = 0, 0
        assert len(found) == count and not length, "bits of another code"
        return np.array(found, dtype=np.int64)
