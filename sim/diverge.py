"""First divergence: where two levels that must agree first differ.

layer -> tile (the instructions that computed it) -> output coordinate -> accumulator or requantisation -> bits. To tell the last
two apart, the layer runs once more on the same machine from the same input, with a requantisation that lets accumulators through.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from seriatim import isa
from seriatim.compiler import layout
from seriatim.compiler.codegen import generate
from seriatim.compiler.ir import INT32, Conv, Region, Requant, SumPool, Tensor, interpret
from seriatim.compiler.program import Compiled
from seriatim.errors import ConfigError
from seriatim.isa import Output
from seriatim.sim.executor import OpenSession, Run, execute

IDENTITY = "accumulators"


@dataclass(frozen=True)
class Tile:
    """The instructions behind one output: byte offsets of the STORE and of the CONV or POOL, the array row (slice), and the
    position within the CONV's tile."""

    store_pc: int
    execute_pc: int
    slice: int
    position: int


@dataclass(frozen=True)
class Divergence:
    """The first difference. `coordinate` is (n, c, y, x); `stage` is "accumulator", "requant" (or what follows it) or "pool";
    `acc_expected` and `acc_found` are accumulators where the layer has them; `count` elements of the layer differ in all."""

    layer: str
    coordinate: tuple[int, int, int, int]
    expected: int
    found: int
    count: int
    tile: Tile | None
    stage: str
    acc_expected: int | None = None
    acc_found: int | None = None

    def __str__(self):
        n, c, y, x = self.coordinate
        lines = [f"layer {self.layer}: {self.count} element(s) differ, first image {n}, channel {c}, row {y}, column {x}"]
        if self.tile:
            lines.append(f"  tile: executed at {self.tile.execute_pc:#x} and stored at {self.tile.store_pc:#x} of the program, "
                         f"array row {self.tile.slice}, position {self.tile.position}")
        lines.append(f"  code: expected {self.expected}, found {self.found}, bits {_bits(self.expected ^ self.found)}")
        if self.acc_expected is not None:
            lines.append(f"  accumulator: expected {self.acc_expected}, found {self.acc_found}"
                         + (f", bits {_bits(self.acc_expected ^ self.acc_found)}" if self.acc_expected != self.acc_found else ""))
        lines.append(f"  stage: {self.stage}")
        return "\n".join(lines)


def _bits(difference: int) -> str:
    return ", ".join(str(i) for i in range(64) if difference >> i & 1) or "none"


def locate(region: Region, run: Run, expected: dict[str, np.ndarray], open_session: OpenSession) -> Divergence | None:
    """The first layer of `run` that differs from `expected` (codes by layer name), or None. `open_session` opens the
    machine that `run` was on, for the second run."""
    for layer in region.layers:
        want, got = expected[layer.name], run.tensors[layer.out.name]
        wrong = np.argwhere(want != got)
        if not len(wrong):
            continue
        at = tuple(int(i) for i in wrong[0])
        found = Divergence(layer.name, at, int(want[at]), int(got[at]), len(wrong), tile_of(run.compiled, layer.out, at), "pool")
        if not isinstance(layer, Conv | SumPool):
            return found
        probe, x = _accumulators(layer), {layer.x.name: run.tensors[layer.x.name]}
        right = int(interpret(probe, x)[IDENTITY][at])
        program = generate(probe, run.compiled.config)
        seen = int(execute(program, x, open_session).tensors[IDENTITY][at])
        stage = "accumulator" if seen != right else "requant, or what follows it (packer, store)"
        return dataclasses.replace(found, stage=stage, acc_expected=right, acc_found=seen)
    return None


def _accumulators(layer: Conv | SumPool) -> Region:
    """A region of `layer` alone whose output is its accumulators."""
    channels = layer.out.shape[1]
    identity = Requant(np.ones(channels, np.int32), np.zeros(channels, np.int64), 0, *INT32)
    changes = {"requant": identity, "out": Tensor(IDENTITY, layer.out.shape, None, "int32")}
    if isinstance(layer, Conv):
        changes["res"] = None
    probe = dataclasses.replace(layer, **changes)
    return Region((layer.x,), (probe.out,), (probe,))


def tile_of(compiled: Compiled, tensor: Tensor, coordinate) -> Tile | None:
    """The instructions that computed one element of `tensor`, from the program alone."""
    n, c, y, x = coordinate
    config, place = compiled.config, compiled.places[tensor.name]
    row_bytes, position_bytes = layout.row_bytes(tensor, config), layout.position_bytes(tensor, config)
    address = place.address + (n * tensor.shape[2] + y) * row_bytes + x * position_bytes
    if tensor.layout == "int32":
        address += c // config.n * config.raw_words * config.word_bytes
    else:
        address += c // config.k * tensor.format.bits * config.word_bytes
    executed: list[tuple[int, dict, int]] = []  # (pc, fields, words written to the out buffer)
    for pc in range(0, len(compiled.program), isa.INSTR_BYTES):
        instr, f = isa.decode(compiled.program[pc:pc + isa.INSTR_BYTES])
        if instr.name == "POOL":
            executed.append((pc, f, f["ny"] * f["nx"] * f["ng"] * f["planes"]))
        elif instr.name == "CONV" and f["output"] != Output.PSUM:
            each = f["out_planes"] if f["output"] == Output.PLANES else f["ng"] * config.raw_words
            executed.append((pc, f, f["ny"] * f["nx"] * each))
        elif instr.name == "STORE":
            hit = _stored(f, address, config.word_bytes)
            if hit is None:
                continue
            row, word = hit
            for execute_pc, g, size in reversed(executed):
                if g["out_base"] <= word < g["out_base"] + size:
                    return Tile(pc, execute_pc, row, (word - g["out_base"]) * g["ny"] * g["nx"] // size)
    return None


def _stored(f: dict, address: int, word_bytes: int) -> tuple[int, int] | None:
    """(slice, out word) of a STORE's word at a byte address."""
    s, y, x = np.ogrid[:f["slices"], :f["ny"], :f["nx"]]
    offset = (address - (f["dram"] + s * f["slice_pitch"] + y * f["y_pitch"] + x * f["x_pitch"])) & 0xFFFFFFFF
    hits = np.argwhere(offset < f["words"] * word_bytes)
    if not len(hits):
        return None
    s, y, x = (int(i) for i in hits[0])
    return f["slice"] + s, f["base"] + (y * f["nx"] + x) * f["words"] + int(offset[s, y, x]) // word_bytes


def main(args) -> int:
    """`seriatim diverge`: runs a network as `sim` does and locates the first difference from PyTorch; returns 1 for one."""
    from seriatim.sim.driver import Job, complete, config_of, memory_of, opener
    from seriatim.sim.executor import Executor

    complete(args)
    config, job = config_of(args), Job.load(args)
    artefact = job.compile(config)
    open_session = opener(args.session, memory_of(args), board=args.board, device=args.device)
    executor = Executor(config, open_session)
    artefact.run(job.images.astype(np.int32), executor=executor)
    reference = job.reference()
    names = [layer.name for region in artefact.regions for layer in region.layers]
    if args.layer and args.layer not in names:
        raise ConfigError(f"layer {args.layer!r}: this network has {', '.join(names)}")
    for region, run in zip(artefact.regions, executor.runs):
        if args.layer:  # the other layers count as right
            reference |= {layer.name: run.tensors[layer.out.name] for layer in region.layers if layer.name != args.layer}
        found = locate(region, run, reference, open_session)
        if found:
            print(found)
            return 1
    print(f"no difference: every element of {args.layer or f'all {len(names)} layers'} equals PyTorch's")
    return 0
