"""Activity counters: the RTL and the ISA simulator against a walk of the steps, one at a time, written from the manual alone."""

import execute_bench as bench
import numpy as np
import pytest

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import ACTIVITY_COUNTERS, Counter
from seriatim.formats import Kind
from seriatim.isa import Buffer, Output, Sem
from seriatim.sim.isasim import Machine
from seriatim.sim.session import Program

CONFIG = Config(3, 4, 64, 64, act_words=512, wgt_words=16, prm_words=16, res_words=32, out_words=256, psum_words=16,
                line_bytes=1024, marks=4, queue=4, outstanding=8)
BASE, SIZE = 0x1000_0000, 0x20000
PROGRAM, WRITE, WEIGHTS = BASE + 0x18000, BASE + 0x10000, BASE + 0x8000


class Walk:
    """The array's operand registers, step by step."""

    def __init__(self):
        self.act = self.wgt = None
        self.ones = self.act_flips = self.wgt_flips = 0

    @staticmethod
    def _row(f, at, count, pitch):
        for _ in range(count + 1):
            if f["ring_words"] and at >= f["ring_base"] + f["ring_words"]:
                at -= f["ring_words"]
            yield at
            at += pitch

    def _rows(self, f):
        """First act word of each (output row, tap row)."""
        for _, top in zip(range(f["ny"]), self._row(f, f["act_base"], f["ny"], f["sy"])):
            yield [row for _, row in zip(range(f["kh"]), self._row(f, top, f["kh"], f["skh"]))]

    def conv(self, f, act, valid, wgt):
        pairs = sorted(((a, w) for a in range(f["a_bits"]) for w in range(f["w_bits"])), key=lambda p: (p[0] + p[1], p[1]))
        for rows in self._rows(f):
            for x in range(f["nx"]):
                for g in range(f["ng"]):
                    for a, w in pairs:
                        for r, row in enumerate(rows):
                            for t in range(f["kw"]):
                                for c in range(f["nc"]):
                                    at = row + x * f["sx"] + g * f["sg"] + t * f["skw"] + c * f["sc"] + a
                                    weight = f["wgt_base"] + g * f["wgt_g"] + (r * f["kw"] + t) * f["wgt_tap"] + c * f["w_bits"]
                                    word = act[at] * valid[at][:, None] if f["a_kind"] == Kind.BIPOLAR else act[at]
                                    self._step(word, wgt[weight + w])

    def _step(self, act, wgt):
        self._take_act(act)
        if self.wgt is not None:
            self.wgt_flips += int((self.wgt != wgt).sum())
        self.wgt = wgt.copy()
        self.ones += int((act[:, None] & wgt[None]).sum())

    def _take_act(self, act):
        if self.act is not None:
            self.act_flips += int((self.act != act).sum())
        self.act = act.copy()

    def pool(self, f, act):
        for rows in self._rows(f):
            for x in range(f["nx"]):
                for g in range(f["ng"]):
                    for row in rows:
                        for t in range(f["kw"]):
                            for plane in range(f["planes"]):
                                self._take_act(act[row + x * f["sx"] + g * f["planes"] + t * f["skw"] + plane])

    @property
    def counters(self) -> dict:
        return {Counter.ARRAY_ONES: self.ones, Counter.ACT_FLIPS: self.act_flips, Counter.WGT_FLIPS: self.wgt_flips}


@pytest.mark.unit
@pytest.mark.parametrize("name", ["2x4x32", "1x1x32", "4x16x128"])
def test_isa_simulator_counts_what_a_walk_of_the_steps_does(name):
    rng = np.random.default_rng(len(name))
    machine, walk = Machine(bench.CONFIGS[name], np.zeros(64, np.uint8)), Walk()
    bench.fill(machine, rng)
    for number in range(12):
        kind = "POOL" if number % 4 == 2 else "CONV"
        fields = bench.random_pool(rng, machine.config) if kind == "POOL" else bench.random_conv(rng, machine.config)
        fields = isa.decode(isa.encode(kind, **fields))[1]
        machine.step(isa.BY_NAME[kind], fields)
        walk.pool(fields, machine.act) if kind == "POOL" else walk.conv(fields, machine.act, machine.valid, machine.wgt)
        assert {c: machine.counters[c] for c in walk.counters} == walk.counters, (number, kind, fields)
    assert min(walk.counters.values()) > 1000


@pytest.fixture(scope="module")
def library():
    from seriatim.sim.rtl import library

    return library(CONFIG)


def draw(rng) -> dict:
    """A CONV of bits of every width, whose words are all loaded."""
    most = dict(a_bits=8, w_bits=4, nx=3, ng=3, kw=3, out_planes=8)
    f = {name: int(rng.integers(1, high + 1)) for name, high in most.items()}
    f |= dict(a_kind=int(rng.integers(3)), w_kind=int(rng.integers(3)), wgt_tap=int(rng.integers(2)), wgt_g=int(rng.integers(3)))
    return f | dict(ny=2, sy=64, sx=8, skw=16, sg=8, kh=2, skh=96, output=Output.PLANES)


