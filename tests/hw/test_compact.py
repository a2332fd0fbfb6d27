"""The compact machine in Verilator: random programs and layers as the ISA simulator has them, errors, registers."""

import dataclasses

import layer_reference
import numpy as np
import pytest
import random_programs as programs
import test_random_layers as layers_test
import test_random_programs as programs_test

from seriatim import csr, isa
from seriatim.compiler.codegen import generate
from seriatim.config import Config, Memory
from seriatim.csr import CYCLE_COUNTERS, Cause, Counter
from seriatim.errors import ConfigError, MachineError, SeriatimError
from seriatim.hw import emit
from seriatim.hw.compact import Compact
from seriatim.isa import Sem
from seriatim.sim import build
from seriatim.sim import random_layers as layers
from seriatim.sim.executor import execute
from seriatim.sim.rtl import RtlSession
from seriatim.sim.session import Program
from seriatim.sim.verilated import MemoryModel

pytestmark = pytest.mark.rtl
CONFIG = Config(1, 1, 32, 32, act_words=512, wgt_words=160, prm_words=32, res_words=64, out_words=64, psum_words=128,
                line_bytes=512, max_planes=16, marks=4, compact=1)
COUNTED = (Counter.READ_BEATS, Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS)
MEMORIES = MemoryModel(latency=2), MemoryModel(latency=1, outstanding=3, stall_percent=40, seed=3)


@pytest.mark.parametrize("model", MEMORIES, ids=["steady", "holding"])
def test_random_programs(monkeypatch, model):
    monkeypatch.setattr(programs, "CONFIG", CONFIG)
    monkeypatch.setattr(programs_test, "COUNTED", COUNTED)
    with RtlSession(CONFIG, programs.SIZE, model=model) as session:
        for seed in range(12) if model is MEMORIES[0] else range(12, 20):
            case = programs.draw(seed, illegal=0.5)
            try:
                programs_test.check(case, session)
            except (AssertionError, SeriatimError) as error:
                raise AssertionError(f"{error}\n{case}") from error


def test_random_layers(monkeypatch):
    monkeypatch.setattr(layers_test, "COUNTED", COUNTED)
    monkeypatch.setattr(layers_test, "AT_LEAST", ())
    with RtlSession(layers.OTHERS[layers.COMPACT], layers_test.MEMORY_BYTES, model=MEMORIES[0]) as session:
        for seed in range(12):
            case = layers.draw(seed, layers.COMPACT)
            try:
                layers_test.check(case, session)
            except (AssertionError, SeriatimError) as error:
                raise AssertionError(f"{error}\n{case}") from error


def test_the_emitted_file():
    config = layers.OTHERS[layers.COMPACT]
    library = build.build(emit.verilog(config), axi_bits=config.axi_bits, top=emit.TOP)
    case = layers.draw(3, layers.COMPACT)
    with RtlSession(config, layers_test.MEMORY_BYTES, model=MEMORIES[0], library_path=library) as session:
        out, _ = layers_test.run_program(session, generate(case.region, config), case.inputs, np.random.default_rng(0))
    assert np.array_equal(out, layer_reference.by_reference(case)), case


def test_cycles_are_foretold():
    """Of layers that the cycle model's costs were not fitted to."""
    memory = Memory(latency=2, outstanding=1)
    for seed in range(1000, 1008):
        case = layers.draw(seed, layers.COMPACT)
        run = execute(generate(case.region, case.config, memory), case.inputs,
                      lambda config, size: RtlSession(config, size, model=MemoryModel(latency=2)))
        assert run.compiled.cycles == pytest.approx(run.counts.cycles, rel=0.1), case


# The machine as a driver sees it

PROGRAM, READ, WRITE = 0x8000, (0x1000, 0x4000), (0x4000, 0x8000)
LOAD = "LOAD", dict(dram=READ[0], words=64)
STORE = "STORE", dict(dram=WRITE[0], words=16)


def machine(**model) -> RtlSession:
    return RtlSession(CONFIG, 0x10000, model=MemoryModel(**dict(latency=2) | model))


def run(session, *instructions, watchdog=3000, layers=0):
    code = b"".join(isa.encode(name, **fields) for name, fields in (*instructions, ("END", {})))
    return session.run(Program(code, PROGRAM, READ, WRITE, layers), watchdog)


def stops(session, *instructions, **kwargs) -> tuple[Cause, int]:
    """The cause with which a program stops, and at which instruction; the machine then runs another."""
    with pytest.raises(MachineError) as error:
        run(session, *instructions, **kwargs)
    assert session.csr_read("STATUS") & 7 == csr.Status.ERROR
    run(session, ("FILL", dict(mask=1, planes=1, words=3)))
    return error.value.cause, error.value.pc // isa.INSTR_BYTES


def test_cycles_are_those_until_the_interrupt():
    with machine() as session:
        top = session.verilated
        for port in ("s_axil_bvalid", "irq"):
            top.watch(port)
        counts = run(session, LOAD, STORE, ("MARK", {}))
        events = top.events()
    stopped = next(e.cycle for e in events if e.port == "irq" and e.value)
    started = [e.cycle for e in events if e.port == "s_axil_bvalid" and e.value and e.cycle < stopped][-1]
    assert counts.cycles == pytest.approx(stopped - started, abs=400) and counts.cycles > 10_000
    assert counts.cycles == sum(counts.total[c] for c in CYCLE_COUNTERS)
    assert counts.total[Counter.STALL_ACT] > 64 and counts.total[Counter.STALL_STORE] > 16


