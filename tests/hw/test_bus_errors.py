"""An AXI error at any read beat and any write burst, on memories of any latency, bandwidth and patience: the right cause, the
right pc, nothing more written than before the error, and the next run is right.

What the bus asked for tells which instruction a beat belongs to. `python -m pytest tests/hw/test_bus_errors.py --seed N` replays
one case.
"""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import test_illegal as small

from seriatim import isa
from seriatim.compiler.codegen import generate
from seriatim.compiler.program import Compiled
from seriatim.csr import Cause
from seriatim.errors import MachineError
from seriatim.sim import random_layers
from seriatim.sim.executor import program_of

pytestmark = pytest.mark.rtl
GEOMETRY = "2x4x32"
LAYERS = tuple(range(1, 1 + 4 * 16, 4))
"""Random layers of this geometry."""
MEMORY_BYTES = 1 << 20
CASES = 150
"""Errors in random layers."""
WATCHDOG, LIMIT = 20_000, 1_000_000
REPLAY = "replay: python -m pytest tests/hw/test_bus_errors.py --seed"
BEAT = random_layers.GEOMETRIES[GEOMETRY].axi_bytes


@cache
def library():
    from seriatim.sim.rtl import library

    assert small.CONFIG == random_layers.GEOMETRIES[GEOMETRY], "one build for all of these tests"
    return library(small.CONFIG)


def open_rtl(size: int, base: int, model: dict):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    return RtlSession(small.CONFIG, size, base, MemoryModel(**model), library_path=library(), max_cycles=LIMIT)


def model_of(rng) -> dict:
    """Any memory: each read and write bandwidth, latency, patience, and 1 to 16 bursts at a time."""
    from seriatim.sim.verilated import Resp

    read, write = ((int(rng.integers(1, 5)), 4) for _ in range(2))
    return dict(latency=int(rng.choice([1, 2, rng.integers(1, 300)])), outstanding=int(rng.integers(1, 17)), read_bandwidth=read,
                write_bandwidth=write, stall_percent=int(rng.choice([0, 0, 10, 50, 90])), seed=int(rng.integers(1 << 32)),
                error=Resp.SLVERR if rng.random() < 0.5 else Resp.DECERR)


SIGNALS = "valid", "ready", "addr", "len"


def watch(session):
    for channel in ("ar", "aw"):
        for name in SIGNALS:
            session.verilated.watch(f"m_axi_{channel}{name}")


def bursts(session, channel: str) -> list[tuple[int, int]]:
    """(address, beats) of each burst that the bus asked for on "ar" or "aw", in order. The events give an input with the clock
    edge that ends its cycle, an output with the one that begins it."""
    names = {f"m_axi_{channel}{name}": name for name in SIGNALS}
    seen = [(names[e.port], e) for e in session.verilated.events() if e.port in names]
    events = sorted(((e.cycle - (name == "ready"), name, e.value) for name, e in seen), key=lambda event: event[0])
    now, found = dict.fromkeys(SIGNALS, 0), []
    for (cycle, name, value), (following, _, _) in pairwise([*events, (session.verilated.cycles, None, None)]):
        now[name] = value
        if now["valid"] and now["ready"]:  # a burst for each cycle until something changes
            found += [(now["addr"], now["len"] + 1)] * (following - cycle)
    return found


def read_address(session, beat: int) -> int:
    """The address of a read beat."""
    for address, beats in bursts(session, "ar"):
        if beat < beats:
            return address + BEAT * beat
        beat -= beats
    raise AssertionError(f"{beat} beats more than the bus asked for")


def touches(word: bytes, address: int) -> bool:
    """Whether an instruction reads or writes the beat at `address`."""
    instr, f = isa.decode(word)
    if instr.name == "PATCH":
        return f["dram"] <= address < f["dram"] + f["height"] * f["y_pitch"]
    c = small.CONFIG
    size = f["words"] * {isa.Buffer.WGT: c.wgt_word_bytes, isa.Buffer.PRM: c.prm_word_bytes}.get(f.get("buffer"), c.word_bytes)
    s, y, x = np.ogrid[:f["slices"], :f["ny"], :f["nx"]]
    offset = (address - (f["dram"] + s * f["slice_pitch"] + y * f["y_pitch"] + x * f["x_pitch"])) & 0xFFFFFFFF
    return bool(np.any(offset < size))


