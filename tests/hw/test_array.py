"""The bit-serial array against sums of products of values."""

import random

import pytest
from amaranth.hdl import Fragment
from amaranth.sim import Simulator

from seriatim.config import Config
from seriatim.formats import Format, Kind
from seriatim.hw import ecp5
from seriatim.hw.array import ACC_BITS, Array

pytestmark = pytest.mark.unit
CONFIG = Config(2, 2, 32, 32)


def schedule(a_bits: int, w_bits: int):
    """Pairs of planes (from the most significant), by falling significance."""
    for drop in range(a_bits + w_bits - 1):
        for n, w in enumerate(w for w in range(w_bits) if 0 <= drop - w < a_bits):
            yield drop - w, w, n == 0 and drop > 0


def planes(codes, bits):
    return [sum((code >> bits - 1 - p & 1) << lane for lane, code in enumerate(codes)) for p in range(bits)]


@pytest.mark.parametrize("platform", [None, ecp5.Model()], ids=["any", "ecp5"])
@pytest.mark.parametrize("a_kind", [Kind.UINT, Kind.INT, Kind.BIPOLAR])
@pytest.mark.parametrize("w_kind", [Kind.UINT, Kind.INT, Kind.BIPOLAR])
def test_sums_of_products(a_kind, w_kind, platform):
    rng = random.Random(10 * a_kind + w_kind)
    unit = Array(CONFIG)
    rows, cols, lanes = range(CONFIG.m), range(CONFIG.n), range(CONFIG.k)

    async def tile(ctx, a_bits, w_bits, words):
        """Drives one tile and returns the exact sums."""
        a_format, w_format = Format(a_kind, a_bits), Format(w_kind, w_bits)
        act = [[[rng.randrange(a_format.lo, a_format.hi + 1) for _ in lanes] for _ in rows] for _ in range(words)]
        wgt = [[[rng.randrange(w_format.lo, w_format.hi + 1) for _ in lanes] for _ in cols] for _ in range(words)]
        valid = [[rng.random() < 0.7 for _ in rows] for _ in range(words)]
        steps = [(a, w, drop and word == 0, word) for a, w, drop in schedule(a_bits, w_bits) for word in range(words)]
        for n, (a, w, drop, word) in enumerate(steps):
            ctx.set(unit.valid, 1)
            ctx.set(unit.step, dict(first=n == 0, shift=drop, last=n == len(steps) - 1, bipolar=a_kind is Kind.BIPOLAR, final=0,
                                    sub=(a_kind is Kind.INT and a == 0) != (w_kind is Kind.INT and w == 0)))
            ctx.set(unit.act_valid, sum(v << i for i, v in enumerate(valid[word])))
            for i in rows:
                ctx.set(unit.act[i], planes(act[word][i], a_bits)[a])
            for j in cols:
                ctx.set(unit.wgt[j], planes(wgt[word][j], w_bits)[w])
            await ctx.tick()
        ctx.set(unit.valid, 0)
        return [[sum(a_format.value(act[c][i][k]) * w_format.value(wgt[c][j][k]) for c in range(words)
                     if a_kind is not Kind.BIPOLAR or valid[c][i] for k in lanes) for j in cols] for i in rows]

    async def bench(ctx):
        for a_bits, w_bits, words in [(1, 1, 1), (1, 1, 3), (8, 1, 2), (2, 3, 2), (1, 9, 1), (8, 9, 1)]:
            expected = await tile(ctx, a_bits, w_bits, words)
            for _ in range(Array.LATENCY - 1):
                await ctx.tick()
            for i in rows:
                ctx.set(unit.row_en, 1)
                ctx.set(unit.row, i)
                await ctx.tick()
                r = ctx.get(unit.r)
                for j in cols:
                    x = ctx.get(unit.x[j])
                    total = (2 * x - r if w_kind is Kind.BIPOLAR else x) % (1 << ACC_BITS)
                    assert total == expected[i][j] % (1 << ACC_BITS), (a_bits, w_bits, words, i, j)
            ctx.set(unit.row_en, 0)

    simulator = Simulator(Fragment.get(unit, platform))
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
