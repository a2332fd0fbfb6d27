"""Number formats of the contract: every tensor between layers holds integer codes; a real value is `scale * value(code)`.

    uint(b)       code - zero
    int(b)        two's complement
    bipolar(b)    2 code - (2^b - 1)
    log(b, r)     0 or +-2^(k / r)
    codebook(b)   table[code]

A format is written `uint8`, `uint8z3` (zero point 3), `int4`, `bipolar1`, `log4r2` (two residue classes), `log4r1s` (signed),
`codebook2`.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

from .errors import ConfigError

MAX_PLANES = 16
"""Most planes that a tensor in memory has."""


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

    def __post_init__(self):
        if not 1 <= self.bits <= MAX_PLANES:
            raise ConfigError(f"format of {self.bits} bits: a code has 1 to {MAX_PLANES} bits")
        if self.zero and self.kind is not Kind.UINT:
            raise ConfigError(f"zero point {self.zero} on {self.kind.name.lower()}: only uint has one")
        if not 0 <= self.zero < 1 << self.bits:
            raise ConfigError(f"zero point {self.zero} of uint{self.bits}: it must be a code, 0 to {(1 << self.bits) - 1}")
        if self.residues not in (1, 2, 4, 8):
            raise ConfigError(f"{self.residues} residue classes: log formats have 1, 2, 4 or 8")
        if self.kind is Kind.CODEBOOK and len(self.table) != 1 << self.bits:
            raise ConfigError(f"codebook of {len(self.table)} entries: {self.bits} bits need {1 << self.bits}")

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The format that `str()` of it gives. Codebooks carry a table and cannot be parsed from text."""
        match = re.fullmatch(r"(uint|int|bipolar|log)(\d+)(?:z(\d+))?(?:r(\d))?(s?)", text)
        if not match:
            raise ConfigError(f"format {text!r}: write uint8, uint8z3, int4, bipolar1 or log4r2")
        kind, bits, zero, residues, signed = match.groups()
        return cls(Kind[kind.upper()], int(bits), int(zero or 0), int(residues or 1), bool(signed))

    def __str__(self):
        text = f"{self.kind.name.lower()}{self.bits}"
        if self.zero:
            text += f"z{self.zero}"
        if self.kind is Kind.LOG:
            text += f"r{self.residues}" + "s" * self.signed
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
