"""The Verilated build and its C++ memory, on a small DMA copier that has the accelerator's ports."""

import multiprocessing
import os
import time

import copier
import numpy as np
import pytest

from seriatim.errors import MachineError, ToolError
from seriatim.hw.convert import SIM, to_verilog
from seriatim.sim import build
from seriatim.sim.verilated import Event, MemoryModel, Reason, Resp, Run, VerilatedTop

pytestmark = pytest.mark.rtl


HALF = 1 << 16


@pytest.fixture(scope="module")
def verilog():
    return to_verilog(copier.Copier(64), "seriatim_top", SIM)


@pytest.fixture(scope="module")
def library(verilog):
    return build.build(verilog, axi_bits=64)


def memory(seed=0, size=2 * HALF):
    mem = np.zeros(2 * HALF, np.uint8)
    mem[:HALF] = np.random.default_rng(seed).integers(0, 256, HALF)
    return mem[:size]


def start(top, *, src=0, dst=HALF, beats=16, bursts=4, fault=0):
    base = top.base
    for address, value in ((copier.SRC, base + src), (copier.DST, base + dst), (copier.SHAPE, beats - 1 | bursts << 8),
                           (copier.FAULT, fault), (copier.START, 1)):
        top.csr_write(address, value)


def copy(library, model=None, limit=100_000, base=0, seed=0, size=2 * HALF, **shape):
    """Runs one copy on a fresh machine; returns (memory, run, stats, status)."""
    mem = memory(seed, size)
    with VerilatedTop(library, mem, base=base, model=model) as top:
        start(top, **shape)
        run = top.run_until_irq(limit)
        return mem, run, top.stats, top.csr_read(copier.STATUS)


def test_copies_and_counts(library):
    mem, run, stats, status = copy(library, beats=128, bursts=64)
    assert (mem[HALF:] == mem[:HALF]).all() and status == 1 and run.reason == Reason.IRQ
    assert (stats.read_beats, stats.read_bursts, stats.write_beats, stats.write_bursts) == (8192, 64, 8192, 64)
    assert not stats.settled and stats.read_errors == stats.write_errors == 0
    # One beat a cycle each way; the latency of the first read, of the last response, and the pipeline.
    assert 8192 + 200 <= run.cycles <= 8192 + 200 + 20


@pytest.mark.parametrize("latency", (1, 2, 37, 100))
def test_latency_is_exact(library, latency):
    _, run, _, _ = copy(library, MemoryModel(latency=latency), beats=1, bursts=1)
    _, one, _, _ = copy(library, MemoryModel(latency=1), beats=1, bursts=1)
    assert run.cycles - one.cycles == 2 * (latency - 1), "once for the read, once for the write's response"


def test_outstanding_bounds_short_bursts(library):
    """With B bursts in flight and a latency of L, bursts of 1 beat go at B per L + 1 cycles."""
    cycles = {n: copy(library, MemoryModel(outstanding=n), beats=1, bursts=400)[1].cycles for n in (1, 4, 8)}
    for n, taken in cycles.items():
        assert taken == pytest.approx(400 * 101 / n, rel=0.04), (n, cycles)


