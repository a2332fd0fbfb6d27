"""What the shell answers, in plain Python: the gateware's reference, and a board for the driver's own tests."""

import random
from collections import deque

from seriatim import csr
from seriatim.boards import protocol
from seriatim.boards.protocol import HEADER, Command, Decoder, Status, encode


class ShellModel:
    """Does requests: `registers` by byte offset, `memory`; `written` lists each register write that was done."""

    def __init__(self, memory_bytes: int = 4096, buffer_bytes: int = 512, **shell):
        values = {"SHELL_ID": protocol.MAGIC, "PROTOCOL": protocol.VERSION, "CLOCK_HZ": 12_000_000, "MEMORY_BYTES": memory_bytes,
                  "BUFFER_BYTES": buffer_bytes, "LINK_ERRORS": 0, "RESET": 0} | shell
        self.registers = {protocol.ADDR[name]: value for name, value in values.items()}
        self.memory, self.written, self.before = bytearray(memory_bytes), [], 0

    def answer(self, body: bytes) -> bytes:
        """The response's body to a request's."""
        sequence, command, count, address = HEADER.unpack_from(body)
        status, read = Status.OK, b""
        if command not in list(Command):
            status = Status.UNKNOWN
        for i in range(count):
            at, word = address + 4 * i, body[HEADER.size + 4 * i:HEADER.size + 4 * i + 4]
            if status == Status.UNKNOWN:
                read += bytes(4)
            elif command == Command.READ_CSR:
                read += self.registers.get(at, 0).to_bytes(4, "little")
            elif command == Command.WRITE_CSR:
                if sequence != self.before:
                    self.written.append((at, int.from_bytes(word, "little")))
            elif at >= len(self.memory):
                status, read = Status.RANGE, read + bytes(4)
            elif command == Command.READ:
                read += self.memory[at:at + 4]
            elif command == Command.WRITE:
                self.memory[at:at + 4] = word
        self.before = sequence
        return body[:HEADER.size] + (b"" if command & 1 else read) + bytes([status])


class ModelPort:
    """A port with a `ShellModel` behind it; `line(data, to_board)` is what the line makes of what it carries."""

    name = "model"

    def __init__(self, shell: ShellModel, line=lambda data, to_board: data):
        self.shell, self.line = shell, line
        self._decoder, self._answers, self.closed = Decoder(), deque(), False

    def write(self, data: bytes) -> None:
        for body in self._decoder.feed(self.line(data, True)):
            self._answers.append(self.line(encode(self.shell.answer(body)), False))

    def read(self) -> bytes:
        return self._answers.popleft() if self._answers else b""

    def close(self) -> None:
        self.closed = True


class Noise:
    """A line that hits each byte with a chance of `rate`: flips a bit, loses it, doubles it, or puts one before it; `what` says
    which of these. It is quiet for the first `spared` bytes."""

    KINDS = ("flip", "drop", "twice", "insert")

    def __init__(self, seed: int, rate: float, what: tuple[str, ...] = KINDS, spared: int = 0):
        self._rng, self.rate, self.what, self.spared, self.hits = random.Random(seed), rate, what, spared, 0

    def __call__(self, data: bytes, to_board: bool) -> bytes:
        out = bytearray()
        for byte in data:
            self.spared -= 1
            if self.spared >= 0 or self._rng.random() >= self.rate:
                out.append(byte)
                continue
            self.hits += 1
            kind = self._rng.choice(self.what)
            if kind == "flip":
                out.append(byte ^ 1 << self._rng.randrange(8))
            elif kind == "twice":
                out += bytes([byte, byte])
            elif kind == "insert":
                out += bytes([self._rng.randrange(256), byte])
        return bytes(out)


def csr_values(**values: int) -> dict[int, int]:
    """Accelerator registers by byte offset."""
    return {csr.ADDR[name]: value for name, value in values.items()}
