"""The counting semaphores, and the ports that a unit which executes instructions has."""

from amaranth.hdl import Array, Module, Signal
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
    awake : see `sleep`.
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
        "awake": Out(1),
    }


class Semaphores(wiring.Component):
    """`isa.SEM_COUNT` counters with three takers and three givers.

    A taker gets all it asks for, or nothing, in the same cycle; where two ask for the same semaphore at once, the one of lower
    index goes first and the other waits a cycle.

    Members
    -------
    take_valid, take_mask, take_ok, lack : for each unit; `lack`: those of take_mask that are zero.
    give_valid, give_mask, give_pc : for each unit.
    overflow, overflow_pc : the instruction at overflow_pc signalled a semaphore past its range (in the cycle after).
    awake : see `sleep`.
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
            "overflow": Out(1),
            "overflow_pc": Out(32),
            "awake": Out(1),
        })
        self.levels = [Signal(isa.SEM_BITS, name=f"level_{s.name.lower()}") for s in isa.Sem]

    def elaborate(self, platform):
        m = Module()
        levels = self.levels
        some = Signal(isa.SEM_COUNT)  # levels above zero
        earlier = 0
        for unit in range(UNITS):
            mask = self.take_mask[unit]
            m.d.comb += self.lack[unit].eq(mask & ~some)
            m.d.comb += self.take_ok[unit].eq((self.lack[unit] == 0) & ((mask & earlier) == 0))
            own = Signal(isa.SEM_COUNT, name=f"taken_{unit}")
            with m.If(self.take_valid[unit] & self.take_ok[unit]):
                m.d.comb += own.eq(mask)
            earlier = earlier | own
        given = []
        for unit in range(UNITS):
            own = Signal(isa.SEM_COUNT, name=f"given_{unit}")
            with m.If(self.give_valid[unit]):
                m.d.comb += own.eq(self.give_mask[unit])
            given.append(own)

        # Written so that a simulator has nothing to do where nothing moves. A semaphore has at most one taker in a cycle.
        any_given, two_given, moved = (Signal(isa.SEM_COUNT, name=name) for name in ("any_given", "two_given", "moved"))
        m.d.comb += [
            any_given.eq(given[0] | given[1] | given[2]),
            two_given.eq((given[0] & given[1]) | (given[0] & given[2]) | (given[1] & given[2])),
            moved.eq(earlier | any_given),
            self.awake.eq((moved != 0) | self.overflow),
        ]
        # Which instruction an overflow is due to is found a cycle later: takes and gives take long enough to find.
        past = Signal(isa.SEM_COUNT)  # semaphores signalled past their range, a cycle ago
        with m.If(past != 0):
            m.d.sync += past.eq(0)
        with m.If(moved != 0):
            for i, level in enumerate(levels):
                with m.If(moved[i]):
                    m.d.sync += [
                        level.eq(level + sum(mask[i] for mask in given) - earlier[i]),
                        some[i].eq((level > earlier[i]) | any_given[i]),
                    ]
                m.d.sync += past[i].eq(level.all() & any_given[i] & (two_given[i] | ~earlier[i]))
        givers = [Signal(isa.SEM_COUNT, name=f"giver_{unit}", reset_less=True) for unit in range(UNITS)]
        pcs = [Signal(32, name=f"pc_{unit}", reset_less=True) for unit in range(UNITS)]
        with m.If(any_given != 0):
            m.d.sync += [mine.eq(its) for mine, its in zip((*givers, *pcs), (*given, *self.give_pc))]
        chosen = Signal(range(UNITS))  # of the highest semaphore, the last unit that gave it
        m.d.comb += self.overflow.eq(past != 0)
        for i in range(isa.SEM_COUNT):
            with m.If(past[i]):
                for unit in range(UNITS):
                    with m.If(givers[unit][i]):
                        m.d.comb += chosen.eq(unit)
        m.d.comb += self.overflow_pc.eq(Array(pcs)[chosen])
        return m
