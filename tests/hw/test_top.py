"""The whole machine: what it counts, how fast its memory side is, interrupts, errors in both directions of AXI."""

import numpy as np
import pytest

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import ADDR, CYCLE_COUNTERS, Cause, Counter
from seriatim.errors import MachineError
from seriatim.hw.axi import BURST
from seriatim.isa import Buffer, Sem
from seriatim.sim.session import Program

pytestmark = pytest.mark.rtl

CONFIG = Config(3, 4, 64, 64, act_words=512, wgt_words=16, prm_words=16, res_words=32, out_words=256, psum_words=16,
                line_bytes=1024, marks=4, queue=4, outstanding=8)
BASE, SIZE = 0x1000_0000, 0x20000
PROGRAM = BASE + 0x18000
READ, WRITE = (BASE, BASE + 0x10000), (BASE + 0x10000, BASE + 0x18000)
START_CYCLES = 250
"""Latencies, fetch and decode around the instruction that is measured, at 100 cycles of memory latency."""


@pytest.fixture(scope="module")
def library():
    from seriatim.sim.rtl import library

    return library(CONFIG)


def machine(library, **model):
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    session = RtlSession(CONFIG, SIZE, BASE, MemoryModel(**model), library_path=library)
    session.write(BASE, np.random.default_rng(3).integers(0, 256, SIZE, np.uint8))
    return session


def run(session, *instructions, layers=0, **limits):
    code = b"".join(isa.encode(name, **fields) for name, fields in (*instructions, ("END", {})))
    return session.run(Program(code, PROGRAM, **dict(read_range=READ, write_range=WRITE) | limits, layers=layers), watchdog=3000)


def test_every_cycle_has_one_cause(library):
    with machine(library) as session:
        counts = run(
            session,
            ("LOAD", dict(buffer=Buffer.ACT, dram=READ[0], slices=3, slice_pitch=0x1000, words=256, signal=Sem.ACT_READY)),
            ("POOL", dict(wait=Sem.ACT_READY, nx=8, ng=1, sx=8, planes=8, signal=Sem.OUT_READY)),
            ("STORE", dict(wait=Sem.OUT_READY, dram=WRITE[0], slices=3, slice_pitch=0x400, words=64)))
        total = counts.total
        assert counts.cycles == sum(total[c] for c in CYCLE_COUNTERS)
        assert total[Counter.BUSY] == total[Counter.POOL_STEPS] == 64
        assert total[Counter.STALL_ACT] > 256 * 3 and total[Counter.STALL_STORE] > 3 * 64
        assert total[Counter.FETCH_BEATS] == 4 * 8 and total[Counter.READ_BEATS] == 4 * 8 + 3 * 256
        assert total[Counter.WRITE_BEATS] == 3 * 64
        again = run(session, ("FILL", dict(mask=1, planes=1, words=1)))
        assert again.total[Counter.READ_BEATS] == 16, "counters start at zero"


def test_cycles_are_those_until_the_interrupt(library):
    with machine(library, latency=20) as session:
        top = session.verilated
        code = isa.encode("FILL", mask=1, planes=1, words=300) + isa.encode("END")
        session.write(PROGRAM, code)
        for name, value in (("PROG_BASE", PROGRAM), ("PROG_BYTES", len(code)), ("IRQ_ENABLE", 1)):
            session.csr_write(name, value)
        top.watch("s_axil_bvalid")
        top.watch("irq")
        session.csr_write("CTRL", 1)
        top.run_until_irq(10_000)
        events = top.events()
        started = [e.cycle for e in events if e.port == "s_axil_bvalid" and e.value][-1]
        stopped = next(e.cycle for e in events if e.port == "irq" and e.value)
        counted = sum(session.csr_read(f"{c.name}_LO") for c in CYCLE_COUNTERS)
        assert counted == pytest.approx(stopped - started, abs=2) and counted > 300
        session.csr_write("CTRL", 2)
        assert not top.irq and session.csr_read("STATUS") == 2


@pytest.mark.parametrize("fields,beats", [
    (dict(words=512), 512),
    (dict(words=8, nx=16, x_pitch=64, ny=4, y_pitch=1024, row_pitch=128), 512),
    (dict(words=1, nx=128, x_pitch=8, ny=4, y_pitch=1024, row_pitch=128), 512),
    (dict(words=16, nx=1, ny=32, y_pitch=512, row_pitch=16), 512),
    (dict(words=16, nx=10, x_pitch=256, slices=3, slice_pitch=8192), 480),
], ids=["one", "joined", "words", "rows", "apart"])
def test_loads_take_a_beat_a_cycle(library, fields, beats):
    with machine(library) as session:
        cycles = run(session, ("LOAD", dict(buffer=Buffer.ACT, dram=READ[0]) | fields)).cycles
    assert beats <= cycles <= beats + START_CYCLES + BURST * (fields["words"] == 1), "a burst is put together, then asked for"


