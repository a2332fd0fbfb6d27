"""Bursts from segments, the address nest, and semaphores, each against a plain function, in Amaranth's simulator."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from seriatim import isa
from seriatim.config import Config
from seriatim.hw.axi import BURST, Bursts
from seriatim.hw.dma import Nest
from seriatim.hw.semaphores import UNITS, Semaphores

CONFIG = Config(2, 4, 32, 32)
BYTES = CONFIG.axi_bytes


def simulate(component, testbench):
    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def expected_bursts(segments):
    """Byte address and beats of each burst: cut at multiples of BURST beats, joined where contiguous."""
    bursts = []
    for addr, beats in segments:
        while beats:
            take = min(beats, BURST - addr // BYTES % BURST)
            if bursts and addr // BYTES % BURST and bursts[-1][0] + bursts[-1][1] * BYTES == addr:
                bursts[-1][1] += take
            else:
                bursts.append([addr, take])
            addr, beats = addr + take * BYTES, beats - take
    return bursts


def run_bursts(segments, base=0, limit=0xFFFFFFFF, ready=1.0, seed=0, cycles=2000):
    """The bursts requested, and whether a segment was refused."""
    dut = Bursts(CONFIG)
    rng = np.random.default_rng(seed)
    got, refused = [], False

    async def testbench(ctx):
        nonlocal refused
        ctx.set(dut.base, base)
        ctx.set(dut.limit, limit)
        left = list(segments)
        for _ in range(cycles):
            ctx.set(dut.segment.valid, bool(left))
            if left:
                ctx.set(dut.segment.payload, {"addr": left[0][0], "beats": left[0][1]})
            ctx.set(dut.request.ready, bool(rng.random() < ready))
            if left and ctx.get(dut.segment.ready):
                left.pop(0)
            if ctx.get(dut.request.valid & dut.request.ready):
                got.append([ctx.get(dut.request.payload.addr), ctx.get(dut.request.payload.len) + 1])
            refused |= bool(ctx.get(dut.refused))
            await ctx.tick()
            if not left and not ctx.get(dut.busy):
                return

    simulate(dut, testbench)
    return got, refused


@pytest.mark.parametrize("seed", range(12))
def test_bursts_cover_the_segments(seed):
    rng = np.random.default_rng(seed)
    segments, at = [], 0x1000
    for _ in range(20):
        if rng.random() < 0.4:
            at = int(rng.integers(0, 1 << 14)) * BYTES
        beats = int(rng.choice([1, 2, 8, 63, 64, 65, 300]))
        segments.append((at, beats))
        at += beats * BYTES
    got, refused = run_bursts(segments, ready=1.0 if seed % 2 else 0.3, seed=seed)
    assert got == expected_bursts(segments) and not refused
    for addr, beats in got:
        assert beats <= BURST and addr // 4096 == (addr + beats * BYTES - 1) // 4096


@pytest.mark.parametrize("addr,beats", [
    (0x1FC, 1), (0x200 - BYTES, 4), (0x300 - BYTES, 2), (0x300, 1), (0x202, 1), (0xFFFFFFFC, 1),
])
def test_nothing_outside_the_limits_is_requested(addr, beats):
    got, refused = run_bursts([(0x200, 4), (addr, beats)], base=0x200, limit=0x300, cycles=50)
    assert refused
    assert got in ([], [[0x200, 4]])


@pytest.mark.parametrize("seed", range(6))
def test_nest(seed):
    rng = np.random.default_rng(seed)
    dut = Nest()
    slices, ny, nx = (int(v) for v in rng.integers(1, 5, 3))
    fields = dict(dram=int(rng.integers(1 << 32)), slices=slices, ny=ny, nx=nx, beats=7,
                  **{name: int(rng.integers(1 << 32)) for name in ("slice_pitch", "y_pitch", "x_pitch")})
    got = []

    async def testbench(ctx):
        for name, value in fields.items():
            ctx.set(getattr(dut, name), value)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        while ctx.get(dut.busy):
            ctx.set(dut.segment.ready, bool(rng.random() < 0.7))
            if ctx.get(dut.segment.valid & dut.segment.ready):
                got.append(ctx.get(dut.segment.payload.addr))
            await ctx.tick()

    simulate(dut, testbench)
    assert got == [(fields["dram"] + s * fields["slice_pitch"] + y * fields["y_pitch"] + x * fields["x_pitch"]) % (1 << 32)
                   for s in range(slices) for y in range(ny) for x in range(nx)]


def test_semaphores_take_and_give_at_once():
    dut = Semaphores()
    rng = np.random.default_rng(5)
    counts = np.zeros(isa.SEM_COUNT, int)

    async def testbench(ctx):
        for _ in range(1000):
            takes, gives = [], []
            for unit in range(UNITS):
                few = [int(np.bitwise_and(*rng.integers(1 << isa.SEM_COUNT, size=2))) for _ in range(2)]
                takes.append(few[0] if rng.random() < 0.7 else None)
                gives.append(few[1] if rng.random() < 0.5 else None)
                ctx.set(dut.take_valid[unit], takes[-1] is not None)
                ctx.set(dut.take_mask[unit], takes[-1] or 0)
                ctx.set(dut.give_valid[unit], gives[-1] is not None)
                ctx.set(dut.give_mask[unit], gives[-1] or 0)
                ctx.set(dut.give_pc[unit], 64 * unit)
            taken = np.zeros(isa.SEM_COUNT, int)
            for unit, mask in enumerate(takes):
                bits = np.array([(mask or 0) >> i & 1 for i in range(isa.SEM_COUNT)])
                ok = bool((counts[bits == 1] > 0).all() and not (bits & taken).any())
                assert ctx.get(dut.take_ok[unit]) == ok
                lacking = sum(1 << i for i in range(isa.SEM_COUNT) if bits[i] and not counts[i])
                assert ctx.get(dut.lack[unit]) == lacking
                if mask is not None and ok:
                    taken += bits
            given = sum(np.array([(mask or 0) >> i & 1 for i in range(isa.SEM_COUNT)]) for mask in gives)
            counts[:] = counts + given - taken
            await ctx.tick()
            over = counts >= 1 << isa.SEM_BITS
            givers = sum(1 << unit for unit, mask in enumerate(gives) if any((mask or 0) >> i & 1 for i in np.flatnonzero(over)))
            assert ctx.get(dut.overflow) == givers
            if over.any():
                assert [ctx.get(pc) for pc in dut.overflow_pc] == [0, 64, 128]
                return

    simulate(dut, testbench)
