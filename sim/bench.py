"""`seriatim bench`: measures the figures that the README quotes, beside those recorded in `docs/bench.json`."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError, MismatchError
from seriatim.sim import figures, files
from seriatim.sim.driver import Job, Step, opener
from seriatim.sim.executor import Executor, Run, execute
from seriatim.sim.session import cycles

if TYPE_CHECKING:  # torch takes seconds to import
    from seriatim.algo.export import IntegerNetwork

RECORD = Path("docs", "bench.json")
PUBLISHED = Memory()
"""The memory of every published figure."""
SHAPES = {"224x224, one image": (224, 1), "64x64, ten images": (64, 10)}
WIDTHS = ((1, 1), (1, 2), (2, 2), (1, 4), (2, 4), (4, 4), (1, 8), (2, 8), (4, 8))
MACHINES = (Config(), Config(n=16), Config(m=8, axi_bits=32), Config(m=4, n=4, k=32, axi_bits=32), Config(m=2, n=2),
            Config(k=128, axi_bits=128))
MEMORIES = (Memory(10), Memory(50, outstanding=2), Memory(100), Memory(300), Memory(300, outstanding=16),
            Memory(100, read_bandwidth=(1, 2), write_bandwidth=(1, 3)))
SHIFT_ADD = {
    "base 2, codes of 4 bits": Config(shift_lanes=4, shift_a_bits=4, shift_w_bits=4, shift_span=24, shift_classes=1,
                                      shift_acc_bits=32),
    "as shipped": Config(shift_lanes=4),
}
"""Shift-add arrays whose area is measured."""
RANDOM_NETS = 60
WEQ_BITS, WEQ_DRAWS, WEQ_WEIGHTS = (2, 3, 4), 20, 4000
LAWS = {"Gaussian": lambda rng: rng.standard_normal(WEQ_WEIGHTS), "Laplace": lambda rng: rng.laplace(size=WEQ_WEIGHTS),
        "Student-t (3)": lambda rng: rng.standard_t(3, WEQ_WEIGHTS), "Student-t (2)": lambda rng: rng.standard_t(2, WEQ_WEIGHTS)}
"""Distributions of weights, Student's with its degrees of freedom."""


@cache
def _shipped(net: str, image: int | None, images: int, memory: Memory = PUBLISHED) -> tuple[Run, float]:
    """A shipped W1A8 net on the default machine, and the seconds that compiling it took. Raises MismatchError where a layer
    differs from PyTorch."""
    args = dict(net=net, quant="slb", w=1, a=8, first_last=None, checkpoint=None, samples=None, image=image, images=images)
    job = Job.load(argparse.Namespace(**args))
    executor = Executor(Config(), opener("rtl", memory))
    start = time.perf_counter()
    artefact = job.compile(Config(), memory)
    compile_s = time.perf_counter() - start
    wrong = job.differences(executor.runs, np.asarray(artefact.run(job.images.astype(np.int32), executor=executor)))
    if wrong:
        raise MismatchError(f"{net} differs from PyTorch in {', '.join(wrong)}: `seriatim diverge` locates the first difference")
    run, = executor.runs
    return run, compile_s


def _untrained(w: int, a: int) -> "IntegerNetwork":
    """ResNet-20 as it starts out: cycles do not depend on what it has learnt."""
    import torch

    from seriatim.algo.export import export_integer
    from seriatim.algo.layers import SLB
    from seriatim.algo.nets import build, quantize_

    torch.manual_seed(0)
    return export_integer(quantize_(build("resnet20"), SLB(w, a)).eval(), 32)


def _resnet20(w: int, a: int, config: Config, memory: Memory) -> Run:
    import torch

    from seriatim.compiler.codegen import generate
    from seriatim.compiler.driver import compile_network

    artefact = compile_network(_untrained(w, a), torch.zeros(1, 3, 32, 32, dtype=torch.int32), config,
                               partial(generate, memory=memory))
    executor = Executor(config, opener("rtl", memory))
    artefact.run(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32)).astype(np.int32), executor=executor)
    run, = executor.runs
    return run


# Measurements

