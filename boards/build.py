"""`make bitstream`: from the board's entry to a bitstream and a report of area, clock and what it took."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from seriatim.errors import CompileError, ToolError

from . import zynq
from .catalogue import BOARDS, Board, find
from .targets import System, Tools, platform, tools

NAME = "seriatim"
ARRAY = "array"
"""The module whose LUTs are counted apart: counts, sums and drain registers."""
APART = ("act", "act_flags", "res", "wgt", "prm", "out", "execute.drain", "fetch", "fetch.load", "fetch.exec", "fetch.store")
"""Modules of the accelerator in whose memories no read of a word that counts meets its write: semaphores, and the queues' and the
drain's own counters, keep them apart. Block RAM then needs no LUTs that give such a read the old word, as Amaranth promises."""
ROOT = Path("build", "boards")


def environment(tools: Tools) -> dict[str, str]:
    """The environment in which Amaranth's build script finds the tools. Raises ToolError for one that is not installed."""
    found = dict(os.environ)
    for variable, command in tools.commands.items():
        path = Path(sys.executable).with_name(command)
        if command.startswith("yowasp-") and not path.exists():
            raise ToolError(f"{command} is not installed beside {sys.executable}: run 'make env', or install the extra 'boards' "
                            "of pyproject.toml")
        found.setdefault(variable, str(path) if path.exists() else command)
    return found


def plan(board: Board, folder: Path) -> None:
    """Writes what the tools read: RTLIL, constraints, scripts. The array keeps its module until its cells have been counted."""
    if not board.platform:
        zynq.plan(board, NAME, folder)
        return
    keep = f"setattr -mod -set keep_hierarchy 1 *.{ARRAY}"
    apart = " ".join(f"*.accelerator.{name}/t:$memrd_v2" for name in APART)
    before = f"{keep}; setparam -set COLLISION_X_MASK 1'1 {apart}"
    count = f"tee -q -o cells.json stat -json; setattr -mod -unset keep_hierarchy *.{ARRAY}; flatten; opt_clean"
    options = dict(tools(board).options)
    if tools(board).built:
        after = options.get("script_after_synth", "").format(name=NAME)
        options |= {"script_after_read": before, "script_after_synth": count + after}
    platform(board).prepare(System(board), NAME, **options).extract(folder)


def run(board: Board, folder: Path, synth_only: bool) -> None:
    """Runs the build script, or synthesis alone. Raises ToolError with what the tool said, and where it all is."""
    env = environment(tools(board))
    command = [env["YOSYS"], "-q", "-l", f"{NAME}.rpt", f"{NAME}.ys"] if synth_only else ["sh", f"build_{NAME}.sh"]
    log = folder / f"{NAME}.tim"
    log.unlink(missing_ok=True)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    (folder / "build.log").write_text(result.stdout + result.stderr)
    if result.returncode:
        placed = log.read_text() if log.exists() else ""
        too_much = overuse(placed)
        if too_much:
            raise ToolError(f"board {board.name}: the {board.config} machine does not fit: {'; '.join(too_much)}. "
                            + remedy(board))
        raise ToolError(f"board {board.name}: a tool failed: {(placed or result.stderr).strip()[-800:]}\n(logs in {folder})")


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
    sizes = ("act_words", "wgt_words") if board.config.compact else ("m", "n", "k", "max_planes", "act_words", "wgt_words")
    smaller = [f"{name}={getattr(board.config, name)}" for name in sizes]
    compact = "" if board.config.compact else " take the compact machine (compact=1),"
    larger = [name for name in BOARDS if name != board.name]
    return f"Make one of {', '.join(smaller)} of its Config smaller,{compact} or take a larger board ({', '.join(larger)})"


def array_luts(cells: dict, tools: Tools) -> int:
    """LUTs of the array after synthesis."""
    modules = [of for name, of in cells["modules"].items() if name.endswith(f".{ARRAY}")]
    return sum(count * tools.lut_cells.get(kind, 0) for of in modules for kind, count in of["num_cells_by_type"].items())


