"""The ports of a machine or a unit under cocotb: an AXI4 memory and an AXI4-Lite master with random pauses, and a monitor of the
handshake rules. All of it is independent of the C++ harness."""

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam, AxiReadBus, AxiWriteBus  # noqa: F401  for the testbenches

from seriatim.csr import ADDR

PERIOD_NS = 10
CHANNELS = {
    "aw": ("awaddr", "awlen", "awsize", "awburst"),
    "w": ("wdata", "wstrb", "wlast"),
    "ar": ("araddr", "arlen", "arsize", "arburst"),
}


def pauses(rng: random.Random, percent: int):
    """Endless: True holds a channel back for a cycle. Bursts of both, so that queues run full and empty."""
    while True:
        hold = rng.random() * 100 < percent
        for _ in range(rng.choice((1, 1, 1, 2, 5, 12))):
            yield hold


async def start(dut, cycles: int = 3):
    """Starts the clock and clears what is unknown; leaves `rst` high, so that the models are connected to a machine at rest."""
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for _ in range(cycles):
        await FallingEdge(dut.clk)


async def release(dut):
    """Ends the reset; the models see it a cycle before the machine does anything."""
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await FallingEdge(dut.clk)


async def start_again(dut, cycles: int = 3):
    """Resets machine and models, wherever they are."""
    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for _ in range(cycles):
        await FallingEdge(dut.clk)
    await release(dut)


class Faults:
    """Read and write numbers (counted from 0) whose access fails; the memory answers SLVERR to them."""

    def __init__(self):
        self.reads, self.writes = set(), set()
        self.read_count = self.write_count = 0


class Memory:
    """An AXI4 memory on `m_axi`: `ram` is cocotbext-axi's; every channel is held back in `percent` of the cycles."""

    def __init__(self, dut, size: int, rng: random.Random, percent: int, prefix: str = "m_axi"):
        self.ram = AxiRam(AxiBus.from_prefix(dut, prefix), dut.clk, dut.rst, size=size)
        self.faults = Faults()
        for interface in (self.ram.write_if, self.ram.read_if):
            interface.log.setLevel("ERROR")
        channels = (self.ram.write_if.aw_channel, self.ram.write_if.w_channel, self.ram.write_if.b_channel,
                    self.ram.read_if.ar_channel, self.ram.read_if.r_channel)
        if percent:
            for channel in channels:
                channel.set_pause_generator(pauses(random.Random(rng.random()), percent))
        read, write = self.ram.read_if._read, self.ram.write_if._write

        async def faulty_read(address, length):
            self.faults.read_count += 1
            if self.faults.read_count - 1 in self.faults.reads:
                raise IndexError("injected")
            return await read(address, length)

        async def faulty_write(address, data):
            self.faults.write_count += 1
            if self.faults.write_count - 1 in self.faults.writes:
                raise IndexError("injected")
            await write(address, data)

        self.ram.read_if._read, self.ram.write_if._write = faulty_read, faulty_write

    def write(self, address: int, data):
        self.ram.write(address, bytes(data))

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.ram.read(address, size))


class Registers:
    """The CSRs through AXI4-Lite, by name or by byte offset."""

    def __init__(self, dut, rng: random.Random, percent: int, prefix: str = "s_axil"):
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), dut.clk, dut.rst)
        for interface in (self.master.write_if, self.master.read_if):
            interface.log.setLevel("ERROR")
        if percent:
            w, r = self.master.write_if, self.master.read_if
            for channel in (w.aw_channel, w.w_channel, w.b_channel, r.ar_channel, r.r_channel):
                channel.set_pause_generator(pauses(random.Random(rng.random()), percent))

    async def read(self, register: str | int) -> int:
        answer = await self.master.read(ADDR[register] if isinstance(register, str) else register, 4)
        assert answer.resp == 0, f"reading {register} answers {answer.resp}"
        return int.from_bytes(answer.data, "little")

    async def write(self, register: str | int, value: int):
        answer = await self.master.write(ADDR[register] if isinstance(register, str) else register, value.to_bytes(4, "little"))
        assert answer.resp == 0, f"writing {register} answers {answer.resp}"


class Monitor:
    """Watches the machine's AXI4 master: a request stays as it is until it is taken, bursts are incrementing, of whole words and
    inside a 4 KB page, data beats carry all bytes, or none once the machine has stopped. Counts beats and lists bursts.
    (cocotbext-axi checks `wlast` and the page as well.)"""

    def __init__(self, dut, prefix: str = "m_axi", channels=("aw", "w", "ar")):
        self.dut, self.prefix, self.channels = dut, prefix, channels
        self.read_beats = self.write_beats = 0
        self.bursts: list[tuple[str, int, int]] = []
        self.task = cocotb.start_soon(self._watch())

    def _get(self, name: str) -> int:
        return int(getattr(self.dut, f"{self.prefix}_{name}").value)

    async def _watch(self):
        waiting = {}
        while True:
            await FallingEdge(self.dut.clk)  # both sides have settled since the rising edge, and hold until the next
            await ReadOnly()
            if int(self.dut.rst.value):
                waiting = {}
                continue
            for channel in self.channels:
                held = waiting.pop(channel, None)
                if not self._get(f"{channel}valid"):
                    assert held is None, f"{channel}valid fell before {channel}ready"
                    continue
                now = tuple(self._get(name) for name in CHANNELS[channel])
                assert held in (None, now), f"{channel} changed while it waited: {held} to {now}"
                if self._get(f"{channel}ready"):
                    self._taken(channel, now)
                else:
                    waiting[channel] = now
            if "ar" in self.channels:
                self.read_beats += self._get("rvalid") and self._get("rready")

    def _taken(self, channel: str, now: tuple[int, ...]):
        width = len(getattr(self.dut, f"{self.prefix}_{'rdata' if channel == 'ar' else 'wdata'}")) // 8
        if channel == "w":
            assert now[1] in (0, (1 << width) - 1), f"wstrb {now[1]:#x}: the machine writes whole beats, or none"
            self.write_beats += now[1] != 0
            return
        address, length, size, burst = now
        assert burst == 1 and 1 << size == width, f"{channel}burst {burst}, {channel}size {size}"
        assert address % width == 0, f"{channel}addr {address:#x} is not aligned"
        assert address % 0x1000 + (length + 1) * width <= 0x1000, f"{channel}: {length + 1} beats at {address:#x}"
        self.bursts.append((channel, address, length + 1))