@pytest.mark.rtl
@pytest.mark.parametrize("seed", range(4))
def test_rtl_counts_what_a_walk_of_the_steps_does(library, seed):
    """Two layers of random widths, each with loads, a CONV and a POOL: the activity of both, by layer and in all."""
    from seriatim.sim.rtl import RtlSession

    rng = np.random.default_rng(seed)
    convs = [isa.decode(isa.encode("CONV", **draw(rng)))[1] for _ in range(2)]
    pool = isa.decode(isa.encode("POOL", nx=2, ng=1, kw=2, sx=4, skw=3, planes=int(rng.integers(1, 9)), act_base=5))[1]
    loads = [("LOAD", dict(buffer=Buffer.ACT, dram=BASE, slices=3, slice_pitch=0x1000, words=512)),
             ("LOAD", dict(buffer=Buffer.WGT, dram=WEIGHTS, words=16)),
             ("LOAD", dict(buffer=Buffer.PRM, dram=WEIGHTS, words=4, signal=Sem.ACT_READY)),
             ("FILL", dict(wait=Sem.OUT_READY, mask=5, words=7, ny=3, row_pitch=9, planes=4, code=5, valid=0,
                           signal=Sem.ACT_READY))]
    code = b"".join(isa.encode(name, **fields) for name, fields in (
        ("MARK", dict(layer=0)), *loads[:3], ("CONV", convs[0] | dict(wait=Sem.ACT_READY, signal=Sem.OUT_READY)),
        ("MARK", dict(layer=1)), loads[3], ("CONV", convs[1] | dict(wait=Sem.ACT_READY)), ("POOL", pool), ("END", {})))
    memory = rng.integers(0, 256, SIZE, np.uint8)
    with RtlSession(CONFIG, SIZE, BASE, library_path=library) as session:
        session.write(BASE, memory)
        counts = session.run(Program(code, PROGRAM, (BASE, WRITE), (WRITE, PROGRAM), layers=2), watchdog=3000)

    def bits(at, *shape):
        return np.unpackbits(memory[at - BASE:][:8 * np.prod(shape)].reshape(*shape, 8), axis=-1, bitorder="little")

    act = np.stack([bits(BASE + 0x1000 * s, 512) for s in range(3)], axis=1)
    wgt, valid = bits(WEIGHTS, 16, 4), np.ones((512, 3), np.uint8)
    walk = Walk()
    walk.conv(convs[0], act, valid, wgt)
    first = walk.counters
    for y in range(3):
        words = 9 * y + np.arange(7)
        for s in (0, 2):
            act[words, s] = (5 >> (3 - np.arange(7) % 4) & 1)[:, None]
            valid[words, s] = 0
    walk.conv(convs[1], act, valid, wgt)
    walk.pool(pool, act)
    assert {c: counts.total[c] for c in first} == walk.counters
    assert {c: counts.layers[0][c] for c in first} == first

    planes = [f["ny"] * f["nx"] * f["out_planes"] for f in convs]
    assert {c: counts.total[c] for c in ACTIVITY_COUNTERS if c not in first} == {
        Counter.ACT_WRITES: 3 * 512 + 2 * 3 * 7, Counter.RES_WRITES: 0, Counter.WGT_WRITES: 16 * 4, Counter.PRM_WRITES: 4 * 4,
        Counter.RES_READS: 0, Counter.OUT_WRITES: sum(planes) + 2 * pool["planes"], Counter.PSUM_READS: 0, Counter.PSUM_WRITES: 0,
        Counter.SHIFT_STEPS: 0, Counter.SHIFT_ACT_READS: 0, Counter.SHIFT_WGT_READS: 0}


@pytest.mark.unit
def test_a_synthesised_machine_has_no_activity_counters():
    """Neither the sums nor the second profile memory are there; a MARK takes as long either way."""
    from seriatim.hw.activity import ARRAY_ACTIVITY, MEMORY_ACTIVITY
    from seriatim.hw.convert import to_rtlil
    from seriatim.hw.counters import Counters
    from seriatim.hw.top import Seriatim

    assert set(ARRAY_ACTIVITY + MEMORY_ACTIVITY) == set(ACTIVITY_COUNTERS)
    assert Counters.OWN + len(ACTIVITY_COUNTERS) == len(Counter)
    small = Config(2, 4, 32, 32, act_words=16, wgt_words=16, prm_words=16, res_words=16, out_words=16, psum_words=16)
    plain, simulated = (to_rtlil(Seriatim(small, simulation), "top") for simulation in (False, True))
    for name in ("act_known", "activity_profile"):
        assert name not in plain and name in simulated
