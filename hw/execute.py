"""The execute unit: CONV and POOL on the array, MARK to the profile unit."""

from amaranth.hdl import Module, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config

from .layouts import QUEUED

PARAM = wiring.Signature({"b": Out(signed(64)), "m": Out(signed(32))})
"""Requantisation parameters of one channel."""


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
    give_valid, give_mask : semaphores to add one to, when an instruction's last result has been written.
    act_*, wgt_*, prm_*, res_* : read ports; data follow one cycle after address and enable.
    out_* : write port; `out_we` has one bit for each slice.
    cause : the csr.Counter (0 to 7) that this cycle belongs to.
    array_step, pool_step, requant_step : events.
    mark_valid, mark_layer, mark_done : the profile unit copies the counters and answers mark_done.
    error_valid, error_cause, error_pc : held until `clear`; the unit has stopped.
    halt : no more steps and no writes.
    clear : back to the idle state.
    """

    def __init__(self, config: Config, simulation: bool = False):
        self.config = config
        self.simulation = simulation
        c = config
        super().__init__({
            "instr": In(stream.Signature(QUEUED)),
            "take_valid": Out(1),
            "take_mask": Out(isa.SEM_COUNT),
            "take_ok": In(1),
            "lack": In(isa.SEM_COUNT),
            "give_valid": Out(1),
            "give_mask": Out(isa.SEM_COUNT),
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
            "pool_step": Out(1),
            "requant_step": Out(1),
            "mark_valid": Out(1),
            "mark_layer": Out(8),
            "mark_done": In(1),
            "error_valid": Out(1),
            "error_cause": Out(4),
            "error_pc": Out(32),
            "halt": In(1),
            "busy": Out(1),
            "clear": In(1),
        })

    def elaborate(self, platform):
        return Module()
