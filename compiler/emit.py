"""One layer's instructions, in the order of a machine without overlap."""

import numpy as np

from seriatim.compiler import engines, layout, schedule
from seriatim.compiler.jobs import Job
from seriatim.compiler.program import Place
from seriatim.compiler.strips import STRIPS, View, runs
from seriatim.compiler.tiler import Chunk, Part, Segment, Unit
from seriatim.formats import Kind
from seriatim.isa import Buffer, Output


class Cache:
    """Constants of one layer in the wgt or param buffer: all of them in a block of their own where they fit, else in turn."""

    def __init__(self, builder: schedule.Builder, buffer: Buffer, total: int, most: int, word_bytes: int):
        """`total` words in all, at most `most` at a time."""
        self.builder, self.buffer, self.word_bytes = builder, buffer, word_bytes
        depth = schedule.buffer_words(buffer, builder.config)
        self.next = builder.reserve(buffer, total) if total <= depth else None
        self.slot = depth // (depth // most)
        self.turn = None
        self.entries: dict[object, schedule.Range] = {}

    def next_free(self, words: int) -> int:
        """Cycle, by `Builder.elapsed`, from which the block's next words are free."""
        used = self.builder.used[self.buffer][self.next:self.next + words]
        return self.builder.elapsed(int(used.max(initial=-1)) + 1)

    def _turn(self, words: int) -> int:
        """Slots are taken in turn, at first the one that is free earliest."""
        used = self.builder.used[self.buffer]
        count = len(used) // self.slot
        if self.turn is None:
            self.turn = min(range(count), key=lambda i: used[i * self.slot:i * self.slot + words].max())
        else:
            self.turn = (self.turn + 1) % count
        return self.turn * self.slot

    def get(self, key, words: int, dram: int) -> int:
        """Buffer word at which `words` from `dram` are (or will be, once the load before the next execute is done)."""
        if key in self.entries:
            return self.entries[key][0]
        if self.next is None:
            base = self._turn(words)
            self.entries = {k: (lo, hi) for k, (lo, hi) in self.entries.items() if hi <= base or base + words <= lo}
        else:
            base = self.next
            self.next += words
        self.entries[key] = base, base + words
        fields = dict(buffer=self.buffer, dram=dram, base=base, words=words)
        cycles = schedule.dma_cycles(self.builder.config, 1, words * self.word_bytes)
        self.builder.load(self.buffer, "LOAD", fields, [(base, base + words)], cycles)
        return base


