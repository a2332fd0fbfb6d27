"""What `seriatim emit` writes: it compiles in every tool without a warning that has no reason, and says what the tables say."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from seriatim import cli, csr, isa
from seriatim.config import Config
from seriatim.hw import emit
from seriatim.sim import build, files
from seriatim.sim.random_layers import GEOMETRIES

CONFIG = GEOMETRIES["2x4x32"]
DRIVER = Path(__file__).parents[2] / "examples" / "baremetal"
pytestmark = pytest.mark.rtl


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An emitted folder of a small machine."""
    folder = tmp_path_factory.mktemp("emitted")
    for name, text in emit.contents(CONFIG).items():
        files.write(folder / name, text)
    return folder


def lint(folder: Path, *sources: str) -> str:
    """What Verilator's -Wall says."""
    environment = {key: value for key, value in os.environ.items() if key != "VERILATOR_ROOT"}
    run = subprocess.run([build.verilator_root() / "bin" / "verilator", "--lint-only", "-Wall", "--quiet", *sources], cwd=folder,
                         capture_output=True, text=True, env=environment)
    return run.stdout + run.stderr


def test_verilator_has_no_warning_without_a_reason(folder):
    assert lint(folder, "seriatim_top.vlt", "seriatim_top.sv") == ""


def test_every_waiver_is_needed(folder):
    assert set(re.findall(r"%Warning-(\w+):", lint(folder, "seriatim_top.sv"))) == set(emit.WAIVERS)


@pytest.mark.slow
def test_default_machine_has_no_warning_without_a_reason(tmp_path):
    files.write(tmp_path / "top.sv", emit.verilog(Config(), "top"))
    files.write(tmp_path / "top.vlt", emit.waivers(Config(), "top"))
    assert lint(tmp_path, "top.vlt", "top.sv") == ""


@pytest.mark.skipif(not shutil.which("iverilog"), reason="needs iverilog (Debian's package; tools/debian.sh installs it)")
def test_icarus_compiles_it(folder):
    run = subprocess.run(["iverilog", "-g2012", "-t", "null", "-s", "seriatim_top", "seriatim_top.sv"], cwd=folder,
                         capture_output=True, text=True)
    assert run.returncode == 0 and "error" not in run.stderr and "warning" not in run.stderr, run.stderr


def test_verilog_says_what_it_is_and_reads_well(folder):
    text = (folder / "seriatim_top.sv").read_text()
    head = text[:text.index("module")]
    assert f"configuration {CONFIG.hash:#010x}" in head and "Apache-2.0" in head and "act_words=512" in head
    assert not re.search(r"\b20\d\d-\d\d|\(\*|always @\*|dump_module|module \\", text)
    ports = re.search(r"^module seriatim_top\((.*?)\);", text, re.M | re.S).group(1).replace(",", "").split()
    assert ports[:3] == ["clk", "rst", "irq"] and len(ports) == 3 + 17 + 25 and len(set(ports)) == len(ports)


def test_a_combinational_block_shows_its_signal_one_value():
    """Icarus shows a default and what overrides it one after the other; across modules that never ended (in a real layer)."""
    block = ("module a(b);\n  reg [3:0] \\s$1  = 4'h0;\n  always @* begin\n    \\s$1  = 4'h0;\n"
             "    if (b) begin\n      \\s$1 [0] = 1'h1;\n    end\n  end\nendmodule\n")
    text = emit.portable(block, "top")
    assert "reg [3:0] \\s$1$comb ;" in text
    body = text.split("always_comb")[1]
    assert body.count("\\s$1 ") == 1 and "    \\s$1  = \\s$1$comb ;\n  end" in body


