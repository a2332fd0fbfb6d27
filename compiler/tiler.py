"""Cuts a layer into tiles that fit the buffers. Pure arithmetic on shapes: no weights, no instructions.

Every row of the array has a *band* of output rows of some image; the bands that run at the same time are a *wave*. A
wave's columns are cut into *x tiles*, its channels (of a layer whose outputs each need only some) into *parts*. A *strip*
is one wave, one part and one x tile: its input rows pass through the act buffer, in a ring or as patches, and its output
positions are computed in *chunks*, for one *unit* of output channels at a time. Where the products of an output do not
fit a buffer they are split into *segments*.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from seriatim.config import Config
from seriatim.errors import CompileError

FIRST_LOAD_BEATS = 600
"""How much of a layer's input to load before its first execute."""
LAST_STORE_BEATS = 150
"""How much of a layer's output to store after its last execute."""
MAX_ROWS = 255
"""Rows of one execute."""


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a window. The act buffer *holds* one sample in `step` of the input, from the first that a
    window sees."""

    out: int
    size: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @property
    def step(self) -> int:
        return self.stride if self.kernel == 1 else math.gcd(self.stride, self.dilation)

    @property
    def move(self) -> int:
        """Held samples from an output to the next."""
        return self.stride // self.step

    @property
    def spread(self) -> int:
        """Held samples from a tap to the next."""
        return self.dilation // self.step if self.kernel > 1 else 1

    @property
    def extent(self) -> int:
        """Held samples that an output sees, gaps included."""
        return (self.kernel - 1) * self.spread + 1

    def held(self, outputs: int) -> int:
        """Held samples that neighbouring outputs see."""
        return (outputs - 1) * self.move + self.extent

    def source(self, sample: int) -> int:
        """Input sample that is held at `sample`; outside 0..size it is padding."""
        return sample * self.step - self.before

    def inside(self, first: int, beyond: int) -> tuple[int, int]:
        """Those of the held samples first..beyond that are not padding, as such a range."""
        lo = max(first, -(-self.before // self.step))
        hi = min(beyond, (self.size - 1 + self.before) // self.step + 1)
        return (lo, hi) if lo < hi else (first, first)

    def part(self, first: int, beyond: int) -> "Axis":
        """The same outputs with only the taps first..beyond."""
        return replace(self, kernel=beyond - first, before=self.before - first * self.dilation)


@dataclass(frozen=True)
class Band:
    """Output rows `first .. first + rows` of an image, for one row of the array."""

    image: int
    first: int
    rows: int


@dataclass(frozen=True)
class Unit:
    """Outputs of one execute: column tiles `tile .. tile + tiles`, which read channel words `c0 .. c1` of the input."""

    index: int
    tile: int
    tiles: int
    c0: int
    c1: int


@dataclass(frozen=True)
class Part:
    """Units that share channel words `c0 .. c1` in the act buffer."""

    c0: int
    c1: int
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Segment:
    """Products: taps `r0..r1` x `t0..t1`, channel words `c0..c1` counted from the unit's first."""

    r0: int
    r1: int
    t0: int
    t1: int
    c0: int
    c1: int

    @property
    def words(self) -> int:
        return (self.r1 - self.r0) * (self.t1 - self.t0) * (self.c1 - self.c0)


