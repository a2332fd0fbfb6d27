"""The execute unit: CONV and POOL on the array, MARK to the profile unit."""

from amaranth.hdl import Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause

from .activity import ARRAY_ACTIVITY
from .array import Array
from .dispatch import JOB, Dispatch
from .drain import PARAM, Drain
from .layouts import QUEUED
from .pool import Pool
from .sequencer import Sequencer
from .shift import ShiftAdd
from .sleep import AWAKE, Sleep


class Execute(wiring.Component):
    """Executes CONV, POOL and MARK instructions in order.

    A step (one act word and one wgt word) is issued every cycle; a following instruction starts without a gap if it is there,
    while its predecessor still drains. Words of M or N lanes are ports of their own (`act_data[m]`, `prm_data[n].b`), at most
    K bits each: simulators are much faster so.

    Members
    -------
    instr : instructions, checked for opcode, field ranges and zero rest.
    take_valid, take_mask, take_ok, lack : semaphores to take one from; taken in the cycle where take_valid & take_ok. `lack`:
        those of take_mask that are zero.
    give_valid, give_mask, give_pc : semaphores to add one to, when the last result of the instruction at give_pc has been
        written.
    act_*, wgt_*, prm_*, res_* : read ports; data follow one cycle after address and enable.
    out_* : write port; `out_we` has one bit for each slice.
    cause : the csr.Counter (0 to 7) that this cycle belongs to.
    array_step, pool_step, requant_step, psum_read, psum_write : events.
    shift_step, shift_act, shift_wgt : the array step is the shift-add array's; it reads an act word, a wgt word.
    activity : as in Array.
    mark_valid, mark_layer, mark_done : the profile unit copies the counters and answers mark_done.
    error_valid, error_cause, error_pc : held until `clear`; the unit has stopped. All earlier instructions have finished.
    halt : no more steps and no writes.
    clear : back to the idle state.
    drain_awake, pool_awake, shift_awake : `awake` of the drain, the pool unit and the shift-add array.
    """

    def __init__(self, config: Config, simulation: bool = False, sleep: Sleep = AWAKE):
        self.config = config
        self.simulation = simulation
        self.sleep = sleep
        c = config
        super().__init__({
            "instr": In(stream.Signature(QUEUED)),
            "take_valid": Out(1),
            "take_mask": Out(isa.SEM_COUNT),
            "take_ok": In(1),
            "lack": In(isa.SEM_COUNT),
            "give_valid": Out(1),
            "give_mask": Out(isa.SEM_COUNT),
            "give_pc": Out(32),
            "act_en": Out(1),
            "act_addr": Out(16),
            "act_data": In(c.k).array(c.m),
            "act_valid": In(c.m),
            "wgt_en": Out(1),
            "wgt_addr": Out(16),
            "wgt_data": In(c.k).array(c.n),
            "prm_en": Out(1),
            "prm_addr": Out(16),
            "prm_data": In(PARAM).array(c.n),
            "res_en": Out(1),
            "res_addr": Out(16),
            "res_data": In(c.k).array(c.m),
            "out_we": Out(c.m),
            "out_addr": Out(16),
            "out_data": Out(c.k).array(c.m),
            "cause": Out(4),
            "array_step": Out(1),
            "shift_step": Out(1),
            "shift_act": Out(1),
            "shift_wgt": Out(1),
            "pool_step": Out(1),
            "requant_step": Out(1),
            "psum_read": Out(1),
            "psum_write": Out(1),
            "activity": Out(64).array(len(ARRAY_ACTIVITY)),
            "mark_valid": Out(1),
            "mark_layer": Out(8),
            "mark_done": In(1),
            "error_valid": Out(1),
            "error_cause": Out(4),
            "error_pc": Out(32),
            "halt": In(1),
            "busy": Out(1),
            "clear": In(1),
            "drain_awake": Out(1),
            "pool_awake": Out(1),
            "shift_awake": Out(1),
        })
        self.sequencer = Sequencer(c)

    def elaborate(self, platform):
        m = Module()
        c = self.config
        reset = ResetInserter(self.clear)
        dispatch, sequencer, drain = Dispatch(c), self.sequencer, Drain(c)
        array, pool = Array(c, self.simulation), Pool(c)
        m.submodules.dispatch = reset(dispatch)
        m.submodules.sequencer = reset(sequencer)
        m.submodules.array = reset(array)
        m.submodules.pool = self.sleep.put("pool", reset(pool))
        m.submodules.drain = self.sleep.put("drain", reset(drain))
        m.d.comb += [self.pool_awake.eq(pool.awake), self.drain_awake.eq(drain.awake)]
        rows, cols = range(c.m), range(c.n)

        # Instructions.
        stop = Signal()
        wiring.connect(m, wiring.flipped(self.instr), dispatch.instr)
        m.d.comb += [
            stop.eq(self.halt | self.error_valid),
            dispatch.stop.eq(stop), sequencer.stop.eq(stop), drain.stop.eq(stop),
            self.take_valid.eq(dispatch.take_valid), self.take_mask.eq(dispatch.take_mask),
            dispatch.take_ok.eq(self.take_ok), dispatch.lack.eq(self.lack),
            self.mark_valid.eq(dispatch.mark_valid), self.mark_layer.eq(dispatch.mark_layer),
            dispatch.mark_done.eq(self.mark_done),
            self.give_valid.eq(drain.give_valid | dispatch.mark_give.any()),
            self.give_mask.eq(Mux(drain.give_valid, drain.give_mask, dispatch.mark_give)),
            self.give_pc.eq(Mux(drain.give_valid, drain.error_pc, self.instr.payload.pc)),
            self.cause.eq(dispatch.cause),
            self.busy.eq(dispatch.busy | drain.busy),
            dispatch.running.eq(sequencer.running), dispatch.issued.eq(sequencer.issued),
            dispatch.stepping.eq(sequencer.stepping),
            dispatch.drain_busy.eq(drain.busy),
            sequencer.load.eq(dispatch.load), sequencer.is_pool.eq(dispatch.is_pool), sequencer.instr.eq(self.instr.payload),
            sequencer.job_valid.eq(dispatch.job_valid),
            drain.job_valid.eq(dispatch.job_valid), dispatch.job_ready.eq(drain.job_ready),
        ]
        m.d.comb += [getattr(drain.job, name).eq(getattr(dispatch.job, name)) for name in JOB.members]

        # Steps.
        m.d.comb += [
            self.act_en.eq(sequencer.act_en), self.act_addr.eq(sequencer.act_addr),
            self.wgt_en.eq(sequencer.wgt_en), self.wgt_addr.eq(sequencer.wgt_addr),
            array.valid.eq(sequencer.array_valid), array.step.eq(sequencer.array_step_of), array.load.eq(sequencer.pool_valid),
            array.act_valid.eq(self.act_valid),
            pool.valid.eq(sequencer.pool_valid), pool.step.eq(sequencer.pool_step_of), pool.is_signed.eq(drain.pool_signed),
            self.array_step.eq(sequencer.array_step), self.pool_step.eq(sequencer.pool_step),
        ]
        m.d.comb += [array.act[i].eq(self.act_data[i]) for i in rows]
        m.d.comb += [array.wgt[j].eq(self.wgt_data[j]) for j in cols]
        m.d.comb += [pool.act[i].eq(array.taps[i]) for i in rows]

        # Results.
        m.d.comb += [
            sequencer.drain_free.eq(drain.free), sequencer.filled.eq(drain.filled),
            array.row_en.eq(drain.row_en), array.row.eq(drain.row), drain.r.eq(array.r),
            drain.pool_valid.eq(pool.out_valid), drain.pool_done.eq(pool.done),
            self.prm_en.eq(drain.prm_en), self.prm_addr.eq(drain.prm_addr),
            self.res_en.eq(drain.res_en), self.res_addr.eq(drain.res_addr),
            self.out_we.eq(drain.out_we), self.out_addr.eq(drain.out_addr),
            self.requant_step.eq(drain.requant_step), self.psum_read.eq(drain.psum_read), self.psum_write.eq(drain.psum_write),
        ]
        if not c.shift_lanes:
            m.d.comb += [drain.filled.eq(array.filled), drain.filled_final.eq(array.filled_final)]
        m.d.comb += [mine.eq(its) for mine, its in zip(self.activity, array.activity)]
        m.d.comb += [drain.x[j].eq(array.x[j]) for j in cols]
        m.d.comb += [drain.pool[i].eq(pool.out[i]) for i in rows]
        m.d.comb += [drain.res_data[i].eq(self.res_data[i]) for i in rows]
        m.d.comb += [self.out_data[i].eq(drain.out_data[i]) for i in rows]
        for j in cols:
            m.d.comb += [drain.prm_data[j].b.eq(self.prm_data[j].b), drain.prm_data[j].m.eq(self.prm_data[j].m)]

        if c.shift_lanes:
            self._shift_add(m, reset, dispatch, sequencer, array, drain)

        # The first error, in the program's order, stays: an address of the sequencer's waits until the drain has come to its job.
        with m.If(~self.error_valid):
            with m.If(drain.error):
                m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(Cause.BUFFER_RANGE), self.error_pc.eq(drain.error_pc)]
            with m.Elif(sequencer.error & drain.busy & (drain.error_pc == sequencer.error_pc)):
                m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(Cause.BUFFER_RANGE),
                             self.error_pc.eq(sequencer.error_pc)]
            with m.Elif(dispatch.error):
                m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(dispatch.error_cause),
                             self.error_pc.eq(self.instr.payload.pc)]
        with m.If(self.clear):
            m.d.sync += self.error_valid.eq(0)
        return m

    def _shift_add(self, m, reset, dispatch, sequencer, array, drain):
        """The shift-add array beside the bit-serial one."""
        shift = ShiftAdd(self.config)
        m.submodules.shift = self.sleep.put("shift", reset(shift))
        m.d.comb += [
            self.shift_awake.eq(shift.awake),
            self.shift_step.eq(sequencer.shift_step), self.shift_act.eq(sequencer.shift_act),
            self.shift_wgt.eq(sequencer.shift_wgt),
            sequencer.form.eq(dispatch.form), shift.form.eq(dispatch.form), drain.drop.eq(dispatch.form.drop),
            shift.valid.eq(sequencer.shift_valid), shift.step.eq(sequencer.shift_step_of),
            drain.filled.eq(array.filled | shift.filled),
            drain.filled_final.eq(Mux(shift.filled, shift.filled_final, array.filled_final)),
            shift.row_en.eq(drain.shift_row_en), shift.row.eq(drain.row),
        ]
        for mine, its in ((shift.act, self.act_data), (shift.wgt, self.wgt_data), (shift.table, dispatch.values),
                          (drain.shift_x, shift.x), (drain.thresholds, dispatch.thresholds)):
            m.d.comb += [port.eq(value) for port, value in zip(mine, its)]
