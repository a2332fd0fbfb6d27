"""The ISA simulator against plain arithmetic, and its errors. Whole layers are compared in test_random_layers."""

import numpy as np
import pytest

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.formats import Kind
from seriatim.isa import Buffer, Output, Sem
from seriatim.sim.isasim import Machine, plane_values

CONFIG = Config(m=2, n=4, k=32, axi_bits=32, max_planes=12, act_words=256, wgt_words=128, out_words=128, res_words=64)
END = isa.encode("END")


def machine(seed=0, size=1 << 14, **ranges):
    rng = np.random.default_rng(seed)
    return Machine(CONFIG, rng.integers(0, 256, size, dtype=np.uint8), **ranges)


def randomise(m, seed=1):
    rng = np.random.default_rng(seed)
    for name in ("act", "valid", "wgt", "res"):
        array = getattr(m, name)
        array[:] = rng.integers(0, 2, array.shape)
    m.prm_m[:] = rng.integers(-1000, 1000, m.prm_m.shape)
    m.prm_b[:] = rng.integers(-100000, 100000, m.prm_b.shape)


def execute(m, name, **fields):
    m.step(*isa.decode(isa.encode(name, **fields)))


def code(bits, kind):
    value = int("".join(map(str, bits)), 2)
    if kind == Kind.INT and bits[0]:
        value -= 1 << len(bits)
    return 2 * value - (1 << len(bits)) + 1 if kind == Kind.BIPOLAR else value


@pytest.mark.parametrize("kind", [Kind.UINT, Kind.INT, Kind.BIPOLAR])
def test_plane_values(kind):
    planes = np.random.default_rng(3).integers(0, 2, (5, 40))
    assert [code(column, kind) for column in planes.T] == plane_values(planes, kind).tolist()


@pytest.mark.parametrize("a_kind", [Kind.UINT, Kind.INT, Kind.BIPOLAR])
@pytest.mark.parametrize("w_kind", [Kind.UINT, Kind.INT, Kind.BIPOLAR])
def test_conv_is_the_sum_of_products(a_kind, w_kind):
    m = machine()
    randomise(m)
    f = dict(act_base=20, ring_base=10, ring_words=60, ny=2, nx=2, ng=2, kh=2, kw=2, nc=2, sy=20, sx=4, skh=20, skw=4, sc=3,
             a_kind=a_kind, a_bits=3, w_kind=w_kind, w_bits=2, wgt_base=5, wgt_g=16, wgt_tap=4, output=Output.PSUM)
    execute(m, "CONV", **f)
    for p in range(4):
        for g in range(2):
            for row in range(2):
                for column in range(4):
                    total = 0
                    for r in range(2):
                        for t in range(2):
                            for c in range(2):
                                at = 20 + p // 2 * 20 + r * 20  # at most twice past the end of the ring
                                at = (at - 60 if at >= 70 else at) + p % 2 * 4 + t * 4 + c * 3
                                w = 5 + g * 16 + (r * 2 + t) * 4 + c * 2
                                for lane in range(32):
                                    bits = m.act[at:at + 3, row, lane]
                                    act = code(bits, a_kind)
                                    if a_kind == Kind.BIPOLAR:  # an invalid word adds nothing, whatever its plane
                                        act = sum((2 * int(bits[j]) - 1) * int(m.valid[at + j, row]) << 2 - j for j in range(3))
                                    total += act * code(m.wgt[w:w + 2, column, lane], w_kind)
                    assert m.psum[(p * 2 + g) * 2 + row, column] == total


def test_residual_psum_and_planes():
    m = machine()
    randomise(m)
    m.psum[:] = np.random.default_rng(5).integers(-500, 500, m.psum.shape)
    f = dict(nx=3, ng=2, sx=4, a_bits=4, w_bits=1, wgt_g=1, psum_add=1, psum_base=8, prm_base=3, out_planes=8, out_base=7, m2=-77,
             res_planes=3, res_signed=1, res_base=2, res_pitch=5, shift=9, lo=-128, hi=127)
    execute(m, "CONV", **f)
    for p in range(3):
        for g in range(2):
            for row in range(2):
                for n in range(4):
                    acc = sum(code(m.act[p * 4:p * 4 + 4, row, lane], Kind.UINT) * int(m.wgt[g, n, lane]) for lane in range(32))
                    acc += int(m.psum[8 + (p * 2 + g) * 2 + row, n])
                    res = code(m.res[2 + p * 5:5 + p * 5, row, g * 4 + n], Kind.INT)
                    q = (int(m.prm_m[3 + g, n]) * acc - 77 * res + int(m.prm_b[3 + g, n])) >> 9
                    assert code(m.out[7 + p * 8:15 + p * 8, row, g * 4 + n], Kind.INT) == min(max(q, -128), 127)
    assert not m.out[7:31, :, 8:].any()  # lanes beyond ng * N


def test_int32_words():
    m = machine()
    randomise(m)
    execute(m, "CONV", ng=2, a_bits=2, wgt_g=1, output=Output.INT32, out_base=3, shift=0, lo=-(1 << 31), hi=(1 << 31) - 1)
    for g in range(2):
        words = np.packbits(m.out[3 + g * 4:7 + g * 4, 1], axis=-1, bitorder="little").reshape(-1).view("<i4")
        acc = [sum(code(m.act[:2, 1, lane], Kind.UINT) * int(m.wgt[g, n, lane]) for lane in range(32)) for n in range(4)]
        assert words.tolist() == [int(m.prm_m[g, n]) * acc[n] + int(m.prm_b[g, n]) for n in range(4)]


