"""From a region to a program: `generate`.

Each layer becomes a `Job` (what to compute, with weights and params as bytes), then a `tiler.Plan`, then instructions in the order of a
machine without overlap; `schedule.Builder` makes them overlap.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from seriatim.compiler import ir, layout, schedule, tiler
from seriatim.compiler.program import Compiled, LayerInfo, Place
from seriatim.compiler.tiler import Axis, Band, Chunk, Part, Plan, Segment, Unit, Work
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.formats import Format, Kind
from seriatim.isa import Buffer, Engine, Output, Queue

ALIGN = 64
"""Alignment of segments in memory, in bytes: an instruction, and a multiple of every beat."""
IMAGE_PLANES = 8
MAX_WEIGHT_BITS = 9
INT32, INT64 = 31, 63


@dataclass(frozen=True)
class View:
    """A tensor in memory as the tiler sees it: `rows` x `columns` of `words` K-lane words, in bytes from image to image and so on."""

    tensor: ir.Tensor
    address: int
    images: int
    rows: int
    columns: int
    image_pitch: int
    row_pitch: int
    pitch: int
    split: int = 1
    """Images that share an image's bytes: each has one channel word of it."""

    def at(self, image: int, row: int, column: int) -> int:
        image, word = divmod(image, self.split)
        return self.address + image * self.image_pitch + row * self.row_pitch + column * self.pitch + word * self.pitch // self.split


