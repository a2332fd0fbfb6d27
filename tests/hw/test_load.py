"""LOAD, FILL, PATCH and STORE in the whole machine, for every ratio of lanes to bus: the memory that the ISA simulator leaves."""

import numpy as np
import pytest

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.isa import Buffer, Output, Sem
from seriatim.sim.session import IsaSession, Program

pytestmark = pytest.mark.rtl

BASE, SIZE = 0x8000_0000, 0x20000
PROGRAM = BASE + 0x18000
READ, WRITE = (BASE, BASE + 0x10000), (BASE + 0x10000, BASE + 0x18000)
SMALL = dict(act_words=256, wgt_words=16, prm_words=16, res_words=32, out_words=128, psum_words=16, line_bytes=1024, marks=0,
             queue=2)
CONFIGS = [
    Config(2, 4, 32, 32, outstanding=2, **SMALL),
    Config(3, 4, 64, 64, outstanding=8, **SMALL | dict(act_words=512, out_words=256, marks=4, queue=4)),  # as in test_top
    Config(2, 2, 64, 32, outstanding=3, **SMALL),
    Config(1, 4, 128, 128, outstanding=1, **SMALL),
    Config(2, 2, 256, 256, outstanding=4, **SMALL),
]
PROGRAMS = 25


def _multiple(rng, config, low, high) -> int:
    return int(rng.integers(low, high)) * config.axi_bytes % (1 << 32)


def _slices(rng, config) -> dict:
    first = int(rng.integers(0, config.m))
    return dict(slice=first, slices=int(rng.integers(1, config.m - first + 1)))


def _ring(rng, base) -> dict:
    if rng.random() < 0.5:
        return {}
    first = int(rng.integers(0, base + 1))
    return dict(ring_base=first, ring_words=int(rng.integers(base - first + 1, base - first + 60)))


