"""Constrained-random programs: legal instructions with fields that no compiler would write, and now and then an illegal one.

`draw(seed)` gives a program for `CONFIG` with its memory. Every buffer is loaded first and dumped at the end, so that whatever an
instruction did to any of them shows in memory. Queues hand over by tokens, within a queue instructions follow each other freely.
"""

from dataclasses import dataclass

import numpy as np

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.errors import MachineError, ProgramError
from seriatim.formats import Kind
from seriatim.isa import TABLE_PART, Buffer, Engine, Output, Queue, Sem, Table
from seriatim.sim.isasim import Machine, Stop

CONFIG = Config(2, 4, 32, 32, act_words=512, wgt_words=160, prm_words=24, res_words=64, out_words=64, psum_words=64,
                line_bytes=512, max_planes=16, marks=4, queue=4, outstanding=2, shift_lanes=4)
SIZE = 0x10000
PROGRAM = 0xA000
READ, WRITE = (0x1000, 0x4000), (0x5000, 0xA000)
ACT, WGT, PRM, RES, IDENTITY = 0x1000, 0x2000, 0x2C00, 0x3200, 0x3E00
DUMP = 0x6000
TOKENS = {
    (Queue.LOAD, Queue.EXEC): Sem.ACT_READY, (Queue.EXEC, Queue.LOAD): Sem.ACT_FREE, (Queue.EXEC, Queue.STORE): Sem.OUT_READY,
    (Queue.STORE, Queue.EXEC): Sem.OUT_FREE, (Queue.STORE, Queue.LOAD): Sem.DRAM_DONE, (Queue.LOAD, Queue.STORE): Sem.RES_FREE,
}
"""The semaphore by which one queue hands over to another."""
STEPS = 500
"""Most array steps of a CONV."""


@dataclass(frozen=True)
class Case:
    """`cause` and `at`: how and at which instruction the ISA simulator stops; NONE where the program runs to its end."""

    seed: int
    instructions: tuple[bytes, ...]
    memory: np.ndarray
    cause: Cause
    at: int

    @property
    def code(self) -> bytes:
        return b"".join(self.instructions)

    def __str__(self):
        return f"seed {self.seed}:\n" + "\n".join(_text(word) for word in self.instructions)


def _text(word: bytes) -> str:
    try:
        return next(iter(isa.disassemble(word)))
    except ProgramError:
        return word.hex()


def _memory(rng) -> np.ndarray:
    memory = rng.integers(0, 256, SIZE, np.uint8)
    params = np.zeros(CONFIG.prm_words * CONFIG.n, np.dtype([("b", "<i8"), ("m", "<i4"), ("zero", "<i4")]))
    bits = np.repeat([_b_bits(word) for word in range(CONFIG.prm_words)], CONFIG.n)
    params["b"] = rng.integers(-(1 << bits), 1 << bits)
    params["m"] = rng.integers(-(1 << np.minimum(bits - 1, 31)), 1 << np.minimum(bits - 1, 31))
    memory[PRM:PRM + params.nbytes] = params.view(np.uint8)
    one = np.zeros(CONFIG.tiles_per_word * CONFIG.n, params.dtype)
    one["m"] = 1
    memory[IDENTITY:IDENTITY + one.nbytes] = one.view(np.uint8)
    return memory


def _b_bits(word: int) -> int:
    """Size of the params of a word: shifts are chosen by it, so that results are not all clipped."""
    return 3 + word * 17 % 58


def _setup() -> list[tuple[str, dict]]:
    c = CONFIG
    area = c.act_words * c.word_bytes
    return [
        ("LOAD", dict(buffer=Buffer.ACT, dram=ACT, slices=c.m, slice_pitch=area, words=c.act_words)),
        ("LOAD", dict(buffer=Buffer.RES, dram=RES, slices=c.m, slice_pitch=c.res_words * c.word_bytes, words=c.res_words)),
        ("LOAD", dict(buffer=Buffer.WGT, dram=WGT, words=c.wgt_words)),
        ("LOAD", dict(buffer=Buffer.PRM, dram=PRM, words=c.prm_words)),
        ("CONV", dict(nx=4, ng=c.tiles_per_word, sx=7, sg=11, a_bits=3, w_bits=2, wgt_g=5, output=Output.PSUM)),
        ("POOL", dict(nx=4, ng=1, sx=16, planes=16)),
    ]


