"""Constrained-random layers as the compiler's regions, and the same layers evaluated by PyTorch and by the big-integer reference.

`draw(seed)` gives one layer with its data. Everything follows from the seed: the geometry (seeds go round `GEOMETRIES`), the
layer, the data, and requantisation parameters that spread the accumulators over the output's codes.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seriatim.compiler import ir, legal
from seriatim.config import Config
from seriatim.formats import Format, Kind

_spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

GEOMETRIES = {
    "7x8x64": Config(),
    "2x4x32": Config(2, 4, 32, 32, act_words=512, wgt_words=160, prm_words=24, res_words=64, out_words=64, psum_words=64,
                     line_bytes=512, max_planes=16, marks=4, queue=4, outstanding=2),
    "3x16x128": Config(3, 16, 128, 64, act_words=640, wgt_words=320, prm_words=32, res_words=96, out_words=96, psum_words=96,
                       line_bytes=1024, marks=8),
    "4x8x64": Config(4, 8, 64, 32, act_words=1024, wgt_words=512, prm_words=64, res_words=128, out_words=128, psum_words=128,
                     line_bytes=512, queue=2, outstanding=1),
}
"""Four machines; the small buffers make small layers split."""

ALIVE = 16
"""Outputs of random data from which on they must show several codes."""
MACS = 120_000
"""Most multiply-accumulates of a layer: the big-integer reference does some tens of millions a second."""


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
        return GEOMETRIES[self.geometry]

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
        text.append(f"shift {q.shift} clip {q.lo}..{q.hi}" + " by position" * q.per_position)
    return ", ".join(text)


def _tensor(t: ir.Tensor) -> str:
    return f"{'x'.join(map(str, t.shape))} {t.format or 'int32'}{' image' if t.layout == 'image' else ''}"


# Drawing

def draw(seed: int) -> Case:
    """The layer of `seed`. What the contract does not allow (accumulators beyond 32 bits, an empty output), and layers whose
    windows all see nothing but padding, are drawn again."""
    geometry = list(GEOMETRIES)[seed % len(GEOMETRIES)]
    rng = np.random.default_rng([seed, 0x5E51A])
    while True:
        kind = rng.choice(["conv", "image", "max", "sum"], p=[0.68, 0.12, 0.08, 0.12])
        case = {"conv": _conv, "image": _conv, "max": _max_pool, "sum": _sum_pool}[kind](
            rng, GEOMETRIES[geometry], **({"image": True} if kind == "image" else {}))
        if case is not None and legal.refusal(case[0]) is None:
            return Case(seed, geometry, *case)


def _format(rng, bits: int, kinds=(Kind.UINT, Kind.UINT, Kind.INT, Kind.BIPOLAR), step: int = 1) -> Format:
    """A linear format; the zero point of a third of the uints is a multiple of `step`."""
    kind = kinds[rng.integers(len(kinds))]
    zero = int(rng.integers(0, 1 << bits)) // step * step if kind is Kind.UINT and rng.random() < 0.33 else 0
    return Format(kind, bits, zero)


def _read(rng, most: int = 8) -> tuple[Format, Format]:
    """(stored, read): a third of the tensors are wider than their reader."""
    bits = int(rng.integers(1, most + 1))
    drop = int(rng.integers(1, 17 - bits)) if rng.random() < 0.33 else 0
    stored = _format(rng, bits + drop, step=1 << drop)
    return stored, stored.top(bits)


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


def _conv(rng, config: Config, image: bool = False):
    n, height, width = _size(rng)
    if image:
        height, width = int(rng.integers(1, 20)), int(rng.integers(1, 24))
    kernel = tuple(_pick(rng, 1, 3, rng.integers(1, 6), rng.integers(1, 8) if image else 2) for _ in (0, 1))
    if rng.random() < 0.5:
        kernel = kernel[0], kernel[0]
    stride = tuple(_pick(rng, 1, 1, 2, 3) for _ in (0, 1))
    dilation = tuple(_pick(rng, 1, 1, 1, 2, 3) for _ in (0, 1))
    padding = _padding(rng, kernel, dilation)
    groups = 1
    if image:
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
    stored, reader = _read(rng)
    if image:
        stored = _format(rng, 8, (Kind.UINT,))
        reader = stored
        if stored.zero == 0 and rng.random() < 0.2:
            reader = stored.top(int(rng.integers(1, 9)))
    w_format = _format(rng, int(rng.integers(1, 9)), (Kind.BIPOLAR, Kind.BIPOLAR, Kind.INT, Kind.UINT))
    w_format = Format(w_format.kind, w_format.bits)
    plain = rng.random() < 0.88
    x = ir.Tensor("x", (n, c, height, width), stored, "image" if image else "planes")
    w_shape = out, c // groups, *kernel
    if plain or rng.random() < 0.5:
        codes = rng.integers(w_format.lo, w_format.hi + 1, w_shape)
    else:
        codes = np.full(w_shape, w_format.lo if rng.random() < 0.5 else w_format.hi)
    w = w_format.value(codes).astype(np.int32)
    inputs = {"x": _data(rng, x, plain)}
    res = None
    if rng.random() < 0.3:
        res = ir.Tensor("res", shape, _format(rng, int(rng.integers(1, 17))))
        inputs["res"] = _data(rng, res, plain)
    acc = ir.convolve(ir.read(inputs["x"], stored, reader), w, stride, padding, dilation, groups)
    if not acc.any() and acc.size >= ALIVE:
        return None
    y, requant = _requant(rng, acc, res and ir.read(inputs["res"], res.format, res.format), shape, per_position=False)
    return ir.Conv("conv", x, reader, w, w_format, stride, padding, dilation, groups, requant, res, y), inputs, plain


def _pool_shape(rng, config: Config):
    n, height, width = _size(rng)
    c = _channels(rng, config.k)
    kernel = tuple(int(rng.integers(1, 5)) for _ in (0, 1))
    return n, c, height, width, kernel, tuple(_pick(rng, 1, 2, 2, 3) for _ in (0, 1))


def _max_pool(rng, config: Config):
    n, c, height, width, kernel, stride = _pool_shape(rng, config)
    dilation = tuple(_pick(rng, 1, 1, 1, 2) for _ in (0, 1))
    padding = _padding(rng, kernel, dilation, most=1)
    shape = n, c, *ir.window_shape((height, width), kernel, stride, padding, dilation)
    if not _fits(shape) or n * c * height * width > 20_000:
        return None
    plain = rng.random() < 0.9
    x = ir.Tensor("x", (n, c, height, width), _format(rng, int(rng.integers(1, 17))))
    inputs = {"x": _data(rng, x, plain)}
    if plain and np.prod(shape) >= ALIVE:
        largest = ir.windows(inputs["x"], kernel, stride, padding, dilation, x.lo).max(axis=(4, 5))
        if np.ptp(largest) == 0:
            return None
    return ir.MaxPool("pool", x, kernel, stride, padding, dilation, ir.Tensor("out", shape, x.format)), inputs, plain


def _sum_pool(rng, config: Config):
    n, c, height, width, kernel, stride = _pool_shape(rng, config)
    padding = _padding(rng, kernel, (1, 1))
    if rng.random() < 0.4:
        kernel, padding, stride = (height, width), (0, 0, 0, 0), (1, 1)
    shape = n, c, *ir.window_shape((height, width), kernel, stride, padding, (1, 1))
    if not _fits(shape) or n * c * height * width > 20_000:
        return None
    plain = rng.random() < 0.9
    stored, reader = _read(rng)
    x = ir.Tensor("x", (n, c, height, width), stored)
    inputs = {"x": _data(rng, x, plain)}
    acc = ir.windows(ir.read(inputs["x"], stored, reader), kernel, stride, padding, (1, 1), 0).sum(axis=(4, 5))
    y, requant = _requant(rng, acc, None, shape, per_position=rng.random() < 0.3)
    return ir.SumPool("pool", x, reader, kernel, stride, padding, requant, y), inputs, plain


def _requant(rng, acc, res, shape, per_position: bool) -> tuple[ir.Tensor, ir.Requant]:
    """The output tensor, and parameters that spread `acc` (and `res`) over its codes, with any shift that the sizes allow."""
    if rng.random() < 0.12:
        y = ir.Tensor("out", shape, None, "int32")
        lo, hi = ir.INT32
        if rng.random() < 0.5 and res is None and not per_position:
            return y, ir.Requant(np.ones(shape[1], np.int32), np.zeros(shape[1], np.int64), 0, lo, hi)
        span = 2.0 ** rng.uniform(6, 32)
        middle = float(rng.uniform(-1, 1)) * (2**32 - span) / 2
    else:
        fmt = _format(rng, int(rng.choice([rng.integers(1, 9), rng.integers(1, 17)])))
        y = ir.Tensor("out", shape, fmt)
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


# Evaluation

def by_torch(case: Case) -> np.ndarray:
    """The layer's output as PyTorch's integer operators compute it."""
    import torch

    import seriatim.algo.ops  # noqa: F401  registers torch.ops.seriatim

    ops, layer = torch.ops.seriatim, case.layer
    tensors = {name: torch.from_numpy(codes) for name, codes in case.inputs.items()}
    x = tensors["x"]
    if isinstance(layer, ir.MaxPool):
        return ops.qmaxpool2d(x, layer.kernel, layer.stride, layer.padding, layer.dilation, str(layer.x.format), "pool").numpy()
    x_format = f"{layer.x.format}:{layer.x_read}"
    if isinstance(layer, ir.SumPool):
        acc = ops.qsumpool2d(x, layer.kernel, layer.stride, layer.padding, x_format)
    else:
        acc = ops.qconv2d(x, torch.from_numpy(layer.w), layer.stride, layer.padding, layer.dilation, layer.groups, x_format,
                          str(layer.w_format))
    q = layer.requant
    m, b = torch.from_numpy(q.m), torch.from_numpy(q.b)
    if getattr(layer, "res", None) is None:
        return ops.requant(acc, m, b, q.shift, q.lo, q.hi, layer.name).numpy()
    return ops.requant_add(acc, tensors["res"], m, b, q.m2, q.shift, q.lo, q.hi, str(layer.res.format), layer.name).numpy()


def by_reference(case: Case) -> np.ndarray:
    """The layer's output by the big-integer reference (int64, though no step computes in it)."""
    layer, x = case.layer, case.inputs["x"].tolist()
    if isinstance(layer, ir.MaxPool):
        out = reference.max_pool(x, str(layer.x.format), layer.kernel, layer.stride, layer.padding, layer.dilation)
        return np.array(out, np.int64)
    stored, bits = str(layer.x.format), layer.x_read.bits
    if isinstance(layer, ir.SumPool):
        acc = reference.sum_pool(x, stored, bits, layer.kernel, layer.stride, layer.padding)
    else:
        acc = reference.conv(x, stored, bits, layer.w.tolist(), layer.stride, layer.padding, layer.dilation, layer.groups)
    q = layer.requant
    m, b = q.m, q.b
    if q.per_position and len(m) == 1:
        m, b = (np.broadcast_to(p, layer.out.shape[1:]) for p in (m, b))
    res = getattr(layer, "res", None)
    more = (case.inputs["res"].tolist(), str(res.format), q.m2) if res else ()
    return np.array(reference.requant(acc, m.tolist(), b.tolist(), q.shift, q.lo, q.hi, *more), np.int64)
