"""Energy of a run: events, counted by the machine, times an energy for each, taken from published figures at 45 nm.

Every entry has its source and a range. What is counted: the array, requantisation, pooling, the on-chip buffers, and the bits
that cross the AXI bus to DRAM. What is not: leakage, the clock tree outside the array, instruction decoding, the line memories of
the patch builder, AXI itself. The power of an FPGA is not estimated: no open estimator of iCE40 or ECP5 is known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from seriatim.config import Config
from seriatim.csr import Counter

Counts = dict[Counter, int]

DRAM_PJ_PER_BIT = 8.0
DRAM_SOURCE = "LPDDR4, 8 pJ a bit (DDR3 70, HBM2 3.9)"
MULTIPLY_32_PJ, ADD_32_PJ, ADD_8_PJ = 3.1, 0.1, 0.03
HOROWITZ = "Horowitz, ISSCC 2014, 45 nm, 0.9 V"
CACTI = {1: (0.79, 1.44), 8: (3.2, 3.2), 32: (7.2, 5.6), 128: (15.5, 10.5), 1024: (42.0, 30.0)}
"""KiB of a memory -> pJ of a 64-bit read and write: CACTI 7, 45 nm LOP."""
CACTI_SOURCE = "CACTI 7, 45 nm LOP, 64-bit access, interpolated by size, proportional to width"
SRAM_RANGE = 0.7, 3.1
"""Of CACTI's figure. Above: Horowitz's SRAM (10, 20, 100 pJ at 8 KiB, 32 KiB, 1 MiB) is 2.4 to 3.1 times it. Below: banks much
narrower or shallower than those of the table."""
ARRAY_PJ = 0.030
ARRAY_SOURCE = "synthesised 4x4x64 array, Nangate45, before layout, W1A8 on half-normal activations: 30 fJ a binary MAC"


@dataclass(frozen=True)
class Event:
    """`count(counters)` events of `pj` picojoules each, between `low` and `high` times that; `unit` says what one is."""

    name: str
    unit: str
    pj: float
    low: float
    high: float
    source: str
    count: Callable[[Counts], int]


def sram_pj(words: int, bits: int, write: bool = False) -> float:
    """pJ of one access to a memory of `words` x `bits`: between (log-log), or beyond, CACTI's sizes."""
    sizes = list(CACTI)
    at = words * bits / 8192
    upper = min(max(sum(size <= at for size in sizes), 1), len(sizes) - 1)
    (s0, e0), (s1, e1) = ((sizes[i], CACTI[sizes[i]][write]) for i in (upper - 1, upper))
    slope = math.log(e1 / e0) / math.log(s1 / s0)
    return e0 * (at / s0) ** slope * bits / 64


def events(config: Config) -> tuple[Event, ...]:
    """The table for one machine."""
    c = config

    def sram(name, words, bits, banks, write, count) -> Event:
        kib = words * bits / 8192
        return Event(f"{name}_{'write' if write else 'read'}", f"bank of {words} x {bits} bits, {kib:.1f} KiB",
                     sram_pj(words, bits, write), *SRAM_RANGE, CACTI_SOURCE, lambda counts: banks * count(counts))

    return (
        Event("array", "binary MAC", ARRAY_PJ, 0.5, 1.5, ARRAY_SOURCE, lambda n: n[Counter.ARRAY_STEPS] * c.peak),
        Event("requant", "result", 2 * MULTIPLY_32_PJ + 2 * ADD_32_PJ, 0.5, 1.5,
              f"two 32-bit multiplications and a 64-bit addition, {HOROWITZ}", lambda n: n[Counter.REQUANTS] * c.n),
        Event("pool", "compared bit", ADD_8_PJ / 8, 0.5, 2.0, f"an eighth of an 8-bit addition, {HOROWITZ}",
              lambda n: n[Counter.POOL_STEPS] * c.m * c.k),
        sram("act", c.act_words, c.k + 1, c.m, False, lambda n: n[Counter.ARRAY_STEPS] + n[Counter.POOL_STEPS]),
        sram("wgt", c.wgt_words, c.k, c.n, False, lambda n: n[Counter.ARRAY_STEPS]),
        sram("prm", c.prm_words, 96, c.n, False, lambda n: n[Counter.REQUANTS] // c.m),
        sram("out", c.out_words, c.k, c.m, False, lambda n: n[Counter.WRITE_BEATS] * c.axi_bits // c.k),
        Event("dram", "bit", DRAM_PJ_PER_BIT, 0.5, 2.0, DRAM_SOURCE,
              lambda n: (n[Counter.READ_BEATS] + n[Counter.WRITE_BEATS]) * c.axi_bits),
    )


def by_event(config: Config, counts: Counts) -> dict[str, float]:
    """Event -> microjoules."""
    return {event.name: round(event.count(counts) * event.pj / 1e6, 6) for event in events(config)}


def table(config: Config, counts: Counts) -> dict:
    """`energy_uj` of a report's totals: microjoules by event and in all; `error` is the range (least, greatest), in them too."""
    rows = {}
    for event in events(config):
        count = event.count(counts)
        uj = count * event.pj / 1e6
        rows[event.name] = {
            "count": count, "unit": event.unit, "pj_each": round(event.pj, 6), "uj": round(uj, 6),
            "error": [round(uj * event.low, 6), round(uj * event.high, 6)], "source": event.source,
        }
    return {"total": round(sum(row["uj"] for row in rows.values()), 6),
            "error": [round(sum(row["error"][i] for row in rows.values()), 6) for i in (0, 1)], "events": rows}
