"""Frames: published check values, stuffing, whatever a line does to them."""

import random
import zlib
from pathlib import Path

import pytest

from seriatim.boards import protocol
from seriatim.boards.protocol import ESCAPE, FCS_RESIDUE, FLAG, Command, Decoder, Request, encode

pytestmark = pytest.mark.unit


def test_frame_of_published_check_value():
    """CRC-32's check value of "123456789" is 0xCBF43926 (RFC 1662 sends it least significant byte first)."""
    assert encode(b"123456789") == b"\x7e123456789\x26\x39\xf4\xcb\x7e"
    assert zlib.crc32(b"123456789\x26\x39\xf4\xcb") ^ 0xFFFFFFFF == FCS_RESIDUE


def test_stuffing():
    frame = encode(bytes([FLAG, ESCAPE, 0x20]))
    assert frame.startswith(bytes.fromhex("7e 7d5e 7d5d 20")) and FLAG not in frame[1:-1]


def test_bodies_come_back_from_pieces_of_any_size():
    rng = random.Random(1)
    bodies = [rng.randbytes(rng.randrange(1, 300)) for _ in range(200)] + [bytes([FLAG, ESCAPE] * 50)]
    wire = b"".join(map(encode, bodies))
    decoder, found = Decoder(), []
    while wire:
        cut = rng.randrange(1, 100)
        found += decoder.feed(wire[:cut])
        wire = wire[cut:]
    assert found == bodies and decoder.dropped == 0


@pytest.mark.parametrize("fault", ["flip", "drop", "twice", "insert"])
def test_a_fault_loses_its_frame_and_no_other(fault):
    rng = random.Random(fault)
    for _ in range(300):
        bodies = [rng.randbytes(rng.randrange(1, 40)) for _ in range(3)]
        frames = [bytearray(encode(body)) for body in bodies]
        at = rng.randrange(1, len(frames[1]) - 1)
        if fault == "flip":
            frames[1][at] ^= 1 << rng.randrange(8)
        elif fault == "drop":
            del frames[1][at]
        elif fault == "twice":
            frames[1].insert(at, frames[1][at])
        else:
            frames[1].insert(at, rng.randrange(256))
        decoder = Decoder()
        found = decoder.feed(b"".join(frames))
        assert found == [bodies[0], bodies[2]] and decoder.dropped >= 1


def test_the_page_has_the_tables():
    page = Path(__file__).parents[2].joinpath("docs", "link.md").read_text()
    rows = [f"| {c.value} | `{c.name}` | {protocol.COMMAND_DOC[c]} |" for c in Command]
    rows += [f"| {s.value} | `{s.name}` | {protocol.STATUS_DOC[s]} |" for s in protocol.Status]
    rows += [f"| {r.addr:#06x} | `{r.name}` | {r.access} | {r.doc} |" for r in protocol.REGISTERS]
    assert [row for row in rows if row not in page] == []


def test_sizes_of_request_and_response():
    read = Request(1, Command.READ, 3, 64)
    write = Request(2, Command.WRITE, 2, 64, bytes(8))
    assert (read.buffered_bytes, read.response_bytes) == (11, 20)
    assert (write.buffered_bytes, write.response_bytes) == (19, 8)
