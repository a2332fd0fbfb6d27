"""Programs and memories that break a rule: the machine stops with the right cause and pc, writes nothing outside its limits, and
runs a correct program right afterwards. The ISA simulator and the RTL must agree."""

from functools import cache

import numpy as np
import pytest

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.formats import Kind
from seriatim.isa import Buffer, Output, Sem
from seriatim.sim.session import IsaSession, Program

CONFIG = Config(2, 4, 32, 32, act_words=512, wgt_words=160, prm_words=24, res_words=64, out_words=64, psum_words=64,
                line_bytes=512, max_planes=16, marks=4, queue=4, outstanding=2, shift_lanes=4)
BASE, SIZE = 0x4000_0000, 0x11000
PROGRAM = BASE + 0x8000
READ = BASE + 0x2000, BASE + 0x3000
WRITE = BASE + 0x4000, BASE + 0x4800
WATCHDOG = 2000
ACT, RES, WGT, PRM, IMAGE = (READ[0] + 0x200 * i for i in range(5))

INSTRS = (
    ("MARK", dict(layer=0)),
    ("FORMAT", dict(slices=2)),
    ("TABLE", dict(half=1, entry_7=-5)),
    ("LOAD", dict(buffer=Buffer.ACT, dram=ACT, base=0, slices=2, slice_pitch=0x40, words=12, signal=Sem.ACT_READY)),
    ("FILL", dict(base=16, mask=3, words=12, planes=4, code=5, valid=1, signal=Sem.ACT_FREE)),
    ("PATCH", dict(dram=IMAGE, base=32, slices=2, y_pitch=16, height=4, width=5, channels=3, y0=-1, y_step=2, x0=-1, nx=3, kh=3,
                   kw=3, sw=2, dh=1, dw=1, code=3, seg_bytes=64, signal=Sem.WGT_FREE)),
    ("LOAD", dict(buffer=Buffer.RES, dram=RES, base=4, slices=2, slice_pitch=0x40, words=6, signal=Sem.RES_READY)),
    ("LOAD", dict(buffer=Buffer.WGT, dram=WGT, base=2, words=2, signal=Sem.WGT_READY)),
    ("LOAD", dict(buffer=Buffer.PRM, dram=PRM, base=1, words=1, signal=Sem.PRM_READY)),
    ("CONV", dict(wait=Sem.ACT_READY | Sem.WGT_READY | Sem.WGT_FREE | Sem.ACT_FREE, act_base=32, nx=3, sx=8, a_bits=8, w_bits=2,
                  w_kind=Kind.INT, wgt_base=2, output=Output.PSUM, psum_base=3)),
    ("CONV", dict(wait=Sem.PRM_READY | Sem.RES_READY, act_base=0, nx=3, sx=4, a_bits=4, w_bits=2, w_kind=Kind.INT, wgt_base=2,
                  psum_add=1, psum_base=3, prm_base=1, out_base=7, out_planes=4, res_planes=2, res_base=4, res_pitch=2, m2=300,
                  shift=8, lo=0, hi=15)),
    ("POOL", dict(act_base=0, nx=2, ng=1, kw=2, sx=4, skw=4, planes=4, out_base=19, signal=Sem.OUT_READY)),
    ("STORE", dict(wait=Sem.OUT_READY, dram=WRITE[0] + 0x100, base=7, slices=2, slice_pitch=0x80, words=20)),
    ("END", {}),
)
MARK, FORMAT, TABLE, LOAD_ACT, FILL, PATCH, LOAD_RES, LOAD_WGT, LOAD_PRM, CONV_PSUM, CONV, POOL, STORE, END = range(len(INSTRS))


def encode(at: int | None = None, **changes) -> list[bytes]:
    """The correct program, with fields of instruction number `at` overwritten by any bits that fit."""
    program = [isa.encode(name, **fields) for name, fields in INSTRS]
    if at is not None:
        word = int.from_bytes(program[at], "little")
        offsets = {f.name: (f, offset) for f, offset in isa.BY_NAME[INSTRS[at][0]].offsets()}
        for name, value in changes.items():
            f, offset = offsets[name]
            mask = (1 << f.bits) - 1
            assert -(1 << f.bits - 1) <= value <= mask, f"{name} = {value} does not fit {f.bits} bits"
            word = word & ~(mask << offset) | (value & mask) << offset
        program[at] = word.to_bytes(isa.INSTR_BYTES, "little")
    return program