@pytest.mark.parametrize("compiler", (["gcc", "-std=c99"], ["g++", "-std=c++98"], ["g++", "-std=c++20"]), ids=" ".join)
def test_header_and_driver_compile(folder, tmp_path, compiler):
    """The header alone, twice over; then the bare-metal driver with it."""
    kind = "c++" if compiler[0] == "g++" else "c"
    (tmp_path / "twice.c").write_text('#include "seriatim.h"\n#include "seriatim.h"\n'
                                      "int first(void) { return SERIATIM_COUNTER_BUSY; }\n")
    if "c++98" in compiler[1]:  # the header needs no more; the driver has <stdint.h> and 64-bit integers
        sources = [tmp_path / "twice.c"]
    else:
        sources = [tmp_path / "twice.c", DRIVER / "seriatim_run.c"]
    for source in sources:
        run = subprocess.run([*compiler, "-Wall", "-Wextra", "-pedantic", "-Werror", "-I", folder, "-I", DRIVER, "-x", kind, "-c",
                              source, "-o", tmp_path / "out.o"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def evaluated(folder: Path, tmp_path: Path, names: list[str]) -> list[int]:
    """What a C program takes expressions of the header for."""
    lines = "".join(f'    printf("%lu\\n", (unsigned long)({name}));\n' for name in names)
    source = f'#include <stdio.h>\n#include "seriatim.h"\nint main(void) {{\n{lines}    return 0;\n}}\n'
    (tmp_path / "values.c").write_text(source)
    subprocess.run(["gcc", "-I", folder, tmp_path / "values.c", "-o", tmp_path / "values"], check=True)
    return [int(line) for line in subprocess.check_output([tmp_path / "values"], text=True).split()]


def test_header_has_the_tables_values(folder, tmp_path):
    expected = {"SERIATIM_CONFIG_HASH": CONFIG.hash, "SERIATIM_ACT_WORDS": 512, "SERIATIM_AXI_BYTES": 4}
    for r in csr.REGISTERS:
        counter = re.fullmatch(r"(\w+)_(LO|HI)", r.name) if r.addr >= 0x100 else None
        name = f"COUNTER_{counter[2]}(SERIATIM_COUNTER_{counter[1]})" if counter else r.name
        expected[f"SERIATIM_REG_{name}"] = r.addr
    expected |= {f"SERIATIM_CAUSE_{c.name}": int(c) for c in csr.Cause}
    for instr in isa.INSTRS:
        expected[f"SERIATIM_OPCODE_{instr.name}"] = instr.opcode
        for field, at in instr.offsets():
            expected[f"SERIATIM_{instr.name}_{field.name.upper()}_LSB"] = at
            expected[f"SERIATIM_{instr.name}_{field.name.upper()}_BITS"] = field.bits
    assert evaluated(folder, tmp_path, list(expected)) == list(expected.values())


def test_pages_hold_this_machine(folder):
    page = (folder / "integration.md").read_text()
    assert f"{CONFIG.hash:#010x}" in page and "{{" not in page and "32 data bits" in page
    assert (folder / "registers.md").read_text() == csr.manual() and (folder / "isa.md").read_text() == isa.manual()


def test_emit_writes_a_folder_or_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(emit, "verilog", lambda config, name: f"module {name} of {config}\n")
    assert cli.main(["emit", "--out", str(tmp_path / "soc"), "--name", "npu"]) == 0
    assert {path.name for path in (tmp_path / "soc").iterdir()} == {
        "npu.sv", "npu.vlt", "seriatim.h", "registers.md", "isa.md", "integration.md"}
    assert cli.main(["emit", "--out", str(tmp_path / "alone.v")]) == 0
    assert (tmp_path / "alone.v").read_text() == "module seriatim_top of 7x8x64\n"
    capsys.readouterr()
    assert cli.main(["emit", "--m", "3"]) == 0 and capsys.readouterr().out == "module seriatim_top of 3x8x64\n"
    assert cli.main(["emit", "--board", "icebreaker"]) == 0 and capsys.readouterr().out == "module seriatim_top of 1x1x32\n"
    assert cli.main(["emit", "--board", "icebreaker", "--m", "3"]) == 1 and "has its own machine" in capsys.readouterr().err


def test_a_name_that_is_no_identifier_is_refused(capsys):
    assert cli.main(["emit", "--name", "9lives"]) == 1
    assert "'9lives': a Verilog identifier" in capsys.readouterr().err
