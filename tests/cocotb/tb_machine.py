"""cocotb tests of the whole accelerator: cocotbext-axi's memory and AXI4-Lite master, random pauses on every channel."""

import os
import random

import axi
import cocotb
import layer_reference
import numpy as np
import random_programs
import test_illegal as small
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout

from seriatim import csr, isa
from seriatim.compiler.codegen import generate
from seriatim.csr import Cause, Counter
from seriatim.isa import INSTR_BYTES
from seriatim.sim import random_layers

SEED = int(os.environ["SERIATIM_SEED"])
LIMIT_US = 400
COUNTED = (Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS)


class Bench:
    """The machine with its memory (from byte address `base` on) and registers, out of reset."""

    @classmethod
    async def open(cls, dut, size: int, base: int = 0, percent: int | None = None):
        self = cls()
        self.dut, self.rng, self.base = dut, random.Random(SEED), base
        percent = self.rng.choice((0, 15, 45)) if percent is None else percent
        await axi.start(dut)
        self.memory = axi.Memory(dut, base + size, self.rng, percent)
        self.registers = axi.Registers(dut, self.rng, percent)
        self.monitor = axi.Monitor(dut)
        await axi.release(dut)
        return self

    async def start(self, code: bytes, address: int, reads, writes, watchdog: int = 5000):
        self.memory.write(address, code)
        for name, value in (("PROG_BASE", address), ("PROG_BYTES", len(code)), ("READ_BASE", reads[0]), ("READ_LIMIT", reads[1]),
                            ("WRITE_BASE", writes[0]), ("WRITE_LIMIT", writes[1]), ("WATCHDOG", watchdog), ("IRQ_ENABLE", 1)):
            await self.registers.write(name, value)
            assert await self.registers.read(name) == value
        await self.registers.write("CTRL", 1)

    async def finish(self) -> tuple[Cause, int]:
        """Waits for the interrupt and acknowledges it; the cause, and at which instruction."""
        while not int(self.dut.irq.value):
            await RisingEdge(self.dut.clk)
        status = await self.registers.read("STATUS")
        cause = Cause(await self.registers.read("CAUSE"))
        assert status & 7 == (4 if cause else 2), f"STATUS {status:#x} with cause {cause.name}"
        await self.registers.write("CTRL", 2)
        assert await self.registers.read("STATUS") & 8 == 0 and not int(self.dut.irq.value), "the interrupt was acknowledged"
        return cause, await self.registers.read("ERROR_PC") // INSTR_BYTES

    async def run(self, *args, **more) -> tuple[Cause, int]:
        await self.start(*args, **more)
        return await with_timeout(self.finish(), LIMIT_US, "us")

    async def counters(self) -> dict[Counter, int]:
        return {c: await self.registers.read(f"{c.name}_LO") | await self.registers.read(f"{c.name}_HI") << 32 for c in Counter}

    def image(self, size: int) -> np.ndarray:
        return np.frombuffer(self.memory.read(self.base, size), np.uint8).copy()


def same(got: np.ndarray, expected: np.ndarray, what: str):
    wrong = np.argwhere(got != expected)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise AssertionError(f"{what}: {len(wrong)} differ, the first at {at}: {got[at]}, not {expected[at]}")


@cocotb.test()
async def layer(dut):
    """A random layer gives what the big-integer reference says, touches nothing else, and counts what the bus saw."""
    case = random_layers.draw(SEED)
    compiled = generate(case.region, case.config)
    bench = await Bench.open(dut, compiled.memory_bytes)
    memory = compiled.memory(case.inputs)
    bench.memory.write(0, memory.tobytes())
    result = await bench.run(compiled.program, compiled.program_address, compiled.read_range, compiled.write_range)
    assert result == (Cause.NONE, 0), f"{case} stops with {result}"
    after = bench.image(len(memory))
    same(compiled.read(after, "out"), layer_reference.by_reference(case), str(case))
    place = compiled.places["out"]
    after[place.address:place.address + place.size] = memory[place.address:place.address + place.size]
    same(after, memory, f"{case}: outside the output")
    counters = await bench.counters()
    assert counters[Counter.READ_BEATS] == bench.monitor.read_beats and counters[Counter.WRITE_BEATS] == bench.monitor.write_beats
    assert counters[Counter.BUSY] == counters[Counter.ARRAY_STEPS] + counters[Counter.POOL_STEPS]