def memory() -> np.ndarray:
    """Random data everywhere, so that a stray write shows; params that spread the outputs."""
    rng = np.random.default_rng(20)
    data = rng.integers(0, 256, SIZE, np.uint8)
    params = np.zeros(CONFIG.n, np.dtype([("b", "<i8"), ("m", "<i4"), ("zero", "<i4")]))
    params["b"], params["m"] = rng.integers(-200, 3000, CONFIG.n), rng.integers(1, 8, CONFIG.n)
    data[PRM - BASE:PRM - BASE + params.nbytes] = params.view(np.uint8)
    return data


def place(code: bytes, **changes) -> Program:
    return Program(**dict(code=code, address=PROGRAM, read_range=READ, write_range=WRITE) | changes)


@cache
def expected() -> np.ndarray:
    """Memory from READ on after the correct program: what the ISA simulator leaves."""
    with IsaSession(CONFIG, SIZE, BASE) as session:
        session.write(BASE, memory())
        session.run(place(b"".join(encode())))
        out = session.read(READ[0], PROGRAM - READ[0])
    changed = out != memory()[0x2000:0x8000]
    assert 100 < changed.sum() <= 2 * 20 * 4, "the correct program writes too little to tell"
    return out


@pytest.fixture(params=["isa", pytest.param("rtl", marks=pytest.mark.rtl)])
def level(request):
    return request.param


@pytest.fixture(scope="module")
def sessions():
    opened = {}
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture
def session(level, sessions):
    """An accelerator out of reset."""
    if level == "isa":
        return IsaSession(CONFIG, SIZE, BASE)
    if level not in sessions:
        sessions[level] = rtl()
    sessions[level].verilated.reset()
    return sessions[level]


def rtl(**model):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    return RtlSession(CONFIG, SIZE, BASE, MemoryModel(**dict(latency=7) | model))


def check(session, program: Program, cause: Cause, at: int, recover: bool = True):
    """The program stops with `cause` at instruction number `at`; what is outside the limits stays; the machine still works."""
    session.write(BASE, memory())
    with pytest.raises(MachineError) as error:
        session.run(program, WATCHDOG)
    assert (error.value.cause, error.value.pc) == (cause, at * isa.INSTR_BYTES), str(error.value)
    assert session.csr_read("STATUS") & 7 == 4, "stopped with an error, not busy, not done"
    after, before = session.read(BASE, SIZE), memory()
    start = program.address - BASE
    before[start:start + len(program.code)] = np.frombuffer(program.code, np.uint8)
    inside = slice(max(program.write_range[0] - BASE, 0), max(program.write_range[1] - BASE, 0))
    after[inside] = before[inside]
    stray = np.flatnonzero(after != before)
    assert not stray.size, f"{stray.size} bytes outside the limits were written, the first at {BASE + stray[0]:#x}"
    if recover:
        runs(session)


def runs(session):
    """The correct program gives the expected memory."""
    session.write(BASE, memory())
    session.run(place(b"".join(encode())), WATCHDOG)
    np.testing.assert_array_equal(session.read(READ[0], PROGRAM - READ[0]), expected())


def test_the_correct_program_runs_twice(session):
    runs(session)
    runs(session)


# Instructions that are none

@pytest.mark.parametrize("opcode", [0, len(isa.INSTRS) + 1, 0x80, 0xFF])
@pytest.mark.parametrize("at", [MARK, STORE, END])
def test_illegal_opcode(session, opcode, at):
    program = encode()
    program[at] = bytes([opcode]) + program[at][1:]
    check(session, place(b"".join(program)), Cause.ILLEGAL_OPCODE, at)


def _field_cases():
    first = {}
    for at, (name, _) in enumerate(INSTRS):
        first.setdefault(name, at)
    for instr in isa.INSTRS:
        for f in instr.all_fields:
            lo, hi = f.range
            for value in (lo - 1, hi + 1):
                fits = -(1 << f.bits - 1) <= value < (1 << f.bits - 1) if f.signed else 0 <= value < 1 << f.bits
                if f.name != "opcode" and fits:
                    yield pytest.param(first[instr.name], f.name, value, id=f"{instr.name}.{f.name}={value}")


