"""The instruction set as a table: encoder, decoder, disassembler, manual and the RTL's layouts all come from `INSTRS`.

A program is a sequence of 512-bit little-endian instructions ending with END. The fetch unit hands them in order to three queues
(load, execute, store) that run concurrently. They synchronise by counting semaphores: an instruction starts when every semaphore
in its `wait` mask is above zero, and takes one from each; when it has finished, it adds one to each in its `signal` mask.

Memory layouts (a *word* is K bits, lane 0 in bit 0, little-endian bytes):

    activations  [image][row][column][channel word][plane] words, most significant plane first
    image        [image][row][column][channel] bytes, rows padded to whole AXI beats
    weights      [column tile][tap][channel word][plane][n] words, most significant plane first
    params       [column tile][n] of b (int64), m (int32), 4 zero bytes
    int32        [image][row][column][column tile] of `raw_words` words: N little-endian int32
"""

import os
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from .errors import ProgramError

VERSION = 1
INSTR_BITS = 512
INSTR_BYTES = INSTR_BITS // 8


class Queue(IntEnum):
    """Which unit executes an instruction."""

    FETCH = 0
    LOAD = 1
    EXEC = 2
    STORE = 3


class Sem(IntFlag):
    """Semaphores, as bits of `wait` and `signal`. A stalled execute blames the lowest one that it lacks."""

    ACT_READY = 1 << 0
    WGT_READY = 1 << 1
    PRM_READY = 1 << 2
    RES_READY = 1 << 3
    OUT_FREE = 1 << 4
    OUT_READY = 1 << 5
    ACT_FREE = 1 << 6
    WGT_FREE = 1 << 7
    PRM_FREE = 1 << 8
    RES_FREE = 1 << 9
    DRAM_DONE = 1 << 10


SEM_COUNT = len(Sem)
SEM_BITS = 8
"""Width of a semaphore's counter; going past it stops the machine."""


class Buffer(IntEnum):
    """Destination of a LOAD."""

    ACT = 0
    RES = 1
    WGT = 2
    PRM = 3


class Output(IntEnum):
    """Where a CONV's accumulators go."""

    PLANES = 0  # requantised, packed into planes, to the out buffer
    INT32 = 1  # requantised, as int32 words, to the out buffer
    PSUM = 2  # as they are, to the psum memory
    CODES = 3  # requantised, encoded by the thresholds, packed into planes, to the out buffer


class Engine(IntEnum):
    BIT_SERIAL = 0
    SHIFT_ADD = 1


class Table(IntEnum):
    """What a TABLE holds."""

    VALUES = 0  # values of the weights' codes, 16 bits each
    THRESHOLDS = 1  # of the output's codes


TABLE_PART = 8
"""Entries that a TABLE sets: half of those that there are."""
THRESHOLDS = 2 * TABLE_PART - 1
"""Thresholds between 4-bit codes."""
LOG_BITS = 5
"""Most bits of a log code, the sign apart."""


@dataclass(frozen=True)
class Field:
    """`bits` wide, unsigned unless `signed`; legal values are `lo..hi` (by default all that fit)."""

    name: str
    bits: int
    doc: str
    signed: bool = False
    lo: int | None = None
    hi: int | None = None

    @property
    def range(self) -> tuple[int, int]:
        lo, hi = (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)
        return (lo if self.lo is None else self.lo), (hi if self.hi is None else self.hi)


HEADER = (
    Field("opcode", 8, "Which instruction."),
    Field("wait", 16, "Semaphores (mask) to take one from before the start.", hi=(1 << SEM_COUNT) - 1),
    Field("signal", 16, "Semaphores (mask) to add one to at the end.", hi=(1 << SEM_COUNT) - 1),
)


@dataclass(frozen=True)
class Instr:
    """One row of the table. Fields follow the header without gaps; the bits above them are zero."""

    name: str
    opcode: int
    queue: Queue
    doc: str
    fields: tuple[Field, ...] = field(default=())

    def __post_init__(self):
        assert sum(f.bits for f in self.all_fields) <= INSTR_BITS, self.name

    @property
    def all_fields(self) -> tuple[Field, ...]:
        return HEADER + self.fields

    @property
    def used_bits(self) -> int:
        return sum(f.bits for f in self.all_fields)

    def offsets(self):
        """Yields (field, bit offset)."""
        at = 0
        for f in self.all_fields:
            yield f, at
            at += f.bits