def test_bandwidth(library):
    _, run, _, _ = copy(library, MemoryModel(read_bandwidth=(3, 4)), beats=128, bursts=64)
    assert run.cycles == pytest.approx(8192 * 4 / 3 + 200, rel=0.01)
    _, run, _, _ = copy(library, MemoryModel(write_bandwidth=(1, 3)), beats=128, bursts=64)
    assert run.cycles == pytest.approx(8192 * 3 + 200, rel=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_stalls_change_time_only(library, seed):
    percent = (10, 30, 50, 70, 90, 25)[seed]
    model = MemoryModel(stall_percent=percent, seed=seed, latency=1 + 9 * seed, outstanding=1 + seed)
    print(model)
    mem, run, _, status = copy(library, model, limit=10**6, beats=16, bursts=64, seed=seed)
    assert (mem[HALF:HALF + 8192] == mem[:8192]).all() and not mem[HALF + 8192:].any() and status == 1
    again = copy(library, model, limit=10**6, beats=16, bursts=64, seed=seed)[1]
    assert run == again, "the same seed gives the same stalls"


def test_writes_are_visible_after_their_response_only(library):
    mem = memory()
    with VerilatedTop(library, mem) as top:
        start(top, beats=1, bursts=1)
        while top.stats.write_beats == 0:
            top.step(1)
        top.step(98)
        assert not mem[HALF:].any()
        top.run_until_irq(10)
        assert (mem[HALF:HALF + 8] == mem[:8]).all()


def test_injected_errors(library):
    mem, _, stats, status = copy(library, MemoryModel(read_error_beat=20))
    assert status == 3 and stats.read_errors == 1
    mem, _, stats, status = copy(library, MemoryModel(write_error_burst=0, error=Resp.DECERR))
    assert status == 3 and stats.write_errors == 1 and not mem[HALF:].any()


def test_outside_the_memory(library):
    _, _, stats, status = copy(library, size=2 * HALF - 64, src=2 * HALF - 128, beats=16, bursts=1, dst=0)
    assert status == 3 and (stats.read_beats, stats.read_errors) == (9, 1), "the first 8 beats are inside"
    mem, _, stats, status = copy(library, dst=2 * HALF, beats=16, bursts=1)
    assert status == 3 and stats.write_errors == 1
    _, _, stats, status = copy(library, base=0x4000_0000, src=-8, beats=1, bursts=1)
    assert status == 3 and stats.read_errors == 1
    mem, _, stats, status = copy(library, base=0x4000_0000, beats=16, bursts=8)
    assert status == 1 and (mem[HALF:HALF + 1024] == mem[:1024]).all()


@pytest.mark.parametrize("model", (MemoryModel(read_hang_beat=20), MemoryModel(write_hang_burst=1)))
def test_hang(library, model):
    mem = memory()
    with VerilatedTop(library, mem, model=model) as top:
        start(top)
        assert top.run_until_irq(5000) == Run(5000, Reason.LIMIT)
        assert top.csr_read(copier.STATUS) == 0, "CSRs still answer"
        assert top.stats.read_beats == 20 if model.read_hang_beat else top.stats.write_bursts == 1


def test_broken_rules_are_reported(library):
    cases = (
        (dict(src=4096 - 64, beats=16), r"ar burst of 16 beats at 0xfc0 crosses a 4 KB boundary"),
        (dict(fault=copier.LATE_WLAST), r"wlast is 1 on beat 1 of 16"),
        (dict(fault=copier.DROP_AR), r"arvalid was dropped before arready"),
        (dict(fault=copier.CHANGE_AR), r"the ar payload changed while arvalid waited"),
    )
    for shape, message in cases:
        with pytest.raises(MachineError, match=message):
            copy(library, MemoryModel(outstanding=1), **shape)


def test_combinational_path_is_found_and_settled(library, verilog):
    """rready that follows rvalid: the harness notices and takes the extra eval, so that results stay right."""
    mem, run, stats, status = copy(library, fault=copier.FOLLOW_RVALID)
    assert stats.settled and status == 1 and (mem[HALF:HALF + 512] == mem[:512]).all()
    assert run == copy(library)[1]


@pytest.mark.parametrize("bits, single_eval", ((64, False), (256, True), (32, True)))
def test_other_builds_agree(library, verilog, bits, single_eval):
    text = verilog if bits == 64 else to_verilog(copier.Copier(bits), "seriatim_top", SIM)
    other = build.build(text, axi_bits=bits, single_eval=single_eval)
    for model in (MemoryModel(), MemoryModel(stall_percent=40, seed=5, latency=9)):
        mem, run, stats, _ = copy(other, model, beats=16, bursts=32)
        mem64, run64, stats64, _ = copy(library, model, beats=16, bursts=32)
        size = 16 * 32 * bits // 8
        assert (mem[HALF:HALF + size] == mem[:size]).all() and not mem[HALF + size:].any()
        assert (run, stats) == (run64, stats64)


def test_csr_peek_watch_reset(library):
    with VerilatedTop(library, memory()) as top:
        for value in (0, 1, 0xFFFF_FFFF, 0xDEAD_BEEF):
            top.csr_write(copier.SRC, value)
            assert top.csr_read(copier.SRC) == value
            assert top.csr_read(copier.PROBE) == value.bit_count(), "$countones by way of the host's popcount"
        with pytest.raises(MachineError, match="write at 0xffc was answered SLVERR"):
            top.csr_write(0xFFC, 0)
        with pytest.raises(MachineError, match="read at 0xffc was answered DECERR"):
            top.csr_read(0xFFC)
        before = top.cycles
        top.csr_read(copier.SRC)
        assert top.cycles - before <= 4
        top.watch("irq")
        start(top)
        run = top.run_until_irq(10_000)
        assert run.reason == Reason.IRQ and top.irq and top.peek("irq") == 1 and top.peek("m_axi_awsize") == 3
        assert [(e.port, e.value) for e in top.events()] == [("irq", 0), ("irq", 1)]
        assert top.events(clear=True)[-1] == Event(top.cycles, "irq", 1) and top.events() == []
        with pytest.raises(ValueError, match="no port 'nothing'"):
            top.peek("nothing")
        with pytest.raises(ValueError, match="m_axi_none"):
            top.watch("m_axi_none")
        top.reset()
        assert top.cycles == 0 and not top.irq and top.csr_read(copier.SRC) == 0
        start(top)
        assert top.run_until_irq(10_000) == run, "a reset machine repeats itself"


def test_two_machines_at_once(library):
    """Models share nothing, and progress is told between chunks."""
    a, b = memory(1), memory(2)
    with VerilatedTop(library, a) as one, VerilatedTop(library, b) as two:
        start(one, bursts=64)
        start(two, bursts=64)
        for _ in range(10):
            one.step(33)
            two.step(33)
        seen = []
        two.CHUNK = 50
        two.run_until_irq(10_000, seen.append)
        one.run_until_irq(10_000)
        assert seen and seen == sorted(seen)
    assert (a[HALF:HALF + 8192] == a[:8192]).all() and (b[HALF:HALF + 8192] == b[:8192]).all()


def test_bad_arguments(library, tmp_path):
    with pytest.raises(TypeError, match="uint8"):
        VerilatedTop(library, np.zeros(64, np.int32))
    with pytest.raises(ValueError, match="whole|multiples"):
        VerilatedTop(library, np.zeros(63, np.uint8))
    with pytest.raises(ToolError, match="delete its folder"):
        VerilatedTop(tmp_path / "none.so", np.zeros(64, np.uint8))
    with pytest.raises(ValueError, match="axi_bits=48"):
        build.build("", axi_bits=48)
    for bad in (dict(latency=0), dict(stall_percent=100), dict(read_bandwidth=(2, 1)), dict(read_hang_beat=-1)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MemoryModel(**bad)


def test_ports_and_clock_are_read_from_the_verilog(verilog):
    ports = build.ports(verilog, "seriatim_top")
    assert ports["m_axi_wdata"] == 64 and ports["irq"] == 1 and ports["s_axil_awaddr"] == 12 and ports["state"] == 3
    assert "@(edge clk)" in build.both_edges(verilog) and "posedge" not in build.both_edges(verilog)
    assert build.both_edges("always @(posedge clk)\nalways @(negedge clk)") is None
    assert build.both_edges("always @(posedge pixel_clk)") is None
    with pytest.raises(ToolError, match="no module 'other'"):
        build.ports(verilog, "other")


def test_missing_compiler(monkeypatch):
    for path, name, message in (("/nonexistent", None, r"looked for g\+\+, clang\+\+ and c\+\+"),
                                (None, "no-such-cc", "no-such-cc")):
        with monkeypatch.context() as m:
            if path:
                m.setenv("PATH", path)
                m.delenv("CXX", raising=False)
            else:
                m.setenv("CXX", name)
            build.compiler.cache_clear()
            with pytest.raises(ToolError, match=message + ".*install"):
                build.compiler()
    build.compiler.cache_clear()


def test_failing_tool_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("SERIATIM_CACHE", str(tmp_path))
    with pytest.raises(ToolError, match="Verilator failed"):
        build.build("module seriatim_top(clk);\n  input clk;\n  wire x = ;\nendmodule\n", axi_bits=64, quiet=True)
    assert not [p for p in (tmp_path / "verilated").iterdir() if p.is_dir()], "nothing half-built stays"


def _make_slowly(folder):
    with open(folder.parent / "makers", "a") as f:
        f.write(f"{os.getpid()}\n")
    (folder / "part1").write_text("1")
    time.sleep(0.5)
    (folder / "part2").write_text("2")


def _fetch(root, queue):
    os.environ["SERIATIM_CACHE"] = root
    folder = build.cached("things", "abc", _make_slowly, None)
    queue.put(sorted(p.name for p in folder.iterdir()))


def test_cache_is_atomic_between_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_fetch, args=(str(tmp_path), queue)) for _ in range(4)]
    for p in processes:
        p.start()
    results = [queue.get(timeout=30) for _ in processes]
    for p in processes:
        p.join()
    assert results == [["part1", "part2"]] * 4
    assert len((tmp_path / "things" / "makers").read_text().split()) == 1, "one process made it, the others waited"


def test_cache_hit_is_instant(library, verilog, capfd):
    began = time.monotonic()
    assert build.build(verilog, axi_bits=64) == library
    assert time.monotonic() - began < 1.0 and capfd.readouterr().err == ""
