"""The registers of `seriatim.csr` on AXI4-Lite."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim import csr, isa
from seriatim.config import Config

LITE = wiring.Signature({
    "awaddr": Out(csr.ADDR_BITS), "awvalid": Out(1), "awready": In(1),
    "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
    "bresp": In(2), "bvalid": In(1), "bready": Out(1),
    "araddr": Out(csr.ADDR_BITS), "arvalid": Out(1), "arready": In(1),
    "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
})
"""AXI4-Lite, seen by the master."""


class Registers(wiring.Component):
    """Every register of the table: one access each way at a time, each answered OKAY after two cycles.

    Members
    -------
    bus : AXI4-Lite.
    one port for each register but the counters and the constants, in lower case: `r` registers are inputs, `rw` ones outputs;
        a `w1` register is an output that is not zero for the one cycle of a write.
    counters : for the COUNTER_LO and COUNTER_HI registers.
    awake : see `sleep`; of the bus it only knows what it has accepted.
    """

    def __init__(self, config: Config):
        c = config
        self.constants = {
            "ID": csr.ID_VALUE, "ISA_VERSION": isa.VERSION, "CONFIG_HASH": c.hash,
            "GEOMETRY": c.geometry,
        }
        self.halves = {f"{counter.name}_{half}": (counter, half) for counter in csr.Counter for half in ("LO", "HI")}
        self.plain = [r for r in csr.REGISTERS if r.name not in self.constants and r.name not in self.halves]
        super().__init__({
            "bus": In(LITE),
            "counters": In(64).array(len(csr.Counter)),
            "awake": Out(1),
        } | {r.name.lower(): (In if r.access == "r" else Out)(32) for r in self.plain})

    def elaborate(self, platform):
        m = Module()
        bus = self.bus

        # A write waits for both its address and its data.
        address, write_data, strobe = Signal(csr.ADDR_BITS), Signal(32), Signal(4)
        have_address, have_data = Signal(), Signal()
        m.d.comb += [bus.awready.eq(~have_address), bus.wready.eq(~have_data)]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr), have_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [write_data.eq(bus.wdata), strobe.eq(bus.wstrb), have_data.eq(1)]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        mask = Cat(bit.replicate(8) for bit in strobe)
        for r in self.plain:
            if r.access == "w1":
                m.d.sync += getattr(self, r.name.lower()).eq(0)
        with m.If(have_address & have_data & (~bus.bvalid | bus.bready)):
            m.d.sync += [have_address.eq(0), have_data.eq(0), bus.bvalid.eq(1)]
            with m.Switch(address[2:]):
                for r in self.plain:
                    if r.access == "r":
                        continue
                    with m.Case(r.addr >> 2):
                        port = getattr(self, r.name.lower())
                        m.d.sync += port.eq((port & ~mask if r.access == "rw" else 0) | write_data & mask)

        pulses = Cat(getattr(self, r.name.lower()) for r in self.plain if r.access == "w1")
        read_address, reading = Signal(csr.ADDR_BITS), Signal()
        m.d.comb += self.awake.eq(have_address | have_data | bus.bvalid | reading | bus.rvalid | pulses.any())
        m.d.comb += bus.arready.eq(~reading & ~bus.rvalid)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [read_address.eq(bus.araddr), reading.eq(1)]
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(reading):
            m.d.sync += [reading.eq(0), bus.rvalid.eq(1), bus.rdata.eq(0)]
            with m.Switch(read_address[2:]):
                for r in csr.REGISTERS:
                    if r.access == "w1":
                        continue
                    with m.Case(r.addr >> 2):
                        if r.name in self.constants:
                            value = self.constants[r.name]
                        elif r.name in self.halves:
                            counter, half = self.halves[r.name]
                            value = self.counters[counter].word_select(half == "HI", 32)
                        else:
                            value = getattr(self, r.name.lower())
                        m.d.sync += bus.rdata.eq(value)
        return m
