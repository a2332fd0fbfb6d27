"""PyVerilator on the generated Verilog of a small Amaranth module."""

import os

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.hw.convert import SIM, to_verilog

pytestmark = pytest.mark.rtl


class Stage(wiring.Component):
    """Delays by one cycle; the delayed value has a name of its own."""

    def __init__(self, width):
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        kept = Signal.like(self.i, name="kept")
        m.d.sync += kept.eq(self.i)
        m.d.comb += self.o.eq(kept)
        return m


class Two(wiring.Component):
    """Counts enabled cycles; two stages behind `data`, which is wider than any C++ integer."""

    en: In(1)
    data: In(100)
    out: Out(100)
    total: Out(40)

    def elaborate(self, platform):
        m = Module()
        count = Signal(40, init=0xFF_FFFF_FFF0)
        with m.If(self.en):
            m.d.sync += count.eq(count + 1)
        m.submodules.first = first = Stage(100)
        m.submodules.second = second = Stage(100)
        m.d.comb += [first.i.eq(self.data), second.i.eq(first.o), self.out.eq(second.o), self.total.eq(count)]
        return m


@pytest.fixture(scope="module")
def verilog():
    return to_verilog(Two(), "two", SIM)


def test_reads_internals_and_ticks(verilog):
    from seriatim.sim.pyveri import Signals

    sim = Signals.of(verilog, "two")
    assert sim.clock is not None and set(sim.io) >= {"clk", "rst", "en", "data", "out", "total"}
    value = 0x9_1234_5678_9ABC_DEF0_1122_3344
    sim.io.data = value
    sim.tick()
    assert int(sim.internals.first.kept) == value and int(sim.internals.second.kept) == 0
    sim.tick()
    assert int(sim.io.out) == value and int(sim.internals.second.kept) == value
    sim.io.en = 1
    sim.tick(20)
    assert int(sim.io.total) == 4 == sim.find("count")["count"], "40 bits wrap"
    assert set(sim.find("kept")) == {"first.kept", "second.kept"}
    sim.io.rst = 1
    sim.tick()
    assert int(sim.internals.count) == 0xFF_FFFF_FFF0


def test_vcd(verilog, tmp_path):
    from seriatim.sim.pyveri import Signals

    sim = Signals.of(verilog, "two")
    sim.start_vcd_trace(str(tmp_path / "two.vcd"))
    sim.io.en = 1
    sim.tick(3)
    sim.stop_vcd_trace()
    assert "kept" in (tmp_path / "two.vcd").read_text()


def test_nothing_but_this_python_is_needed(verilog, tmp_path, monkeypatch):
    """Verilator's makefiles call `python`, which a machine need not have, or which is another one."""
    from seriatim.sim.pyveri import Signals

    (tmp_path / "bin").mkdir()
    for name in ("python", "python3"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SERIATIM_CACHE", str(tmp_path / "cache"))
    assert Signals.of(verilog, "two").clock is not None