_RING = (
    Field("ring_base", 16, "First word of the ring that row addresses wrap in."),
    Field("ring_words", 16, "Size of the ring: row addresses from ring_base + ring_words on have ring_words taken off, once, so "
          "that no pitch of rows may be larger. 0: none."),
)
_DMA = (
    Field("dram", 32, "Byte address of the first beat; a multiple of the beat."),
    Field("base", 16, "Buffer word address of the first word."),
    Field("slice", 5, "First slice (array row)."),
    Field("slices", 6, "Number of slices.", lo=1, hi=32),
    Field("slice_pitch", 32, "Bytes from one slice's data to the next's (mod 2^32)."),
    Field("ny", 16, "Rows.", lo=1),
    Field("y_pitch", 32, "Bytes from row to row (mod 2^32)."),
    Field("nx", 16, "Segments of a row.", lo=1),
    Field("x_pitch", 32, "Bytes from segment to segment (mod 2^32)."),
    Field("words", 16, "Words of a segment, contiguous in memory and in the buffer.", lo=1),
)

INSTRS = (
    Instr("END", 1, Queue.FETCH, """\
Ends the program: the machine is done when all queues are empty, all units idle and all writes acknowledged."""),
    Instr("LOAD", 2, Queue.LOAD, """\
Memory to a buffer. For s in slices, y in ny, x in nx, w in words: buffer word

    wrap(base + y * row_pitch) + x * words + w     of slice (slice + s), for ACT and RES
    base + w                                       for WGT and PRM (slices, ny and nx are 1)

receives the word at dram + s * slice_pitch + y * y_pitch + x * x_pitch + w * word_bytes. A word of ACT and RES is K bits, of
WGT N x K bits, of PRM N x 128 bits in memory (see the layouts). Words written to ACT become valid.""", (
        Field("buffer", 2, "Destination: a Buffer."),
        *_DMA,
        Field("row_pitch", 16, "Buffer words from row to row."),
        *_RING,
    )),
    Instr("FILL", 3, Queue.LOAD, """\
Writes the pad code to the act buffer, one word of all slices in the mask each cycle. For y in ny, w in words: word
wrap(base + y * row_pitch) + w of each slice in mask becomes K copies of bit (planes - 1 - w mod planes) of code.""", (
        Field("base", 16, "Act word address."),
        Field("mask", 32, "Slices to write."),
        Field("ny", 16, "Rows.", lo=1),
        Field("row_pitch", 16, "Words from row to row."),
        Field("words", 16, "Words of a row.", lo=1),
        Field("planes", 5, "Planes of the tensor.", lo=1, hi=16),
        Field("code", 16, "Pad code."),
        Field("valid", 1, "Validity of the words: 0 for padding of bipolar activations, otherwise 1."),
        *_RING,
    )),
    Instr("PATCH", 4, Queue.LOAD, """\
Builds convolution patches from a byte image: im2col in the load unit, one output row for each slice. For s in
slices, x in nx: the
patch is the concatenation, over r in kh, t in kw, c in channels, of the image byte at row y0 + s * y_step + r * dh, column
x0 + x * sw + t * dw, channel c, or of code where that is outside the image. Its bytes fill ceil(kh * kw * channels / K) channel
words, 8 planes each (lanes beyond the patch are 0), which go to act words base + x * 8 * that number and up,
of slice (slice + s);
they become valid. A row of the image is at dram + row * y_pitch; the bytes that the nx patches need of a row, from the beat that
holds the first to the beat that holds the last, take seg_bytes in the line memory, so kh * seg_bytes <= line_bytes.""", (
        Field("dram", 32, "Byte address of image row 0; a multiple of the beat."),
        Field("base", 16, "Act word address."),
        Field("slice", 5, "First slice."),
        Field("slices", 6, "Number of slices.", lo=1, hi=32),
        Field("y_pitch", 32, "Bytes from image row to row; a multiple of the beat."),
        Field("height", 16, "Rows of the image.", lo=1),
        Field("width", 16, "Columns of the image.", lo=1),
        Field("channels", 16, "Channels of the image.", lo=1),
        Field("y0", 16, "Image row of tap row 0 for the first slice.", signed=True),
        Field("y_step", 16, "Image rows from slice to slice."),
        Field("x0", 16, "Image column of tap column 0 at x = 0.", signed=True),
        Field("nx", 16, "Positions.", lo=1),
        Field("kh", 8, "Tap rows.", lo=1),
        Field("kw", 16, "Tap columns.", lo=1),
        Field("sw", 8, "Column stride.", lo=1),
        Field("dh", 8, "Row dilation.", lo=1),
        Field("dw", 8, "Column dilation.", lo=1),
        Field("code", 8, "Pad code."),
        Field("seg_bytes", 16, "Line memory bytes of one row; a multiple of 64.", lo=64),
    )),
    Instr("CONV", 5, Queue.EXEC, """\
Convolution of a tile on the array. For y in ny, x in nx (a position p = y * nx + x), g in ng (a column tile):

    acc[m][n] = sum over kh, kw, c of value(act word) . value(wgt word)

over the lanes, where plane j of the act word is word wrap(act_base + y * sy + kh * skh) + x * sx + g * sg +
kw * skw + c * sc + j
of slice m, and plane i of the wgt word is row n of word wgt_base + g * wgt_g + (kh * nkw + kw) * wgt_tap + c * w_bits + i. Planes
count from the most significant; a_bits of the stored planes are used. The hardware sums plane products from
the highest significance
down, shifting the accumulators left when it drops. Where the act kind is bipolar, invalid words contribute 0.

With engine BIT_SERIAL all K lanes of a word count, and neither kind may be log or codebook. With SHIFT_ADD the first
slices * shift_lanes do, FORMAT says what log codes mean, and one of the kinds at least is log, or the weights are a
codebook; the others are uint or int. Its sums are modulo 2^shift_acc_bits.

If psum_add, word psum_base + (p * ng + g) * M + m of the psum memory is added to acc[m]. Then, by `output`:

    PSUM    the sum is written to that word
    PLANES  q = clip((m * acc + m2 * res + b) >> shift, lo, hi), with m, b of param word prm_base + g, is lane
            g * N + n of out words
            out_base + p * out_planes + plane (MSB first, two's complement); lanes beyond ng * N are 0
    CODES   the same, with the number of entries of the table THRESHOLDS that are not above q in place of q
    INT32   q goes as int32 to out words out_base + (p * ng + g) * raw_words and up

where acc is without the lowest `drop` bits (of FORMAT) and modulo 2^32, and res, if res_planes is not 0, is lane
g * N + n of the res_planes planes (MSB first) at residual words res_base + p * res_pitch.
A product of planes counts negative when exactly one of the two is the top plane of an `int`. ng <= K / N.""", (
        Field("engine", 2, "Which engine: an Engine.", hi=1),
        Field("act_base", 16, "Act word address of row 0, column 0."),
        *_RING,
        Field("ny", 8, "Output rows.", lo=1),
        Field("nx", 16, "Output columns.", lo=1),
        Field("ng", 8, "Column tiles.", lo=1),
        Field("kh", 8, "Tap rows.", lo=1),
        Field("kw", 8, "Tap columns.", lo=1),
        Field("nc", 16, "Channel words.", lo=1),
        Field("sy", 16, "Act words from output row to row."),
        Field("sx", 16, "Act words from output column to column."),
        Field("sg", 16, "Act words from column tile to column tile."),
        Field("skh", 16, "Act words from tap row to row."),
        Field("skw", 16, "Act words from tap column to column."),
        Field("sc", 8, "Act words from channel word to channel word."),
        Field("a_kind", 3, "Kind of the activations' format."),
        Field("a_bits", 4, "Planes of the activations that are used.", lo=1, hi=8),
        Field("w_kind", 3, "Kind of the weights' format."),
        Field("w_bits", 4, "Planes of the weights.", lo=1, hi=9),
        Field("wgt_base", 16, "Wgt word address."),
        Field("wgt_g", 16, "Wgt words from column tile to column tile."),
        Field("wgt_tap", 16, "Wgt words from tap to tap."),
        Field("output", 2, "Where results go: an Output."),
        Field("psum_add", 1, "Add the psum memory."),
        Field("psum_base", 16, "Psum word address."),
        Field("prm_base", 16, "Param word address."),
        Field("out_base", 16, "Out word address."),
        Field("out_planes", 5, "Planes of the output.", lo=1, hi=16),
        Field("res_planes", 5, "Planes of the residual; 0: none.", hi=16),
        Field("res_signed", 1, "The residual is two's complement."),
        Field("res_base", 16, "Residual word address."),
        Field("res_pitch", 16, "Residual words from position to position."),
        Field("m2", 32, "Multiplier of the residual.", signed=True),
        Field("shift", 6, "S of the requantisation."),
        Field("lo", 32, "Least result.", signed=True),
        Field("hi", 32, "Greatest result.", signed=True),
    )),
    Instr("POOL", 6, Queue.EXEC, """\
Maximum over a window, on codes. For y in ny, x in nx, g in ng (a channel word): plane j of out word
out_base + ((y * nx + x) * ng + g) * planes + j of slice m holds the maximum, lane by lane, over kh, kw, of the
codes whose planes are
act words wrap(act_base + y * sy + kh * skh) + x * sx + g * planes + kw * skw + j. `is_signed` compares two's complement.""", (
        Field("act_base", 16, "Act word address of row 0, column 0."),
        *_RING,
        Field("ny", 8, "Output rows.", lo=1),
        Field("nx", 16, "Output columns.", lo=1),
        Field("ng", 16, "Channel words.", lo=1),
        Field("kh", 8, "Tap rows.", lo=1),
        Field("kw", 8, "Tap columns.", lo=1),
        Field("sy", 16, "Act words from output row to row."),
        Field("sx", 16, "Act words from output column to column."),
        Field("skh", 16, "Act words from tap row to row."),
        Field("skw", 16, "Act words from tap column to column."),
        Field("planes", 5, "Planes of the tensor.", lo=1, hi=16),
        Field("is_signed", 1, "Codes are two's complement."),
        Field("out_base", 16, "Out word address."),
    )),
    Instr("STORE", 7, Queue.STORE, """\
Out buffer to memory. For s in slices, y in ny, x in nx, w in words: K bits of slice (slice + s) of out word
base + (y * nx + x) * words + w go to dram + s * slice_pitch + y * y_pitch + x * x_pitch + w * K / 8. Finished
when every write has
been acknowledged.""", _DMA),
    Instr("MARK", 8, Queue.EXEC, """\
A layer begins: the counters are copied to row `layer` of the profile memory, one a cycle, while nothing executes.""", (
        Field("layer", 8, "Number of the layer."),
    )),
    Instr("FORMAT", 9, Queue.EXEC, """\
How the shift-add engine reads codes from here on, and what is left out of sums; takes effect while nothing executes. (At the
start of a program all fields have their least values.) A log code of 0 is the value 0, any other
C(k mod shift_classes) << (k div shift_classes), where k = step * (code - 1); if signed its top bit is a sign and no part of the
code. The product of two logs has the sum of their k. C(i) is 1, or with `scaled` round(2^(i / shift_classes) 2^14), once in each
product. A codebook's code c stands for entry c of the
table VALUES, codes from 16 on for 0. No product of the formats may be shifted by more than shift_span.""", (
        Field("a_signed", 1, "Log activations have a sign."),
        Field("a_step", 6, "Step of log activations, in 1 / shift_classes octaves.", lo=1),
        Field("w_signed", 1, "Log weights have a sign."),
        Field("w_step", 6, "Step of log weights.", lo=1),
        Field("scaled", 1, "Products are multiplied by the constants of their residue classes."),
        Field("slices", 9, "Slices of shift_lanes lanes of a word that count.", lo=1),
        Field("drop", 5, "Lowest bits of a sum, of either engine, that requantisation leaves out."),
    )),
    Instr("TABLE", 10, Queue.EXEC, """\
Sets half a table, while nothing executes. (At the start of a program all entries are 0.) VALUES has 16 entries, whose low 16
bits count, as signed numbers; THRESHOLDS has 15, the last of the 16 does not count.""", (
        Field("table", 1, "A Table."),
        Field("half", 1, "0: entries 0 to 7, 1: entries 8 to 15."),
        *(Field(f"entry_{i}", 32, f"Entry {i} of the half.", signed=True) for i in range(TABLE_PART)),
    )),
)

