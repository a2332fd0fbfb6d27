"""The head of the execute queue: semaphores, checks, MARK, FORMAT and TABLE, and the cause that each cycle belongs to."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause, Counter
from seriatim.formats import Kind
from seriatim.isa import Sem

from .layouts import QUEUED, layout
from .shift import FORM, FORM_RESET, VALUE_BITS, refused_by_engine

JOB_FIELDS = ("output", "psum_add", "psum_base", "prm_base", "out_base", "out_planes", "res_planes", "res_signed", "res_base",
              "res_pitch", "m2", "shift", "lo", "hi")
"""Fields of CONV that the drain works by."""

JOB = wiring.Signature({
    "pool_signed": Out(1),
    "wgt_bipolar": Out(1),
    "shift_add": Out(1),  # the sums are the shift-add array's
    "ng": Out(8),  # column tiles less one
    "give": Out(isa.SEM_COUNT),
    "pc": Out(32),
    **{f.name: Out(signed(f.bits) if f.signed else f.bits)
       for f in isa.BY_NAME["CONV"].fields if f.name in JOB_FIELDS},
})
"""What becomes of an instruction's results."""

WAITS = {Sem.ACT_READY: Counter.STALL_ACT, Sem.WGT_READY: Counter.STALL_WGT, Sem.PRM_READY: Counter.STALL_PARAM,
         Sem.RES_READY: Counter.STALL_RES, Sem.OUT_FREE: Counter.STALL_STORE}
"""The cause of a cycle in which the head instruction waits, by the lowest semaphore that it lacks."""


