"""Random illegal programs: a valid prefix of random length, then one instruction that breaks one rule of the machine.

`draw(seed)` takes rule number `seed % len(RULES)`; rules come from the ISA table (every range of every field, the bits above the
fields) and from `_UNIT_RULES` (what the units check: slices, formats, every buffer, the limits of memory, tokens, silence).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import random_programs as programs

from seriatim import isa
from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.formats import Kind
from seriatim.isa import Buffer, Output, Queue, Sem
from seriatim.sim.isasim import Machine, Stop

CONFIG, SIZE, PROGRAM = programs.CONFIG, programs.SIZE, programs.PROGRAM
EVERYWHERE = 0, 0xFFFF_FFFF
"""Limits that let an instruction ask for what no memory is at."""
NEVER = Sem.WGT_READY, Sem.PRM_READY, Sem.RES_READY, Sem.WGT_FREE, Sem.PRM_FREE
"""Semaphores that no random program signals."""
MOST_TOKENS = (1 << isa.SEM_BITS) - 1
MAKERS = {"LOAD": programs._load, "FILL": programs._fill, "PATCH": programs._patch, "CONV": programs._conv,
          "POOL": programs._pool, "STORE": programs._store, "MARK": programs._mark,
          "FORMAT": programs._format, "TABLE": programs._table}


@dataclass(frozen=True)
class Rule:
    """`cause` is how the machine stops. `make(rng)` gives the words from the one that breaks the rule on; or, where the units
    check (`decoded`), the (name, fields) of instructions of which the last breaks it."""

    name: str
    cause: Cause
    make: Callable
    decoded: bool = False
    limits: tuple | None = None


@dataclass(frozen=True)
class Case:
    """`history`: memory before each segment that the program stores, in order, and after the last; the first `complete` segments
    are in memory when the machine stops at instruction `at`."""

    seed: int
    rule: Rule
    code: bytes
    at: int
    memory: np.ndarray
    history: tuple[np.ndarray, ...]
    complete: int
    read_range: tuple[int, int]
    write_range: tuple[int, int]

    def __str__(self):
        words = [self.code[i:i + isa.INSTR_BYTES] for i in range(0, len(self.code), isa.INSTR_BYTES)]
        lines = [f"{len(list(same))} x {text}" for text, same in groupby(map(programs._text, words))]
        return f"seed {self.seed}, rule {self.rule.name}:\n" + "\n".join(lines)


class _Recorder(Machine):
    """Keeps memory as it is before each segment of a STORE."""

    def __init__(self, *args):
        super().__init__(*args)
        self.history = []

    def _dram(self, addr, size, write=False):
        if write:
            self.history.append(self.memory.copy())
        return super()._dram(addr, size, write)


# Rules that the fetch unit checks, from the table

def _overwrite(word: bytes, at: int, bits: int, value: int) -> bytes:
    mask = (1 << bits) - 1
    number = int.from_bytes(word, "little") & ~(mask << at) | (value & mask) << at
    return number.to_bytes(isa.INSTR_BYTES, "little")


def _word(rng, name: str) -> bytes:
    return isa.encode(name, **(MAKERS[name](rng)[1] if name in MAKERS else {}))


def _garbage(rng) -> list[bytes]:
    """What follows a word that the fetch unit refuses."""
    return [rng.bytes(isa.INSTR_BYTES) for _ in range(rng.integers(0, 3))]


def _illegal_values(f: isa.Field) -> list[tuple[int, int]]:
    """Ranges of values that fit the field and are not legal."""
    least, most = (-(1 << f.bits - 1), (1 << f.bits - 1) - 1) if f.signed else (0, (1 << f.bits) - 1)
    lo, hi = f.range
    return [(a, b) for a, b in ((least, lo - 1), (hi + 1, most)) if a <= b]


def _table_rules():
    def opcode(rng):
        codes = [code for code in range(256) if code not in isa.BY_OPCODE]
        rest = rng.bytes(isa.INSTR_BYTES) if rng.random() < 0.5 else _word(rng, str(rng.choice(list(isa.BY_NAME))))
        return [bytes([rng.choice(codes)]) + rest[1:], *_garbage(rng)]

    yield from (Rule("opcode", Cause.ILLEGAL_OPCODE, opcode),) * 8
    for instr in isa.INSTRS:
        for f, at in instr.offsets():
            for number, (least, most) in enumerate(_illegal_values(f) if f.name != "opcode" else ()):
                def field(rng, instr=instr, f=f, at=at, least=least, most=most):
                    return [_overwrite(_word(rng, instr.name), at, f.bits, int(rng.integers(least, most + 1))), *_garbage(rng)]

                yield Rule(f"{instr.name}.{f.name} {'above' if number or least > 0 else 'below'}", Cause.ILLEGAL_FIELD, field)

        def above(rng, instr=instr):
            bit = int(rng.integers(instr.used_bits, isa.INSTR_BITS))
            return [_overwrite(_word(rng, instr.name), bit, 1, 1), *_garbage(rng)]

        yield Rule(f"{instr.name} bits above the fields", Cause.ILLEGAL_FIELD, above)


def _no_end(rng) -> list[bytes]:
    """Nothing, or a part of an instruction."""
    return [isa.encode("END")[:int(rng.integers(0, isa.INSTR_BYTES))]]


# Rules that the units check

def _legal(rng, name: str, holds: Callable[[dict], bool] = lambda fields: True) -> dict:
    """Fields of a random instruction that the machine takes."""
    while True:
        _, fields = MAKERS[name](rng)
        if holds(fields) and _stops(name, fields) is None:
            return fields


_scratch = Machine(CONFIG, np.zeros(SIZE, np.uint8), 0, programs.READ, programs.WRITE)
_wide = Machine(CONFIG, np.zeros(SIZE, np.uint8), 0, EVERYWHERE, EVERYWHERE)


def _stops(name: str, fields: dict, machine: Machine = _scratch) -> Cause | None:
    """The cause with which a machine stops at an instruction; no cause depends on what buffers and memory hold."""
    try:
        machine.step(*isa.decode(isa.encode(name, **fields)))
    except Stop as stop:
        return stop.cause
    return None


def _broken(cause: Cause, name: str, change: Callable, holds=lambda fields: True, machine: Machine = _scratch) -> Callable:
    """A maker of one instruction that is legal but for `change(rng, fields)`, and stops with `cause`."""
    def make(rng):
        while True:
            fields = _legal(rng, name, holds)
            for _ in range(20):
                changed = fields | change(rng, fields)
                if _stops(name, changed, machine) == cause:
                    return [(name, changed)]

    return make


def _any(**ranges) -> Callable:
    """A change of each field to a random value in its [first, last]."""
    return lambda rng, fields: {name: int(rng.integers(a, b + 1)) for name, (a, b) in ranges.items()}


def _one(**ranges) -> Callable:
    """A change of one of the fields."""
    def change(rng, fields):
        name = str(rng.choice(list(ranges)))
        return _any(**{name: ranges[name]})(rng, fields)

    return change


def _address(rng, fields) -> dict:
    """Anywhere in 32 bits, just around the limits, or not aligned."""
    kind = rng.integers(4)
    if kind == 0:
        return dict(dram=int(rng.integers(0, 1 << 30)) * 4)
    if kind == 1:
        return dict(dram=fields["dram"] + int(rng.integers(1, 4)))
    edge = int(rng.choice([*programs.READ, *programs.WRITE, 1 << 32]))
    return dict(dram=max(0, min(edge + int(rng.integers(-20, 4)) * 4, (1 << 32) - 4)))


def _pitch(*names) -> Callable:
    return _one(**{name: (0, (1 << 32) - 1) for name in names})


def _beyond(rng, fields) -> dict:
    """Where no memory is."""
    return dict(dram=int(rng.integers(SIZE // 4 - 8, 1 << 30)) * 4)


def _overflow(name: str) -> Callable:
    def make(rng):
        semaphore = NEVER[rng.integers(len(NEVER))]
        filler = [("MARK", {}), ("FILL", dict(base=int(rng.integers(0, 512)), valid=1, mask=1))][rng.integers(2)]
        fields = _legal(rng, name)
        return [(filler[0], filler[1] | dict(signal=semaphore))] * MOST_TOKENS + [(name, fields | dict(signal=semaphore))]

    return make


def _silence(queue: Queue) -> Callable:
    def make(rng):
        names = [instr.name for instr in isa.INSTRS if instr.queue is queue]
        name = str(rng.choice(names))
        return [(name, _legal(rng, name) | dict(wait=NEVER[rng.integers(len(NEVER))]))]

    return make


def _unit_rules():
    def rule(name, cause, instr, change, holds=lambda fields: True, **kwargs):
        machine = _wide if kwargs.get("limits") else _scratch
        return Rule(f"{instr} {name}", cause, _broken(cause, instr, change, holds, machine), decoded=True, **kwargs)

    def to(*buffers):
        return lambda fields: fields["buffer"] in buffers

    array, columns = to(Buffer.ACT, Buffer.RES), to(Buffer.WGT, Buffer.PRM)
    word = (0, 0xFFFF)
    for instr, holds in (("LOAD", array), ("PATCH", lambda f: True), ("STORE", lambda f: True)):
        yield rule("slices", Cause.ILLEGAL_FIELD, instr, _any(slice=(0, 31), slices=(1, 32)), holds)
    yield rule("one slice, row, segment", Cause.ILLEGAL_FIELD, "LOAD", _one(slices=(2, 32), ny=(2, 0xFFFF), nx=(2, 0xFFFF)),
               columns)
    yield rule("mask", Cause.ILLEGAL_FIELD, "FILL", lambda rng, f: dict(mask=f["mask"] | 1 << int(rng.integers(CONFIG.m, 32))))
    yield rule("column tiles", Cause.ILLEGAL_FIELD, "CONV", _any(ng=(CONFIG.tiles_per_word + 1, 255)))
    yield rule("engine", Cause.UNSUPPORTED, "CONV", _any(engine=(1, 1)), lambda f: max(f["a_kind"], f["w_kind"]) < Kind.LOG)
    yield rule("slices", Cause.ILLEGAL_FIELD, "FORMAT", _any(slices=(CONFIG.k // CONFIG.shift_lanes + 1, 511)))
    for field in ("a_kind", "w_kind"):
        yield rule(field, Cause.UNSUPPORTED, "CONV", _any(**{field: (3, 7)}))
    for buffer in Buffer:
        yield rule(f"beyond {buffer.name}", Cause.BUFFER_RANGE, "LOAD", _any(base=word), to(buffer))
    yield rule("rows beyond ACT", Cause.BUFFER_RANGE, "LOAD", _any(row_pitch=word, ring_words=(0, 0)),
               lambda f: array(f) and f["ny"] > 1)
    yield rule("beyond ACT", Cause.BUFFER_RANGE, "FILL", _one(base=word, row_pitch=word))
    yield rule("beyond ACT", Cause.BUFFER_RANGE, "PATCH", _any(base=word))
    yield rule("beyond the line memory", Cause.BUFFER_RANGE, "PATCH", _any(kh=(1, 255), seg_bytes=(64, 0xFFFF)),
               lambda f: f["y_pitch"] == 0)
    yield rule("beyond a segment", Cause.BUFFER_RANGE, "PATCH",
               lambda rng, f: dict(width=int(rng.integers(20, 4000)), sw=int(rng.integers(20, 256)), seg_bytes=64),
               lambda f: f["y_pitch"] == 0 and f["dram"] == f["dram"] // 64 * 64 and f["x0"] >= 0)
    for field, holds in (("act_base", lambda f: True), ("wgt_base", lambda f: True),
                         ("prm_base", lambda f: f["output"] != Output.PSUM),
                         ("out_base", lambda f: f["output"] == Output.PLANES),
                         ("out_base", lambda f: f["output"] == Output.INT32),
                         ("res_base", lambda f: f["output"] != Output.PSUM and f.get("res_planes")),
                         ("psum_base", lambda f: f["output"] != Output.PSUM and f["psum_add"]),
                         ("psum_base", lambda f: f["output"] == Output.PSUM)):
        yield rule(f"{field} beyond", Cause.BUFFER_RANGE, "CONV", _any(**{field: word}), holds)
    yield rule("strides beyond ACT", Cause.BUFFER_RANGE, "CONV", _one(sy=word, sx=word, sg=word, skh=word, skw=word, sc=(0, 255)))
    yield rule("strides beyond WGT", Cause.BUFFER_RANGE, "CONV", _one(wgt_g=word, wgt_tap=word))
    for field in ("act_base", "out_base"):
        yield rule(f"{field} beyond", Cause.BUFFER_RANGE, "POOL", _any(**{field: word}))
    yield rule("strides beyond ACT", Cause.BUFFER_RANGE, "POOL", _one(sy=word, sx=word, skh=word, skw=word))
    yield rule("beyond OUT", Cause.BUFFER_RANGE, "STORE", _any(base=word))
    for buffer in Buffer:
        yield rule(f"address of {buffer.name}", Cause.DRAM_RANGE, "LOAD", _address, to(buffer))
    yield rule("pitches", Cause.DRAM_RANGE, "LOAD", _pitch("slice_pitch", "y_pitch", "x_pitch"), array)
    yield rule("address", Cause.DRAM_RANGE, "PATCH", _address)
    yield rule("pitch", Cause.DRAM_RANGE, "PATCH", _pitch("y_pitch"))
    yield rule("address", Cause.DRAM_RANGE, "STORE", _address)
    yield rule("pitches", Cause.DRAM_RANGE, "STORE", _pitch("slice_pitch", "y_pitch", "x_pitch"))
    for instr in ("LOAD", "PATCH"):
        yield rule("of no memory", Cause.AXI_READ, instr, _beyond, limits=EVERYWHERE)
    yield rule("to no memory", Cause.AXI_WRITE, "STORE", _beyond, limits=EVERYWHERE)
    for name in MAKERS:
        yield Rule(f"{name} one token too many", Cause.TOKEN_OVERFLOW, _overflow(name), decoded=True)
    for queue in (Queue.LOAD, Queue.EXEC, Queue.STORE):
        yield Rule(f"{queue.name} waits for ever", Cause.WATCHDOG, _silence(queue), decoded=True)


RULES = (*_table_rules(), *(Rule("no END", Cause.PROGRAM_RANGE, _no_end),) * 8, *_unit_rules())


def draw(seed: int) -> Case:
    """The program of `seed`, with what the ISA simulator makes of it: it must stop at the very rule that is to be broken."""
    rng = np.random.default_rng([seed, 0x111E6A])
    rule = RULES[seed % len(RULES)]
    memory = programs._memory(rng)
    chosen = programs._setup() if rule.decoded or rng.random() < 0.9 else []
    for _ in range(rng.integers(0, 9) if chosen else 0):  # without the setup, buffers hold what the last program left
        name = str(rng.choice(["LOAD", "FILL", "PATCH", "CONV", "CONV", "POOL", "STORE", "STORE", "MARK", "FORMAT", "TABLE"]))
        chosen.append((name, _legal(rng, name)))
    made = rule.make(rng)
    if rule.decoded:
        after = [(name, _legal(rng, name)) for name in rng.choice(list(MAKERS), rng.integers(0, 4))]
        words = programs._with_tokens([*chosen, *made, *after])
        at = len(chosen) + len(made) - 1
    else:
        words, at = [*programs._with_tokens(chosen)[:-1], *made], len(chosen)
    ranges = (rule.limits, rule.limits) if rule.limits else (programs.READ, programs.WRITE)
    code = b"".join(words)
    try:
        Machine(CONFIG, memory.copy(), 0, *ranges).run(code)
        raise AssertionError(f"the ISA simulator takes a program that breaks rule {rule.name}")
    except MachineError as error:
        assert (error.cause, error.pc) == (rule.cause, at * isa.INSTR_BYTES), f"rule {rule.name}, seed {seed}: {error}"
    return Case(seed, rule, code, at, memory, *_history(words, at, rule, memory, ranges), *ranges)


def _history(words: list[bytes], at: int, rule: Rule, memory: np.ndarray, ranges) -> tuple[tuple[np.ndarray, ...], int]:
    recorder = _Recorder(CONFIG, memory.copy(), 0, *ranges)
    for word in words[:at]:
        recorder.step(*isa.decode(word))
    complete = len(recorder.history)
    if rule.decoded and rule.cause is not Cause.WATCHDOG:
        try:
            recorder.step(*isa.decode(words[at]))
        except Stop:
            pass
    return (*recorder.history, recorder.memory), complete if _waits(words[at], rule) else 0


def _waits(word: bytes, rule: Rule) -> bool:
    """Whether the instruction is refused only when all stores before it are finished: fields are checked before its semaphores
    are taken, so that stores may be under way unless it is one itself."""
    early = not rule.decoded or rule.cause in (Cause.ILLEGAL_FIELD, Cause.UNSUPPORTED)
    return not early or rule.decoded and isa.decode(word)[0].queue is Queue.STORE