BY_NAME = {i.name: i for i in INSTRS}
BY_OPCODE = {i.opcode: i for i in INSTRS}


def encode(name: str, **values: int) -> bytes:
    """One instruction as bytes. Fields left out are 0 (or their least legal value). Raises ProgramError for an unknown name, an
    unknown field, or a value outside its field's range."""
    instr = BY_NAME.get(name)
    if instr is None:
        raise ProgramError(f"instruction {name!r}: there are {', '.join(BY_NAME)}")
    unknown = values.keys() - {f.name for f in instr.all_fields}
    if unknown or "opcode" in values:
        raise ProgramError(f"{name} has no field {', '.join(sorted(unknown)) or 'opcode to set'}")
    word = 0
    for f, at in instr.offsets():
        lo, hi = f.range
        value = instr.opcode if f.name == "opcode" else int(values.get(f.name, max(lo, 0)))
        if not lo <= value <= hi:
            raise ProgramError(f"{name}.{f.name} = {value}: {f.doc.rstrip('.')}: {lo} to {hi}")
        word |= (value & (1 << f.bits) - 1) << at
    return word.to_bytes(INSTR_BYTES, "little")


def decode(data: bytes) -> tuple[Instr, dict[str, int]]:
    """The instruction and its fields (without the opcode). Raises ProgramError for an illegal opcode, field or non-zero rest."""
    if len(data) != INSTR_BYTES:
        raise ProgramError(f"instruction of {len(data)} bytes: it has {INSTR_BYTES}")
    word = int.from_bytes(data, "little")
    instr = BY_OPCODE.get(word & 0xFF)
    if instr is None:
        raise ProgramError(f"opcode {word & 0xFF}: there are {', '.join(f'{i.opcode} {i.name}' for i in INSTRS)}")
    if word >> instr.used_bits:
        raise ProgramError(f"{instr.name}: bits {instr.used_bits} and above are not zero")
    values = {}
    for f, at in instr.offsets():
        value = word >> at & (1 << f.bits) - 1
        if f.signed and value >> f.bits - 1:
            value -= 1 << f.bits
        lo, hi = f.range
        if f.name != "opcode":
            if not lo <= value <= hi:
                raise ProgramError(f"{instr.name}.{f.name} = {value}: {lo} to {hi}")
            values[f.name] = value
    return instr, values


