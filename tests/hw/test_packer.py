"""The packer: rows of results to out words, against plain bit positions."""

import random

import pytest
from amaranth.sim import Simulator

from seriatim.config import Config
from seriatim.hw.packer import Packer

pytestmark = pytest.mark.unit
CONFIG = Config(2, 8, 32, 32, out_words=60)


def run(unit, bench):
    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("planes", [1, 5, 16])
def test_words_of_positions(raw, planes):
    rng = random.Random(planes)
    unit = Packer(CONFIG)
    rows, cols = range(CONFIG.m), range(CONFIG.n)
    ng, positions, base = 3, 2, 3
    words = CONFIG.raw_words if raw else planes
    queue = []  # (tag, results) for each cycle, None where nothing comes
    expected = []
    for _ in range(positions):
        q = [[[rng.randrange(-1 << 31, 1 << 31) for _ in cols] for _ in rows] for _ in range(ng)]
        for g in range(ng):
            for i in rows:
                emit = i == CONFIG.m - 1 and (raw or g == ng - 1)
                queue.append((dict(row=i, tile=g, clear=raw or g == 0, emit=emit), q[g][i]))
                queue.extend([None] * (words if emit else rng.randrange(2)))
        if raw:
            for g in range(ng):
                lanes = [sum((v % (1 << 32)) << 32 * n for n, v in enumerate(q[g][i])) for i in rows]
                expected += [[lane >> CONFIG.k * w & (1 << CONFIG.k) - 1 for lane in lanes] for w in range(words)]
        else:
            for b in range(planes - 1, -1, -1):
                expected.append([sum((q[g][i][n] >> b & 1) << g * CONFIG.n + n for g in range(ng) for n in cols) for i in rows])
    queue += [None] * (words + Packer.LATENCY + 1)
    written = []

    async def bench(ctx):
        ctx.set(unit.start, 1)
        ctx.set(unit.base, base)
        ctx.set(unit.raw, raw)
        ctx.set(unit.planes, planes)
        await ctx.tick()
        ctx.set(unit.start, 0)
        for now, soon in zip([None, *queue], queue + [None]):
            ctx.set(unit.early_valid, soon is not None)
            ctx.set(unit.valid, now is not None)
            if soon:
                ctx.set(unit.early_tag, soon[0])
            if now:
                ctx.set(unit.tag, now[0])
                for n in cols:
                    ctx.set(unit.q[n], now[1][n] % (1 << 32))
            await ctx.tick()
            assert not ctx.get(unit.error)
            if ctx.get(unit.we):
                assert ctx.get(unit.we) == (1 << CONFIG.m) - 1
                assert ctx.get(unit.addr) == base + len(written)
                written.append([ctx.get(unit.data[i]) for i in rows])

    run(unit, bench)
    assert written == expected


def test_writes_nothing_outside_or_when_stopped():
    unit = Packer(CONFIG)
    seen = []

    async def bench(ctx):
        ctx.set(unit.start, 1)
        ctx.set(unit.base, CONFIG.out_words - 2)
        await ctx.tick()
        ctx.set(unit.start, 0)
        ctx.set(unit.pool_valid, 1)
        for _ in range(4):
            seen.append(ctx.get(unit.error))
            await ctx.tick()
            if ctx.get(unit.we):
                assert ctx.get(unit.addr) < CONFIG.out_words
        ctx.set(unit.start, 1)
        ctx.set(unit.stop, 1)
        for _ in range(4):
            await ctx.tick()
            assert not ctx.get(unit.we)

    run(unit, bench)
    assert seen == [0, 0, 1, 1]
