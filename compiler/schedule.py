"""Three queues of instructions: who waits for whom, in which order the program lists them, and the proof of it.

`Builder` takes loads, executes and stores in the order in which a machine without overlap would run them, with the
buffer words that each touches. From those it derives the tokens: a load waits for the last execute that used the words
it overwrites, and so on. Every dependency points backwards in that order, so no wait can be circular. `Builder.finish`
then lists the three queues by rough start times, so that the fetch unit meets each instruction when its unit is ready
for it. (How long the program takes is `model.predict`'s matter.)

`check` reads the finished bytes and knows nothing of how they came about.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from seriatim import isa
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.isa import Buffer, Output, Queue, Sem

LATENCY_CYCLES = 120
"""Rough count: from an address to the first data, and from the last data written to its acknowledgement."""
START_CYCLES = 12
"""Rough count: from an instruction to the next one of its queue."""
DRAIN_CYCLES = 30
"""Rough count: from the last word that an execute takes to its result in the out buffer."""

READY = {Buffer.ACT: Sem.ACT_READY, Buffer.WGT: Sem.WGT_READY, Buffer.PRM: Sem.PRM_READY, Buffer.RES: Sem.RES_READY}
FREE = {Buffer.ACT: Sem.ACT_FREE, Buffer.WGT: Sem.WGT_FREE, Buffer.PRM: Sem.PRM_FREE, Buffer.RES: Sem.RES_FREE}
PRODUCER = {
    **dict.fromkeys(READY.values(), Queue.LOAD), **dict.fromkeys(FREE.values(), Queue.EXEC),
    Sem.OUT_READY: Queue.EXEC, Sem.OUT_FREE: Queue.STORE, Sem.DRAM_DONE: Queue.STORE,
}
Range = tuple[int, int]
"""Buffer words, [first, beyond last)."""


def buffer_words(buffer: Buffer, config: Config) -> int:
    return {Buffer.ACT: config.act_words, Buffer.RES: config.res_words, Buffer.WGT: config.wgt_words,
            Buffer.PRM: config.prm_words}[buffer]


def dma_cycles(config: Config, segments: int, segment_bytes: int) -> int:
    """Rough count: cycles that a DMA is busy with segments of contiguous bytes, each its own burst."""
    beats = segments * (segment_bytes // config.axi_bytes)
    bursts = segments * max(1, segment_bytes // config.axi_bytes // 128)
    return max(beats, bursts * LATENCY_CYCLES // config.outstanding)


@dataclass
class Op:
    """An instruction, its rough cycles, and for each semaphore the index of the producing queue's instruction that it needs."""

    name: str
    fields: dict
    cycles: int
    needs: dict[Sem, int] = field(default_factory=dict)
    wait: int = 0
    signal: int = 0
    start: int = 0
    end: int = 0


