"""Control and status registers as a table: the hardware, the drivers and the manual come from it."""

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Ctrl(IntFlag):
    """Bits of CTRL."""

    START = 1
    ACKNOWLEDGE = 2


class Status(IntFlag):
    """Bits of STATUS."""

    BUSY = 1
    DONE = 2
    ERROR = 4
    INTERRUPT = 8


class Cause(IntEnum):
    """Why the machine stopped with an error."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    ILLEGAL_FIELD = 2
    UNSUPPORTED = 3
    BUFFER_RANGE = 4
    DRAM_RANGE = 5
    PROGRAM_RANGE = 6
    AXI_READ = 7
    AXI_WRITE = 8
    TOKEN_OVERFLOW = 9
    WATCHDOG = 10


CAUSE_DOC = {
    Cause.NONE: "no error",
    Cause.ILLEGAL_OPCODE: "an instruction's opcode is not in the table",
    Cause.ILLEGAL_FIELD: "a field is outside its range, or bits above the fields are not zero",
    Cause.UNSUPPORTED: "an engine or format that this machine was built without",
    Cause.BUFFER_RANGE: "an address beyond an on-chip buffer",
    Cause.DRAM_RANGE: "a read or write outside its base and limit registers, or not aligned to the beat",
    Cause.PROGRAM_RANGE: "the program ran past its limit without END",
    Cause.AXI_READ: "an AXI read answered SLVERR or DECERR",
    Cause.AXI_WRITE: "an AXI write answered SLVERR or DECERR",
    Cause.TOKEN_OVERFLOW: "a semaphore was signalled past its range",
    Cause.WATCHDOG: "nothing moved for as many cycles as WATCHDOG says",
}


class Counter(IntEnum):
    """64-bit event counters. The first eight are the cycles since the start, each belonging to exactly one: they add up."""

    BUSY = 0
    STALL_ACT = 1
    STALL_WGT = 2
    STALL_PARAM = 3
    STALL_RES = 4
    STALL_DRAIN = 5
    STALL_STORE = 6
    STALL_FETCH = 7
    READ_BEATS = 8
    WRITE_BEATS = 9
    ARRAY_STEPS = 10
    POOL_STEPS = 11
    REQUANTS = 12
    FETCH_BEATS = 13
    ACT_WRITES = 14
    RES_WRITES = 15
    WGT_WRITES = 16
    PRM_WRITES = 17
    RES_READS = 18
    OUT_WRITES = 19
    PSUM_READS = 20
    PSUM_WRITES = 21
    SHIFT_STEPS = 22
    SHIFT_ACT_READS = 23
    SHIFT_WGT_READS = 24
    ARRAY_ONES = 25
    ACT_FLIPS = 26
    WGT_FLIPS = 27


COUNTER_DOC = {
    Counter.BUSY: "cycles in which the array or the pool unit takes a word",
    Counter.STALL_ACT: "execute waits for activations",
    Counter.STALL_WGT: "execute waits for weights",
    Counter.STALL_PARAM: "execute waits for params",
    Counter.STALL_RES: "execute waits for the residual",
    Counter.STALL_DRAIN: "the array waits for its accumulators to drain, or the pipeline to empty",
    Counter.STALL_STORE: "execute waits for room in the out buffer, or the last stores are under way",
    Counter.STALL_FETCH: "execute has no instruction, starts one, or copies counters",
    Counter.READ_BEATS: "AXI read beats, program included",
    Counter.WRITE_BEATS: "AXI write beats",
    Counter.ARRAY_STEPS: "cycles in which an array takes a step: each of the bit-serial one is M N K binary MACs, padded lanes "
                         "included, each of the shift-add one M N shift_lanes MACs",
    Counter.POOL_STEPS: "cycles in which the pool unit takes a word",
    Counter.REQUANTS: "rows of N accumulators requantised",
    Counter.FETCH_BEATS: "AXI read beats of the program",
    Counter.ACT_WRITES: "words of K bits written to slices of the act buffer",
    Counter.RES_WRITES: "words of K bits written to slices of the residual buffer",
    Counter.WGT_WRITES: "words of K bits written to columns of the wgt buffer",
    Counter.PRM_WRITES: "params of a channel (96 bits) written",
    Counter.RES_READS: "words of M x K bits read from the residual buffer, those read ahead in vain included",
    Counter.OUT_WRITES: "words of M x K bits written to the out buffer",
    Counter.PSUM_READS: "rows of N sums read from the psum memory",
    Counter.PSUM_WRITES: "rows of N sums written to the psum memory",
    Counter.SHIFT_STEPS: "those of the array steps that are the shift-add array's",
    Counter.SHIFT_ACT_READS: "act words (M x K) that the shift-add array reads",
    Counter.SHIFT_WGT_READS: "wgt words (N x K) that the shift-add array reads",
    Counter.ARRAY_ONES: "ones of act AND wgt, over all M x N products of all steps of the bit-serial array",
    Counter.ACT_FLIPS: "bits in which an act word of the array (M x K) differs from the one before it, POOL's included",
    Counter.WGT_FLIPS: "bits in which a wgt word of the array (N x K) differs from the one before it",
}
STALLS = {c.name.removeprefix("STALL_").lower(): c for c in Counter if c.name.startswith("STALL_")}
"""Stall causes by the name that reports use."""
CYCLE_COUNTERS = tuple(c for c in Counter if c <= Counter.STALL_FETCH)
ACTIVITY_COUNTERS = tuple(c for c in Counter if c >= Counter.ACT_WRITES)
"""What energy is reckoned from, besides the others. In the simulation build alone: a synthesised machine reads 0."""
for _counter in ACTIVITY_COUNTERS:
    COUNTER_DOC[_counter] += " (simulation build only)"
PROFILE_ROW = 32
"""Counters of one row of the profile memory, as its addresses count (a power of two, at least len(Counter))."""
PROFILE_KEPT = 16
"""Of those the ones that a synthesised machine has memory for (a power of two)."""


@dataclass(frozen=True)
class Register:
    """One 32-bit register at byte offset `addr`. `access`: r, rw, or w1 (writing ones acts, reads 0)."""

    name: str
    addr: int
    access: str
    doc: str
    reset: int = 0


_REGISTERS = [
    ("ID", "r", "0x49524553, 'SERI'."),
    ("ISA_VERSION", "r", "Version of the instruction set."),
    ("CONFIG_HASH", "r", "Fingerprint of the machine's Config."),
    ("GEOMETRY", "r", "M in bits 7:0, N in 19:8, K in 31:20."),
    ("CTRL", "w1", "Bit 0: start the program (ignored while busy). Bit 1: acknowledge the interrupt."),
    ("STATUS", "r", "Bit 0: busy. Bit 1: done. Bit 2: stopped with an error. Bit 3: interrupt."),
    ("CAUSE", "r", "Why the machine stopped: see the causes."),
    ("ERROR_PC", "r", "Byte offset in the program of the instruction that failed."),
    ("PROG_BASE", "rw", "Byte address of the program; a multiple of 64."),
    ("PROG_BYTES", "rw", "Size of the program; fetching past it is an error."),
    ("READ_BASE", "rw", "First byte that LOAD and PATCH may read."),
    ("READ_LIMIT", "rw", "First byte that they may not."),
    ("WRITE_BASE", "rw", "First byte that STORE may write."),
    ("WRITE_LIMIT", "rw", "First byte that it may not."),
    ("WATCHDOG", "rw", "Cycles without any progress after which the machine stops; 0: never."),
    ("IRQ_ENABLE", "rw", "Bit 0: raise the interrupt when done or stopped."),
    ("LAYER", "r", "Layer of the last MARK."),
    ("PROFILE_ADDR", "rw", "Entry of the profile memory: layer * 32 + counter."),
    ("PROFILE_LO", "r", "Low half of that entry, two cycles after the address was written."),
    ("PROFILE_HI", "r", "High half."),
]
COUNTERS_AT = 0x100
"""Byte offset of the first counter."""
REGISTERS = tuple(Register(name, 4 * i, access, doc) for i, (name, access, doc) in enumerate(_REGISTERS)) + tuple(
    Register(f"{c.name}_{half}", COUNTERS_AT + 8 * c + 4 * (half == "HI"), "r",
             f"Counter, {half.lower()} half: {COUNTER_DOC[c]}.")
    for c in Counter for half in ("LO", "HI"))
ADDR = {r.name: r.addr for r in REGISTERS}
"""Byte offset of each register by name."""
ADDR_BITS = 12
ID_VALUE = 0x49524553


def manual() -> str:
    """The register manual, in Markdown."""
    out = ["# Registers", "", "32 bits each, on AXI4-Lite; other addresses read 0 and ignore writes.", "",
           "| offset | name | access | meaning |", "|---|---|---|---|"]
    out += [f"| {r.addr:#05x} | `{r.name}` | {r.access} | {r.doc} |" for r in REGISTERS]
    out += ["", "## Causes", "", "| value | name | meaning |", "|---|---|---|"]
    out += [f"| {c.value} | `{c.name}` | {CAUSE_DOC[c]} |" for c in Cause]
    return "\n".join(out) + "\n"
