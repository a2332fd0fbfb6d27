"""From a region to a program: `generate`.

Each layer becomes a `Job`, then a `tiler.Plan`, then instructions in the order of a machine without
overlap; `schedule.Builder` makes them overlap.
"""

from dataclasses import replace

from seriatim.compiler import engines, ir, layout, model, schedule, sequential, tiler
from seriatim.compiler.emit import Emitter
from seriatim.compiler.jobs import Job, Pick, check_widths, job_of
from seriatim.compiler.program import Compiled, LayerInfo, Place
from seriatim.config import Config, Memory
from seriatim.errors import CompileError

ALIGN = 64
"""Alignment of segments in memory, in bytes: an instruction, and a multiple of every beat."""


class _Segments:
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


def _constants(job: Job, memory: _Segments, config: Config) -> None:
    """Puts a layer's weights and params into memory."""
    if job.kind == "max":
        return
    before = memory.size
    for unit in job.work.units:
        for i, segment in enumerate(job.plan.segments[unit.index]):
            data = layout.pack_weights(job.weights(unit, segment), job.codes.bits, config)
            job.weight_at[unit.index, i] = memory.add(data)
    job.weights = None
    job.weight_bytes = memory.size - before
    job.param_at = [memory.add(layout.pack_params(m, b, config)) for m, b in job.params]


def generate(region: ir.Region, config: Config, memory: Memory | None = None) -> Compiled:
    """The region's program for the machine of `config`, with the cycles that it takes on `memory` (by default `Memory()`). A
    layer that two engines can run has the one that takes fewer there. Raises CompileError, naming the layer, where something does
    not fit."""
    memory = memory or Memory()

    def pick(layer: ir.Layer, found: list[engines.Codes]) -> engines.Codes:
        def alone(codes: engines.Codes) -> LayerInfo:
            own = ir.Region(layer.reads, (layer.out,), (layer,))
            compiled = _program(own, config, memory, lambda _, same: next(c for c in same if c.engine is codes.engine))
            return replace(compiled.layers[0], cycles=compiled.cycles)

        return engines.cheaper(found, alone, config)

    return _program(region, config, memory, pick)


def _program(region: ir.Region, config: Config, memory: Memory, pick: Pick) -> Compiled:
    """The program with the engines that `pick` chooses."""
    tail_zero = dict.fromkeys((t.name for t in region.inputs), True)
    segments, jobs = _Segments(), []
    for layer in region.layers:
        check_widths(layer, config)
        job = job_of(layer, config, tail_zero, pick)
        tail_zero[layer.out.name] = job.tail_zero and (job.res is None or tail_zero[job.res.name])
        job.plan = tiler.plan(job.work, config)
        _constants(job, segments, config)
        jobs.append(job)
    image = segments.image
    places: dict[str, Place] = {}
    outputs = {t.name for t in region.outputs}
    for tensor in region.inputs:
        places[tensor.name] = _place(tensor, segments, config, "input")
    write_base = segments.size
    for layer in region.layers:
        places[layer.out.name] = _place(layer.out, segments, config, "output" if layer.out.name in outputs else "inner")
    limit = segments.size
    builder = schedule.Builder(config)
    written: dict[str, int] = {}
    firsts, loads, stores, notes = [], [], [], []
    for index, job in enumerate(jobs):
        firsts.append(builder.executes)
        loads.append(builder.loads)
        stores.append(builder.stores)
        if index < config.marks:
            builder.execute("MARK", dict(layer=index), {}, None, 0)
        loaded = builder.elapsed(firsts[-2]) + builder.load_cycles(loads[-2]) if index else 0
        written[job.layer.out.name] = Emitter(builder, job, places, written, loaded).emit()
    if len(jobs) > config.marks > 0:
        last = jobs[config.marks - 1].layer.name
        notes.append(f"{len(jobs)} layers, {config.marks} rows of counters: layers from {last} on share one")
    program = builder.finish()
    ranges = [(p.address, p.address + -(-p.size // ALIGN) * ALIGN) for p in places.values()]
    schedule.check(program, config, ranges)
    address = segments.reserve(len(program))
    if segments.size > 1 << 32:
        raise CompileError(f"{segments.size} bytes of memory: addresses have 32 bits; use a smaller batch or image")
    predicted = (sequential if config.compact else model).predict(program, config, memory)
    cycles = predicted.layers + (0,) * len(jobs)
    infos = tuple(_info(job, i, config, cycles[i], first) for i, (job, first) in enumerate(zip(jobs, zip(loads, firsts, stores))))
    return Compiled(config, program, address, image, places, infos, tuple(t.name for t in region.inputs),
                    tuple(t.name for t in region.outputs), (0, limit), (write_base, limit), segments.size, predicted.cycles,
                    tuple(notes))


def _place(tensor: ir.Tensor, segments: _Segments, config: Config, role: str) -> Place:
    size = layout.tensor_bytes(tensor, config)
    return Place(tensor, segments.reserve(size), size, role)


def _info(job: Job, index: int, config: Config, cycles: int, first: tuple[int, int, int]) -> LayerInfo:
    layer = job.layer
    kind = type(layer).__name__.lower()
    w = layer.w_format.bits if isinstance(layer, ir.Conv) else 1 if isinstance(layer, ir.SumPool) else 0
    reader = getattr(layer, "x_read", layer.x.format)
    steps = sum(job.work.steps(u) for u in job.work.units) * sum(
        job.plan.band_rows * job.work.x.out for _ in job.plan.waves)
    mark = index if index < config.marks else None
    return LayerInfo(layer.name, kind, layer.out.shape, mark, w, reader.bits, getattr(layer, "k", 0), layer.macs,
                     layer.binary_macs, layer.out.name, cycles, steps, job.weight_bytes, first,
                     *(() if job.codes is None else (engines.NAMES[job.codes.engine], job.codes.reason)))
