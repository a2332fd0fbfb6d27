"""A whole board in Verilator behind a pseudo-terminal: the real driver talks to it, over the real protocol."""

import argparse
import ctypes
import dataclasses
import os
import select
import signal
import threading
import tty
from pathlib import Path

from seriatim.config import Config
from seriatim.errors import ConfigError, MachineError, ToolError
from seriatim.sim import build, rtl
from seriatim.sim.executor import OpenSession

from . import catalogue
from .link import Link
from .memory import OnChip
from .sdram import Sdram
from .serialport import SerialPort
from .session import BoardSession

DIVISOR = 4
"""Clock cycles of a bit: the least, since simulated cycles take time."""
BAUD = 3_000_000
"""At which a pseudo-terminal is opened: it takes any."""
TIMEOUT_S = 5.0
CHUNK = 2_000
"""Cycles between two looks at the pseudo-terminal."""
IDLE_CYCLES = 1_000_000
"""After so many cycles without a byte the simulated board's clock stops until one comes, to keep nobody's computer busy."""
ROOM = 1 << 16
ROW_BITS = 6
"""Of each bank of a simulated SDRAM: a quarter of a MiB of an ULX3S's 32."""

_ABI = {
    "create": (ctypes.c_void_p, [ctypes.c_uint32]),
    "destroy": (None, [ctypes.c_void_p]),
    "send": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]),
    "take": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]),
    "run": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64]),
    "cycle": (ctypes.c_uint64, [ctypes.c_void_p]),
    "broken": (ctypes.c_uint32, [ctypes.c_void_p]),
}


def library(board: catalogue.Board) -> Path:
    """The Verilated library of a board, built unless the cache has it."""
    memory = memory_of(board)

    def top():
        from .shell import Shell
        from .simtop import Simulated

        return Simulated(Shell(config, clock_hz=board.clock_hz, baud=board.clock_hz // DIVISOR, memory=memory))

    config = board.config
    parameters = [dataclasses.asdict(config), type(memory).__name__, dataclasses.asdict(memory), board.clock_hz, DIVISOR]
    verilog = rtl.elaborated(top, parameters, ["hw", "boards"], f"a board with the {config} machine")
    return build.build(verilog, axi_bits=config.axi_bits, harness=Path(__file__).with_name("soc.cpp"))


def memory_of(board: catalogue.Board) -> OnChip | Sdram:
    """The memory of the simulated board: its own, but of a large chip only some rows, since each word is one of the model's.
    Raises ConfigError where the board has no shell."""
    if board.memory is None:
        raise ConfigError(f"board {board.name}: its memory and host are not on the FPGA, and not simulated; --session rtl runs "
                          "its machine")
    if isinstance(board.memory, Sdram):
        return dataclasses.replace(board.memory, row_bits=min(ROW_BITS, board.memory.row_bits))
    return board.memory


class Board:
    """The simulated board: bytes in, bytes out, cycles."""

    def __init__(self, library: Path):
        self._handle = None
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError as e:
            raise ToolError(f"could not load the simulator {library}: {e}; delete its folder to have it built again") from e
        for name, (result, arguments) in _ABI.items():
            function = getattr(loaded, f"board_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)
        self._handle = self._create(DIVISOR)

    def send(self, data: bytes) -> None:
        """Bytes that the board will receive, one after the other."""
        self._send(self._handle, data, len(data))

    def run(self, cycles: int) -> int:
        """Advances the clock; returns the cycles since the lines last moved. Raises MachineError where a rule of the memory chip
        is broken."""
        quiet = self._run(self._handle, cycles)
        if broken := self._broken(self._handle):
            from .sdram_model import RULE_DOC, Rule

            raise MachineError(f"the SDRAM's rule {Rule(broken).name} is broken ({RULE_DOC[Rule(broken)]}); this is a fault of "
                               "the hardware design")
        return quiet

    def take(self) -> bytes:
        """The bytes that it has sent."""
        data = ctypes.create_string_buffer(ROOM)
        count = self._take(self._handle, data, ROOM)
        return data.raw[:count]

    @property
    def cycle(self) -> int:
        return self._cycle(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            self._destroy(self._handle)
            self._handle = None


class Plugged:
    """A simulated board that is plugged in: a thread runs it behind a pseudo-terminal whose name is `port`.

    `wire(data, to_board)` may change what goes over the line, for tests; by default nothing happens to it.
    """

    def __init__(self, board: catalogue.Board, wire=lambda data, to_board: data):
        self._board, self._wire = Board(library(board)), wire
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._stop = os.pipe()
        self._descriptors = self._master, self._slave, *self._stop
        self._closing = threading.Lock()
        self._failure: MachineError | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._run()
        except MachineError as e:
            self._failure = e
            with open(os.devnull) as nobody:
                os.dup2(nobody.fileno(), self._master)  # the host sees it gone

    def _run(self) -> None:
        quiet = IDLE_CYCLES
        while True:
            readable, _, _ = select.select([self._master, self._stop[0]], [], [], None if quiet >= IDLE_CYCLES else 0)
            if self._stop[0] in readable:
                return
            if readable:
                self._board.send(self._wire(os.read(self._master, ROOM), True))
            quiet = self._board.run(CHUNK)
            data = self._wire(self._board.take(), False)
            while data:
                data = data[os.write(self._master, data):]

    @property
    def cycle(self) -> int:
        """Cycles that the board has run."""
        return self._board.cycle

    def close(self) -> None:
        """Pulls the plug. Raises MachineError where the simulation had ended by itself."""
        with self._closing:
            descriptors, self._descriptors = self._descriptors, ()
            if descriptors:
                os.write(self._stop[1], b"x")
                self._thread.join()
                for descriptor in descriptors:
                    os.close(descriptor)
                self._board.close()
                if self._failure:
                    raise self._failure

    def link(self) -> Link:
        """A link to it. The computer that simulates may be busy: that a board is late means little."""
        return Link(SerialPort(self.port, BAUD), timeout_s=TIMEOUT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def opener(board: catalogue.Board) -> OpenSession:
    """Opens sessions of the simulated board. Raises ConfigError where it cannot be simulated."""
    memory_of(board)
    return lambda config, memory_bytes: SimulatedSession(config, memory_bytes, board)


def main(args: argparse.Namespace) -> None:
    """`seriatim board simulate`: runs a simulated board until Ctrl-C, for drivers in other processes."""
    board = catalogue.find(args.board)
    with Plugged(board) as plugged:
        print(f"{board.name}: {plugged.port} (any rate), Ctrl-C pulls the plug", flush=True)
        signal.pause()


class SimulatedSession(BoardSession):
    """A session of a simulated board of its own, fresh from its configuration."""

    def __init__(self, config: Config, memory_bytes: int, board: catalogue.Board):
        self.plugged = Plugged(board)
        try:
            super().__init__(config, memory_bytes, self.plugged.link())
        except BaseException:
            self.plugged.close()
            raise

    def close(self):
        super().close()
        self.plugged.close()
