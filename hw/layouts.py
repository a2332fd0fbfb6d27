"""Amaranth layouts of the instructions, derived from the ISA table: the RTL decodes through them and through nothing else."""

from functools import cache

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from seriatim import isa


@cache
def layout(name: str) -> data.StructLayout:
    """Layout of instruction `name`: its fields from bit 0 up (`rest` is what lies above them)."""
    instr = isa.BY_NAME[name]
    members = {f.name: signed(f.bits) if f.signed else unsigned(f.bits) for f in instr.all_fields}
    members["rest"] = unsigned(isa.INSTR_BITS - instr.used_bits)
    return data.StructLayout(members)


QUEUED = data.StructLayout({"word": isa.INSTR_BITS, "pc": 32})
"""What a queue hands to its unit: the instruction and its byte offset in the program."""