def _load(rng, config, buffer) -> tuple[str, dict]:
    deep = config.act_words if buffer is Buffer.ACT else config.res_words
    base = int(rng.integers(0, deep // 4))
    words, nx = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    fields = dict(buffer=buffer, dram=READ[0] + 0x8000 + _multiple(rng, config, 0, 32), base=base, words=words, nx=nx,
                  ny=int(rng.integers(1, 3)), row_pitch=int(rng.integers(0, deep // 4)),
                  slice_pitch=_multiple(rng, config, -64, 64),
                  y_pitch=_multiple(rng, config, -40, 40), x_pitch=_multiple(rng, config, -9, 9))
    if rng.random() < 0.5:
        fields |= dict(x_pitch=words * config.word_bytes)
        if rng.random() < 0.5:
            fields |= dict(y_pitch=nx * words * config.word_bytes)
    return "LOAD", fields | _slices(rng, config) | (_ring(rng, base) if buffer is Buffer.ACT else {})


def _fill(rng, config) -> tuple[str, dict]:
    base = int(rng.integers(0, 64))
    return "FILL", dict(
        base=base, mask=int(rng.integers(0, 1 << config.m)), ny=int(rng.integers(1, 4)), row_pitch=int(rng.integers(0, 40)),
        words=int(rng.integers(1, 40)), planes=int(rng.integers(1, 17)), code=int(rng.integers(0, 1 << 16)),
        valid=int(rng.integers(0, 2))) | _ring(rng, base)


def _patch(rng, config) -> tuple[str, dict]:
    kh, channels = int(rng.integers(1, 8)), int(rng.choice([1, 2, 3, 3, 4, 5, 8, 17]))
    kw, dw, sw = int(rng.integers(1, 8)), int(rng.choice([1, 1, 2, 3])), int(rng.integers(1, 4))
    width = int(rng.integers(1, 14))
    need = -(-width * channels // 64) * 64 + 64  # a whole row and its alignment
    kh = max(1, min(kh, config.line_bytes // need))
    words = -(-kh * kw * channels // config.k)
    return "PATCH", dict(
        dram=READ[0] + 0x4000 + _multiple(rng, config, 0, 8), base=int(rng.integers(0, 32)),
        y_pitch=_multiple(rng, config, 0, 20), height=int(rng.integers(1, 12)), width=width, channels=channels,
        y0=int(rng.integers(-6, 12)), y_step=int(rng.integers(0, 4)), x0=int(rng.integers(-7, 10)),
        nx=int(rng.integers(1, max(2, min(9, 220 // (8 * words))))), kh=kh, kw=kw, sw=sw, dh=int(rng.choice([1, 1, 2, 3])), dw=dw,
        code=int(rng.integers(0, 256)), seg_bytes=need, **_slices(rng, config))


def _store(rng, config, area: int) -> tuple[str, dict]:
    words, nx = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    pitch = words * config.word_bytes + _multiple(rng, config, 0, 2) * int(rng.random() < 0.5)
    return "STORE", dict(
        wait=Sem.OUT_READY, signal=Sem.OUT_FREE, dram=area + _multiple(rng, config, 0, 4), base=int(rng.integers(0, 64)),
        words=words, nx=nx, ny=int(rng.integers(1, 3)), x_pitch=pitch, y_pitch=pitch * nx + _multiple(rng, config, 0, 2),
        slice_pitch=0x400, **_slices(rng, config))


def draw(seed: int, config: Config) -> tuple[bytes, np.ndarray]:
    """A program that overwrites parts of the act, residual, weight and param buffers, shows all of them, and its memory."""
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, SIZE, np.uint8)
    c = config
    words = c.out_words // 2
    program = [
        ("LOAD", dict(buffer=Buffer.ACT, dram=READ[0], slices=c.m, slice_pitch=0x800, words=c.act_words // 4)),
        ("FILL", dict(base=c.act_words // 4, mask=(1 << c.m) - 1, words=c.act_words * 3 // 4, planes=1, valid=1)),
        ("LOAD", dict(buffer=Buffer.RES, dram=READ[0], slices=c.m, slice_pitch=0x400, words=c.res_words)),
        ("LOAD", dict(buffer=Buffer.WGT, dram=READ[0] + 0x1000, words=c.wgt_words)),
        ("LOAD", dict(buffer=Buffer.PRM, dram=READ[0] + 0x2000, words=c.prm_words)),
    ]
    for _ in range(int(rng.integers(1, 6))):
        match int(rng.integers(0, 6)):
            case 0 | 1:
                program.append(_patch(rng, c))
            case 2:
                program.append(_fill(rng, c))
            case 3:
                program.append(_load(rng, c, Buffer.ACT))
            case 4:
                program.append(_load(rng, c, Buffer.RES))
            case 5:
                buffer = Buffer.WGT if rng.random() < 0.5 else Buffer.PRM
                program.append(("LOAD", dict(buffer=buffer, dram=READ[0] + _multiple(rng, c, 0, 99), base=int(rng.integers(0, 8)),
                                             words=int(rng.integers(1, 8)))))
    program[-1][1]["signal"] = Sem.ACT_READY
    for i in range(c.act_words // words):  # POOL of one word copies
        program += [
            ("POOL", dict(wait=Sem.OUT_FREE if i else Sem.ACT_READY, act_base=i * words, nx=words // 8, ng=1, sx=8, planes=8,
                          out_base=words * (i % 2), signal=Sem.OUT_READY)),
            ("STORE", dict(wait=Sem.OUT_READY, dram=WRITE[0] + i * words * c.word_bytes, slices=c.m, slice_pitch=0x2000,
                           base=words * (i % 2), words=words, signal=Sem.OUT_FREE)),
        ]
    positions = min(4, c.prm_words, c.out_words // c.raw_words)
    for i in range(positions):
        program += [
            ("CONV", dict(wait=Sem.OUT_FREE, act_base=i, a_bits=2, w_bits=2, wgt_base=4 * i, prm_base=2 * i, res_base=7 * i,
                          res_planes=8, m2=77, output=Output.INT32, out_base=0, shift=int(rng.integers(0, 60)), lo=-(1 << 31),
                          hi=(1 << 31) - 1, signal=Sem.OUT_READY)),
            ("STORE", dict(wait=Sem.OUT_READY, dram=WRITE[0] + 0x7000 + 0x80 * i, slices=c.m, slice_pitch=0x200,
                           words=c.raw_words, signal=Sem.OUT_FREE)),
        ]
    program += [("POOL", dict(wait=Sem.OUT_FREE, nx=c.out_words // 8, ng=1, sx=8, planes=8, signal=Sem.OUT_READY)),
                _store(rng, c, WRITE[0] + 0x6000), ("END", {})]
    return b"".join(isa.encode(name, **fields) for name, fields in program), memory


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: f"{c}-axi{c.axi_bits}")
def library(request):
    from seriatim.sim.rtl import library

    return request.param, library(request.param)


@pytest.mark.parametrize("model", [
    dict(latency=3), dict(latency=100), dict(latency=1, outstanding=2, stall_percent=50), dict(latency=20, read_bandwidth=(1, 3)),
], ids=["near", "far", "holding", "slow"])
def test_same_memory_as_the_isa_simulator(library, model):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    config, path = library
    rtl = RtlSession(config, SIZE, BASE, MemoryModel(**model), library_path=path)
    for seed in range(PROGRAMS):
        code, memory = draw(seed, config)
        program = Program(code, PROGRAM, READ, WRITE)
        left = []
        for session in (IsaSession(config, SIZE, BASE), rtl):
            session.write(BASE, memory)
            counts = session.run(program, watchdog=5000).total
            left.append((session.read(BASE, SIZE), counts))
        (expected, model_counts), (got, counts) = left
        wrong = np.flatnonzero(expected != got)
        text = "\n".join(isa.disassemble(code))
        assert not wrong.size, f"seed {seed}, {config}: {wrong.size} bytes differ, the first at {BASE + wrong[0]:#x}\n{text}"
        counts[Counter.READ_BEATS] -= counts[Counter.FETCH_BEATS]
        for c in (Counter.READ_BEATS, Counter.WRITE_BEATS):
            assert counts[c] == model_counts[c], f"seed {seed}, {c.name}\n{text}"
    rtl.close()