@pytest.mark.parametrize("is_signed", [0, 1])
def test_pool_is_the_maximum(is_signed):
    m = machine()
    randomise(m)
    execute(m, "POOL", ny=1, nx=2, ng=2, kh=2, kw=2, sx=6, skh=30, skw=6, planes=3, is_signed=is_signed, out_base=1)
    kind = Kind.INT if is_signed else Kind.UINT
    for x in range(2):
        for g in range(2):
            for lane in range(32):
                at = [r * 30 + (x + t) * 6 + g * 3 for r in range(2) for t in range(2)]
                best = max(code(m.act[a:a + 3, 1, lane], kind) for a in at)
                o = 1 + (x * 2 + g) * 3
                assert code(m.out[o:o + 3, 1, lane], kind) == best


def test_patch_is_im2col_with_padding():
    m = machine()
    image = m.memory[256:256 + 6 * 32].reshape(6, 32)  # 6 rows of 9 columns x 3 channels, padded to 32 bytes
    execute(m, "PATCH", dram=256, base=4, slice=1, slices=1, y_pitch=32, height=6, width=9, channels=3, y0=-1, x0=-2, nx=4, kh=4,
            kw=3, sw=3, dh=2, dw=2, code=7, seg_bytes=64)
    for x in range(4):
        planes = m.act[4 + x * 16:4 + x * 16 + 16, 1].reshape(2, 8, 32)
        lanes = [code(planes[i // 32, :, i % 32], Kind.UINT) for i in range(64)]
        expected = []
        for r in range(4):
            for t in range(3):
                for c in range(3):
                    row, column = -1 + 2 * r, -2 + 3 * x + 2 * t
                    expected.append(int(image[row, column * 3 + c]) if 0 <= row < 6 and 0 <= column < 9 else 7)
        assert lanes == expected + [0] * (64 - 36)


def test_fill_writes_planes_of_the_code_and_validity():
    m = machine()
    m.valid[:] = 1
    execute(m, "FILL", base=10, mask=2, ny=2, row_pitch=8, words=6, planes=3, code=5, valid=0, ring_base=10, ring_words=14)
    for row in (10, 18):
        assert [int(b) for b in m.act[row:row + 6, 1, 0]] == [1, 0, 1, 1, 0, 1]
    assert not m.valid[10:16, 1].any() and m.valid[10:16, 0].all()


@pytest.mark.parametrize("instr, cause", [
    (dict(name="LOAD", dram=2, words=1), Cause.DRAM_RANGE),
    (dict(name="LOAD", dram=1 << 20, words=1), Cause.DRAM_RANGE),
    (dict(name="LOAD", base=256, words=1), Cause.BUFFER_RANGE),
    (dict(name="LOAD", buffer=Buffer.WGT, base=127, words=2), Cause.BUFFER_RANGE),
    (dict(name="LOAD", slice=1, slices=2), Cause.ILLEGAL_FIELD),
    (dict(name="LOAD", buffer=Buffer.PRM, ny=2), Cause.ILLEGAL_FIELD),
    (dict(name="FILL", mask=4), Cause.ILLEGAL_FIELD),
    (dict(name="PATCH", kh=255, height=1, width=1, channels=1, y_pitch=4), Cause.BUFFER_RANGE),
    (dict(name="CONV", engine=1), Cause.UNSUPPORTED),
    (dict(name="CONV", a_kind=Kind.LOG), Cause.UNSUPPORTED),
    (dict(name="CONV", w_kind=7), Cause.UNSUPPORTED),
    (dict(name="CONV", out_planes=13), Cause.UNSUPPORTED),
    (dict(name="POOL", planes=13), Cause.UNSUPPORTED),
    (dict(name="CONV", ng=9), Cause.ILLEGAL_FIELD),
    (dict(name="CONV", act_base=256), Cause.BUFFER_RANGE),
    (dict(name="CONV", prm_base=128), Cause.BUFFER_RANGE),
    (dict(name="POOL", act_base=255, planes=2), Cause.BUFFER_RANGE),
    (dict(name="STORE", dram=0x3000, words=1), Cause.DRAM_RANGE),
])
def test_errors_name_cause_and_instruction(instr, cause):
    instr = dict(instr)
    m = machine(write_range=(0, 0x3000))
    program = isa.encode("MARK") + isa.encode(instr.pop("name"), **instr) + END
    with pytest.raises(MachineError, match=cause.name) as error:
        m.run(program)
    assert (error.value.cause, error.value.pc) == (cause, isa.INSTR_BYTES)


def test_program_errors():
    for program, cause, pc in [
        (isa.encode("MARK"), Cause.PROGRAM_RANGE, 64), (bytes(64), Cause.ILLEGAL_OPCODE, 0),
        (isa.encode("END")[:63] + b"\1", Cause.ILLEGAL_FIELD, 0),
        (isa.encode("MARK", wait=Sem.ACT_READY) + END, Cause.WATCHDOG, 0),
        (isa.encode("MARK", signal=Sem.ACT_FREE) * 256 + END, Cause.TOKEN_OVERFLOW, 255 * 64),
    ]:
        with pytest.raises(MachineError, match=cause.name) as error:
            machine().run(program)
        assert (error.value.cause, error.value.pc) == (cause, pc)


def test_queues_run_in_any_order_that_the_semaphores_allow():
    program = isa.encode("MARK", layer=1, wait=Sem.ACT_READY) + isa.encode("LOAD", signal=Sem.ACT_READY) + END
    for order in ("load", "store", 1, 2):
        seen = []
        machine().run(program, order, lambda pc, instr, fields, seen=seen: seen.append(instr.name))
        assert seen == ["LOAD", "MARK"]
