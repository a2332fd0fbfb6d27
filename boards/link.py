"""The host's end of the link: requests out, responses in, whatever the line does to them.

Several requests may be under way, as many as the shell's buffer holds; the shell does them in order, so that a response tells
that those to earlier requests are lost, or their requests were. Whatever is not answered is sent again (`protocol` says why that
is safe). A response counts only if its frame is whole, it begins with its request's own header and has the right length.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from seriatim import csr
from seriatim.errors import LinkError

from . import protocol
from .protocol import HEADER, WORD_BYTES, Command, Decoder, Request, Status

MOST_WORDS = 64
"""Words of a request: larger frames are lost more often, smaller ones cost more headers."""
MOST_PENDING = 64
"""Requests under way: fewer than half of the sequence numbers, so that an old response is none to a new request."""


REGISTER_ADDR = csr.ADDR | protocol.ADDR
"""Byte offset, for READ_CSR and WRITE_CSR, of each register of accelerator and shell by name."""


@dataclass
class Traffic:
    """What went over a link: bytes on the wire, requests, those sent again, frames received that were broken or nobody's."""

    sent_bytes: int = 0
    received_bytes: int = 0
    requests: int = 0
    resent: int = 0
    dropped: int = 0


class Link:
    """A link to a shell at the far end of `port`, which it owns: an object with `write(bytes)`, `read()` (whatever has come,
    waiting a little for a first byte) and `close()`; its `name` is for messages.

    Parameters
    ----------
    timeout_s : without any right response for so long, what is under way is sent again.
    attempts : times that a request is sent before LinkError.

    Raises LinkError where nobody answers, or somebody with another protocol.
    """

    def __init__(self, port, *, timeout_s: float = 0.5, attempts: int = 10):
        self.port, self.timeout_s, self.attempts = port, timeout_s, attempts
        self.traffic = Traffic()
        self._decoder = Decoder()
        self._sequence = random.randrange(256)
        self._heard = 0.0  # when the last right response came
        self.buffer_bytes = 32  # enough for a few small requests, until the shell has told
        try:
            self._identify()
        except BaseException:
            port.close()
            raise

    def _identify(self) -> None:
        # What an earlier process left under way is answered before this.
        self.request(Command.PING, 0, random.getrandbits(32))
        self.shell = {r.name: value for r, value in
                      zip(protocol.REGISTERS, self.csr_read("SHELL_ID", len(protocol.REGISTERS)))}
        if self.shell["SHELL_ID"] != protocol.MAGIC:
            raise LinkError(f"{self.port.name}: register SHELL_ID reads {self.shell['SHELL_ID']:#010x}, not "
                            f"{protocol.MAGIC:#010x}: no shell of Seriatim is there; write our bitstream to the board")
        if self.shell["PROTOCOL"] != protocol.VERSION:
            raise LinkError(f"{self.port.name}: the board speaks version {self.shell['PROTOCOL']} of the protocol, this driver "
                            f"{protocol.VERSION}: program it with a bitstream of this release")
        self.buffer_bytes = self.shell["BUFFER_BYTES"] - 1
        self.memory_bytes = self.shell["MEMORY_BYTES"]

    def close(self) -> None:
        self.port.close()

    def csr_read(self, name: str, count: int = 1) -> list[int]:
        """Values of `count` registers, in the order of their addresses, from the one named `name` on."""
        data = self.request(Command.READ_CSR, count, REGISTER_ADDR[name])
        return [int.from_bytes(data[i:i + WORD_BYTES], "little") for i in range(0, len(data), WORD_BYTES)]

    def csr_write(self, name: str, value: int) -> None:
        """Writes a register, once."""
        self.request(Command.WRITE_CSR, 1, REGISTER_ADDR[name], value.to_bytes(WORD_BYTES, "little"))

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of memory; `address` and `size` are multiples of a word."""
        parts = self.transfer((Command.READ, words, at, b"") for at, words in self._pieces(address, size, MOST_WORDS))
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Writes memory; `address` and the size are multiples of a word."""
        room = min(MOST_WORDS, (self.buffer_bytes // 2 - Request(0, Command.WRITE, 0, 0).buffered_bytes) // WORD_BYTES)
        self.transfer((Command.WRITE, words, at, data[at - address:at - address + words * WORD_BYTES])
                      for at, words in self._pieces(address, len(data), room))

    @staticmethod
    def _pieces(address: int, size: int, most_words: int) -> Iterable[tuple[int, int]]:
        assert address % WORD_BYTES == 0 and size % WORD_BYTES == 0, (address, size)
        for at in range(address, address + size, most_words * WORD_BYTES):
            yield at, min(most_words, (address + size - at) // WORD_BYTES)

    def request(self, command: Command, count: int, address: int, data: bytes = b"") -> bytes:
        """Does one request; returns the words that it reads."""
        return self.transfer([(command, count, address, data)])[0]

    def transfer(self, wanted: Iterable[tuple[Command, int, int, bytes]]) -> list[bytes]:
        """Does requests (command, count, address, data), whose order does not matter; returns the words that each reads."""
        waiting = iter(wanted)
        ahead = next(waiting, None)
        pending: OrderedDict[int, _Pending] = OrderedDict()
        results: list[bytes | None] = []
        while ahead or pending:
            while ahead and self._room(pending, ahead):
                sequence = self._sequence = (self._sequence + 1) % 256
                pending[sequence] = _Pending(Request(sequence, *ahead), len(results))
                results.append(None)
                self.traffic.requests += 1
                self._send(pending[sequence])
                ahead = next(waiting, None)
            self._receive(pending, results)
        return results

    def _room(self, pending: dict, ahead: tuple) -> bool:
        held = sum(p.request.buffered_bytes for p in pending.values())
        return not pending or (len(pending) < MOST_PENDING and held + Request(0, *ahead).buffered_bytes <= self.buffer_bytes)

    def _send(self, pending: "_Pending") -> None:
        frame = protocol.encode(pending.request.body)
        pending.sent += 1
        pending.at = time.monotonic()
        self.traffic.sent_bytes += len(frame)
        self.port.write(frame)

    def _resend(self, late: list["_Pending"]) -> None:
        for pending in late:
            if pending.sent >= self.attempts:
                raise LinkError(self._silence(pending))
            self.traffic.resent += 1
            self._send(pending)

    def _receive(self, pending: OrderedDict, results: list) -> None:
        """Takes what has come; sends again what was lost."""
        data = self.port.read()
        self.traffic.received_bytes += len(data)
        for body in self._decoder.feed(data):
            answered = pending.get(body[0])
            if answered is None or not answered.request.answered_by(body):
                self.traffic.dropped += 1
                continue
            self._judge(answered.request, body[-1])
            results[answered.result] = body[HEADER.size:-1]
            del pending[body[0]]
            self._heard = time.monotonic()
            # Those sent before it should have been answered before it.
            self._resend([p for p in pending.values() if p.at < answered.at])
        self.traffic.dropped += self._decoder.dropped
        self._decoder.dropped = 0
        if pending and time.monotonic() - max(self._heard, *(p.at for p in pending.values())) > self.timeout_s:
            self._resend(list(pending.values()))

    def _judge(self, request: Request, status: int) -> None:
        if status == Status.OK:
            return
        if status == Status.RANGE:
            end = request.address + request.count * WORD_BYTES
            raise LinkError(f"{self.port.name}: bytes {request.address:#x}..{end:#x}: the board's memory ends at "
                            f"{self.memory_bytes:#x}")
        raise LinkError(f"{self.port.name}: the board answered {request.command!r} with status {status}: it speaks another "
                        "protocol; program it with a bitstream of this release")

    def _silence(self, pending: "_Pending") -> str:
        t = self.traffic
        tried = f"{self.port.name}: no answer to {Command(pending.request.command).name} after {pending.sent} attempts"
        if not t.received_bytes:
            return f"{tried}, and not a byte has come: is the board powered, programmed, and this its port?"
        if t.dropped:
            return (f"{tried}; {t.received_bytes} bytes came, with {t.dropped} broken frames: is the baud rate the board's? "
                    "Otherwise the line is noisy: choose a shorter cable, or a bitstream of a lower rate")
        return f"{tried}; {t.received_bytes} bytes came before: the board was reset, or its link hangs; program it again"


@dataclass
class _Pending:
    """A request under way: index of its result, times sent, when last."""

    request: Request
    result: int
    sent: int = 0
    at: float = 0.0
