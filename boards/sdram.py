"""A controller for a single-data-rate SDRAM of 16 bits, the memory of an ULX3S."""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Memory
from seriatim.errors import ConfigError

from .memory import TAG, memory_signature

DATA_BITS = 16
BANKS = 4
ALL_BANKS = 1 << 10
"""Address bit that makes a precharge one of all banks."""


class Operation(IntEnum):
    """Commands of the chip: RAS, CAS and WE, each active low, from bit 2 down."""

    MODE, REFRESH, PRECHARGE, ACTIVATE, WRITE, READ, _, NOTHING = range(8)


@dataclass(frozen=True)
class Sdram:
    """A chip, by its data sheet. The defaults hold for the 32 MiB of an ULX3S (IS42S16160, AS4C16M16, W9825G6 and their like).

    Members
    -------
    row_bits, column_bits : of each of the four banks.
    cas : cycles from a read to its data.
    trcd_ns, trp_ns, tras_ns, trfc_ns : activate to read or write; precharge to activate; activate to precharge; refresh.
    twr_cycles : last data written to precharge.
    tmrd_cycles : mode register to anything.
    refresh_ns : from row to row: 64 ms for all of them.
    init_ns : from power-up to the first command.
    capture : cycles beyond `cas` from a read's command on the pins to the clock edge that takes its data: 1, or 0 where the
        chip's clock is so much later than ours that it takes a command before our next edge.
    timing : as the compiler's cycle model expects it, in words of 32 bits at 25 MHz: by the cycles of the digits network on the
        simulated board.
    """

    timing: ClassVar = Memory(latency=12, outstanding=1, read_bandwidth=(1, 2), write_bandwidth=(1, 2))
    row_bits: int = 13
    column_bits: int = 9
    cas: int = 3
    trcd_ns: float = 21
    trp_ns: float = 21
    tras_ns: float = 45
    trfc_ns: float = 70
    twr_cycles: int = 2
    tmrd_cycles: int = 2
    refresh_ns: float = 7_800
    init_ns: float = 200_000
    capture: int = 1

    @property
    def size(self) -> int:
        """Bytes."""
        return BANKS * DATA_BITS // 8 << self.row_bits + self.column_bits

    def controller(self, bits: int, clock_hz: int) -> "SdramController":
        """This memory in words of `bits`."""
        return SdramController(self, bits, clock_hz)


def pins(chip: Sdram) -> wiring.Signature:
    """The chip's pins, seen by the controller; its clock and CKE are the platform's."""
    return wiring.Signature({
        "operation": Out(3, init=Operation.NOTHING), "ba": Out(2), "a": Out(max(chip.row_bits, 11)), "dqm": Out(2),
        "dq_o": Out(DATA_BITS), "dq_oe": Out(1), "dq_i": In(DATA_BITS),
    })


