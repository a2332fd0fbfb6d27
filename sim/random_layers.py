"""Constrained-random layers as the compiler's regions, and the same layers evaluated by PyTorch.

`draw(seed)` gives one layer with its data. Everything follows from the seed: the geometry (seeds go round `GEOMETRIES`), the
layer, the data, and requantisation parameters that spread the accumulators over the output's codes. `layer_on` draws a layer that
reads a tensor which is there already.
"""

from dataclasses import dataclass

import numpy as np

from seriatim.compiler import engines, ir, legal
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.formats import Format, Kind

GEOMETRIES = {
    "7x8x64": Config(),
    "2x4x32": Config(2, 4, 32, 32, act_words=512, wgt_words=160, prm_words=24, res_words=64, out_words=64, psum_words=64,
                     line_bytes=512, max_planes=16, marks=4, queue=4, outstanding=2, shift_lanes=4),
    "3x16x128": Config(3, 16, 128, 64, act_words=640, wgt_words=320, prm_words=32, res_words=96, out_words=96, psum_words=96,
                       line_bytes=1024, marks=8, multiplier_stages=2),
    "4x8x64": Config(4, 8, 64, 32, act_words=1024, wgt_words=512, prm_words=64, res_words=128, out_words=128, psum_words=128,
                     line_bytes=512, queue=2, outstanding=1, shift_lanes=8, shift_a_bits=5, shift_w_bits=4, shift_span=20,
                     shift_classes=2, shift_acc_bits=40),
}
"""Four machines, two of them with a shift-add engine; the small buffers make small layers split."""
COMPACT = "1x1x32"
OTHERS = {
    COMPACT: Config(1, 1, 32, 32, act_words=512, wgt_words=512, prm_words=64, res_words=64, out_words=64, psum_words=128,
                    line_bytes=512, max_planes=16, marks=4, compact=1),
}
"""Machines that are drawn by name alone: the compact one takes many cycles."""

ALIVE = 16
"""Outputs of random data from which on they must show several codes."""
MACS = 120_000
"""Most multiply-accumulates of a layer: the big-integer reference does some tens of millions a second."""
WIDTHS = tuple((w, a) for w in range(1, 9) for a in range(1, 9))
"""Every pair of widths of weights and activations."""
TURNS = 500
"""Of so many consecutive layers of a geometry the last are convolutions with each of WIDTHS, twice in a row."""


@dataclass(frozen=True)
class Case:
    """One layer with its data. `plain` data is random over the whole range, so that its outputs must be alive."""

    seed: int
    geometry: str
    layer: ir.Layer
    inputs: dict[str, np.ndarray]
    plain: bool

    @property
    def config(self) -> Config:
        return (GEOMETRIES | OTHERS)[self.geometry]

    @property
    def region(self) -> ir.Region:
        return ir.Region(self.layer.reads, (self.layer.out,), (self.layer,))

    def __str__(self):
        return f"seed {self.seed} on {self.geometry}: {describe(self.layer)}, {'random' if self.plain else 'extreme'} data"


def describe(layer: ir.Layer) -> str:
    """A layer on one line."""
    text = [type(layer).__name__, f"x {_tensor(layer.x)}"]
    if not isinstance(layer, ir.MaxPool):
        text.append(f"read {layer.x_read}")
    if isinstance(layer, ir.Conv):
        text += [f"w {layer.w_format} {'x'.join(map(str, layer.w.shape))}", f"groups {layer.groups}"]
        if layer.res:
            text.append(f"residual {layer.res.format}")
    else:
        text.append(f"kernel {layer.kernel}")
    text += [f"stride {layer.stride}", f"padding {layer.padding}", f"dilation {layer.dilation}", f"out {_tensor(layer.out)}"]
    if not isinstance(layer, ir.MaxPool):
        q = layer.requant
        text.append(f"drop {layer.drop} shift {q.shift} clip {q.lo}..{q.hi}" + " by position" * q.per_position)
        text += [f"thresholds {q.thresholds.tolist()}"] if q.thresholds is not None else []
    return ", ".join(text)


def _tensor(t: ir.Tensor) -> str:
    return f"{'x'.join(map(str, t.shape))} {t.format or 'int32'}{' image' if t.layout == 'image' else ''}"


