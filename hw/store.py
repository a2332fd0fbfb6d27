"""The store unit: STORE, out buffer to memory."""

from amaranth.hdl import Array, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.csr import Cause

from .axi import REQUEST, Bursts
from .dma import Nest
from .layouts import layout
from .semaphores import unit_ports


class Store(wiring.Component):
    """Executes STORE instructions in order, one at a time: a beat a cycle, finished when every burst has been answered.

    Members
    -------
    unit ports : see `semaphores.unit_ports`.
    request, beats : the write channel. written : every burst has been answered. write_error : a burst was answered with an error.
    write_base, write_limit : bytes that may be written.
    out_en, out_addr, out_data : the out buffer's read port; data follow one cycle after.
    """

    def __init__(self, config: Config):
        self.config = c = config
        super().__init__(unit_ports() | {
            "request": Out(stream.Signature(REQUEST)),
            "beats": Out(stream.Signature(unsigned(c.axi_bits))),
            "written": In(1),
            "write_error": In(1),
            "write_base": In(32),
            "write_limit": In(32),
            "out_en": Out(1),
            "out_addr": Out(16),
            "out_data": In(c.k).array(c.m),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.nest = nest = Nest()
        m.submodules.bursts = bursts = Bursts(c)
        wiring.connect(m, wiring.flipped(self.request), bursts.request)
        f = data.View(layout("STORE"), self.instr.payload.word)
        stopped = Signal()
        parts = c.k // c.axi_bits
        m.d.comb += [
            stopped.eq(self.halt | self.error_valid),
            bursts.halt.eq(stopped), bursts.base.eq(self.write_base), bursts.limit.eq(self.write_limit),
            nest.dram.eq(f.dram), nest.slices.eq(f.slices), nest.slice_pitch.eq(f.slice_pitch), nest.ny.eq(f.ny),
            nest.y_pitch.eq(f.y_pitch), nest.nx.eq(f.nx), nest.x_pitch.eq(f.x_pitch), nest.beats.eq(f.words * parts),
        ]
        wiring.connect(m, nest.segment, bursts.segment)

        # Words in the order of their beats.
        reading, outside = Signal(), Signal()
        at = Signal(17, reset_less=True)
        w_left, x_left, y_left = (Signal(16, name=name, reset_less=True) for name in ("w_left", "x_left", "y_left"))
        s_left, slice_ = Signal(6, reset_less=True), Signal(range(c.m), reset_less=True)
        held, part = Signal(), Signal(range(parts))  # the read port holds a word; its beats that have gone
        held_slice = Signal(range(c.m), reset_less=True)
        consumed = Signal()
        word = Signal(c.k)
        m.d.comb += word.eq(Array(self.out_data)[held_slice])
        m.d.comb += [
            outside.eq(reading & (at >= c.out_words)),
            self.out_addr.eq(at),
            self.out_en.eq(reading & ~outside & (~held | consumed) & ~stopped),
            self.beats.valid.eq(held),
            self.beats.payload.eq(word.word_select(part, c.axi_bits)),
        ]
        with m.If(self.beats.valid & self.beats.ready):
            if parts > 1:
                m.d.sync += part.eq(part + 1)
            m.d.comb += consumed.eq(part == parts - 1)
        with m.If(consumed):
            m.d.sync += held.eq(0)
        with m.If(self.out_en):
            m.d.sync += [held.eq(1), held_slice.eq(slice_), at.eq(at + 1), w_left.eq(w_left - 1)]
            with m.If(w_left == 1):
                m.d.sync += [w_left.eq(f.words), x_left.eq(x_left - 1)]
                with m.If(x_left == 1):
                    m.d.sync += [x_left.eq(f.nx), y_left.eq(y_left - 1)]
                    with m.If(y_left == 1):
                        m.d.sync += [y_left.eq(f.ny), s_left.eq(s_left - 1), slice_.eq(slice_ + 1), at.eq(f.base)]
                        with m.If(s_left == 1):
                            m.d.sync += reading.eq(0)

        illegal, finished = Signal(), Signal()
        m.d.comb += [self.busy.eq(self.instr.valid), self.take_mask.eq(f.wait), illegal.eq(f.slice + f.slices > c.m)]
        m.d.sync += self.give_valid.eq(0)
        refused_field = Signal()
        with m.FSM() as fsm:
            with m.State("TAKE"):
                with m.If(self.instr.valid & ~stopped):
                    with m.If(illegal):
                        m.d.comb += refused_field.eq(1)
                    with m.Else():
                        m.d.comb += self.take_valid.eq(1)
                        with m.If(self.take_ok):
                            m.d.comb += nest.start.eq(1)
                            m.d.sync += [reading.eq(1), at.eq(f.base), w_left.eq(f.words), x_left.eq(f.nx), y_left.eq(f.ny),
                                         s_left.eq(f.slices), slice_.eq(f.slice)]
                            m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += finished.eq(~nest.busy & ~bursts.busy & ~reading & ~held & self.written & ~self.write_error)
                with m.If(finished & ~stopped):
                    m.d.comb += self.instr.ready.eq(1)
                    m.d.sync += [self.give_valid.eq(1), self.give_mask.eq(f.signal), self.give_pc.eq(self.instr.payload.pc)]
                    m.next = "TAKE"

        cause = Signal(Cause)
        error = Signal()
        with m.If(self.write_error):
            m.d.comb += [error.eq(1), cause.eq(Cause.AXI_WRITE)]
        with m.Elif(bursts.refused):
            m.d.comb += [error.eq(1), cause.eq(Cause.DRAM_RANGE)]
        with m.Elif(outside):
            m.d.comb += [error.eq(1), cause.eq(Cause.BUFFER_RANGE)]
        with m.Elif(refused_field):
            m.d.comb += [error.eq(1), cause.eq(Cause.ILLEGAL_FIELD)]
        with m.If(error & ~stopped):
            m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(cause), self.error_pc.eq(self.instr.payload.pc)]
        m.d.comb += self.awake.eq((self.take_valid & self.take_ok) | nest.busy | bursts.busy | reading | held
                                  | (fsm.ongoing("RUN") & finished) | self.give_valid | (error & ~stopped))
        return m