@pytest.mark.parametrize("at,field,value", list(_field_cases()))
def test_field_out_of_range(session, at, field, value):
    check(session, place(b"".join(encode(at, **{field: value}))), Cause.ILLEGAL_FIELD, at)


@pytest.mark.parametrize("instr", isa.INSTRS, ids=lambda i: i.name)
@pytest.mark.parametrize("top", [False, True], ids=["first", "last"])
def test_bits_above_the_fields(session, instr, top):
    at = next(i for i, (name, _) in enumerate(INSTRS) if name == instr.name)
    program = encode()
    bit = isa.INSTR_BITS - 1 if top else instr.used_bits
    program[at] = (int.from_bytes(program[at], "little") | 1 << bit).to_bytes(isa.INSTR_BYTES, "little")
    check(session, place(b"".join(program)), Cause.ILLEGAL_FIELD, at)


@pytest.mark.parametrize("at,changes", [
    (LOAD_ACT, dict(slice=1)), (LOAD_ACT, dict(slices=3)), (LOAD_RES, dict(slice=31, slices=32)), (PATCH, dict(slice=1)),
    (STORE, dict(slice=2, slices=1)), (FILL, dict(mask=4)), (FILL, dict(mask=1 << 31)), (CONV, dict(ng=9)), (CONV, dict(ng=255)),
    (LOAD_WGT, dict(slices=2)), (LOAD_WGT, dict(ny=2)), (LOAD_WGT, dict(nx=2)), (LOAD_PRM, dict(slices=2)),
    (LOAD_PRM, dict(nx=2)),
], ids=str)
def test_field_beyond_this_machine(session, at, changes):
    check(session, place(b"".join(encode(at, **changes))), Cause.ILLEGAL_FIELD, at)


@pytest.mark.parametrize("changes", [
    dict(engine=1), *({field: kind} for field in ("a_kind", "w_kind") for kind in (3, 4, 5, 7)),
], ids=str)
def test_unsupported_engine_or_format(session, changes):
    check(session, place(b"".join(encode(CONV, **changes))), Cause.UNSUPPORTED, CONV)


# Addresses

@pytest.mark.parametrize("at,changes", [
    (LOAD_ACT, dict(base=512 - 11)), (LOAD_ACT, dict(base=0xFFFF)), (LOAD_ACT, dict(ny=2, row_pitch=501)),
    (LOAD_RES, dict(base=64 - 5)), (LOAD_RES, dict(nx=11)), (LOAD_WGT, dict(base=159)), (LOAD_PRM, dict(base=24)),
    (FILL, dict(base=501)), (FILL, dict(base=0xFFFF)), (FILL, dict(ny=3, row_pitch=250)),
    (PATCH, dict(base=512 - 23)), (PATCH, dict(kh=8, seg_bytes=128)), (PATCH, dict(width=30, nx=24)),
    (CONV, dict(act_base=501)), (CONV, dict(nx=130)), (CONV, dict(ny=2, sy=501)), (CONV, dict(wgt_base=159)),
    (CONV, dict(prm_base=24)),
    (CONV, dict(ng=2, wgt_g=157)), (CONV, dict(kh=2, wgt_tap=157)), (CONV, dict(nc=2, sc=4, wgt_base=157)),
    (CONV, dict(out_base=64 - 11)), (CONV, dict(out_planes=16, nx=4)), (CONV, dict(res_base=59)), (CONV, dict(res_pitch=30)),
    (CONV, dict(psum_base=64 - 5)), (CONV_PSUM, dict(psum_base=64 - 5)), (CONV_PSUM, dict(ng=8, psum_base=17)),
    (POOL, dict(act_base=501)), (POOL, dict(skw=505)), (POOL, dict(out_base=57)), (STORE, dict(base=64 - 19)),
    (STORE, dict(ny=4)), (STORE, dict(words=0xFFFF)),
], ids=str)
def test_beyond_a_buffer(session, at, changes):
    check(session, place(b"".join(encode(at, **changes))), Cause.BUFFER_RANGE, at)


