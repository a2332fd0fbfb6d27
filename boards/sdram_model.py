"""The chip behind `boards.sdram`, for simulation: keeps data as a chip does, and looks that the data sheet's rules are kept."""

from enum import IntEnum

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from .sdram import ALL_BANKS, BANKS, DATA_BITS, Operation, Sdram, pins


class Rule(IntEnum):
    """Rules that a controller can break."""

    NONE = 0
    INIT = 1
    CLOSED = 2
    OPEN = 3
    TRCD = 4
    TRP = 5
    TRAS = 6
    TRFC = 7
    TWR = 8
    TMRD = 9
    TURN = 10
    REFRESH = 11
    CUT = 12


RULE_DOC = {
    Rule.INIT: "a command before the time after power-up, or a use before precharge, two refreshes and the mode register",
    Rule.CLOSED: "a read or write of a bank without an open row",
    Rule.OPEN: "an activate, refresh or mode register while a row is open",
    Rule.TRCD: "a read or write too soon after the activate",
    Rule.TRP: "an activate, refresh or mode register too soon after a precharge",
    Rule.TRAS: "a precharge too soon after the activate",
    Rule.TRFC: "a command too soon after a refresh",
    Rule.TWR: "a precharge too soon after data written",
    Rule.TMRD: "a command too soon after the mode register",
    Rule.TURN: "controller and chip drive the data pins at once, or without a cycle between",
    Rule.REFRESH: "no refresh for nine periods",
    Rule.CUT: "a burst cut short by another",
}