def utilisation() -> dict:
    """Cycles and array utilisation of the shipped ResNet-18 W1A8, every layer equal to PyTorch."""
    found = {}
    for name, (image, images) in SHAPES.items():
        run, _ = _shipped("resnet18", image, images)
        useful = sum(layer.macs * layer.w * layer.a for layer in run.compiled.layers)
        found |= {f"{name}: cycles": run.counts.cycles,
                  f"{name}: utilisation": round(useful / run.counts.cycles / run.compiled.config.peak, 4),
                  f"{name}: layers equal to PyTorch": len(run.compiled.layers)}
    return found


def speed() -> dict:
    """Simulated cycles a second, on one core."""
    found = {}
    for name, (image, images) in SHAPES.items():
        run, _ = _shipped("resnet18", image, images)
        found |= {f"{name}: cycles/s": round(run.counts.cycles / run.counts.wall_s), f"{name}: s": round(run.counts.wall_s, 2)}
    return found


def compile_() -> dict:
    """Seconds from the integer ResNet-18 at 224x224 to the artefact."""
    from seriatim.compiler import model

    run, compile_s = _shipped("resnet18", *SHAPES["224x224, one image"])
    start = time.perf_counter()
    model.predict(run.compiled.program, run.compiled.config, PUBLISHED)
    return {"s": round(compile_s, 2), "of that one prediction of cycles: s": round(time.perf_counter() - start, 2),
            "instructions": len(run.compiled.program) // 64}


def model_runs() -> Iterator[tuple[str, Run]]:
    """Nets, machines and memories on which the cycle model is compared with the RTL."""
    from seriatim.compiler.codegen import generate
    from seriatim.sim import soak

    for name, (image, images) in SHAPES.items():
        yield f"resnet18 W1A8 {name}", _shipped("resnet18", image, images)[0]
    for memory in MEMORIES:
        yield f"resnet18 W1A8 64x64, 1 image, {memory}", _shipped("resnet18", 64, 1, memory)[0]
        yield f"digits W1A8, {memory}", _shipped("digits", None, 4, memory)[0]
    for config, memory, (w, a) in zip(MACHINES, MEMORIES, WIDTHS, strict=False):
        yield f"resnet20 W{w}A{a} on {config}, AXI {config.axi_bits}, {memory}", _resnet20(w, a, config, memory)
    for seed in range(RANDOM_NETS):
        net = soak.draw(seed)
        memory = replace(net.memory, stall_percent=0)
        compiled = generate(net.region, net.config, memory)
        yield f"random net {seed} on {net.geometry}", execute(compiled, {"x": net.x}, opener("rtl", memory))


def model() -> dict:
    """Predicted against measured cycles, in every layer of every run of `model_runs`."""
    return errors(model_runs())


def errors(runs: Iterator[tuple[str, Run]]) -> dict:
    """Largest and mean relative errors of the predictions; runs with an error are printed."""
    layers, totals = [], []
    for name, run in runs:
        pairs = [(layer.name, layer.cycles, cycles(counts)) for layer, counts in zip(run.compiled.layers, run.counts.layers)]
        found = [abs(predicted - took) / took for _, predicted, took in pairs]
        layers += found
        totals.append(abs(run.compiled.cycles - run.counts.cycles) / run.counts.cycles)
        if any(found) or totals[-1]:
            worst = max(range(len(found)), key=found.__getitem__)
            print(f"  {name}: {pairs[worst][0]} predicted {pairs[worst][1]:,}, took {pairs[worst][2]:,}; "
                  f"total predicted {run.compiled.cycles:,}, took {run.counts.cycles:,}", flush=True)
    return {"runs": len(totals), "layers": len(layers), "largest error of a layer": max(layers),
            "mean error of a layer": sum(layers) / len(layers), "largest error of a total": max(totals)}


def widths() -> dict:
    """Cycles of ResNet-20 by weight and activation bits: proportional to their product where the array is what is waited for."""
    return {f"W{w}A{a}: cycles": _resnet20(w, a, Config(), PUBLISHED).counts.cycles for w, a in WIDTHS}


def area() -> dict:
    """LUT4s after `synth_ecp5` of a 2x2x64 array, for each binary MAC, and of a lane of the requantisation unit."""
    from seriatim.hw.array import Array
    from seriatim.hw.requant import Requant
    from seriatim.hw.synth import cells, lut4

    config = Config(m=2, n=2, k=64)
    array, requant = cells(Array(config), "array"), cells(Requant(lanes=config.n, tag_bits=1), "requant")
    return {"array: LUT4": lut4(array), "array: LUT4 a binary MAC": round(lut4(array) / config.peak, 3),
            "requant: LUT4 a lane": round(lut4(requant) / config.n), "requant: multipliers": requant.get("MULT18X18D", 0)}


def lanes() -> dict:
    """Area of one shift-add lane, a multiplication a cycle, beside the bit-serial lanes that multiply as fast."""
    from seriatim.hw.array import Array
    from seriatim.hw.shift import ShiftAdd
    from seriatim.hw.synth import gates, lut4, of_array

    found = {}
    for target, count, unit in (("carry", lut4, "LUT4"), ("gates", gates, "gates")):
        lane = of_array(Array, Config(), target, count) / Config().peak
        found |= {f"bit-serial, {bits}x{bits} bits: {unit} of the lanes for a MAC a cycle": round(lane * bits * bits)
                  for bits in (4, 8)}
        for name, config in SHIFT_ADD.items():
            found[f"shift-add, {name}: {unit} of a lane"] = round(of_array(ShiftAdd, config, target, count) / config.shift_peak)
    return found


def steptime() -> dict:
    """Time and peak memory of a training step of ResNet-18, batch 64 at 64x64, by quantiser, against float."""
    from seriatim.algo import steptime

    return steptime.measure()


def weq() -> dict:
    """How much weighted entropy WEQ's Algorithm 1 leaves to the exact optimum, by distribution and bits."""
    from seriatim.algo.quantisers.weq import Importances

    found = {}
    for law, draw in LAWS.items():
        drawn = [Importances(np.square(draw(np.random.default_rng(seed)))) for seed in range(WEQ_DRAWS)]
        for bits in WEQ_BITS:
            clusters = 2 ** (bits - 1)  # of magnitudes: each level has both signs
            shares = [data.entropy(data.search(clusters)) / data.entropy(data.optimum(clusters)) for data in drawn]
            if max(shares) > 1 + 1e-9:
                raise MismatchError(f"Algorithm 1 exceeds the optimum: {max(shares)} of it, {law}, {bits} bits")
            found[f"{law}, {bits} bits: missing at most"] = round(1 - min(shares), 6)
            found[f"{law}, {bits} bits: missing on average"] = round(1 - sum(shares) / len(shares), 6)
    return found


BENCHES = {
    "utilisation": utilisation, "speed": speed, "model": model, "compile": compile_, "widths": widths, "area": area,
    "lanes": lanes, "steptime": steptime, "weq": weq,
}


def readme(measured: figures.Measured) -> str:
    """The README's table, in Markdown; empty where not all of it was measured."""
    if not {"utilisation", "speed"} <= measured.keys():
        return ""
    lines = ["| ResNet-18, 1-bit weights, 8-bit activations, every layer | cycles | array utilisation | RTL simulation "
             "| compared with PyTorch |", "|---|---|---|---|---|"]
    for name in SHAPES:
        one, two = measured["utilisation"], measured["speed"]
        lines.append(f"| {name} | {one[f'{name}: cycles']:,} | {one[f'{name}: utilisation']:.1%} | {two[f'{name}: s']:.1f} s "
                     f"| every element of {one[f'{name}: layers equal to PyTorch']} layers equal |")
    return "\n".join(lines) + "\n\n"


def main(args) -> None:
    """Runs the named measurements (default: all), keeps what they gave in the history, and shows it beside the record."""
    names = list(dict.fromkeys(args.names or BENCHES))
    unknown = set(names) - BENCHES.keys()
    if unknown:
        raise ConfigError(f"no measurement {', '.join(sorted(unknown))}: there are {', '.join(BENCHES)}")
    folder, reference, where = Path(args.out or "build"), figures.load(RECORD), figures.origin()
    measured: figures.Measured = {}
    try:
        for name in names:
            with Step(f"{name}: {BENCHES[name].__doc__.splitlines()[0].rstrip('.')}"):
                measured[name] = BENCHES[name]()
    finally:  # an interrupted run keeps what it has
        if measured:
            figures.append(folder / "bench-history.jsonl", measured, where, interrupted=len(measured) < len(names))
    rows = figures.compare(measured, reference)
    figures.show(rows, reference)
    page = files.write(folder / "bench.md", readme(measured) + figures.markdown(rows, where))
    print(f"written to {page}; history in {folder / 'bench-history.jsonl'}")
    if args.record:
        figures.record(RECORD, measured, where)
        print(f"recorded in {RECORD}")
