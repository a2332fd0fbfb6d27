"""Random layers on four levels: PyTorch, the big-integer reference, the ISA simulator and the RTL give the same integers.

`python -m pytest tests/test_random_layers.py --seed N` replays one layer; `--first 2000 --count 10000` runs others.
"""

from collections import Counter as Tally
from functools import partial

import layer_reference
import numpy as np
import pytest
import torch

from seriatim.compiler import ir
from seriatim.compiler.codegen import generate
from seriatim.csr import Counter
from seriatim.errors import SeriatimError
from seriatim.sim import random_layers as layers
from seriatim.sim.session import IsaSession, Program
from seriatim.sim.verilated import MemoryModel

MEMORIES = (MemoryModel(latency=100, outstanding=8), MemoryModel(latency=3, outstanding=2, stall_percent=35, seed=7))
"""Behaviours of the memory behind the RTL: that of the published figures, and one that holds back at random."""
MEMORY_BYTES = 4 << 20
COUNTED = (Counter.READ_BEATS, Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS,
           Counter.ACT_WRITES, Counter.RES_WRITES, Counter.WGT_WRITES, Counter.PRM_WRITES, Counter.OUT_WRITES,
           Counter.PSUM_READS, Counter.PSUM_WRITES, Counter.SHIFT_STEPS, Counter.SHIFT_ACT_READS, Counter.SHIFT_WGT_READS)
"""What both machines count. Ones and flips are left out: slices that a layer does not use keep what the layer before left."""
AT_LEAST = (Counter.RES_READS,)
"""The RTL also reads ahead in vain, as time allows."""
COUNT = 2000
"""Random layers of `make test`."""
SHOWN = 5
"""Failures of one batch that are printed."""


def first_difference(expected: np.ndarray, got: np.ndarray) -> str:
    if expected.shape != got.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    wrong = np.argwhere(expected != got)
    at = tuple(int(i) for i in wrong[0])
    return (f"{len(wrong)} of {expected.size} codes differ, the first at (n, c, y, x) = {at}: {int(got[at])} instead of "
            f"{int(expected[at])}, bits {int(got[at]) ^ int(expected[at]):#x}")


def check_alive(case, out: np.ndarray):
    """Data that could hide errors is an error itself."""
    if not case.plain or out.size < layers.ALIVE:
        return
    q = getattr(case.layer, "requant", None)
    lo, hi = (q.lo, q.hi) if q else (case.layer.out.lo, case.layer.out.hi)
    codes, saturated = len(np.unique(out)), float(np.mean((out == lo) | (out == hi)))
    assert codes >= 2, f"dead data: every output is {out.flat[0]}"
    assert saturated <= 0.9 or hi - lo < 4 or not q, f"dead data: {saturated:.0%} of the outputs are saturated"


def run_program(session, compiled, inputs, garbage) -> tuple[np.ndarray, dict]:
    """The output and the counters of a compiled layer on a session whose memory held something else before."""
    memory = compiled.memory(inputs)
    first, beyond = compiled.places["out"].address, compiled.places["out"].address + compiled.places["out"].size
    memory[first:beyond] = garbage.integers(0, 256, beyond - first, np.uint8)
    session.write(0, memory)
    counts = session.run(Program(compiled.program, compiled.program_address, compiled.read_range, compiled.write_range))
    after = session.read(0, len(memory))
    out = compiled.read(after, "out")
    after[first:beyond] = memory[first:beyond]
    stray = np.flatnonzero(after != memory)
    assert not stray.size, f"{stray.size} bytes outside the output were written, the first at {stray[0]:#x}"
    return out, counts.total


def check(case, rtl=None):
    """Runs one layer on every level. Raises AssertionError or SeriatimError."""
    expected = layer_reference.by_reference(case)
    check_alive(case, expected)
    levels = {"PyTorch": partial(layers.by_torch, case)}
    compiled = generate(case.region, case.config)
    counters = {}

    def machine(name, session):
        out, counters[name] = run_program(session, compiled, case.inputs, np.random.default_rng(case.seed))
        return out

    isa = IsaSession(case.config, compiled.memory_bytes, order=case.seed)
    levels["ISA simulator"] = partial(machine, "isa", isa)
    if rtl is not None:
        levels["RTL"] = partial(machine, "rtl", rtl)
    for name, run in levels.items():
        got = run()
        assert np.array_equal(expected, got), f"{name} differs from the reference: {first_difference(expected, got)}"
    if rtl is not None:
        isa, rtl = counters["isa"], counters["rtl"]
        rtl = rtl | {Counter.READ_BEATS: rtl[Counter.READ_BEATS] - rtl[Counter.FETCH_BEATS]}
        for c in AT_LEAST:
            assert rtl[c] >= isa[c], f"the RTL counts {rtl[c]} {c.name}, the ISA simulator {isa[c]}"
        for c in COUNTED:
            assert rtl[c] == isa[c], f"the RTL counts {rtl[c]} {c.name}, the ISA simulator {isa[c]}"


def open_rtl(geometry: str, model: MemoryModel):
    from seriatim.sim.rtl import RtlSession

    return RtlSession(layers.GEOMETRIES[geometry], MEMORY_BYTES, model=model)


@pytest.fixture(autouse=True)
def one_thread():
    """The tests share their cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_seed(request):
    """The layer that `--seed` names; without it, the first."""
    case = layers.draw(request.config.getoption("--seed") or 0)
    print(case)
    memory = MEMORIES[case.seed // len(layers.GEOMETRIES) % len(MEMORIES)]
    rtl = None if request.config.getoption("--no-rtl") else open_rtl(case.geometry, memory)
    check(case, rtl)


@pytest.mark.rtl
@pytest.mark.parametrize("memory", range(len(MEMORIES)), ids=["steady", "holding"])
@pytest.mark.parametrize("geometry", layers.GEOMETRIES)
def test_levels_agree(request, geometry, memory):
    """A share of the random layers, all on one machine that is never reset: buffers and memory hold what came before."""
    option = request.config.getoption
    if option("--seed") is not None:
        pytest.skip("--seed runs one layer alone")
    machine, batches = list(layers.GEOMETRIES).index(geometry), len(layers.GEOMETRIES) * len(MEMORIES)
    first, count = option("--first"), option("--count") or COUNT
    seeds = [s for s in range(first, first + count) if s % batches == machine + memory * len(layers.GEOMETRIES)]
    failures, widths = [], Tally()
    rtl = None if option("--no-rtl") else open_rtl(geometry, MEMORIES[memory])
    for seed in seeds:
        case = layers.draw(seed)
        if isinstance(case.layer, ir.Conv):
            widths[case.layer.w_format.bits, case.layer.x_read.bits] += 1
        try:
            check(case, rtl)
        except (AssertionError, SeriatimError) as error:
            failures.append(f"{case}\n    {type(error).__name__}: {error}\n    "
                            f"replay: python -m pytest tests/test_random_layers.py --seed {seed}")
    if rtl is not None:
        rtl.close()
    assert not failures, f"{len(failures)} of {len(seeds)} layers fail:\n" + "\n".join(failures[:SHOWN])
    assert set(widths) == set(layers.WIDTHS) or len(seeds) < layers.TURNS // 2, "not every pair of widths came up"
