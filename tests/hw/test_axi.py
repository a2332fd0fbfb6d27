"""Bursts from segments, the address nest, and semaphores, each against a plain function, in Amaranth's simulator."""

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.sim import Simulator

from seriatim import isa
from seriatim.config import Config
from seriatim.hw.axi import BURST, Bursts, Reader, Slice, Writer
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
            assert ctx.get(dut.overflow) == over.any()
            if over.any():
                givers = [unit for unit, mask in enumerate(gives) if any((mask or 0) >> i & 1 for i in np.flatnonzero(over))]
                assert ctx.get(dut.overflow_pc) in [64 * unit for unit in givers]
                return

    simulate(dut, testbench)


@pytest.mark.parametrize("seed", range(4))
def test_slice_keeps_order_and_holds_what_it_offers(seed):
    dut = Slice(unsigned(8))
    rng = np.random.default_rng(seed)
    sent, got = [], []

    async def testbench(ctx):
        offered = None
        for i in range(200):
            ctx.set(dut.i.valid, bool(rng.random() < 0.7))
            ctx.set(dut.i.payload, i)
            ready = bool(rng.random() < 0.6)
            if offered is not None:
                assert ctx.get(dut.valid) and ctx.get(dut.payload) == offered
            ctx.set(dut.ready, ready)
            if ctx.get(dut.i.valid & dut.i.ready):
                sent.append(i)
            offered = ctx.get(dut.payload) if ctx.get(dut.valid) and not ready else None
            if ctx.get(dut.valid) and ready:
                got.append(ctx.get(dut.payload))
            await ctx.tick()

    simulate(dut, testbench)
    assert len(got) > 60 and got == sent[:len(got)]


@pytest.mark.parametrize("halt_at", [None, 60])
def test_writer_sends_every_beat_of_what_it_addressed(halt_at):
    dut = Writer(CONFIG)
    rng = np.random.default_rng(9)
    bursts = [(0x1000 * i, int(rng.integers(1, 20))) for i in range(8)]
    words = list(range(1, 1 + sum(beats for _, beats in bursts)))
    addressed, beats, bytes_enabled = [], [], []

    async def testbench(ctx):
        to_ask, to_send, answers = list(bursts), list(words), 0
        bus = dut.bus
        for cycle in range(700):
            if cycle == halt_at:
                ctx.set(dut.halt, 1)
            ctx.set(dut.request.valid, bool(to_ask))
            if to_ask:
                ctx.set(dut.request.payload, {"addr": to_ask[0][0], "len": to_ask[0][1] - 1})
            ctx.set(dut.data.valid, bool(to_send))
            ctx.set(dut.data.payload, to_send[0] if to_send else 0)
            ctx.set(bus.awready, bool(rng.random() < 0.5))
            ctx.set(bus.wready, bool(rng.random() < 0.6))
            answered = answers > 0 and rng.random() < 0.3
            ctx.set(bus.bvalid, answered)
            answers -= answered
            if ctx.get(dut.request.valid & dut.request.ready):
                to_ask.pop(0)
            if ctx.get(dut.data.valid & dut.data.ready):
                to_send.pop(0)
            if ctx.get(bus.awvalid & bus.awready):
                addressed.append((ctx.get(bus.awaddr), ctx.get(bus.awlen) + 1))
            if ctx.get(bus.wvalid & bus.wready):
                beats.append((ctx.get(bus.wdata), bool(ctx.get(bus.wlast))))
                bytes_enabled.append(ctx.get(bus.wstrb))
                answers += beats[-1][1]
            await ctx.tick()
        assert ctx.get(dut.idle)

    simulate(dut, testbench)
    assert addressed == (bursts if halt_at is None else bursts[:len(addressed)])
    ends = list(np.cumsum([count for _, count in addressed]) - 1)
    assert [i for i, (_, last) in enumerate(beats) if last] == ends and len(beats) == ends[-1] + 1
    full = (1 << BYTES) - 1
    if halt_at is None:
        assert [word for word, _ in beats] == words and set(bytes_enabled) == {full}
    else:
        sent = bytes_enabled.index(0)
        assert [word for word, _ in beats[:sent]] == words[:sent] and set(bytes_enabled[sent:]) == {0}


def test_reader_gives_beats_to_whoever_asked():
    dut = Reader(CONFIG)
    rng = np.random.default_rng(4)
    asked, got = {"fetch": [], "load": []}, {"fetch": [], "load": []}

    async def testbench(ctx):
        bus, coming, most = dut.bus, [], 0
        for _ in range(1500):
            for name, port in (("fetch", dut.fetch), ("load", dut.load)):
                ctx.set(port.valid, bool(rng.random() < (0.1 if name == "fetch" else 0.6)))
                ctx.set(port.payload, {"addr": int(rng.integers(1 << 20)) * 64, "len": int(rng.integers(0, 6))})
            ctx.set(bus.arready, bool(rng.random() < 0.7))
            beat = coming[0] if coming and rng.random() < 0.8 else None
            ctx.set(bus.rvalid, beat is not None)
            if beat is not None:
                coming.pop(0)
                ctx.set(bus.rdata, beat[0])
                ctx.set(bus.rlast, beat[1])
            for name, port in (("fetch", dut.fetch), ("load", dut.load)):
                if ctx.get(port.valid & port.ready):
                    addr, beats = ctx.get(port.payload.addr), ctx.get(port.payload.len) + 1
                    asked[name] += [(addr + i) & 0xFFFFFFFF for i in range(beats)]
            if ctx.get(bus.arvalid & bus.arready):
                addr, beats = ctx.get(bus.araddr), ctx.get(bus.arlen) + 1
                coming += [((addr + i) & 0xFFFFFFFF, i == beats - 1) for i in range(beats)]
            for name, valid in (("fetch", dut.fetch_valid), ("load", dut.load_valid)):
                if ctx.get(valid):
                    got[name].append(ctx.get(dut.data))
            most = max(most, sum(last for _, last in coming))
            await ctx.tick()
        assert most <= CONFIG.outstanding

    simulate(dut, testbench)
    for name in got:
        assert len(got[name]) > 50 and got[name] == asked[name][:len(got[name])]
