"""Each operator's reference on the CPU against plain loops over Python integers."""

import itertools

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

import seriatim.algo.ops  # noqa: F401  registers the torch operators
from seriatim.compiler import ops, runtime
from seriatim.errors import CompileError
from seriatim.formats import Format
from seriatim.sim.requant import encode, requant

pytestmark = pytest.mark.unit


def run(op, tensors, attrs):
    """Result of one operator, its first input given at run time and the others as constants."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(tensors[0].shape, str(tensors[0].dtype)))
    with builder.function("main", [x]):
        with builder.dataflow():
            call = ops.make(ops.PREFIX + op, [x, *(relax.const(array, str(array.dtype)) for array in tensors[1:])], attrs)
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    machine = relax.VirtualMachine(relax.build(builder.get(), "llvm"), tvm.cpu())
    return runtime.call(machine["main"], tensors[:1])


def value(code, kind, bits, zero=0):
    return {"uint": code - zero, "int": code, "bipolar": 2 * code - (2**bits - 1)}[kind]


def codes(rng, kind, bits, shape):
    low = -(2 ** (bits - 1)) if kind == "int" else 0
    return rng.integers(low, low + 2**bits, shape).astype(np.int32)


def taps(n_in, n_out, kernel, stride, before, dilation):
    """For each output index, the (kernel index, input index) pairs that lie inside."""
    for out in range(n_out):
        pairs = ((k, out * stride + k * dilation - before) for k in range(kernel))
        yield [(k, i) for k, i in pairs if 0 <= i < n_in]


def out_size(n_in, kernel, stride, before, after, dilation):
    return (n_in + before + after - (dilation * (kernel - 1) + 1)) // stride + 1


def windows(shape, kernel, stride, padding, dilation):
    """Every output position with the taps inside: ((y, x), [((ky, kx), (iy, ix)), ...])."""
    sizes = [out_size(shape[2 + d], kernel[d], stride[d], padding[d], padding[2 + d], dilation[d]) for d in (0, 1)]
    axes = [list(taps(shape[2 + d], sizes[d], kernel[d], stride[d], padding[d], dilation[d])) for d in (0, 1)]
    positions = [
        ((y, x), [((ky, kx), (iy, ix)) for ky, iy in axes[0][y] for kx, ix in axes[1][x]])
        for y, x in itertools.product(range(sizes[0]), range(sizes[1]))
    ]
    return sizes, positions


def read(x, stored, reader):
    """Values that a reader of the top planes sees; a format here is (kind, bits, zero)."""
    return value(x.astype(object) >> (stored[1] - reader[1]), *reader)


CONVS = [
    # x stored, x read, w kind and bits, shape, out channels, kernel, stride, padding, dilation, groups
    (("uint", 8, 0), ("uint", 8, 0), ("int", 8), (1, 3, 9, 8), 5, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    (("uint", 8, 0), ("uint", 4, 0), ("int", 4), (2, 6, 5, 7), 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (("uint", 8, 48), ("uint", 4, 3), ("bipolar", 1), (1, 4, 6, 5), 3, (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 1),
    (("int", 8, 0), ("int", 5, 0), ("bipolar", 2), (1, 6, 7, 7), 6, (3, 3), (1, 2), (2, 0, 1, 1), (2, 1), 2),
    (("bipolar", 3, 0), ("bipolar", 2, 0), ("bipolar", 1), (1, 8, 6, 6), 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
    (("int", 16, 0), ("int", 8, 0), ("int", 8), (2, 5, 4, 4), 3, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (("uint", 8, 0), ("uint", 8, 0), ("int", 2), (2, 7, 1, 1), 11, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (("uint", 1, 0), ("uint", 1, 0), ("bipolar", 1), (1, 4, 5, 6), 10, (5, 6), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


def text(fmt):
    return f"{fmt[0]}{fmt[1]}" + (f"z{fmt[2]}" if fmt[2] else "")


@pytest.mark.parametrize("case", CONVS, ids=lambda case: f"{text(case[0])}:{text(case[1])}-{case[2][0]}{case[2][1]}")
def test_qconv2d_is_the_sum_of_products(rng, case):
    stored, reader, (kind, bits), shape, cout, kernel, stride, padding, dilation, groups = case
    x = codes(rng, *stored[:2], shape)
    w = value(codes(rng, kind, bits, (cout, shape[1] // groups, *kernel)), kind, bits).astype(np.int32)
    got = run("qconv2d", [x, w], dict(
        stride=stride, padding=padding, dilation=dilation, groups=groups, x_format=f"{text(stored)}:{text(reader)}",
        w_format=f"{kind}{bits}",
    ))
    values, per_group = read(x, stored, reader), shape[1] // groups
    sizes, positions = windows(shape, kernel, stride, padding, dilation)
    want = np.zeros((shape[0], cout, *sizes), object)
    for n, o in itertools.product(range(shape[0]), range(cout)):
        first = o // (cout // groups) * per_group
        for at, inside in positions:
            want[n, o][at] = sum(
                values[n, first + c, iy, ix] * int(w[o, c, ky, kx]) for c in range(per_group) for (ky, kx), (iy, ix) in inside
            )
    assert len(np.unique(want)) > 5
    np.testing.assert_array_equal(got, want.astype(np.int64))


@pytest.mark.parametrize("fmt", [("uint", 8, 0), ("int", 4, 0), ("bipolar", 3, 0)], ids=text)
def test_qmaxpool2d_pads_with_the_smallest_code(rng, fmt):
    shape, kernel, stride, padding, dilation = (2, 3, 7, 6), (3, 2), (2, 1), (1, 0, 1, 1), (1, 2)
    x = codes(rng, *fmt[:2], shape)
    attrs = dict(kernel=kernel, stride=stride, padding=padding, dilation=dilation, x_format=text(fmt), name="p")
    got = run("qmaxpool2d", [x], attrs)
    sizes, positions = windows(shape, kernel, stride, padding, dilation)
    want = np.empty((*shape[:2], *sizes), np.int64)
    for n, c in itertools.product(range(2), range(3)):
        for at, inside in positions:
            want[n, c][at] = max(int(x[n, c, iy, ix]) for _, (iy, ix) in inside)
    np.testing.assert_array_equal(got, want)


def test_a_max_pool_window_that_lies_in_the_padding_gives_the_smallest_code():
    x = np.full((1, 1, 2, 2), 3, np.int32)
    got = run("qmaxpool2d", [x], dict(kernel=[1, 1], stride=[3, 3], padding=[1] * 4, dilation=[1, 1], x_format="int4", name="p"))
    np.testing.assert_array_equal(got[0, 0], [[-8, -8], [-8, -8]])


@pytest.mark.parametrize("stored, reader", [(("uint", 8, 0), ("uint", 8, 0)), (("int", 12, 0), ("int", 6, 0)),
                                            (("uint", 6, 8), ("uint", 4, 2)), (("bipolar", 2, 0), ("bipolar", 2, 0))])
def test_qsumpool2d_pads_with_the_value_zero(rng, stored, reader):
    shape, kernel, stride, padding = (2, 3, 6, 7), (3, 3), (2, 1), (1, 1, 0, 1)
    x = codes(rng, *stored[:2], shape)
    got = run("qsumpool2d", [x], dict(kernel=kernel, stride=stride, padding=padding, x_format=f"{text(stored)}:{text(reader)}"))
    values = read(x, stored, reader)
    sizes, positions = windows(shape, kernel, stride, padding, (1, 1))
    want = np.empty((*shape[:2], *sizes), object)
    for n, c in itertools.product(range(2), range(3)):
        for at, inside in positions:
            want[n, c][at] = sum(values[n, c, iy, ix] for _, (iy, ix) in inside)
    np.testing.assert_array_equal(got, want.astype(np.int64))


@pytest.mark.parametrize("parameters", [(4,), (4, 3, 5), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("shift, lo, hi", [(0, -(2**31), 2**31 - 1), (31, 0, 255), (40, -8, 7), (63, -1, 0)])
@pytest.mark.parametrize("residual", [False, True])
def test_requant_floors_in_64_bits(rng, parameters, shift, lo, hi, residual):
    shape = (2, 4, 3, 5)
    acc = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    m = rng.integers(-(2**30), 2**30, parameters).astype(np.int32)
    b = rng.integers(-(2**60), 2**60, parameters)
    res = rng.integers(0, 16, shape).astype(np.int32)
    m2 = -(2**31) + 12345
    attrs = dict(shift=shift, lo=lo, hi=hi, name="r")
    if residual:
        got = run("requant_add", [acc, res, m, b], attrs | dict(m2=m2, res_format="bipolar4"))
    else:
        got = run("requant", [acc, m, b], attrs)
    at = (slice(None), None, None) if len(parameters) == 1 else ()
    total = m.astype(object)[at] * acc.astype(object) + b.astype(object)[at]
    if residual:
        total = total + m2 * (2 * res.astype(object) - 15)
    assert -(2**63) <= total.min() and total.max() < 2**63
    want = np.clip(total >> shift, lo, hi).astype(np.int64)
    assert len(np.unique(want)) > 1
    np.testing.assert_array_equal(got, want)


POINTWISE = dict(stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, x_format="uint8", w_format="int2")


@pytest.mark.parametrize("x_format, reason", [
    ("uint4:uint8", "top planes"), ("uint8:int4", "top planes"), ("uint8z3:uint4", "multiple of 16"),
    ("codebook2", "table is not said"),
])
def test_a_format_that_nobody_can_read_is_refused(x_format, reason):
    x, w = np.zeros((1, 1, 2, 2), np.int32), np.ones((1, 1, 1, 1), np.int32)
    with pytest.raises((CompileError, ValueError), match=reason):
        run("qconv2d", [x, w], POINTWISE | dict(x_format=x_format))


@pytest.mark.parametrize("change, reason", [
    (dict(w=np.ones((2, 3, 1, 1), np.int32)), "4 channels in 1 groups"),
    (dict(w=np.ones((2, 4, 9, 9), np.int32)), "larger than its input"),
    (dict(x=np.zeros((1, 4, 5, 5), np.int64)), "must be int32"),
])
def test_shapes_and_types_are_checked(change, reason):
    given = dict(x=np.zeros((1, 4, 5, 5), np.int32), w=np.ones((2, 4, 1, 1), np.int32)) | change
    with pytest.raises(CompileError, match=reason):
        run("qconv2d", list(given.values()), POINTWISE)


def parts(text, code):
    """Value of a code by the contract: an integer, or of a log (sign, exponent, residue classes)."""
    kind = "".join(itertools.takewhile(str.isalpha, text))
    if kind == "codebook":
        return [int(entry) for entry in text[text.index("[") + 1 : -1].split(",")][code]
    if kind != "log":
        return value(code, kind, int(text.removeprefix(kind)))
    bits, _, rest = text.removeprefix("log").partition("r")
    classes, _, step = rest.rstrip("s").partition("k")
    magnitude = int(bits) - rest.endswith("s")
    place = (code & (1 << magnitude) - 1) - 1
    return 0 if place < 0 else (-1 if code >> magnitude else 1, place * int(step or 1), int(classes))


def times(w, x):
    """Product of two such values, in the contract's integers."""
    if w == 0 or x == 0:
        return 0
    logs = [v for v in (w, x) if isinstance(v, tuple)]
    classes = max((v[2] for v in logs), default=1)
    position = sum(v[1] * classes // v[2] for v in logs)
    factor = round(2 ** (position % classes / classes) * 2**14) if classes > 1 else 1
    for v in (w, x):
        factor *= v[0] if isinstance(v, tuple) else v
    return factor * 2 ** (position // classes)


@pytest.mark.parametrize("w_format, x_format, drop", [
    ("log4r1s", "log4r1", 3), ("log4r2s", "log3r8k3", 14), ("log3r2s", "uint4", 0), ("codebook2[-9,-2,2,9]", "log4r4", 7),
    ("int4", "log3r2k3", 5), ("codebook2[-900,-20,20,900]", "codebook2[0,3,7,9]", 0),
])
def test_log_and_codebook_convolutions(w_format, x_format, drop):
    rng = np.random.default_rng(11)
    x = rng.integers(0, 2 ** Format.parse(x_format).bits, (1, 4, 5, 4)).astype(np.int32)
    form = Format.parse(w_format)
    patterns = rng.integers(form.lo, form.hi + 1, (3, 2, 2, 3))
    w = np.vectorize(lambda c: times(parts(w_format, c), 1), otypes=[np.int32])(patterns)
    attrs = dict(stride=[1, 2], padding=[1, 0, 0, 1], dilation=[1, 1], groups=1, x_format=x_format,
                 w_format=w_format.partition("[")[0], drop=drop)
    x = x[:, :2]
    (rows, columns), positions = windows(x.shape, (2, 3), (1, 2), (1, 0, 0, 1), (1, 1))
    want = np.zeros((1, 3, rows, columns), object)
    for o, ((y, z), inside) in itertools.product(range(3), positions):
        for c, ((ky, kx), (iy, ix)) in itertools.product(range(2), inside):
            want[0, o, y, z] += times(parts(w_format, int(patterns[o, c, ky, kx])), parts(x_format, int(x[0, c, iy, ix])))
    want = want >> drop
    np.testing.assert_array_equal(run("qconv2d", [x, w], attrs), want.astype(np.int64))
    got = torch.ops.seriatim.qconv2d(torch.from_numpy(x), torch.from_numpy(w), *attrs.values())
    np.testing.assert_array_equal(got.numpy(), want.astype(np.int64))
    pooled = run("qsumpool2d", [x], dict(kernel=[2, 2], stride=[2, 1], padding=[0] * 4, x_format=x_format, drop=drop))
    values = np.vectorize(lambda c: times(parts(x_format, c), 1), otypes=[object])(x)
    assert pooled[0, 1, 1, 2] == values[0, 1, 2:4, 2:4].sum() >> drop


def test_requantisation_by_a_table():
    rng = np.random.default_rng(3)
    acc, res = rng.integers(-(2**30), 2**30, (2, 3, 4, 5)).astype(np.int32), rng.integers(-8, 8, (2, 3, 4, 5)).astype(np.int32)
    m, b = rng.integers(2**20, 2**24, 3).astype(np.int32), rng.integers(-(2**50), 2**50, 3)
    thresholds = np.sort(rng.integers(-(2**21), 2**21, 7)).astype(np.int32)
    v = m.astype(object)[:, None, None] * acc + 2**30 * res.astype(object) + b.astype(object)[:, None, None] >> 33
    want = sum((v >= int(t)).astype(np.int64) for t in thresholds)
    assert len(np.unique(want)) == 8
    rest = dict(m2=2**30, shift=33, res_format="int4", name="x")
    np.testing.assert_array_equal(run("requant_add_table", [acc, res, m, b, thresholds], rest), want)
    got = torch.ops.seriatim.requant_add_table(*map(torch.from_numpy, (acc, res, m, b, thresholds)), *rest.values())
    np.testing.assert_array_equal(got.numpy(), want)
    full = requant(acc, m, b, 33, -(2**63), 2**63 - 1, res=res, m2=2**30)
    np.testing.assert_array_equal(encode(full, thresholds), want)
    plain = run("requant_table", [acc, m, b, thresholds], dict(shift=33, name="x"))
    np.testing.assert_array_equal(plain, encode(requant(acc, m, b, 33, -(2**63), 2**63 - 1), thresholds))