@dataclass
class Job:
    """A layer ready for tiling.

    Members
    -------
    kind : `conv` or `max`.
    a_kind, a_bits, a_skip : the input's format, planes used, and planes above them that are not.
    pad, pad_valid : what padding holds.
    w_kind, w_bits : of the weights as stored. weights : codes (outputs, taps, lanes) of a unit and segment.
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
    w_kind: Kind = Kind.UINT
    w_bits: int = 0
    weights: Callable[[Unit, Segment], np.ndarray] | None = None
    params: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    classes: np.ndarray | None = None
    res: ir.Tensor | None = None
    m2: int = 0
    tail_zero: bool = True
    split: int = 1
    plan: Plan | None = None
    weight_at: dict[tuple[int, int], int] = field(default_factory=dict)
    param_at: list[int] = field(default_factory=list)
    weight_bytes: int = 0


# Jobs

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


def _encode(name: str, w: np.ndarray, fmt: Format, zeros: bool) -> tuple[Kind, int, np.ndarray]:
    """Kind, bits and codes of weights. `zeros`: lanes that must not count hold code 0, so the format must have a zero there."""
    if fmt.kind is Kind.BIPOLAR and not zeros:
        return Kind.BIPOLAR, fmt.bits, (w + (1 << fmt.bits) - 1 >> 1).astype(np.uint16)
    if fmt.kind is Kind.UINT and not fmt.zero:
        return Kind.UINT, fmt.bits, w.astype(np.uint16)
    if fmt.kind is Kind.INT:
        bits = fmt.bits
    else:
        reach = max(int(w.max(initial=0)), -int(w.min(initial=0)) - 1)
        bits = max(fmt.bits + 1 if fmt.kind is Kind.BIPOLAR else 1, reach.bit_length() + 1)
    if bits > MAX_WEIGHT_BITS:
        raise CompileError(f"{name}: weights {fmt} take {bits} planes as int, {MAX_WEIGHT_BITS} at most; use fewer bits")
    return Kind.INT, bits, (w & (1 << bits) - 1).astype(np.uint16)


def _narrow(name: str, what: str, value: int, bits: int) -> int:
    if not -(1 << bits) <= value < 1 << bits:
        raise CompileError(f"{name}: {what} = {value} needs more than {bits + 1} bits; use a smaller shift or fewer bits")
    return value


def _job(layer: ir.Layer, config: Config, tail_zero: dict[str, bool]) -> Job:
    if isinstance(layer, ir.MaxPool):
        return _max_job(layer, config, tail_zero)
    if isinstance(layer, ir.SumPool) and layer.x.layout == "image":
        c = layer.x.shape[1]
        w = np.eye(c, dtype=np.int32).reshape(c, c, 1, 1).repeat(layer.kernel[0], 2).repeat(layer.kernel[1], 3)
        return _conv_job(layer, config, tail_zero, w, Format(Kind.UINT, 1), 1)
    if isinstance(layer, ir.SumPool):
        return _sum_job(layer, config)
    return _conv_job(layer, config, tail_zero, layer.w, layer.w_format, layer.groups)


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
    if not (stored and reader.linear):
        raise CompileError(f"{layer.name}: input read as {reader}: the bit-serial array takes uint, int and bipolar")
    planes = IMAGE_PLANES if layer.x.layout == "image" else stored.bits
    job.a_kind, job.a_bits, job.a_skip = reader.kind, reader.bits, planes - stored.bits
    job.pad, job.pad_valid = stored.zero, int(reader.kind is not Kind.BIPOLAR)
    if layer.x.layout == "image" and reader.kind is Kind.BIPOLAR and any(layer.padding):
        raise CompileError(f"{layer.name}: a bipolar image cannot be padded; use uint or int")


def _sum_job(layer: ir.SumPool, config: Config) -> Job:
    n, c, h, w = layer.x.shape
    _, _, oh, ow = layer.out.shape
    y, x = _axes(layer, (n, h, w), (n, oh, ow))
    split = _split(layer, config)
    channels = c // split
    units = _units(channels, config, lambda first, beyond: (first // config.k, first // config.k + 1))
    work = Work(layer.name, n * split, y, x, layer.x.format.bits, layer.x_read.bits, 1, units, _out_words(layer.out, config), shared=True)
    job = Job(layer, work, layer.x, (n, h, w), (n, oh, ow), split=split)
    _read_format(layer, job)
    job.w_kind, job.w_bits = Kind.UINT, 1
    one_hot = np.eye(config.k, dtype=np.uint16)[:, None]
    job.weights = lambda unit, segment: one_hot[:unit.tiles * config.n]
    _params(layer, job, np.full(c, layer.k, np.int64))
    job.params = [(m[:channels], b[:channels]) for m, b in job.params]
    return job


def _split(layer: ir.SumPool, config: Config) -> int:
    """Channel words that count as images of their own, so that small maps fill the array: where all channels have the same params."""
    n, c = layer.x.shape[:2]
    words, q = c // config.k, layer.requant
    if c % config.k or words == 1 or layer.out.format is None or (q.m != q.m[:1]).any() or (q.b != q.b[:1]).any():
        return 1

    def cost(images):
        height, waves = tiler.bands(images, layer.out.shape[2], config)
        return height * len(waves) * words * n // images

    return words if cost(n * words) < cost(n) else 1


def _conv_job(layer, config: Config, tail_zero, w, w_format: Format, groups: int) -> Job:
    if not w_format.linear and w_format.kind is not Kind.CODEBOOK:
        raise CompileError(f"{layer.name}: weights in {w_format} need the shift-add engine; use int, uint or bipolar")
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
        positions = _patch_positions(layer.x, y, x, config)
        y, x = (Axis(axis.out, axis.out, 1, 1, 1, 0) for axis in (y, x))
        work = Work(layer.name, shape_in[0], y, x, IMAGE_PLANES, layer.x_read.bits, 1, units, out_words,
                    patch_words=words * IMAGE_PLANES, patch_positions=positions)
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
    job.w_kind, job.w_bits, codes = _encode(layer.name, w, w_format, zeros or (lanes % config.k != 0 and not safe))
    job.work = Work(**{**work.__dict__, "w_bits": job.w_bits, "res_planes": res.format.bits if res else 0})
    if image:
        codes = codes.transpose(0, 2, 3, 1).reshape(outputs, lanes, 1, 1)
    job.weights = _weights_of(codes, groups, outputs, lanes, config)
    _params(layer, job, w.astype(np.int64).sum(axis=(1, 2, 3)))
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
        raise CompileError(f"{layer.name}: a max pool of the {layer.x.layout} {layer.x.name}: it takes planes; put a convolution first")
    n, c, h, w = layer.x.shape
    _, _, oh, ow = layer.out.shape
    y, x = _axes(layer, (n, h, w), (n, oh, ow))
    bits, words = layer.x.format.bits, layout.channel_words(c, config)
    most = max(1, config.out_words // 2 // bits)
    cuts = tiler._even(words, -(-words // most))
    units = tuple(Unit(i, a, b - a, a, b) for i, (a, b) in enumerate(cuts))
    work = Work(layer.name, n, y, x, bits, bits, 0, units, lambda unit: unit.tiles * bits)
    job = Job(layer, work, layer.x, (n, h, w), (n, oh, ow), kind="max")
    job.a_bits, job.pad = bits, layer.x.format.lo & (1 << bits) - 1
    job.tail_zero = tail_zero[layer.x.name] and not (job.pad and any(layer.padding))
    return job


def _params(layer, job: Job, sums: np.ndarray) -> None:
    """m and b with the zero point of the input and the value of residual code 0 folded in; m2; the classes of positions."""
    q, name = layer.requant, layer.name
    channels = layer.out.shape[1]
    zero = layer.x_read.zero if layer.x_read.kind is Kind.UINT else 0
    job.m2, offset = q.m2, 0
    res = job.res
    if res is not None:
        if res.layout != "planes" or not res.format.linear:
            raise CompileError(f"{name}: residual {res.name} of {res.format} {res.layout}: it takes planes of uint, int or bipolar")
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
    job.tail_zero = q.lo <= 0 <= q.hi


def _patch_positions(x: ir.Tensor, y_axis: Axis, x_axis: Axis, config: Config) -> int:
    """Most positions of a PATCH, by the line memory."""
    most = 0
    for positions in range(1, x_axis.out + 1):
        if y_axis.kernel * _seg_bytes(x, x_axis, 0, positions, config, anywhere=True) > config.line_bytes:
            break
        most = positions
    return most


def _seg_bytes(x: ir.Tensor, axis: Axis, first: int, positions: int, config: Config, anywhere: bool = False) -> int:
    """Line memory bytes of an image row that positions from `first` see; `anywhere`: at the worst alignment."""
    channels, beat = x.shape[1], config.axi_bytes
    columns = (positions - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1
    if anywhere:
        size = columns * channels + 2 * (beat - 1)
    else:
        start = (first * axis.stride - axis.before) * channels
        size = -(-(start + columns * channels) // beat) * beat - start // beat * beat
    return -(-size // 64) * 64


# Memory

class _Memory:
    """Hands out addresses, and gathers the bytes of constants."""

    def __init__(self):
        self.blobs: list[bytes] = []
        self.size = 0
        self.known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        if data in self.known:
            return self.known[data]
        self.known[data] = at = self.reserve(len(data))
        self.blobs += [data, bytes(-len(data) % ALIGN)]
        return at

    def reserve(self, size: int) -> int:
        at = self.size
        self.size += -(-size // ALIGN) * ALIGN
        return at

    @property
    def image(self) -> bytes:
        return b"".join(self.blobs)


def _constants(job: Job, memory: _Memory, config: Config) -> None:
    """Puts a layer's weights and params into memory."""
    if job.kind == "max":
        return
    before = memory.size
    for unit in job.work.units:
        for i, segment in enumerate(job.plan.segments[unit.index]):
            data = layout.pack_weights(job.weights(unit, segment), job.w_bits, config)
            job.weight_at[unit.index, i] = memory.add(data)
    job.weights = None
    job.weight_bytes = memory.size - before
    job.param_at = [memory.add(layout.pack_params(m, b, config)) for m, b in job.params]