class Dispatch(wiring.Component):
    """Takes the semaphores of the head instruction while its predecessor still runs, and hands it over as soon as the sequencer
    is free and the drain has taken the predecessor's job: its first step can then follow the last one without a gap.

    Members
    -------
    instr, take_*, lack, mark_*, cause : as in Execute. `mark_give`: semaphores that a MARK, FORMAT or TABLE gives, in
        the cycle when it is done.
    load, is_pool : the sequencer takes the head instruction in this cycle.
    running, issued, stepping : the sequencer has an instruction; issues its last step; issues a step.
    job_valid, job_ready, job : the instruction that runs, for the drain.
    drain_busy : the drain has a job.
    form, values, thresholds : what FORMAT and TABLE have set; they change while nothing executes.
    stop : take nothing.
    error, error_cause : the head instruction cannot be executed here; all before it are done.
    """

    def __init__(self, config: Config):
        self.config = config
        shift = {
            "form": Out(FORM, init=FORM_RESET),
            "values": Out(VALUE_BITS).array(2 * isa.TABLE_PART),
            "thresholds": Out(signed(32)).array(isa.THRESHOLDS),
        } if config.shift_lanes else {}
        super().__init__(shift | {
            "instr": In(stream.Signature(QUEUED)),
            "take_valid": Out(1),
            "take_mask": Out(isa.SEM_COUNT),
            "take_ok": In(1),
            "lack": In(isa.SEM_COUNT),
            "mark_valid": Out(1),
            "mark_layer": Out(8),
            "mark_done": In(1),
            "mark_give": Out(isa.SEM_COUNT),
            "cause": Out(4),
            "load": Out(1),
            "is_pool": Out(1),
            "running": In(1),
            "issued": In(1),
            "stepping": In(1),
            "job_valid": Out(1),
            "job_ready": In(1),
            "job": Out(JOB),
            "drain_busy": In(1),
            "busy": Out(1),
            "stop": In(1),
            "error": Out(1),
            "error_cause": Out(4),
        })

    def elaborate(self, platform):
        m = Module()
        conv, pool, mark = (data.View(layout(name), self.instr.payload.word) for name in ("CONV", "POOL", "MARK"))
        form, table = (data.View(layout(name), self.instr.payload.word) for name in ("FORMAT", "TABLE"))
        is_mark, is_format, is_table, is_setting = (Signal(name=f"is_{name}") for name in ("mark", "format", "table", "setting"))
        m.d.comb += [
            is_format.eq(conv.opcode == isa.BY_NAME["FORMAT"].opcode),
            is_table.eq(conv.opcode == isa.BY_NAME["TABLE"].opcode),
            is_setting.eq(is_format | is_table),
            self.is_pool.eq(conv.opcode == isa.BY_NAME["POOL"].opcode),
            is_mark.eq(conv.opcode == isa.BY_NAME["MARK"].opcode),
        ]

        # Semaphores.
        taken = Signal()
        have = Signal()
        m.d.comb += [
            self.take_valid.eq(self.instr.valid & ~taken & ~self.stop),
            self.take_mask.eq(conv["wait"]),
            have.eq(taken | (self.take_valid & self.take_ok)),
        ]
        with m.If(self.take_valid & self.take_ok):
            m.d.sync += taken.eq(1)
        with m.If(self.instr.ready):
            m.d.sync += taken.eq(0)

        # What this machine was built without.
        unsupported, illegal, refused = Signal(), Signal(), Signal()
        with m.If(self.is_pool):
            m.d.comb += unsupported.eq(pool.planes > self.config.max_planes)
        with m.Elif(is_setting):
            if self.config.shift_lanes:
                m.d.comb += [
                    unsupported.eq(is_format & form.scaled & (self.config.shift_classes == 1)),
                    illegal.eq(is_format & (form.slices > self.config.k // self.config.shift_lanes)),
                ]
            else:
                m.d.comb += unsupported.eq(1)
        with m.Elif(~is_mark):
            packs = (conv.output == isa.Output.PLANES) | (conv.output == isa.Output.CODES)
            too_wide = packs & (conv.out_planes > self.config.max_planes)
            foreign = (conv.a_kind > Kind.BIPOLAR) | (conv.w_kind > Kind.BIPOLAR)
            if self.config.shift_lanes:
                foreign = Mux(conv.engine == isa.Engine.BIT_SERIAL, foreign, refused_by_engine(m, conv, self.form, self.config))
            else:
                foreign |= (conv.engine != isa.Engine.BIT_SERIAL) | (conv.output == isa.Output.CODES)
            m.d.comb += [unsupported.eq(foreign | too_wide), illegal.eq(conv.ng > self.config.tiles_per_word)]
        m.d.comb += refused.eq(unsupported | illegal)

        # Hand over.
        free, alone, sets = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq((~self.running | self.issued) & (~self.job_valid | self.job_ready)),
            self.load.eq(have & free & ~is_mark & ~is_setting & ~refused & ~self.stop),
            alone.eq(~self.running & ~self.job_valid & ~self.drain_busy),
            self.error.eq(have & ~is_mark & refused & alone & ~self.stop),
            self.error_cause.eq(Mux(unsupported, Cause.UNSUPPORTED, Cause.ILLEGAL_FIELD)),
            self.mark_valid.eq(taken & is_mark & alone & ~self.stop),
            self.mark_layer.eq(mark.layer),
            sets.eq(taken & is_setting & alone & ~refused & ~self.stop),
            self.instr.ready.eq(self.load | sets | (self.mark_valid & self.mark_done)),
            self.mark_give.eq(Mux(sets | (self.mark_valid & self.mark_done), conv.signal, 0)),
            self.busy.eq(self.running | self.job_valid | taken),
        ]
        if self.config.shift_lanes:
            entries = [getattr(table, f"entry_{i}") for i in range(isa.TABLE_PART)]
            with m.If(sets & is_format):
                m.d.sync += [self.form[name].eq(form[name]) for name in FORM.members]
            for which, kept in ((isa.Table.VALUES, self.values), (isa.Table.THRESHOLDS, self.thresholds)):
                for i, entry in enumerate(kept):
                    with m.If(sets & is_table & (table.table == which) & (table.half == i // isa.TABLE_PART)):
                        m.d.sync += entry.eq(entries[i % isa.TABLE_PART])
        with m.If(self.job_ready):
            m.d.sync += self.job_valid.eq(0)
        with m.If(self.load):
            m.d.sync += [
                self.job_valid.eq(1),
                self.job.pool_signed.eq(pool.is_signed),
                self.job.wgt_bipolar.eq(conv.w_kind == Kind.BIPOLAR),
                self.job.shift_add.eq(conv.engine == isa.Engine.SHIFT_ADD),
                self.job.ng.eq(conv.ng - 1),
                self.job.give.eq(conv.signal),
                self.job.pc.eq(self.instr.payload.pc),
            ]
            for name in JOB_FIELDS:
                value = getattr(conv, name)
                if name == "out_base":
                    value = Mux(self.is_pool, pool.out_base, conv.out_base)
                if name == "res_planes":
                    value = Mux(self.is_pool | (conv.output == isa.Output.PSUM), 0, conv.res_planes)
                m.d.sync += getattr(self.job, name).eq(value)

        # The cause of this cycle.
        m.d.comb += self.cause.eq(Counter.STALL_FETCH)
        with m.If(self.stepping):
            m.d.comb += self.cause.eq(Counter.BUSY)
        with m.Elif(~self.running & self.take_valid & ~self.take_ok & (self.lack & sum(WAITS)).any()):
            for sem, counter in reversed(WAITS.items()):
                with m.If((self.lack & sem).any()):
                    m.d.comb += self.cause.eq(counter)
        with m.Elif(self.running | self.job_valid | self.drain_busy):
            m.d.comb += self.cause.eq(Counter.STALL_DRAIN)
        return m
