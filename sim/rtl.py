"""The Verilated accelerator behind the session's interface."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import seriatim
from seriatim.config import Config
from seriatim.csr import ADDR
from seriatim.errors import MachineError
from seriatim.sim import build
from seriatim.sim.session import MemorySession
from seriatim.sim.verilated import MemoryModel, Reason, VerilatedTop

SOURCES = (".py", ".c")
"""Suffixes of the files that a machine is made from."""
MAX_CYCLES = 20_000_000_000
"""Far beyond any program; a machine that waits is stopped by its watchdog long before."""


def verilog(config: Config, observe: bool = False) -> str:
    """The simulation build's Verilog of the accelerator, cached by the sources it comes from (elaboration takes seconds).
    `observe`: with the ports that a trace is made of."""
    def top():
        from seriatim.hw.top import simulated

        return simulated(config, observe)

    what = f"the {config} machine{' with trace ports' if observe else ''}"
    return elaborated(top, [asdict(config), observe], ["hw"], what)


def elaborated(top: Callable, parameters: list, parts: list[str], what: str) -> str:
    """The simulation build's Verilog of what `top()` returns, as module `seriatim_top`. It comes from `parameters` (JSON) and
    from the sources of the contract and of `parts`, by which it is cached."""
    contract = (path for path in Path(seriatim.__file__).parent.glob("*.py") if path.name != "cli.py")
    sources = sorted([*(path for part in parts for path in Path(__file__).parent.parent.joinpath(part).glob("*.*")
                        if path.suffix in SOURCES), *contract])
    key = hashlib.sha256(json.dumps(parameters).encode() + version("amaranth").encode())
    for path in sources:
        key.update(path.read_bytes())

    def make(folder: Path):
        from seriatim.hw.convert import SIM, to_verilog

        (folder / "top.v").write_text(to_verilog(top(), "seriatim_top", platform=SIM))

    return (build.cached("verilog", key.hexdigest()[:24], make, f"Verilog of {what}") / "top.v").read_text()


def library(config: Config, observe: bool = False) -> Path:
    """The Verilated library of the accelerator, built unless the cache has it."""
    return build.build(verilog(config, observe), axi_bits=config.axi_bits)


class RtlSession(MemorySession):
    """The RTL in Verilator, on a memory that behaves as `model` says. `verilated` is the simulation itself; a run that takes
    more than `max_cycles` raises MachineError. With `observe` it is the machine with trace ports, and remembers what they do."""

    level = "rtl"

    def __init__(self, config: Config, memory_bytes: int, base: int = 0, model: MemoryModel | None = None, progress=None,
                 library_path: Path | None = None, max_cycles: int = MAX_CYCLES, observe: bool = False):
        super().__init__(config, memory_bytes, base)
        self.progress, self.max_cycles = progress, max_cycles
        self.verilated = VerilatedTop(library_path or library(config, observe), self.memory, base=base, model=model)
        if observe:
            from seriatim.hw.observe import port_names

            for name in port_names(config):
                self.verilated.watch(name)

    def observed(self):
        return self.verilated.changes()

    def csr_read(self, name):
        return self.verilated.csr_read(ADDR[name])

    def csr_write(self, name, value):
        self.verilated.csr_write(ADDR[name], value)

    def wait(self):
        if self.verilated.run_until_irq(self.max_cycles, self.progress).reason is not Reason.IRQ:
            raise MachineError(f"no interrupt within {self.max_cycles:,} cycles: the machine hangs, and its watchdog is off or "
                               "broken")

    def close(self):
        self.verilated.close()
