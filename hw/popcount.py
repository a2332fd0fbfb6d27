"""Population count, with one body for synthesis and one for simulation."""

from amaranth.hdl import Cat, Const, Instance, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .convert import POPCOUNT_MODULE, SIM


def _compress(m, bits):
    """Sum of one-bit values by full adders: each column of weight 2^i is reduced to at most two bits, then one adder."""
    columns, rows = [list(bits)], [[], []]
    for weight, column in enumerate(columns):
        while len(column) > 2:
            a, b, c, *rest = column
            total, carry = Signal(), Signal()  # signals, since an expression would be copied with each use
            m.d.comb += [total.eq(a ^ b ^ c), carry.eq((a & b) | (c & (a ^ b)))]
            if len(columns) == weight + 1:
                columns.append([])
            columns[weight + 1].append(carry)
            column = [*rest, total]
        for i in range(2):
            rows[i].append(column[i] if i < len(column) else Const(0, 1))
    return Cat(rows[0]) + Cat(rows[1])


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
            m.d.comb += self.o.eq(_compress(m, self.i))
        return m