def check_error(session, program, error: MachineError, *, beat: int | None = None, burst: int | None = None) -> isa.Queue:
    """`error` names the instruction whose read beat, or write burst, failed; returns the instruction's queue, FETCH where it
    failed to arrive."""
    assert error.cause == (Cause.AXI_WRITE if beat is None else Cause.AXI_READ), str(error)
    assert session.csr_read("STATUS") & 7 == 4, "stopped with an error, not busy, not done"
    address = bursts(session, "aw")[burst][0] if beat is None else read_address(session, beat)
    at = address - program.address
    if 0 <= at < len(program.code):
        wanted = at // isa.INSTR_BYTES * isa.INSTR_BYTES
        assert error.pc == wanted, f"the beat at {address:#x} is of the instruction at {wanted:#x}, not {error.pc:#x}"
        return isa.Queue.FETCH
    word = program.code[error.pc:error.pc + isa.INSTR_BYTES]
    queue = isa.decode(word)[0].queue
    assert queue is (isa.Queue.STORE if beat is None else isa.Queue.LOAD), str(error)
    assert touches(word, address), f"the instruction at {error.pc:#x} does not touch {address:#x}"
    return queue


def small_case(number: int, **error):
    return open_rtl(small.SIZE, small.BASE, model_of(np.random.default_rng([number, 5])) | error)


def test_every_read_beat_of_a_small_program(request):
    """Of its 12 instructions and all that they read."""
    only = request.config.getoption("--seed")
    program, where = small.place(b"".join(small.encode())), set()
    for beat in range(small.BEATS) if only is None else [only]:
        with small_case(beat, read_error_beat=beat) as session:
            session.write(small.BASE, small.memory())
            watch(session)
            with pytest.raises(MachineError) as error:
                session.run(program, WATCHDOG)
            try:
                check_error(session, program, error.value, beat=beat)
                where.add(error.value.pc // isa.INSTR_BYTES)
                small.runs(session)
            except AssertionError as wrong:
                raise AssertionError(f"beat {beat}: {wrong}; {REPLAY} {beat}") from wrong
    assert where == set(range(len(small.INSTRS))) or only is not None, f"only instructions {sorted(where)} failed"


@pytest.mark.parametrize("pitch, count", [(16, 2), (32, 10)], ids=["joined", "apart"])
def test_every_write_burst_of_a_small_program(pitch, count):
    from seriatim.sim.verilated import Resp

    code = b"".join(small.encode(small.STORE, nx=5, words=4, x_pitch=pitch, slice_pitch=0x200))
    with small_case(0) as session:
        session.write(small.BASE, small.memory())
        session.run(small.place(code), WATCHDOG)
        assert session.verilated.stats.write_bursts == count
    for burst in range(count):
        for resp in (Resp.SLVERR, Resp.DECERR):
            with small_case(burst, write_error_burst=burst, error=resp) as session:
                small.check(session, small.place(code), Cause.AXI_WRITE, small.STORE)


@cache
def compiled_layer(seed: int) -> tuple[Compiled, np.ndarray]:
    """A layer's program, and memory to start it from."""
    case = random_layers.draw(seed)
    compiled, memory = generate(case.region, case.config), np.zeros(MEMORY_BYTES, np.uint8)
    image = compiled.memory(case.inputs)
    memory[:len(image)] = image
    return compiled, memory


@cache
def expected(seed: int) -> tuple[np.ndarray, int, int]:
    """(memory, read beats, write bursts) of the layer on an obliging memory."""
    compiled, memory = compiled_layer(seed)
    with open_rtl(MEMORY_BYTES, 0, {}) as session:
        after = run(session, compiled, memory)
        return after, session.verilated.stats.read_beats, session.verilated.stats.write_bursts


def run(session, compiled: Compiled, memory: np.ndarray) -> np.ndarray:
    session.write(0, memory)
    session.run(program_of(compiled), WATCHDOG)
    return session.read(0, MEMORY_BYTES)


def test_errors_in_random_layers(request):
    only = request.config.getoption("--seed")
    failed = Counter()
    for number in range(CASES) if only is None else [only]:
        rng = np.random.default_rng([number, 6])
        compiled, memory = compiled_layer(LAYERS[number % len(LAYERS)])
        after, beats, write_bursts = expected(LAYERS[number % len(LAYERS)])
        where = {"burst": int(rng.integers(write_bursts))} if number % 3 == 2 else {"beat": int(rng.integers(beats))}
        names = {"burst": "write_error_burst", "beat": "read_error_beat"}
        with open_rtl(MEMORY_BYTES, 0, model_of(rng) | {names[name]: value for name, value in where.items()}) as session:
            watch(session)
            with pytest.raises(MachineError) as error:
                run(session, compiled, memory)
            try:
                failed[check_error(session, program_of(compiled), error.value, **where)] += 1
                stopped = session.read(0, MEMORY_BYTES)
                assert np.all((stopped == memory) | (stopped == after)), "a byte holds what the layer never writes there"
                assert np.array_equal(run(session, compiled, memory), after), "the next run differs"
            except AssertionError as wrong:
                raise AssertionError(f"case {number}, {where}: {wrong}; {REPLAY} {number}") from wrong
    assert only is not None or len(failed) == 3 and min(failed.values()) >= CASES // 10, failed