# Drawing

def draw(seed: int, geometry: str | None = None) -> Case:
    """The layer of `seed`, for the machine whose turn it is, or that `geometry` names. What the contract does not allow
    (accumulators beyond 32 bits, an empty output), and layers whose windows all see nothing but padding, are drawn again."""
    geometry = geometry or list(GEOMETRIES)[seed % len(GEOMETRIES)]
    config = (GEOMETRIES | OTHERS)[geometry]
    rng = np.random.default_rng([seed, 0x5E51A])
    turn = seed // len(GEOMETRIES) % TURNS - (TURNS - 2 * len(WIDTHS))
    while True:
        kind = rng.choice(KINDS, p=[0.68, 0.12, 0.08, 0.12])
        more = {"image": True} if kind == "image" else {}
        if turn >= 0:
            kind, more = "conv", {"widths": WIDTHS[turn // 2]}
        case = MAKERS[kind](rng, config, **more)
        if case is not None and legal.refusal(case[0]) is None:
            return Case(seed, geometry, *case)


@dataclass(frozen=True)
class Given:
    """What a layer that joins others is to read: `x` with its `codes`; `others` may be its residual, if one fits."""

    name: str
    x: ir.Tensor
    codes: np.ndarray
    others: tuple[tuple[ir.Tensor, np.ndarray], ...]


def layer_on(rng, config: Config, given: Given) -> ir.Layer | None:
    """A random layer that reads `given.x` and writes a tensor of its own name, or None where what was drawn is not allowed."""
    kind = rng.choice(["conv", "max", "sum"], p=[0.76, 0.12, 0.12])
    case = MAKERS[kind](rng, config, given=given)
    return None if case is None or legal.refusal(case[0]) is not None else case[0]


def random_format(rng, bits: int, kinds=(Kind.UINT, Kind.UINT, Kind.INT, Kind.BIPOLAR), step: int = 1) -> Format:
    """A linear format; the zero point of a third of the uints is a multiple of `step`."""
    kind = kinds[rng.integers(len(kinds))]
    zero = int(rng.integers(0, 1 << bits)) // step * step if kind is Kind.UINT and rng.random() < 0.33 else 0
    return Format(kind, bits, zero)


def _read(rng, bits: int | None = None) -> tuple[Format, Format]:
    """(stored, read): a third of the tensors are wider than their reader."""
    bits = bits or int(rng.integers(1, 9))
    drop = int(rng.integers(1, 17 - bits)) if rng.random() < 0.33 else 0
    stored = random_format(rng, bits + drop, step=1 << drop)
    return stored, stored.top(bits)


def _reader(rng, stored: Format) -> Format | None:
    """What a reader may take of a tensor that is there already: all of it, or top planes of which its zero point is a code."""
    allowed = [bits for bits in range(1, min(stored.bits, 8) + 1) if stored.zero % (1 << stored.bits - bits) == 0]
    return None if not allowed else stored.top(allowed[-1] if rng.random() < 0.7 else _pick(rng, *allowed))


def _pick(rng, *choices) -> int:
    return int(choices[rng.integers(len(choices))])


def _channels(rng, k: int) -> int:
    """Fewer, as many or more channels than lanes."""
    return _pick(rng, rng.integers(1, 9), rng.integers(1, k), k - 1, k, k + 1, rng.integers(k, 2 * k + 4))


def _size(rng) -> tuple[int, int, int]:
    """Images, rows, columns."""
    n = _pick(rng, 1, 1, 2, rng.integers(1, 6))
    if rng.random() < 0.12:
        return _pick(rng, 1, rng.integers(1, 20)), 1, 1
    return n, int(rng.integers(1, 13)), int(rng.integers(1, 13))


def _padding(rng, kernel, dilation, most=None) -> tuple[int, ...]:
    """(top, left, bottom, right): none, the same on all sides, or each its own; now and then windows lie wholly outside."""
    extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    kind = rng.random()
    if kind < 0.25:
        return 0, 0, 0, 0
    if kind < 0.5:
        return tuple(extent[i] // 2 for i in (0, 1, 0, 1))
    return tuple(int(rng.integers(0, (extent[i] if kind > 0.95 and most is None else extent[i] - 1) + 1)) for i in (0, 1, 0, 1))


def _fits(shape) -> bool:
    return min(shape) >= 1 and np.prod(shape) <= 12_000


def _data(rng, tensor: ir.Tensor, plain: bool) -> np.ndarray:
    """Codes: random over the whole range, or all greatest, all least, or only those two."""
    lo, hi = tensor.lo, tensor.hi
    if plain:
        return rng.integers(lo, hi + 1, tensor.shape).astype(np.int32)
    return rng.choice([[lo], [hi], [lo, hi]][rng.integers(3)], tensor.shape).astype(np.int32)


def _conv(rng, config: Config, image: bool = False, widths: tuple[int, int] | None = None, given: Given | None = None):
    n, height, width = _size(rng)
    if image:
        height, width = int(rng.integers(1, 20)), int(rng.integers(1, 24))
    if given:
        n, _, height, width = given.x.shape
    kernel = tuple(_pick(rng, 1, 3, rng.integers(1, 6), rng.integers(1, 8) if image else 2) for _ in (0, 1))
    if rng.random() < 0.5:
        kernel = kernel[0], kernel[0]
    stride = tuple(_pick(rng, 1, 1, 2, 3) for _ in (0, 1))
    dilation = tuple(_pick(rng, 1, 1, 1, 2, 3) for _ in (0, 1))
    padding = _padding(rng, kernel, dilation)
    groups = 1
    if given:
        kernel, stride, padding, dilation, groups, c, out = _conv_of(rng, config, given, kernel, stride, padding, dilation)
    elif image:
        c, out = _pick(rng, 1, 3, 3, 4, rng.integers(1, 10)), int(rng.integers(1, 3 * config.n + 2))
    else:
        c = _channels(rng, config.k)
        out = _pick(rng, rng.integers(1, 2 * config.n + 2), rng.integers(1, config.k + config.n), config.k, config.n)
        kind = rng.random()
        if kind < 0.12:  # depthwise, now and then with several outputs for each channel
            groups, out = c, c * _pick(rng, 1, 1, 1, 2)
        elif kind < 0.3:
            groups = _pick(rng, 2, 3, 4, rng.integers(2, 12))
            c, out = -(-c // groups) * groups, -(-out // groups) * groups
    out_hw = ir.window_shape((height, width), kernel, stride, padding, dilation)
    shape = n, out, *out_hw
    if not _fits(shape) or n * c * height * width > 20_000 or np.prod(shape) * (c // groups) * np.prod(kernel) > MACS:
        return None
    stored, reader = _read(rng, widths and widths[1])
    if given:
        stored, reader = given.x.format, _reader(rng, given.x.format)
        if reader is None:
            return None
    elif image:
        stored = random_format(rng, 8, (Kind.UINT,))
        reader = stored
        if stored.zero == 0 and rng.random() < 0.2:
            reader = stored.top(int(rng.integers(1, 9)))
    w_bits = widths[0] if widths else int(rng.integers(1, 9))
    w_format = random_format(rng, w_bits, (Kind.BIPOLAR, Kind.BIPOLAR, Kind.INT, Kind.UINT))
    w_format = Format(w_format.kind, w_format.bits)
    plain = rng.random() < 0.88
    coded = config.shift_lanes and not given and not widths and rng.random() < 0.6
    if coded:
        w_format = _pick_format(rng, _log(rng, signed=True), Format(Kind.CODEBOOK, int(rng.integers(1, 5))), w_format)
        if w_format.linear or (not image and rng.random() < 0.6):
            stored = reader = _log(rng, signed=False)
            image = False
    x = given.x if given else ir.Tensor("x", (n, c, height, width), stored, "image" if image else "planes")
    w_shape = out, c // groups, *kernel
    if not w_format.linear:
        w = _levels(rng, w_format, plain)[rng.integers(0, 1 << w_format.bits, w_shape)].astype(np.int32)
    elif plain or rng.random() < 0.5:
        codes = rng.integers(w_format.lo, w_format.hi + 1, w_shape)
    else:
        codes = np.full(w_shape, w_format.lo if rng.random() < 0.5 else w_format.hi)
    if w_format.linear:
        w = w_format.value(codes).astype(np.int32)
    inputs = {"x": given.codes if given else _data(rng, x, plain)}
    res = None
    if given:
        fitting = [pair for pair in given.others if pair[0].shape == shape]
        if fitting and rng.random() < 0.7:
            res, inputs["res"] = fitting[rng.integers(len(fitting))]
    elif rng.random() < 0.3:
        res = ir.Tensor("res", shape, random_format(rng, int(rng.integers(1, 17))))
        inputs["res"] = _data(rng, res, plain)
    if coded and not _takes(w, w_format, reader, config):
        return None
    acc = ir.accumulate(ir.read(inputs["x"], stored, reader), reader, w, w_format, stride, padding, dilation, groups)
    most = int(np.abs(acc).max(initial=0)).bit_length()
    drop = max(0, most - _pick(rng, 30, 24, 12)) if coded and not reader.zero else 0
    acc = acc >> drop
    if not acc.any() and acc.size >= ALIVE:
        return None
    name = given.name if given else "conv"
    y, requant = _requant(rng, acc, res and ir.read(inputs["res"], res.format, res.format), shape, False, given)
    if config.shift_lanes and not given and y.format and rng.random() < 0.5:
        y, requant = _encoded(rng, y, requant)
    return ir.Conv(name, x, reader, w, w_format, stride, padding, dilation, groups, requant, res, y, drop), inputs, plain


def _pick_format(rng, *formats: Format) -> Format:
    return formats[rng.integers(len(formats))]


def _log(rng, signed: bool) -> Format:
    residues = _pick(rng, 1, 1, 2, 4, 8)
    return Format(Kind.LOG, int(rng.integers(1 + signed, 6)), residues=residues, signed=signed,
                  step=_pick(rng, *(s for s in (1, 1, 3, 5, 7) if residues > 1 or s < 4)))


def _levels(rng, fmt: Format, plain: bool) -> np.ndarray:
    """The values of a log or codebook format by code; a codebook's table is drawn."""
    if fmt.kind is Kind.LOG:
        return np.array(fmt.values, np.int64)
    most = 1 << _pick(rng, 3, 7, 15)
    table = rng.integers(-most, most, 1 << fmt.bits)
    if not plain:
        table[:] = rng.choice([-most, most - 1], len(table))
    elif rng.random() < 0.5:
        table[0] = 0
    return table


def _takes(w: np.ndarray, w_format: Format, reader: Format, config: Config) -> bool:
    """Whether an engine takes weights with activations of these formats."""
    try:
        engines.candidates("", w, w_format, reader, True, config.k, 0, config)
    except CompileError:
        return False
    return True


def _encoded(rng, y: ir.Tensor, q: ir.Requant) -> tuple[ir.Tensor, ir.Requant]:
    """An output of at most 4 bits by thresholds, among what was to be the output's codes."""
    bits = int(rng.integers(1, 5))
    count = (1 << bits) - 1
    fmt = _pick_format(rng, Format(Kind.UINT, bits), Format(Kind.LOG, bits),
                       Format(Kind.CODEBOOK, bits, table=(0, *np.cumsum(rng.integers(1, 9, count)).tolist())))
    inside = np.sort([(q.lo + q.hi + 1) // 2, *rng.integers(q.lo, q.hi + 2, count - 1)]).astype(np.int32)
    return (ir.Tensor(y.name, y.shape, fmt),
            ir.Requant(q.m, q.b, q.shift, *ir.INT32, q.m2, inside))


def _conv_of(rng, config: Config, given: Given, kernel, stride, padding, dilation):
    """(kernel, stride, padding, dilation, groups, c, out) of a convolution of `given.x`; half of them keep the map's size, and
    most of those take the channels of a tensor that could be their residual."""
    c = given.x.shape[1]
    out = int(rng.integers(1, config.k + config.n))
    if rng.random() < 0.5:
        size = _pick(rng, 1, 3, 3, 5)
        kernel, stride, dilation, padding = (size, size), (1, 1), (1, 1), (size // 2,) * 4
        near = [t.shape[1] for t, _ in given.others if t.shape[0] == given.x.shape[0] and t.shape[2:] == given.x.shape[2:]]
        out = _pick(rng, *near) if near and rng.random() < 0.8 else out
    groups = _pick(rng, 1, 1, 1, *(g for g in range(1, c + 1) if c % g == 0))
    if out % groups:
        out = -(-out // groups) * groups
    return kernel, stride, padding, dilation, groups, c, out


def _pool_shape(rng, config: Config, given: Given | None):
    n, height, width = _size(rng)
    c = _channels(rng, config.k)
    if given:
        n, c, height, width = given.x.shape
    kernel = tuple(int(rng.integers(1, 5)) for _ in (0, 1))
    return n, c, height, width, kernel, tuple(_pick(rng, 1, 2, 2, 3) for _ in (0, 1))


def _max_pool(rng, config: Config, given: Given | None = None):
    n, c, height, width, kernel, stride = _pool_shape(rng, config, given)
    dilation = tuple(_pick(rng, 1, 1, 1, 2) for _ in (0, 1))
    padding = _padding(rng, kernel, dilation, most=1)
    shape = n, c, *ir.window_shape((height, width), kernel, stride, padding, dilation)
    if not _fits(shape) or n * c * height * width > 20_000:
        return None
    plain = rng.random() < 0.9
    x = given.x if given else ir.Tensor("x", (n, c, height, width), random_format(rng, int(rng.integers(1, 17))))
    inputs = {"x": given.codes if given else _data(rng, x, plain)}
    if plain and np.prod(shape) >= ALIVE:
        largest = ir.windows(inputs["x"], kernel, stride, padding, dilation, x.lo).max(axis=(4, 5))
        if np.ptp(largest) == 0:
            return None
    name, out = (given.name, given.name) if given else ("pool", "out")
    return ir.MaxPool(name, x, kernel, stride, padding, dilation, ir.Tensor(out, shape, x.format)), inputs, plain


def _sum_pool(rng, config: Config, given: Given | None = None):
    n, c, height, width, kernel, stride = _pool_shape(rng, config, given)
    padding = _padding(rng, kernel, (1, 1))
    if rng.random() < 0.4:
        kernel, padding, stride = (height, width), (0, 0, 0, 0), (1, 1)
    shape = n, c, *ir.window_shape((height, width), kernel, stride, padding, (1, 1))
    if not _fits(shape) or n * c * height * width > 20_000:
        return None
    plain = rng.random() < 0.9
    stored, reader = (given.x.format, _reader(rng, given.x.format)) if given else _read(rng)
    if reader is None:
        return None
    x = given.x if given else ir.Tensor("x", (n, c, height, width), stored)
    inputs = {"x": given.codes if given else _data(rng, x, plain)}
    acc = ir.windows(ir.read(inputs["x"], stored, reader), kernel, stride, padding, (1, 1), 0).sum(axis=(4, 5))
    y, requant = _requant(rng, acc, None, shape, rng.random() < 0.3, given)
    return ir.SumPool(given.name if given else "pool", x, reader, kernel, stride, padding, requant, y), inputs, plain


KINDS = ["conv", "image", "max", "sum"]
MAKERS = {"conv": _conv, "image": _conv, "max": _max_pool, "sum": _sum_pool}


def _requant(rng, acc, res, shape, per_position: bool, given: Given | None) -> tuple[ir.Tensor, ir.Requant]:
    """The output tensor, and parameters that spread `acc` (and `res`) over its codes, with any shift that the sizes allow."""
    out = given.name if given else "out"
    if rng.random() < 0.12:
        y = ir.Tensor(out, shape, None, "int32")
        lo, hi = ir.INT32
        if rng.random() < 0.5 and res is None and not per_position:
            return y, ir.Requant(np.ones(shape[1], np.int32), np.zeros(shape[1], np.int64), 0, lo, hi)
        span = 2.0 ** rng.uniform(6, 32)
        middle = float(rng.uniform(-1, 1)) * (2**32 - span) / 2
    else:
        fmt = random_format(rng, int(rng.choice([rng.integers(1, 9), rng.integers(1, 17)])))
        y = ir.Tensor(out, shape, fmt)
        lo, hi = fmt.lo, fmt.hi
        if rng.random() < 0.2 and fmt.bits > 1:
            lo += int(rng.integers(0, 1 << fmt.bits - 1))  # ReLU and its like
        span, middle = hi - lo + 1.0, (lo + hi + 1) / 2
    axes = (0,) if per_position and rng.random() < 0.5 else (0, 1) if per_position else (0, 2, 3)
    keep = (1, *(1 if i in axes else size for i, size in enumerate(shape) if i))
    mean, whole = acc.mean(axis=axes).reshape(keep), float(acc.std())
    spread = np.maximum(np.maximum(acc.std(axis=axes).reshape(keep), whole / 4), 0.5)
    gain = span / (spread * rng.uniform(2.5, 6, keep)) * np.where(rng.random(keep) < 0.15, -1, 1)
    res_gain = 0.0
    if res is not None:
        gain = gain * 0.7
        res_gain = span / max(float(res.std()), 1.0) * rng.uniform(0.1, 0.4) * rng.choice([-1, 1, 1])
    worst = max(float(np.abs(gain).max()), 1e-9)
    largest = max(float(np.abs(acc).max()) * worst, abs(middle) + span, 1.0)
    top = min(31 - np.log2(max(worst, abs(res_gain))), 61 - np.log2(largest), 63)
    bottom = max(0.0, 1 - np.log2(float(np.abs(gain).min())))
    shift = int(np.clip(rng.integers(int(bottom), max(int(top), int(bottom)) + 1), 0, 63))
    m = np.round(gain * 2.0**shift)
    m = np.clip(np.where(m == 0, 1, m), -(2**31), 2**31 - 1).astype(np.int64)
    m2 = int(np.clip(round(res_gain * 2.0**shift), -(2**31), 2**31 - 1))
    centre = np.round((middle + rng.uniform(-0.15, 0.15, keep) * span) * 2.0**shift)
    offset = np.round(mean) * m.astype(float) + m2 * (float(res.mean()) if res is not None else 0.0)
    b = np.clip(centre - offset, -(2.0**62), 2.0**62).astype(np.int64) + rng.integers(-3, 4, keep)
    axes = (0,) if per_position else (0, 2, 3)
    m, b = (np.squeeze(p, axes) for p in (m, b))
    return y, ir.Requant(m.astype(np.int32), b, shift, lo, hi, m2)


def by_torch(case: Case) -> np.ndarray:
    """The layer's output as PyTorch's integer operators compute it."""
    import torch

    tensors = {name: torch.from_numpy(codes) for name, codes in case.inputs.items()}
    return apply_torch(case.layer, torch_constants(case.layer), tensors["x"], tensors.get("res")).numpy()


def torch_constants(layer: ir.Layer) -> dict:
    """Weights `w`, and `m` and `b` of the requantisation, as tensors; those that the layer has."""
    import torch

    arrays = {"w": getattr(layer, "w", None)}
    if not isinstance(layer, ir.MaxPool):
        arrays |= {"m": layer.requant.m, "b": layer.requant.b, "t": layer.requant.thresholds}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def apply_torch(layer: ir.Layer, constants: dict, x, res):
    """The layer on int32 tensors of codes, in PyTorch's integer operators; `res` is None where it has no residual."""
    import torch

    import seriatim.algo.ops  # noqa: F401  registers torch.ops.seriatim

    ops = torch.ops.seriatim
    if isinstance(layer, ir.MaxPool):
        return ops.qmaxpool2d(x, layer.kernel, layer.stride, layer.padding, layer.dilation, str(layer.x.format), layer.name)
    x_format = f"{layer.x.format}:{layer.x_read}"
    if isinstance(layer, ir.SumPool):
        acc = ops.qsumpool2d(x, layer.kernel, layer.stride, layer.padding, x_format, layer.drop)
    else:
        acc = ops.qconv2d(x, constants["w"], layer.stride, layer.padding, layer.dilation, layer.groups, x_format,
                          str(layer.w_format), layer.drop)
    q, m, b = layer.requant, constants["m"], constants["b"]
    if q.thresholds is not None and res is None:
        return ops.requant_table(acc, m, b, constants["t"], q.shift, layer.name)
    if q.thresholds is not None:
        return ops.requant_add_table(acc, res, m, b, constants["t"], q.m2, q.shift, str(layer.res.format), layer.name)
    if res is None:
        return ops.requant(acc, m, b, q.shift, q.lo, q.hi, layer.name)
    return ops.requant_add(acc, res, m, b, q.m2, q.shift, q.lo, q.hi, str(layer.res.format), layer.name)
