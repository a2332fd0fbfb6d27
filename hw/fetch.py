"""Instruction fetch: reads the program, checks each instruction against the ISA table, hands it to its queue."""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.isa import Queue

from .axi import REQUEST
from .layouts import QUEUED, layout

AHEAD = 8
"""Instructions requested or waiting for their queue (a power of two)."""


class InstructionQueue(wiring.Component):
    """`depth` instructions and the one at the head. One enters and one leaves in a cycle; it is at the head two cycles later.

    The head is a memory's read register: wide words move only when an instruction does.

    Members
    -------
    full : no room; `write` is not allowed.
    write, word, pc : an instruction enters.
    head : the oldest one.
    empty : none, the head included.
    awake : see `sleep`.
    """

    def __init__(self, depth: int):
        self.depth = depth
        super().__init__({
            "full": Out(1),
            "write": In(1),
            "word": In(isa.INSTR_BITS),
            "pc": In(32),
            "head": Out(stream.Signature(QUEUED)),
            "empty": Out(1),
            "awake": Out(1),
        })
        self.count = Signal(range(depth + 1))
        """Instructions behind the head."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = words = memory.Memory(shape=QUEUED, depth=self.depth, init=[])
        put, get = Signal(range(self.depth)), Signal(range(self.depth))
        count = self.count
        move = Signal()
        m.d.comb += [
            self.full.eq(count == self.depth),
            move.eq((count != 0) & (~self.head.valid | self.head.ready)),
            self.empty.eq((count == 0) & ~self.head.valid),
            self.awake.eq(self.write | move | (self.head.valid & self.head.ready)),
        ]
        write, read = words.write_port(), words.read_port()
        m.d.comb += [
            write.en.eq(self.write), write.addr.eq(put), write.data.eq(Cat(self.word, self.pc)),
            read.en.eq(move), read.addr.eq(get), self.head.payload.eq(read.data),
        ]
        for moving, pointer in ((self.write, put), (move, get)):
            with m.If(moving):
                m.d.sync += pointer.eq(pointer + 1)
                with m.If(pointer == self.depth - 1):
                    m.d.sync += pointer.eq(0)
        m.d.sync += count.eq(count + self.write - move)
        with m.If(move):
            m.d.sync += self.head.valid.eq(1)
        with m.Elif(self.head.ready):
            m.d.sync += self.head.valid.eq(0)
        return m


def illegal(instr: isa.Instr, word):
    """Whether `word` breaks a range of `instr`'s fields, or is not zero above them."""
    view = data.View(layout(instr.name), word)
    broken = view.rest != 0
    for f in instr.all_fields:
        if f.name == "opcode":
            continue
        least, most = (-(1 << f.bits - 1), (1 << f.bits - 1) - 1) if f.signed else (0, (1 << f.bits) - 1)
        lo, hi = f.range
        if lo > least:
            broken |= view[f.name] == 0 if (lo, f.signed) == (1, False) else view[f.name] < lo
        if hi < most:
            broken |= view[f.name] > Const(hi, signed(f.bits) if f.signed else f.bits)
    return broken


