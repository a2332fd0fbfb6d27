"""A layer as the machine computes it: `job_of` folds zero points, residual formats and pools into shapes, weights and params."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from seriatim.compiler import engines, ir, layout, tiler
from seriatim.compiler.tiler import Axis, Plan, Segment, Unit, Work
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.formats import Format, Kind
from seriatim.isa import Engine

IMAGE_PLANES = 8
INT32, INT64 = 31, 63


@dataclass
class Job:
    """A layer ready for tiling.

    Members
    -------
    kind : `conv` or `max`.
    a_kind, a_bits, a_skip : the input's format, planes used, and planes above them that are not.
    pad, pad_valid : what padding holds.
    weights : codes (outputs, taps, lanes) of a unit and segment.
    codes : the weights as the engine that runs the layer takes them. hi : the upper bound of requantisation.
    params : (m, b) of every output channel, for each class of positions. classes : class of each output position, or None.
    tail_zero : whether lanes beyond the output's channels hold 0.
    split : images that each image counts as, one for each of its channel words.
    """

    layer: ir.Layer
    work: Work
    x: ir.Tensor
    shape_in: tuple[int, int, int]
    shape_out: tuple[int, int, int]
    kind: str = "conv"
    a_kind: Kind = Kind.UINT
    a_bits: int = 0
    a_skip: int = 0
    pad: int = 0
    pad_valid: int = 1
    codes: engines.Codes | None = None
    hi: int = 0
    weights: Callable[[Unit, Segment], np.ndarray] | None = None
    params: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    classes: np.ndarray | None = None
    res: ir.Tensor | None = None
    m2: int = 0
    tail_zero: bool = True
    split: int = 1
    plan: Plan = field(init=False)
    weight_at: dict[tuple[int, int], int] = field(default_factory=dict)
    param_at: list[int] = field(default_factory=list)
    weight_bytes: int = 0


def _axes(layer, shape_in, shape_out) -> tuple[Axis, Axis]:
    return tuple(Axis(shape_out[i + 1], shape_in[i + 1], layer.kernel[i], layer.stride[i], layer.dilation[i], layer.padding[i])
                 for i in (0, 1))


def _fold(layer: ir.Conv, config: Config) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Images, rows and columns of input and output. A 1x1 convolution sees only positions: they are shared out evenly."""
    (n, _, h, w), (_, _, oh, ow) = layer.x.shape, layer.out.shape
    if layer.x.layout != "planes" or layer.kernel != (1, 1) or layer.stride != (1, 1) or any(layer.padding):
        return (n, h, w), (n, oh, ow)
    total = n * h * w
    columns = min((d for d in range(1, total + 1) if total % d == 0),
                  key=lambda d: (-(-total // d // config.m) * d, abs(d - w)))
    return (1, total // columns, columns), (1, total // columns, columns)


def _narrow(name: str, what: str, value: int, bits: int) -> int:
    if not -(1 << bits) <= value < 1 << bits:
        raise CompileError(f"{name}: {what} = {value} needs more than {bits + 1} bits; use a smaller shift or fewer bits")
    return value


Pick = Callable[[ir.Layer, list[engines.Codes]], engines.Codes]
"""Chooses one of the engines that can run a layer."""


def job_of(layer: ir.Layer, config: Config, tail_zero: dict[str, bool], pick: Pick) -> Job:
    if isinstance(layer, ir.MaxPool):
        return _max_job(layer, config, tail_zero)
    if isinstance(layer, ir.SumPool) and layer.x.layout == "image":
        c = layer.x.shape[1]
        w = np.eye(c, dtype=np.int32).reshape(c, c, 1, 1).repeat(layer.kernel[0], 2).repeat(layer.kernel[1], 3)
        return _conv_job(layer, config, tail_zero, w, Format(Kind.UINT, 1), 1, pick)
    if isinstance(layer, ir.SumPool):
        return _sum_job(layer, config, pick)
    return _conv_job(layer, config, tail_zero, layer.w, layer.w_format, layer.groups, pick)


def _out_words(out: ir.Tensor, config: Config) -> Callable[[Unit], int]:
    if out.format is None:
        return lambda unit: unit.tiles * config.raw_words
    return lambda unit: out.format.bits


def _units(channels: int, config: Config, reads: Callable[[int, int], tuple[int, int]]) -> tuple[Unit, ...]:
    """One unit for each output word. `reads(first, beyond)` gives the channel words that a range of output channels reads."""
    units = []
    for first in range(0, channels, config.k):
        beyond = min(first + config.k, channels)
        units.append(Unit(len(units), first // config.n, -(-(beyond - first) // config.n), *reads(first, beyond)))
    return tuple(units)


def _read_format(layer, job: Job) -> None:
    """How the array reads the input's planes, and the padding."""
    stored, reader = layer.x.format, layer.x_read
    if not (stored and (reader.linear or reader.kind is Kind.LOG)):
        raise CompileError(f"{layer.name}: input read as {reader}: the engines take uint, int, bipolar and log")
    planes = IMAGE_PLANES if layer.x.layout == "image" else stored.bits
    job.a_kind, job.a_bits, job.a_skip = reader.kind, reader.bits, planes - stored.bits
    job.pad, job.pad_valid = stored.zero, int(reader.kind is not Kind.BIPOLAR)
    if layer.x.layout == "image" and reader.kind is Kind.BIPOLAR and any(layer.padding):
        raise CompileError(f"{layer.name}: a bipolar image cannot be padded; use uint or int")


def _sum_job(layer: ir.SumPool, config: Config, pick: Pick) -> Job:
    n, c, h, w = layer.x.shape
    _, _, oh, ow = layer.out.shape
    y, x = _axes(layer, (n, h, w), (n, oh, ow))
    split = _split(layer, config)
    channels = c // split
    units = _units(channels, config, lambda first, beyond: (first // config.k, first // config.k + 1))
    work = Work(layer.name, n * split, y, x, layer.x.format.bits, layer.x_read.bits, 1, units,
                _out_words(layer.out, config), shared=True)
    job = Job(layer, work, layer.x, (n, h, w), (n, oh, ow), split=split)
    _read_format(layer, job)
    job.codes = pick(layer, engines.candidates(
        layer.name, np.ones((1, 1, 1, 1), np.int32), Format(Kind.UINT, 1), layer.x_read, False, min(c, config.k),
        engines.bound_of(layer), config))
    job.work = replace(work, each=job.codes.steps)
    one_hot = np.eye(config.k, dtype=np.uint16)[:, None]
    job.weights = lambda unit, segment: one_hot[:unit.tiles * config.n]
    _params(layer, job, np.full(c, layer.k, np.int64), config)
    job.params = [(m[:channels], b[:channels]) for m, b in job.params]
    return job


def _split(layer: ir.SumPool, config: Config) -> int:
    """Channel words that count as images of their own, so that small maps fill the array: where all channels have
    the same params."""
    n, c = layer.x.shape[:2]
    words, q = c // config.k, layer.requant
    if c % config.k or words == 1 or layer.out.format is None or (q.m != q.m[:1]).any() or (q.b != q.b[:1]).any():
        return 1

    def cost(images):
        height, waves = tiler.bands(images, layer.out.shape[2], config)
        return height * len(waves) * words * n // images

    return words if cost(n * words) < cost(n) else 1


def _conv_job(layer, config: Config, tail_zero, w, w_format: Format, groups: int, pick: Pick) -> Job:
    image = layer.x.layout == "image"
    shape_in, shape_out = _fold(layer, config) if isinstance(layer, ir.Conv) else (
        (layer.x.shape[0], *layer.x.shape[2:]), (layer.out.shape[0], *layer.out.shape[2:]))
    outputs, inputs, kh, kw = w.shape
    each = outputs // groups
    if image and groups > 1:
        w, inputs, groups = _expand(w, groups, 0, outputs, 0, layer.x.shape[1]), layer.x.shape[1], 1
        zeros = True
    else:
        zeros = groups > 1
    y, x = _axes(layer, shape_in, shape_out)
    out_words = _out_words(layer.out, config)
    res = getattr(layer, "res", None)
    if image:
        lanes = kh * kw * inputs
        words = -(-lanes // config.k)
        units = _units(outputs, config, lambda first, beyond: (0, words))
        kernel_rows, columns = kh, x

        def fits(first, beyond):
            return kernel_rows * seg_bytes(layer.x, columns, first, beyond - first, config) <= config.line_bytes

        y, x = (Axis(axis.out, axis.out, 1, 1, 1, 0) for axis in (y, x))
        work = Work(layer.name, shape_in[0], y, x, IMAGE_PLANES, layer.x_read.bits, 1, units, out_words,
                    patch_words=words * IMAGE_PLANES, patch_fits=fits)
        safe = layer.x_read.kind is not Kind.BIPOLAR
    else:
        lanes = layer.x.shape[1]
        words = layout.channel_words(lanes, config)

        def reads(first, beyond):
            lo, hi = first // each * inputs, -(-beyond // each) * inputs
            return lo // config.k, -(-hi // config.k)

        units = _units(outputs, config, reads)
        work = Work(layer.name, shape_in[0], y, x, layer.x.format.bits, layer.x_read.bits, 1, units, out_words)
        padded = any(layer.padding) and layer.x.format.zero
        safe = layer.x_read.kind is not Kind.BIPOLAR and tail_zero[layer.x.name] and not padded
    job = Job(layer, work, layer.x, shape_in, shape_out, res=res)
    _read_format(layer, job)
    job.codes = pick(layer, engines.candidates(
        layer.name, w, w_format, layer.x_read, zeros or (lanes % config.k != 0 and not safe), min(lanes, config.k),
        engines.bound_of(layer), config))
    job.work = replace(work, w_bits=job.codes.bits, each=job.codes.steps, res_planes=res.format.bits if res else 0)
    codes = job.codes.codes
    if image:
        codes = codes.transpose(0, 2, 3, 1).reshape(outputs, lanes, 1, 1)
    job.weights = _weights_of(codes, groups, outputs, lanes, config)
    if job.codes.lut is not None:
        plain, lut = job.weights, job.codes.lut
        job.weights = lambda unit, segment: lut[plain(unit, segment)]
    if layer.x_read.zero:
        reach = np.abs(w.astype(np.int64)).sum(axis=(1, 2, 3)).max() * layer.x_read.hi
        serial = job.codes.engine == Engine.BIT_SERIAL
        _narrow(layer.name, "a sum of codes, zero point apart,", int(reach), INT32 if serial else config.shift_acc_bits - 1)
    _params(layer, job, w.astype(np.int64).sum(axis=(1, 2, 3)), config)
    return job


def _expand(w: np.ndarray, groups: int, first: int, beyond: int, lo: int, hi: int) -> np.ndarray:
    """Outputs first..beyond of grouped weights (or codes) over all the input channels lo..hi, zero outside their group."""
    outputs, inputs = w.shape[:2]
    each = outputs // groups
    full = np.zeros((beyond - first, hi - lo, *w.shape[2:]), w.dtype)
    for o in range(first, beyond):
        start = o // each * inputs - lo
        full[o - first, start:start + inputs] = w[o]
    return full


def _weights_of(codes: np.ndarray, groups: int, outputs: int, lanes: int, config: Config):
    """Codes of a unit's segment as (outputs, taps, lanes), filled with 0 to whole tiles and words."""
    def weights(unit: Unit, segment: Segment) -> np.ndarray:
        first = unit.tile * config.n
        beyond = min(first + unit.tiles * config.n, outputs)
        lo, hi = ((unit.c0 + c) * config.k for c in (segment.c0, segment.c1))
        if groups == 1:
            part = codes[first:beyond, lo:min(hi, lanes)]
        else:
            lo_all, hi_all = unit.c0 * config.k, min(unit.c1 * config.k, lanes)
            part = _expand(codes, groups, first, beyond, lo_all, hi_all)[:, lo - lo_all:hi - lo_all]
        part = part[:, :, segment.r0:segment.r1, segment.t0:segment.t1]
        full = np.zeros((unit.tiles * config.n, part.shape[2] * part.shape[3], hi - lo), np.uint16)
        full[:len(part), :, :part.shape[1]] = part.reshape(*part.shape[:2], -1).transpose(0, 2, 1)
        return full

    return weights


def _max_job(layer: ir.MaxPool, config: Config, tail_zero) -> Job:
    if layer.x.layout != "planes":
        raise CompileError(f"{layer.name}: a max pool of the {layer.x.layout} {layer.x.name}: it takes planes; "
                           "put a convolution first")
    n, c, h, w = layer.x.shape
    _, _, oh, ow = layer.out.shape
    y, x = _axes(layer, (n, h, w), (n, oh, ow))
    bits, words = layer.x.format.bits, layout.channel_words(c, config)
    most = max(1, config.out_words // 2 // bits)
    cuts = tiler.even(words, -(-words // most))
    units = tuple(Unit(i, a, b - a, a, b) for i, (a, b) in enumerate(cuts))
    work = Work(layer.name, n, y, x, bits, bits, 0, units, lambda unit: unit.tiles * bits)
    job = Job(layer, work, layer.x, (n, h, w), (n, oh, ow), kind="max")
    job.a_bits, job.pad = bits, layer.x.format.lo & (1 << bits) - 1
    job.tail_zero = tail_zero[layer.x.name] and not (job.pad and any(layer.padding))
    return job


def _params(layer, job: Job, sums: np.ndarray, config: Config) -> None:
    """m and b with the zero point of the input and the value of residual code 0 folded in; m2; the classes of positions."""
    q, name = layer.requant, layer.name
    channels = layer.out.shape[1]
    zero = layer.x_read.zero if layer.x_read.kind is Kind.UINT else 0
    engines.check_drop(layer, config)
    job.m2, offset = q.m2, 0
    res = job.res
    if res is not None:
        if res.layout != "planes" or not res.format.linear:
            raise CompileError(f"{name}: residual {res.name} of {res.format} {res.layout}: it takes planes of uint, int "
                               "or bipolar")
        offset = q.m2 * res.format.value(0) if res.format.kind is not Kind.INT else 0
        if res.format.kind is Kind.BIPOLAR:
            job.m2 = 2 * q.m2
        _narrow(name, "m2", job.m2, INT32)
    if q.per_position:
        _, h, w = job.shape_out
        m, b = (np.broadcast_to(p, (channels, h, w)).reshape(channels, -1) for p in (q.m.astype(np.int64), q.b))
        keys, classes = np.unique(np.concatenate([m, b]), axis=1, return_inverse=True)
        pairs = [(keys[:channels, i], keys[channels:, i]) for i in range(keys.shape[1])]
        job.classes = classes.reshape(h, w)
    else:
        pairs = [(np.broadcast_to(q.m, channels).astype(np.int64), np.broadcast_to(q.b, channels))]
    for m, b in pairs:
        if zero or offset:
            exact = b.astype(object) - m.astype(object) * sums.astype(object) * zero + offset
            _narrow(name, "b", min(exact), INT64)
            _narrow(name, "b", max(exact), INT64)
            b = exact.astype(np.int64)
        job.params.append((m, b))
    job.hi = q.hi if q.thresholds is None else engines.greatest(name, layer, config)
    job.tail_zero = q.lo <= 0 <= q.hi if q.thresholds is None else not (q.thresholds <= 0).any()


def seg_bytes(x: ir.Tensor, axis: Axis, first: int, positions: int, config: Config) -> int:
    """Line memory bytes of an image row that positions from `first` see, were there no edges."""
    beat = config.axi_bytes
    start = (first * axis.stride - axis.before) * x.shape[1]
    end = start + ((positions - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1) * x.shape[1]
    size = -(-end // beat) * beat - start // beat * beat
    return -(-size // 64) * 64


def check_widths(layer: ir.Layer, config: Config) -> None:
    for tensor in (*layer.reads, layer.out):
        if tensor.layout == "planes" and tensor.format.bits > config.max_planes:
            raise CompileError(f"{layer.name}: {tensor.name} has {tensor.format.bits} planes, this machine {config.max_planes}; "
                               "make max_planes of Config larger, or the tensor narrower")
    if layer.x.layout == "int32":
        raise CompileError(f"{layer.name}: reads {layer.x.name}, int32 words; requantise them to {config.max_planes} bits "
                           "or fewer")
