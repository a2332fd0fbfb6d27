"""A board behind the session's interface."""

import time

import numpy as np

from seriatim.config import Config
from seriatim.csr import Status
from seriatim.errors import ArtefactError, MachineError
from seriatim.sim.executor import OpenSession
from seriatim.sim.session import Session

from .link import Link
from .protocol import WORD_BYTES
from .recording import Player, Recorder, Tape

POLL_S = 0.001, 0.1
"""Seconds between two looks at STATUS: at first, at most. They double."""
PATIENCE_S = 600.0
"""Far above any program: the hardware's watchdog stops a machine that hangs."""


PLAY = "replay:"
"""What a device's name begins with where a recording stands for it."""


def opener(device: str, baud: int, record: str | None = None) -> OpenSession:
    """Opens sessions of the board at serial port `device`, or of a recording (`replay:FILE`); `record` keeps what goes over the
    link, of all of them together, in a file."""
    if device.startswith(PLAY):
        tape = Tape.load(device.removeprefix(PLAY))
        return lambda config, memory_bytes: BoardSession(config, memory_bytes, Link(Player(tape)))
    from .serialport import SerialPort

    tape = Tape(device)

    def open_session(config: Config, memory_bytes: int) -> BoardSession:
        port = SerialPort(device, baud)
        return BoardSession(config, memory_bytes, Link(Recorder(port, tape, record) if record else port))

    return open_session


class BoardSession(Session):
    """The accelerator at the far end of `link`, which it owns. It is reset first; memory starts at address 0.

    Raises ArtefactError where it was built from another Config or has less memory than `memory_bytes`.
    """

    level = "board"

    def __init__(self, config: Config, memory_bytes: int, link: Link, patience_s: float = PATIENCE_S):
        super().__init__(config)
        self.link, self.patience_s = link, patience_s
        try:
            self._reset()
            self.check()
            if memory_bytes > link.memory_bytes:
                raise ArtefactError(f"the program and its tensors take {memory_bytes:,} bytes, the board's memory has "
                                    f"{link.memory_bytes:,}: run fewer images at a time, or compile for a board with more")
        except BaseException:
            self.close()
            raise

    def write(self, address, data):
        data = bytes(data) if isinstance(data, bytes | bytearray) else np.ascontiguousarray(data, np.uint8).tobytes()
        start, end = self._words(address, len(data))
        before = self.link.read(start, WORD_BYTES)[:address - start] if address > start else b""
        after = self.link.read(end - WORD_BYTES, WORD_BYTES)[address + len(data) - end:] if address + len(data) < end else b""
        self.link.write(start, before + data + after)

    def read(self, address, size):
        start, end = self._words(address, size)
        data = self.link.read(start, end - start)
        return np.frombuffer(data, np.uint8)[address - start:address - start + size].copy()

    @staticmethod
    def _words(address: int, size: int) -> tuple[int, int]:
        """The whole words that hold some bytes, as [first byte, beyond last)."""
        return address // WORD_BYTES * WORD_BYTES, -(-(address + size) // WORD_BYTES) * WORD_BYTES

    def csr_read(self, name):
        return self.link.csr_read(name)[0]

    def csr_read64(self, name):
        low, high = self.link.csr_read(f"{name}_LO", 2)
        return low | high << 32

    def csr_write(self, name, value):
        self.link.csr_write(name, value)

    def _reset(self):
        self.link.csr_write("RESET", 1)
        self.link.csr_write("RESET", 0)

    def close(self):
        self.link.close()

    def wait(self):
        start, (pause, longest) = time.monotonic(), POLL_S
        while not self.csr_read("STATUS") & Status.INTERRUPT:
            if time.monotonic() - start > self.patience_s:
                self._reset()
                raise MachineError(f"the board is busy for {self.patience_s:g} s: it hangs, and its watchdog is off or broken; "
                                   "it was reset")
            time.sleep(pause)
            pause = min(2 * pause, longest)
