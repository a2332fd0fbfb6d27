"""The SDRAM controller against a chip that checks its data sheet, under random traffic, beside a memory in Python."""

import dataclasses
import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from seriatim.boards.memory import memory_signature
from seriatim.boards.sdram import Sdram
from seriatim.boards.sdram_model import Rule, SdramModel
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit

CHIP = Sdram(row_bits=3, column_bits=5, init_ns=2_000, refresh_ns=1_500)
"""A chip of 2 KiB that is refreshed often."""


class Bench(wiring.Component):
    """A controller made for `chip`, with a chip that is `real`."""

    def __init__(self, bits: int, clock_hz: int, chip: Sdram, real: Sdram):
        self.controller, self.model = chip.controller(bits, clock_hz), SdramModel(real, clock_hz)
        super().__init__({"bus": In(memory_signature(bits, chip.size)), "broken": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.controller, m.submodules.model = self.controller, self.model
        wiring.connect(m, wiring.flipped(self.bus), self.controller.bus)
        wiring.connect(m, self.controller.pins, self.model.pins)
        m.d.comb += self.broken.eq(self.model.broken)
        return m


def traffic(rng, words: int, bits: int, count: int):
    """Accesses (address, write, data, strobe): walks and jumps, in bursts of one direction and mixed."""
    at, write = 0, True
    for _ in range(count):
        at = rng.randrange(words) if rng.random() < 0.25 else (at + 1) % words
        write ^= rng.random() < 0.3
        strobe = (1 << bits // 8) - 1 if rng.random() < 0.7 else rng.getrandbits(bits // 8)
        yield at, write, rng.getrandbits(bits), strobe


def run(bits: int, clock_hz: int, chip: Sdram, real: Sdram, seed: int, count: int, gap: float = 0.2):
    """What was read, what a memory in Python holds there, and the rule that was broken."""
    rng = random.Random(seed)
    dut = Bench(bits, clock_hz, chip, real)
    wanted, got, memory = [], [], [0] * (chip.size * 8 // bits)
    broken = []

    async def drive(ctx):
        request = dut.bus.request
        for at, write, data, strobe in traffic(rng, len(memory), bits, count):
            while rng.random() < gap:
                await ctx.tick()
            ctx.set(request.payload, dict(address=at, write=write, data=data, strobe=strobe,
                                          tag=dict(host=len(wanted) & 1, last=0, error=0)))
            ctx.set(request.valid, 1)
            await ctx.tick().until(request.ready)
            ctx.set(request.valid, 0)
            if write:
                mask = sum(0xFF << 8 * i for i in range(bits // 8) if strobe >> i & 1)
                memory[at] = memory[at] & ~mask | data & mask
            else:
                wanted.append((memory[at], len(wanted) & 1))
        await ctx.tick().repeat(50)
        broken.append(Rule(ctx.get(dut.broken)))

    async def listen(ctx):
        async for _, _, valid, data, tag in ctx.tick().sample(dut.bus.valid, dut.bus.data, dut.bus.tag):
            if valid:
                got.append((data, tag.host))

    simulator = Simulator(dut)
    simulator.add_clock(1e9 / clock_hz * 1e-9)
    simulator.add_testbench(drive)
    simulator.add_testbench(listen, background=True)
    simulator.run()
    return got, wanted, broken[0]


@pytest.mark.parametrize(("bits", "clock_hz", "cas"), [
    (32, 25_000_000, 2), (64, 80_000_000, 3), (128, 100_000_000, 2), (64, 143_000_000, 3), (32, 143_000_000, 2)])
def test_random_traffic(bits, clock_hz, cas):
    chip = dataclasses.replace(CHIP, cas=cas, capture=bits // 64 % 2)
    got, wanted, broken = run(bits, clock_hz, chip, chip, bits + cas, 600)
    assert broken == Rule.NONE and got == wanted and len(wanted) > 100


BROKEN = {
    Rule.INIT: dict(init_ns=100), Rule.TRCD: dict(trcd_ns=10), Rule.TRP: dict(trp_ns=10), Rule.TRAS: dict(tras_ns=20),
    Rule.TRFC: dict(trfc_ns=30), Rule.TWR: dict(twr_cycles=0), Rule.TMRD: dict(tmrd_cycles=0),
    Rule.REFRESH: dict(refresh_ns=20_000),
}


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.name)
def test_the_chip_tells_which_rule_is_broken(rule):
    """A controller for a faster chip than there is."""
    real = dataclasses.replace(CHIP, tras_ns=90) if rule == Rule.TRAS else CHIP
    *_, broken = run(64, 100_000_000, dataclasses.replace(CHIP, **BROKEN[rule]), real, 3, 200, gap=0)
    assert broken == rule


def test_streams_run_at_full_rate():
    """Reads of open rows take bits / 16 cycles each."""
    chip = dataclasses.replace(CHIP, refresh_ns=7_800)
    dut = Bench(64, 100_000_000, chip, chip)
    times = []

    async def drive(ctx):
        ctx.set(dut.bus.request.valid, 1)
        for at in range(8):
            ctx.set(dut.bus.request.payload.address, at)
            await ctx.tick().until(dut.bus.request.ready)
        ctx.set(dut.bus.request.valid, 0)
        await ctx.tick().repeat(30)

    async def listen(ctx):
        cycle = 0
        async for _, _, valid in ctx.tick().sample(dut.bus.valid):
            cycle += 1
            if valid:
                times.append(cycle)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(drive)
    simulator.add_testbench(listen, background=True)
    simulator.run()
    assert [b - a for a, b in zip(times, times[1:])] == [4] * 7


def test_size_and_widths():
    assert Sdram().size == 32 << 20
    with pytest.raises(ConfigError, match="words of 256 bits: its bursts are 2, 4 or 8; set axi_bits to 32, 64 or 128"):
        Sdram().controller(256, 100_000_000)