@dataclass(frozen=True)
class Chunk:
    """Output rows `y0..y1` and columns `x0..x1` of a strip. `early`: load no more of the input than it needs."""

    y0: int
    y1: int
    x0: int
    x1: int
    early: bool = False

    @property
    def positions(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


@dataclass(frozen=True)
class Work:
    """A layer's shape, as the tiler needs it.

    Members
    -------
    images : of the batch. y, x : the window.
    planes : words of one channel word and column in the act buffer.
    patch_words : act words of a position's patch, 0: none. patch_fits(x0, x1): the line memory holds what these columns see.
    a_bits, w_bits : planes that are multiplied (w_bits 0: a max pool, which has neither weights nor params).
    each : array cycles for a pair of words.
    units : the outputs.
    each_weight : words of a column tile, tap and channel word in the wgt buffer; all taps share one word if `shared`.
    out_words : out words of a position and column tile range, by unit.
    res_planes : of the residual, 0: none.
    """

    name: str
    images: int
    y: Axis
    x: Axis
    planes: int
    a_bits: int
    w_bits: int
    units: tuple[Unit, ...]
    out_words: Callable[[Unit], int]
    res_planes: int = 0
    shared: bool = False
    each: int = 1
    patch_words: int = 0
    patch_fits: Callable[[int, int], bool] | None = None

    @property
    def taps(self) -> int:
        return self.y.kernel * self.x.kernel

    def weights(self, unit: Unit, words: int | None = None) -> int:
        """Wgt words of a unit, for `words` products of taps and channel words (all of them by default)."""
        if self.shared:
            return unit.tiles * self.w_bits
        return unit.tiles * self.w_bits * (self.taps * (unit.c1 - unit.c0) if words is None else words)

    def steps(self, unit: Unit) -> int:
        """Array (or pool) cycles of a position."""
        if not self.w_bits:
            return self.taps * (unit.c1 - unit.c0) * self.planes
        return unit.tiles * self.taps * (unit.c1 - unit.c0) * self.each


@dataclass(frozen=True)
class Plan:
    """How a layer runs. `mode`: how the act buffer is filled: `ring` of rows, `patch`es of an image, or one `tile` a segment."""

    work: Work
    config: Config
    mode: str
    band_rows: int
    waves: tuple[tuple[Band, ...], ...]
    parts: tuple[Part, ...]
    x_tiles: tuple[tuple[int, int], ...]
    positions: int
    segments: dict[int, tuple[Segment, ...]] = field(hash=False)
    ring_rows: int = 0
    row_words: int = 0
    resident: bool = True
    tile_rows: int = 1
    patch_positions: int = 0

    @property
    def ring_words(self) -> int:
        return self.ring_rows * self.row_words

    @cached_property
    def weight_words(self) -> int:
        return self.work.weights(self.work.units[0]) if self.work.shared else sum(self.work.weights(u) for u in self.work.units)

    def strips(self) -> list[tuple[tuple[Band, ...], Part, tuple[int, int]]]:
        return [(wave, part, tile) for wave in self.waves for part in self.parts for tile in self.x_tiles]

    def tiles(self, strip: int, part: Part, columns: int) -> Iterator[list[list[Chunk]]]:
        """Tiles of a strip. Each is a list with the chunks of every unit: of the first, of those between, of the last."""
        first, last = strip == 0, strip == len(self.waves) * len(self.parts) * len(self.x_tiles) - 1
        many = len(part.units) > 1
        if self.resident:
            for chunk in self.chunks(0, self.band_rows, columns, part, first, last):
                yield [[chunk]] * 3
            return
        for y0 in range(0, self.band_rows, self.tile_rows):
            y1 = min(y0 + self.tile_rows, self.band_rows)
            opens, closes = first and y0 == 0, last and y1 == self.band_rows
            inner = self.chunks(y0, y1, columns, part)
            yield [self.chunks(y0, y1, columns, part, opens, closes and not many), inner,
                   self.chunks(y0, y1, columns, part, opens and not many, closes)]

    def chunks(self, y0: int, y1: int, columns: int, part: Part, first: bool = False, last: bool = False) -> list[Chunk]:
        """Chunks of output rows y0..y1, small ones where they are the first or the last of the layer."""
        most = self.positions
        early = self._early(columns, part) if first else []
        chunks, y = [], y0
        if len(early) > 1:
            x = 0
            for width in early:
                chunks.append(Chunk(y0, y0 + 1, x, x + width, True))
                x += width
            y += 1
        rows = min(most // columns, MAX_ROWS, y1 - y0)
        if self.mode == "ring" and rows > 1:
            axis = self.work.y
            fit = [n for n in range(1, rows + 1) if axis.held(n) + min(n, self.band_rows - n) * axis.move <= self.ring_rows]
            rows = max(fit, default=1)
        elif self.mode != "ring":
            rows = min(rows, 1)
        while y < y1:
            if rows and self.mode != "patch":
                chunks.append(Chunk(y, min(y + rows, y1), 0, columns))
                y += rows
                continue
            for a, b in self.patches(columns) if self.mode == "patch" else ((0, columns),):
                chunks += [Chunk(y, y + 1, a + c, a + d) for c, d in even(b - a, -(-(b - a) // most))]
            y += 1
        if last:
            chunks += self._late(chunks.pop(), part)
        return chunks

    def patches(self, columns: int) -> tuple[tuple[int, int], ...]:
        """Columns of a row's patches that are built together."""
        return even(columns, -(-columns // self.patch_positions))

    def _early(self, columns: int, part: Part) -> list[int]:
        """Widths of the first row's chunks: each is loaded in half the time that the one before it is
        computed, if it can be."""
        work, config = self.work, self.config
        beats = config.word_bytes // config.axi_bytes * len(self.waves[0])
        steps = max(1, sum(work.steps(unit) for unit in part.units))
        if not self.resident:
            steps = max(1, work.steps(part.units[0]))
        if self.mode == "patch":
            column, reach = work.patch_words * len(self.waves[0]), 1
        else:
            column, reach = beats * work.y.extent * (part.c1 - part.c0) * work.planes * work.x.move, work.x.extent
        most = min(self.positions, columns, self.patch_positions or columns)
        width = min(most, max(1, (FIRST_LOAD_BEATS - beats * reach) // max(1, column)))
        widths, at = [], 0
        while at < columns:
            width = min(width, columns - at)
            while self.mode == "patch" and not work.patch_fits(at, at + width):
                width -= 1
            widths.append(width)
            at += width
            width = min(most, max(2 * width, width * steps // max(1, 2 * column)))
        return widths

    def _late(self, chunk: Chunk, part: Part) -> list[Chunk]:
        """The last chunk, cut so that little is left to store at the end."""
        work, config = self.work, self.config
        each = config.word_bytes // config.axi_bytes * len(self.waves[-1]) * work.out_words(part.units[-1])
        width, left = chunk.x1 - chunk.x0, max(1, LAST_STORE_BEATS // each)
        if chunk.positions <= left + 1 or width == 1 and chunk.y1 - chunk.y0 == 1:
            return [chunk]
        if chunk.y1 - chunk.y0 > 1:
            middle = chunk.y1 - 1
            return [replace(chunk, y1=middle), *self._late(replace(chunk, y0=middle, early=False), part)]
        left = min(left, width - 1)
        return [replace(chunk, x1=chunk.x1 - left), replace(chunk, x0=chunk.x1 - left, early=False)]


def bands(images: int, rows: int, config: Config) -> tuple[int, tuple[tuple[Band, ...], ...]]:
    """Rows of a band, and the waves: as few rows in all as can be, then as large a band as can be."""
    def cost(height):
        return -(-images * -(-rows // height) // config.m) * height, -height

    height = min(range(1, rows + 1), key=cost)
    every = [Band(i, y, min(height, rows - y)) for i in range(images) for y in range(0, rows, height)]
    return height, tuple(tuple(every[i:i + config.m]) for i in range(0, len(every), config.m))


def even(size: int, count: int) -> tuple[tuple[int, int], ...]:
    """0..size in `count` nearly equal ranges."""
    edges = [size * i // count for i in range(count + 1)]
    return tuple(zip(edges, edges[1:]))


def split(rows: int, columns: int, words: int, fits: Callable[[int, int, int], bool]) -> tuple[Segment, ...] | None:
    """The fewest segments of taps and channel words all of which fit, or None."""
    best, sizes = None, None
    for r in sorted({-(-rows // i) for i in range(1, rows + 1)}, reverse=True):
        for t in sorted({-(-columns // i) for i in range(1, columns + 1)}, reverse=True):
            lo, hi = 0, words
            while lo < hi:
                middle = (lo + hi + 1) // 2
                lo, hi = (middle, hi) if fits(r, t, middle) else (lo, middle - 1)
            if lo:
                count = -(-rows // r) * -(-columns // t) * -(-words // lo)
                if best is None or count < best:
                    best, sizes = count, (r, t, lo)
    if sizes is None:
        return None
    ranges = [even(size, -(-size // most)) for size, most in zip((rows, columns, words), sizes)]
    return tuple(Segment(*r, *t, *c) for c in ranges[2] for r in ranges[0] for t in ranges[1])


def _parts(units: tuple[Unit, ...], most: int) -> tuple[Part, ...] | None:
    """Units in turn, as many together as `most` channel words allow; None where one alone needs more."""
    parts: list[list[Unit]] = []
    for unit in units:
        if unit.c1 - unit.c0 > most:
            return None
        if parts:
            group = [*parts[-1], unit]
            if max(u.c1 for u in group) - min(u.c0 for u in group) <= most:
                parts[-1] = group
                continue
        parts.append([unit])
    return tuple(Part(min(u.c0 for u in p), max(u.c1 for u in p), tuple(p)) for p in parts)


def plan(work: Work, config: Config) -> Plan:
    """Raises CompileError where no tile fits."""
    height, waves = bands(work.images, work.y.out, config)
    positions = _positions(work, config)
    words = max(u.c1 for u in work.units) - min(u.c0 for u in work.units)
    if work.patch_words:
        return _patches(work, config, height, waves, positions)
    for wish in (True, False):  # double buffering, or just room for one output row
        most = words
        while most:
            parts = _parts(work.units, most)
            if parts is None:
                break
            narrow = most == 1 or _parts(work.units, most - 1) is None
            found = _ring(work, config, height, len(waves), parts, wish, narrow)
            if found:
                rows, row_words, x_tiles = found
                base = Plan(work, config, "ring", height, waves, parts, x_tiles, positions, {}, rows, row_words)
                return _weights(base)
            most -= 1 if most < 8 else most // 8
    if not work.w_bits:
        unit = work.units[0]
        need = work.y.extent * work.x.extent * (unit.c1 - unit.c0) * work.planes
        raise CompileError(f"{work.name}: one window takes {need} act words, the buffer has {config.act_words}; "
                           f"make act_words of Config larger, or the window smaller")
    return _tiles(work, config, height, waves, positions)


def _positions(work: Work, config: Config) -> int:
    """Most positions of an execute."""
    def most(name, each, half=True):
        have = getattr(config, name)
        if each > have:
            raise CompileError(f"{work.name}: one position takes {each} words of {name.removesuffix('_words')} buffer, there are "
                               f"{have}; make {name} of Config at least {2 * each}")
        return max(1, (have // 2 if half else have) // each)

    tiles = max(u.tiles for u in work.units)
    if work.w_bits and tiles > config.prm_words:
        raise CompileError(f"{work.name}: {tiles} column tiles take as many param words, there are {config.prm_words}; make "
                           "prm_words of Config larger")
    positions = most("out_words", max(work.out_words(u) for u in work.units))
    if work.res_planes:
        positions = min(positions, most("res_words", work.res_planes))
    return positions


def _ring(work: Work, config: Config, height: int, waves: int, parts, double: bool, narrow: bool):
    """Rows of the ring, words of a row and x tiles, for parts; or None."""
    held = work.y.held(height)
    each = max(p.c1 - p.c0 for p in parts) * work.planes
    want = min(held, work.y.extent + work.y.move) if double else work.y.extent
    strips, alone = len(parts) > 1, waves == 1 and len(parts) == 1
    for count in range(1, work.x.out + 1):
        tiles = even(work.x.out, count)
        width = max(b - a for a, b in tiles)
        if not narrow and count > 1 and work.x.held(width) > 1.5 * width * work.x.move:
            return None  # too much halo: fewer channel words are better
        row_words = work.x.held(width) * each
        rows = config.act_words // row_words
        need = want if count == 1 and not strips or not double else min(work.y.extent + work.y.move, 2 * held)
        if rows >= need:
            return min(rows, held if alone and count == 1 else 2 * held), row_words, tiles
    return None


def _weights(base: Plan) -> Plan:
    """Completes a plan: what of the weights stays, and how large a tile is otherwise."""
    work, config = base.work, base.config
    whole = {u.index: (Segment(0, work.y.kernel, 0, work.x.kernel, 0, u.c1 - u.c0),) for u in work.units}
    if not work.w_bits or base.weight_words <= config.wgt_words:
        return replace(base, segments=whole)
    largest = max(work.weights(u) for u in work.units)
    tiles = max(u.tiles for u in work.units)
    psum = config.psum_words // (tiles * config.m)
    for limit in (config.wgt_words // 2, config.wgt_words):
        if psum and largest > limit:
            segments = {u.index: split(work.y.kernel, work.x.kernel, u.c1 - u.c0,
                                       lambda r, t, c, u=u, most=limit: work.weights(u, r * t * c) <= most) for u in work.units}
            if all(segments.values()):
                base = replace(base, segments=segments, positions=min(base.positions, psum), resident=False)
                return replace(base, tile_rows=_tile_rows(base))
    if largest > config.wgt_words:
        need = f"{work.weights(work.units[0], 1)} wgt words and {tiles * config.m} psum words"
        raise CompileError(f"{work.name}: {tiles} column tiles need at least {need}, there are {config.wgt_words} and "
                           f"{config.psum_words}; make wgt_words or psum_words of Config larger")
    base = replace(base, segments=whole, resident=False)
    return replace(base, tile_rows=_tile_rows(base))


def _tile_rows(base: Plan) -> int:
    """Output rows for which a streamed weight is used before the next one comes, by estimated cycles."""
    work, config = base.work, base.config
    if base.mode == "patch":
        return 1
    columns = max(b - a for a, b in base.x_tiles)
    chunks = -(-columns // base.positions)
    steps = columns * sum(work.steps(u) for u in work.units)
    weights = sum(work.weights(u) for u in work.units) * (config.wgt_word_bytes // config.axi_bytes)
    row = base.row_words * config.m * config.word_bytes // config.axi_bytes
    split_up = max(len(s) for s in base.segments.values()) > 1

    def cost(rows):
        count = -(-base.band_rows // rows)
        streams = max(-(-rows * columns // base.positions), rows * chunks if chunks > 1 else 1) if split_up else 1
        loads = rows * work.y.move * row
        late = loads if work.y.held(rows) + rows * work.y.move > base.ring_rows and count > 1 else 0
        return count * (max(rows * steps, streams * weights + loads) + late), rows

    fit = [n for n in range(1, base.band_rows + 1) if work.y.held(n) <= base.ring_rows]
    return min(fit, key=cost)


def _patches(work: Work, config: Config, height, waves, positions) -> Plan:
    if not work.patch_fits(0, 1):
        raise CompileError(f"{work.name}: the patch of one position needs more than the {config.line_bytes} bytes of a line "
                           "memory; make line_bytes of Config larger, or the kernel smaller")
    if work.patch_words > config.act_words:
        raise CompileError(f"{work.name}: the patch of one position takes {work.patch_words} act words, the buffer has "
                           f"{config.act_words}; make act_words of Config larger, or the kernel smaller")
    together = min(work.x.out, max(1, config.act_words // 3 // work.patch_words))
    while not all(work.patch_fits(a, b) for a, b in even(work.x.out, -(-work.x.out // together))):
        together -= 1
    parts = (Part(0, max(u.c1 for u in work.units), work.units),)
    base = Plan(work, config, "patch", height, waves, parts, ((0, work.x.out),), positions, {}, patch_positions=together)
    return _weights(base)


def _tiles(work: Work, config: Config, height, waves, positions) -> Plan:
    """Segments that each load their own piece of the input: for windows larger than the act buffer."""
    tiles = max(u.tiles for u in work.units)
    psum = config.psum_words // (tiles * config.m)

    def act(r, t, c, width):
        y, x = work.y.part(0, r), work.x.part(0, t)
        return y.held(1) * x.held(width) * c * work.planes

    def fits(u, r, t, c, share):
        return act(r, t, c, 1) <= config.act_words // share and work.weights(u, r * t * c) <= config.wgt_words // share

    for share in (2, 1):
        segments = {u.index: split(work.y.kernel, work.x.kernel, u.c1 - u.c0,
                                   lambda r, t, c, u=u, share=share: fits(u, r, t, c, share)) for u in work.units}
        if all(segments.values()):
            break
    else:
        raise CompileError(f"{work.name}: one channel word and tap takes {work.planes} act words and "
                           f"{max(work.weights(u, 1) for u in work.units)} wgt words, there are {config.act_words} and "
                           f"{config.wgt_words}; make them larger in Config")
    if max(len(s) for s in segments.values()) > 1:
        if not psum:
            raise CompileError(f"{work.name}: its sums are split, which takes {tiles * config.m} psum words a position, there "
                               f"are {config.psum_words}; make psum_words or act_words of Config larger")
        positions = min(positions, psum)
    every = [s for u in work.units for s in segments[u.index]]
    while positions > 1 and max(act(s.r1 - s.r0, s.t1 - s.t0, s.c1 - s.c0, positions) for s in every) > config.act_words // share:
        positions -= 1
    part = Part(min(u.c0 for u in work.units), max(u.c1 for u in work.units), work.units)
    resident = work.shared or sum(work.weights(u) for u in work.units) <= config.wgt_words
    return Plan(work, config, "tile", height, waves, (part,), ((0, work.x.out),), positions, segments, resident=resident)
