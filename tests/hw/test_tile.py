"""The compact machine's datapath against the ISA simulator: one position of a CONV, its addresses, sums and where they go."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from seriatim import isa
from seriatim.compiler import sequential
from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.hw.tile import PARAM_WORDS, Tile, registers
from seriatim.isa import Output
from seriatim.sim.isasim import Machine

pytestmark = pytest.mark.unit

CONFIG = Config(m=1, n=1, k=32, axi_bits=32, compact=1, act_words=128, wgt_words=256, prm_words=16, res_words=64, out_words=64,
                psum_words=32)
ACT, RES, OUT = 0, 128, 192
PRM, PSUM, RESCALE, WGT = 0, 64, 100, 128
"""Where the buffers begin in the work and the scratch memory."""


def _word(bits: np.ndarray) -> int:
    return int(np.packbits(bits, bitorder="little").view("<u4")[0])


def _conv(rng, output: Output, **values) -> dict[str, int]:
    """Fields of a CONV of one position, inside the buffers."""
    a_bits, w_bits, nc = (int(rng.integers(1, n + 1)) for n in (8, 4, 2))
    kh, kw, ng = (int(rng.integers(1, n + 1)) for n in (3, 2, 3))
    fields = dict(
        act_base=int(rng.integers(0, 40)), ring_base=8, ring_words=48, kh=kh, kw=kw, nc=nc, ng=ng, skh=int(rng.integers(0, 40)),
        skw=int(rng.integers(0, 20)), sc=a_bits, sg=int(rng.integers(0, 9)), a_kind=int(rng.integers(0, 3)), a_bits=a_bits,
        w_kind=int(rng.integers(0, 3)), w_bits=w_bits, wgt_base=int(rng.integers(0, 20)), wgt_g=kh * kw * nc * w_bits,
        wgt_tap=nc * w_bits, output=output, psum_add=int(rng.integers(0, 2)), psum_base=int(rng.integers(0, 20)),
        prm_base=int(rng.integers(0, 10)), out_base=int(rng.integers(0, 20)), out_planes=int(rng.integers(1, 17)),
        res_planes=int(rng.integers(0, 17)), res_signed=int(rng.integers(0, 2)), res_base=int(rng.integers(0, 40)),
        m2=int(rng.integers(-1 << 31, 1 << 31)), shift=int(rng.integers(0, 50)), lo=-(1 << 20), hi=1 << 20)
    return isa.decode(isa.encode("CONV", **(fields | values)))[1]


@pytest.mark.parametrize("output", [Output.PLANES, Output.INT32, Output.PSUM])
@pytest.mark.parametrize("seed", range(8))
def test_a_position_equals_the_isa_simulator(seed, output):
    rng = np.random.default_rng([seed, output])
    machine = Machine(CONFIG, np.zeros(4, np.uint8))
    for name in ("act", "valid", "res", "wgt", "out"):
        getattr(machine, name)[:] = rng.integers(0, 2, getattr(machine, name).shape)
    machine.psum[:] = rng.integers(-1 << 31, 1 << 31, machine.psum.shape)
    machine.prm_m[:] = rng.integers(-1 << 31, 1 << 31, machine.prm_m.shape)
    machine.prm_b[:] = rng.integers(-1 << 62, 1 << 62, machine.prm_b.shape)
    f = _conv(rng, output)
    work = [_word(w[0]) for w in (*machine.act, *machine.res, *machine.out)]
    valid = [int(v[0]) for v in machine.valid] + [0] * (len(work) - CONFIG.act_words)
    scratch = [0] * 1024
    for i in range(CONFIG.prm_words):
        b, scratch[PRM + PARAM_WORDS * i + 2] = int(machine.prm_b[i, 0]), int(machine.prm_m[i, 0]) & 0xFFFFFFFF
        scratch[PRM + PARAM_WORDS * i], scratch[PRM + PARAM_WORDS * i + 1] = b & 0xFFFFFFFF, b >> 32 & 0xFFFFFFFF
    scratch[PSUM:PSUM + CONFIG.psum_words] = [int(p[0]) & 0xFFFFFFFF for p in machine.psum]
    scratch[WGT:WGT + CONFIG.wgt_words] = [_word(w[0]) for w in machine.wgt]

    scratch[RESCALE:RESCALE + 3] = [f[name] & 0xFFFFFFFF for name in ("m2", "lo", "hi")]

    less_one = {"a_last": "a_bits", "w_last": "w_bits", "kh": "kh", "kw": "kw", "nc": "nc", "ng": "ng"}
    given = {"ring_end": f["ring_base"] + f["ring_words"], "wgt": WGT + f["wgt_base"], "prm": PRM + PARAM_WORDS * f["prm_base"],
             "row": int(machine._taps(f | {"kw": 1, "kh": 1})[0, 0, 0]), "x": 0, "psum": PSUM + f["psum_base"],
             "res": RES + f["res_base"], "out": OUT + f["out_base"], "lane": 0, "value": 0, "valid": 0}
    given |= {name: f[field] - 1 for name, field in less_one.items()}
    unit = Tile(CONFIG, RESCALE)
    steps = cycles = 0

    async def bench(ctx):
        nonlocal steps, cycles
        for name in registers(CONFIG):
            ctx.set(getattr(unit, name), given.get(name, f.get(name)))
        ctx.set(unit.go, 1)
        await ctx.tick()
        ctx.set(unit.go, 0)
        while ctx.get(unit.active):
            read = ctx.get(unit.read_address) if ctx.get(unit.read_en) else None
            writes, at, data = (ctx.get(p) for p in (unit.write_en, unit.write_address, unit.write_data))
            access = ctx.get(unit.scratch_address) if ctx.get(unit.scratch_en) else None
            wrote, value = ctx.get(unit.scratch_write), ctx.get(unit.scratch_wdata)
            steps += ctx.get(unit.step)
            cycles += 1
            await ctx.tick()
            if read is not None and read < len(work):
                ctx.set(unit.read_data, work[read])
                ctx.set(unit.read_valid, valid[read])
            if writes:
                work[at] = data
            if access is not None and wrote:
                scratch[access] = value
            elif access is not None:
                ctx.set(unit.scratch_rdata, scratch[access])

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    machine.conv(f)
    assert (steps, cycles) == (machine.counters[Counter.ARRAY_STEPS], sequential.work("CONV", f)["cycle"])
    assert scratch[PSUM:PSUM + CONFIG.psum_words] == [int(p[0]) & 0xFFFFFFFF for p in machine.psum]
    assert work[OUT:] == [_word(w[0]) for w in machine.out]
