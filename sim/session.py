"""One interface to an accelerator, whatever stands behind it: memory, registers, run.

`Session` holds the driver: it checks that the machine is the one the program was made for, starts it, waits, and turns an error
status into a `MachineError`. `IsaSession` (the ISA simulator) and `RtlSession` (the Verilated accelerator) give it the five
primitives, so that a driver cannot tell them apart.
"""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from seriatim import csr, isa
from seriatim.config import Config
from seriatim.csr import ADDR, CAUSE_DOC, CYCLE_COUNTERS, Cause, Counter, Ctrl, Status
from seriatim.errors import ArtefactError, MachineError, ProgramError
from seriatim.sim.isasim import Machine

WATCHDOG_CYCLES = 100_000
"""Default of the watchdog: far above any wait of a working machine."""


@dataclass(frozen=True)
class Program:
    """A program with its place in memory: byte addresses, `[first, beyond last)` ranges."""

    code: bytes
    address: int
    read_range: tuple[int, int]
    write_range: tuple[int, int]
    layers: int = 0


@dataclass(frozen=True)
class Counts:
    """What the counters showed after a run: in total, and by layer (where the program has MARKs)."""

    total: dict[Counter, int]
    layers: list[dict[Counter, int]] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def cycles(self) -> int:
        return cycles(self.total)


def cycles(counters: dict[Counter, int]) -> int:
    """Cycles, as the sum of those that were busy and those that stalled."""
    return sum(counters[c] for c in CYCLE_COUNTERS)


class Session(ABC):
    """An accelerator with its memory. `config` is what the caller believes the machine to be; `run` checks it."""

    level: str
    """Name of the level, as reports give it."""

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def write(self, address: int, data) -> None:
        """Writes bytes to memory."""

    @abstractmethod
    def read(self, address: int, size: int) -> np.ndarray:
        """Reads `size` bytes of memory (uint8)."""

    @abstractmethod
    def csr_read(self, name: str) -> int:
        """Value of a register."""

    @abstractmethod
    def csr_write(self, name: str, value: int) -> None:
        """Writes a register."""

    def csr_read64(self, name: str) -> int:
        """Value of the two registers `name`_LO and `name`_HI."""
        return self.csr_read(f"{name}_LO") | self.csr_read(f"{name}_HI") << 32

    @abstractmethod
    def wait(self) -> None:
        """Returns when the machine raises its interrupt. Raises MachineError where it never will."""

    def observed(self) -> dict[str, np.ndarray]:
        """What the trace ports did since this was last asked: rows of (cycle, new value) by port. Empty where there are none."""
        return {}

    def close(self) -> None:  # noqa: B027 (most sessions hold nothing)
        """Frees what the session holds."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def check(self):
        """Raises ArtefactError unless the machine has this package's ISA and this session's Config."""
        found = self.csr_read("ID")
        if found != csr.ID_VALUE:
            raise ArtefactError(f"register ID reads {found:#x}, not {csr.ID_VALUE:#x}: no Seriatim machine is at this address")
        found = self.csr_read("ISA_VERSION")
        if found != isa.VERSION:
            raise ArtefactError(f"the machine has ISA version {found}, this package {isa.VERSION}: use matching releases")
        found = self.csr_read("CONFIG_HASH")
        if found != self.config.hash:
            raise ArtefactError(f"the machine was built from config {found:#010x}, the program for {self.config.hash:#010x} "
                                f"({self.config}): compile for this machine, or build that one")

    def run(self, program: Program, watchdog: int = WATCHDOG_CYCLES) -> Counts:
        """Runs a program (whose data is already in memory) to its end and reads the counters. Raises MachineError with the cause,
        and with the instruction that failed, where the machine stops with an error."""
        self.check()
        self.write(program.address, program.code)
        for name, value in (
            ("PROG_BASE", program.address), ("PROG_BYTES", len(program.code)),
            ("READ_BASE", program.read_range[0]), ("READ_LIMIT", program.read_range[1]),
            ("WRITE_BASE", program.write_range[0]), ("WRITE_LIMIT", program.write_range[1]),
            ("WATCHDOG", watchdog), ("IRQ_ENABLE", 1), ("CTRL", Ctrl.START),
        ):
            self.csr_write(name, value)
        start = time.perf_counter()
        self.wait()
        wall = time.perf_counter() - start
        status = self.csr_read("STATUS")
        self.csr_write("CTRL", Ctrl.ACKNOWLEDGE)
        if status & Status.ERROR:
            self._failed(program)
        total = {c: self.csr_read64(c.name) for c in Counter}
        return Counts(total, self._by_layer(program.layers, total), wall)

    def _failed(self, program: Program):
        cause, pc = Cause(self.csr_read("CAUSE")), self.csr_read("ERROR_PC")
        word = program.code[pc:pc + isa.INSTR_BYTES]
        try:
            text = next(isa.disassemble(word), "beyond its end")
        except ProgramError:
            text = word.hex()
        raise MachineError(f"the machine stopped with {cause.name} ({CAUSE_DOC[cause]}) at byte {pc:#x} of the program: {text}",
                           cause=cause, pc=pc)

    def _by_layer(self, layers: int, total) -> list[dict[Counter, int]]:
        """Counts of each layer: the profile memory holds the counters as they stood when the layer began; the cycles before the
        first MARK are the first layer's and those after the last layer's work are the last's."""
        rows = [dict.fromkeys(Counter, 0)]
        for layer in range(1, min(layers, self.config.marks)):
            row = {}
            for c in Counter:
                self.csr_write("PROFILE_ADDR", layer * csr.PROFILE_ROW + c)
                row[c] = self.csr_read64("PROFILE")
            rows.append(row)
        rows.append(total)
        if not layers:
            return []
        return [{c: after[c] - before[c] for c in Counter} for before, after in zip(rows, rows[1:])]


