"""The compact machine's datapath: one output position of a CONV, channel after channel, from codes to codes."""

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.formats import Kind
from seriatim.isa import Output

from .dot import STEP, Dot
from .requant import RES_BITS
from .spram import DEPTH

SCRATCH = (DEPTH - 1).bit_length()
"""Bits of an address of the scratch memory."""
ROW = 17
"""Bits of a row's address before it is wrapped, and of a ring's end."""
PARAM_WORDS = 4
"""Words from one channel's param to the next's, as in memory: b (low, high), m, one that is not read."""
RESCALE_WORDS = 3
"""Words of what all channels share: m2, lo, hi."""
VALUE = 16
"""Bits of a value that is packed."""


def work_bits(config: Config) -> int:
    """Bits of an address of the work memory: act, residual and out buffer one after the other."""
    return (config.act_words + config.res_words + config.out_words - 1).bit_length()


def registers(config: Config) -> dict[str, Shape]:
    """What the unit works from. Addresses count words of the work memory (`act`, `res`, `out`) or of the scratch memory."""
    work = unsigned(work_bits(config))
    scratch = unsigned(SCRATCH)
    return {
        # Of the instruction: as CONV's fields, counts less one.
        "ring_words": unsigned(ROW), "ring_end": unsigned(ROW), "skh": unsigned(ROW), "skw": work, "sg": work, "sc": work,
        "wgt": scratch, "wgt_g": scratch, "wgt_tap": scratch, "w_bits": unsigned(4), "a_last": unsigned(3), "w_last": unsigned(4),
        "kh": unsigned(8), "kw": unsigned(8), "nc": work, "ng": unsigned(5), "a_kind": unsigned(2), "w_kind": unsigned(2),
        "output": unsigned(2), "psum_add": unsigned(1), "prm": scratch, "out_planes": unsigned(5), "res_planes": unsigned(5),
        "res_signed": unsigned(1), "shift": unsigned(6),
        # Of the position. x: act words from the rows' begin; row: of the first tap row.
        "row": unsigned(ROW), "x": work, "psum": scratch, "res": work, "out": work,
        # Of a value that is packed, and whether words written to act are valid.
        "lane": unsigned(5), "value": unsigned(VALUE), "valid": unsigned(1),
    }


