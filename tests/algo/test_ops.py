"""The integer operators against loops of Python integers written from the contract alone."""

import random

import numpy as np
import pytest
import torch

from seriatim.algo import ops  # noqa: F401  registers the operators
from seriatim.errors import ConfigError
from seriatim.sim.requant import requant as numpy_requant

CALL = torch.ops.seriatim


def value(code, text):
    kind = text.rstrip("0123456789")
    bits = int(text[len(kind) :])
    return {"uint": code, "int": code, "bipolar": 2 * code - (2**bits - 1)}[kind]


def brute_conv(x, w, stride, padding, dilation, groups, stored, read):
    drop = int("".join(filter(str.isdigit, stored))) - int("".join(filter(str.isdigit, read)))
    n, _, height, width = x.shape
    out, per, kh, kw = w.shape
    top, left, bottom, right = padding
    oh = (height + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    result = np.zeros((n, out, oh, ow), object)
    for i, o, y, z in np.ndindex(n, out, oh, ow):
        total = 0
        for c, a, b in np.ndindex(per, kh, kw):
            row = y * stride[0] - top + a * dilation[0]
            column = z * stride[1] - left + b * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                code = int(x[i, o // (out // groups) * per + c, row, column]) >> drop
                total += value(code, read) * int(w[o, c, a, b])
        result[i, o, y, z] = total
    return result


@pytest.mark.parametrize("seed", range(12))
def test_conv_equals_brute_force(seed):
    print("seed", seed)
    rng = random.Random(seed)
    groups = rng.choice([1, 1, 2])
    cin, out = groups * rng.randint(1, 4), groups * rng.randint(1, 3)
    kernel = rng.randint(1, 3), rng.randint(1, 3)
    stride = [rng.randint(1, 2), rng.randint(1, 3)]
    padding = [rng.randint(0, 2) for _ in range(4)]
    dilation = [rng.randint(1, 2), rng.randint(1, 2)]
    size = rng.randint(5, 8), rng.randint(5, 8)
    stored, read = rng.choice(
        [("uint8", "uint8"), ("uint8", "uint4"), ("uint8", "uint1"), ("int8", "int8"),
         ("int8", "int3"), ("uint2", "uint2"), ("bipolar2", "bipolar1"), ("uint16", "uint16")]
    )  # fmt: skip
    numbers = np.random.default_rng(seed)
    low = -128 if stored == "int8" else 0
    high = low + 2 ** int(stored.lstrip("uintbpolar"))
    x = torch.from_numpy(numbers.integers(low, high, (2, cin, *size), np.int32))
    bits = rng.randint(1, 8)
    w = torch.from_numpy(numbers.integers(-(2**bits), 2**bits, (out, cin // groups, *kernel), np.int32))
    args = stride, padding, dilation, groups
    found = CALL.qconv2d(x, w, *args, f"{stored}:{read}", f"int{bits + 1}")
    assert found.dtype == torch.int32
    assert (found.numpy() == brute_conv(x.numpy(), w.numpy(), *args, stored, read)).all()


def test_conv_is_exact_above_the_range_of_float32():
    """W4A8 at K = 4608 passes 2^24; a sum of odd terms there shows any rounding."""
    x = torch.full((1, 4608, 1, 1), 255, dtype=torch.int32)
    x[0, ::2] = 253
    w = torch.full((2, 4608, 1, 1), 15, dtype=torch.int32)
    w[1, 0] = -13
    found = CALL.qconv2d(x, w, [1, 1], [0] * 4, [1, 1], 1, "uint8:uint8", "bipolar4")
    expected = (x.long().flatten() * w.long().flatten(1)).sum(1)
    assert int(expected.min()) > 1 << 24
    assert found.flatten().tolist() == expected.tolist()


@pytest.mark.parametrize("batch, size, channels, kernel", [(1, 16, 64, 3), (17, 8, 32, 3), (1, 7, 16, 7)])
def test_float32_where_it_is_chosen_equals_integers(batch, size, channels, kernel):
    """Shapes for which libraries like to transform (Winograd): any rounding would show."""
    rng = np.random.default_rng(9)
    x = torch.from_numpy(rng.integers(0, 256, (batch, channels, size, size), np.int32))
    w = torch.from_numpy(rng.choice([-1, 1], (24, channels, kernel, kernel)).astype(np.int32))
    half = kernel // 2
    found = CALL.qconv2d(x, w, [1, 1], [half] * 4, [1, 1], 1, "uint8:uint8", "bipolar1")
    columns = torch.nn.functional.unfold(x.double(), kernel, padding=half).long()
    expected = w.flatten(1).long() @ columns
    assert torch.equal(found.long().flatten(2), expected)


@pytest.mark.parametrize("seed", range(6))
def test_requant_equals_big_integers_and_numpy(seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    shape = (2, 3, 4, 5)
    acc = rng.integers(-(2**31), 2**31, shape)
    m = rng.integers(-(2**31), 2**31, 3)
    b = rng.integers(-(2**61), 2**61, 3)
    res = rng.integers(-128, 128, shape)
    m2, shift = int(rng.integers(-(2**31), 2**31)), int(rng.integers(0, 64))
    lo, hi = (-128, 127) if seed % 2 else (0, 255)
    for residual in (None, res):
        expected = np.zeros(shape, np.int64)
        for index in np.ndindex(shape):
            total = int(m[index[1]]) * int(acc[index]) + int(b[index[1]])
            total += m2 * int(residual[index]) if residual is not None else 0
            expected[index] = min(max(total >> shift, lo), hi)
        assert (numpy_requant(acc, m, b, shift, lo, hi, residual, m2) == expected).all()
        head = torch.from_numpy(acc).int(),
        tail = torch.from_numpy(m).int(), torch.from_numpy(b)
        if residual is None:
            found = CALL.requant(*head, *tail, shift, lo, hi, "layer")
        else:
            other = torch.from_numpy(res).int()
            found = CALL.requant_add(*head, other, *tail, m2, shift, lo, hi, "int8", "layer")
        assert found.dtype == torch.int32
        assert (found.numpy() == expected).all()


def test_requant_floors_and_half_is_the_callers():
    acc = torch.tensor([-3, -2, -1, 0, 1, 2, 3], dtype=torch.int32).view(1, 1, 1, 7)
    one, zero = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    plain = CALL.requant(acc, one, zero, 1, -9, 9, "")
    assert plain.flatten().tolist() == [-2, -1, -1, 0, 0, 1, 1]
    rounded = CALL.requant(acc, one, zero + 1, 1, -9, 9, "")
    assert rounded.flatten().tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_requant_takes_parameters_of_each_position():
    acc = torch.full((1, 2, 2, 2), 6, dtype=torch.int32)
    m = torch.arange(1, 5, dtype=torch.int32).view(1, 2, 2)
    found = CALL.requant(acc, m, torch.zeros(1, 2, 2, dtype=torch.int64), 1, 0, 255, "")
    assert found[0, 1].tolist() == [[3, 6], [9, 12]]


@pytest.mark.parametrize("text, low", [("uint8", 0), ("int8", -128)])
def test_max_pool_equals_brute_force(text, low):
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.integers(low, low + 256, (2, 3, 7, 6), np.int32))
    x[0, 0] = low
    found = CALL.qmaxpool2d(x, [3, 2], [2, 1], [1, 0, 1, 2], [1, 2], text, "pool")
    padded = np.full((2, 3, 9, 8), low)
    padded[:, :, 1:8, 0:6] = x.numpy()
    for n, c, y, z in np.ndindex(*found.shape):
        window = padded[n, c, 2 * y : 2 * y + 3, z : z + 3 : 2]
        assert window.shape == (3, 2)
        assert found[n, c, y, z] == window.max()


def test_sum_pool_equals_brute_force():
    rng = np.random.default_rng(6)
    x = torch.from_numpy(rng.integers(0, 256, (2, 3, 7, 7), np.int32))
    found = CALL.qsumpool2d(x, [3, 3], [2, 2], [1, 1, 1, 1], "uint8")
    padded = np.pad(x.numpy().astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for n, c, y, z in np.ndindex(*found.shape):
        assert found[n, c, y, z] == padded[n, c, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3].sum()


def test_refuses_a_reader_that_is_wider():
    with pytest.raises(ConfigError, match="uint4"):
        ops.parse_x_format("uint4:uint8")
    with pytest.raises(ConfigError, match="top planes"):
        ops.parse_x_format("uint8:int4")


def test_operators_pass_torchs_own_checks():
    x = torch.randint(0, 256, (1, 2, 6, 6), dtype=torch.int32)
    w = torch.randint(-1, 2, (3, 2, 3, 3), dtype=torch.int32)
    arguments = (x, w, [2, 1], [1, 0, 1, 1], [1, 1], 1, "uint8:uint4", "int2")
    torch.library.opcheck(ops.qconv2d, arguments)
    arguments = (x, [3, 3], [2, 2], [1, 1, 1, 1], [1, 1], "uint8", "pool")
    torch.library.opcheck(ops.qmaxpool2d, arguments)
    torch.library.opcheck(ops.qsumpool2d, (x, [6, 6], [6, 6], [0, 0, 0, 0], "uint8"))
