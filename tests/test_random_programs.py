"""Random programs on the ISA simulator and on the RTL: the same memory, counters, cause and pc.

`python -m pytest tests/test_random_programs.py --seed N` replays one program.
"""

import numpy as np
import pytest
import random_programs as programs

from seriatim.csr import ACTIVITY_COUNTERS, Cause, Counter
from seriatim.errors import MachineError
from seriatim.isa import INSTR_BYTES
from seriatim.sim.session import Program

COUNT = 400
"""Random programs of `make test`."""
BATCHES = 2
SHOWN = 3
COUNTED = (Counter.READ_BEATS, Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS,
           *(c for c in ACTIVITY_COUNTERS if c is not Counter.RES_READS))
"""What both count. The RTL also reads residuals ahead in vain, as time allows."""


def open_rtl(batch: int):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    models = MemoryModel(latency=40), MemoryModel(latency=1, outstanding=3, stall_percent=40, seed=3)
    return RtlSession(programs.CONFIG, programs.SIZE, model=models[batch])


def check(case, rtl):
    """Runs a program on the RTL and compares it with the ISA simulator. Raises AssertionError."""
    machine, cause, at = programs.simulate(case)
    rtl.write(0, case.memory)
    program = Program(case.code, programs.PROGRAM, programs.READ, programs.WRITE)
    try:
        total = rtl.run(program, watchdog=20_000).total
        got = Cause.NONE, 0
    except MachineError as error:
        got = error.cause, error.pc // INSTR_BYTES
    assert got == (cause, at), f"stops with {got[0].name} at instruction {got[1]} instead of {cause.name} at {at}"
    memory = rtl.read(0, programs.SIZE)
    memory[programs.PROGRAM:programs.PROGRAM + len(case.code)] = case.memory[programs.PROGRAM:programs.PROGRAM + len(case.code)]
    expected = machine.memory
    if cause is not Cause.NONE:  # how far the queues had come is not defined, where they may write is
        first, beyond = programs.WRITE
        memory[first:beyond] = expected[first:beyond]
    wrong = np.flatnonzero(memory != expected)
    if wrong.size:
        at = wrong[0]
        raise AssertionError(f"{wrong.size} bytes differ, the first at {at:#x}: {memory[at]:#x} instead of {expected[at]:#x}")
    if cause is Cause.NONE:
        total[Counter.READ_BEATS] -= total[Counter.FETCH_BEATS]
        counted = {c.name: (total[c], machine.counters[c]) for c in COUNTED if total[c] != machine.counters[c]}
        assert not counted, f"counters of the RTL and of the ISA simulator differ: {counted}"


@pytest.mark.unit
def test_order_of_queues_does_not_matter():
    """The tokens order everything, so these programs may be compared with a machine that overlaps."""
    for seed in range(8):
        case = programs.draw(seed, illegal=0)
        by_load, by_store, by_chance = (programs.simulate(case, order)[0].memory for order in ("load", "store", seed))
        assert np.array_equal(by_load, by_store) and np.array_equal(by_load, by_chance), case


@pytest.mark.rtl
@pytest.mark.parametrize("batch", range(BATCHES), ids=["steady", "holding"])
def test_levels_agree(request, batch):
    option = request.config.getoption
    first, count = option("--first"), option("--count") or COUNT
    seeds = [option("--seed")] if option("--seed") is not None else range(first, first + count)
    failures, stopped = [], 0
    with open_rtl(batch) as rtl:
        for seed in seeds:
            if seed % BATCHES == batch:
                case = programs.draw(seed)
                stopped += case.cause is not Cause.NONE
                try:
                    check(case, rtl)
                except AssertionError as error:
                    replay = f"replay: python -m pytest tests/test_random_programs.py --seed {seed}"
                    failures.append(f"{case}\n    {error}\n    {replay}")
    assert not failures, f"{len(failures)} programs fail:\n" + "\n".join(failures[:SHOWN])
    assert stopped or len(seeds) < COUNT, "no program was refused"
