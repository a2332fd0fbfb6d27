"""`make bitstream`: from the board's entry to a bitstream and a report of area, clock and what it took."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from seriatim.errors import ToolError

from .catalogue import Board
from .targets import TARGETS, Target, Tools

NAME = "seriatim"
ARRAY = "array"
"""The module whose LUTs are counted apart: counts, sums and drain registers."""
ROOT = Path("build", "boards")


def environment(tools: Tools) -> dict[str, str]:
    """The environment in which Amaranth's build script finds the tools. Raises ToolError for one that is not installed."""
    found = dict(os.environ)
    for variable, command in tools.commands.items():
        path = Path(sys.executable).with_name(command)
        if command.startswith("yowasp-") and not path.exists():
            raise ToolError(f"{command} is not installed beside {sys.executable}: run 'make env', or 'pip install seriatim'")
        found.setdefault(variable, str(path) if path.exists() else command)
    return found


def plan(board: Board, target: Target, folder: Path) -> None:
    """Writes what the tools read: RTLIL, constraints, scripts. The array keeps its module until its cells have been counted."""
    keep = f"setattr -mod -set keep_hierarchy 1 *.{ARRAY}"
    count = f"tee -q -o cells.json stat -json; setattr -mod -unset keep_hierarchy *.{ARRAY}; flatten; opt_clean"
    options = dict(target.tools.options, script_after_read=keep, script_after_synth=count) | target.options
    target.platform().prepare(target.design(board), NAME, **options).extract(folder)


def run(board: Board, target: Target, folder: Path) -> None:
    """Runs the build script. Raises ToolError with what the tool said, and where it all is."""
    env = environment(target.tools)
    result = subprocess.run(["sh", f"build_{NAME}.sh"], cwd=folder, env=env, capture_output=True, text=True)
    (folder / "build.log").write_text(result.stdout + result.stderr)
    if result.returncode:
        log = folder / f"{NAME}.tim"
        placed = log.read_text() if log.exists() else ""
        too_large = overuse(placed)
        if too_large:
            raise ToolError(f"board {board.name}: the {board.config} machine does not fit: {'; '.join(too_large)}. " + remedy(board))
        raise ToolError(f"board {board.name}: a tool failed: {(result.stderr or placed).strip()[-800:]}\nlogs: {folder}")


_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+(\d+)%", re.M)


def utilisation(log: str) -> dict[str, tuple[int, int]]:
    """What nextpnr counted, by resource: used and there."""
    return {name: (int(used), int(there)) for name, used, there, _ in _USED.findall(log)}


def overuse(log: str) -> list[str]:
    """The resources of which there are too few, each with by how much."""
    return [f"it takes {used:,} {name} of {there:,} ({used - there:,} too many, {used / there:.1f} times what there is)"
            for name, (used, there) in utilisation(log).items() if used > there]


def remedy(board: Board) -> str:
    """What would fit."""
    smaller = [f"{name}={getattr(board.config, name)}" for name in ("m", "n", "k", "max_planes", "act_words", "wgt_words")]
    larger = [name for name in TARGETS if name != board.name]
    return f"Make one of {', '.join(smaller)} of its Config smaller, or take a larger board ({', '.join(larger)})"


def array_luts(cells: dict, tools: Tools) -> int:
    """LUTs of the array after synthesis."""
    modules = [of for name, of in cells["modules"].items() if name.endswith(f".{ARRAY}")]
    return sum(count * tools.lut_cells.get(kind, 0) for of in modules for kind, count in of["num_cells_by_type"].items())


def report(board: Board, target: Target, folder: Path, seconds: float) -> dict:
    """The report of a bitstream that has been made."""
    timing = json.loads((folder / "timing.json").read_text())
    cells = json.loads((folder / "cells.json").read_text())
    fmax = min(clock["achieved"] for clock in timing["fmax"].values()) * 1e6
    peak = board.config.peak
    luts = array_luts(cells, target.tools)
    used = {name: {"used": of["used"], "available": of["available"]} for name, of in timing["utilization"].items() if of["used"]}
    lut4 = used[target.tools.luts]
    return {
        "board": board.name, "config": str(board.config), "config_hash": f"{board.config.hash:#010x}",
        "clock_hz": board.clock_hz, "fmax_hz": round(fmax),
        "binary_macs_per_cycle": peak, "peak_tops": 2 * peak * board.clock_hz / 1e12,
        "lut4": lut4["used"], "device_share": round(lut4["used"] / lut4["available"], 4),
        "array_lut4": luts, "lut4_per_binary_mac": round(luts / peak, 3),
        "utilisation": used, "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def bitstream(board: Board, root: Path = ROOT) -> dict:
    """Makes the bitstream of `board` in a folder of its name under `root`, with `report.json` beside it; returns the report.

    Raises ToolError where a tool is missing or fails, the machine does not fit, or it misses its clock (the report is there then).
    """
    target, folder = TARGETS[board.name], root / board.name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    plan(board, target, folder)
    run(board, target, folder)
    made = report(board, target, folder, time.monotonic() - began)
    (folder / "report.json").write_text(json.dumps(made, indent=2) + "\n")
    if made["fmax_hz"] < made["clock_hz"]:
        raise ToolError(f"board {board.name}: placed and routed it reaches {made['fmax_hz'] / 1e6:.1f} MHz of the "
                        f"{made['clock_hz'] / 1e6:.1f} MHz of its clock; see {folder / f'{NAME}.tim'}")
    return made
