"""The input of a strip in the act buffer: the loads that bring it, and where an execute finds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seriatim.compiler import ir, schedule
from seriatim.compiler.jobs import seg_bytes
from seriatim.compiler.tiler import Axis, Band, Chunk, Part, Segment, Unit
from seriatim.isa import Buffer

if TYPE_CHECKING:
    from seriatim.compiler.emit import Emitter


@dataclass(frozen=True)
class View:
    """A tensor in memory as the tiler sees it, with the bytes from image to image, row to row and column to column."""

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
        at = self.address + image * self.image_pitch + row * self.row_pitch + column * self.pitch
        return at + word * self.pitch // self.split


def runs(bands: tuple[Band, ...], key: Callable[[Band], object],
         address: Callable[[Band], int]) -> Iterator[tuple[int, int, int, object]]:
    """(first slice, slices, step from slice to slice, key) of runs of bands with one key and even addresses. A band
    whose key is None is left out."""
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


class Strip:
    """A strip's input in the act buffer. `need` loads what an execute reads, and gives its act fields and the words that
    they mean."""

    def __init__(self, emitter: "Emitter", wave: tuple[Band, ...], part: Part, x_tile: tuple[int, int], first: bool):
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
        writes = [(row, row + words) for row in schedule.wrapped_rows(fields, base, row_pitch, rows)]
        builder.load(Buffer.ACT, "FILL", fields, writes, rows * words)

    def rectangle(self, y: Axis, x: Axis, rows: tuple[int, int], columns: tuple[int, int], c0: int, c1: int,
                  at: Callable[[int, int], int], row_pitch: int, ring=(0, 0), filled: bool = False,
                  pad_columns: bool = True) -> None:
        """Loads held rows (of each band) and columns (of the x tile), channel words c0..c1; padding is filled.
        `at(row, column)` gives the act word. `filled`: the rows outside the image are there already; not `pad_columns`:
        the columns."""
        e, config = self.e, self.e.config
        planes, view = e.work.planes, e.x
        each = (c1 - c0) * planes
        left = self.x0 * x.move
        lo, hi = (v - left for v in x.inside(left + columns[0], left + columns[1]))

        def inside(band) -> tuple[int, int]:
            top = band.first * y.move
            beyond = min(rows[1], y.held(band.rows))
            lo, hi = y.inside(top + rows[0], top + beyond) if beyond > rows[0] else (top, top)
            return lo - top, hi - top

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

        def key(band):
            lo, hi = inside(band)
            return (lo, hi) if lo < hi else None

        for first, slices, pitch, (a, b) in runs(self.wave, key, address):
            fields = dict(buffer=Buffer.ACT, dram=address(self.wave[first]), base=at(a, lo), slice=first, slices=slices,
                          slice_pitch=pitch, ny=b - a, y_pitch=y.step * view.row_pitch, nx=nx,
                          x_pitch=x.step * view.pitch if nx > 1 else 0, words=words, row_pitch=row_pitch, ring_base=ring[0],
                          ring_words=ring[1])
            writes = [(row, row + nx * words) for row in schedule.wrapped_rows(fields, at(a, lo), row_pitch, b - a)]
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


class RingStrip(Strip):
    """Input rows in a ring: row j of the strip is in slot (first + j) mod ring_rows."""

    def open(self, first: bool) -> None:
        e, plan, y = self.e, self.e.plan, self.e.work.y
        self.each = (self.part.c1 - self.part.c0) * e.work.planes
        self.held_columns = e.work.x.held(self.columns)
        self.held_rows = y.held(plan.band_rows)
        self.have = [0] * self.held_rows
        self.base_row = e.next_row
        self.filled = 0, 0
        self.ring = (e.ring_base, plan.ring_words)
        if first:
            if e.fixed:
                lo, hi = e.work.x.inside(0, self.held_columns)
                lo, hi = (lo, hi) if lo < hi else (self.held_columns, self.held_columns)
                e.right = (hi, self.held_columns) if hi < self.held_columns else None
                self.fill_columns(0, lo)
            chunk = next(plan.tiles(0, self.part, self.columns))[0][0]
            self.filled = (chunk.y1 - 1) * y.move + y.extent, self.reach(chunk)
            self.fill_rows(y, (0, self.filled[0]), self.filled[1], lambda row: self.at(row, 0), self.each)

    def close(self) -> None:
        self.e.next_row += self.held_rows

    def reach(self, chunk: Chunk) -> int:
        """Held columns to load for a chunk."""
        x = self.e.work.x
        return (chunk.x1 - 1) * x.move + x.extent if chunk.early and chunk.x1 < self.columns else self.held_columns

    def fill_columns(self, first: int, beyond: int) -> None:
        """Fills padding columns of every row of the ring."""
        e, plan = self.e, self.e.plan
        if first < beyond:
            mask = (1 << e.config.m) - 1
            words = (beyond - first) * self.each
            self.fill(e.ring_base + first * self.each, mask, plan.ring_rows, words, plan.row_words, self.ring)

    def at(self, row: int, column: int) -> int:
        plan = self.e.plan
        return self.e.ring_base + (self.base_row + row) % plan.ring_rows * plan.row_words + column * self.each

    def need(self, unit: Unit, segment: Segment, chunk: Chunk):
        work, plan = self.e.work, self.e.plan
        y, x = work.y, work.x
        r0, t0 = segment.r0, segment.t0
        first, beyond = chunk.y0 * y.move, (chunk.y1 - 1) * y.move + y.extent
        self.load(first, beyond, self.reach(chunk))
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
        if e.fixed and e.right and columns > e.right[0]:
            self.fill_columns(*e.right)
            e.right = None
        row = first
        while row < beyond:
            have = self.have[row]
            filled = row < self.filled[0] and columns <= self.filled[1]
            end = row + 1
            while end < beyond and self.have[end] == have and (end < self.filled[0]) == (row < self.filled[0]):
                end += 1
            if have < columns:
                self.rectangle(y, x, (row, end), (have, columns), self.part.c0, self.part.c1, self.at, e.plan.row_words,
                               self.ring, filled=filled, pad_columns=not e.fixed)
                self.have[row:end] = [columns] * (end - row)
            row = end


class TileStrip(Strip):
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
                      sx=x.move * each if nx > 1 else 0, skh=y.spread * pitch if kh > 1 else 0,
                      skw=x.spread * each if kw > 1 else 0)
        return fields, [(base, base + (rows[1] - rows[0]) * pitch)]


class PatchStrip(Strip):
    """Patches of an image: those of some columns stay until the next columns' come."""

    def open(self, first: bool) -> None:
        self.loaded, self.base = None, 0

    def need(self, unit: Unit, segment: Segment, chunk: Chunk):
        e, work = self.e, self.e.work
        nx = chunk.x1 - chunk.x0
        a, b = chunk.x0, chunk.x1
        if not chunk.early:
            a, b = next((a, b) for a, b in e.plan.patches(self.columns) if b > chunk.x0)
        if (chunk.y0, a, b) != self.loaded:
            self.loaded = chunk.y0, a, b
            self.load(chunk.y0, a, b - a)
        base = self.base + (chunk.x0 - a) * work.patch_words
        fields = dict(act_base=base + segment.c0 * work.planes + e.job.a_skip, ny=1, nx=nx, kh=1, kw=1,
                      sx=work.patch_words if nx > 1 else 0)
        return fields, [(base, base + nx * work.patch_words)]

    def load(self, y: int, x0: int, nx: int) -> None:
        e, layer, view, config = self.e, self.e.job.layer, self.e.x, self.e.config
        words = nx * e.work.patch_words
        self.base = e.builder.allocate(Buffer.ACT, words)
        channels = view.tensor.shape[1]
        axis = Axis(e.work.x.out, view.columns, layer.kernel[1], layer.stride[1], layer.dilation[1], layer.padding[1])
        seg = seg_bytes(view.tensor, axis, x0, nx, config)

        def row(band):
            return (band.first + y) * layer.stride[0] - layer.padding[0]

        def key(band):
            return band.image if band.rows > y else None

        for first, slices, pitch, image in runs(self.wave, key, row):
            fields = dict(dram=view.at(image, 0, 0), base=self.base, slice=first, slices=slices, y_pitch=view.row_pitch,
                          height=view.rows, width=view.columns, channels=channels, y0=row(self.wave[first]), y_step=pitch,
                          x0=x0 * layer.stride[1] - layer.padding[1], nx=nx, kh=layer.kernel[0], kw=layer.kernel[1],
                          sw=layer.stride[1], dh=layer.dilation[0], dw=layer.dilation[1], code=e.job.pad, seg_bytes=seg)
            e.builder.load(Buffer.ACT, "PATCH", fields, [(self.base, self.base + words)], slices * words, e.after_x)


STRIPS = {"ring": RingStrip, "patch": PatchStrip, "tile": TileStrip}
"""By `Plan.mode`."""
