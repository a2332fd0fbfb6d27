"""The drain: from sums in the drain registers to the psum memory or, requantised and packed, to the out buffer."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.isa import Output

from .array import ACC_BITS, Array
from .dispatch import JOB
from .packer import Packer, tag_layout
from .requant import Requant
from .residual import Residual

PARAM = wiring.Signature({"b": Out(signed(64)), "m": Out(signed(32))})
"""Requantisation parameters of one channel."""


class Drain(wiring.Component):
    """Empties the drain registers row by row, M cycles a column tile, by the job of the instruction that filled them.

    A row takes these stages, each one cycle: (0) read the row, its psum and, with a tile's first row, its params; (1) sum of
    values, plus psum; (2) write psum, or requantise (`Requant.latency` cycles); then the packer.

    Only the start of a tile can be held back: until the words of the position before have been emitted, or until its residual is
    staged. After that everything takes a fixed time, so `free` can promise the drain registers ahead, and the end of an
    instruction is counted from the start of its last tile. A job is taken when the one before has ended.

    Members
    -------
    job_valid, job_ready, job : jobs, one for each CONV and POOL.
    shift_row_en, shift_x : the same of the shift-add array. thresholds : of the output's codes. drop : lowest bits of a
        sum that requantisation leaves out.
    filled, filled_final : the drain registers take a sum in this cycle; it is its instruction's last.
    row_en, row, x, r : the drain registers' read port.
    free : a sum that reaches the drain registers `NOTICE` cycles from now finds them empty (if there is none on the way).
    pool_valid, pool, pool_done, pool_signed : words of the pool unit, the last of an instruction; how it compares.
    prm_*, res_*, out_*, psum_*, requant_step, give_* : as in Execute.
    busy, stop : a job is under way; write nothing more.
    error, error_pc : an address is outside its buffer.
    awake : see `sleep`.
    """

    NOTICE = 1 + Array.LATENCY
    """Cycles from the issue of a step until its sum moves to the drain registers, at their end."""

    SUM_CYCLES = 2
    """Cycles from the read of a row to its write to psum, or its requantisation."""

    def __init__(self, config: Config):
        self.config = config
        c = config
        shift = {
            "drop": In(5),
            "shift_row_en": Out(1),
            "shift_x": In(c.acc_bits).array(c.n),
            "thresholds": In(signed(32)).array(isa.THRESHOLDS),
        } if c.shift_lanes else {}
        super().__init__(shift | {
            "job_valid": In(1),
            "job_ready": Out(1),
            "job": In(JOB),
            "filled": In(1),
            "filled_final": In(1),
            "row_en": Out(1),
            "row": Out(range(c.m)),
            "x": In(ACC_BITS).array(c.n),
            "r": In(ACC_BITS),
            "free": Out(1),
            "pool_valid": In(1),
            "pool": In(c.k).array(c.m),
            "pool_done": In(1),
            "pool_signed": Out(1),
            "prm_en": Out(1),
            "prm_addr": Out(16),
            "prm_data": In(PARAM).array(c.n),
            "res_en": Out(1),
            "res_addr": Out(16),
            "res_data": In(c.k).array(c.m),
            "out_we": Out(c.m),
            "out_addr": Out(16),
            "out_data": Out(c.k).array(c.m),
            "requant_step": Out(1),
            "psum_read": Out(1),
            "psum_write": Out(1),
            "give_valid": Out(1),
            "give_mask": Out(isa.SEM_COUNT),
            "busy": Out(1),
            "stop": In(1),
            "error": Out(1),
            "error_pc": Out(32),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        tag_shape = tag_layout(c)
        m.submodules.requant = requant = Requant(c.n, tag_shape.size, isa.THRESHOLDS if c.shift_lanes else 0,
                                                c.multiplier_stages)
        m.submodules.packer = packer = Packer(c)
        m.submodules.residual = residual = Residual(c)

        # The job.
        job = {name: Signal(member.shape, name=f"job_{name}", reset_less=True) for name, member in JOB.members.items()}
        psum, raw, with_residual = (Signal(name=name, reset_less=True) for name in ("to_psum", "to_raw", "with_residual"))
        words = Signal(range(max(c.raw_words, 16) + 1), reset_less=True)  # out words of a position, or of a raw column tile
        take = Signal()
        ending = Signal()
        m.d.comb += [take.eq(self.job_valid & ~self.busy), self.job_ready.eq(take), self.give_mask.eq(job["give"]),
                     self.error_pc.eq(job["pc"]),
                     self.pool_signed.eq(job["pool_signed"])]
        with m.If(take):
            m.d.sync += [job[name].eq(getattr(self.job, name)) for name in job]
            m.d.sync += [
                self.busy.eq(1),
                psum.eq(self.job.output == Output.PSUM),
                raw.eq(self.job.output == Output.INT32),
                with_residual.eq(self.job.res_planes != 0),
                words.eq(Mux(self.job.output == Output.INT32, c.raw_words, self.job.out_planes)),
            ]

        # Start of a tile, and its rows.
        full, full_last = Signal(), Signal(reset_less=True)
        row = Signal(range(c.m))
        row_last = Signal()
        tile = Signal(8)
        tile_last = Signal()
        emits = Signal()
        spacing = Signal.like(words)  # cycles until the words of another position may come
        start = Signal()
        m.d.comb += [
            row_last.eq(row == c.m - 1),
            tile_last.eq(tile == job["ng"]),
            emits.eq(~psum & (raw | tile_last)),
            start.eq(full & (row == 0) & self.busy & ~ending & ~self.stop
                     & ~(emits & (spacing != 0)) & (~with_residual | residual.ready)),
            self.row_en.eq(start | (row != 0)),
            self.row.eq(row),
            self.free.eq(~full | (self.row_en & (row >= max(0, c.m - self.NOTICE - 1)))),
        ]
        with m.If(self.row_en):
            m.d.sync += row.eq(Mux(row_last, 0, row + 1))
            with m.If(row_last):
                m.d.sync += [full.eq(0), tile.eq(Mux(tile_last, 0, tile + 1))]
        with m.If(self.filled):
            m.d.sync += [full.eq(1), full_last.eq(self.filled_final)]
        with m.If(start & emits):
            m.d.sync += spacing.eq(words - 1)
        with m.Elif(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        with m.If(take):
            m.d.sync += tile.eq(0)

        # The end, counted from the start of the last tile.
        last_row = c.m - 1 + self.SUM_CYCLES
        first_word = last_row + requant.latency + packer.LATENCY
        left = Signal(range(first_word + (1 << len(words))))
        with m.If(start & full_last):
            m.d.sync += [ending.eq(1), left.eq(Mux(psum, last_row, first_word + words - 1))]
        with m.Elif(self.pool_done):
            m.d.sync += [ending.eq(1), left.eq(1)]
        with m.Elif(ending):
            m.d.sync += left.eq(left - 1)
        m.d.comb += self.give_valid.eq(self.busy & ending & (left == 0) & ~self.stop)
        with m.If(self.give_valid):
            m.d.sync += [self.busy.eq(0), ending.eq(0)]

        # Rows under way: 0 reads the drain registers, 1 sums, 2 writes psum or begins to requantise.
        tags = [Signal(tag_shape, name=f"tag_{i}", reset_less=True) for i in range(3)]
        valid = [self.row_en, Signal(name="valid_1"), Signal(name="valid_2")]
        m.d.comb += [
            tags[0].row.eq(row), tags[0].tile.eq(tile), tags[0].clear.eq(raw | (tile == 0)), tags[0].emit.eq(emits & row_last),
        ]
        for i in (0, 1):
            m.d.sync += valid[i + 1].eq(valid[i])
            with m.If(valid[i]):
                m.d.sync += tags[i + 1].eq(tags[i])

        # Psum memory.
        psum_at = Signal(17)
        psum_fits = Signal()
        psum_addr = [Signal(16, name=f"psum_addr_{i}", reset_less=True) for i in (1, 2)]
        psum_write = [Signal(name=f"psum_write_{i}") for i in (1, 2)]
        m.d.comb += psum_fits.eq(psum_at < c.psum_words)
        m.d.sync += [psum_write[0].eq(self.row_en & psum & psum_fits), psum_write[1].eq(psum_write[0])]
        with m.If(self.row_en):
            m.d.sync += [psum_at.eq(psum_at + 1), psum_addr[0].eq(psum_at)]
        with m.If(valid[1]):
            m.d.sync += psum_addr[1].eq(psum_addr[0])
        with m.If(take):
            m.d.sync += psum_at.eq(self.job.psum_base)

        # The sum of values, plus psum.
        acc = [Signal(signed(c.acc_bits), name=f"acc_{n}", reset_less=True) for n in range(c.n)]
        m.d.comb += [self.psum_read.eq(self.row_en & job["psum_add"] & psum_fits), self.psum_write.eq(psum_write[1] & ~self.stop)]
        for n in range(c.n):
            memory = Memory(shape=c.acc_bits, depth=c.psum_words, init=[])
            m.submodules[f"psum_{n}"] = memory
            read, write = memory.read_port(), memory.write_port()
            m.d.comb += [
                read.en.eq(self.psum_read), read.addr.eq(psum_at),
                write.en.eq(self.psum_write), write.addr.eq(psum_addr[1]), write.data.eq(acc[n]),
            ]
            old = Mux(job["psum_add"], read.data, 0)[:c.acc_bits]
            twice, once = (self.x[n] << 1) - self.r, self.x[n]
            if c.acc_bits > ACC_BITS:
                twice, once = (sums[:ACC_BITS].as_signed() for sums in (twice, once))
            with m.If(valid[1]):
                with m.If(job["wgt_bipolar"]):
                    m.d.sync += acc[n].eq(twice + old)
                if c.shift_lanes:
                    with m.Elif(job["shift_add"]):
                        m.d.sync += acc[n].eq(self.shift_x[n] + old)
                with m.Else():
                    m.d.sync += acc[n].eq(once + old)

        # Params of a tile: there when its first row is summed.
        prm_at = Signal(17)
        prm_fits, prm_read = Signal(), Signal()
        m.d.comb += [prm_fits.eq(prm_at < c.prm_words), self.prm_en.eq(start & ~psum & prm_fits), self.prm_addr.eq(prm_at)]
        m.d.sync += prm_read.eq(self.prm_en)
        with m.If(take):
            m.d.sync += prm_at.eq(self.job.prm_base)
        with m.Elif(self.row_en & row_last):
            m.d.sync += prm_at.eq(Mux(tile_last, job["prm_base"], prm_at + 1))
        for n in range(c.n):
            lane_m = Signal(signed(32), name=f"m_{n}", reset_less=True)
            lane_b = Signal(signed(64), name=f"b_{n}", reset_less=True)
            with m.If(prm_read):
                m.d.sync += [lane_m.eq(self.prm_data[n].m), lane_b.eq(self.prm_data[n].b)]
            m.d.comb += [
                requant.m[n].eq(lane_m), requant.b[n].eq(lane_b), requant.acc[n].eq(acc[n]),
                requant.res[n].eq(Mux(with_residual, residual.value[n], 0)),
            ]

        # Residual of a tile.
        m.d.comb += [
            residual.start.eq(take & (self.job.res_planes != 0)), residual.take.eq(start & with_residual),
            residual.planes.eq(Mux(take, self.job.res_planes, job["res_planes"])), residual.is_signed.eq(job["res_signed"]),
            residual.base.eq(self.job.res_base), residual.pitch.eq(job["res_pitch"]), residual.ng.eq(job["ng"]),
            residual.row_en.eq(valid[1] & with_residual), residual.row.eq(tags[1].row),
            self.res_en.eq(residual.en), self.res_addr.eq(residual.addr),
        ]
        m.d.comb += [residual.data[i].eq(self.res_data[i]) for i in range(c.m)]

        # Requantise and pack.
        if c.shift_lanes:
            m.d.comb += [requant.acc[n].eq(acc[n] >> self.drop) for n in range(c.n)]
            m.d.comb += [requant.encode.eq(job["output"] == Output.CODES), self.shift_row_en.eq(self.row_en & job["shift_add"])]
            m.d.comb += [mine.eq(its) for mine, its in zip(requant.thresholds, self.thresholds)]
        m.d.comb += [
            requant.valid.eq(valid[2] & ~psum), requant.tag.eq(tags[2]), self.requant_step.eq(requant.valid),
            requant.m2.eq(job["m2"]), requant.shift.eq(job["shift"]), requant.lo.eq(job["lo"]), requant.hi.eq(job["hi"]),
            packer.start.eq(take), packer.base.eq(self.job.out_base), packer.raw.eq(raw), packer.planes.eq(job["out_planes"]),
            packer.early_valid.eq(requant.early_valid), packer.early_tag.eq(requant.early_tag),
            packer.valid.eq(requant.q_valid), packer.tag.eq(requant.q_tag),
            packer.pool_valid.eq(self.pool_valid), packer.stop.eq(self.stop),
            self.out_we.eq(packer.we), self.out_addr.eq(packer.addr),
        ]
        m.d.comb += [packer.q[n].eq(requant.q[n]) for n in range(c.n)]
        m.d.comb += [packer.pool[i].eq(self.pool[i]) for i in range(c.m)]
        m.d.comb += [self.out_data[i].eq(packer.data[i]) for i in range(c.m)]

        m.d.comb += self.awake.eq(
            take | self.filled | self.row_en | Cat(valid).any() | Cat(psum_write).any() | prm_read | (spacing != 0) | ending
            | self.pool_done | residual.awake | requant.awake | packer.awake)

        # Addresses outside a buffer.
        m.d.comb += self.error.eq(~self.stop & (
            (self.row_en & (psum | job["psum_add"]) & ~psum_fits) | (start & ~psum & ~prm_fits)
            | (start & with_residual & residual.bad) | packer.error))
        return m