class MemorySession(Session):
    """A session whose memory is a NumPy array that starts at byte address `base`."""

    def __init__(self, config: Config, memory_bytes: int, base: int = 0):
        super().__init__(config)
        self.memory, self.base = np.zeros(memory_bytes, np.uint8), base

    def _span(self, address: int, size: int) -> np.ndarray:
        at = address - self.base
        if at < 0 or at + size > len(self.memory):
            raise ArtefactError(f"bytes {address:#x}..{address + size:#x}: this session's memory is "
                                f"{self.base:#x}..{self.base + len(self.memory):#x}; open it with more")
        return self.memory[at:at + size]

    def write(self, address, data):
        data = np.frombuffer(data, np.uint8) if isinstance(data, bytes | bytearray) else data
        self._span(address, len(data))[:] = data

    def read(self, address, size):
        return self._span(address, size).copy()


class IsaSession(MemorySession):
    """The ISA simulator behind the session's interface. Its cycle counters stay 0: it knows no time. Its profile memory holds the
    other counters of every layer; loads count for the layer that its order of the queues has come to."""

    level = "isa"

    def __init__(self, config: Config, memory_bytes: int, base: int = 0, order: str | int = "load", trace=None):
        super().__init__(config, memory_bytes, base)
        self.order, self.trace = order, trace
        self._csrs = dict.fromkeys(ADDR, 0) | {"ID": csr.ID_VALUE, "ISA_VERSION": isa.VERSION, "CONFIG_HASH": config.hash,
                                               "GEOMETRY": config.geometry}
        self.machine: Machine | None = None

    def csr_read(self, name):
        if name in ("PROFILE_LO", "PROFILE_HI"):
            layer, counter = divmod(self._csrs["PROFILE_ADDR"], csr.PROFILE_ROW)
            value = self.machine.marks.get(layer, {}).get(counter, 0) if self.machine else 0
            return value >> 32 if name == "PROFILE_HI" else value & 0xFFFFFFFF
        return self._csrs[name]

    def csr_write(self, name, value):
        if name != "CTRL":
            self._csrs[name] = value
        elif value & Ctrl.START:
            self._start()

    def _start(self):
        r = self._csrs
        r.update(STATUS=0, CAUSE=0, ERROR_PC=0)
        code = bytes(self.read(r["PROG_BASE"], r["PROG_BYTES"]))
        self.machine = Machine(self.config, self.memory, self.base, (r["READ_BASE"], r["READ_LIMIT"]),
                               (r["WRITE_BASE"], r["WRITE_LIMIT"]))
        try:
            self.machine.run(code, self.order, self.trace)
            r["STATUS"] = Status.DONE | Status.INTERRUPT
        except MachineError as error:
            r.update(STATUS=Status.ERROR | Status.INTERRUPT, CAUSE=int(error.cause), ERROR_PC=error.pc)
        for c, value in self.machine.counters.items():
            r[f"{c.name}_LO"], r[f"{c.name}_HI"] = value & 0xFFFFFFFF, value >> 32

    def wait(self):
        pass