# Instructions

class _Cache:
    """Constants of one layer in the wgt or param buffer: all of them in a block of their own where they fit, else in turn."""

    def __init__(self, builder: schedule.Builder, buffer: Buffer, total: int, word_bytes: int):
        self.builder, self.buffer, self.word_bytes = builder, buffer, word_bytes
        depth = schedule.buffer_words(buffer, builder.config)
        self.next = builder.reserve(buffer, total) if total <= depth else None
        self.entries: dict[object, schedule.Range] = {}

    def next_free(self, words: int) -> int:
        """Cycle, by `Builder.elapsed`, from which the block's next words are free."""
        used = self.builder.used[self.buffer][self.next:self.next + words]
        return self.builder.elapsed(int(used.max(initial=-1)) + 1)

    def get(self, key, words: int, dram: int) -> int:
        """Buffer word at which `words` from `dram` are (or will be, once the load before the next execute is done)."""
        if key in self.entries:
            return self.entries[key][0]
        if self.next is None:
            base = self.builder.allocate(self.buffer, words)
            self.entries = {k: (lo, hi) for k, (lo, hi) in self.entries.items() if hi <= base or base + words <= lo}
        else:
            base = self.next
            self.next += words
        self.entries[key] = base, base + words
        fields = dict(buffer=self.buffer, dram=dram, base=base, words=words)
        cycles = schedule.dma_cycles(self.builder.config, 1, words * self.word_bytes)
        self.builder.load(self.buffer, "LOAD", fields, [(base, base + words)], cycles)
        return base


def _groups(bands: tuple[Band, ...], key: Callable[[Band], object], address: Callable[[Band], int]) -> Iterator[tuple[int, int, int, object]]:
    """(first slice, slices, bytes from slice to slice, key) of runs of bands with one key and even addresses. Key None: left out."""
    keys = [key(band) for band in bands]
    i = 0
    while i < len(bands):
        if keys[i] is None:
            i += 1
            continue
        j, pitch = i + 1, 0
        while j < len(bands) and keys[j] == keys[i]:
            step = address(bands[j]) - address(bands[j - 1])
            if j > i + 1 and step != pitch:
                break
            pitch = step
            j += 1
        yield i, j - i, pitch & 0xFFFFFFFF, keys[i]
        i = j


