"""`Compact`: the accelerator for FPGAs too small for `Seriatim`, with the same ports, registers and instructions.

A RISC-V core (Sentinel) executes the instructions one after the other, from `firmware.c`; one row and column of the
bit-serial array with its requantisation (`Tile`) does what CONV does at a position. The core addresses, by the top bits:

    0  its firmware                               2  registers of this module, and of `Tile`
    1  the scratch memory                         3  the work memory: act, residual, out buffer
    8  the AXI port's addresses, without their top bit

The scratch memory also holds the registers of `seriatim.csr`, which the host reads and writes there, the profile memory, params,
psums, the core's own data, and the wgt buffer. The core waits, at any access but that of its firmware, until `Tile` has ended.
"""

from enum import IntEnum, IntFlag

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from sentinel_cpu.top import Top as Sentinel

from seriatim import csr
from seriatim.config import Config
from seriatim.csr import Ctrl, Status
from seriatim.errors import ConfigError

from . import axi, firmware
from .csr import LITE
from .spram import SinglePort
from .tile import PARAM_WORDS, RESCALE_WORDS, SCRATCH, Tile, work_bits

DATA_WORDS = 512
"""Of the core's own data and stack."""


class Region(IntEnum):
    """The top four bits of the core's addresses."""

    FIRMWARE = 0
    SCRATCH = 1
    REGISTERS = 2
    WORK = 3
    MEMORY = 8


class Own(IntEnum):
    """Registers of this module, as words; the Tile's follow."""

    STATUS = 0  # of seriatim.csr; the core may write it
    CYCLES = 1  # since the program was started, modulo 2^32
    STEPS = 2   # of the array since then, likewise
    FAULT = 3   # of AXI accesses, a Fault; a write clears it
    GO = 4      # a write starts the Tile
    PACK = 5    # a write has it pack a value
    START = 6   # a read waits until a program is started


class Fault(IntFlag):
    """What went wrong with an AXI access."""

    READ = 1
    WRITE = 2
    HUNG = 4


def scratch_map(config: Config) -> dict[str, tuple[int, int]]:
    """Region of the scratch memory -> first word, words. Raises ConfigError where they are too many."""
    sizes = {"csr": max(register.addr for register in csr.REGISTERS) // 4 + 1,
             "profile": config.marks * csr.PROFILE_KEPT * 2, "prm": config.prm_words * PARAM_WORDS,
             "psum": config.psum_words, "rescale": RESCALE_WORDS, "data": DATA_WORDS, "wgt": config.wgt_words}
    places, at = {}, 0
    for name, size in sizes.items():
        places[name] = at, size
        at += size
    if at > 1 << SCRATCH:
        raise ConfigError(f"the compact machine's scratch memory has {1 << SCRATCH:,} words, this Config takes {at:,}: make "
                          f"wgt_words={config.wgt_words}, prm_words={config.prm_words} ({PARAM_WORDS} words each), "
                          f"psum_words={config.psum_words} or marks={config.marks} ({2 * csr.PROFILE_KEPT} words each) smaller")
    return places