def disassemble(program: bytes):
    """Yields one line of text for each instruction of `program`."""
    if len(program) % INSTR_BYTES:
        raise ProgramError(f"program of {len(program)} bytes: it is a multiple of {INSTR_BYTES}")
    for pc in range(0, len(program), INSTR_BYTES):
        instr, values = decode(program[pc:pc + INSTR_BYTES])
        text = [f"{pc:06x} {instr.name:5}"]
        for name, value in values.items():
            if name in ("wait", "signal"):
                if value:
                    text.append(f"{name}=" + "+".join(s.name for s in Sem if s & value))
            elif value:
                text.append(f"{name}={value:#x}" if name in ("dram", "mask") else f"{name}={value}")
        yield " ".join(text)


def assemble(lines) -> bytes:
    """The program that `disassemble` wrote as `lines` (the leading address of a line may be left out)."""
    program = b""
    for line in lines:
        words = line.split("#")[0].split()
        if words and words[0] not in BY_NAME:
            words = words[1:]
        if not words:
            continue
        values = {}
        for word in words[1:]:
            name, _, value = word.partition("=")
            try:
                if name in ("wait", "signal"):
                    values[name] = sum(Sem[s] for s in value.split("+"))
                else:
                    values[name] = int(value, 0)
            except (KeyError, ValueError):
                raise ProgramError(f"{word!r} in {line.strip()!r}: write field=number, or wait=SEM+SEM") from None
        program += encode(words[0], **values)
    return program