class Builder:
    """Collects the instructions of a program, in the order of a machine without overlap."""

    def __init__(self, config: Config):
        self.config = config
        self.queues: dict[Queue, list[Op]] = {Queue.LOAD: [], Queue.EXEC: [], Queue.STORE: []}
        self.used = {b: np.full(buffer_words(b, config), -1, np.int64) for b in Buffer}
        """Index of the last execute that used each word."""
        self.emptied = np.full(config.out_words, -1, np.int64)
        """Index of the last store of each out word."""
        self.latest = dict.fromkeys(Buffer, -1)
        self._next = {b: 0 for b in Buffer}
        self._out = 0
        self._elapsed = [0]
        self._set: dict[tuple, dict] = {}

    @property
    def executes(self) -> int:
        return len(self.queues[Queue.EXEC])

    @property
    def loads(self) -> int:
        return len(self.queues[Queue.LOAD])

    @property
    def stores(self) -> int:
        return len(self.queues[Queue.STORE])

    def allocate(self, buffer: Buffer, words: int) -> int:
        """`words` contiguous words of a buffer taken in turn: what was there before must have had its last use already."""
        depth = buffer_words(buffer, self.config)
        assert words <= depth, f"{words} words of {buffer.name}"
        base = self._next[buffer] if self._next[buffer] + words <= depth else 0
        self._next[buffer] = base + words
        return base

    def reserve(self, buffer: Buffer, words: int) -> int:
        """Like `allocate`, where the words are free earliest."""
        depth = buffer_words(buffer, self.config)
        assert words <= depth, f"{words} words of {buffer.name}"
        choices = [at for at in (self._next[buffer], 0, depth - words) if at + words <= depth]
        base = min(choices, key=lambda at: self.used[buffer][at:at + words].max())
        self._next[buffer] = base + words
        return base

    def allocate_out(self, words: int, slot: int) -> int:
        """`words` contiguous out words: slots of `slot` words are taken in turn."""
        assert words <= slot <= self.config.out_words
        self._out = (self._out + 1) % (self.config.out_words // slot)
        return self._out * slot

    def load_cycles(self, first: int) -> int:
        """Cycles of the loads from an index on, without stalls."""
        return sum(op.cycles + START_CYCLES for op in self.queues[Queue.LOAD][first:])

    def elapsed(self, execute: int) -> int:
        """Cycles of the executes before that of an index, without stalls."""
        while len(self._elapsed) <= execute:
            op = self.queues[Queue.EXEC][len(self._elapsed) - 1]
            self._elapsed.append(self._elapsed[-1] + op.cycles + START_CYCLES)
        return self._elapsed[execute]

    def load(self, buffer: Buffer, name: str, fields: dict, writes: list[Range], cycles: int, after: int = -1) -> None:
        """A LOAD, FILL or PATCH. `after`: index of the store that writes what it reads, -1: none."""
        used = self.used[buffer]
        needs = {FREE[buffer]: max(int(used[lo:hi].max()) for lo, hi in writes), Sem.DRAM_DONE: after}
        self.latest[buffer] = len(self.queues[Queue.LOAD])
        self.queues[Queue.LOAD].append(Op(name, fields, cycles, needs))

    def execute(self, name: str, fields: dict, reads: dict[Buffer, list[Range]], out: Range | None, cycles: int) -> int:
        """A CONV, POOL or MARK: reads what has been loaded so far. `out`: the out words that it writes."""
        index = self.executes
        needs = {READY[b]: self.latest[b] for b in reads}
        for buffer, ranges in reads.items():
            for lo, hi in ranges:
                self.used[buffer][lo:hi] = index
        if out:
            needs[Sem.OUT_FREE] = int(self.emptied[out[0]:out[1]].max())
        self.queues[Queue.EXEC].append(Op(name, fields, cycles, needs))
        return index

    def set(self, name: str, fields: dict) -> None:
        """A FORMAT or TABLE, unless what it sets is so already."""
        key = name, fields.get("table"), fields.get("half")
        if self._set.get(key, {} if name == "FORMAT" else None) != fields:
            self._set[key] = fields
            self.execute(name, fields, {}, None, 1)

    def store(self, fields: dict, out: Range, execute: int, cycles: int) -> int:
        """A STORE of what `execute` wrote."""
        index = self.stores
        self.emptied[out[0]:out[1]] = index
        self.queues[Queue.STORE].append(Op("STORE", fields, cycles, {Sem.OUT_READY: execute}))
        return index

    # Tokens and order

    def _tokens(self):
        """One token for each requirement that no earlier wait of the same queue has met."""
        met = defaultdict(lambda: -1)
        for queue, ops in self.queues.items():
            for op in ops:
                for sem, index in op.needs.items():
                    if index > met[queue, sem]:
                        met[queue, sem] = index
                        op.wait |= sem
                        self.queues[PRODUCER[sem]][index].signal |= sem

    def _times(self):
        """Start and end of each instruction, by a rough count that is good enough for their order."""
        heads = dict.fromkeys(self.queues, 0)
        free = dict.fromkeys(self.queues, 0)
        tail = {Queue.LOAD: LATENCY_CYCLES, Queue.EXEC: DRAIN_CYCLES, Queue.STORE: LATENCY_CYCLES}
        tokens: dict[Sem, deque] = defaultdict(deque)
        moved = True
        while moved:
            moved = False
            for queue, ops in self.queues.items():
                while heads[queue] < len(ops):
                    op = ops[heads[queue]]
                    waits = [sem for sem in Sem if sem & op.wait]
                    if not all(tokens[sem] for sem in waits):
                        break
                    op.start = max([free[queue], *(tokens[sem].popleft() for sem in waits)]) + START_CYCLES
                    free[queue] = op.start + op.cycles
                    op.end = free[queue] + (tail[queue] if op.name not in ("MARK", "FILL") else 0)
                    if queue is Queue.STORE:
                        free[queue] = op.end  # one at a time
                    for sem in Sem:
                        if sem & op.signal:
                            tokens[sem].append(op.end)
                    heads[queue] += 1
                    moved = True
        assert all(heads[q] == len(ops) for q, ops in self.queues.items()), "tokens that wait in a circle"

    def finish(self) -> bytes:
        """The program."""
        self._tokens()
        self._times()
        ops = [op for ops in self.queues.values() for op in ops]
        ops.sort(key=lambda op: op.start)  # stable; a signal's instruction starts before those that wait for it
        try:
            code = [isa.encode(op.name, wait=op.wait, signal=op.signal, **op.fields) for op in ops]
        except isa.ProgramError as error:
            raise CompileError(f"{error}; make the layer smaller, or the buffers that force this tile") from error
        return b"".join(code) + isa.encode("END")


# The check of a finished program

@dataclass
class _Track:
    """Who last wrote and last read each word of a buffer (or each tensor), as indices in the writers' and the readers' queue."""

    writers: Queue
    readers: Queue
    written: np.ndarray
    read: np.ndarray


class _Checker:
    def __init__(self, config: Config, tensors: list[Range]):
        def track(size, writers, readers):
            return _Track(writers, readers, np.full(size, -1, np.int64), np.full(size, -1, np.int64))

        self.config = config
        self.buffers = {b: track(buffer_words(b, config), Queue.LOAD, Queue.EXEC) for b in Buffer}
        self.out = track(config.out_words, Queue.EXEC, Queue.STORE)
        self.dram = track(len(tensors), Queue.STORE, Queue.LOAD)
        self.starts = [first for first, _ in tensors]
        self.tensors = tensors

    def fail(self, at: int, text: str):
        raise CompileError(f"schedule check, instruction {at}: {text}; this is a fault of the code generator, please report it")

    def write(self, at, track: _Track, name: str, ranges, clock, index):
        for lo, hi in ranges:
            if not 0 <= lo < hi <= len(track.read):
                self.fail(at, f"writes words {lo}..{hi} of {name}, which has {len(track.read)}")
            if track.read[lo:hi].max() > clock[track.readers]:
                self.fail(at, f"may overwrite words {lo}..{hi} of {name} while they are in use")
            track.written[lo:hi] = index

    def read(self, at, track: _Track, name: str, ranges, clock, index):
        for lo, hi in ranges:
            if not 0 <= lo < hi <= len(track.read):
                self.fail(at, f"reads words {lo}..{hi} of {name}, which has {len(track.read)}")
            if track.written[lo:hi].max() > clock[track.writers]:
                self.fail(at, f"may read words {lo}..{hi} of {name} before they are written")
            track.read[lo:hi] = index

    def memory(self, f) -> list[Range]:
        """Tensors (as index ranges) that a DMA touches; weights and params are none."""
        at = bisect_right(self.starts, f["dram"]) - 1
        return [(at, at + 1)] if at >= 0 and f["dram"] < self.tensors[at][1] else []

    def instruction(self, at: int, name: str, f: dict, clock, index: int):
        c = self.config
        if name == "LOAD":
            buffer = Buffer(f["buffer"])
            if buffer in (Buffer.WGT, Buffer.PRM):
                ranges = [(f["base"], f["base"] + f["words"])]
            else:
                ranges = [(row, row + f["nx"] * f["words"]) for row in wrapped_rows(f, f["base"], f["row_pitch"], f["ny"])]
            self.write(at, self.buffers[buffer], buffer.name, ranges, clock, index)
            self.read(at, self.dram, "memory", self.memory(f), clock, index)
        elif name == "FILL":
            ranges = [(row, row + f["words"]) for row in wrapped_rows(f, f["base"], f["row_pitch"], f["ny"])]
            self.write(at, self.buffers[Buffer.ACT], "ACT", ranges, clock, index)
        elif name == "PATCH":
            words = f["nx"] * 8 * -(-f["kh"] * f["kw"] * f["channels"] // c.k)
            self.write(at, self.buffers[Buffer.ACT], "ACT", [(f["base"], f["base"] + words)], clock, index)
            self.read(at, self.dram, "memory", self.memory(f), clock, index)
        elif name == "CONV":
            reach = (f["nc"] - 1) * f["sc"] + (f["ng"] - 1) * f["sg"] + f["a_bits"]
            self.read(at, self.buffers[Buffer.ACT], "ACT", _windows(f, reach), clock, index)
            taps = f["kh"] * f["kw"] - 1
            words = (f["ng"] - 1) * f["wgt_g"] + taps * f["wgt_tap"] + f["nc"] * f["w_bits"]
            self.read(at, self.buffers[Buffer.WGT], "WGT", [(f["wgt_base"], f["wgt_base"] + words)], clock, index)
            positions = f["ny"] * f["nx"]
            if f["res_planes"]:
                words = (positions - 1) * f["res_pitch"] + f["res_planes"]
                self.read(at, self.buffers[Buffer.RES], "RES", [(f["res_base"], f["res_base"] + words)], clock, index)
            if (f["psum_add"] or f["output"] == Output.PSUM) and f["psum_base"] + positions * f["ng"] * c.m > c.psum_words:
                self.fail(at, f"{positions * f['ng'] * c.m} words of psum from {f['psum_base']}: there are {c.psum_words}")
            if f["output"] != Output.PSUM:
                self.read(at, self.buffers[Buffer.PRM], "PRM", [(f["prm_base"], f["prm_base"] + f["ng"])], clock, index)
                each = f["ng"] * c.raw_words if f["output"] == Output.INT32 else f["out_planes"]
                self.write(at, self.out, "OUT", [(f["out_base"], f["out_base"] + positions * each)], clock, index)
        elif name == "POOL":
            self.read(at, self.buffers[Buffer.ACT], "ACT", _windows(f, f["ng"] * f["planes"]), clock, index)
            words = f["ny"] * f["nx"] * f["ng"] * f["planes"]
            self.write(at, self.out, "OUT", [(f["out_base"], f["out_base"] + words)], clock, index)
        elif name == "STORE":
            self.read(at, self.out, "OUT", [(f["base"], f["base"] + f["ny"] * f["nx"] * f["words"])], clock, index)
            tensors = self.memory(f)
            if not tensors:
                self.fail(at, f"stores to {f['dram']:#x}, which is no tensor")
            self.write(at, self.dram, "memory", tensors, clock, index)


def wrapped_rows(f: dict, at: int, pitch: int, count: int) -> list[int]:
    """Row addresses from `at`, in the ring that the fields `f` of an instruction give."""
    rows, end = [], f["ring_base"] + f["ring_words"]
    for _ in range(count):
        if f["ring_words"] and at >= end:
            at -= f["ring_words"]
        rows.append(at)
        at += pitch
    return rows


def _windows(f, reach: int) -> list[Range]:
    """Act words of a CONV or POOL: for each row the words from the first to the last."""
    width = (f["nx"] - 1) * f["sx"] + (f["kw"] - 1) * f["skw"] + reach
    rows = wrapped_rows(f, f["act_base"], f["sy"], f["ny"])
    return [(at, at + width) for row in rows for at in wrapped_rows(f, row, f["skh"], f["kh"])]


def check(program: bytes, config: Config, tensors: Sequence[Range] = ()) -> None:
    """Proves that a program gives the same result whatever its queues' pace, or raises CompileError.

    Run one instruction after the other, it never waits for a token that is not there: so it cannot get stuck, however
    short the queues. The tokens that it takes tell which instructions of the other queues have finished: those must
    include whoever wrote what it reads and read what it overwrites. And no semaphore can be signalled past its range,
    even if its consumer is infinitely slow.
    `tensors`: the byte ranges of tensors in memory, ascending.
    """
    checker = _Checker(config, list(tensors))
    queues = (Queue.LOAD, Queue.EXEC, Queue.STORE)
    clocks = {q: dict.fromkeys(queues, -1) for q in queues}
    count = dict.fromkeys(queues, 0)
    tokens: dict[Sem, deque] = defaultdict(deque)
    listing: dict[Queue, list[tuple[int, int]]] = {q: [] for q in queues}
    for at in range(len(program) // isa.INSTR_BYTES):
        instr, f = isa.decode(program[at * isa.INSTR_BYTES:(at + 1) * isa.INSTR_BYTES])
        if instr.queue is Queue.FETCH:
            break
        clock = clocks[instr.queue]
        for sem in _sems(f["wait"]):
            if not tokens[sem]:
                checker.fail(at, f"{instr.name} waits for {sem.name}, which nothing before it signals")
            for queue, index in tokens[sem].popleft().items():
                clock[queue] = max(clock[queue], index)
        index = count[instr.queue]
        checker.instruction(at, instr.name, f, clock, index)
        clock[instr.queue] = index
        count[instr.queue] += 1
        for sem in _sems(f["signal"]):
            if PRODUCER[sem] is not instr.queue:
                checker.fail(at, f"{instr.name} signals {sem.name}")
            tokens[sem].append(dict(clock))
        listing[instr.queue].append((f["wait"], f["signal"]))
    else:
        checker.fail(len(program) // isa.INSTR_BYTES, "the program has no END")
    for queue in queues:
        _check_range(checker, listing, queue)


def _sems(mask: int) -> list[Sem]:
    return _SEMS[mask] if mask in _SEMS else _SEMS.setdefault(mask, [sem for sem in Sem if sem & mask])


_SEMS: dict[int, list[Sem]] = {}


def _check_range(checker: _Checker, listing, slowest: Queue) -> None:
    """Lets `slowest` advance only where nothing else can: the semaphores that it takes from are then at their highest."""
    order = sorted(listing, key=lambda q: q is slowest)
    heads = dict.fromkeys(listing, 0)
    value: dict[Sem, int] = defaultdict(int)
    limit = (1 << isa.SEM_BITS) - 1
    while True:
        for queue in order:
            if heads[queue] == len(listing[queue]):
                continue
            wait, signal = listing[queue][heads[queue]]
            if all(value[sem] for sem in _sems(wait)):
                break
        else:
            return
        for sem in _sems(wait):
            value[sem] -= 1
        for sem in _sems(signal):
            value[sem] += 1
            if value[sem] > limit:
                checker.fail(heads[queue], f"{sem.name} may be signalled past {limit}")
        heads[queue] += 1