def _dump() -> list[tuple[str, dict]]:
    """The out buffer as it is, then the act, psum and residual buffers by way of it."""
    c = CONFIG
    store = ("STORE", dict(slices=c.m, slice_pitch=c.out_words * c.word_bytes, words=c.out_words))
    found = [store]
    for first in range(0, c.act_words, c.out_words):
        found += [("POOL", dict(act_base=first, nx=c.out_words // 16, ng=1, sx=16, planes=16)), store]
    found += [("LOAD", dict(buffer=Buffer.PRM, dram=IDENTITY, words=c.tiles_per_word))]
    plain = dict(a_kind=Kind.BIPOLAR, lo=-(1 << 31), hi=(1 << 31) - 1)
    for first in range(0, c.psum_words, c.psum_words // 2):
        found += [("CONV", plain | dict(nx=2, ng=c.tiles_per_word, psum_add=1, psum_base=first, output=Output.INT32)), store]
    found += [("CONV", plain | dict(nx=4, ng=c.tiles_per_word, res_planes=16, res_pitch=16, m2=1, out_planes=16)), store]
    for first in range(0, c.act_words, 64):  # validity, as a bipolar sum
        found += [("CONV", plain | dict(act_base=first, nx=64, sx=1, ng=1, out_planes=1, hi=0)), store]
    stores = 0
    for i, (name, fields) in enumerate(found):
        if name == "STORE":
            found[i] = name, fields | dict(dram=DUMP + 2 * c.out_words * c.word_bytes * stores)
            stores += 1
    return found


def _ring(rng, base: int, *pitches: int) -> dict:
    """A ring that no step from row to row leaps over, or none."""
    if rng.random() < 0.6:
        return {}
    first = int(rng.integers(max(0, base - 150), base + 1))
    return dict(ring_base=first, ring_words=int(rng.integers(max(1, base - first - 8, *pitches), base - first + 150)))


def _pitch(rng, most: int) -> int:
    """A multiple of the beat, of either sign."""
    return int(rng.integers(-most, most + 1)) * CONFIG.axi_bytes % (1 << 32)


def _slices(rng) -> dict:
    first = int(rng.integers(0, CONFIG.m))
    return dict(slice=first, slices=int(rng.integers(1, CONFIG.m - first + 1)))


def _load(rng) -> tuple[str, dict]:
    buffer = Buffer(int(rng.choice([0, 0, 0, 1, 2, 3])))
    if buffer in (Buffer.WGT, Buffer.PRM):
        base = int(rng.integers(0, 20))
        dram = PRM if buffer is Buffer.PRM else READ[0]
        step = CONFIG.prm_word_bytes if buffer is Buffer.PRM else CONFIG.axi_bytes
        return "LOAD", dict(buffer=buffer, base=base, dram=dram + int(rng.integers(0, 10)) * step, words=int(rng.integers(1, 5)))
    base = int(rng.integers(0, 40 if buffer is Buffer.RES else 400))
    fields = dict(buffer=buffer, dram=int(rng.integers(READ[0] + 0x800, READ[1] - 0x800)) // 4 * 4, base=base,
                  slice_pitch=_pitch(rng, 200), ny=int(rng.integers(1, 4)), y_pitch=_pitch(rng, 60),
                  nx=int(rng.integers(1, 4)), x_pitch=_pitch(rng, 12),
                  words=int(rng.integers(1, 9)), row_pitch=int(rng.integers(0, 40)))
    if rng.random() < 0.3:  # contiguous rows and segments, which become one burst
        fields |= dict(x_pitch=4 * fields["words"], y_pitch=4 * fields["words"] * fields["nx"])
    return "LOAD", fields | _slices(rng) | _ring(rng, base, fields["row_pitch"])


def _fill(rng) -> tuple[str, dict]:
    base, row_pitch = int(rng.integers(0, 450)), int(rng.integers(0, 60))
    return "FILL", dict(base=base, mask=int(rng.integers(0, 1 << CONFIG.m)), ny=int(rng.integers(1, 4)), row_pitch=row_pitch,
                        words=int(rng.integers(1, 30)), planes=int(rng.integers(1, 17)), code=int(rng.integers(0, 1 << 16)),
                        valid=int(rng.integers(0, 2))) | _ring(rng, base, row_pitch)


def _patch(rng) -> tuple[str, dict]:
    width, channels = int(rng.integers(1, 12)), int(rng.integers(1, 6))
    kh = int(rng.integers(1, 6))
    return "PATCH", dict(
        dram=int(rng.integers(READ[0], READ[1] - 0x800)) // 4 * 4, base=int(rng.integers(0, 300)),
        y_pitch=int(rng.integers(0, 40)) * 4, height=int(rng.integers(1, 10)), width=width, channels=channels,
        y0=int(rng.integers(-6, 8)), y_step=int(rng.integers(0, 5)),
        x0=int(rng.integers(-6, 8)), nx=int(rng.integers(1, 5)), kh=kh, kw=int(rng.integers(1, 6)), sw=int(rng.integers(1, 4)),
        dh=int(rng.integers(1, 4)), dw=int(rng.integers(1, 4)), code=int(rng.integers(0, 256)),
        seg_bytes=64 * int(rng.integers(1, 1 + 512 // 64 // kh)), **_slices(rng))


def _conv(rng) -> tuple[str, dict]:
    def pick(*ranges):
        return int(rng.integers(*ranges))

    while True:
        f = dict(ny=pick(1, 4), nx=pick(1, 5), ng=pick(1, 9), kh=pick(1, 4), kw=pick(1, 4), nc=pick(1, 4), a_bits=pick(1, 9),
                 w_bits=pick(1, 10))
        if rng.random() < 0.3:
            f |= dict(kh=1, kw=1, nc=1)
        if np.prod(list(f.values())) <= STEPS:
            break
    base = pick(0, 200)
    f |= dict(act_base=base, sy=pick(0, 60), sx=pick(0, 20), sg=pick(0, 4) * pick(0, 12), skh=pick(0, 60), skw=pick(0, 20),
              sc=pick(0, 17), a_kind=pick(0, 3), w_kind=pick(0, 3), wgt_base=pick(0, 60), wgt_g=pick(0, 10), wgt_tap=pick(0, 12),
              output=int(rng.choice([0, 0, 0, 1, 2, 3])), psum_add=pick(0, 2), psum_base=pick(0, 20), prm_base=pick(0, 20),
              out_base=pick(0, 30), out_planes=pick(1, 17))
    f["shift"] = int(np.clip(_b_bits(f["prm_base"]) - pick(1, 14), 0, 63)) if rng.random() < 0.9 else pick(0, 64)
    f |= _ring(rng, base, f["sy"], f["skh"])
    if rng.random() < 0.5:
        f |= dict(res_planes=pick(1, 17), res_signed=pick(0, 2), res_base=pick(0, 30), res_pitch=pick(0, 17),
                  m2=pick(-(1 << 31), 1 << 31))
    bits = pick(1, 32)
    lo, hi = sorted((pick(-(1 << bits), 1 << bits), pick(-(1 << bits), 1 << bits)))
    return "CONV", f | dict(lo=max(lo, -(1 << 31)), hi=min(hi, (1 << 31) - 1))


def _shift_conv(rng) -> tuple[str, dict]:
    """Of the shift-add engine, whatever the format: the machine may refuse it."""
    _, f = _conv(rng)
    kinds = [int(k) for k in rng.choice((Kind.UINT, Kind.INT, Kind.LOG, Kind.LOG, Kind.CODEBOOK), 2)]
    bits = dict(a_bits=min(f["a_bits"], CONFIG.shift_a_bits), w_bits=min(f["w_bits"], CONFIG.shift_w_bits))
    return "CONV", f | bits | dict(engine=Engine.SHIFT_ADD, a_kind=kinds[0], w_kind=kinds[1], output=int(rng.integers(0, 4)))


def _format(rng) -> tuple[str, dict]:
    steps = {f"{side}_step": int(rng.choice((1, 1, 2, 8))) for side in "aw"}
    steps["drop"] = int(rng.choice((0, 0, 3, rng.integers(0, 32))))
    return "FORMAT", steps | dict(a_signed=int(rng.integers(2)), w_signed=int(rng.integers(2)), scaled=int(rng.integers(2)),
                                  slices=int(rng.integers(1, CONFIG.k // (CONFIG.shift_lanes or CONFIG.k) + 1)))


def _table(rng) -> tuple[str, dict]:
    table = int(rng.integers(2))
    most = 1 << int(rng.choice((15, 5) if table == Table.VALUES else (31, 10, 4)))
    entries = {f"entry_{i}": int(value) for i, value in enumerate(np.sort(rng.integers(-most, most, TABLE_PART)))}
    return "TABLE", entries | dict(table=table, half=int(rng.integers(2)))


def _pool(rng) -> tuple[str, dict]:
    base, sy, skh = (int(rng.integers(0, most)) for most in (200, 60, 60))
    return "POOL", dict(
        act_base=base, ny=int(rng.integers(1, 4)), nx=int(rng.integers(1, 4)), ng=int(rng.integers(1, 4)),
        kh=int(rng.integers(1, 4)), kw=int(rng.integers(1, 4)), sy=sy, sx=int(rng.integers(0, 40)), skh=skh,
        skw=int(rng.integers(0, 40)), planes=int(rng.integers(1, 17)), is_signed=int(rng.integers(0, 2)),
        out_base=int(rng.integers(0, 30))) | _ring(rng, base, sy, skh)


def _store(rng) -> tuple[str, dict]:
    fields = dict(dram=int(rng.integers(WRITE[0] + 0x400, DUMP - 0x400)) // 4 * 4, base=int(rng.integers(0, 50)),
                  ny=int(rng.integers(1, 4)), y_pitch=_pitch(rng, 60), nx=int(rng.integers(1, 4)), x_pitch=_pitch(rng, 20),
                  words=int(rng.integers(1, 12)),
                  slice_pitch=_pitch(rng, 100))
    if rng.random() < 0.3:
        fields |= dict(x_pitch=4 * fields["words"], y_pitch=4 * fields["words"] * fields["nx"])
    return "STORE", fields | _slices(rng)


def _mark(rng) -> tuple[str, dict]:
    return "MARK", dict(layer=int(rng.integers(0, CONFIG.marks)))


def draw(seed: int, illegal: float = 0.1) -> Case:
    """The program of `seed`; a share of `illegal` of them end with an instruction that the machine refuses."""
    rng = np.random.default_rng([seed, 0x9106])
    memory = _memory(rng)
    machine = Machine(CONFIG, memory.copy(), 0, READ, WRITE)
    chosen: list[tuple[str, dict]] = []

    def take(name: str, fields: dict) -> bool:
        """Keeps an instruction if the machine takes it."""
        _, decoded = isa.decode(isa.encode(name, **fields))
        before = {k: getattr(machine, k).copy() for k in ("act", "valid", "out", "memory")}
        try:
            machine.step(isa.BY_NAME[name], decoded)
        except Stop:
            for k, v in before.items():
                getattr(machine, k)[:] = v
            return False
        chosen.append((name, fields))
        return True

    for name, fields in _setup():
        assert take(name, fields), name
    wanted = len(chosen) + int(rng.integers(3, 12))
    makers = (_load, _load, _fill, _patch, _conv, _conv, _shift_conv, _shift_conv, _format, _table, _pool, _store, _mark)
    refused = None
    while len(chosen) < wanted:
        maker = makers[rng.integers(len(makers))]
        for _ in range(int(rng.integers(1, 4))):
            name, fields = maker(rng)
            if not take(name, fields):
                refused = name, fields
    bad = refused is not None and rng.random() < illegal and not take(*refused)  # by now a FORMAT may have made it legal
    chosen += [refused] if bad else _dump()
    instructions = _with_tokens(chosen)
    case = Case(seed, tuple(instructions), memory, Cause.NONE, 0)
    _, cause, at = simulate(case)
    assert (cause != Cause.NONE) == bad, f"seed {seed}: the program stops with {cause.name} at {at}\n{case}"
    return Case(seed, tuple(instructions), memory, cause, at)


def _with_tokens(chosen: list[tuple[str, dict]]) -> list[bytes]:
    """Instructions with a token from queue to queue wherever the queue changes, and END."""
    queues = [isa.BY_NAME[name].queue for name, _ in chosen]
    words = []
    for i, (name, fields) in enumerate(chosen):
        wait = TOKENS.get((queues[i - 1], queues[i]), 0) if i else 0
        signal = TOKENS.get((queues[i], queues[i + 1]), 0) if i + 1 < len(chosen) else 0
        tokens = dict(wait=wait | fields.get("wait", 0), signal=signal | fields.get("signal", 0))
        words.append(isa.encode(name, **fields | tokens))
    return [*words, isa.encode("END")]


def simulate(case: Case, order: int | str = "load") -> tuple[Machine, Cause, int]:
    """The ISA simulator after the program, the cause with which it stopped, and at which instruction."""
    machine = Machine(CONFIG, case.memory.copy(), 0, READ, WRITE)
    try:
        machine.run(case.code, order)
    except MachineError as error:
        return machine, error.cause, error.pc // isa.INSTR_BYTES
    return machine, Cause.NONE, 0
