"""Population count: the compressor tree against Python, and against the body for simulation."""

import ctypes
import random

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from execute_bench import tools, verilate

from seriatim.hw.convert import to_verilog
from seriatim.hw.popcount import Popcount


@pytest.mark.unit
@pytest.mark.parametrize("width", [1, 2, 3, 7, 32, 64, 256])
def test_tree_counts(width):
    unit = Popcount(width)
    rng = random.Random(width)
    cases = [0, (1 << width) - 1, *(1 << i for i in range(width)), *(rng.getrandbits(width) for _ in range(100))]

    async def bench(ctx):
        for value in cases:
            ctx.set(unit.i, value)
            assert ctx.get(unit.o) == value.bit_count(), hex(value)

    simulator = Simulator(unit)
    simulator.add_testbench(bench)
    simulator.run()


class Both(wiring.Component):
    """Both bodies on the same input, in parts of 64, 32 and 7 bits."""

    def __init__(self):
        super().__init__({"i": In(64), "wrong": Out(1)})

    def elaborate(self, platform):
        m = Module()
        wrong = 0
        for width in (64, 32, 7):
            tree, count = Popcount(width), Popcount(width, simulation=True)
            m.submodules[f"tree_{width}"], m.submodules[f"count_{width}"] = tree, count
            m.d.comb += [tree.i.eq(self.i), count.i.eq(self.i)]
            wrong |= tree.o != count.o
        m.d.comb += self.wrong.eq(wrong)
        return m


DRIVER = """
#include "Vseriatim.h"
#include "verilated.h"
#pragma GCC visibility push(default)
extern "C" long wrong(const unsigned long *values, long count) {
    VerilatedContext context;
    Vseriatim top{&context};
    long wrong = 0;
    for (long n = 0; n < count; ++n) { top.i = values[n]; top.eval(); wrong += top.wrong; }
    return wrong;
}
"""


@pytest.mark.rtl
@pytest.mark.skipif(not tools(), reason="needs verilator and a C++ compiler")
def test_both_bodies_are_equal():
    lib = verilate(to_verilog(Both(), "both"), "both", DRIVER)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 64, 200_000, np.uint64)
    values[1::2] &= values[::2]
    values[:65] = [(1 << n) - 1 for n in range(65)]
    assert lib.wrong(values.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(len(values))) == 0