def manual() -> str:
    """The ISA manual, in Markdown."""
    out = [f"# Instruction set, version {VERSION}", "", *__doc__.splitlines(), "", "## Semaphores", ""]
    out += [f"* bit {s.value.bit_length() - 1}: `{s.name}`" for s in Sem]
    for instr in INSTRS:
        out += ["", f"## {instr.name} (opcode {instr.opcode}, {instr.queue.name.lower()} queue)", "", *instr.doc.splitlines(), "",
                "| field | bits | values | meaning |", "|---|---|---|---|"]
        for f, at in instr.offsets():
            lo, hi = f.range
            out.append(f"| `{f.name}` | {at + f.bits - 1}:{at} | {lo} to {hi} | {f.doc} |")
    return "\n".join(out) + "\n"


def main_asm(args):
    """`seriatim asm FILE`: assembles text, as `disasm` prints it, to a program."""
    with open(args.path) as f:
        program = assemble(f)
    out = args.out or os.path.splitext(args.path)[0] + ".bin"
    with open(out, "wb") as f:
        f.write(program)
    print(f"{out}: {len(program) // INSTR_BYTES} instructions")


def main_disasm(args):
    """`seriatim disasm FILE`: prints a program as text."""
    with open(args.path, "rb") as f:
        for line in disassemble(f.read()):
            print(line)


def main_manual(args):
    """`seriatim manual --out DIR`: writes the pages that come from the tables."""
    from . import csr

    os.makedirs(args.out, exist_ok=True)
    for name, text in (("isa.md", manual()), ("registers.md", csr.manual())):
        with open(os.path.join(args.out, name), "w") as f:
            f.write(text)
        print(os.path.join(args.out, name))
