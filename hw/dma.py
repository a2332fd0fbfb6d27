"""The address nest of LOAD and STORE."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .axi import SEGMENT


class Nest(wiring.Component):
    """For s in slices, y in ny, x in nx: a segment at dram + s * slice_pitch + y * y_pitch + x * x_pitch.

    One segment a cycle, from the cycle after `start` on, until the last one (`busy` falls). The fields are those of the
    instruction and do not change meanwhile; addresses are mod 2^32 and come from sums alone.
    """

    segment: Out(stream.Signature(SEGMENT))
    start: In(1)
    busy: Out(1)
    dram: In(32)
    slices: In(6)
    slice_pitch: In(32)
    ny: In(16)
    y_pitch: In(32)
    nx: In(16)
    x_pitch: In(32)
    beats: In(26)

    def elaborate(self, platform):
        m = Module()
        loops = ("x", self.nx, self.x_pitch), ("y", self.ny, self.y_pitch), ("s", self.slices, self.slice_pitch)
        levels = [  # innermost first: address of this level's present turn, turns left, turns, pitch
            (Signal(32, name=f"{name}_addr", reset_less=True), Signal(16, name=f"{name}_left", reset_less=True), turns, pitch)
            for name, turns, pitch in loops
        ]
        m.d.comb += [
            self.segment.valid.eq(self.busy),
            self.segment.payload.addr.eq(levels[0][0]),
            self.segment.payload.beats.eq(self.beats),
        ]
        with m.If(self.busy & self.segment.ready):
            following = Signal(32)
            chain = m.If
            for i, (addr, left, _, pitch) in enumerate(levels):
                with chain(left != 1):
                    m.d.comb += following.eq(addr + pitch)
                    m.d.sync += left.eq(left - 1)
                    m.d.sync += [inner[0].eq(following) for inner in levels[:i + 1]]
                    m.d.sync += [inner[1].eq(inner[2]) for inner in levels[:i]]
                chain = m.Elif
            with m.Else():
                m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
            m.d.sync += [level[0].eq(self.dram) for level in levels]
            m.d.sync += [level[1].eq(level[2]) for level in levels]
        return m