@pytest.mark.parametrize("at,changes", [
    (CONV, dict(act_base=500)), (CONV, dict(wgt_base=158)), (CONV, dict(prm_base=23)), (CONV, dict(out_base=52)),
    (CONV, dict(res_base=58)), (CONV_PSUM, dict(psum_base=58)), (POOL, dict(act_base=500)), (POOL, dict(out_base=56)),
    (STORE, dict(base=44)),
    (LOAD_ACT, dict(base=500)), (LOAD_RES, dict(base=58)), (LOAD_WGT, dict(base=158)), (LOAD_PRM, dict(base=23)),
    (FILL, dict(base=500)), (PATCH, dict(base=512 - 24)), (PATCH, dict(kh=8)),
], ids=str)
def test_the_last_word_of_a_buffer_is_inside(session, at, changes):
    session.write(BASE, memory())
    session.run(place(b"".join(encode(at, **changes))), WATCHDOG)


@pytest.mark.parametrize("at,changes", [
    *((at, dict(dram=address)) for at in (LOAD_ACT, LOAD_RES, LOAD_WGT, LOAD_PRM, PATCH)
      for address in (READ[0] - 16, READ[1] - 16, PROGRAM, WRITE[0], 0, 0xFFFF_FFF0)),
    *((at, dict(dram=READ[0] + offset)) for at in (LOAD_ACT, LOAD_WGT) for offset in (1, 2)),
    *((LOAD_ACT, dict(slice_pitch=pitch)) for pitch in (0x1000, (1 << 32) - 0x1000, 0x8000_0000)),
    (LOAD_ACT, dict(nx=2, x_pitch=0x1000)), (LOAD_ACT, dict(ny=2, y_pitch=(1 << 32) - 0x800)), (LOAD_ACT, dict(nx=2, x_pitch=2)),
    (PATCH, dict(y_pitch=0x1000)),
    *((STORE, dict(dram=address)) for address in (WRITE[0] - 4, WRITE[1] - 80, WRITE[1], PROGRAM, READ[0], 0, 0xFFFF_FFFC)),
    *((STORE, dict(dram=WRITE[0] + offset)) for offset in (1, 2)),
    (STORE, dict(slice_pitch=0x800)), (STORE, dict(slice_pitch=(1 << 32) - 0x200)), (STORE, dict(words=1, nx=3, x_pitch=0x400)),
    (STORE, dict(words=1, ny=3, y_pitch=(1 << 32) - 0x100)),
], ids=lambda v: str({k: hex(x) for k, x in v.items()}) if isinstance(v, dict) else INSTRS[v][0])
def test_outside_the_limits_of_memory(session, at, changes):
    check(session, place(b"".join(encode(at, **changes))), Cause.DRAM_RANGE, at)


@pytest.mark.parametrize("at,ranges", [
    (LOAD_ACT, dict(read_range=(ACT + 4, READ[1]))), (PATCH, dict(read_range=(READ[0], IMAGE + 60))),
    (PATCH, dict(read_range=(READ[0], IMAGE + 4))), (STORE, dict(write_range=(WRITE[0] + 0x104, WRITE[1]))),
    (STORE, dict(write_range=(WRITE[0], WRITE[0] + 0x100 + 0x80 + 76))), (STORE, dict(write_range=(WRITE[0], WRITE[0]))),
    (STORE, dict(write_range=(WRITE[1], WRITE[0]))),
], ids=lambda v: None if isinstance(v, dict) else INSTRS[v][0])
def test_limits_that_are_one_beat_too_narrow(session, at, ranges):
    check(session, place(b"".join(encode()), **ranges), Cause.DRAM_RANGE, at)


def test_limits_that_just_hold(session):
    session.write(BASE, memory())
    used = WRITE[0] + 0x100
    session.run(place(b"".join(encode()), write_range=(used, used + 0x80 + 20 * 4)), WATCHDOG)
    np.testing.assert_array_equal(session.read(READ[0], PROGRAM - READ[0]), expected())


# The program, tokens, the bus

@pytest.mark.parametrize("count", [0, 1, 6, END])
def test_program_without_end(session, count):
    check(session, place(b"".join(encode()[:count])), Cause.PROGRAM_RANGE, count)


