"""The memory of a board: on chip, the accelerator's AXI4 port to it, and the host's access beside that."""

from dataclasses import dataclass
from typing import ClassVar

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError
from seriatim.hw import spram
from seriatim.hw.axi import read_signature, write_signature

PAGE = 4096
"""No AXI burst crosses such a boundary: for a memory of whole pages a burst's first address tells whether it is inside."""

DECERR = 3

TAG = data.StructLayout({"host": 1, "last": 1, "error": 1})
"""What comes back with the data of a read: whose it is; of AXI's beats `rlast`, and whether the address is beyond the memory."""


def request_layout(bits: int, size: int) -> data.StructLayout:
    """An access of a memory of `size` bytes in words of `bits`: `address` counts words, `strobe` bytes."""
    return data.StructLayout({
        "address": (size * 8 // bits - 1).bit_length(), "write": 1, "data": bits, "strobe": bits // 8, "tag": TAG,
    })


def memory_signature(bits: int, size: int) -> wiring.Signature:
    """A memory, as its user sees it: it does requests in order; the data of reads come in order and cannot be held back."""
    return wiring.Signature({
        "request": Out(stream.Signature(request_layout(bits, size))),
        "valid": In(1), "data": In(bits), "tag": In(TAG),
    })


@dataclass(frozen=True)
class OnChip:
    """Block RAM of `size` bytes. `timing`: as the compiler's cycle model expects it."""

    timing: ClassVar = Memory(latency=2, outstanding=1)
    size: int

    def __post_init__(self):
        if self.size % PAGE or not PAGE <= self.size <= 1 << 31:
            raise ConfigError(f"a memory of {self.size} bytes: whole pages of {PAGE} bytes, {PAGE} to {1 << 31}")

    def controller(self, bits: int, clock_hz: int) -> wiring.Component:
        """This memory in words of `bits`, at any clock."""
        return BlockRam(bits, self.size)


@dataclass(frozen=True)
class Spram(OnChip):
    """The single-port memories of an iCE40 UP5K: 64 or 128 KiB in words of 32 bits."""

    size: int = 128 << 10

    def __post_init__(self):
        if self.size not in (64 << 10, 128 << 10):
            raise ConfigError(f"an SPRAM of {self.size} bytes: the UP5K has 4 of 32 KiB, for 65536 or 131072 bytes")

    def controller(self, bits, clock_hz):
        if bits != spram.BITS:
            raise ConfigError(f"an SPRAM in words of {bits} bits: it has {spram.BITS}; set axi_bits={spram.BITS}")
        return SpramBank(self.size)


class OnChipMemory(wiring.Component):
    """A word a cycle, data a cycle after its request."""

    def __init__(self, bits: int, size: int):
        self.bits, self.size = bits, size
        super().__init__({"bus": In(memory_signature(bits, size))})

    def elaborate(self, platform):
        m = Module()
        request = self.bus.request
        m.d.comb += request.ready.eq(1)
        m.d.sync += self.bus.valid.eq(request.valid & ~request.payload.write)
        with m.If(request.valid):
            m.d.sync += self.bus.tag.eq(request.payload.tag)
        self.cells(m, request, platform)
        return m

    def cells(self, m: Module, request, platform) -> None:
        """The memory itself: takes `request`, drives `bus.data` a cycle later."""
        raise NotImplementedError


class BlockRam(OnChipMemory):
    """Memory that synthesis puts into block RAM."""

    def cells(self, m, request, platform):
        m.submodules.memory = words = memory.Memory(shape=self.bits, depth=self.size * 8 // self.bits, init=[])
        write, read = words.write_port(granularity=8), words.read_port()
        p = request.payload
        m.d.comb += [
            write.addr.eq(p.address), write.data.eq(p.data), write.en.eq(Mux(request.valid & p.write, p.strobe, 0)),
            read.addr.eq(p.address), read.en.eq(request.valid & ~p.write), self.bus.data.eq(read.data),
        ]


class SpramBank(OnChipMemory):
    """The SPRAM of a UP5K."""

    def __init__(self, size: int):
        super().__init__(spram.BITS, size)

    def cells(self, m, request, platform):
        m.submodules.memory = words = spram.SinglePort(self.size * 8 // spram.BITS)
        p = request.payload
        m.d.comb += [words.en.eq(request.valid), words.address.eq(p.address), words.wdata.eq(p.data),
                     words.strobe.eq(Mux(p.write, p.strobe, 0)), self.bus.data.eq(words.rdata)]


class AxiPort(wiring.Component):
    """An AXI4 slave on a memory: incrementing bursts of whole beats, one of each direction at a time, a beat a cycle.

    For masters that take data and responses whenever they come, as the accelerator does: it looks neither at `rready` nor at
    `bready`. A write's response goes when the memory has accepted its last beat, and no later read overtakes that. Bursts
    beyond the memory answer DECERR and write nothing.

    Members
    -------
    axi : the slave. bus : the memory.
    """

    def __init__(self, config: Config, size: int):
        self.config, self.size = config, size
        read, write = read_signature(config), write_signature(config)
        super().__init__({
            "axi": In(wiring.Signature({**read.members, **write.members})),
            "bus": Out(memory_signature(config.axi_bits, size)),
        })

    def elaborate(self, platform):
        m = Module()
        axi, bus, request = self.axi, self.bus, self.bus.request
        shift = (self.config.axi_bytes - 1).bit_length()
        word = request.payload.address

        read_address, write_address = Signal.like(word), Signal.like(word)
        beats = Signal(8)  # of the read burst, after the present one
        reading, writing = Signal(), Signal()
        read_error, write_error = Signal(), Signal()
        last = beats == 0

        # A write's beat goes before a read's: there are fewer of them, and the accelerator waits for their responses.
        put, get = Signal(), Signal()
        m.d.comb += [
            put.eq(writing & axi.wvalid), get.eq(reading & ~put),
            request.valid.eq(put | get), request.payload.write.eq(put),
            word.eq(Mux(put, write_address, read_address)),
            request.payload.data.eq(axi.wdata), request.payload.strobe.eq(Mux(write_error, 0, axi.wstrb)),
            request.payload.tag.last.eq(last), request.payload.tag.error.eq(read_error),
            axi.wready.eq(writing & request.ready),
        ]
        taken = get & request.ready
        m.d.comb += [axi.arready.eq(~reading | (taken & last)), axi.awready.eq(~writing)]
        with m.If(taken):
            m.d.sync += [read_address.eq(read_address + 1), beats.eq(beats - 1)]
            with m.If(last):
                m.d.sync += reading.eq(0)
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [reading.eq(1), read_address.eq(axi.araddr >> shift), beats.eq(axi.arlen),
                         read_error.eq(axi.araddr >= self.size)]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [writing.eq(1), write_address.eq(axi.awaddr >> shift), write_error.eq(axi.awaddr >= self.size)]
        m.d.sync += axi.bvalid.eq(0)
        with m.If(put & request.ready):
            m.d.sync += write_address.eq(write_address + 1)
            with m.If(axi.wlast):
                m.d.sync += [writing.eq(0), axi.bvalid.eq(1), axi.bresp.eq(Mux(write_error, DECERR, 0))]

        m.d.comb += [
            axi.rvalid.eq(bus.valid & ~bus.tag.host), axi.rdata.eq(bus.data), axi.rlast.eq(bus.tag.last),
            axi.rresp.eq(Mux(bus.tag.error, DECERR, 0)),
        ]
        return m


class Arbiter(wiring.Component):
    """Two users of a memory. The host goes first: a word from a UART is rare.

    Members
    -------
    host, machine : the users; the host's tags get `host` set.
    bus : the memory.
    """

    def __init__(self, bits: int, size: int):
        side = memory_signature(bits, size)
        super().__init__({"host": In(side), "machine": In(side), "bus": Out(side)})

    def elaborate(self, platform):
        m = Module()
        host, machine, bus = self.host, self.machine, self.bus
        m.d.comb += [
            bus.request.valid.eq(host.request.valid | machine.request.valid),
            bus.request.payload.eq(Mux(host.request.valid, host.request.payload.as_value(), machine.request.payload.as_value())),
            bus.request.payload.tag.host.eq(host.request.valid),
            host.request.ready.eq(bus.request.ready), machine.request.ready.eq(bus.request.ready & ~host.request.valid),
        ]
        for user in (host, machine):
            m.d.comb += [user.data.eq(bus.data), user.tag.eq(bus.tag)]
        m.d.comb += [host.valid.eq(bus.valid & bus.tag.host), machine.valid.eq(bus.valid & ~bus.tag.host)]
        return m
