"""Finds `COSTS` of compiler/sequential.py: runs random layers on the compact machine's RTL and fits what the firmware takes.

    .venv/bin/python tools/fit_sequential.py [layers]
"""

import contextlib
import itertools
import sys
from collections import Counter as Tally

import numpy as np
from scipy.optimize import nnls
from tqdm import tqdm

from seriatim import isa
from seriatim.compiler import sequential
from seriatim.compiler.codegen import generate
from seriatim.errors import CompileError
from seriatim.sim import random_layers
from seriatim.sim.executor import execute
from seriatim.sim.rtl import RtlSession
from seriatim.sim.session import Program
from seriatim.sim.verilated import MemoryModel

LAYERS = 120
LATENCIES = (2, 20)
ALONE = {
    "LOAD": ({"words": 1}, {"words": 40}, {"nx": 9}, {"ny": 9, "row_pitch": 1}),
    "FILL": ({"mask": 1}, {"mask": 1, "words": 40}, {"mask": 1, "ny": 9, "row_pitch": 1}),
    "PATCH": (base := {"height": 20, "width": 20, "y_pitch": 40, "seg_bytes": 64}, base | {"channels": 9}, base | {"kw": 5},
              base | {"kh": 3, "nx": 3}, base | {"x0": -9, "kw": 5, "channels": 2}),
    "CONV": ({}, {"nx": 20}, {"ny": 9}, {"kh": 9, "kw": 9}),
    "POOL": ({}, {"nx": 9}, {"kh": 4}, {"kw": 6}, {"planes": 8}),
    "STORE": ({"words": 1}, {"words": 40}, {"nx": 9}, {"ny": 9}),
    "MARK": ({},),
}
"""Instructions that are measured by themselves, as many of them as `TIMES` says."""
TIMES = (1, 7)


def measure(layers: int) -> list[tuple[Tally, int, int]]:
    """For each layer what it takes, its memory's latency, and the cycles that the machine counts."""
    found = []
    for seed in tqdm(range(layers), unit="layer"):
        case = random_layers.draw(seed, random_layers.COMPACT)
        with contextlib.suppress(CompileError):
            compiled, latency = generate(case.region, case.config), LATENCIES[seed % len(LATENCIES)]
            model = MemoryModel(latency)
            run = execute(compiled, case.inputs, lambda config, size, model=model: RtlSession(config, size, model=model))
            done = sum((done for _, _, done in sequential.order(compiled.program)), Tally())
            found.append((done, latency, run.counts.cycles))
    return found


def measure_alone() -> list[tuple[Tally, int, int]]:
    """The same for `ALONE`."""
    found = []
    config = random_layers.OTHERS[random_layers.COMPACT]
    with RtlSession(config, 1 << 16, model=MemoryModel(LATENCIES[0])) as session:
        for (name, variants), times in itertools.product(ALONE.items(), TIMES):
            for fields in variants:
                code = isa.encode(name, **fields) * times + isa.encode("END")
                took = session.run(Program(code, 0x8000, (0, 0x8000), (0, 0x8000))).cycles
                found.append((sum((done for _, _, done in sequential.order(code)), Tally()), LATENCIES[0], took))
    return found


def main() -> None:
    sequential.COSTS = Tally()  # what is compiled here is not foretold
    found = measure_alone() + measure(int(sys.argv[1]) if len(sys.argv) > 1 else LAYERS)
    names = sorted(set().union(*(done for done, _, _ in found)) - {"cycle"})
    counts = np.array([[done[name] for name in names] for done, _, _ in found], float)
    rest = np.array([took - done["cycle"] - done[sequential.ACCESS] * latency for done, latency, took in found], float)
    took = np.array([took for _, _, took in found], float)
    costs, _ = nnls(counts / took[:, None], rest / took)
    off = np.abs(counts @ costs - rest) / took
    print(f"{len(found)} programs: off by {off.mean():.1%} in the mean, {off.max():.1%} at most", file=sys.stderr)
    print("COSTS = {" + ", ".join(f'"{name}": {cost:.0f}' for name, cost in zip(names, costs)) + "}")


if __name__ == "__main__":
    main()
