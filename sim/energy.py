"""Energy of a run: events, counted by the machine, times an energy for each, taken from published figures at 45 nm.

Every entry has its source and a range. What is counted: the array, requantisation, pooling, the on-chip buffers, and the bits
that cross the AXI bus to DRAM. What is not: leakage, the clock tree outside the array, instruction decoding, the line memories of
the patch builder, AXI itself. The power of an FPGA is not estimated: no open estimator of iCE40 or ECP5 is known.
`docs/energy.md` has the table of the default machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from seriatim.config import Config
from seriatim.csr import ACTIVITY_COUNTERS, Counter

Counts = dict[Counter, int]

DRAM_PJ_PER_BIT = 8.0
DRAM_SOURCE = "LPDDR4: 8 pJ a bit (DDR3 70, HBM2 3.9)"
MULTIPLY_32_PJ, ADD_32_PJ, ADD_8_PJ = 3.1, 0.1, 0.03
HOROWITZ = "Horowitz, ISSCC 2014, 45 nm, 0.9 V"
CACTI = {1: (0.79, 1.44), 8: (3.2, 3.2), 32: (7.2, 5.6), 128: (15.5, 10.5), 1024: (42.0, 30.0)}
"""KiB of a memory -> pJ of a 64-bit read and write: CACTI 7, 45 nm LOP."""
CACTI_SOURCE = "CACTI 7, 45 nm LOP: 64-bit access, interpolated by size, in proportion to width"
SRAM_RANGE = 0.7, 3.1
"""Of CACTI's figure. Above: Horowitz's SRAM (10, 20, 100 pJ at 8 KiB, 32 KiB, 1 MiB) is 2.4 to 3.1 times it. Below: by choice."""

MEASURED_PJ = 0.030
"""A binary multiply-accumulate of the array with W1A8 half-normal activations: 4x4x64, Nangate45, synthesised, before layout, by
gate-level simulation with delays. Accumulators, operand registers and their clock are in it."""
HALF_OVER_TENTH = 2.01
"""The same array with half of the activations' bits ones, as a multiple of that with a tenth: a figure for operations alone that
is right at 50 % was found 101 % too large at 10 %."""
ARRAY_RANGE = 0.5, 1.5
"""A fit of operations, flips and ones to 19 measured workloads was off by 8.5 % on average and by 41 % at most. The constants
here rest on three of those workloads, and on an assumption."""
ARRAY_SOURCE = ("measured on a 4x4x64 array, Nangate45, before layout: 30 fJ a binary MAC with half-normal W1A8 data, at 50 % "
                "ones 2.01 times that at 10 %; split by least norm")


@dataclass(frozen=True)
class ArrayEnergy:
    """pJ of each binary multiply-accumulate, of each AND that gives a one, and of each AND input that changes."""

    step: float
    one: float
    flip: float


def half_normal_planes(bits: int = 8, sigmas: float = 3.0) -> np.ndarray:
    """Share of ones in each plane of |x|, x normal, in `bits` bits over `sigmas` standard deviations, least significant first."""
    edges = [math.erf(max(code - 0.5, 0.0) / ((1 << bits) - 1) * sigmas / math.sqrt(2)) for code in range(1 << bits)] + [1.0]
    codes = np.arange(1 << bits)
    return np.array([np.diff(edges)[codes >> bit & 1 == 1].sum() for bit in range(bits)])


def _features(planes: np.ndarray, weight: float = 0.5) -> np.ndarray:
    """(steps, ones, flips of AND inputs) for each binary multiply-accumulate of random words, `planes` and `weight` being their
    shares of ones: consecutive words are independent, so that a bit changes with probability 2p(1 - p)."""
    return np.array([1.0, (planes * weight).mean(), (2 * planes * (1 - planes) + 2 * weight * (1 - weight)).mean()])


@cache
def array_energy() -> ArrayEnergy:
    """Constants that meet both measurements exactly. Two equations leave one of three constants open: of all solutions that one
    is taken whose shares of the energy at 50 % ones have the least sum of squares; every share is then positive."""
    half, tenth, measured = (_features(np.asarray(p)) for p in ([0.5], [0.1], half_normal_planes()))
    shares = np.linalg.lstsq(np.stack([half, tenth]) / half, [1.0, 1 / HALF_OVER_TENTH], rcond=None)[0]
    scale = MEASURED_PJ / (shares / half @ measured)
    return ArrayEnergy(*map(float, scale * shares / half))


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
    kib = words * bits / 8192
    upper = min(max(sum(size <= kib for size in sizes), 1), len(sizes) - 1)
    (s0, e0), (s1, e1) = ((sizes[i], CACTI[sizes[i]][write]) for i in (upper - 1, upper))
    slope = math.log(e1 / e0) / math.log(s1 / s0)
    return e0 * (kib / s0) ** slope * bits / 64


def events(config: Config) -> tuple[Event, ...]:
    """The table for one machine."""
    c, array = config, array_energy()
    n = Counter

    def array_event(name, unit, pj, count) -> Event:
        return Event(f"array_{name}", unit, pj, *ARRAY_RANGE, ARRAY_SOURCE, count)

    def sram(name, words, bits, write, count) -> Event:
        unit = f"word of a {words} x {bits} bit bank, {words * bits / 8192:.1f} KiB"
        pj = sram_pj(words, bits, write)
        return Event(f"{name}_{'write' if write else 'read'}", unit, pj, *SRAM_RANGE, CACTI_SOURCE, count)

    act, wgt, prm = (c.act_words, c.k + 1), (c.wgt_words, c.k), (c.prm_words, 96)
    res, out, psum = (c.res_words, c.k), (c.out_words, c.k), (c.psum_words, c.acc_bits)
    shift_add = (
        Event("shift_add", "multiply-accumulate", 2 * ADD_32_PJ * c.acc_bits / 32, 0.5, 3.0,
              f"an addition of {c.acc_bits} bits, {HOROWITZ}, in proportion to width, and a shift, by assumption as much again",
              lambda k: k[n.SHIFT_STEPS] * c.shift_peak),
    ) if c.shift_lanes else ()

    def shift(k: Counts, counter: Counter) -> int:
        """A counter of the shift-add array, which only a machine that has one needs."""
        return k[counter] if c.shift_lanes else 0

    def steps(k: Counts) -> int:
        """Steps of the bit-serial array: each reads an act and a wgt word."""
        return k[n.ARRAY_STEPS] - shift(k, n.SHIFT_STEPS)

    return (
        array_event("steps", "binary MAC", array.step, lambda k: steps(k) * c.peak),
        array_event("ones", "one of act AND wgt", array.one, lambda k: k[n.ARRAY_ONES]),
        array_event("flips", "changed AND input", array.flip, lambda k: k[n.ACT_FLIPS] * c.n + k[n.WGT_FLIPS] * c.m),
        *shift_add,
        Event("requant", "result", 2 * MULTIPLY_32_PJ + 2 * ADD_32_PJ, 0.5, 1.5,
              f"two 32-bit multiplications and a 64-bit addition, {HOROWITZ}", lambda k: k[n.REQUANTS] * c.n),
        Event("pool", "compared bit", ADD_8_PJ / 8, 0.5, 2.0, f"an eighth of an 8-bit addition, {HOROWITZ}",
              lambda k: k[n.POOL_STEPS] * c.m * c.k),
        sram("act", *act, False, lambda k: (steps(k) + shift(k, n.SHIFT_ACT_READS) + k[n.POOL_STEPS]) * c.m),
        sram("act", *act, True, lambda k: k[n.ACT_WRITES]),
        sram("wgt", *wgt, False, lambda k: (steps(k) + shift(k, n.SHIFT_WGT_READS)) * c.n),
        sram("wgt", *wgt, True, lambda k: k[n.WGT_WRITES]),
        sram("prm", *prm, False, lambda k: k[n.REQUANTS] // c.m * c.n),
        sram("prm", *prm, True, lambda k: k[n.PRM_WRITES]),
        sram("res", *res, False, lambda k: k[n.RES_READS] * c.m),
        sram("res", *res, True, lambda k: k[n.RES_WRITES]),
        sram("out", *out, False, lambda k: k[n.WRITE_BEATS] * c.axi_bits // c.k * c.m),
        sram("out", *out, True, lambda k: k[n.OUT_WRITES] * c.m),
        sram("psum", *psum, False, lambda k: k[n.PSUM_READS] * c.n),
        sram("psum", *psum, True, lambda k: k[n.PSUM_WRITES] * c.n),
        Event("dram", "bit", DRAM_PJ_PER_BIT, 0.5, 2.0, DRAM_SOURCE,
              lambda k: (k[n.READ_BEATS] + k[n.WRITE_BEATS]) * c.axi_bits),
    )


def simulation_only(config: Config) -> list[str]:
    """Names of the events that take a counter of the simulation build."""
    nothing = dict.fromkeys(Counter, 0)
    return [event.name for event in events(config) if any(event.count(nothing | {c: 1}) for c in ACTIVITY_COUNTERS)]


def by_event(config: Config, counts: Counts) -> dict[str, float]:
    """Event -> microjoules."""
    return {event.name: round(event.count(counts) * event.pj / 1e6, 6) for event in events(config)}


def counts_all(config: Config, level: str) -> bool:
    """Whether the machine at that level of a report counts what `simulation_only` names."""
    return level == "isa" or (level == "rtl" and not config.compact)


def table(config: Config, counts: Counts, complete: bool = True) -> dict:
    """`energy_uj` of a report's totals: microjoules by event and in all; `error` is the range (least, greatest), in them too;
    `simulation_only`: see there; `complete`: whether the machine counts those as well, else the total is too low."""
    rows = {}
    for event in events(config):
        count = event.count(counts)
        uj = count * event.pj / 1e6
        rows[event.name] = {
            "count": count, "unit": event.unit, "pj_each": round(event.pj, 6), "uj": round(uj, 6),
            "error": [round(uj * event.low, 6), round(uj * event.high, 6)], "source": event.source,
        }
    return {"total": round(sum(row["uj"] for row in rows.values()), 6),
            "error": [round(sum(row["error"][i] for row in rows.values()), 6) for i in (0, 1)], "events": rows,
            "simulation_only": simulation_only(config), "complete": complete}


def manual(config: Config) -> str:
    """The table of a machine, in Markdown."""
    head = ["| event | one of it is | pJ | range | source |", "|---|---|---|---|---|"]
    return "\n".join(head + [f"| `{e.name}` | {e.unit} | {e.pj:.3g} | {e.low:g} to {e.high:g} times | {e.source} |"
                             for e in events(config)]) + "\n"
