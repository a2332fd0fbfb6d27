"""The execute unit against the ISA simulator: every word of the out buffer and the psum memory."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from seriatim import isa
from seriatim.csr import Cause, Counter
from seriatim.sim.isasim import Machine

_spec = importlib.util.spec_from_file_location("execute_bench", Path(__file__).parent / "execute_bench.py")
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


pytestmark = [pytest.mark.rtl, pytest.mark.skipif(not bench.tools(), reason="needs verilator and a C++ compiler")]
SMALL = ["2x4x32", "3x8x32"]


def make(name, seed):
    rng = np.random.default_rng(seed)
    machine = Machine(bench.CONFIGS[name], np.zeros(64, np.uint8))
    bench.fill(machine, rng)
    return rng, machine, bench.Bench(machine)


def check(machine, unit, program, stall=0):
    """Runs `program` on both and compares the buffers, the counters and the signals; returns the unit's counts."""
    before = dict(machine.counters)
    for name, fields in program:
        fields = isa.decode(isa.encode(name, **fields))[1]
        machine.step(isa.BY_NAME[name], fields)
    result, gives = unit.run(program, stall)
    assert not result.error_cause, (Cause(result.error_cause), result.error_pc)
    wrong = np.argwhere(machine.out != unit.out_bits)
    assert not len(wrong), f"{len(wrong)} bits of out words {sorted(set(wrong[:, 0].tolist()))} differ: {program}"
    assert gives == [f.get("signal", 0) for _, f in program]
    counted = {c: machine.counters[c] - before[c] for c in before}
    assert (result.array_steps, result.pool_steps, result.requants) == (
        counted[Counter.ARRAY_STEPS], counted[Counter.POOL_STEPS], counted[Counter.REQUANTS])
    assert sum(result.causes) >= result.cycles and not result.writes_outside
    assert result.causes[Counter.BUSY] == result.array_steps + result.pool_steps
    return result


def random_program(rng, config, count):
    program = []
    for _ in range(count):
        kind = rng.integers(10)
        if kind == 0:
            program.append(("MARK", dict(layer=int(rng.integers(256)), signal=int(rng.integers(0, 1 << isa.SEM_COUNT)))))
        elif kind < 3:
            program.append(("POOL", bench.random_pool(rng, config)))
        else:
            program.append(("CONV", bench.random_conv(rng, config)))
    return program


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", SMALL)
def test_random_programs(name, seed):
    rng, machine, unit = make(name, seed)
    for stall in (0, 30, 90):
        check(machine, unit, random_program(rng, machine.config, 12), stall)
        for part in bench.dump_psum(machine.config):
            check(machine, unit, part)
