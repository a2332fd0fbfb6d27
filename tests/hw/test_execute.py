"""The execute unit against the ISA simulator: every word of the out buffer and the psum memory."""

import execute_bench as bench
import numpy as np
import pytest

from seriatim import isa
from seriatim.csr import Cause, Counter
from seriatim.sim.isasim import Machine

pytestmark = [pytest.mark.rtl, pytest.mark.skipif(not bench.tools(), reason="needs verilator and a C++ compiler")]
SMALL = ["2x4x32", "3x8x32"]
SHIFT = ["2x4x32 shift", "3x2x32 shift"]


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
    assert gives == [f.get("signal", 0) for name, f in program if name in ("CONV", "POOL") or f.get("signal")]
    counted = {c: machine.counters[c] - before[c] for c in before}
    assert (result.array_steps, result.pool_steps, result.requants) == (
        counted[Counter.ARRAY_STEPS], counted[Counter.POOL_STEPS], counted[Counter.REQUANTS])
    assert sum(result.causes) >= result.cycles and not result.writes_outside
    assert result.causes[Counter.BUSY] == result.array_steps + result.pool_steps
    return result


def random_program(rng, config, count, shift=False):
    """`shift`: it sets formats and tables, and two CONVs in three are the shift-add engine's."""
    program, form = [], isa.decode(isa.encode("FORMAT"))[1]
    for _ in range(count):
        kind = rng.integers(10)
        if shift and rng.random() < 0.2:
            program.append(("FORMAT", bench.random_format(rng, config)))
            form = isa.decode(isa.encode("FORMAT", **program[-1][1]))[1]
        elif shift and rng.random() < 0.2:
            program.append(("TABLE", bench.random_table(rng)))
        elif shift and kind > 3:
            program.append(("CONV", bench.random_conv(rng, config, form)))
        elif kind == 0:
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SHIFT)
def test_random_shift_add_programs(name, seed):
    rng, machine, unit = make(name, seed)
    for stall in (0, 0, 30, 90):
        machine.format = isa.decode(isa.encode("FORMAT"))[1]
        check(machine, unit, [("FORMAT", {})] + random_program(rng, machine.config, 16, shift=True), stall)
        check(machine, unit, [("FORMAT", {})])
        for part in bench.dump_psum(machine.config):
            check(machine, unit, part)


CONV = dict(ny=2, nx=4, ng=3, kh=2, kw=2, nc=1, sy=40, sx=4, skh=40, skw=4, a_bits=4, w_bits=2, w_kind=1, wgt_g=8, wgt_tap=2,
            out_planes=4, hi=15, shift=4)


def test_no_gaps():
    """Back to back: the array takes a word in all but a few cycles, also across instructions and small column tiles."""
    _, machine, unit = make("3x8x32", 0)
    around = 3 + 30 + 31  # the start, the last drain, and the wait of the bench for the end
    result = check(machine, unit, [("CONV", CONV)] * 5)
    assert result.cycles - result.causes[Counter.BUSY] <= around, bench.stalls(result)
    # Tiles as short as can be drained: each instruction also waits until its predecessor's last words are out.
    result = check(machine, unit, [("CONV", dict(CONV, kh=1, kw=1, a_bits=6, w_bits=1))] * 5)
    assert result.cycles - result.causes[Counter.BUSY] <= around + 5 * 15, bench.stalls(result)


@pytest.mark.parametrize("change, depth", [
    (dict(act_base=390), "act"), (dict(sx=200), "act"), (dict(ring_base=0, ring_words=5000, sy=390), "act"),
    (dict(wgt_base=150), "wgt"), (dict(wgt_g=100), "wgt"), (dict(prm_base=22), "prm"),
    (dict(out_base=290), "out"), (dict(out_base=290, output=1), "out"),
    (dict(psum_base=100, output=2), "psum"), (dict(psum_base=100, psum_add=1), "psum"),
    (dict(res_base=190, res_planes=4, res_pitch=4), "res"), (dict(sx=0xFFFF), "act"), (dict(wgt_tap=0xFFFF), "wgt"),
    (dict(skh=0xFFFF, sy=0xFFFF), "act"),
])
def test_addresses_outside_stop_it(change, depth):
    _, machine, unit = make("2x4x32", 1)
    with pytest.raises(Exception, match=depth.upper()):
        machine.step(isa.BY_NAME["CONV"], isa.decode(isa.encode("CONV", **CONV | change))[1])
    result, gives = unit.run([("CONV", CONV), ("CONV", dict(CONV, signal=1, **change)), ("CONV", dict(CONV, signal=2))])
    assert (result.error_cause, result.error_pc, result.writes_outside) == (Cause.BUFFER_RANGE, 64, 0)
    assert gives == [0]
    recover(unit)


@pytest.mark.parametrize("change, cause", [
    (dict(engine=1), Cause.UNSUPPORTED), (dict(a_kind=3), Cause.UNSUPPORTED), (dict(w_kind=4), Cause.UNSUPPORTED),
    (dict(ng=9), Cause.ILLEGAL_FIELD),
])
def test_refuses_what_it_cannot_do(change, cause):
    _, machine, unit = make("2x4x32", 1)
    result, gives = unit.run([("CONV", CONV), ("CONV", CONV | change), ("CONV", CONV)])
    assert (result.error_cause, result.error_pc) == (cause, 64)
    recover(unit)


def test_pool_outside_stops_it():
    _, machine, unit = make("2x4x32", 1)
    result, _ = unit.run([("POOL", dict(nx=4, kw=2, sx=8, skw=4, planes=4, out_base=290))])
    assert (result.error_cause, result.error_pc, result.writes_outside) == (Cause.BUFFER_RANGE, 0, 0)
    recover(unit)


def recover(unit):
    """After `clear` a correct program runs, as in a fresh unit."""
    unit.clear()
    rng, machine, fresh = make("2x4x32", 7)
    fresh.handle = unit.handle
    program = [("CONV", dict(bench.random_conv(rng, machine.config), psum_add=0)) for _ in range(3)]
    check(machine, fresh, program)
