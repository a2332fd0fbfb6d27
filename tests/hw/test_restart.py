"""Reset in the middle of anything, and a start right after an error or the watchdog, with bursts in flight: the layer that runs
next gives the same tensor as on a fresh machine, and takes the same cycles.

`python -m pytest tests/hw/test_restart.py --seed N` replays one point.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from seriatim.compiler.codegen import generate
from seriatim.compiler.program import Compiled
from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.sim import random_layers
from seriatim.sim.executor import program_of
from seriatim.sim.session import cycles

pytestmark = pytest.mark.rtl
GEOMETRY = "2x4x32"
MEMORY_BYTES = 1 << 20
LAYERS = tuple(range(1, 1 + 4 * 20, 4))
"""Random layers of this geometry (every fourth seed is)."""
POINTS = 200
LIMIT = 1_000_000
"""Cycles after which a run counts as hanging."""


@dataclass(frozen=True)
class Fresh:
    """What a layer leaves in memory on a machine out of reset, and the cycles that it takes."""

    compiled: Compiled
    before: np.ndarray
    after: np.ndarray
    cycles: int


@cache
def library():
    from seriatim.sim.rtl import library

    return library(random_layers.GEOMETRIES[GEOMETRY])


def open_rtl(**model):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    return RtlSession(random_layers.GEOMETRIES[GEOMETRY], MEMORY_BYTES, model=MemoryModel(**model), library_path=library(),
                      max_cycles=LIMIT)


def model_of(rng) -> dict:
    """A memory that takes its time, but always the same."""
    read, write = ((int(rng.integers(1, 5)), 4) for _ in range(2))
    return dict(latency=int(rng.integers(1, 150)), outstanding=int(rng.integers(1, 17)), read_bandwidth=read,
                write_bandwidth=write)


@cache
def compiled_layer(seed: int) -> tuple[Compiled, np.ndarray]:
    case = random_layers.draw(seed)
    assert case.geometry == GEOMETRY
    compiled = generate(case.region, case.config)
    memory = np.random.default_rng(seed).integers(0, 256, MEMORY_BYTES, np.uint8)
    image = compiled.memory(case.inputs)
    memory[:len(image)] = image
    return compiled, memory


def run(session, compiled: Compiled, memory: np.ndarray, watchdog: int = 20_000) -> tuple[np.ndarray, int]:
    """(memory, cycles) after a run."""
    session.write(0, memory)
    total = session.run(program_of(compiled), watchdog).total
    return session.read(0, MEMORY_BYTES), cycles(total)


def fresh(seed: int, model: dict) -> Fresh:
    compiled, memory = compiled_layer(seed)
    with open_rtl(**model) as session:
        after, count = run(session, compiled, memory)
    assert np.any(after != memory)
    return Fresh(compiled, memory, after, count)


def start(session, compiled: Compiled, memory: np.ndarray, watchdog: int):
    """Starts a program and does not wait for it."""
    session.write(0, memory)
    program = program_of(compiled)
    session.write(program.address, program.code)
    for name, value in (("PROG_BASE", program.address), ("PROG_BYTES", len(program.code)), ("READ_BASE", program.read_range[0]),
                        ("READ_LIMIT", program.read_range[1]), ("WRITE_BASE", program.write_range[0]),
                        ("WRITE_LIMIT", program.write_range[1]), ("WATCHDOG", watchdog), ("IRQ_ENABLE", 1), ("CTRL", 1)):
        session.csr_write(name, value)


def same(session, wanted: Fresh, what: str, same_cycles: bool = True):
    after, count = run(session, wanted.compiled, wanted.before)
    wrong = np.flatnonzero(after != wanted.after)
    assert not wrong.size, f"{what}: {wrong.size} bytes differ from a fresh machine's, the first at {wrong[0]:#x}"
    assert count == wanted.cycles or not same_cycles, f"{what}: {count} cycles instead of {wanted.cycles}"


def points(request, count: int):
    seed = request.config.getoption("--seed")
    return range(count) if seed is None else [seed]


def replay(point: int) -> str:
    return f"replay: python -m pytest tests/hw/test_restart.py --seed {point}"


def other_than(rng, layer: int) -> int:
    """The layer that is cut short: mostly another than the one that must then run right."""
    return layer if rng.random() < 0.3 else int(rng.choice(LAYERS))


def test_reset_at_any_cycle(request):
    for point in points(request, POINTS):
        rng = np.random.default_rng([point, 0])
        model, layer = model_of(rng), LAYERS[point % len(LAYERS)]
        wanted = fresh(layer, model)
        cut, memory = compiled_layer(other_than(rng, layer))
        with open_rtl(**model) as session:
            start(session, cut, memory, 20_000)
            when = int(rng.integers(0, cut.cycles + 200))
            session.verilated.step(when)
            session.verilated.reset(int(rng.integers(1, 5)))
            assert (session.csr_read("STATUS"), session.csr_read("CAUSE"), session.verilated.irq) == (0, Cause.NONE, False)
            same(session, wanted, f"reset {when} cycles after the start; {replay(point)}")


def test_start_after_an_error_at_any_read_beat(request):
    """The memory has up to 16 bursts in flight when the error comes."""
    for point in points(request, POINTS // 2):
        rng = np.random.default_rng([point, 1])
        model, layer = model_of(rng), LAYERS[point % len(LAYERS)]
        wanted = fresh(layer, model)
        cut, memory = compiled_layer(other_than(rng, layer))
        beat = int(rng.integers(0, len(cut.program) // random_layers.GEOMETRIES[GEOMETRY].axi_bytes))
        with open_rtl(**model, read_error_beat=beat) as session:
            with pytest.raises(MachineError) as error:
                run(session, cut, memory)
            assert error.value.cause == Cause.AXI_READ, f"{error.value}; {replay(point)}"
            assert session.csr_read("STATUS") & 7 == 4, "stopped with an error, not busy, not done"
            same(session, wanted, f"after an error at read beat {beat}; {replay(point)}")


def test_start_after_the_watchdog_with_bursts_in_flight(request):
    """A watchdog shorter than the memory's latency stops the machine at once, and leaves reads and writes to answer. Those that
    come while the next program runs are nobody's; once all have come, nothing is left of it, not a cycle."""
    stopped = 0
    for point in points(request, POINTS // 2):
        rng = np.random.default_rng([point, 2])
        model = model_of(rng) | dict(latency=int(rng.integers(30, 400)))
        layer = LAYERS[point % len(LAYERS)]
        wanted = fresh(layer, model)
        cut, memory = compiled_layer(other_than(rng, layer))
        with open_rtl(**model) as session:
            start(session, cut, memory, int(rng.integers(1, 2 * model["latency"])))
            session.wait()
            cause = session.csr_read("CAUSE")
            assert cause in (Cause.NONE, Cause.WATCHDOG)
            stopped += cause == Cause.WATCHDOG
            quiet = rng.random() < 0.5
            if quiet:
                session.verilated.step(20 * model["latency"] + 5000)
            same(session, wanted, f"after the watchdog; {replay(point)}", same_cycles=quiet)
    assert stopped > POINTS // 6 or request.config.getoption("--seed") is not None
