"""The pool unit: maximum over a window, bit-serially from the most significant plane."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

POOL_STEP = data.StructLayout({
    "top": 1,        # most significant plane
    "tap_first": 1,  # first position of the window
    "tap_last": 1,   # last one: the maximum is complete
    "final": 1,      # last step of the instruction
    "plane": 4,      # planes that follow
})
"""What the pool unit is told with each word."""


class Pool(wiring.Component):
    """Running maximum of M x K codes, whose planes come most significant first, position after position of the window.

    For each lane two flags say whether the new code or the maximum so far has been found greater; until then their planes are
    equal, or this plane decides. With is_signed the top plane, whose weight is negative, decides the other way. The maximum is
    kept plane by plane in a small memory (asynchronous read: its plane is replaced in the cycle where it is compared).

    Throughput: one word of M x K lanes a cycle. Latency: `valid` and `step` announce a word that is on `act` in the next cycle;
    the maximum's plane is on `out` in that cycle too.

    Members
    -------
    is_signed : holds while an instruction runs.
    valid, step : a word comes with the next cycle.
    act : the word.
    out_valid, out : a plane of a maximum.
    done : the instruction's last word is on `out`.
    awake : see `sleep`.
    """

    def __init__(self, config: Config):
        self.config = config
        c = config
        super().__init__({
            "is_signed": In(1),
            "valid": In(1),
            "step": In(POOL_STEP),
            "act": In(c.k).array(c.m),
            "out_valid": Out(1),
            "out": Out(c.k).array(c.m),
            "done": Out(1),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        valid = Signal()
        step = Signal(POOL_STEP, reset_less=True)
        m.d.sync += valid.eq(self.valid)
        with m.If(self.valid):
            m.d.sync += step.eq(self.step)
        invert = Signal()
        m.d.comb += [
            invert.eq(step.top & self.is_signed),
            self.out_valid.eq(valid & step.tap_last),
            self.done.eq(valid & step.final),
            self.awake.eq(self.valid | valid),
        ]
        for i in range(c.m):
            memory = Memory(shape=c.k, depth=16, init=[])
            m.submodules[f"best_{i}"] = memory
            read, write = memory.read_port(domain="comb"), memory.write_port()
            m.d.comb += [read.addr.eq(step.plane), write.addr.eq(step.plane), write.data.eq(self.out[i]), write.en.eq(valid)]
            new, best = self.act[i], Signal(c.k, name=f"held_{i}")
            more, less = (Signal(c.k, name=f"{name}_{i}", reset_less=True) for name in ("more", "less"))
            was_more, was_less = (Signal(c.k, name=f"was_{name}_{i}") for name in ("more", "less"))
            with m.If(valid):
                m.d.comb += best.eq(read.data)
                with m.If(~step.top):
                    m.d.comb += [was_more.eq(more), was_less.eq(less)]
                decides = ~(was_more | was_less) & (new ^ best)
                win = Mux(invert, best, new)  # of lanes where this plane decides: the new code is greater
                m.d.sync += [more.eq(was_more | (decides & win)), less.eq(was_less | (decides & ~win))]
                with m.If(step.tap_first):
                    m.d.comb += self.out[i].eq(new)
                with m.Else():
                    now_more = was_more | (decides & win)
                    m.d.comb += self.out[i].eq((now_more & new) | (~now_more & best))
        return m
