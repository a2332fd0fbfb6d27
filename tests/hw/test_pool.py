"""The pool unit against `max`."""

import random

import pytest
from amaranth.sim import Simulator

from seriatim.config import Config
from seriatim.hw.pool import Pool

pytestmark = pytest.mark.unit
CONFIG = Config(2, 4, 32, 32)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("planes", [1, 2, 8, 16])
def test_maximum_of_windows(planes, is_signed):
    rng = random.Random(planes)
    unit = Pool(CONFIG)
    rows, lanes = range(CONFIG.m), range(CONFIG.k)
    high = 1 << planes - is_signed
    low = -(1 << planes - 1) if is_signed else 0
    steps, expected = [], []
    for taps in (1, 2, 9, 4):
        codes = [[[rng.choice([low, high - 1, rng.randrange(low, high)]) for _ in lanes] for _ in rows] for _ in range(taps)]
        for t in range(taps):
            for p in range(planes):
                words = [sum((codes[t][i][k] >> planes - 1 - p & 1) << k for k in lanes) for i in rows]
                step = dict(top=p == 0, tap_first=t == 0, tap_last=t == taps - 1, final=0, plane=planes - 1 - p)
                steps += [(step, words)] + [None] * (rng.randrange(4) == 0)
        best = [[max(codes[t][i][k] for t in range(taps)) for k in lanes] for i in rows]
        expected += [[sum((best[i][k] >> planes - 1 - p & 1) << k for k in lanes) for i in rows] for p in range(planes)]
    seen = []

    async def bench(ctx):
        ctx.set(unit.is_signed, is_signed)
        for now, soon in zip([None, *steps], [*steps, None]):
            ctx.set(unit.valid, soon is not None)
            if soon:
                ctx.set(unit.step, soon[0])
            for i in rows:
                ctx.set(unit.act[i], now[1][i] if now else rng.getrandbits(32))
            if ctx.get(unit.out_valid):
                seen.append([ctx.get(unit.out[i]) for i in rows])
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == expected
