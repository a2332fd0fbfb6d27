"""The counting semaphores, and the ports that a unit which executes instructions has."""

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa

from .layouts import QUEUED

UNITS = 3
"""Load, execute, store."""


def unit_ports() -> dict:
    """Ports of the load and store units (and of execute, which has more).

    instr : instructions, checked for opcode, field ranges and zero rest; held until nothing needs their fields any more.
    take_valid, take_mask, take_ok : semaphores to take one from; taken in the cycle where take_valid & take_ok.
    give_valid, give_mask, give_pc : semaphores to add one to, when the instruction at give_pc has finished.
    error_valid, error_cause, error_pc : held until reset (which the top also does at each start); the unit has stopped.
    halt : stop; another unit failed. busy : an instruction is under way.
    """
    return {
        "instr": In(stream.Signature(QUEUED)),
        "take_valid": Out(1),
        "take_mask": Out(isa.SEM_COUNT),
        "take_ok": In(1),
        "give_valid": Out(1),
        "give_mask": Out(isa.SEM_COUNT),
        "give_pc": Out(32),
        "error_valid": Out(1),
        "error_cause": Out(4),
        "error_pc": Out(32),
        "halt": In(1),
        "busy": Out(1),
    }


class Semaphores(wiring.Component):
    """`isa.SEM_COUNT` counters with three takers and three givers.

    A taker gets all it asks for, or nothing, in the same cycle; where two ask for the same semaphore at once, the one of lower
    index goes first and the other waits a cycle.

    Members
    -------
    take_valid, take_mask, take_ok, lack : for each unit; `lack`: those of take_mask that are zero.
    give_valid, give_mask, give_pc : for each unit.
    overflow, overflow_pc : bit i: unit i signalled a semaphore past its range (in the cycle after), by the instruction at
        overflow_pc[i].
    """

    def __init__(self):
        super().__init__({
            "take_valid": In(1).array(UNITS),
            "take_mask": In(isa.SEM_COUNT).array(UNITS),
            "take_ok": Out(1).array(UNITS),
            "lack": Out(isa.SEM_COUNT).array(UNITS),
            "give_valid": In(1).array(UNITS),
            "give_mask": In(isa.SEM_COUNT).array(UNITS),
            "give_pc": In(32).array(UNITS),
            "overflow": Out(UNITS),
            "overflow_pc": Out(32).array(UNITS),
        })

    def elaborate(self, platform):
        m = Module()
        counts = Array(Signal(isa.SEM_BITS, name=f"count_{s.name.lower()}") for s in isa.Sem)
        empty = Signal(isa.SEM_COUNT)
        m.d.comb += empty.eq(Cat(count == 0 for count in counts))
        taken = []
        earlier = 0
        for unit in range(UNITS):
            mask = self.take_mask[unit]
            m.d.comb += self.lack[unit].eq(mask & empty)
            m.d.comb += self.take_ok[unit].eq((self.lack[unit] == 0) & ((mask & earlier) == 0))
            own = Signal(isa.SEM_COUNT, name=f"taken_{unit}")
            with m.If(self.take_valid[unit] & self.take_ok[unit]):
                m.d.comb += own.eq(mask)
            earlier = earlier | own
            taken.append(own)
        given = []
        for unit in range(UNITS):
            own = Signal(isa.SEM_COUNT, name=f"given_{unit}")
            with m.If(self.give_valid[unit]):
                m.d.comb += own.eq(self.give_mask[unit])
            given.append(own)
        late = [Signal(isa.SEM_COUNT, name=f"late_{unit}", reset_less=True) for unit in range(UNITS)]
        moved = Signal(isa.SEM_COUNT)
        over = Signal(isa.SEM_COUNT)
        m.d.comb += moved.eq(earlier | given[0] | given[1] | given[2])
        with m.If(moved != 0):
            for unit in range(UNITS):
                m.d.sync += [late[unit].eq(given[unit]), self.overflow_pc[unit].eq(self.give_pc[unit])]
            for i, count in enumerate(counts):
                with m.If(moved[i]):
                    more, less = (sum(mask[i] for mask in masks) for masks in (given, taken))
                    m.d.sync += Cat(count, over[i]).eq(count + more - less)
        m.d.comb += [self.overflow[unit].eq((over & late[unit]) != 0) for unit in range(UNITS)]
        return m
