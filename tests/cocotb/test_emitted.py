"""The file that `seriatim emit` writes under cocotb, in Verilator and Icarus: layers against the big-integer reference, a program
against the ISA simulator."""

import shutil

import bench
import pytest

from seriatim.hw import emit
from seriatim.sim.random_layers import GEOMETRIES

CONFIG = GEOMETRIES["2x4x32"]
pytestmark = [pytest.mark.rtl, pytest.mark.slow]
ICARUS = pytest.mark.skipif(not shutil.which("iverilog"), reason="needs iverilog (Debian's package; tools/debian.sh installs it)")


@pytest.fixture(scope="module", params=["verilator", pytest.param("icarus", marks=ICARUS)])
def runner(request):
    emitted = emit.verilog(CONFIG, bench.top_of(""))
    return bench.built(bench.bench_verilog({"": emitted}), request.param)


@pytest.mark.parametrize("test, seed", [("layer", 73), ("layer", 85), ("program", 0)])
def test_emitted(request, runner, test, seed, tmp_path):
    seed = seed if request.config.getoption("--seed") is None else request.config.getoption("--seed")
    bench.run(runner, "tb_machine", test, seed, request.node.nodeid, tmp_path)