class SdramController(wiring.Component):
    """Words of `bits` as bursts of the chip; a row stays open in each bank until another is wanted, or the refresh comes.

    A word takes bits / 16 cycles where its row is open and the direction stays; else precharge, activate, or the turn of the data
    pins come before it. Data follow a read by `cas` + `capture` + bits / 16 + 1 cycles. The chip's clock is the platform's: its
    delay behind ours, and `capture`, go by the delays of the pins.

    Members
    -------
    bus : the memory. pins : the chip's.
    """

    def __init__(self, chip: Sdram, bits: int, clock_hz: int):
        self.chip, self.bits, self.clock_hz = chip, bits, clock_hz
        self.beats = bits // DATA_BITS
        if self.beats not in (2, 4, 8):
            raise ConfigError(f"an SDRAM of {DATA_BITS} bits behind words of {bits} bits: its bursts are 2, 4 or 8; set "
                              "axi_bits to 32, 64 or 128")
        super().__init__({"bus": In(memory_signature(bits, chip.size)), "pins": Out(pins(chip))})

    def cycles(self, ns: float) -> int:
        """Clock cycles that last `ns` or longer."""
        return math.ceil(ns * self.clock_hz / 1e9)

    def elaborate(self, platform):
        m = Module()
        chip, bus, pins, beats = self.chip, self.bus, self.pins, self.beats
        request = bus.request

        # The request's place: bursts begin at a multiple of their length.
        address = request.payload.address << (beats.bit_length() - 1)
        column = address[:chip.column_bits]
        bank = address[chip.column_bits:chip.column_bits + 2]
        row = address[chip.column_bits + 2:chip.column_bits + 2 + chip.row_bits]
        opened = Signal(BANKS)
        rows = Array(Signal(chip.row_bits, name=f"row_{i}", reset_less=True) for i in range(BANKS))
        is_open = (opened >> bank)[0]

        # What has to pass before: any command, a column command, a write's first data, a precharge.
        trcd, trp, tras = (self.cycles(ns) for ns in (chip.trcd_ns, chip.trp_ns, chip.tras_ns))
        init = self.cycles(chip.init_ns)
        pause = Signal(range(init + 1), init=init)
        column_pause, active = Signal(range(beats)), Signal(range(tras))
        turn, recovery = Signal(range(beats + chip.cas + 2)), Signal(range(beats + chip.twr_cycles))
        for timer in (pause, column_pause, turn, recovery, active):
            with m.If(timer != 0):
                m.d.sync += timer.eq(timer - 1)
        quiet = (column_pause == 0) & (recovery == 0) & (active == 0)

        period = self.cycles(chip.refresh_ns) - 1
        left = Signal(range(period + 1), init=period)
        due = Signal()
        m.d.sync += left.eq(Mux(left == 0, period, left - 1))
        with m.If(left == 0):
            m.d.sync += due.eq(1)

        # Data out: the words' halves in turn.
        data, strobe, writing = Signal(self.bits), Signal(self.bits // 8), Signal(beats)
        m.d.sync += [data.eq(data >> DATA_BITS), strobe.eq(strobe >> 2), writing.eq(writing >> 1)]
        m.d.sync += [pins.dq_o.eq(data[:DATA_BITS]), pins.dqm.eq(Mux(writing[0], ~strobe[:2], 0)), pins.dq_oe.eq(writing[0])]

        # Data in: a delay line of what was asked for beside the pins' last halves.
        depth = chip.cas + chip.capture + beats
        asked, tags = Signal(depth), Array(Signal(TAG, name=f"tag_{i}", reset_less=True) for i in range(depth))
        reading = Signal()
        word = Signal(self.bits, reset_less=True)
        m.d.sync += [asked.eq(Cat(reading, asked)), word.eq(Cat(word[DATA_BITS:], pins.dq_i)), tags[0].eq(request.payload.tag)]
        m.d.sync += [tags[i].eq(tags[i - 1]) for i in range(1, depth)]
        m.d.comb += [bus.valid.eq(asked[-1]), bus.data.eq(word), bus.tag.eq(tags[-1])]

        def command(operation: Operation, a=0, ba=0):
            m.d.sync += [pins.operation.eq(operation), pins.a.eq(a), pins.ba.eq(ba)]

        m.d.sync += pins.operation.eq(Operation.NOTHING)
        first = Signal(3)  # refreshes of the initialisation that are still to come
        with m.FSM():
            with m.State("INIT"):
                with m.If(pause == 0):
                    command(Operation.PRECHARGE, ALL_BANKS)
                    m.d.sync += [pause.eq(trp), first.eq(7)]
                    m.next = "INIT-REFRESH"
            with m.State("INIT-REFRESH"):
                with m.If(pause == 0):
                    command(Operation.REFRESH)
                    m.d.sync += [pause.eq(self.cycles(chip.trfc_ns)), first.eq(first - 1)]
                    with m.If(first == 0):
                        m.next = "MODE"
            with m.State("MODE"):
                with m.If(pause == 0):
                    command(Operation.MODE, chip.cas << 4 | (beats - 1).bit_length())
                    m.d.sync += pause.eq(chip.tmrd_cycles)
                    m.next = "SERVE"
            with m.State("SERVE"):
                with m.If(pause != 0):
                    pass
                with m.Elif(due):
                    with m.If(quiet):
                        command(Operation.PRECHARGE, ALL_BANKS)
                        m.d.sync += [pause.eq(trp), opened.eq(0)]
                        m.next = "REFRESH"
                with m.Elif(request.valid & ~is_open):
                    command(Operation.ACTIVATE, row, bank)
                    m.d.sync += [pause.eq(trcd - 1), active.eq(tras - 1), opened.eq(opened | (1 << bank)), rows[bank].eq(row)]
                with m.Elif(request.valid & (rows[bank] != row)):
                    with m.If(quiet):
                        command(Operation.PRECHARGE, 0, bank)
                        m.d.sync += [pause.eq(trp - 1), opened.eq(opened & ~(1 << bank))]
                with m.Elif(request.valid & (column_pause == 0)):
                    with m.If(~request.payload.write):
                        command(Operation.READ, column, bank)
                        m.d.comb += [request.ready.eq(1), reading.eq(1)]
                        m.d.sync += [column_pause.eq(beats - 1), turn.eq(beats + chip.cas + 1)]
                    with m.Elif(turn == 0):
                        command(Operation.WRITE, column, bank)
                        m.d.comb += request.ready.eq(1)
                        m.d.sync += [
                            column_pause.eq(beats - 1), recovery.eq(beats + chip.twr_cycles - 1),
                            pins.dq_o.eq(request.payload.data[:DATA_BITS]), pins.dqm.eq(~request.payload.strobe[:2]),
                            pins.dq_oe.eq(1), data.eq(request.payload.data >> DATA_BITS),
                            strobe.eq(request.payload.strobe >> 2), writing.eq(Const((1 << beats - 1) - 1, beats)),
                        ]
            with m.State("REFRESH"):
                with m.If(pause == 0):
                    command(Operation.REFRESH)
                    m.d.sync += [pause.eq(self.cycles(chip.trfc_ns)), due.eq(0)]
                    m.next = "SERVE"
        return m
