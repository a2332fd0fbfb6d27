"""The bit-serial array: M x N dot products of K lanes, one plane product a cycle, and the registers that they drain from."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

from .popcount import Popcount

STEP = data.StructLayout({
    "first": 1,    # the sum starts
    "shift": 1,    # the significance dropped by one
    "sub": 1,      # the plane product counts negative
    "last": 1,     # the sum is complete
    "bipolar": 1,  # activations are bipolar
    "final": 1,    # last step of the instruction
})
"""What the array is told with each pair of words."""

ACC_BITS = 32


class Array(wiring.Component):
    """For each row m and column n a sum of plane products, highest significance first; and for each row the sum R of its planes.

        p = popcount(act[m] & wgt[n])
        X[m][n] = base +- 2p             base = 0 if first, 2X if shift, otherwise X
        X[m][n] = base +- (2p - popcount(wgt[n]))                 where activations are bipolar and row m's word is valid
        R[m]    = base +- popcount(act[m])   or, bipolar and valid,   base +- (2 popcount(act[m]) - K)

    An invalid word of bipolar activations adds 0. From these `accumulate` gives the sum of products of values.

    Exactness: the sum of values fits in 32 bits (the compiler proves it). X and R are kept modulo 2^33 and 2^32, and the sum
    follows from them modulo 2^32, so intermediate results may wrap.

    Throughput: one step a cycle. Latency: a step given in cycle t is in X after cycle t + 1; if it was the last, X and R move to
    the drain registers at the end of cycle t + 2 (`filled`), from where `row` reads a row, one cycle later.

    Members
    -------
    valid, step : a step; `act`, `act_valid` and `wgt` belong to it.
    load, taps : registers the act words alone (their step is not bipolar); the registered words, for the pool unit.
    filled, filled_final : the drain registers take a sum in this cycle; it is its instruction's last.
    row_en, row : row to read.
    x, r : N sums and the row's R, one cycle after `row_en`.
    """

    LATENCY = 3
    """Cycles from a last step until `row` can read its sum."""

    def __init__(self, config: Config, simulation: bool = False):
        self.config = config
        self.simulation = simulation
        k, m, n = config.k, config.m, config.n
        super().__init__({
            "valid": In(1),
            "step": In(STEP),
            "act": In(k).array(m),
            "act_valid": In(m),
            "wgt": In(k).array(n),
            "load": In(1),
            "taps": Out(k).array(m),
            "filled": Out(1),
            "filled_final": Out(1),
            "row_en": In(1),
            "row": In(range(m)),
            "x": Out(ACC_BITS + 1).array(n),
            "r": Out(ACC_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        rows, cols = range(c.m), range(c.n)

        # Operand registers.
        act = [Signal(c.k, name=f"act_{i}", reset_less=True) for i in rows]
        wgt = [Signal(c.k, name=f"wgt_{i}", reset_less=True) for i in cols]
        valid = Signal()
        row_valid = Signal(c.m, reset_less=True)
        step = Signal(STEP, reset_less=True)
        m.d.sync += valid.eq(self.valid)
        with m.If(self.valid | self.load):
            for i in rows:
                gate = self.step.bipolar & ~self.act_valid[i]
                m.d.sync += act[i].eq(Mux(gate, 0, self.act[i]))
        for i in rows:
            m.d.comb += self.taps[i].eq(act[i])
        with m.If(self.valid):
            m.d.sync += [step.eq(self.step), row_valid.eq(self.act_valid)]
            m.d.sync += [wgt[i].eq(self.wgt[i]) for i in cols]

        def popcount(name, value):
            m.submodules[name] = counter = Popcount(c.k, self.simulation)
            m.d.comb += counter.i.eq(value)
            return counter.o

        products = [[popcount(f"p_{i}_{j}", act[i] & wgt[j]) for j in cols] for i in rows]
        ones_act = [popcount(f"a_{i}", act[i]) for i in rows]
        ones_wgt = [popcount(f"w_{j}", wgt[j]) for j in cols]

        # Sums, each case written whole: simulators run that faster than a multiplexer before one adder.
        x = [[Signal(ACC_BITS + 1, name=f"x_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        r = [Signal(ACC_BITS, name=f"r_{i}", reset_less=True) for i in rows]

        def accumulate(terms):
            with m.Switch(Cat(step.first, step.shift, step.sub)):
                for case in range(8):
                    first, shift, sub = case & 1, case & 2, case & 4
                    with m.Case(case):
                        for acc, term in terms:
                            base = Const(0) if first else acc << 1 if shift else acc
                            m.d.sync += acc.eq(base - term if sub else base + term)

        with m.If(valid):
            with m.If(step.bipolar):
                accumulate([(x[i][j], Mux(row_valid[i], (products[i][j] << 1) - ones_wgt[j], 0)) for i in rows for j in cols]
                           + [(r[i], Mux(row_valid[i], (ones_act[i] << 1) - c.k, 0)) for i in rows])
            with m.Else():
                accumulate([(x[i][j], products[i][j] << 1) for i in rows for j in cols] + [(r[i], ones_act[i]) for i in rows])

        # Drain registers.
        m.d.sync += [self.filled.eq(valid & step.last), self.filled_final.eq(step.final)]
        held_x = [[Signal(ACC_BITS + 1, name=f"held_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        held_r = [Signal(ACC_BITS, name=f"held_{i}", reset_less=True) for i in rows]
        with m.If(self.filled):
            m.d.sync += [held_x[i][j].eq(x[i][j]) for i in rows for j in cols]
            m.d.sync += [held_r[i].eq(r[i]) for i in rows]
        with m.If(self.row_en):
            with m.Switch(self.row):
                for i in rows:
                    with m.Case(i):
                        m.d.sync += [self.x[j].eq(held_x[i][j]) for j in cols]
                        m.d.sync += self.r.eq(held_r[i])
        return m


def accumulator(x, r, act_bipolar, wgt_bipolar):
    """The sum of products of values, modulo 2^32, from X and R: as four expressions for the kinds of the operands."""
    return {
        (False, False): x >> 1,
        (False, True): x - r,
        (True, False): x,
        (True, True): (x << 1) - r,
    }[act_bipolar, wgt_bipolar]