class Tile(wiring.Component):
    """For each column tile g of a position, one after the other: the sum of plane products in the order of `Sequencer` (pairs of
    planes by falling significance, kh, kw, c), plus psum; then as `output` says to psum, or requantised to the out buffer, as an
    int32 word or bit by bit to lane g of `out_planes` words, which are read, changed and written back; lane 0 clears the word's
    others. Requantisation is `Requant`'s, with one multiplier and a shift by one bit a cycle.

    By itself, `pack` writes `value` to lane `lane` of `out_planes` words from `out` on.

    Parameters
    ----------
    rescale : where the scratch memory has m2, lo and hi.

    Addresses are right modulo the memories' sizes: that they are inside is for the caller to see to.

    Throughput: a step a cycle; between the steps of two column tiles 11 cycles, and one for each plane of output and residual
    and each bit of the shift.

    Members
    -------
    one port for each of `registers`.
    go, pack : start. active : until it has ended.
    step : a step of the array.
    read_en, read_address, read_data, read_valid : the work memory, and whether the word is valid, a cycle later.
    write_en, write_address, write_data : a word to write.
    scratch_en, scratch_address, scratch_write, scratch_wdata, scratch_rdata : the scratch memory.
    """

    def __init__(self, config: Config, rescale: int, simulation: bool = False):
        self.config, self.rescale, self.simulation = config, rescale, simulation
        self.shapes = registers(config)
        work, k = work_bits(config), config.k
        super().__init__({name: In(shape) for name, shape in self.shapes.items()} | {
            "go": In(1), "pack": In(1), "active": Out(1), "step": Out(1),
            "read_en": Out(1), "read_address": Out(work), "read_data": In(k), "read_valid": In(1),
            "write_en": Out(1), "write_address": Out(work), "write_data": Out(k),
            "scratch_en": Out(1), "scratch_address": Out(SCRATCH), "scratch_write": Out(1), "scratch_wdata": Out(32),
            "scratch_rdata": In(32),
        })

    def elaborate(self, platform):
        m = Module()
        c, work = self.config, work_bits(self.config)
        m.submodules.array = array = Dot(c, self.simulation)

        # The nest: the present round of each loop, and where it began.
        g, row = Signal(5), Signal(ROW)
        at_g, at_tap, at_c = (Signal(work, name=f"at_{name}") for name in ("g", "tap", "c"))
        wgt_g, wgt_tap, wgt_c = (Signal(SCRATCH, name=f"wgt_at_{name}") for name in ("g", "tap", "c"))
        kh, kw, nc = Signal(8), Signal(8), Signal(work)
        a_plane, a_start, w_plane, w_start = Signal(3), Signal(3), Signal(4), Signal(4)
        first, drop = Signal(), Signal()
        last_plane = (a_plane == self.a_last) & (w_plane == self.w_last)
        last = (nc == self.nc) & (kw == self.kw) & (kh == self.kh) & last_plane
        next_tap = Signal(SCRATCH)
        m.d.comb += next_tap.eq(wgt_tap + self.wgt_tap)
        wrapped = Signal(ROW)
        below = Signal(ROW)
        m.d.comb += [below.eq(row + self.skh), wrapped.eq(Mux(below >= self.ring_end, below - self.ring_words, below))]

        # A step: addresses now, words in the next cycle.
        stepped, step = Signal(), Signal(STEP)
        m.d.sync += stepped.eq(self.step)
        m.d.comb += [
            array.valid.eq(stepped), array.step.eq(step), array.act.eq(self.read_data), array.act_valid.eq(self.read_valid),
            array.wgt.eq(self.scratch_rdata), array.addend.eq(self.scratch_rdata),
            array.a_bipolar.eq(self.a_kind == Kind.BIPOLAR), array.w_bipolar.eq(self.w_kind == Kind.BIPOLAR),
        ]
        negative = ((self.w_kind == Kind.INT) & (w_plane == 0)) ^ ((self.a_kind == Kind.INT) & (a_plane == 0))

        # Requantisation: b, then the products, the shift, and the bounds, which come one after the other from the scratch memory.
        total, residual = Signal(signed(64)), Signal(signed(RES_BITS))
        factor, rescaling = Signal(signed(32)), Signal()
        product = Signal(signed(64))
        low, outside, below_bound, clipped = total[:32], Signal(), Signal(), Signal()
        m.d.comb += [
            factor.eq(Mux(rescaling, residual, array.acc)), product.eq(factor * self.scratch_rdata.as_signed()),
            outside.eq(total[31:].any() & ~total[31:].all()),
            below_bound.eq(Mux(outside, total[63], low.as_signed() < self.scratch_rdata.as_signed())),
        ]

        index = Signal(6)
        packing = Signal()  # a value of the processor's
        lane = Mux(packing, self.lane, g)
        bit = Mux(packing, self.value, low[:VALUE]).bit_select((self.out_planes - index)[:4], 1)
        changed = Signal(work)  # address of the word that was read in the last cycle
        m.d.sync += changed.eq(self.read_address)
        m.d.comb += self.active.eq(1)

        def start_sum():
            """Assignments with which the first step of column tile g comes next; its addresses are set apart."""
            return [first.eq(1), drop.eq(0), kh.eq(0), kw.eq(0), nc.eq(0), row.eq(self.row),
                    *(plane.eq(0) for plane in (a_plane, a_start, w_plane, w_start))]

        def read_plane():
            """Reads the output's plane `index`, which is the one before from the next cycle on."""
            m.d.comb += [self.read_en.eq(1), self.read_address.eq(self.out + index)]
            m.d.sync += index.eq(index + 1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.active.eq(0)
                m.d.sync += [packing.eq(self.pack), index.eq(0)]
                with m.If(self.pack):
                    m.next = "OLD"
                with m.Elif(self.go):
                    m.d.sync += [g.eq(0), *start_sum()]
                    m.d.sync += [at.eq(self.x) for at in (at_g, at_tap, at_c)]
                    m.d.sync += [at.eq(self.wgt) for at in (wgt_g, wgt_tap, wgt_c)]
                    m.next = "STEP"

            with m.State("STEP"):
                m.d.comb += [
                    self.step.eq(1), self.read_en.eq(1), self.read_address.eq(row + at_c + a_plane),
                    self.scratch_en.eq(1), self.scratch_address.eq(wgt_c + w_plane),
                ]
                m.d.sync += [
                    step.first.eq(first), step.shift.eq(drop & ~first), step.sub.eq(negative), first.eq(0), drop.eq(0),
                ]
                with m.If(last):
                    m.next = "SUM"
                with m.Elif(nc != self.nc):
                    m.d.sync += [nc.eq(nc + 1), at_c.eq(at_c + self.sc), wgt_c.eq(wgt_c + self.w_bits)]
                with m.Else():
                    m.d.sync += [nc.eq(0), wgt_tap.eq(next_tap), wgt_c.eq(next_tap)]
                    with m.If(kw != self.kw):
                        m.d.sync += [kw.eq(kw + 1), at_tap.eq(at_tap + self.skw), at_c.eq(at_tap + self.skw)]
                    with m.Else():
                        m.d.sync += [kw.eq(0), kh.eq(kh + 1), row.eq(wrapped), at_tap.eq(at_g), at_c.eq(at_g)]
                        with m.If(kh == self.kh):
                            m.d.sync += [kh.eq(0), row.eq(self.row), wgt_tap.eq(wgt_g), wgt_c.eq(wgt_g)]
                            with m.If((w_plane != self.w_last) & (a_plane != 0)):
                                m.d.sync += [w_plane.eq(w_plane + 1), a_plane.eq(a_plane - 1)]
                            with m.Else():
                                m.d.sync += drop.eq(1)
                                with m.If(a_start != self.a_last):
                                    m.d.sync += [a_start.eq(a_start + 1), a_plane.eq(a_start + 1), w_plane.eq(w_start)]
                                with m.Else():
                                    m.d.sync += [w_start.eq(w_start + 1), w_plane.eq(w_start + 1), a_plane.eq(a_start)]

            with m.State("SUM"):  # the last step's words
                m.d.comb += [self.scratch_en.eq(self.psum_add), self.scratch_address.eq(self.psum + g)]
                m.next = "ADD"
            with m.State("ADD"):
                m.d.comb += array.add.eq(self.psum_add)
                m.d.sync += [residual.eq(0), index.eq(0)]
                with m.If(self.output == Output.PSUM):
                    m.next = "PSUM"
                with m.Elif(self.res_planes != 0):
                    m.next = "RESIDUAL"
                with m.Else():
                    m.next = "PARAM"
            with m.State("PSUM"):
                m.d.comb += [self.scratch_en.eq(1), self.scratch_write.eq(1), self.scratch_address.eq(self.psum + g),
                             self.scratch_wdata.eq(array.acc)]
                m.next = "NEXT"

            with m.State("RESIDUAL"):  # reads plane `index`, shifts in the one before
                m.d.comb += [self.read_en.eq(1), self.read_address.eq(self.res + index)]
                plane = self.read_data.bit_select(g, 1)
                with m.If(index == 1):
                    m.d.sync += residual.eq(Mux(plane & self.res_signed, -1, plane))
                with m.Else():
                    m.d.sync += residual.eq(Cat(plane, residual))
                m.d.sync += index.eq(index + 1)
                with m.If(index == self.res_planes):
                    m.d.sync += index.eq(0)
                    m.next = "PARAM"

            with m.State("PARAM"):  # reads word `index` of the param: the halves of b, then m
                m.d.comb += [self.scratch_en.eq(1), self.scratch_address.eq(self.prm + g * PARAM_WORDS + index)]
                m.d.sync += index.eq(index + 1)
                with m.If(index == 1):
                    m.d.sync += total[:32].eq(self.scratch_rdata)
                with m.If(index == 2):
                    m.d.sync += total[32:].eq(self.scratch_rdata)
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.comb += [self.scratch_en.eq(1), self.scratch_address.eq(self.rescale)]
                m.d.sync += total.eq(total + product)
                m.next = "RESCALE"
            with m.State("RESCALE"):
                m.d.comb += rescaling.eq(1)
                m.d.sync += [total.eq(total + product), index.eq(self.shift)]
                m.next = "SHIFT"
            with m.State("SHIFT"):
                m.d.comb += [self.scratch_en.eq(1), self.scratch_address.eq(self.rescale + 1)]
                m.d.sync += index.eq(index - 1)
                with m.If(index == 0):
                    m.next = "LOWER"
                with m.Else():
                    m.d.sync += total.eq(total >> 1)
            with m.State("LOWER"):
                m.d.comb += [self.scratch_en.eq(1), self.scratch_address.eq(self.rescale + 2)]
                m.d.sync += clipped.eq(below_bound)
                with m.If(below_bound):
                    m.d.sync += low.eq(self.scratch_rdata)
                m.d.sync += index.eq(0)
                m.next = "UPPER"
            with m.State("UPPER"):
                read_plane()
                with m.If(~clipped & ~below_bound):
                    m.d.sync += low.eq(self.scratch_rdata)
                m.next = "PACK"
                with m.If(self.output == Output.INT32):
                    m.next = "WORD"
            with m.State("WORD"):
                m.d.comb += [self.write_en.eq(1), self.write_address.eq(self.out + g), self.write_data.eq(low)]
                m.next = "NEXT"
            with m.State("OLD"):
                read_plane()
                m.next = "PACK"
            with m.State("PACK"):  # writes the word that was read, reads the next
                read_plane()
                m.d.comb += [self.write_en.eq(1), self.write_address.eq(changed)]
                m.d.comb += [self.write_data[i].eq(Mux(lane == i, bit, self.read_data[i] & (lane != 0))) for i in range(c.k)]
                with m.If(index == self.out_planes):
                    m.next = "NEXT"

            with m.State("NEXT"):
                m.d.sync += [g.eq(g + 1), *start_sum()]
                m.d.sync += [at.eq(at_g + self.sg) for at in (at_g, at_tap, at_c)]
                m.d.sync += [at.eq(wgt_g + self.wgt_g) for at in (wgt_g, wgt_tap, wgt_c)]
                m.next = "STEP"
                with m.If(packing | (g == self.ng)):
                    m.next = "IDLE"
        return m