def report(board: Board, folder: Path, seconds: float) -> dict:
    """The report of a bitstream that has been made."""
    timing = json.loads((folder / "timing.json").read_text())
    cells = json.loads((folder / "cells.json").read_text())
    fmax = min(clock["achieved"] for clock in timing["fmax"].values()) * 1e6
    peak = board.config.peak
    luts = array_luts(cells, tools(board))
    used = {name: {"used": of["used"], "available": of["available"]} for name, of in timing["utilization"].items() if of["used"]}
    lut4 = used[tools(board).luts]
    return {
        "board": board.name, "config": str(board.config), "config_hash": f"{board.config.hash:#010x}",
        "clock_hz": board.clock_hz, "fmax_hz": round(fmax),
        "binary_macs_per_cycle": peak, "peak_tops": 2 * peak * board.clock_hz / 1e12,
        "lut4": lut4["used"], "device_share": round(lut4["used"] / lut4["available"], 4),
        "array_lut4": luts, "lut4_per_binary_mac": round(luts / peak, 3),
        "utilisation": used, "seconds": round(seconds, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def foretold(board: Board) -> dict:
    """ResNet-18 (W1A8, an image of 224x224) on the board, as the cycle model foretells it with the board's memory: `cycles`
    and `frames_per_second` of the machine, the host's transfers left out; or what keeps it from running there, `refused`."""
    from seriatim.algo.trained import load_or_train
    from seriatim.compiler.codegen import generate
    from seriatim.compiler.driver import compile_network

    network, _ = load_or_train("resnet18", "slb", 1, 8, image_size=224)
    example = np.zeros((1, network.channels, network.image_size, network.image_size), np.int32)
    programs = []

    def compiled(*args):
        programs.append(generate(*args, memory=board.timing))
        return programs[-1]

    try:
        compile_network(network, example, board.config, compiled)
    except CompileError as e:
        return {"refused": str(e)}
    needed = max(program.memory_bytes for program in programs)
    if board.memory and needed > board.memory.size:
        return {"refused": f"it needs {needed:,} bytes of memory, the board has {board.memory.size:,}"}
    cycles = sum(program.cycles for program in programs)
    return {"cycles": cycles, "frames_per_second": round(board.clock_hz / cycles, 3)}


def bitstream(board: Board, root: Path = ROOT, synth_only: bool = False) -> dict | None:
    """Makes the bitstream of `board` in a folder of its name under `root`, with `report.json` beside it; returns the report. With
    `synth_only`, or where the tools are a vendor's, there is neither.

    Raises ToolError where a tool is missing or fails, the machine does not fit, or it misses its clock (the report is there
    then).
    """
    folder = root / board.name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    plan(board, folder)
    if not tools(board).built:
        return None
    run(board, folder, synth_only)
    if synth_only:
        return None
    made = report(board, folder, time.monotonic() - began) | {"resnet18_predicted": foretold(board)}
    (folder / "report.json").write_text(json.dumps(made, indent=2) + "\n")
    if made["fmax_hz"] < made["clock_hz"]:
        raise ToolError(f"board {board.name}: placed and routed it reaches {made['fmax_hz'] / 1e6:.1f} MHz, not the "
                        f"{made['clock_hz'] / 1e6:.1f} MHz of its clock: lower `clock_hz` in its file; "
                        f"the critical path is in {folder / f'{NAME}.tim'}")
    return made


def main_bitstream(args: argparse.Namespace) -> None:
    """`seriatim bitstream`."""
    board, root = find(args.board), Path(args.out) if args.out else ROOT
    made = bitstream(board, root, args.synth_only)
    folder = root / board.name
    if not tools(board).built:
        print(f"{folder}: build plan for the vendor's tool, which is not run here and was not tried: sh build_{NAME}.sh")
    elif made is None:
        print(f"{folder / f'{NAME}.json'}: netlist")
    else:
        file = folder / f"{NAME}.{tools(board).bitstream}"
        print(f"{file}: {made['config']}, {made['binary_macs_per_cycle']:,} binary MACs a cycle, {made['clock_hz'] / 1e6:g} MHz "
              f"(reaches {made['fmax_hz'] / 1e6:.1f}), {made['lut4']:,} LUTs ({made['device_share']:.0%}), "
              f"config {made['config_hash']}, {made['seconds']:.0f} s")


def main_board(args: argparse.Namespace) -> None:
    """`seriatim board list`, `seriatim board simulate`."""
    if args.action == "simulate":
        from . import soc

        return soc.main(args)
    for board in BOARDS.values():
        made = "open tools" if tools(board).built else "build plan only"
        print(f"{board.name:<16} {str(board.config):<9} {board.clock_hz / 1e6:>5g} MHz  {made:<15}  {board.doc}")
