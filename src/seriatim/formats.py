"""Number formats of the contract: every tensor between layers holds integer codes; a real value is `scale * value(code)`.

    uint(b)       code - zero
    int(b)        two's complement
    bipolar(b)    2 code - (2^b - 1)
    log(b, r)     0 for code 0, else +-2^(k / r) with k = step (code - 1); signed: the top bit of the code is the sign
    codebook(b)   table[code]

For r > 1 the factors 2^(i / r), 0 <= i < r, are fixed-point constants of `LOG_FRACTION_BITS` fraction bits, and the unit of the
values is 2^-`LOG_FRACTION_BITS`: every value is an integer (`Format.values`).

A format is written `uint8`, `uint8z3` (zero point 3), `int4`, `bipolar1`, `log4r2` (two residue classes), `log4r1s` (signed),
`log4r2k3` (step 3), `codebook2`.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

from .errors import ConfigError

MAX_PLANES = 16
"""Most planes that a tensor in memory has."""

LOG_FRACTION_BITS = 14
"""Fraction bits of a log format's residue factors 2^(i / r)."""


class Kind(IntEnum):
    """Kind of a format, as instructions encode it."""

    UINT = 0
    INT = 1
    BIPOLAR = 2
    LOG = 3
    CODEBOOK = 4


@dataclass(frozen=True)
class Format:
    """One number format. `bits` is the width of a code; see the module's table for its value."""

    kind: Kind
    bits: int
    zero: int = 0
    residues: int = 1
    signed: bool = False
    table: tuple[int, ...] = ()
    step: int = 1

    def __post_init__(self):
        if not 1 <= self.bits <= MAX_PLANES:
            raise ConfigError(f"format of {self.bits} bits: a code has 1 to {MAX_PLANES} bits")
        if self.zero and self.kind is not Kind.UINT:
            raise ConfigError(f"zero point {self.zero} on {self.kind.name.lower()}: only uint has one")
        if not 0 <= self.zero < 1 << self.bits:
            raise ConfigError(f"zero point {self.zero} of uint{self.bits}: it must be a code, 0 to {(1 << self.bits) - 1}")
        if self.residues not in (1, 2, 4, 8):
            raise ConfigError(f"{self.residues} residue classes: log formats have 1, 2, 4 or 8")
        if self.step < 1 or (self.step != 1 and self.kind is not Kind.LOG):
            raise ConfigError(f"step {self.step} on {self.kind.name.lower()}: only log has one, of 1 or more")
        if self.kind is Kind.CODEBOOK and len(self.table) != 1 << self.bits:
            raise ConfigError(f"codebook of {len(self.table)} entries: {self.bits} bits need {1 << self.bits}")

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The format that `str()` of it gives. Codebooks carry a table and cannot be parsed from text."""
        match = re.fullmatch(r"(uint|int|bipolar|log)(\d+)(?:z(\d+))?(?:r(\d)(?:k(\d+))?)?(s?)", text)
        if not match:
            raise ConfigError(f"format {text!r}: write uint8, uint8z3, int4, bipolar1 or log4r2")
        kind, bits, zero, residues, step, signed = match.groups()
        return cls(Kind[kind.upper()], int(bits), int(zero or 0), int(residues or 1), bool(signed), step=int(step or 1))

    def __str__(self):
        text = f"{self.kind.name.lower()}{self.bits}"
        if self.zero:
            text += f"z{self.zero}"
        if self.kind is Kind.LOG:
            text += f"r{self.residues}" + (f"k{self.step}" if self.step > 1 else "") + "s" * self.signed
        return text

    @property
    def lo(self) -> int:
        """Smallest integer that requantisation may clip to: the code itself, but two's complement for `int`."""
        return -(1 << self.bits - 1) if self.kind is Kind.INT else 0

    @property
    def hi(self) -> int:
        return self.lo + (1 << self.bits) - 1

    @property
    def min_value(self) -> int:
        """Smallest value, in units of the scale (linear formats only)."""
        return {Kind.UINT: -self.zero, Kind.INT: self.lo, Kind.BIPOLAR: 1 - (1 << self.bits)}[self.kind]

    @property
    def max_value(self) -> int:
        return {Kind.UINT: self.hi - self.zero, Kind.INT: self.hi, Kind.BIPOLAR: (1 << self.bits) - 1}[self.kind]

    def value(self, code):
        """Integer value of `code` (an int or an integer array; `int` codes are already signed)."""
        if self.kind is Kind.UINT:
            return code - self.zero
        if self.kind is Kind.INT:
            return code
        if self.kind is Kind.BIPOLAR:
            return 2 * code - ((1 << self.bits) - 1)
        raise ConfigError(f"{self}: only linear formats have integer values of this kind")

    @property
    def values(self) -> tuple[int, ...]:
        """The integer value of each code by its bit pattern, 0 to 2^bits - 1; times the tensor's scale it is the real value.

        A signed log's code of the sign alone is a second 0, which no quantiser writes.
        """
        if self.kind is Kind.CODEBOOK:
            return self.table
        patterns = range(1 << self.bits)
        if self.kind is Kind.INT:
            return tuple(p - (p >> self.bits - 1 << self.bits) for p in patterns)
        if self.linear:
            return tuple(self.value(p) for p in patterns)
        magnitudes = self.bits - self.signed
        upper = [0]
        for code in range(1, 1 << magnitudes):
            octave, residue = divmod(self.step * (code - 1), self.residues)
            upper.append(_residue_factor(residue, self.residues) << octave)
        return (*upper, *(-v for v in upper)) if self.signed else tuple(upper)

    @property
    def linear(self) -> bool:
        return self.kind in (Kind.UINT, Kind.INT, Kind.BIPOLAR)

    def top(self, bits: int) -> "Format":
        """Format of the top `bits` planes: what a narrower reader of this tensor sees (codes shifted right, floor)."""
        if bits > self.bits:
            raise ConfigError(f"{bits} top planes of {self}: there are only {self.bits}")
        drop = self.bits - bits
        if self.zero & ((1 << drop) - 1):
            raise ConfigError(f"{bits} top planes of {self}: the zero point is not a multiple of {1 << drop}")
        return Format(self.kind, bits, self.zero >> drop, self.residues, self.signed)


def _residue_factor(residue: int, residues: int) -> int:
    """round(2^(residue / residues) 2^F), F = `LOG_FRACTION_BITS`; 1 without residue classes."""
    return round(2 ** (residue / residues) * (1 << LOG_FRACTION_BITS)) if residues > 1 else 1
