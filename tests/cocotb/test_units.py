"""The units with a stream or AXI interface under cocotb in Verilator, side by side in one bench."""

import bench
import pytest
import random_programs as programs
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.hw import axi
from seriatim.hw.fetch import Fetch
from seriatim.hw.load import Load
from seriatim.hw.store import Store

pytestmark = [pytest.mark.rtl, pytest.mark.slow]


class Reader(wiring.Component):
    """`axi.Reader` with names that stay apart when they are flattened."""

    def __init__(self, config):
        self.reader = axi.Reader(config)
        request = In(stream.Signature(axi.REQUEST))
        super().__init__({
            "bus": Out(axi.read_signature(config)), "fetch": request, "load": request, "to_fetch": Out(1), "to_load": Out(1),
            "data": Out(config.axi_bits), "error": Out(1), "idle": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = self.reader
        for name in ("bus", "fetch", "load"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(reader, name))
        m.d.comb += [self.to_fetch.eq(reader.fetch_valid), self.to_load.eq(reader.load_valid), self.data.eq(reader.data),
                     self.error.eq(reader.error), self.idle.eq(reader.idle)]
        return m


@pytest.fixture(scope="module")
def runner():
    units = {"bursts_": axi.Bursts, "reader_": Reader, "writer_": axi.Writer, "fetch_": Fetch, "load_": Load, "store_": Store}
    return bench.compiled({prefix: unit(programs.CONFIG) for prefix, unit in units.items()}, "verilator")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unit", ["bursts", "reader", "writer", "fetch", "load", "store"])
def test_unit(request, runner, unit, seed, tmp_path):
    seed = seed if request.config.getoption("--seed") is None else request.config.getoption("--seed")
    bench.run(runner, "tb_units", unit, seed, request.node.nodeid, tmp_path)
