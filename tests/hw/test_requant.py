"""The requantisation unit against the function that every level shares."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from seriatim.hw.requant import MULTIPLIER_STAGES, Requant
from seriatim.sim.requant import requant

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("stages", [0, MULTIPLIER_STAGES])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_function(seed, stages):
    rng = np.random.default_rng(seed)
    lanes, count = 3, 200
    unit = Requant(lanes, 8, multiplier_stages=stages)
    shift, m2 = int(rng.integers(0, 64)), int(rng.integers(-1 << 31, 1 << 31))
    lo, hi = sorted(int(v) for v in rng.integers(-1 << 31, 1 << 31, 2))
    top = {0: 31, 1: 20, 2: 8, 3: 31}[seed]
    acc = rng.integers(-1 << top, 1 << top, (count, lanes))
    m = rng.integers(-1 << 31, 1 << 31, (count, lanes))
    b = rng.integers(-1 << 62, 1 << 62, (count, lanes))
    res = rng.integers(-1 << 15, 1 << 16, (count, lanes))
    expected = requant(acc, m, b, shift, lo, hi, res, m2)
    seen = []

    async def bench(ctx):
        for port, value in ((unit.m2, m2), (unit.shift, shift), (unit.lo, lo), (unit.hi, hi)):
            ctx.set(port, value)
        for cycle in range(count + unit.latency - 1):
            ctx.set(unit.valid, cycle < count)
            if cycle < count:
                ctx.set(unit.tag, cycle % 256)
                for lane in range(lanes):
                    for port, values in ((unit.acc, acc), (unit.m, m), (unit.b, b), (unit.res, res)):
                        ctx.set(port[lane], int(values[cycle, lane]))
            await ctx.tick()
            assert ctx.get(unit.q_valid) == (cycle + 1 >= unit.latency)
            if ctx.get(unit.q_valid):
                assert ctx.get(unit.q_tag) == len(seen) % 256
                seen.append([ctx.get(unit.q[lane]) for lane in range(lanes)])

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    np.testing.assert_array_equal(seen[:count], expected)