class Compact(wiring.Component):
    """The machine of a `Config` with `compact`: everything that `Seriatim` says of its ports holds.

    The host's access to a register but STATUS waits while `Tile` is at work. Counters are brought up to date after each
    instruction.

    Members
    -------
    s_axil, m_axi, irq : as `Seriatim`'s; bursts have one beat.
    """

    def __init__(self, config: Config, simulation: bool = False):
        self.config, self.simulation, self.places = config, simulation, scratch_map(config)
        read, write = axi.read_signature(config), axi.write_signature(config)
        super().__init__({
            "s_axil": In(LITE),
            "m_axi": Out(wiring.Signature({**read.members, **write.members})),
            "irq": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.submodules.core = core = Sentinel()
        m.submodules.tile = tile = Tile(c, self.places["rescale"][0], self.simulation)
        m.submodules.scratch = scratch = SinglePort(sum(size for _, size in self.places.values()))
        program = firmware.words(c)
        m.submodules.firmware = rom = memory.Memory(shape=32, depth=len(program), init=program)
        m.submodules.work = work = memory.Memory(shape=c.k, depth=1 << work_bits(c), init=[])
        m.submodules.flags = flags = memory.Memory(shape=1, depth=1 << work_bits(c), init=[])

        # The core's bus: an access is taken in one cycle and acknowledged in the next, or when AXI has answered.
        bus = core.bus
        region = bus.adr[26:30]
        taken, answered, host = Signal(), Signal(), Signal()
        asks = bus.cyc & bus.stb & ~taken
        m.d.comb += bus.ack.eq(taken | answered)
        of = {name: Signal(name=f"of_{name.name.lower()}") for name in Region}
        status, number = Signal(3), bus.adr[:(len(Own) + len(tile.shapes) - 1).bit_length()]  # busy, done, error
        may = {name: ~tile.active & ~host for name in Region}
        may[Region.FIRMWARE] = 1
        may[Region.REGISTERS] &= (number != Own.START) | status[0]
        for name, chosen in of.items():
            m.d.comb += chosen.eq(asks & may[name] & (region[3] if name is Region.MEMORY else region == name))
        m.d.sync += taken.eq(Cat(chosen for name, chosen in of.items() if name is not Region.MEMORY).any())

        # Firmware, work memory.
        fetch = rom.read_port()
        read, write = work.read_port(), work.write_port()
        flag, flag_write = flags.read_port(), flags.write_port()
        m.d.comb += [
            fetch.en.eq(of[Region.FIRMWARE]), fetch.addr.eq(bus.adr),
            read.en.eq(tile.read_en | of[Region.WORK]), read.addr.eq(Mux(tile.active, tile.read_address, bus.adr)),
            write.en.eq(Mux(tile.active, tile.write_en, of[Region.WORK] & bus.we)),
            write.addr.eq(Mux(tile.active, tile.write_address, bus.adr)),
            write.data.eq(Mux(tile.active, tile.write_data, bus.dat_w)),
            flag.en.eq(tile.read_en), flag.addr.eq(tile.read_address),
            flag_write.en.eq(write.en), flag_write.addr.eq(write.addr), flag_write.data.eq(tile.valid),
            tile.read_data.eq(read.data), tile.read_valid.eq(flag.data), tile.scratch_rdata.eq(scratch.rdata),
        ]

        # Registers.
        pending, awake = Signal(), Signal()  # interrupt; the core has set the registers up
        cycles, steps, fault = Signal(32), Signal(32), Signal(3)
        started = Signal()
        m.d.sync += [cycles.eq(Mux(started, 0, cycles + 1)), steps.eq(Mux(started, 0, steps + tile.step))]
        written = of[Region.REGISTERS] & bus.we
        shown = Signal(32)
        with m.Switch(number):
            for own, value in ((Own.STATUS, Cat(status, pending)), (Own.CYCLES, cycles), (Own.STEPS, steps), (Own.FAULT, fault)):
                with m.Case(own):
                    m.d.comb += shown.eq(value)
        m.d.comb += [tile.go.eq(written & (number == Own.GO)), tile.pack.eq(written & (number == Own.PACK))]
        for at, (name, shape) in enumerate(tile.shapes.items(), len(Own)):
            register = Signal(shape, name=name, reset_less=True)
            m.d.comb += getattr(tile, name).eq(register)
            with m.If(written & (number == at)):
                m.d.sync += register.eq(bus.dat_w)
        with m.If(written & (number == Own.STATUS)):
            m.d.sync += [Cat(status, pending).eq(bus.dat_w), awake.eq(1)]
        with m.If(written & (number == Own.FAULT)):
            m.d.sync += fault.eq(0)
        source = Signal(4)
        with m.If(asks):
            m.d.sync += source.eq(region)
        answer = Signal(32)
        m.d.comb += bus.dat_r.eq(answer)
        with m.Switch(source):
            for name, data in ((Region.FIRMWARE, fetch.data), (Region.SCRATCH, scratch.rdata), (Region.REGISTERS, shown),
                               (Region.WORK, read.data)):
                with m.Case(name):
                    m.d.comb += answer.eq(data)
            with m.Default():
                m.d.comb += answer.eq(self.m_axi.rdata)

        hung = Signal()  # for register CAUSE
        begin = self._memory(m, bus, of[Region.MEMORY], answered, scratch, status, pending, fault, hung)
        accesses, address, strobe, data = self._host(m, tile.active, host, awake, status, pending, hung, started, scratch.rdata)
        with m.If(tile.active):
            m.d.comb += [scratch.en.eq(tile.scratch_en), scratch.address.eq(tile.scratch_address),
                         scratch.strobe.eq(tile.scratch_write.replicate(4)), scratch.wdata.eq(tile.scratch_wdata)]
        with m.Elif(host):
            m.d.comb += [scratch.en.eq(accesses), scratch.address.eq(address), scratch.strobe.eq(strobe), scratch.wdata.eq(data)]
        with m.Else():
            m.d.comb += [
                scratch.en.eq(of[Region.SCRATCH] | begin), scratch.wdata.eq(bus.dat_w),
                scratch.address.eq(Mux(begin, csr.ADDR["WATCHDOG"] // 4, bus.adr)),
                scratch.strobe.eq(Mux(of[Region.SCRATCH] & bus.we, bus.sel, 0)),
            ]
        return m

    def _memory(self, m, bus, asked, answered, scratch, status, pending, fault, hung):
        """AXI accesses of the core. One that takes longer than WATCHDOG cycles ends the program, though not the access: the core
        goes on when it is answered. Until it has taken note, further accesses are none, and answered at once. Returns the cycle
        in which one begins; it reads that register."""
        axi_, left, watched = self.m_axi, Signal(32), Signal()
        address_sent, data_sent, begin = Signal(), Signal(), Signal()
        late = (fault & Fault.HUNG).any()
        address = Cat(bus.adr[:29] << 2)
        m.d.comb += [
            axi_.araddr.eq(address), axi_.awaddr.eq(address), axi_.wdata.eq(bus.dat_w), axi_.wstrb.eq(bus.sel), axi_.wlast.eq(1),
            *(getattr(axi_, f"a{way}{name}").eq(value) for way in "rw" for name, value in (("size", 2), ("burst", 1))),
        ]
        m.d.sync += left.eq(left - 1)
        with m.FSM(name="memory") as fsm:
            with m.State("IDLE"):
                m.d.comb += [begin.eq(asked & ~late), answered.eq(asked & late)]
                m.d.sync += [address_sent.eq(0), data_sent.eq(0)]
                with m.If(begin):
                    m.next = "WATCHDOG"
            with m.State("WATCHDOG"):
                m.d.sync += [left.eq(scratch.rdata), watched.eq(scratch.rdata != 0)]
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += [axi_.arvalid.eq(~bus.we), axi_.awvalid.eq(bus.we & ~address_sent),
                             axi_.wvalid.eq(bus.we & ~data_sent)]
                with m.If(axi_.awvalid & axi_.awready):
                    m.d.sync += address_sent.eq(1)
                with m.If(axi_.wvalid & axi_.wready):
                    m.d.sync += data_sent.eq(1)
                with m.If(Mux(bus.we, (address_sent | axi_.awready) & (data_sent | axi_.wready), axi_.arready)):
                    m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += [axi_.rready.eq(1), axi_.bready.eq(1), answered.eq(axi_.rvalid | axi_.bvalid)]
                with m.If(answered):
                    m.next = "IDLE"
                with m.If(axi_.rvalid & axi_.rresp[1]):
                    m.d.sync += fault.eq(fault | Fault.READ)
                with m.If(axi_.bvalid & axi_.bresp[1]):
                    m.d.sync += fault.eq(fault | Fault.WRITE)
        waits = fsm.ongoing("REQUEST") | fsm.ongoing("RESPONSE")
        with m.If(waits & watched & (left == 0) & ~answered):
            m.d.sync += [watched.eq(0), hung.eq(1), fault.eq(Fault.HUNG), pending.eq(1), status.eq(Status.ERROR)]
        return begin

    def _host(self, m, busy, host, awake, status, pending, hung, started, word):
        """The host's registers. Returns its accesses of the scratch memory, in cycles of `host`: whether there is one, address,
        strobe, data. What it reads is on `word` in the next cycle."""
        bus, places = self.s_axil, self.places
        writes, reads = bus.awvalid & bus.wvalid & ~bus.bvalid, bus.arvalid & ~bus.rvalid
        put, get, at_once, of_status = Signal(), Signal(), Signal(), Signal()  # STATUS is not in the scratch memory
        m.d.comb += [
            at_once.eq(reads & ~writes & (bus.araddr[2:] == csr.ADDR["STATUS"] // 4)),
            host.eq(awake & ~busy & (writes | (reads & ~at_once) | (bus.rvalid & ~of_status))),
            put.eq(host & writes), get.eq(awake & at_once | host & reads & ~writes),
            bus.awready.eq(put), bus.wready.eq(put), bus.arready.eq(get),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)

        # Registers that are not in the scratch memory, or not only.
        profile, interrupts = Signal(range(256 * csr.PROFILE_ROW)), Signal()
        layer, counter = profile[5:], profile[:5]
        address, strobe = Signal(SCRATCH), Signal(4)
        index = Mux(put, bus.awaddr, bus.araddr)[2:]
        m.d.comb += [address.eq(index), self.irq.eq(pending & interrupts)]
        with m.If(put):
            m.d.sync += bus.bvalid.eq(1)
            with m.Switch(index):
                for register in csr.REGISTERS:
                    if register.access == "rw":
                        with m.Case(register.addr // 4):
                            m.d.comb += strobe.eq(bus.wstrb)
                with m.Case(csr.ADDR["CTRL"] // 4):
                    with m.If(bus.wstrb[0] & (bus.wdata & Ctrl.ACKNOWLEDGE).any()):
                        m.d.sync += pending.eq(0)
                    with m.If(bus.wstrb[0] & (bus.wdata & Ctrl.START).any() & ~status[0]):
                        m.d.comb += started.eq(1)
                        m.d.sync += [status.eq(Status.BUSY), pending.eq(0), hung.eq(0)]
            for name, register in (("PROFILE_ADDR", profile), ("IRQ_ENABLE", interrupts)):
                with m.If(index == csr.ADDR[name] // 4):
                    for byte in range(-(-len(register) // 8)):
                        with m.If(bus.wstrb[byte]):
                            m.d.sync += register[8 * byte:8 * byte + 8].eq(bus.wdata[8 * byte:])
        nothing, of_cause = Signal(), Signal()
        with m.If(get):
            m.d.sync += [bus.rvalid.eq(1), nothing.eq(index >= places["csr"][1]), of_status.eq(at_once),
                         of_cause.eq(index == csr.ADDR["CAUSE"] // 4)]
            for half, name in enumerate(("PROFILE_LO", "PROFILE_HI")):
                with m.If(index == csr.ADDR[name] // 4):
                    m.d.comb += address.eq(places["profile"][0] + Cat(Const(half, 1), counter[:4], layer))
                    m.d.sync += nothing.eq(counter[4] | (layer >= self.config.marks))
        m.d.comb += bus.rdata.eq(Mux(nothing, 0, Mux(of_status, Cat(status, pending), Mux(
            of_cause & hung, csr.Cause.WATCHDOG, word))))
        return put | get & ~at_once, address, strobe, bus.wdata
