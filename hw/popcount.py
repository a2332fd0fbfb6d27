"""Population count, with one body for synthesis and one for simulation."""

from amaranth.hdl import Cat, Instance, Module, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .convert import POPCOUNT_MODULE, SIM


def _compress(bits):
    """Sum of one-bit values by full adders: each column of weight 2^i is reduced to at most two bits, then one adder."""
    columns = [list(bits)]
    rows = [[], []]
    for column in columns:
        while len(column) > 2:
            a, b, c, *rest = column
            if len(columns) == len(rows[0]) + 1:
                columns.append([])
            column[:] = [*rest, a ^ b ^ c]
            columns[len(rows[0]) + 1].append((a & b) | (c & (a ^ b)))
        for i in range(2):
            rows[i].append(column[i] if i < len(column) else 0)
    return _cat(rows[0]) + _cat(rows[1])


def _cat(bits):
    from amaranth.hdl import Const
    return Cat(bit if not isinstance(bit, int) else Const(bit, 1) for bit in bits)


class Popcount(wiring.Component):
    """`o` is the number of ones in `i`; combinational.

    For synthesis a compressor tree. On the `SIM` platform an instance of a module that hw.convert writes with `$countones`, which
    simulators turn into one host instruction. A test compares the two.
    """

    def __init__(self, width: int, simulation: bool = False):
        self.simulation = simulation
        super().__init__({"i": In(width), "o": Out(unsigned(width.bit_length()))})

    def elaborate(self, platform):
        m = Module()
        if self.simulation or platform == SIM:
            m.submodules.count = Instance(POPCOUNT_MODULE, p_WIDTH=len(self.i), i_i=self.i, o_o=self.o)
        else:
            m.d.comb += self.o.eq(_compress(self.i))
        return m
