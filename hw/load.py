"""The load unit: LOAD, FILL and PATCH, memory to the act, wgt, param and residual buffers."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.isa import Buffer

from .axi import REQUEST, Bursts
from .dma import Nest
from .layouts import layout
from .patch import Patch
from .semaphores import unit_ports
from .sleep import AWAKE, Sleep

PARAM_BITS = 128
"""Bits of one channel's parameters in memory."""


def param_layout():
    """A param as the buffer holds it: its first 96 bits in memory."""
    from .execute import PARAM
    return data.StructLayout({name: member.shape for name, member in PARAM.members.items()})


class Load(wiring.Component):
    """Executes load instructions in order.

    A front end takes semaphores and requests bursts; a back end, with counters of its own, writes a beat a cycle to the buffers.
    The front end of a LOAD overlaps the back end of its predecessor, so that the latency of memory shows only once in a row of
    LOADs. FILL writes one word of all its slices a cycle; PATCH is `Patch`. Buffer addresses are checked at each write, bursts
    before they are requested.

    Members
    -------
    unit ports : see `semaphores.unit_ports`.
    request, beat_valid, beat_data, beat_error : the read channel.
    read_base, read_limit : bytes that may be read.
    act_we, res_we : slices to write, wgt_we, prm_we : columns to write; at `addr`, in this cycle.
    act_flag : validity of the act words.
    data : K bits for act, res and wgt.
    prm_data : one param for each 128 bits of a beat; column n takes number n % len(prm_data).
    progress : something was written.
    patch_awake : `awake` of the patch builder.
    """

    def __init__(self, config: Config, sleep: Sleep = AWAKE):
        self.config = c = config
        self.sleep = sleep
        self.prm_ports = max(1, c.axi_bits // PARAM_BITS)
        super().__init__(unit_ports() | {
            "request": Out(stream.Signature(REQUEST)),
            "beat_valid": In(1),
            "beat_data": In(c.axi_bits),
            "beat_error": In(1),
            "read_base": In(32),
            "read_limit": In(32),
            "act_we": Out(c.m),
            "res_we": Out(c.m),
            "wgt_we": Out(c.n),
            "prm_we": Out(c.n),
            "addr": Out(16),
            "act_flag": Out(1),
            "data": Out(c.k),
            "prm_data": Out(param_layout()).array(self.prm_ports),
            "progress": Out(1),
            "patch_awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.nest = nest = Nest()
        m.submodules.bursts = bursts = Bursts(c)
        patch = Patch(c)
        m.submodules.patch = self.sleep.put("patch", patch)
        m.d.comb += self.patch_awake.eq(patch.awake)
        wiring.connect(m, wiring.flipped(self.request), bursts.request)
        word = self.instr.payload.word
        pc = self.instr.payload.pc
        load, fill, patched = (data.View(layout(name), word) for name in ("LOAD", "FILL", "PATCH"))
        is_load, is_patch = (word[:8] == isa.BY_NAME[name].opcode for name in ("LOAD", "PATCH"))
        to_array = ~load.buffer[1]  # ACT or RES: words of K bits

        error, cause = Signal(), Signal(Cause)
        stopped = Signal()
        m.d.comb += stopped.eq(self.halt | self.error_valid)
        m.d.comb += [bursts.halt.eq(stopped), patch.halt.eq(stopped),
                     bursts.base.eq(self.read_base), bursts.limit.eq(self.read_limit)]

        # Front end.

        def beats(word_bits):
            return load.words * (word_bits // c.axi_bits)

        m.d.comb += [
            nest.dram.eq(load.dram), nest.slices.eq(load.slices), nest.slice_pitch.eq(load.slice_pitch),
            nest.ny.eq(load.ny), nest.y_pitch.eq(load.y_pitch), nest.nx.eq(load.nx), nest.x_pitch.eq(load.x_pitch),
            nest.beats.eq(Mux(to_array, beats(c.k), Mux(load.buffer[0], beats(c.n * PARAM_BITS), beats(c.n * c.k)))),
        ]
        illegal = Signal()
        with m.If(is_load):
            with m.If(to_array):
                m.d.comb += illegal.eq(load.slice + load.slices > c.m)
            with m.Else():
                m.d.comb += illegal.eq((load.slices != 1) | (load.ny != 1) | (load.nx != 1))
        with m.Elif(is_patch):
            m.d.comb += illegal.eq(patched.slice + patched.slices > c.m)
        with m.Else():
            m.d.comb += illegal.eq((fill.mask >> c.m) != 0)

        active, filling = Signal(), Signal(reset_less=True)  # the back end has an instruction; it is a FILL
        idle, finishing, hand_over = Signal(), Signal(), Signal()
        handed = Signal()
        bad_front = Signal()
        m.d.comb += self.take_mask.eq(load.wait)
        with m.FSM(name="front") as front:
            with m.State("TAKE"):
                with m.If(self.instr.valid & ~stopped):
                    with m.If(illegal):
                        m.d.comb += bad_front.eq(1)
                    with m.Elif(~(is_load & active & filling)):  # its beats would come while the back end fills
                        m.d.comb += self.take_valid.eq(1)
                        m.d.sync += handed.eq(0)
                        with m.If(self.take_ok):
                            m.d.comb += nest.start.eq(is_load)
                            m.next = "RUN"
            with m.State("RUN"):
                with m.If(~stopped):
                    with m.If(is_patch):
                        with m.If(~handed & idle):
                            m.d.comb += patch.start.eq(1)
                            m.d.sync += handed.eq(1)
                        with m.If(patch.done):
                            m.d.comb += self.instr.ready.eq(1)
                            m.next = "TAKE"
                    with m.Else():
                        m.d.comb += hand_over.eq(~handed & (idle | finishing))
                        with m.If(hand_over):
                            m.d.sync += handed.eq(1)
                        with m.If((hand_over | handed) & ~nest.busy & ~bursts.busy):
                            m.d.comb += self.instr.ready.eq(1)
                            m.next = "TAKE"

        # The burst engine belongs to the patch builder during PATCH, to the nest otherwise.
        of_patch, of_nest = (unit.segment.payload.as_value() for unit in (patch, nest))
        m.d.comb += [
            bursts.segment.valid.eq(nest.segment.valid | patch.segment.valid),
            bursts.segment.payload.eq(Mux(patch.segment.valid, of_patch, of_nest)),
            nest.segment.ready.eq(bursts.segment.ready),
            patch.segment.ready.eq(bursts.segment.ready),
        ]
        m.d.comb += [patch.word.eq(word), patch.beat_valid.eq(self.beat_valid & patch.busy),
                     patch.beat_data.eq(self.beat_data)]

        # Back end.
        to = {b: Signal(name=f"to_{b.name.lower()}", reset_less=True) for b in Buffer}
        back_pc, signal = Signal(32, reset_less=True), Signal(isa.SEM_COUNT, reset_less=True)
        base, row, at = (Signal(17, name=name, reset_less=True) for name in ("base", "row", "at"))
        pitch, ring_words = Signal(16, reset_less=True), Signal(16, reset_less=True)
        ring_end = Signal(17, reset_less=True)
        words, w_left, nx, x_left, ny, y_left = (
            Signal(16, name=name, reset_less=True) for name in ("words", "w_left", "nx", "x_left", "ny", "y_left"))
        s_left = Signal(6, reset_less=True)
        mask = Signal(c.m, reset_less=True)
        column = Signal(c.n, reset_less=True)
        code, plane, planes, flag = Signal(16), Signal(4), Signal(4), Signal()
        part = Signal(range(max(c.k, PARAM_BITS) // c.axi_bits + 1))
        m.d.comb += [idle.eq(~active), self.busy.eq(active | self.instr.valid | patch.busy)]

        k_parts, p_parts = c.k // c.axi_bits, max(1, PARAM_BITS // c.axi_bits)
        parts = max(k_parts, p_parts)
        earlier = Signal((parts - 1) * c.axi_bits, reset_less=True)
        assembled = Cat(earlier, self.beat_data)
        with m.If(self.beat_valid & active & ~filling):
            m.d.sync += earlier.eq(assembled[c.axi_bits:])
            m.d.sync += part.eq(part - 1)
        unit = Signal()  # a unit (K bits, or a beat's params) is complete: written in the next cycle
        word_done = Signal()
        columns = Const(sum(1 << i for i in range(self.prm_ports)), c.n)
        m.d.comb += unit.eq(active & ~stopped & (filling | (self.beat_valid & (part == 0))))
        m.d.comb += word_done.eq(unit & (filling | to[Buffer.ACT] | to[Buffer.RES] | column[-1]))
        depth = Mux(to[Buffer.WGT], c.wgt_words, Mux(to[Buffer.PRM], c.prm_words, Mux(to[Buffer.RES], c.res_words, c.act_words)))
        outside = Signal()
        m.d.comb += outside.eq(unit & (at >= depth))

        m.d.sync += [self.act_we.eq(0), self.res_we.eq(0), self.wgt_we.eq(0), self.prm_we.eq(0), self.give_valid.eq(0)]
        m.d.comb += self.progress.eq(unit | patch.progress)
        with m.If(unit & ~outside):
            m.d.sync += [self.addr.eq(at), part.eq(Mux(to[Buffer.PRM], p_parts - 1, k_parts - 1))]
            with m.If(filling):
                bit = (code >> plane)[0]
                m.d.sync += [self.act_we.eq(mask), self.data.eq(Mux(bit, (1 << c.k) - 1, 0)), self.act_flag.eq(flag)]
                m.d.sync += plane.eq(Mux(plane == 0, planes, plane - 1))
            with m.Else():
                m.d.sync += self.act_flag.eq(1)
                with m.If(~to[Buffer.PRM]):
                    m.d.sync += self.data.eq(assembled[-c.k:])
                for i, port in enumerate(self.prm_data):
                    bits = assembled[-p_parts * c.axi_bits:] if self.prm_ports == 1 else self.beat_data[i * PARAM_BITS:]
                    with m.If(to[Buffer.PRM]):
                        m.d.sync += port.eq(bits[:port.shape().size])
                with m.If(to[Buffer.ACT]):
                    m.d.sync += self.act_we.eq(mask)
                with m.If(to[Buffer.RES]):
                    m.d.sync += self.res_we.eq(mask)
                with m.If(to[Buffer.WGT]):
                    m.d.sync += [self.wgt_we.eq(column), column.eq(column.rotate_left(1))]
                with m.If(to[Buffer.PRM]):
                    m.d.sync += [self.prm_we.eq(column), column.eq(column.rotate_left(self.prm_ports))]

        stepped, following = Signal(17), Signal(17)
        m.d.comb += stepped.eq(row + pitch)
        m.d.comb += following.eq(Mux((ring_words != 0) & (stepped >= ring_end), stepped - ring_words, stepped))
        with m.If(word_done & ~outside):
            m.d.sync += [at.eq(at + 1), w_left.eq(w_left - 1)]
            with m.If(w_left == 1):
                m.d.sync += [w_left.eq(words), x_left.eq(x_left - 1)]
                with m.If(filling):
                    m.d.sync += plane.eq(planes)
                with m.If(x_left == 1):
                    m.d.sync += [x_left.eq(nx), y_left.eq(y_left - 1), row.eq(following), at.eq(following)]
                    with m.If(y_left == 1):
                        m.d.sync += [y_left.eq(ny), s_left.eq(s_left - 1), mask.eq(mask << 1), row.eq(base), at.eq(base)]
                        with m.If(s_left == 1):
                            m.d.comb += finishing.eq(1)
                            m.d.sync += [active.eq(0), self.give_valid.eq(1), self.give_mask.eq(signal), self.give_pc.eq(back_pc)]

        # Hand over: the back end copies what it needs.
        with m.If(hand_over):
            m.d.sync += [active.eq(1), back_pc.eq(pc), signal.eq(load.signal), filling.eq(~is_load)]
            m.d.sync += column.eq(Mux(load.buffer[0], columns, 1))  # PRM, else WGT
            ring = Signal(16)
            start, end = Signal(16), Signal(17)
            m.d.comb += end.eq(Mux(is_load, load.ring_base + load.ring_words, fill.ring_base + fill.ring_words))
            m.d.comb += [ring.eq(Mux(is_load, load.ring_words, fill.ring_words)), start.eq(Mux(is_load, load.base, fill.base))]
            first = Mux((ring != 0) & (start >= end), start - ring, start)[:16]
            for instr, kind in ((load, is_load), (fill, ~is_load)):
                with m.If(kind):
                    m.d.sync += [pitch.eq(instr.row_pitch), words.eq(instr.words), w_left.eq(instr.words),
                                 ny.eq(instr.ny), y_left.eq(instr.ny)]
            m.d.sync += [base.eq(first), row.eq(first), at.eq(first), ring_words.eq(ring), ring_end.eq(end)]
            with m.If(is_load):
                m.d.sync += [to[b].eq(load.buffer == b) for b in Buffer]
                m.d.sync += [nx.eq(load.nx), x_left.eq(load.nx), s_left.eq(load.slices), mask.eq(Const(1, c.m) << load.slice)]
                m.d.sync += part.eq(Mux(load.buffer == Buffer.PRM, p_parts - 1, k_parts - 1))
                with m.If(~to_array):
                    m.d.sync += [base.eq(load.base), row.eq(load.base), at.eq(load.base)]
            with m.Else():
                m.d.sync += [to[b].eq(b == Buffer.ACT) for b in Buffer]
                m.d.sync += [nx.eq(1), x_left.eq(1), s_left.eq(1), mask.eq(fill.mask), code.eq(fill.code), flag.eq(fill.valid),
                             plane.eq(fill.planes - 1), planes.eq(fill.planes - 1)]

        with m.If(patch.we & ~stopped):
            m.d.sync += [self.act_we.eq(patch.mask), self.addr.eq(patch.addr), self.data.eq(patch.data), self.act_flag.eq(1)]
        with m.If(patch.done & ~stopped):
            m.d.sync += [self.give_valid.eq(1), self.give_mask.eq(load.signal), self.give_pc.eq(pc)]

        # Errors, the older instruction's first.
        m.d.comb += [error.eq(0), cause.eq(Cause.DRAM_RANGE)]
        at_back = Signal()
        with m.If(active & self.beat_valid & self.beat_error):
            m.d.comb += [error.eq(1), cause.eq(Cause.AXI_READ), at_back.eq(1)]
        with m.Elif(patch.busy & self.beat_valid & self.beat_error):
            m.d.comb += [error.eq(1), cause.eq(Cause.AXI_READ)]
        with m.Elif(outside):
            m.d.comb += [error.eq(1), cause.eq(Cause.BUFFER_RANGE), at_back.eq(1)]
        with m.Elif(patch.outside):
            m.d.comb += [error.eq(1), cause.eq(Cause.BUFFER_RANGE)]
        with m.Elif(bursts.refused):
            m.d.comb += [error.eq(1), cause.eq(Cause.DRAM_RANGE)]
        with m.Elif(bad_front):
            m.d.comb += [error.eq(1), cause.eq(Cause.ILLEGAL_FIELD)]
        with m.If(error & ~stopped):
            m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(cause), self.error_pc.eq(Mux(at_back, back_pc, pc))]
        writing = Cat(self.act_we, self.res_we, self.wgt_we, self.prm_we).any()
        m.d.comb += self.awake.eq(
            front.ongoing("RUN") | (self.take_valid & (self.take_ok | handed)) | active | self.beat_valid | writing
            | self.give_valid | nest.busy | bursts.busy | (error & ~stopped))
        return m
