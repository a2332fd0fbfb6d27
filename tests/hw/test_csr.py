"""The registers at their AXI4-Lite port, in Amaranth's simulator."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from seriatim import csr, isa
from seriatim.config import Config
from seriatim.csr import ADDR, REGISTERS, Counter
from seriatim.hw.csr import Registers

CONFIG = Config(3, 8, 64, 64)


async def write(ctx, dut, address, value, strobe=15, skew=0):
    """One write; the data come `skew` cycles after the address (before it where negative)."""
    bus = dut.bus
    left = {"aw": max(0, -skew), "w": max(0, skew)}
    ctx.set(bus.awaddr, address)
    ctx.set(bus.wdata, value)
    ctx.set(bus.wstrb, strobe)
    ctx.set(bus.bready, 1)
    for _ in range(50):
        for channel, ready in (("aw", bus.awready), ("w", bus.wready)):
            ctx.set(getattr(bus, f"{channel}valid"), left[channel] == 0)
            if left[channel] == 0 and ctx.get(ready) or left[channel] > 0:
                left[channel] -= 1
        answered = ctx.get(bus.bvalid)
        await ctx.tick()
        if answered:
            assert ctx.get(bus.bresp) == 0
            return
    raise AssertionError("no response")


async def read(ctx, dut, address):
    bus = dut.bus
    ctx.set(bus.araddr, address)
    ctx.set(bus.arvalid, 1)
    ctx.set(bus.rready, 1)
    for _ in range(50):
        accepted, valid, data = ctx.get(bus.arready), ctx.get(bus.rvalid), ctx.get(bus.rdata)
        await ctx.tick()
        if accepted:
            ctx.set(bus.arvalid, 0)
        if valid:
            return data
    raise AssertionError("no response")


def simulate(testbench):
    dut = Registers(CONFIG)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        await testbench(ctx, dut)

    simulator.add_testbench(bench)
    simulator.run()


def test_what_the_machine_says_it_is():
    async def bench(ctx, dut):
        assert await read(ctx, dut, ADDR["ID"]) == csr.ID_VALUE
        assert await read(ctx, dut, ADDR["ISA_VERSION"]) == isa.VERSION
        assert await read(ctx, dut, ADDR["CONFIG_HASH"]) == CONFIG.hash
        assert await read(ctx, dut, ADDR["GEOMETRY"]) == 3 | 8 << 8 | 64 << 20

    simulate(bench)


@pytest.mark.parametrize("skew", [0, 1, 3, -1, -3])
def test_registers_hold_what_is_written(skew):
    rng = np.random.default_rng(7)
    values = {r.name: int(rng.integers(1 << 32)) for r in REGISTERS if r.access == "rw"}

    async def bench(ctx, dut):
        for name, value in values.items():
            await write(ctx, dut, ADDR[name], value, skew=skew)
        for r in REGISTERS:
            if r.access == "r":
                await write(ctx, dut, r.addr, 0xFFFFFFFF, skew=skew)
        for name, value in values.items():
            assert await read(ctx, dut, ADDR[name]) == value, name
            assert ctx.get(getattr(dut, name.lower())) == value, name
        await write(ctx, dut, ADDR["WATCHDOG"], 0xAABBCCDD, strobe=0b0101)
        expected = values["WATCHDOG"] & 0xFF00FF00 | 0x00BB00DD
        assert await read(ctx, dut, ADDR["WATCHDOG"]) == expected

    simulate(bench)


def test_other_addresses_read_zero():
    async def bench(ctx, dut):
        used = set(ADDR.values())
        for address in (0x50, 0xFC, 0x1FC, 0x800, 0xFFC):
            assert address not in used
            await write(ctx, dut, address, 0x12345678)
            assert await read(ctx, dut, address) == 0

    simulate(bench)


def test_counters_and_status_show():
    rng = np.random.default_rng(8)
    values = [int(rng.integers(1 << 63)) for _ in Counter]
    plain = {r.name: int(rng.integers(1 << 32)) for r in Registers(CONFIG).plain if r.access == "r"}

    async def bench(ctx, dut):
        for counter in Counter:
            ctx.set(dut.counters[counter], values[counter])
        for name, value in plain.items():
            ctx.set(getattr(dut, name.lower()), value)
        for counter in Counter:
            low, high = [await read(ctx, dut, ADDR[f"{counter.name}_{half}"]) for half in ("LO", "HI")]
            assert low | high << 32 == values[counter], counter
        for name, value in plain.items():
            assert await read(ctx, dut, ADDR[name]) == value, name

    simulate(bench)


def test_a_control_write_acts_for_one_cycle():
    seen = []

    async def bench(ctx, dut):
        await write(ctx, dut, ADDR["CTRL"], 3)
        assert await read(ctx, dut, ADDR["CTRL"]) == 0

    dut = Registers(CONFIG)
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def watch(ctx):
        async for _, _, value in ctx.tick().sample(dut.ctrl):
            seen.append(value)

    async def run(ctx):
        await bench(ctx, dut)

    simulator.add_testbench(run)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    assert [v for v in seen if v] == [3]