def test_marks_keep_the_counters():
    pool = "POOL", dict(nx=8, ng=1, planes=4)
    with machine() as session:
        marks = [("MARK", dict(layer=layer)) for layer in (0, 1, 9)]
        counts = run(session, marks[0], LOAD, pool, marks[1], pool, pool, marks[2], layers=2)
        assert session.csr_read("LAYER") == 9
        for address in (4 * csr.PROFILE_ROW, csr.PROFILE_KEPT):
            session.csr_write("PROFILE_ADDR", address)
            assert session.csr_read("PROFILE_LO") == session.csr_read("PROFILE_HI") == 0, "beyond what is kept"
    assert [row[Counter.POOL_STEPS] for row in counts.layers] == [32, 64]
    for c in Counter:
        assert sum(row[c] for row in counts.layers) == counts.total[c]


def test_errors_of_memory_name_their_instruction():
    with machine(read_error_beat=2 * 17 * 2 + 40) as session:
        cause, at = stops(session, LOAD, LOAD, LOAD)
        assert cause is Cause.AXI_READ and at <= 2
    with machine(write_error_burst=20) as session:
        assert stops(session, STORE, STORE, STORE) == (Cause.AXI_WRITE, 1)


@pytest.mark.parametrize("first", [LOAD, STORE], ids=["read", "write"])
def test_a_memory_that_answers_too_late(first):
    """The watchdog stops the machine while it waits; the next program runs as soon as memory has answered."""
    with machine(latency=500) as session:
        with pytest.raises(MachineError) as error:
            run(session, first, watchdog=100)
        assert error.value.cause is Cause.WATCHDOG
        assert run(session, first, watchdog=0).total[Counter.READ_BEATS] > 0


def test_programs_that_cannot_go_on():
    with machine() as session:
        assert stops(session, LOAD, ("POOL", dict(wait=Sem.ACT_READY, planes=1))) == (Cause.WATCHDOG, 1)
        assert stops(session, LOAD, ("STORE", dict(dram=WRITE[1], words=1))) == (Cause.DRAM_RANGE, 1)
        assert stops(session, ("LOAD", dict(dram=1 << 31, words=1))) == (Cause.DRAM_RANGE, 0)
        session.csr_write("PROG_BASE", 1 << 31)
        session.csr_write("CTRL", csr.Ctrl.START)
        session.wait()
        assert session.csr_read("CAUSE") == Cause.PROGRAM_RANGE
        assert stops(session, LOAD, ("TABLE", {})) == (Cause.UNSUPPORTED, 1)
        for code, cause in ((b"\x63" + bytes(63), Cause.ILLEGAL_OPCODE), (b"", Cause.PROGRAM_RANGE),
                            (isa.encode("END")[:63] + b"\1", Cause.ILLEGAL_FIELD)):
            with pytest.raises(MachineError) as error:
                session.run(Program(isa.encode("MARK") + code, PROGRAM, READ, WRITE))
            assert (error.value.cause, error.value.pc) == (cause, isa.INSTR_BYTES)


def test_registers():
    with machine() as session:
        session.check()
        assert session.csr_read("GEOMETRY") == 1 | 1 << 8 | 32 << 20
        session.csr_write("ID", 7)
        session.check()
        for register in csr.REGISTERS:
            if register.access == "rw":
                session.csr_write(register.name, 0x1234_5670)
                assert session.csr_read(register.name) == 0x1234_5670
        beyond = max(r.addr for r in csr.REGISTERS) + 4
        session.verilated.csr_write(beyond, 0xFFFF_FFFF)
        assert [session.verilated.csr_read(address) for address in (beyond, 0xFFC)] == [0, 0]


def test_a_start_while_busy_is_ignored():
    code = isa.encode("LOAD", **LOAD[1]) + isa.encode("END")
    with machine() as session:
        session.write(PROGRAM, code)
        for name, value in (("PROG_BASE", PROGRAM), ("PROG_BYTES", len(code)), ("READ_LIMIT", READ[1]), ("IRQ_ENABLE", 1),
                            ("CTRL", csr.Ctrl.START), ("CTRL", csr.Ctrl.START)):
            session.csr_write(name, value)
        assert session.csr_read("STATUS") == csr.Status.BUSY
        session.wait()
        assert session.csr_read("STATUS") == csr.Status.DONE | csr.Status.INTERRUPT
        assert session.csr_read("READ_BEATS_LO") == 64 + session.csr_read("FETCH_BEATS_LO")
        session.csr_write("CTRL", csr.Ctrl.ACKNOWLEDGE)
        assert session.csr_read("STATUS") == csr.Status.DONE and not session.verilated.irq


def test_more_than_the_scratch_memory_holds():
    with pytest.raises(ConfigError, match="16,384 words, this Config takes 17,.*wgt_words=16000"):
        Compact(dataclasses.replace(CONFIG, wgt_words=16000))


@pytest.mark.parametrize("change", [dict(m=2), dict(n=4), dict(k=64), dict(axi_bits=64, k=64), dict(shift_lanes=4)], ids=str)
def test_what_it_has_not(change):
    with pytest.raises(ConfigError, match="the compact machine has one row"):
        Config(**dict(m=1, n=1, k=32, axi_bits=32, compact=1) | change)