@cocotb.test()
async def program(dut):
    """A random program, legal or not, does what the ISA simulator does."""
    case = random_programs.draw(SEED)
    machine, cause, at = random_programs.simulate(case)
    bench = await Bench.open(dut, random_programs.SIZE)
    bench.memory.write(0, case.memory.tobytes())
    got = await bench.run(case.code, random_programs.PROGRAM, random_programs.READ, random_programs.WRITE)
    assert got == (cause, at), f"{case}\nstops with {got[0].name} at {got[1]}, not with {cause.name} at {at}"
    memory, expected = bench.image(random_programs.SIZE), machine.memory.copy()
    expected[random_programs.PROGRAM:random_programs.PROGRAM + len(case.code)] = np.frombuffer(case.code, np.uint8)
    if cause:
        memory[slice(*random_programs.WRITE)] = expected[slice(*random_programs.WRITE)]
    same(memory, expected, str(case))
    if not cause:
        counters = await bench.counters()
        assert {c: counters[c] for c in COUNTED} == {c: machine.counters[c] for c in COUNTED}


async def correct(bench: Bench):
    """The correct small program leaves the expected memory."""
    bench.memory.write(small.BASE, small.memory().tobytes())
    result = await bench.run(b"".join(small.encode()), small.PROGRAM, small.READ, small.WRITE)
    assert result == (Cause.NONE, 0), f"the correct program stops with {result}"
    got = np.frombuffer(bench.memory.read(small.READ[0], small.PROGRAM - small.READ[0]), np.uint8)
    same(got, small.expected(), "after the correct program")


@cocotb.test()
async def bus_errors(dut):
    """SLVERR on a random read beat, then on a random write: cause, nothing outside the limits, and a machine that still works."""
    bench = await Bench.open(dut, small.SIZE, small.BASE)
    code = b"".join(small.encode())
    for kind in ("read", "write"):
        bench.memory.write(small.BASE, small.memory().tobytes())
        faults = bench.memory.faults
        faults.reads, faults.writes = set(), set()
        if kind == "read":
            faults.reads = {faults.read_count + bench.rng.randrange(small.BEATS - 8)}
        else:
            faults.writes = {faults.write_count + bench.rng.randrange(40)}
        cause, at = await bench.run(code, small.PROGRAM, small.READ, small.WRITE)
        assert cause == (Cause.AXI_READ if kind == "read" else Cause.AXI_WRITE), f"{kind} error gives {cause.name}"
        assert kind == "read" or at == small.STORE
        memory, before = bench.image(small.SIZE), small.memory()
        start = small.PROGRAM - small.BASE
        before[start:start + len(code)] = np.frombuffer(code, np.uint8)
        inside = slice(small.WRITE[0] - small.BASE, small.WRITE[1] - small.BASE)
        memory[inside] = before[inside]
        same(memory, before, f"after a {kind} error")
        await correct(bench)


@cocotb.test()
async def reset_at_any_time(dut):
    """Reset in the middle of a program, wherever that is; a correct program runs afterwards."""
    bench = await Bench.open(dut, small.SIZE, small.BASE)
    for _ in range(3):
        bench.memory.write(small.BASE, small.memory().tobytes())
        await bench.start(b"".join(small.encode()), small.PROGRAM, small.READ, small.WRITE)
        await ClockCycles(dut.clk, bench.rng.randrange(1, 900))
        await axi.start_again(dut)
        assert await bench.registers.read("STATUS") == 0
        await correct(bench)


@cocotb.test()
async def registers(dut):
    """Every register against its row of the table: random reads and writes, several under way at once; other addresses read 0."""
    bench = await Bench.open(dut, 0x1000)
    known = {r.addr: r for r in csr.REGISTERS}
    values = {r.addr: r.reset for r in csr.REGISTERS if r.access == "rw"}
    config = random_programs.CONFIG
    constants = {"ID": csr.ID_VALUE, "ISA_VERSION": isa.VERSION, "CONFIG_HASH": config.hash,
                 "GEOMETRY": config.m | config.n << 8 | config.k << 20}
    for _ in range(120):
        address = bench.rng.choice([*known, *range(0, 1 << csr.ADDR_BITS, 4)])
        register = known.get(address)
        if bench.rng.random() < 0.5:
            value = bench.rng.getrandbits(32)
            if register is not None and register.name == "CTRL":
                value &= ~1
            await bench.registers.write(address, value)
            if address in values:
                values[address] = value
        else:
            got = await bench.registers.read(address)
            if register is None or register.access == "w1":
                assert got == 0, f"{address:#x} reads {got:#x}"
            elif address in values:
                assert got == values[address], f"{register.name} reads {got:#x}, not {values[address]:#x}"
            elif not register.name.startswith("PROFILE"):
                expected = constants.get(register.name, 0)
                assert got == expected, f"{register.name} reads {got:#x}, not {expected:#x}"
    tasks = [cocotb.start_soon(bench.registers.read(a)) for a in values for _ in range(2)]
    assert [await t for t in tasks] == [v for v in values.values() for _ in range(2)]