@pytest.mark.parametrize("name,fields", [
    ("MARK", {}), ("CONV", dict(kh=40)), ("POOL", dict(kh=40)), ("LOAD", dict(dram=ACT, words=40)), ("FILL", {}),
    ("PATCH", dict(dram=IMAGE)), ("STORE", dict(dram=WRITE[0], words=40)),
], ids=lambda v: v if isinstance(v, str) else "")
def test_token_overflow(session, name, fields):
    most = (1 << isa.SEM_BITS) - 1
    marks = [isa.encode("MARK", signal=Sem.DRAM_DONE)] * (most - 1) + [isa.encode("MARK", signal=Sem.DRAM_DONE | Sem.ACT_READY)]
    last = isa.encode(name, wait=Sem.ACT_READY, signal=Sem.DRAM_DONE | Sem.ACT_FREE, **fields)
    program = place(b"".join([*marks, last, isa.encode("MARK"), isa.encode("POOL"), isa.encode("END")]))
    check(session, program, Cause.TOKEN_OVERFLOW, most)


def test_as_many_tokens_as_fit(session):
    give, take = isa.encode("MARK", signal=Sem.DRAM_DONE), isa.encode("MARK", wait=Sem.DRAM_DONE)
    most = (1 << isa.SEM_BITS) - 1
    session.write(BASE, memory())
    session.run(place(b"".join([give] * most + [take] * most + [isa.encode("END")])), WATCHDOG)


def test_wait_for_ever(session):
    check(session, place(b"".join(encode(POOL, signal=0))), Cause.WATCHDOG, STORE)


@pytest.mark.parametrize("at,changes,cause", [
    (LOAD_ACT, dict(dram=BASE + SIZE), Cause.AXI_READ), (LOAD_WGT, dict(dram=BASE - 64), Cause.AXI_READ),
    (PATCH, dict(dram=BASE + SIZE), Cause.AXI_READ), (STORE, dict(dram=BASE + SIZE), Cause.AXI_WRITE),
])
def test_no_memory_at_the_address(session, at, changes, cause):
    everywhere = dict(read_range=(0, 0xFFFF_FFFF), write_range=(0, 0xFFFF_FFFF))
    check(session, place(b"".join(encode(at, **changes)), **everywhere), cause, at)


FETCH_BEATS = isa.INSTR_BYTES // CONFIG.axi_bytes
BEATS = FETCH_BEATS * len(INSTRS) + 2 * 12 + 2 * 6 + 2 * 4 + 16 + 5 * 4
"""Read beats of the correct program: its fetch, LOADs of ACT, RES, WGT, PRM, and five image rows of PATCH."""


@pytest.mark.rtl
@pytest.mark.parametrize("resp", ["SLVERR", "DECERR"])
@pytest.mark.parametrize("latency", [1, 60])
def test_read_error_on_any_beat(resp, latency):
    """The first beats are the program's; wherever the error falls, the machine stops at an instruction that reads, or at one that
    was being fetched."""
    from seriatim.sim.verilated import Resp

    seen = set()
    for beat in range(0, BEATS, 13):
        with rtl(latency=latency, read_error_beat=beat, error=Resp[resp]) as session:
            session.write(BASE, memory())
            with pytest.raises(MachineError) as error:
                session.run(place(b"".join(encode())), WATCHDOG)
            assert error.value.cause == Cause.AXI_READ, f"beat {beat}: {error.value}"
            seen.add(error.value.pc // isa.INSTR_BYTES)
            runs(session)
    assert seen & {LOAD_ACT, LOAD_RES, LOAD_WGT, LOAD_PRM, PATCH}, f"no read of data failed: {seen}"


@pytest.mark.rtl
@pytest.mark.parametrize("resp", ["SLVERR", "DECERR"])
@pytest.mark.parametrize("burst", [0, 1])
def test_write_error(resp, burst):
    from seriatim.sim.verilated import Resp

    with rtl(write_error_burst=burst, error=Resp[resp]) as session:
        check(session, place(b"".join(encode())), Cause.AXI_WRITE, STORE)


@pytest.mark.rtl
@pytest.mark.parametrize("hang", [dict(read_hang_beat=0), dict(read_hang_beat=100), dict(read_hang_beat=FETCH_BEATS * END + 20),
                                  dict(write_hang_burst=0), dict(write_hang_burst=1)], ids=str)
def test_memory_that_never_answers(hang):
    with rtl(**hang) as session:
        session.write(BASE, memory())
        with pytest.raises(MachineError) as error:
            session.run(place(b"".join(encode())), WATCHDOG)
        assert error.value.cause == Cause.WATCHDOG, str(error.value)
        if "write_hang_burst" in hang:
            assert error.value.pc == STORE * isa.INSTR_BYTES
        assert session.csr_read("STATUS") & 7 == 4, "stopped with an error, not busy, not done"
