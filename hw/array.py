"""The bit-serial array: M x N dot products of K lanes, one plane product a cycle, and the registers that they drain from."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

from . import ecp5
from .activity import ARRAY_ACTIVITY, ArrayActivity
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
        X[m][n] = base +- p                                 base = 0 if first, 2X if shift, otherwise X
        X[m][n] = base +- (2p - popcount(wgt[n]))           where activations are bipolar and row m's word is valid
        R[m]    = base +- popcount(act[m])   or, bipolar and valid,   base +- (2 popcount(act[m]) - K)

    An invalid word of bipolar activations adds 0. The sum of products of values is then X, or 2X - R for bipolar weights.

    Exactness: X and R are kept modulo 2^32, and so is the sum of values, which the compiler proves to fit in 32 bits;
    intermediate results may wrap.

    Throughput: one step a cycle. Latency: the words are registered, their ones counted, the counts added: a step given in cycle t
    is in X after cycle t + 2. If it was the last, X and R move to the drain registers at the end of cycle t + 3 (`filled`), from
    where `row` reads a row, one cycle later.

    Members
    -------
    valid, step : a step; `act`, `act_valid` and `wgt` belong to it.
    load, taps : registers the act words alone (their step is not bipolar); the registered words, for the pool unit.
    filled, filled_final : the drain registers take a sum in this cycle; it is its instruction's last.
    row_en, row : row to read.
    x, r : N sums and the row's R, one cycle after `row_en`.
    activity : the counters `ARRAY_ACTIVITY`; in a simulation build.
    """

    LATENCY = 4
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
            "x": Out(ACC_BITS).array(n),
            "r": Out(ACC_BITS),
            "activity": Out(64).array(len(ARRAY_ACTIVITY)),
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
        gated = [Mux(self.step.bipolar & ~self.act_valid[i], 0, self.act[i]) for i in rows]
        with m.If(self.valid | self.load):
            m.d.sync += [act[i].eq(gated[i]) for i in rows]
        for i in rows:
            m.d.comb += self.taps[i].eq(act[i])
        with m.If(self.valid):
            m.d.sync += [step.eq(self.step), row_valid.eq(self.act_valid)]
            m.d.sync += [wgt[i].eq(self.wgt[i]) for i in cols]

        counted, counted_valid = Signal(), Signal(c.m, reset_less=True)
        counted_step = Signal(STEP, reset_less=True)
        m.d.sync += counted.eq(valid)
        with m.If(valid):
            m.d.sync += [counted_step.eq(step), counted_valid.eq(row_valid)]
        if getattr(platform, "family", None) == ecp5.FAMILY:
            x, r = ecp5.sums(m, platform, act, wgt, counted_step, counted_valid, counted, ACC_BITS)
        else:
            x, r = self._sums(m, act, wgt, valid, counted_step, counted_valid, counted, gated)

        # Drain registers.
        m.d.sync += [self.filled.eq(counted & counted_step.last), self.filled_final.eq(counted_step.final)]
        held_x = [[Signal(ACC_BITS, name=f"held_{i}_{j}", reset_less=True) for j in cols] for i in rows]
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

    def _sums(self, m, act, wgt, valid, counted_step, counted_valid, counted, gated):
        """Counts and sums X and R, which `counted_step` brings up to date at the end of its cycle; the drain takes them from the
        next one on. A device's own body (`ecp5.sums`) may add a cycle later, if it shows the sum before its register."""
        c = self.config
        rows, cols = range(c.m), range(c.n)

        def popcount(name, value):
            m.submodules[name] = counter = Popcount(c.k, self.simulation)
            m.d.comb += counter.i.eq(value)
            return counter.o

        counts = [[Signal(c.k.bit_length(), name=f"count_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        act_counts = [Signal(c.k.bit_length(), name=f"act_count_{i}", reset_less=True) for i in rows]
        wgt_counts = [Signal(c.k.bit_length(), name=f"wgt_count_{j}", reset_less=True) for j in cols]
        products = [[popcount(f"product_{i}_{j}", act[i] & wgt[j]) for j in cols] for i in rows]
        act_ones = [popcount(f"act_ones_{i}", act[i]) for i in rows]
        wgt_ones = [popcount(f"wgt_ones_{j}", wgt[j]) for j in cols]
        with m.If(valid):
            m.d.sync += [counts[i][j].eq(products[i][j]) for i in rows for j in cols]
            m.d.sync += [act_counts[i].eq(act_ones[i]) for i in rows]
            m.d.sync += [wgt_counts[j].eq(wgt_ones[j]) for j in cols]

        if self.simulation:
            m.submodules.activity = activity = ArrayActivity(c)
            m.d.comb += [activity.counted.eq(counted), activity.act_en.eq(self.valid | self.load), activity.wgt_en.eq(self.valid)]
            m.d.comb += [activity.counts[i * c.n + j].eq(counts[i][j]) for i in rows for j in cols]
            for ports, words in ((activity.act_old, act), (activity.act_new, gated), (activity.wgt_old, wgt),
                                 (activity.wgt_new, self.wgt), (self.activity, activity.values)):
                m.d.comb += [port.eq(word) for port, word in zip(ports, words)]

        # Sums. Terms are taken modulo 2^32, so that nothing needs a sign extension.
        x = [[Signal(ACC_BITS, name=f"x_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        r = [Signal(ACC_BITS, name=f"r_{i}", reset_less=True) for i in rows]
        x_terms = [[Signal(ACC_BITS, name=f"x_term_{i}_{j}") for j in cols] for i in rows]
        r_terms = [Signal(ACC_BITS, name=f"r_term_{i}") for i in rows]
        zero = Const(0, ACC_BITS)
        for sub in (0, 1):
            with m.If(counted_step.sub == sub):
                for i in rows:
                    with m.If(~counted_step.bipolar):
                        for term, count in [*zip(x_terms[i], counts[i]), (r_terms[i], act_counts[i])]:
                            m.d.comb += term.eq(zero - count if sub else count)
                    with m.Elif(counted_valid[i]):
                        both = [(x_terms[i][j], counts[i][j], wgt_counts[j]) for j in cols]
                        for term, count, ones in [*both, (r_terms[i], act_counts[i], Const(c.k))]:
                            m.d.comb += term.eq((zero + ones) - (count << 1) if sub else (zero + (count << 1)) - ones)
        sums = [(x[i][j], x_terms[i][j]) for i in rows for j in cols] + [(r[i], r_terms[i]) for i in rows]
        with m.If(counted):
            with m.If(counted_step.first):
                m.d.sync += [acc.eq(term) for acc, term in sums]
            with m.Elif(counted_step.shift):
                m.d.sync += [acc.eq((acc << 1) + term) for acc, term in sums]
            with m.Else():
                m.d.sync += [acc.eq(acc + term) for acc, term in sums]
        return x, r
