"""One dot product of the bit-serial array without what an array shares: the compact machine's."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

from .array import ACC_BITS
from .popcount import Popcount

STEP = data.StructLayout({
    "first": 1,  # the sum starts
    "shift": 1,  # the significance dropped by one
    "sub": 1,    # the plane product counts negative
})
"""What is told with each pair of words."""


class Dot(wiring.Component):
    """The sum of plane products, highest significance first: acc = base +- (ones of P - ones of Q), where base is 0 if first,
    2 acc if shift, otherwise acc, and a lane is in

        P, if its product is 1:   act and wgt; where both are bipolar: act equal to wgt
        Q, if it is -1:           one is bipolar and 0, the other 1; where both are bipolar: they differ

    An invalid word of bipolar activations adds 0. Sums are modulo 2^32, as `Array`'s are.

    Throughput: one step a cycle. Latency: the sum is there in the next.

    Members
    -------
    valid, step : a step; `act`, `act_valid` and `wgt` belong to it.
    a_bipolar, w_bipolar : hold while a sum is under way.
    add, addend : in a cycle without a step, adds to the sum.
    acc : the sum.
    """

    def __init__(self, config: Config, simulation: bool = False):
        self.config, self.simulation = config, simulation
        super().__init__({
            "valid": In(1), "step": In(STEP), "act": In(config.k), "act_valid": In(1), "wgt": In(config.k),
            "a_bipolar": In(1), "w_bipolar": In(1), "add": In(1), "addend": In(signed(ACC_BITS)), "acc": Out(signed(ACC_BITS)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.plus = plus = Popcount(self.config.k, self.simulation)
        m.submodules.minus = minus = Popcount(self.config.k, self.simulation)
        act, wgt, a, w = self.act, self.wgt, self.a_bipolar, self.w_bipolar
        m.d.comb += [
            plus.i.eq(act & wgt | Mux(a & w, ~(act | wgt), 0)),
            minus.i.eq(Mux(a, ~act & wgt, 0) | Mux(w, act & ~wgt, 0)),
        ]
        term, base = Signal(signed(len(plus.o) + 1)), Signal(signed(ACC_BITS))
        counts = ~a | self.act_valid
        m.d.comb += [
            term.eq(Mux(counts, Mux(self.step.sub, minus.o - plus.o, plus.o - minus.o), 0)),
            base.eq(Mux(self.valid & self.step.first, 0, Mux(self.valid & self.step.shift, self.acc << 1, self.acc))),
        ]
        with m.If(self.valid | self.add):
            m.d.sync += self.acc.eq(base + Mux(self.valid, term, self.addend))
        return m
