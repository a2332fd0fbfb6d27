"""Frames to and from bytes, in gateware: `seriatim.boards.protocol` says what they look like."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .protocol import ESCAPE, FCS_BYTES, FCS_INIT, FCS_POLYNOMIAL, FCS_RESIDUE, FLAG, HEADER, STUFFED, WORD_BYTES

SENT = data.StructLayout({"data": 8, "last": 1})
"""A byte of a response's body; `last` ends the body."""


class Fcs(wiring.Component):
    """The FCS-32 of bytes, a bit a cycle: nine cycles a byte, hidden behind a UART that takes forty or more.

    Members
    -------
    clear : start anew.
    put, data : a byte, while not `busy`.
    flush : with `put`: shift out the next eight bits of the register in place of taking a byte.
    value : the register.
    busy : a byte is under way.
    """

    def __init__(self):
        super().__init__({
            "clear": In(1), "put": In(1), "data": In(8), "flush": In(1), "value": Out(32, init=FCS_INIT), "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bits = Signal(8, reset_less=True)
        left = Signal(4)
        flushing = Signal()
        taps = Signal()
        m.d.comb += [self.busy.eq(left != 0), taps.eq((self.value[0] ^ bits[0]) & ~flushing)]
        with m.If(left != 0):
            m.d.sync += [
                left.eq(left - 1), bits.eq(bits >> 1),
                self.value.eq((self.value >> 1) ^ Mux(taps, FCS_POLYNOMIAL, 0)),
            ]
        with m.Elif(self.put):
            m.d.sync += [left.eq(8), bits.eq(self.data), flushing.eq(self.flush)]
        with m.If(self.clear):
            m.d.sync += self.value.eq(FCS_INIT)
        return m


class Deframer(wiring.Component):
    """Bodies of right frames from bytes. A frame lies in a buffer until its FCS and length have been found right; whatever breaks
    either, or finds no room, is dropped, and the next FLAG starts anew.

    Members
    -------
    data, valid : bytes from the line; no two within ten cycles.
    body : the bytes of right bodies, one after the other.
    errors : frames dropped, modulo 256.
    """

    def __init__(self, buffer_bytes: int):
        self.buffer_bytes = buffer_bytes
        super().__init__({"data": In(8), "valid": In(1), "body": Out(stream.Signature(8)), "errors": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=self.buffer_bytes, init=[])
        m.submodules.fcs = fcs = Fcs()
        write, read = buffer.write_port(), buffer.read_port()
        put, ended, get = (Signal(range(self.buffer_bytes), name=name) for name in ("put", "ended", "get"))

        # A frame: from `ended` to `put`.
        shortest = HEADER.size + FCS_BYTES
        left = Signal(12, init=shortest)  # bytes still to come
        seen = Signal(2)  # bytes of the header before the count's
        writes = Signal()
        escaped, bad = Signal(), Signal()
        byte = Signal(8)
        m.d.comb += [
            byte.eq(Mux(escaped, self.data ^ STUFFED, self.data)),
            write.addr.eq(put), write.data.eq(byte), fcs.data.eq(byte),
        ]
        with m.If(self.valid):
            m.d.sync += escaped.eq(0)
            with m.If(self.data == FLAG):
                m.d.sync += [put.eq(ended), left.eq(shortest), seen.eq(0), bad.eq(0)]
                m.d.comb += fcs.clear.eq(1)
                with m.If((left == 0) & ~bad & ~escaped & (fcs.value == FCS_RESIDUE)):
                    m.d.sync += [ended.eq(put - FCS_BYTES), put.eq(put - FCS_BYTES)]
                with m.Elif((put != ended) | bad):
                    m.d.sync += self.errors.eq(self.errors + 1)
            with m.Elif(self.data == ESCAPE):
                m.d.sync += escaped.eq(1)
            with m.Elif((put + 1)[:len(put)] == get):
                m.d.sync += bad.eq(1)
            with m.Else():
                m.d.comb += [write.en.eq(1), fcs.put.eq(1)]
                m.d.sync += [put.eq(put + 1), left.eq(left - 1)]
                with m.If(seen != 3):
                    m.d.sync += seen.eq(seen + 1)
                with m.If(seen == 1):
                    m.d.sync += writes.eq(byte[0])
                with m.If((seen == 2) & writes):
                    m.d.sync += left.eq(left - 1 + byte * WORD_BYTES)

        # Bodies: what lies between `get` and `ended`, read a cycle ahead.
        fresh = Signal()  # the memory's output is the byte at `get`
        m.d.comb += [
            self.body.payload.eq(read.data), self.body.valid.eq(fresh), read.addr.eq(get),
            read.en.eq(~fresh & (get != ended)),
        ]
        with m.If(read.en):
            m.d.sync += fresh.eq(1)
        with m.If(self.body.valid & self.body.ready):
            m.d.sync += [fresh.eq(0), get.eq(get + 1)]
        return m


class Framer(wiring.Component):
    """Frames of bodies, as bytes for the line.

    Members
    -------
    body : bytes of bodies (`SENT`).
    o : bytes of frames.
    """

    def __init__(self):
        super().__init__({"body": In(stream.Signature(SENT)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fcs = fcs = Fcs()
        byte = Signal(8)  # the one to be sent
        special, escaped = Signal(), Signal()
        tail = Signal(range(FCS_BYTES + 1))
        m.d.comb += special.eq(((byte == FLAG) | (byte == ESCAPE)) & ~escaped)

        def stuff(then):
            """Sends `byte`, then (in the cycle in which it went) does what `then` yields."""
            m.d.comb += [self.o.valid.eq(~fcs.busy), self.o.payload.eq(Mux(special, ESCAPE, Mux(escaped, byte ^ STUFFED, byte)))]
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += escaped.eq(special)
                with m.If(~special):
                    then()

        def body_went():
            m.d.comb += [self.body.ready.eq(1), fcs.put.eq(1)]
            with m.If(self.body.payload.last):
                m.next = "FCS"

        def fcs_went():
            m.d.comb += [fcs.put.eq(1), fcs.flush.eq(1)]
            m.d.sync += tail.eq(tail + 1)
            with m.If(tail == FCS_BYTES - 1):
                m.d.sync += tail.eq(0)
                m.next = "END"

        m.d.comb += [byte.eq(self.body.payload.data), fcs.data.eq(self.body.payload.data)]
        with m.FSM():
            with m.State("START"):
                m.d.comb += [self.o.valid.eq(self.body.valid), self.o.payload.eq(FLAG), fcs.clear.eq(1)]
                with m.If(self.o.valid & self.o.ready):
                    m.next = "BODY"
            with m.State("BODY"):
                with m.If(self.body.valid):
                    stuff(body_went)
            with m.State("FCS"):
                m.d.comb += byte.eq(~fcs.value[:8])
                stuff(fcs_went)
            with m.State("END"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(FLAG)]
                with m.If(self.o.ready):
                    m.next = "START"
        return m
