"""The instruction table: what is encoded is decoded, what is out of range is refused, text and bytes agree."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seriatim import isa
from seriatim.errors import ProgramError
from seriatim.isa import Sem


@st.composite
def instructions(draw):
    instr = draw(st.sampled_from(isa.INSTRS))
    return instr, {f.name: draw(st.integers(*f.range)) for f in instr.all_fields if f.name != "opcode"}


@given(instructions())
def test_decode_inverts_encode(case):
    instr, values = case
    assert isa.decode(isa.encode(instr.name, **values)) == (instr, values)


@given(st.lists(instructions(), max_size=5))
def test_assembler_reads_what_the_disassembler_writes(cases):
    program = b"".join(isa.encode(instr.name, **values) for instr, values in cases)
    assert isa.assemble(isa.disassemble(program)) == program


@pytest.mark.parametrize("instr", isa.INSTRS, ids=lambda i: i.name)
def test_every_field_out_of_range_is_refused_by_encoder_and_decoder(instr):
    for f, at in instr.offsets():
        if f.name == "opcode":
            continue
        lo, hi = f.range
        for value in (lo - 1, hi + 1):
            with pytest.raises(ProgramError, match=f"{f.name} = {value}"):
                isa.encode(instr.name, **{f.name: value})
            if not f.signed and 0 <= value < 1 << f.bits:  # it fits the bits, so the decoder can meet it
                word = int.from_bytes(isa.encode(instr.name), "little") & ~(((1 << f.bits) - 1) << at) | value << at
                with pytest.raises(ProgramError, match=f.name):
                    isa.decode(word.to_bytes(isa.INSTR_BYTES, "little"))


@pytest.mark.parametrize("instr", isa.INSTRS, ids=lambda i: i.name)
def test_bits_above_the_fields_must_be_zero(instr):
    for bit in {instr.used_bits, isa.INSTR_BITS - 1} - {isa.INSTR_BITS}:
        word = int.from_bytes(isa.encode(instr.name), "little") | 1 << bit
        with pytest.raises(ProgramError, match="not zero"):
            isa.decode(word.to_bytes(isa.INSTR_BYTES, "little"))


def test_illegal_opcodes():
    for opcode in set(range(256)) - isa.BY_OPCODE.keys():
        with pytest.raises(ProgramError, match=f"opcode {opcode}"):
            isa.decode(bytes([opcode]) + bytes(isa.INSTR_BYTES - 1))


def test_unknown_names_and_fields_are_named():
    with pytest.raises(ProgramError, match="'FOO': there are END"):
        isa.encode("FOO")
    with pytest.raises(ProgramError, match="no field bogus"):
        isa.encode("END", bogus=1)
    with pytest.raises(ProgramError, match="opcode"):
        isa.encode("END", opcode=2)
    with pytest.raises(ProgramError, match="wait=BOGUS"):
        isa.assemble(["END wait=BOGUS"])


def test_lengths_are_checked():
    with pytest.raises(ProgramError, match="63 bytes"):
        isa.decode(bytes(63))
    with pytest.raises(ProgramError, match="multiple of 64"):
        list(isa.disassemble(bytes(65)))


def test_fields_do_not_overlap_and_opcodes_are_unique():
    assert len(isa.BY_OPCODE) == len(isa.INSTRS)
    for instr in isa.INSTRS:
        taken = [bit for f, at in instr.offsets() for bit in range(at, at + f.bits)]
        assert taken == list(range(instr.used_bits)) and instr.used_bits <= isa.INSTR_BITS


def test_disassembly_of_a_known_instruction():
    code = isa.encode("CONV", wait=Sem.ACT_READY | Sem.OUT_FREE, ny=2, m2=-3, hi=255)
    assert list(isa.disassemble(code)) == [
        "000000 CONV  wait=ACT_READY+OUT_FREE ny=2 nx=1 ng=1 kh=1 kw=1 nc=1 a_bits=1 w_bits=1 out_planes=1 m2=-3 hi=255"]


def test_manual_names_every_field():
    text = isa.manual()
    for instr in isa.INSTRS:
        assert f"## {instr.name} " in text
        assert all(f"`{f.name}`" in text for f in instr.fields)


def test_random_bytes_never_crash_the_decoder():
    rng = random.Random(1)
    for _ in range(2000):
        data = bytes([rng.choice([*isa.BY_OPCODE, 99])]) + rng.randbytes(isa.INSTR_BYTES - 1)
        try:
            isa.decode(data)
        except ProgramError:
            continue
        pytest.fail(f"random bytes decoded: {data.hex()}")  # so many zero bits by chance are beyond belief