class Emitter:
    """Writes one layer's instructions."""

    def __init__(self, builder: schedule.Builder, job: Job, places: dict[str, Place], written: dict[str, int], loaded: int):
        """`written`: the last store of each tensor. `loaded`: cycle, by `Builder.elapsed`, at which the loads so far are done."""
        self.builder, self.config, self.job, self.plan, self.work = builder, builder.config, job, job.plan, job.work
        self.x = self._view(places[job.x.name], job.shape_in)
        self.out = self._view(places[job.layer.out.name], job.shape_out)
        self.res = self._view(places[job.res.name], job.shape_out) if job.res else None
        self.after_x = written.get(job.x.name, -1)
        self.after_res = written.get(job.res.name, -1) if job.res else -1
        config = self.config
        units = self.work.units
        self.prm_words = sum(u.tiles for u in units)
        total = self.prm_words * len(job.params)
        if self.work.w_bits:
            most = max(self.work.weights(u, s.words) for u in units for s in self.plan.segments[u.index])
            self.wgt = Cache(builder, Buffer.WGT, self.plan.weight_words, most, config.wgt_word_bytes)
            self.prm = Cache(builder, Buffer.PRM, total, max(u.tiles for u in units), config.prm_word_bytes)
        self.prm_whole = total <= config.prm_words
        self.ring_base = 0
        self.next_row = 0
        self.words_of_column = max(p.c1 - p.c0 for p in self.plan.parts) * self.work.planes
        self.right = None
        self.fixed = len(self.plan.x_tiles) == 1 and len({p.c1 - p.c0 for p in self.plan.parts}) == 1
        self.store_at = -1
        self.loaded = loaded
        self.out_slot = 0

    def _view(self, place: Place, shape) -> View:
        images, rows, columns = shape
        pitch = layout.position_bytes(place.tensor, self.config)
        row = -(-columns * pitch // self.config.axi_bytes) * self.config.axi_bytes
        return View(place.tensor, place.address, images, rows, columns, rows * row, row, pitch, self.job.split)

    def emit(self) -> int:
        """Index of the layer's last store."""
        plan = self.plan
        if self.job.kind == "conv":
            for name, fields in engines.settings(self.job.codes, self.job.layer):
                self.builder.set(name, fields)
        if plan.mode == "ring":
            self.ring_base = self.builder.reserve(Buffer.ACT, plan.ring_words)
        for index, (wave, part, x_tile) in enumerate(plan.strips()):
            self._constants_of(part)
            strip = STRIPS[plan.mode](self, wave, part, x_tile, index == 0)
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
                done = self.loaded + schedule.dma_cycles(self.config, 1, self.prm_words * self.config.prm_word_bytes)
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
            if not len(across):
                continue
            changes = (across[:, 1:] != across[:, :-1]).any(axis=0)
            cuts = [0, *(1 + np.flatnonzero(changes)).tolist(), across.shape[1]]
            for a, b in zip(cuts, cuts[1:]):
                for index in sorted(set(across[:, a].tolist())):
                    column = strip.x0 + chunk.x0 + a
                    piece = Chunk(y, y + 1, chunk.x0 + a, chunk.x0 + b)
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
                signed = int(job.x.format.kind is Kind.INT)
                fields = act | dict(ng=unit.tiles, planes=work.planes, is_signed=signed, out_base=base)
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
            cycles = positions * unit.tiles * segment.words * work.each
            execute = builder.execute("CONV", fields, used, (base, base + positions * words) if last else None, cycles)
        self._store(strip, unit, chunk, words, base, execute, wanted)

    def _conv_fields(self, unit: Unit, segment: Segment, i: int, used) -> dict:
        work, job = self.work, self.job
        base = self._weights(unit, i)
        each = 0 if work.shared else (segment.c1 - segment.c0) * work.w_bits
        per_tile = work.w_bits if work.shared else segment.words * work.w_bits
        span = unit.tiles * per_tile
        used[Buffer.WGT] = [(base, base + span)]
        return dict(engine=job.codes.engine, ng=unit.tiles, nc=segment.c1 - segment.c0, sc=work.planes, a_kind=job.a_kind,
                    a_bits=work.a_bits, w_kind=job.codes.kind, w_bits=work.w_bits, wgt_base=base, wgt_g=per_tile, wgt_tap=each)

    def _result_fields(self, unit: Unit, chunk: Chunk, strip, index: int, base: int, used) -> dict:
        job, q = self.job, self.job.layer.requant
        prm = self._params(unit, index)
        used[Buffer.PRM] = [(prm, prm + unit.tiles)]
        raw = job.layer.out.format is None
        output = Output.INT32 if raw else Output.PLANES if q.thresholds is None else Output.CODES
        fields = dict(output=output, prm_base=prm, out_base=base,
                      out_planes=1 if raw else job.layer.out.format.bits, shift=q.shift, lo=q.lo, hi=job.hi)
        if job.res is not None:
            planes = job.res.format.bits
            words = chunk.positions * planes
            at = self._load_residual(strip, unit, chunk, planes)
            used[Buffer.RES] = [(at, at + words)]
            signed = int(job.res.format.kind is Kind.INT)
            fields |= dict(res_planes=planes, res_signed=signed, res_base=at, res_pitch=planes, m2=job.m2)
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

        for first, slices, pitch, ny in runs(strip.wave, rows, address):
            nx, words = (1, columns * planes) if view.pitch == planes * config.word_bytes else (columns, planes)
            fields = dict(buffer=Buffer.RES, dram=address(strip.wave[first]), base=base, slice=first, slices=slices,
                          slice_pitch=pitch, ny=ny, y_pitch=view.row_pitch, nx=nx, x_pitch=view.pitch if nx > 1 else 0,
                          words=words, row_pitch=columns * planes)
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

        for first, slices, pitch, ny in runs(strip.wave, rows, address):
            nx, each = (1, columns * words) if view.pitch == words * config.word_bytes else (columns, words)
            fields = dict(dram=address(strip.wave[first]), base=base, slice=first, slices=slices, slice_pitch=pitch, ny=ny,
                          y_pitch=view.row_pitch, nx=nx, x_pitch=view.pitch if nx > 1 else 0, words=each)
            cycles = schedule.dma_cycles(config, slices * ny * nx, each * config.word_bytes)
            self.store_at = builder.store(fields, (base, base + chunk.positions * words), execute, cycles)
