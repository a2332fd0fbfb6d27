"""Units that sleep change nothing: the same programs take the same cycles to the same end where every unit is always clocked."""

import numpy as np
import pytest
import random_programs as programs

from seriatim.csr import Counter
from seriatim.errors import MachineError
from seriatim.hw.sleep import UNITS, Sleep
from seriatim.sim.rtl import RtlSession
from seriatim.sim.session import Program
from seriatim.sim.verilated import MemoryModel

COUNT = 100
MODELS = {"steady": MemoryModel(latency=40), "holding": MemoryModel(latency=3, outstanding=2, stall_percent=30, seed=7),
          "failing": MemoryModel(latency=10, read_error_beat=700, write_error_burst=60)}


def outcome(session: RtlSession, case) -> tuple:
    """Cycles, cause, pc, counters, memory."""
    session.write(0, case.memory)
    before = session.verilated.cycles
    try:
        session.run(Program(case.code, programs.PROGRAM, programs.READ, programs.WRITE), watchdog=3000)
        end = None
    except MachineError as error:
        end = error.cause, error.pc
    counters = [session.csr_read(f"{counter.name}_{half}") for counter in Counter for half in ("LO", "HI")]
    return session.verilated.cycles - before, end, counters, session.read(0, programs.SIZE)


@pytest.mark.rtl
@pytest.mark.parametrize("model", MODELS)
def test_same_cycles_and_bytes(model):
    with (RtlSession(programs.CONFIG, programs.SIZE, model=MODELS[model]) as sleeping,
          RtlSession(programs.CONFIG, programs.SIZE, model=MODELS[model]) as awake):
        awake.verilated.sleep(False)
        ends = set()
        for seed in range(COUNT):
            case = programs.draw(seed, illegal=0.2)
            *got, memory = outcome(sleeping, case)
            *expected, reference = outcome(awake, case)
            assert got == expected, f"seed {seed}: {case}"
            assert np.array_equal(memory, reference), f"seed {seed}: {case}"
            ends.add(got[1] and got[1][0])
        assert None in ends and len(ends) > 1, "not every way to end was met"


@pytest.mark.rtl
def test_units_rest():
    """Between runs no unit asks for its clock, and a reset of a machine at work wakes all."""
    with RtlSession(programs.CONFIG, programs.SIZE) as session:
        top = session.verilated
        top.step(2)
        assert not any(top.peek(f"wake_{unit}") for unit in UNITS)
        case = programs.draw(1, illegal=0)
        first = outcome(session, case)
        session.csr_write("CTRL", 1)
        top.step(200)
        assert any(top.peek(f"wake_{unit}") for unit in UNITS)
        top.reset()
        assert not any(top.peek(f"wake_{unit}") for unit in UNITS)
        again = outcome(session, case)
        assert again[:3] == first[:3] and np.array_equal(again[3], first[3])


@pytest.mark.unit
def test_one_clock_where_nothing_sleeps():
    assert Sleep(False).ports() == {} and Sleep(False).domain("load") == "sync"