class _Emitter:
    """Writes one layer's instructions."""

    def __init__(self, builder: schedule.Builder, job: Job, places: dict[str, Place], written: dict[str, int], start: int):
        """`written`: the last store of each tensor. `start`: the cycle at which the layer before started."""
        self.builder, self.config, self.job, self.plan, self.work = builder, builder.config, job, job.plan, job.work
        self.x = self._view(places[job.x.name], job.shape_in)
        self.out = self._view(places[job.layer.out.name], job.shape_out)
        self.res = self._view(places[job.res.name], job.shape_out) if job.res else None
        self.after_x = written.get(job.x.name, -1)
        self.after_res = written.get(job.res.name, -1) if job.res else -1
        config = self.config
        self.wgt = _Cache(builder, Buffer.WGT, self.plan.weight_words, config.wgt_word_bytes) if self.work.w_bits else None
        self.prm_words = sum(u.tiles for u in self.work.units)
        total = self.prm_words * len(job.params)
        self.prm = _Cache(builder, Buffer.PRM, total, config.prm_word_bytes) if self.work.w_bits else None
        self.prm_whole = total <= config.prm_words
        self.ring_base = 0
        self.next_row = 0
        self.words_of_column = max(p.c1 - p.c0 for p in self.plan.parts) * self.work.planes
        self.fixed = len(self.plan.x_tiles) == 1 and len({p.c1 - p.c0 for p in self.plan.parts}) == 1
        self.store_at = -1
        self.start = start
        self.out_slot = 0

    def _view(self, place: Place, shape) -> View:
        images, rows, columns = shape
        pitch = layout.position_bytes(place.tensor, self.config)
        row = -(-columns * pitch // self.config.axi_bytes) * self.config.axi_bytes
        return View(place.tensor, place.address, images, rows, columns, rows * row, row, pitch, self.job.split)

    def emit(self) -> int:
        """Index of the layer's last store."""
        plan = self.plan
        if plan.mode == "ring":
            self.ring_base = self.builder.reserve(Buffer.ACT, plan.ring_words)
        for index, (wave, part, x_tile) in enumerate(plan.strips()):
            self._constants_of(part)
            strip = {"ring": _RingStrip, "patch": _PatchStrip, "tile": _TileStrip}[plan.mode](self, wave, part, x_tile, index == 0)
            for first, middle, last in plan.tiles(index, part, x_tile[1] - x_tile[0]):
                most = max(chunk.positions for chunk in (*first, *middle, *last))
                self.out_slot = max(self.out_slot, most * max(self.work.out_words(unit) for unit in part.units))
                for unit in part.units:
                    chunks = first if unit is part.units[0] else last if unit is part.units[-1] else middle
                    for chunk in chunks:
                        self._chunk(strip, unit, chunk)
            strip.close()
        return self.store_at

    def _constants_of(self, part: Part) -> None:
        """Loads the first execute's constants before the activations, which may have to wait for the layer before."""
        if self.work.w_bits:
            unit = part.units[0]
            self._weights(unit, 0)
            for index in range(len(self.job.params) if self.prm_whole else 1):
                self._params(unit, index)
            if self.plan.resident and self.plan.mode != "tile" and not self.work.shared:
                done = self.start + schedule.dma_cycles(self.config, 1, self.prm_words * self.config.prm_word_bytes)
                for unit in part.units[1:]:
                    words = self.work.weights(unit)
                    cycles = schedule.dma_cycles(self.config, 1, words * self.config.wgt_word_bytes)
                    done = max(done, self.wgt.next_free(words)) + cycles
                    if done > self.builder.elapsed(self.builder.executes):
                        break  # the activations will be there earlier
                    self._weights(unit, 0)

    def _weights(self, unit: Unit, i: int) -> int:
        if self.work.shared:
            most = max(self.work.units, key=lambda u: u.tiles)
            return self.wgt.get(0, most.tiles, self.job.weight_at[most.index, 0])
        segment = self.plan.segments[unit.index][i]
        return self.wgt.get((unit.index, i), self.work.weights(unit, segment.words), self.job.weight_at[unit.index, i])

    def _params(self, unit: Unit, index: int) -> int:
        dram = self.job.param_at[index]
        if self.prm_whole:
            return self.prm.get(index, self.prm_words, dram) + unit.tile
        return self.prm.get((index, unit.index), unit.tiles, dram + unit.tile * self.config.prm_word_bytes)

    # One chunk of positions, one unit of outputs

    def _chunk(self, strip, unit: Unit, chunk: Chunk) -> None:
        if self.job.classes is None:
            self._compute(strip, unit, chunk, 0, lambda band, y: True)
            return
        for y in range(chunk.y0, chunk.y1):
            rows = [band.first + y if y < band.rows else None for band in strip.wave]
            across = self.job.classes[[r for r in rows if r is not None], strip.x0 + chunk.x0:strip.x0 + chunk.x1]
            cuts = [0, *(1 + np.flatnonzero((across[:, 1:] != across[:, :-1]).any(axis=0))), across.shape[1]] if len(across) else [0]
            for a, b in zip(cuts, cuts[1:]):
                for index in sorted(set(across[:, a].tolist())):
                    column = strip.x0 + chunk.x0 + a
                    piece = Chunk(y, y + 1, chunk.x0 + int(a), chunk.x0 + int(b))
                    self._compute(strip, unit, piece, index,
                                  lambda band, y, c=column, i=index: self.job.classes[band.first + y, c] == i)

    def _compute(self, strip, unit: Unit, chunk: Chunk, index: int, wanted) -> None:
        job, work, builder = self.job, self.work, self.builder
        words = work.out_words(unit)
        positions = chunk.positions
        base = None
        for i, segment in enumerate(self.plan.segments[unit.index]):
            last = i == len(self.plan.segments[unit.index]) - 1
            act, reads = strip.need(unit, segment, chunk)
            used = {Buffer.ACT: reads}
            if last:
                base = builder.allocate_out(positions * words, self.out_slot)
            if job.kind == "max":
                fields = act | dict(ng=unit.tiles, planes=work.planes, is_signed=int(job.x.format.kind is Kind.INT), out_base=base)
                cycles = positions * work.steps(unit)
                execute = builder.execute("POOL", fields, used, (base, base + positions * words), cycles)
                continue
            fields = act | self._conv_fields(unit, segment, i, used)
            if i:
                fields |= dict(psum_add=1)
            if last:
                fields |= self._result_fields(unit, chunk, strip, index, base, used)
            else:
                fields |= dict(output=Output.PSUM)
            cycles = positions * unit.tiles * segment.words * work.a_bits * work.w_bits
            execute = builder.execute("CONV", fields, used, (base, base + positions * words) if last else None, cycles)
        self._store(strip, unit, chunk, words, base, execute, wanted)

    def _conv_fields(self, unit: Unit, segment: Segment, i: int, used) -> dict:
        work, job = self.work, self.job
        base = self._weights(unit, i)
        each = 0 if work.shared else (segment.c1 - segment.c0) * work.w_bits
        per_tile = work.w_bits if work.shared else segment.words * work.w_bits
        span = unit.tiles * per_tile
        used[Buffer.WGT] = [(base, base + span)]
        return dict(engine=Engine.BIT_SERIAL, ng=unit.tiles, nc=segment.c1 - segment.c0, sc=work.planes, a_kind=job.a_kind,
                    a_bits=work.a_bits, w_kind=job.w_kind, w_bits=work.w_bits, wgt_base=base, wgt_g=per_tile, wgt_tap=each)

    def _result_fields(self, unit: Unit, chunk: Chunk, strip, index: int, base: int, used) -> dict:
        job, q = self.job, self.job.layer.requant
        prm = self._params(unit, index)
        used[Buffer.PRM] = [(prm, prm + unit.tiles)]
        raw = job.layer.out.format is None
        fields = dict(output=Output.INT32 if raw else Output.PLANES, prm_base=prm, out_base=base,
                      out_planes=1 if raw else job.layer.out.format.bits, shift=q.shift, lo=q.lo, hi=q.hi)
        if job.res is not None:
            planes = job.res.format.bits
            words = chunk.positions * planes
            at = self._load_residual(strip, unit, chunk, planes)
            used[Buffer.RES] = [(at, at + words)]
            fields |= dict(res_planes=planes, res_signed=int(job.res.format.kind is Kind.INT), res_base=at, res_pitch=planes, m2=job.m2)
        return fields

    def _load_residual(self, strip, unit: Unit, chunk: Chunk, planes: int) -> int:
        config, builder, view = self.config, self.builder, self.res
        columns = chunk.x1 - chunk.x0
        base = builder.allocate(Buffer.RES, chunk.positions * planes)
        offset = unit.tile * config.n // config.k * planes * config.word_bytes

        def rows(band):
            return min(chunk.y1, band.rows) - chunk.y0 if band.rows > chunk.y0 else None

        def address(band):
            return view.at(band.image, band.first + chunk.y0, strip.x0 + chunk.x0) + offset

        for first, slices, pitch, ny in _groups(strip.wave, rows, address):
            nx, words = (1, columns * planes) if view.pitch == planes * config.word_bytes else (columns, planes)
            fields = dict(buffer=Buffer.RES, dram=address(strip.wave[first]), base=base, slice=first, slices=slices, slice_pitch=pitch,
                          ny=ny, y_pitch=view.row_pitch, nx=nx, x_pitch=view.pitch if nx > 1 else 0, words=words,
                          row_pitch=columns * planes)
            cycles = schedule.dma_cycles(config, slices * ny * nx, words * config.word_bytes)
            builder.load(Buffer.RES, "LOAD", fields, [(base, base + ny * columns * planes)], cycles, self.after_res)
        return base

    def _store(self, strip, unit: Unit, chunk: Chunk, words: int, base: int, execute: int, wanted) -> None:
        config, builder, view = self.config, self.builder, self.out
        columns, out = chunk.x1 - chunk.x0, self.job.layer.out
        if out.format is None:
            offset = unit.tile * config.raw_words * config.word_bytes
        elif self.job.kind == "max":
            offset = unit.c0 * out.format.bits * config.word_bytes
        else:
            offset = unit.tile * config.n // config.k * out.format.bits * config.word_bytes

        def rows(band):
            if band.rows <= chunk.y0 or not wanted(band, chunk.y0):
                return None
            return min(chunk.y1, band.rows) - chunk.y0

        def address(band):
            return view.at(band.image, band.first + chunk.y0, strip.x0 + chunk.x0) + offset

        for first, slices, pitch, ny in _groups(strip.wave, rows, address):
            nx, each = (1, columns * words) if view.pitch == words * config.word_bytes else (columns, words)
            fields = dict(dram=address(strip.wave[first]), base=base, slice=first, slices=slices, slice_pitch=pitch, ny=ny,
                          y_pitch=view.row_pitch, nx=nx, x_pitch=view.pitch if nx > 1 else 0, words=each)
            cycles = schedule.dma_cycles(config, slices * ny * nx, each * config.word_bytes)
            self.store_at = builder.store(fields, (base, base + chunk.positions * words), execute, cycles)


class _Strip:
    """A strip's input in the act buffer. `need` loads what an execute reads, and gives its act fields and the words that they mean."""

    def __init__(self, emitter: _Emitter, wave: tuple[Band, ...], part: Part, x_tile: tuple[int, int], first: bool):
        self.e, self.wave, self.part = emitter, wave, part
        self.x0, self.columns = x_tile[0], x_tile[1] - x_tile[0]
        self.open(first)

    def open(self, first: bool) -> None:
        pass

    def close(self) -> None:
        pass

    # Loads common to rings and tiles

    def fill(self, base: int, mask: int, rows: int, words: int, row_pitch: int = 0, ring=(0, 0)) -> None:
        job, builder = self.e.job, self.e.builder
        fields = dict(base=base, mask=mask, ny=rows, row_pitch=row_pitch, words=words, planes=self.e.work.planes, code=job.pad,
                      valid=job.pad_valid, ring_base=ring[0], ring_words=ring[1])
        writes = [(row, row + words) for row in schedule._rows(fields, base, row_pitch, rows)]
        builder.load(Buffer.ACT, "FILL", fields, writes, rows * words)

    def rectangle(self, y: Axis, x: Axis, rows: tuple[int, int], columns: tuple[int, int], c0: int, c1: int,
                  at: Callable[[int, int], int], row_pitch: int, ring=(0, 0), filled: bool = False, pad_columns: bool = True) -> None:
        """Loads held rows (of each band) and columns (of the x tile), channel words c0..c1; padding is filled. `at(row, column)` gives
        the act word. `filled`: the rows outside the image are there already; not `pad_columns`: the columns."""
        e, config = self.e, self.e.config
        planes, view = e.work.planes, e.x
        each = (c1 - c0) * planes
        left = self.x0 * x.move
        lo, hi = (v - left for v in x.inside(left + columns[0], left + columns[1]))

        def inside(band) -> tuple[int, int]:
            top = band.first * y.move
            beyond = min(rows[1], y.held(band.rows))
            return tuple(r - top for r in y.inside(top + rows[0], top + beyond)) if beyond > rows[0] else (rows[0], rows[0])

        if not filled:
            self.fill_rows(y, rows, columns[1] - columns[0], lambda row: at(row, columns[0]), each)
        if pad_columns:
            mask = (1 << len(self.wave)) - 1
            for a, b in ((columns[0], lo), (hi, columns[1])) if lo < hi else ((columns[0], columns[1]),):
                if a < b:
                    self.fill(at(rows[0], a), mask, rows[1] - rows[0], (b - a) * each, row_pitch, ring)
        if lo >= hi:
            return
        whole = each * config.word_bytes == view.pitch and x.step == 1
        nx, words = (1, (hi - lo) * each) if whole else (hi - lo, each)

        def address(band):
            return view.at(band.image, y.source(band.first * y.move + inside(band)[0]), x.source(left + lo)) \
                + c0 * planes * config.word_bytes

        for first, slices, pitch, (a, b) in _groups(self.wave, lambda band: inside(band) if inside(band)[0] < inside(band)[1] else None,
                                                    address):
            fields = dict(buffer=Buffer.ACT, dram=address(self.wave[first]), base=at(a, lo), slice=first, slices=slices,
                          slice_pitch=pitch, ny=b - a, y_pitch=y.step * view.row_pitch, nx=nx,
                          x_pitch=x.step * view.pitch if nx > 1 else 0, words=words, row_pitch=row_pitch, ring_base=ring[0],
                          ring_words=ring[1])
            writes = [(row, row + nx * words) for row in schedule._rows(fields, at(a, lo), row_pitch, b - a)]
            cycles = schedule.dma_cycles(config, slices * (b - a) * nx, words * config.word_bytes)
            e.builder.load(Buffer.ACT, "LOAD", fields, writes, cycles, e.after_x)

    def fill_rows(self, y: Axis, rows: tuple[int, int], columns: int, at: Callable[[int], int], each: int) -> None:
        """Fills those of the held rows that are outside the image, for each band."""
        for row in range(*rows):
            mask = 0
            for s, band in enumerate(self.wave):
                if row < y.held(band.rows) and not 0 <= y.source(band.first * y.move + row) < y.size:
                    mask |= 1 << s
            if mask:
                self.fill(at(row), mask, 1, columns * each)


class _RingStrip(_Strip):
    """Input rows in a ring: row j of the strip is in slot (first + j) mod ring_rows."""

    def open(self, first: bool) -> None:
        e, plan, y = self.e, self.e.plan, self.e.work.y
        self.each = (self.part.c1 - self.part.c0) * e.work.planes
        self.held_columns = e.work.x.held(self.columns)
        self.held_rows = y.held(plan.band_rows)
        self.have = [0] * self.held_rows
        self.base_row = e.next_row
        self.filled = 0
        self.ring = (e.ring_base, plan.ring_words)
        if first:
            rows = min(plan.ring_rows, self.held_rows)
            if e.fixed:
                x = e.work.x
                lo, hi = x.inside(0, self.held_columns)
                for a, b in ((0, lo), (hi, self.held_columns)) if lo < hi else ((0, self.held_columns),):
                    if a < b:
                        self.fill(e.ring_base + a * self.each, (1 << e.config.m) - 1, plan.ring_rows, (b - a) * self.each,
                                  plan.row_words, self.ring)
            self.fill_rows(y, (0, rows), self.held_columns, lambda row: self.at(row, 0), self.each)
            self.filled = rows

    def close(self) -> None:
        self.e.next_row += self.held_rows

    def at(self, row: int, column: int) -> int:
        plan = self.e.plan
        return self.e.ring_base + (self.base_row + row) % plan.ring_rows * plan.row_words + column * self.each

    def need(self, unit: Unit, segment: Segment, chunk: Chunk):
        work, plan = self.e.work, self.e.plan
        y, x = work.y, work.x
        r0, t0 = segment.r0, segment.t0
        first, beyond = chunk.y0 * y.move, (chunk.y1 - 1) * y.move + y.extent
        columns = (chunk.x1 - 1) * x.move + x.extent if chunk.early and chunk.x1 < self.columns else self.held_columns
        self.load(first, beyond, columns)
        row, column = chunk.y0 * y.move + r0 * y.spread, chunk.x0 * x.move + t0 * x.spread
        skip = self.e.job.a_skip
        offset = (unit.c0 + segment.c0 - self.part.c0) * work.planes + skip
        kh, kw = segment.r1 - r0, segment.t1 - t0
        ny, nx = chunk.y1 - chunk.y0, chunk.x1 - chunk.x0
        base = self.at(row, column) + offset
        fields = dict(act_base=base, ring_base=self.ring[0], ring_words=self.ring[1], ny=ny, nx=nx, kh=kh, kw=kw,
                      sy=y.move * plan.row_words if ny > 1 else 0, sx=x.move * self.each if nx > 1 else 0,
                      skh=y.spread * plan.row_words if kh > 1 else 0, skw=x.spread * self.each if kw > 1 else 0)
        words = unit.c1 - unit.c0 if not work.w_bits else segment.c1 - segment.c0
        width = ((nx - 1) * x.move + (kw - 1) * x.spread) * self.each + words * work.planes
        rows = sorted({row + a * y.move + b * y.spread for a in range(ny) for b in range(kh)})
        return fields, [(at, at + width) for at in (self.at(r, column) + offset - skip for r in rows)]

    def load(self, first: int, beyond: int, columns: int) -> None:
        """Rows first..beyond up to `columns`, where they are not there yet."""
        e, y, x = self.e, self.e.work.y, self.e.work.x
        row = first
        while row < beyond:
            have = self.have[row]
            end = row + 1
            while end < beyond and self.have[end] == have and (end < self.filled) == (row < self.filled):
                end += 1
            if have < columns:
                self.rectangle(y, x, (row, end), (have, columns), self.part.c0, self.part.c1, self.at, e.plan.row_words, self.ring,
                               filled=row < self.filled, pad_columns=not e.fixed)
                self.have[row:end] = [columns] * (end - row)
            row = end


class _TileStrip(_Strip):
    """Every execute has its own piece of the input."""

    def need(self, unit: Unit, segment: Segment, chunk: Chunk):
        e, work = self.e, self.e.work
        y, x = work.y.part(segment.r0, segment.r1), work.x.part(segment.t0, segment.t1)
        ny, nx = chunk.y1 - chunk.y0, chunk.x1 - chunk.x0
        rows = (chunk.y0 * y.move, chunk.y0 * y.move + y.held(ny))
        columns = (chunk.x0 * x.move, chunk.x0 * x.move + x.held(nx))
        c0, c1 = unit.c0 + segment.c0, unit.c0 + segment.c1
        each = (c1 - c0) * work.planes
        pitch = (columns[1] - columns[0]) * each
        base = e.builder.allocate(Buffer.ACT, (rows[1] - rows[0]) * pitch)

        def at(row, column):
            return base + (row - rows[0]) * pitch + (column - columns[0]) * each

        self.rectangle(y, x, rows, columns, c0, c1, at, pitch)
        kh, kw = y.kernel, x.kernel
        fields = dict(act_base=base + e.job.a_skip, ny=ny, nx=nx, kh=kh, kw=kw, sy=y.move * pitch if ny > 1 else 0,
                      sx=x.move * each if nx > 1 else 0, skh=y.spread * pitch if kh > 1 else 0, skw=x.spread * each if kw > 1 else 0)
        return fields, [(base, base + (rows[1] - rows[0]) * pitch)]


class _PatchStrip(_Strip):
    """Patches of an image: a chunk's stay until the next chunk's come."""

    def open(self, first: bool) -> None:
        self.chunk, self.base = None, 0

    def need(self, unit: Unit, segment: Segment, chunk: Chunk):
        e, work = self.e, self.e.work
        nx = chunk.x1 - chunk.x0
        if (chunk.y0, chunk.x0, chunk.x1) != self.chunk:
            self.chunk = chunk.y0, chunk.x0, chunk.x1
            self.load(chunk, nx)
        fields = dict(act_base=self.base + segment.c0 * work.planes + e.job.a_skip, ny=1, nx=nx, kh=1, kw=1,
                      sx=work.patch_words if nx > 1 else 0)
        return fields, [(self.base, self.base + nx * work.patch_words)]

    def load(self, chunk: Chunk, nx: int) -> None:
        e, layer, view, config = self.e, self.e.job.layer, self.e.x, self.e.config
        words = nx * e.work.patch_words
        self.base = e.builder.allocate(Buffer.ACT, words)
        channels = view.tensor.shape[1]
        axis = Axis(e.work.x.out, view.columns, layer.kernel[1], layer.stride[1], layer.dilation[1], layer.padding[1])
        seg = _seg_bytes(view.tensor, axis, chunk.x0, nx, config)

        def row(band):
            return (band.first + chunk.y0) * layer.stride[0] - layer.padding[0]

        def key(band):
            return band.image if band.rows > chunk.y0 else None

        for first, slices, pitch, image in _groups(self.wave, key, row):
            fields = dict(dram=view.at(image, 0, 0), base=self.base, slice=first, slices=slices, y_pitch=view.row_pitch,
                          height=view.rows, width=view.columns, channels=channels, y0=row(self.wave[first]), y_step=pitch,
                          x0=chunk.x0 * layer.stride[1] - layer.padding[1], nx=nx, kh=layer.kernel[0], kw=layer.kernel[1],
                          sw=layer.stride[1], dh=layer.dilation[0], dw=layer.dilation[1], code=e.job.pad, seg_bytes=seg)
            e.builder.load(Buffer.ACT, "PATCH", fields, [(self.base, self.base + words)], slices * words, e.after_x)


# The whole

def generate(region: ir.Region, config: Config) -> Compiled:
    """The region's program for the machine of `config`. Raises CompileError, naming the layer, where something does not fit."""
    tail_zero = dict.fromkeys((t.name for t in region.inputs), True)
    memory, jobs = _Memory(), []
    for layer in region.layers:
        _check_widths(layer, config)
        job = _job(layer, config, tail_zero)
        tail_zero[layer.out.name] = job.tail_zero and (job.res is None or tail_zero[job.res.name])
        job.plan = tiler.plan(job.work, config)
        _constants(job, memory, config)
        jobs.append(job)
    image = memory.image
    places: dict[str, Place] = {}
    outputs = {t.name for t in region.outputs}
    for tensor in region.inputs:
        places[tensor.name] = _place(tensor, memory, config, "input")
    write_base = memory.size
    for layer in region.layers:
        places[layer.out.name] = _place(layer.out, memory, config, "output" if layer.out.name in outputs else "inner")
    limit = memory.size
    builder = schedule.Builder(config)
    written: dict[str, int] = {}
    firsts, notes = [], []
    for index, job in enumerate(jobs):
        firsts.append(builder.executes)
        if index < config.marks:
            builder.execute("MARK", dict(layer=index), {}, None, 0)
        written[job.layer.out.name] = _Emitter(builder, job, places, written, builder.elapsed(firsts[-2]) if index else 0).emit()
    if len(jobs) > config.marks > 0:
        notes.append(f"{len(jobs)} layers, {config.marks} rows of counters: layers from {jobs[config.marks - 1].layer.name} on share one")
    program, cycles = builder.finish()
    ranges = [(p.address, p.address + -(-p.size // ALIGN) * ALIGN) for p in places.values()]
    schedule.check(program, config, ranges)
    address = memory.reserve(len(program))
    if memory.size > 1 << 32:
        raise CompileError(f"{memory.size} bytes of memory: addresses have 32 bits; use a smaller batch or image")
    starts = [builder.queues[Queue.EXEC][first].start for first in firsts] + [cycles]
    infos = tuple(_info(job, i, config, starts[i + 1] - starts[i]) for i, job in enumerate(jobs))
    return Compiled(config, program, address, image, places, infos, tuple(t.name for t in region.inputs),
                    tuple(t.name for t in region.outputs), (0, limit), (write_base, limit), memory.size, cycles, tuple(notes))


def _place(tensor: ir.Tensor, memory: _Memory, config: Config, role: str) -> Place:
    size = layout.tensor_bytes(tensor, config)
    return Place(tensor, memory.reserve(size), size, role)


def _check_widths(layer: ir.Layer, config: Config) -> None:
    for tensor in (*layer.reads, layer.out):
        if tensor.layout == "planes" and tensor.format.bits > config.max_planes:
            raise CompileError(f"{layer.name}: {tensor.name} has {tensor.format.bits} planes, this machine {config.max_planes}; "
                               "make max_planes of Config larger, or the tensor narrower")
    if layer.x.layout == "int32":
        raise CompileError(f"{layer.name}: reads {layer.x.name}, int32 words; requantise them to {config.max_planes} bits or fewer")


def _info(job: Job, index: int, config: Config, cycles: int) -> LayerInfo:
    layer = job.layer
    kind = type(layer).__name__.lower()
    w = layer.w_format.bits if isinstance(layer, ir.Conv) else 1 if isinstance(layer, ir.SumPool) else 0
    reader = getattr(layer, "x_read", layer.x.format)
    steps = sum(job.work.steps(u) for u in job.work.units) * sum(
        job.plan.band_rows * job.work.x.out for _ in job.plan.waves)
    mark = index if index < config.marks else None
    return LayerInfo(layer.name, kind, layer.out.shape, mark, w, reader.bits, getattr(layer, "k", 0), layer.macs, layer.binary_macs,
                     layer.out.name, cycles, steps, job.weight_bytes)
