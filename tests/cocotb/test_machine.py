"""The whole accelerator under cocotb, in Verilator and (a small layer) in Icarus."""

import shutil

import bench
import pytest

from seriatim.sim.random_layers import GEOMETRIES

CONFIG = GEOMETRIES["2x4x32"]
pytestmark = [pytest.mark.rtl, pytest.mark.slow]
SEEDS = {
    "layer": (69, 249, 329, 477, 617, 649, 653, 693, 737, 773, 817, 825, 1069, 1165), "program": (0, 1, 2, 3),
    "bus_errors": (0, 1), "reset_at_any_time": (0, 1), "registers": (0,),
}
"""Seeds of each test; a layer's is one of the random layers on this geometry. The shift-add array runs 69, 329, 477, 649, 653,
737 and 773: tables with linear and with log activations, log with log, log with linear ones."""


@pytest.fixture(scope="module")
def runner():
    """The runner of a simulator, by its name."""
    made = {}

    def get(simulator: str):
        if simulator not in made:
            from seriatim.hw.top import Seriatim

            made[simulator] = bench.compiled({"": Seriatim(CONFIG, simulation=True)}, simulator)
        return made[simulator]

    return get


@pytest.mark.parametrize("test,seed", [(test, seed) for test, seeds in SEEDS.items() for seed in seeds])
def test_in_verilator(request, runner, test, seed, tmp_path):
    seed = seed if request.config.getoption("--seed") is None else request.config.getoption("--seed")
    bench.run(runner("verilator"), "tb_machine", test, seed, request.node.nodeid, tmp_path)


@pytest.mark.skipif(not shutil.which("iverilog"), reason="needs iverilog (Debian's package; tools/debian.sh installs it)")
@pytest.mark.parametrize("seed", [73, 85])
def test_in_icarus(request, runner, seed, tmp_path):
    seed = seed if request.config.getoption("--seed") is None else request.config.getoption("--seed")
    bench.run(runner("icarus"), "tb_machine", "layer", seed, request.node.nodeid, tmp_path)
