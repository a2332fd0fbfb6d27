"""The build plan of a board whose processing system is the host: Vivado's block design around the machine's AXI ports."""

from pathlib import Path

from amaranth.hdl import Shape
from amaranth.lib.wiring import In, Out
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from seriatim.errors import ConfigError
from seriatim.hw import emit
from seriatim.hw.axi import read_signature, write_signature
from seriatim.hw.csr import LITE
from seriatim.sim import files

from .catalogue import Board


def ports(config) -> list[dict]:
    """The AXI signals of the machine."""
    master = {**read_signature(config).members, **write_signature(config).members}
    return [{"bus": bus, "signal": name, "bits": Shape.cast(member.shape).width,
             "direction": "output" if member.flow == flow else "input"}
            for bus, members, flow in (("s_axil", LITE.members, In), ("m_axi", master, Out)) for name, member in members.items()]


def plan(board: Board, name: str, folder: Path) -> None:
    """Writes the machine's Verilog, a wrapper with Vivado's interface names, the Tcl that makes all, the script that runs it.

    Raises:
        ConfigError: the board's folder has no templates of them.
    """
    wanted = f"{board.name}.v.j2", f"{board.name}.tcl.j2"
    if not all((board.folder / template).exists() for template in wanted):
        raise ConfigError(f"board {board.name}: it has neither a platform, nor {' and '.join(wanted)} in {board.folder}: "
                          "templates of the wrapper and of the block design around a processing system")
    templates = Environment(loader=FileSystemLoader(board.folder), undefined=StrictUndefined, keep_trailing_newline=True)
    known = {"config": board.config, "clock_hz": board.clock_hz, "name": name, "ports": ports(board.config)}
    files.write(folder / f"{name}_top.sv", emit.verilog(board.config, f"{name}_top"))
    files.write(folder / "wrapper.v", templates.get_template(f"{board.name}.v.j2").render(known))
    files.write(folder / f"{name}.tcl", templates.get_template(f"{board.name}.tcl.j2").render(known))
    files.write(folder / f"build_{name}.sh", f"#!/bin/sh\nset -e\nvivado -mode batch -source {name}.tcl\n")
