"""A single-port memory: the SPRAM of an iCE40 UP5K where the platform has it, block RAM of the same timing elsewhere."""

from amaranth.hdl import Cat, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

BITS = 32
DEPTH = 1 << 14
"""Words of two SB_SPRAM256KA side by side."""


def available(platform) -> bool:
    """Whether the platform's device has SPRAM."""
    return getattr(platform, "device", "").startswith("iCE40UP")


class SinglePort(wiring.Component):
    """`depth` words of 32 bits; a read or a write a cycle, data a cycle after the read.

    Members
    -------
    en, address : an access. strobe, wdata : bytes to write; none: it reads. rdata : what was read.
    """

    def __init__(self, depth: int):
        self.depth = depth
        super().__init__({
            "en": In(1), "address": In(range(depth)), "strobe": In(BITS // 8), "wdata": In(BITS), "rdata": Out(BITS),
        })

    def elaborate(self, platform):
        m = Module()
        writes = self.strobe.any()
        if not available(platform):
            m.submodules.memory = words = memory.Memory(shape=BITS, depth=self.depth, init=[])
            write, read = words.write_port(granularity=8), words.read_port()
            m.d.comb += [
                write.addr.eq(self.address), write.data.eq(self.wdata), write.en.eq(Mux(self.en, self.strobe, 0)),
                read.addr.eq(self.address), read.en.eq(self.en & ~writes), self.rdata.eq(read.data),
            ]
            return m
        banks = -(-self.depth // DEPTH)
        bank, shown = Signal(range(banks)), Signal(range(banks))
        m.d.comb += bank.eq(self.address >> 14)
        with m.If(self.en & ~writes):
            m.d.sync += shown.eq(bank)
        for i in range(banks):
            words = Signal(BITS, name=f"words_{i}")
            for half in range(2):
                strobe = self.strobe.word_select(half, 2)
                m.submodules[f"spram_{i}_{half}"] = Instance(
                    "SB_SPRAM256KA", i_CLOCK=ClockSignal(), i_ADDRESS=self.address[:14],
                    i_DATAIN=self.wdata.word_select(half, 16), i_MASKWREN=Cat(bit.replicate(2) for bit in strobe), i_WREN=writes,
                    i_CHIPSELECT=self.en & (bank == i),
                    i_STANDBY=0, i_SLEEP=0, i_POWEROFF=1, o_DATAOUT=words.word_select(half, 16))
            with m.If(shown == i):
                m.d.comb += self.rdata.eq(words)
        return m
