"""Random illegal programs on the ISA simulator and on the RTL: the same cause and pc, nothing written that the program before the
fault does not write, and the same machine runs a valid program right afterwards.

`python -m pytest tests/test_random_illegal.py --seed N` replays one program.
"""

from collections import Counter

import numpy as np
import pytest
import random_illegal as illegal

from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.isa import INSTR_BYTES
from seriatim.sim.session import Program

programs = illegal.programs

COUNT = 1080
"""Random illegal programs of `make test`."""
LEAST = 7
"""Programs of each rule among them."""
BATCHES = 2
SHOWN = 3
VALID = 6
"""Programs, with a dump of every buffer, that take turns at showing that the machine still works."""
WATCHDOG, MOST_CYCLES = 3000, 200_000


def open_rtl(batch: int):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    models = MemoryModel(latency=25), MemoryModel(latency=1, outstanding=3, stall_percent=40, seed=3)
    return RtlSession(programs.CONFIG, programs.SIZE, model=models[batch], max_cycles=MOST_CYCLES)


def valid_programs() -> list:
    """(case, memory that it leaves)."""
    cases = [programs.draw(seed, illegal=0) for seed in range(10_000, 10_000 + VALID)]
    return [(case, programs.simulate(case)[0].memory) for case in cases]


def run(rtl, code: bytes, memory: np.ndarray, read_range, write_range) -> np.ndarray:
    """Memory after a program; where the program lies, it is as before. Raises MachineError."""
    rtl.write(0, memory)
    try:
        rtl.run(Program(code, programs.PROGRAM, read_range, write_range), WATCHDOG)
    finally:
        rtl.memory[programs.PROGRAM:programs.PROGRAM + len(code)] = memory[programs.PROGRAM:programs.PROGRAM + len(code)]
    return rtl.read(0, programs.SIZE)


def check(case, rtl):
    """The RTL stops as the ISA simulator did. Raises AssertionError."""
    try:
        run(rtl, case.code, case.memory, case.read_range, case.write_range)
        raise AssertionError(f"runs to its end instead of stopping with {case.rule.cause.name} at instruction {case.at}")
    except MachineError as error:
        assert error.cause is not None, str(error)
        got = error.cause, error.pc // INSTR_BYTES
    assert got == (case.rule.cause, case.at), (
        f"stops with {got[0].name} at instruction {got[1]} instead of {case.rule.cause.name} at {case.at}")
    assert rtl.csr_read("STATUS") & 7 == 4, "stopped with an error, not busy, not done"
    memory = rtl.read(0, programs.SIZE)
    if case.rule.cause is Cause.AXI_WRITE:  # bursts in flight behind the one that failed may have been written
        before = case.history[case.complete]
        explained = [(memory == before) | np.any([memory == later for later in case.history[case.complete:]], 0)]
    else:  # segments in the program's order, the last of them perhaps in part
        steps = zip(case.history[case.complete:], [*case.history[case.complete + 1:], case.history[-1]])
        explained = [(memory == before) | (memory == after) for before, after in steps]
    best = min(explained, key=lambda same: np.count_nonzero(~same))
    wrong = np.flatnonzero(~best)
    assert not wrong.size, f"{wrong.size} bytes are none that the stores so far write, the first at {wrong[0]:#x}"


def recovers(rtl, case, expected: np.ndarray):
    """A valid program gives the memory that the ISA simulator gives."""
    try:
        memory = run(rtl, case.code, case.memory, programs.READ, programs.WRITE)
    except MachineError as error:
        raise AssertionError(f"afterwards a valid program fails: {error}") from error
    wrong = np.flatnonzero(memory != expected)
    assert not wrong.size, f"afterwards {wrong.size} bytes of a valid program differ, the first at {wrong[0]:#x}"


@pytest.mark.unit
def test_every_rule_is_broken():
    """The programs of `make test` break each rule LEAST times, and every cause is among them."""
    rules = Counter(seed % len(illegal.RULES) for seed in range(COUNT))
    assert len(rules) == len(illegal.RULES) and min(rules.values()) >= LEAST
    assert {rule.cause for rule in illegal.RULES} == set(Cause) - {Cause.NONE}


@pytest.mark.rtl
@pytest.mark.parametrize("batch", range(BATCHES), ids=["steady", "holding"])
def test_the_machine_stops(request, batch):
    option = request.config.getoption
    first, count = option("--first"), option("--count") or COUNT
    seeds = [option("--seed")] if option("--seed") is not None else range(first, first + count)
    failures, valid = [], valid_programs()
    with open_rtl(batch) as rtl:
        for seed in seeds:
            if seed // len(illegal.RULES) % BATCHES != batch:
                continue
            case = illegal.draw(seed)
            try:
                check(case, rtl)
                recovers(rtl, *valid[seed % VALID])
            except AssertionError as error:
                failures.append(f"{case}\n    {error}\n    replay: python -m pytest tests/test_random_illegal.py --seed {seed}")
                rtl.verilated.reset()
    assert not failures, f"{len(failures)} programs fail:\n" + "\n".join(failures[:SHOWN])