class Fetch(wiring.Component):
    """Fetches from `start` (a reset) on until END or an error. An instruction takes 4 cycles beyond its beats' time.

    Members
    -------
    run : fetch.
    request, beat_valid, beat_data, beat_error : the read channel.
    base, size : the program, in bytes.
    load, exec, store : heads of the queues; *_empty : nothing in that queue.
    pc : the instruction that is decoded.
    ended : END has been reached.
    error_valid, error_cause, error_pc : held; fetch has stopped.
    halt : stop.
    awake : see `sleep`.
    """

    def __init__(self, config: Config):
        self.config = c = config
        queue = Out(stream.Signature(QUEUED))
        super().__init__({
            "run": In(1),
            "request": Out(stream.Signature(REQUEST)),
            "beat_valid": In(1),
            "beat_data": In(c.axi_bits),
            "beat_error": In(1),
            "base": In(32),
            "size": In(32),
            "load": queue, "exec": queue, "store": queue,
            "load_empty": Out(1), "exec_empty": Out(1), "store_empty": Out(1),
            "pc": Out(32),
            "ended": Out(1),
            "error_valid": Out(1),
            "error_cause": Out(4),
            "error_pc": Out(32),
            "halt": In(1),
            "awake": Out(1),
        })
        self.queues = {q: InstructionQueue(c.queue) for q in (Queue.LOAD, Queue.EXEC, Queue.STORE)}

    def elaborate(self, platform):
        m = Module()
        c = self.config
        beats = isa.INSTR_BITS // c.axi_bits
        stopped = Signal()
        m.d.comb += stopped.eq(self.halt | self.error_valid)

        # Requests, one burst an instruction, as long as there is room for it.
        asked = Signal(32)  # byte offset in the program
        ahead = Signal(range(AHEAD + 1))
        taken = Signal()
        ask = Signal()
        m.d.comb += ask.eq(self.run & ~stopped & ~self.ended & (ahead != AHEAD) & ~self.request.valid
                           & (asked + isa.INSTR_BYTES <= self.size))
        with m.If(ask):
            m.d.sync += [
                self.request.valid.eq(1),
                self.request.payload.addr.eq((self.base & ~(isa.INSTR_BYTES - 1)) + asked),
                self.request.payload.len.eq(beats - 1),
                asked.eq(asked + isa.INSTR_BYTES),
            ]
        with m.Elif(self.request.ready | self.halt):
            m.d.sync += self.request.valid.eq(0)
        m.d.sync += ahead.eq(ahead + ask - taken)

        # Beats.
        m.submodules.buffer = buffer = memory.Memory(shape=isa.INSTR_BITS, depth=AHEAD, init=[])
        write, read = buffer.write_port(granularity=c.axi_bits), buffer.read_port()
        put, get, beat = Signal(range(AHEAD)), Signal(range(AHEAD)), Signal(range(beats + 1))
        arrived = Signal(range(AHEAD + 1))
        arriving = Signal()
        arriving_pc = Signal(32)
        bad, bad_pc = Signal(), Signal(32, reset_less=True)
        m.d.comb += [write.addr.eq(put), write.data.eq(self.beat_data.replicate(beats)), read.addr.eq(get)]
        with m.If(self.beat_valid):
            m.d.comb += write.en.eq(1 << beat)
            m.d.sync += beat.eq(beat + 1)
            with m.If(self.beat_error & ~bad):
                m.d.sync += [bad.eq(1), bad_pc.eq(arriving_pc)]
            with m.If(beat == beats - 1):
                m.d.comb += arriving.eq(1)
                m.d.sync += [beat.eq(0), put.eq(put + 1), arriving_pc.eq(arriving_pc + isa.INSTR_BYTES)]
        m.d.sync += arrived.eq(arrived + arriving - taken)

        # Decode.
        word = read.data
        decode = Signal()
        m.d.comb += read.en.eq(decode)
        unknown, broken = Signal(reset_less=True), Signal(reset_less=True)
        queue = Signal(Queue, reset_less=True)
        queues = self.queues
        for q in queues:
            name = q.name.lower()
            m.submodules[name] = queues[q]
            wiring.connect(m, wiring.flipped(getattr(self, name)), queues[q].head)
            m.d.comb += [queues[q].word.eq(word), queues[q].pc.eq(self.pc), getattr(self, f"{name}_empty").eq(queues[q].empty)]
        error, cause = Signal(), Signal(Cause)
        with m.FSM() as fsm:
            with m.State("READ"):
                with m.If(self.run & ~stopped & ~self.ended):
                    with m.If(self.pc + isa.INSTR_BYTES > self.size):
                        m.d.comb += [error.eq(1), cause.eq(Cause.PROGRAM_RANGE)]
                    with m.Elif(arrived != 0):
                        m.d.comb += decode.eq(1)
                        m.next = "CHECK"
            with m.State("CHECK"):
                with m.Switch(word[:8]):
                    for instr in isa.INSTRS:
                        with m.Case(instr.opcode):
                            m.d.sync += [unknown.eq(0), broken.eq(illegal(instr, word)), queue.eq(instr.queue)]
                    with m.Default():
                        m.d.sync += unknown.eq(1)
                m.next = "SEND"
            with m.State("SEND"):
                with m.If(bad & (bad_pc == self.pc)):
                    m.d.comb += [error.eq(1), cause.eq(Cause.AXI_READ)]
                with m.Elif(unknown):
                    m.d.comb += [error.eq(1), cause.eq(Cause.ILLEGAL_OPCODE)]
                with m.Elif(broken):
                    m.d.comb += [error.eq(1), cause.eq(Cause.ILLEGAL_FIELD)]
                with m.Elif(queue == Queue.FETCH):
                    m.d.sync += self.ended.eq(1)
                    m.d.comb += taken.eq(1)
                for q, target in queues.items():
                    with m.Elif((queue == q) & ~target.full & ~stopped):
                        m.d.comb += [target.write.eq(1), taken.eq(1)]
                with m.If(taken):
                    m.d.sync += [get.eq(get + 1), self.pc.eq(self.pc + isa.INSTR_BYTES)]
                    m.next = "READ"
        with m.If(error & ~stopped):
            m.d.sync += [self.error_valid.eq(1), self.error_cause.eq(cause), self.error_pc.eq(self.pc)]
        m.d.comb += self.awake.eq(
            ask | (self.request.valid & (self.request.ready | self.halt)) | self.beat_valid | decode | fsm.ongoing("CHECK")
            | taken | (error & ~stopped) | Cat(q.awake for q in queues.values()).any())
        return m
