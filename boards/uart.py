"""UART, 8N1: bits of a fixed number of clock cycles."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.errors import ConfigError

LEAST_DIVISOR = 4
"""Clock cycles of a bit: fewer leave the receiver no middle to sample."""
MOST_ERROR = 0.02
"""Of the bit's length. Half a bit in ten is 5 %, to be shared with the other side's clock and edges."""


def divisor(clock_hz: int, baud: int) -> int:
    """Clock cycles of a bit. Raises ConfigError where the clock does not give that rate."""
    cycles = round(clock_hz / baud)
    if cycles < LEAST_DIVISOR:
        raise ConfigError(f"{baud} baud from a clock of {clock_hz} Hz: a bit takes {LEAST_DIVISOR} cycles or more; "
                          f"{clock_hz // LEAST_DIVISOR} baud at most")
    error = abs(clock_hz / cycles / baud - 1)
    if error > MOST_ERROR:
        raise ConfigError(f"{baud} baud from a clock of {clock_hz} Hz: {cycles} cycles are {error:.1%} off, {MOST_ERROR:.0%} at "
                          f"most; choose {clock_hz // cycles} or a lower rate")
    return cycles


class Receiver(wiring.Component):
    """Bytes from a line, sampled in the middle of each bit. A byte whose stop bit is low is lost, as is what follows until the
    line is high again.

    Members
    -------
    rx : the line, asynchronous.
    data, valid : a byte, for one cycle, half a bit before its stop bit ends.
    """

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"rx": In(1, init=1), "data": Out(8), "valid": Out(1)})

    def elaborate(self, platform):
        m = Module()
        line, meta = Signal(init=1), Signal(init=1)
        m.d.sync += [meta.eq(self.rx), line.eq(meta)]
        timer = Signal(range(self.divisor))
        left = Signal(range(11))  # bits to sample, start and stop included; 0: waiting for a start bit
        broken = Signal()
        m.d.sync += self.valid.eq(0)
        with m.If(left == 0):
            m.d.sync += timer.eq(self.divisor // 2)
            with m.If(line):
                m.d.sync += broken.eq(0)
            with m.Elif(~broken):
                m.d.sync += left.eq(10)
        with m.Elif(timer != self.divisor - 1):
            m.d.sync += timer.eq(timer + 1)
        with m.Else():
            m.d.sync += [timer.eq(0), left.eq(left - 1)]
            with m.If(left == 1):
                m.d.sync += [self.valid.eq(line), broken.eq(~line)]
            with m.Elif((left == 10) & line):  # a spike, no start bit
                m.d.sync += left.eq(0)
            with m.Else():
                m.d.sync += self.data.eq(Cat(self.data[1:], line))
        return m


class Transmitter(wiring.Component):
    """Bytes to a line.

    Members
    -------
    i : the bytes.
    tx : the line.
    """

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        timer = Signal(range(self.divisor))
        bits = Signal(9, init=1)  # those after the present one; a one above them ends the byte
        busy = Signal()
        m.d.comb += self.i.ready.eq(~busy)
        with m.If(~busy):
            with m.If(self.i.valid):
                m.d.sync += [busy.eq(1), self.tx.eq(0), bits.eq(Cat(self.i.payload, 1)), timer.eq(0)]
        with m.Elif(timer != self.divisor - 1):
            m.d.sync += timer.eq(timer + 1)
        with m.Else():
            m.d.sync += [timer.eq(0), self.tx.eq(bits[0]), bits.eq(bits >> 1)]
            with m.If(bits == 0):
                m.d.sync += [busy.eq(0), self.tx.eq(1)]
        return m