def test_latency_shows_once_in_a_row_of_loads(library):
    with machine(library) as session:
        loads = [("LOAD", dict(buffer=Buffer.ACT, dram=READ[0] + 1024 * i, words=128)) for i in range(6)]
        cycles = run(session, *loads).cycles
    assert 6 * 128 <= cycles <= 6 * 128 + START_CYCLES


def test_stores_take_a_beat_a_cycle(library):
    with machine(library) as session:
        base = run(session, ("STORE", dict(dram=WRITE[0], words=1))).cycles
        for fields in (dict(words=256), dict(words=1, nx=256, x_pitch=8), dict(words=16, nx=16, x_pitch=256)):
            cycles = run(session, ("STORE", dict(dram=WRITE[0]) | fields)).cycles
            assert cycles <= base + 256 + 8 + BURST * (fields["words"] == 1), fields


def test_a_position_of_7x7x3_takes_24_cycles(library):
    fields = dict(dram=READ[0], y_pitch=120, height=40, width=40, channels=3, y0=-3, y_step=2, x0=-3, nx=20, kh=7, kw=7,
                  sw=2, dh=1, dw=1, code=7, seg_bytes=128, slices=3)
    with machine(library) as session:
        one = run(session, ("PATCH", fields | dict(slices=1))).cycles
        three = run(session, ("PATCH", fields)).cycles
    assert three - one == pytest.approx(2 * 20 * 24, abs=30)


def test_marks_keep_the_counters(library):
    with machine(library) as session:
        fill = ("FILL", dict(mask=7, planes=1, words=200, signal=Sem.ACT_READY))
        pool = ("POOL", dict(wait=Sem.ACT_READY, nx=8, ng=1, planes=4))
        counts = run(session, ("MARK", dict(layer=0)), fill, pool, ("MARK", dict(layer=1)), fill, pool, fill, pool,
                     ("MARK", dict(layer=9)), layers=2)
        assert session.csr_read("LAYER") == 9
    assert [row[Counter.POOL_STEPS] for row in counts.layers] == [32, 64]
    for c in Counter:
        assert sum(row[c] for row in counts.layers) == counts.total[c]


def test_errors_of_memory_name_their_instruction(library):
    loads = [("LOAD", dict(buffer=Buffer.ACT, dram=READ[0] + 0x800 * i, words=32)) for i in range(4)]
    fetched = 5 * 8
    with machine(library, latency=9, read_error_beat=fetched + 2 * 32 + 5) as session, pytest.raises(MachineError) as error:
        run(session, *loads)
    assert error.value.cause is Cause.AXI_READ
    assert error.value.pc in (64, 128, 192), "depends on where fetched beats come between"
    stores = [("STORE", dict(dram=WRITE[0] + 0x800 * i, words=32)) for i in range(4)]
    with machine(library, write_error_burst=2) as session, pytest.raises(MachineError) as error:
        run(session, *stores)
    assert (error.value.cause, error.value.pc) == (Cause.AXI_WRITE, 128)


def test_an_error_ends_the_bursts_in_flight(library):
    """Both ways at once: reads are swallowed, writes that were addressed get beats without bytes; the next program runs."""
    with machine(library, latency=60, stall_percent=30) as session:
        before = session.read(BASE, SIZE)
        store = ("STORE", dict(dram=WRITE[0], words=200))
        for bad in (("LOAD", dict(buffer=Buffer.ACT, dram=READ[1] - 8, words=200)),
                    ("LOAD", dict(buffer=Buffer.ACT, dram=READ[0], base=500, words=200)),
                    ("FILL", dict(base=500, mask=1, planes=1, words=13))):
            with pytest.raises(MachineError):
                run(session, store, ("LOAD", dict(buffer=Buffer.RES, dram=READ[0], words=32)), bad)
            after = session.read(BASE, SIZE)
            after[WRITE[0] - BASE:] = before[WRITE[0] - BASE:]
            assert np.array_equal(after, before)
            assert session.csr_read("STATUS") & 1 == 0
            run(session, store)
            assert session.read(WRITE[0], 1600).any() is not None


def test_a_start_while_busy_is_ignored(library):
    with machine(library, latency=400) as session:
        code = isa.encode("FILL", mask=1, planes=1, words=300) + isa.encode("END")
        session.write(PROGRAM, code)
        for name, value in (("PROG_BASE", PROGRAM), ("PROG_BYTES", len(code)), ("IRQ_ENABLE", 1), ("CTRL", 1), ("CTRL", 1)):
            session.csr_write(name, value)
        assert session.csr_read("STATUS") == 1
        session.wait()
        assert session.csr_read("STATUS") == 2 | 8
        assert session.csr_read("FETCH_BEATS_LO") == 16


def test_registers_are_where_the_table_says(library):
    with machine(library) as session:
        for name in ("PROG_BASE", "WRITE_LIMIT", "WATCHDOG"):
            session.verilated.csr_write(ADDR[name], 0x1234_5600)
            assert session.csr_read(name) == 0x1234_5600