class SdramModel(wiring.Component):
    """A chip whose burst length and CAS latency the mode register sets. It has no power-up garbage: its cells are 0.

    Members
    -------
    pins : the chip's.
    broken : the first Rule that was broken.
    """

    def __init__(self, chip: Sdram, clock_hz: int):
        self.chip, self.clock_hz = chip, clock_hz
        super().__init__({"pins": In(pins(chip)), "broken": Out(8)})

    def elaborate(self, platform):
        m = Module()
        chip, pins = self.chip, self.pins

        def ages(ns: float) -> int:
            """The least age in cycles that lasts `ns`: not the controller's own reckoning, which this is to check."""
            period = 1e9 / self.clock_hz
            cycles = 0
            while cycles * period < ns:
                cycles += 1
            return cycles

        m.submodules.cells = cells = memory.Memory(shape=DATA_BITS, depth=chip.size * 8 // DATA_BITS, init=[])
        write, read = cells.write_port(granularity=8), cells.read_port(domain="comb")

        def age(name: str) -> Signal:
            """Cycles since an event, up to a point beyond which nothing depends on it."""
            signal = Signal(16, name=name, init=0xFFFF)
            with m.If(signal != 0xFFFF):
                m.d.sync += signal.eq(signal + 1)
            return signal

        def happens(signal: Signal):
            m.d.sync += signal.eq(1)

        def rule(broken, which: Rule):
            with m.If(broken & (self.broken == Rule.NONE)):
                m.d.sync += self.broken.eq(which)

        powered = Signal(32)
        m.d.sync += powered.eq(powered + 1)
        opened, rows = Signal(BANKS), Array(Signal(chip.row_bits, name=f"row_{i}") for i in range(BANKS))
        activated = [age(f"activated_{i}") for i in range(BANKS)]
        precharged = [age(f"precharged_{i}") for i in range(BANKS)]
        written = [age(f"written_{i}") for i in range(BANKS)]
        refreshed, mode_set = age("refreshed"), age("mode_set")
        stale = Signal(32)  # cycles since it was ready, less a period for each refresh, but never below 0
        refreshes, was_precharged, ready = Signal(2), Signal(), Signal()
        cas, beats = Signal(3), Signal(4)

        # The present burst.
        burst_left, burst_bank, burst_column = Signal(4), Signal(2), Signal(chip.column_bits)
        burst_writes = Signal()
        ba, a, op = pins.ba, pins.a, pins.operation
        any_command = op != Operation.NOTHING
        with m.If(any_command):
            rule(powered < ages(chip.init_ns), Rule.INIT)
            rule(refreshed < ages(chip.trfc_ns), Rule.TRFC)
            rule(mode_set < chip.tmrd_cycles, Rule.TMRD)
        needs_all_closed = (op == Operation.REFRESH) | (op == Operation.MODE)
        rule(needs_all_closed & opened.any(), Rule.OPEN)
        rule(needs_all_closed & Cat(p < ages(chip.trp_ns) for p in precharged).any(), Rule.TRP)
        uses = (op == Operation.ACTIVATE) | (op == Operation.READ) | (op == Operation.WRITE)
        rule(uses & ~ready, Rule.INIT)
        rule(ready & (stale > 9 * ages(chip.refresh_ns)), Rule.REFRESH)

        with m.Switch(op):
            with m.Case(Operation.MODE):
                m.d.sync += [cas.eq(a[4:7]), beats.eq(1 << a[:3])]
                m.d.sync += ready.eq(was_precharged & (refreshes >= 2))
                happens(mode_set)
            with m.Case(Operation.REFRESH):
                m.d.sync += [refreshes.eq(Mux(refreshes == 3, 3, refreshes + 1))]
                happens(refreshed)
            with m.Case(Operation.PRECHARGE):
                m.d.sync += was_precharged.eq(1)
                for i in range(BANKS):
                    with m.If(a[ALL_BANKS.bit_length() - 1] | (ba == i)):
                        rule(opened[i] & (activated[i] < ages(chip.tras_ns)), Rule.TRAS)
                        rule(opened[i] & (written[i] < chip.twr_cycles), Rule.TWR)
                        rule((burst_left != 0) & burst_writes & (burst_bank == i), Rule.CUT)
                        m.d.sync += opened[i].eq(0)
                        happens(precharged[i])
            with m.Case(Operation.ACTIVATE):
                for i in range(BANKS):
                    with m.If(ba == i):
                        rule(opened[i], Rule.OPEN)
                        rule(precharged[i] < ages(chip.trp_ns), Rule.TRP)
                        m.d.sync += [opened[i].eq(1), rows[i].eq(a)]
                        happens(activated[i])
            with m.Case(Operation.READ, Operation.WRITE):
                rule(burst_left != 0, Rule.CUT)
                for i in range(BANKS):
                    with m.If(ba == i):
                        rule(~opened[i], Rule.CLOSED)
                        rule(activated[i] < ages(chip.trcd_ns), Rule.TRCD)
        period = ages(chip.refresh_ns)
        m.d.sync += stale.eq(Mux(op == Operation.REFRESH, Mux(stale > period, stale - period, 0), Mux(ready, stale + 1, 0)))

        # Bursts: a write's first data come with its command, a read's cells are looked up then and go through a delay line.
        column_command = (op == Operation.READ) | (op == Operation.WRITE)
        now, now_bank, now_column, now_writes = Signal(), Signal(2), Signal(chip.column_bits), Signal()
        m.d.comb += [
            now.eq(column_command | (burst_left != 0)), now_bank.eq(Mux(column_command, ba, burst_bank)),
            now_column.eq(Mux(column_command, a, burst_column)),
            now_writes.eq(Mux(column_command, op == Operation.WRITE, burst_writes)),
        ]
        wrap = Signal(chip.column_bits)
        m.d.comb += wrap.eq(beats - 1)
        with m.If(now):
            m.d.sync += [
                burst_left.eq(Mux(column_command, beats - 1, burst_left - 1)), burst_bank.eq(now_bank),
                burst_writes.eq(now_writes), burst_column.eq((now_column & ~wrap) | ((now_column + 1) & wrap)),
            ]
        cell = Cat(now_column, now_bank, rows[now_bank])
        m.d.comb += [
            write.addr.eq(cell), write.data.eq(pins.dq_o), write.en.eq(Mux(now & now_writes, ~pins.dqm, 0)), read.addr.eq(cell),
        ]
        for i in range(BANKS):
            with m.If(now & now_writes & (now_bank == i)):
                happens(written[i])
        rule(now & now_writes & ~pins.dq_oe, Rule.TURN)

        # What is read here is on the pins, as the controller sees them, `cas` + `capture` - 1 cycles later.
        out, driven = Array(Signal(DATA_BITS, name=f"out_{i}") for i in range(8)), Signal(8)
        m.d.sync += [out[0].eq(read.data), driven.eq(Cat(now & ~now_writes, driven))]
        m.d.sync += [out[i].eq(out[i - 1]) for i in range(1, 8)]
        drives = Signal()
        stage = (cas + chip.capture - 2)[:3]
        m.d.comb += [drives.eq((driven >> stage)[0]), pins.dq_i.eq(Mux(drives, out[stage], 0xDEAD))]
        drove = Signal()
        m.d.sync += drove.eq(drives)
        rule(pins.dq_oe & (drives | drove), Rule.TURN)
        return m
