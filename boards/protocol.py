"""The link's protocol: frames, commands, the shell's registers, for gateware and host driver alike. Standard library only.

A frame on the wire is HDLC-like, as RFC 1662 has it for asynchronous links: FLAG, the body and its FCS-32 with every FLAG and
ESCAPE among them stuffed (ESCAPE, then the byte XOR 0x20), FLAG. The FCS-32 is zlib's CRC-32 of the body, little-endian.

    request   sequence, command, count, address (4 bytes), then `count` words where the command writes
    response  the request's first seven bytes, then `count` words where the command reads, then a Status

Words have 32 bits; everything is little-endian. The shell does requests in order and answers each; it says nothing to a frame
whose FCS or length is wrong, which the host sends again. That is safe: READ, WRITE and PING may be done twice, and a WRITE_CSR
(which may start the machine) that bears the sequence number of the frame done before it is answered, not done.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from seriatim.csr import Register

VERSION = 1
"""Of this protocol: register PROTOCOL shows it."""

FLAG, ESCAPE, STUFFED = 0x7E, 0x7D, 0x20
FCS_BYTES = 4
FCS_POLYNOMIAL = 0xEDB88320
FCS_INIT = 0xFFFFFFFF
FCS_RESIDUE = 0xDEBB20E3
"""What the register of the CRC holds after a right body and its FCS."""

WORD_BYTES = 4
HEADER = struct.Struct("<BBBI")


class Command(IntEnum):
    """What a request asks for. Bit 0: it writes; bits 2:1: nothing, registers or memory."""

    PING = 0
    READ_CSR = 2
    WRITE_CSR = 3
    READ = 4
    WRITE = 5

    @property
    def writes(self) -> bool:
        return bool(self & 1)


COMMAND_DOC = {
    Command.PING: "nothing: `count` is 0, the address is anything and comes back",
    Command.READ_CSR: "`count` registers from byte offset `address` on",
    Command.WRITE_CSR: "one register",
    Command.READ: "`count` words of memory",
    Command.WRITE: "`count` words of memory",
}


class Status(IntEnum):
    """How a request went."""

    OK = 0
    UNKNOWN = 1
    RANGE = 2


STATUS_DOC = {
    Status.OK: "done",
    Status.UNKNOWN: "no such command: nothing was done",
    Status.RANGE: "an address beyond the memory: words read there are anything, words written there are lost",
}

SHELL_AT = 0x1000
"""Byte offset of the shell's registers among those that READ_CSR and WRITE_CSR reach; below are the accelerator's."""
MAGIC = 0x4B4E4C53

_SHELL = [
    ("SHELL_ID", "r", "0x4b4e4c53, 'SLNK'."),
    ("PROTOCOL", "r", "Version of the link's protocol."),
    ("CLOCK_HZ", "r", "Clock of accelerator and shell."),
    ("MEMORY_BYTES", "r", "Size of the memory; its first byte has address 0."),
    ("BUFFER_BYTES", "r", "Unanswered requests that the shell holds, in bytes of their bodies and FCS, plus one."),
    ("LINK_ERRORS", "r", "Frames dropped since the configuration, modulo 256: wrong FCS or length, no room."),
    ("RESET", "rw", "Bit 0: hold the accelerator in reset; its registers read 0 then, and ignore writes."),
]
REGISTERS = tuple(Register(name, SHELL_AT + 4 * i, access, doc) for i, (name, access, doc) in enumerate(_SHELL))
ADDR = {r.name: r.addr for r in REGISTERS}


@dataclass(frozen=True)
class Request:
    """A request: `count` words from `address` on, those of `data` (whole words) where `command` writes."""

    sequence: int
    command: int
    count: int
    address: int
    data: bytes = b""

    @property
    def header(self) -> bytes:
        return HEADER.pack(self.sequence, self.command, self.count, self.address)

    @property
    def body(self) -> bytes:
        return self.header + self.data

    @property
    def buffered_bytes(self) -> int:
        """Room that it takes in the shell's buffer."""
        return len(self.body) + FCS_BYTES

    @property
    def response_bytes(self) -> int:
        """Size of the body of its response."""
        return HEADER.size + 1 + (0 if self.command & 1 else self.count * WORD_BYTES)

    def answered_by(self, body: bytes) -> bool:
        """Whether `body` is a response to this request."""
        return len(body) == self.response_bytes and body.startswith(self.header)


def encode(body: bytes) -> bytes:
    """The frame of a body, as it goes over the wire."""
    whole = body + struct.pack("<I", zlib.crc32(body))
    stuffed = whole.replace(bytes([ESCAPE]), bytes([ESCAPE, ESCAPE ^ STUFFED]))
    stuffed = stuffed.replace(bytes([FLAG]), bytes([ESCAPE, FLAG ^ STUFFED]))
    return bytes([FLAG]) + stuffed + bytes([FLAG])


class Decoder:
    """Finds the bodies of right frames in what a wire gives, in pieces of any size. `dropped` counts the frames that were not."""

    def __init__(self):
        self._pending, self.dropped = bytearray(), 0

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies of the frames that `data` completes."""
        *ended, rest = (bytes(self._pending) + data).split(bytes([FLAG]))
        self._pending = bytearray(rest)
        bodies = [self._body(part) for part in ended if part]
        return [body for body in bodies if body is not None]

    def _body(self, stuffed: bytes) -> bytes | None:
        parts = stuffed.split(bytes([ESCAPE]))
        if all(parts[1:]):  # else a frame that was broken off: ESCAPE before FLAG or ESCAPE
            whole = parts[0] + b"".join(bytes([part[0] ^ STUFFED]) + part[1:] for part in parts[1:])
            body, fcs = whole[:-FCS_BYTES], whole[-FCS_BYTES:]
            if len(whole) > FCS_BYTES and struct.pack("<I", zlib.crc32(body)) == fcs:
                return body
        self.dropped += 1
        return None
