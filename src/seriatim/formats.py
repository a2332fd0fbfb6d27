"""Number formats of the contract: every tensor between layers holds integer codes; a real value is `scale * value(code)`.

    uint(b)       code - zero
    int(b)        two's complement
    bipolar(b)    2 code - (2^b - 1)
    log(b, r)     0 for code 0, else +-2^(k / r) with k = step (code - 1); signed: the top bit of the code is the sign
    codebook(b)   table[code]

For r > 1 the factors 2^(i / r), 0 <= i < r, are fixed-point constants of `LOG_FRACTION_BITS` fraction bits, and the unit of the
values is 2^-`LOG_FRACTION_BITS`: every value is an integer (`Format.values`).

A format is written `uint8`, `uint8z3` (zero point 3), `int4`, `bipolar1`, `log4r2` (two residue classes), `log4r1s` (signed),
`log4r2k3` (step 3), `codebook2[0,5,9,14]`. `codebook4` alone is a weights' format: the weights, which are values, say the table.
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
        if self.kind is Kind.CODEBOOK and self.table and len(self.table) != 1 << self.bits:
            raise ConfigError(f"codebook of {len(self.table)} entries: {self.bits} bits need {1 << self.bits}")

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The format that `str()` of it gives."""
        match = re.fullmatch(r"codebook(\d+)(?:\[(-?\d+(?:,-?\d+)*)\])?", text)
        if match:
            bits, table = match.groups()
            return cls(Kind.CODEBOOK, int(bits), table=tuple(map(int, table.split(","))) if table else ())
        match = re.fullmatch(r"(uint|int|bipolar|log)(\d+)(?:z(\d+))?(?:r(\d)(?:k(\d+))?)?(s?)", text)
        if not match:
            raise ConfigError(f"format {text!r}: write uint8, uint8z3, int4, bipolar1, log4r2 or codebook2[0,5,9,14]")
        kind, bits, zero, residues, step, signed = match.groups()
        return cls(Kind[kind.upper()], int(bits), int(zero or 0), int(residues or 1), bool(signed), step=int(step or 1))

    def __str__(self):
        text = f"{self.kind.name.lower()}{self.bits}"
        if self.zero:
            text += f"z{self.zero}"
        if self.kind is Kind.LOG:
            text += f"r{self.residues}" + (f"k{self.step}" if self.step > 1 else "") + "s" * self.signed
        if self.table:
            text += f"[{','.join(map(str, self.table))}]"
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
        """Smallest value, in units of the scale."""
        if not self.linear:
            return min(self.values)
        return {Kind.UINT: -self.zero, Kind.INT: self.lo, Kind.BIPOLAR: 1 - (1 << self.bits)}[self.kind]

    @property
    def max_value(self) -> int:
        if not self.linear:
            return max(self.values)
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
            if not self.table:
                raise ConfigError(f"{self}: its table is not said; write codebook2[0,5,9,14]")
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
            upper.append(residue_factor(residue, self.residues) << octave)
        return (*upper, *(-v for v in upper)) if self.signed else tuple(upper)

    @property
    def magnitudes(self) -> tuple[int, ...]:
        """Of a log format: the magnitude of each code, the sign apart; ascending from 0."""
        return self.values[:1 << self.bits - self.signed]

    @property
    def linear(self) -> bool:
        return self.kind in (Kind.UINT, Kind.INT, Kind.BIPOLAR)

    def top(self, bits: int) -> "Format":
        """Format of the top `bits` planes: what a narrower reader of this tensor sees (codes shifted right, floor).

        Log and codebook formats are read whole.
        """
        if bits == self.bits:
            return self
        if bits > self.bits:
            raise ConfigError(f"{bits} top planes of {self}: there are only {self.bits}")
        if not self.linear:
            raise ConfigError(f"{bits} top planes of {self}: a log or codebook format is read whole, with {self.bits} bits")
        drop = self.bits - bits
        if self.zero & ((1 << drop) - 1):
            raise ConfigError(f"{bits} top planes of {self}: the zero point is not a multiple of {1 << drop}")
        return Format(self.kind, bits, self.zero >> drop, self.residues, self.signed)


def residue_factor(residue: int, residues: int) -> int:
    """round(2^(residue / residues) 2^F), F = `LOG_FRACTION_BITS`; 1 without residue classes."""
    return round(2 ** (residue / residues) * (1 << LOG_FRACTION_BITS)) if residues > 1 else 1


def log_positions(form: Format, classes: int) -> tuple[tuple[int, int, int] | None, ...]:
    """(sign, octave, residue) of each code of a log format by its bit pattern, None for 0: it stands for
    sign 2^(octave + residue / classes). `classes` is a multiple of the format's own."""
    magnitudes = form.bits - form.signed
    upper = [None]
    for code in range(1, 1 << magnitudes):
        upper.append((1, *divmod(form.step * (code - 1) * (classes // form.residues), classes)))
    if form.signed:
        upper += [p and (-1, *p[1:]) for p in upper]
    return tuple(upper)


def product_unit(w: Format, x: Format) -> int:
    """What value(w) value(x) is to be divided by for the unit of their product: 2^14 of two logs with residue classes."""
    both = w.kind is Kind.LOG and x.kind is Kind.LOG and w.residues > 1 and x.residues > 1
    return 1 << LOG_FRACTION_BITS if both else 1


def factors(w: Format, x: Format) -> list[tuple[tuple[int, ...], dict[int, int] | None]]:
    """Pairs whose sum of products is the product of the contract: the factor of each code of x by its bit pattern, and the
    factor of each value of w (None: the value itself).

    One pair, the values, but for two logs with residue classes: their exponents add up, p = k_w + k_x in units of 1 / R, and the
    product is +-C_(p mod R) 2^(p div R). There is a pair for each residue class of x then.
    """
    if product_unit(w, x) == 1:
        return [(x.values, None)]
    classes = max(w.residues, x.residues)
    of_x, of_w = log_positions(x, classes), log_positions(w, classes)
    pairs = []
    for own in sorted({p[2] for p in of_x if p}):
        shifted = tuple(p[0] << p[1] if p and p[2] == own else 0 for p in of_x)
        weights = {}
        for value, p in zip(w.values, of_w):
            octave, residue = divmod((p[2] if p else 0) + own, classes)
            weights[value] = p[0] * residue_factor(residue, classes) << p[1] + octave if p else 0
        pairs.append((shifted, weights))
    return pairs
