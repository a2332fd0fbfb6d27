"""Which engine runs a layer, and with which codes: `candidates` says what formats and machine allow, `cheaper` chooses."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from seriatim.compiler import ir, legal
from seriatim.compiler.program import LayerInfo
from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.errors import CompileError
from seriatim.formats import Format, Kind
from seriatim.isa import TABLE_PART, THRESHOLDS, Engine, Table
from seriatim.sim import energy, shiftadd

MAX_WEIGHT_BITS = 9
"""Planes of weights that the bit-serial engine takes."""
NAMES = {Engine.BIT_SERIAL: "bit-serial", Engine.SHIFT_ADD: "shift-add"}
VALUE_BITS = 16
"""Of an entry of the table of weights."""


@dataclass
class Codes:
    """Weights as an engine takes them.

    Members
    -------
    kind, bits : of the codes as stored.
    codes : of every weight, uint16, 0 for lanes outside; where there is a `lut`, its indices.
    steps, passes : for a pair of words; the passes over the weights among them.
    values : entries of the table VALUES. form : fields of FORMAT that the engine needs.
    """

    engine: Engine
    kind: Kind
    bits: int
    codes: np.ndarray
    steps: int
    passes: int = 1
    lut: np.ndarray | None = None
    values: tuple[int, ...] = ()
    form: dict = field(default_factory=dict)
    reason: str = ""


def candidates(name: str, w: np.ndarray, w_format: Format, read: Format, zeros: bool, lanes: int, bound: int,
               config: Config) -> list[Codes]:
    """The engines that can run a layer, one or two; of one alone the reason is why the other cannot.

    `w` are values; `zeros`: lanes outside must hold the value 0; `lanes` of a word are used at most; `bound` is the largest
    accumulator. Raises CompileError with the reason of each engine where neither can.
    """
    found, refused = [], []
    for make in (_bit_serial, _shift_add):
        try:
            found.append(make(w, w_format, read, zeros, lanes, bound, config))
        except CompileError as error:
            refused.append(str(error))
    if not found:
        raise CompileError(f"{name}: " + "; ".join(refused))
    if refused:
        found[0].reason = refused[0]
    return found


def cheaper(found: list[Codes], alone: Callable[[Codes], LayerInfo], config: Config) -> Codes:
    """Of the engines that can run a layer the one of fewer cycles, and of equal ones that of less energy. `alone(codes)` is the
    layer in a program of its own, with the cycles that the model foretells."""
    if len(found) == 1:
        return found[0]
    costs = []
    for codes in found:
        info = alone(codes)
        uj = round(sum(energy.by_event(config, expected(codes, info, config)).values()), 3)
        costs.append((info.cycles, uj))
    best = min((0, 1), key=lambda i: costs[i])
    (cycles, uj), (more, others) = costs[best], costs[1 - best]
    other = NAMES[found[1 - best].engine]
    found[best].reason = (f"{cycles:,} cycles predicted, {other} {more:,}" if cycles < more else
                          f"{uj} µJ expected, {other} {others}, in as many cycles")
    return found[best]


def expected(codes: Codes, info: LayerInfo, config: Config) -> dict[Counter, int]:
    """Counters of a layer as far as its engine makes a difference, from the number of its steps; every second bit is a one, and
    words follow each other at random."""
    counts = dict.fromkeys(Counter, 0)
    counts |= {Counter.ARRAY_STEPS: info.steps, Counter.READ_BEATS: info.wgt_bytes // config.axi_bytes}
    if codes.engine is Engine.BIT_SERIAL:
        return counts | {Counter.ARRAY_ONES: info.steps * config.peak // 4,
                         Counter.ACT_FLIPS: info.steps * config.m * config.k // 2,
                         Counter.WGT_FLIPS: info.steps * config.n * config.k // 2}
    words = info.steps // codes.steps
    return counts | {Counter.SHIFT_STEPS: info.steps, Counter.SHIFT_ACT_READS: words * info.a,
                     Counter.SHIFT_WGT_READS: words * codes.bits * codes.passes}


def _bit_serial(w, w_format: Format, read: Format, zeros, lanes: int, bound: int, config: Config) -> Codes:
    if not read.linear:
        raise CompileError(f"the bit-serial engine takes linear activations, not {read}")
    if bound >= 1 << 31:
        raise CompileError(f"accumulators up to {bound}: the bit-serial engine has 32 bits")
    kind, bits, codes = bit_serial_codes(w, w_format, zeros)
    return Codes(Engine.BIT_SERIAL, kind, bits, codes, read.bits * bits)


def bit_serial_codes(w: np.ndarray, fmt: Format, zeros: bool) -> tuple[Kind, int, np.ndarray]:
    """Kind, bits and codes of weights in linear codes. `zeros`: lanes outside hold code 0, which must be the value 0."""
    if fmt.kind is Kind.BIPOLAR and not zeros:
        return Kind.BIPOLAR, fmt.bits, (w + (1 << fmt.bits) - 1 >> 1).astype(np.uint16)
    if fmt.kind is Kind.UINT and not fmt.zero:
        return Kind.UINT, fmt.bits, w.astype(np.uint16)
    if fmt.kind is Kind.INT:
        bits = fmt.bits
    else:
        reach = max(int(w.max(initial=0)), -int(w.min(initial=0)) - 1)
        bits = max(fmt.bits + 1 if fmt.kind is Kind.BIPOLAR else 1, reach.bit_length() + 1)
    if bits > MAX_WEIGHT_BITS:
        raise CompileError(f"weights {fmt} take {bits} planes as int, {MAX_WEIGHT_BITS} at most; use fewer bits")
    return Kind.INT, bits, (w & (1 << bits) - 1).astype(np.uint16)


def _shift_add(w, w_format: Format, read: Format, zeros, lanes: int, bound: int, config: Config) -> Codes:
    if read.linear and w_format.linear:
        raise CompileError("the shift-add engine takes log or codebook formats")
    if not config.shift_lanes:
        raise CompileError(f"activations {read} with weights {w_format} need the shift-add engine, which this machine has not")
    if bound >= 1 << config.shift_acc_bits - 1:
        raise CompileError(f"accumulators up to {bound}: the shift-add engine has {config.shift_acc_bits} bits")
    residues = max(read.residues, w_format.residues)
    if residues > config.shift_classes:
        raise CompileError(f"{residues} residue classes: the shift-add engine has {config.shift_classes}")
    finer = config.shift_classes
    form = {"a_signed": int(read.signed), "w_signed": int(w_format.signed), "scaled": int(residues > 1),
            "a_step": read.step * finer // read.residues if read.kind is Kind.LOG else 1,
            "w_step": w_format.step * finer // w_format.residues if w_format.kind is Kind.LOG else 1}
    if w_format.kind is Kind.LOG:
        kind, bits = Kind.LOG, w_format.bits
        code = np.searchsorted(w_format.magnitudes, np.abs(w))
        codes, lut, values = (code | (w < 0).astype(np.int64) << bits - 1).astype(np.uint16), None, ()
    elif w_format.kind is Kind.CODEBOOK:
        kind, bits, codes, lut, values = _codebook(w, w_format, zeros)
    else:
        kind, bits, codes = bit_serial_codes(w, w_format, zeros=True)
        lut, values = None, ()
    fields = {"engine": Engine.SHIFT_ADD, "a_kind": read.kind, "w_kind": kind, "a_bits": read.bits, "w_bits": bits}
    form["slices"] = -(-lanes // config.shift_lanes)
    reason = shiftadd.refusal(fields, form, config)
    if reason:
        raise CompileError(reason)
    passes = read.bits if shiftadd.by_planes(fields) else 1
    return Codes(Engine.SHIFT_ADD, kind, bits, codes, shiftadd.steps(fields, form), passes, lut, values, form)


def _codebook(w: np.ndarray, fmt: Format, zeros: bool):
    """Kind, bits, codes, what they stand for and the table of weights with few different values."""
    values = np.unique(w)
    most = 1 << VALUE_BITS - 1
    if values[0] < -most or values[-1] >= most:
        raise CompileError(f"weights of {values[0]} to {values[-1]}: the shift-add engine's table has {VALUE_BITS} bits an entry")
    if len(values) > 2 * TABLE_PART:
        raise CompileError(f"{len(values)} different weights: the shift-add engine's table has {2 * TABLE_PART} entries")
    nothing = int(np.searchsorted(values, 0)) if 0 in values else len(values)  # a code from 16 on, or an entry that stays 0
    bits = max(1, (max(len(values) - 1, nothing if zeros else 0)).bit_length())
    lut = np.array([nothing if nothing < 1 << bits else 0, *range(len(values))], np.uint16)
    return Kind.CODEBOOK, bits, (np.searchsorted(values, w) + 1).astype(np.uint16), lut, tuple(values.tolist())


def settings(codes: Codes, layer: ir.Conv | ir.SumPool) -> list[tuple[str, dict]]:
    """The FORMAT and TABLE instructions that a layer's executes need; a FORMAT without fields is that of the start."""
    thresholds = layer.requant.thresholds
    made = [("FORMAT", codes.form | ({"drop": layer.drop} if layer.drop else {}))]
    tables = {Table.VALUES: codes.values, Table.THRESHOLDS: () if thresholds is None else thresholds.tolist()}
    for table, entries in tables.items():
        rest = 0 if table == Table.VALUES else (1 << 31) - 1
        for half in range(2 if len(entries) else 0):
            part = [*entries, *[rest] * (2 * TABLE_PART)][half * TABLE_PART:(half + 1) * TABLE_PART]
            made.append(("TABLE", dict(table=table, half=half) | {f"entry_{i}": int(v) for i, v in enumerate(part)}))
    return made


def greatest(name: str, layer, config: Config) -> int:
    """The upper bound of what is compared with a layer's thresholds. Raises CompileError where they are not for this machine.

    Thresholds that the layer does not have are 2^31 - 1. Where the others fill the output's planes, those count with its
    greatest code alone, which they do not change; otherwise they must be out of reach.
    """
    thresholds, most = layer.requant.thresholds, (1 << 31) - 1
    if not config.shift_lanes:
        raise CompileError(f"{name}: output by a table of thresholds needs the shift-add engine, which this machine has not")
    if len(thresholds) > THRESHOLDS:
        raise CompileError(f"{name}: {len(thresholds)} thresholds: this machine has {THRESHOLDS}; use fewer bits")
    if len(thresholds) + 1 == 1 << layer.out.format.bits:
        return most
    if max(thresholds, default=0) == most:
        raise CompileError(f"{name}: {len(thresholds)} thresholds, one of them {most}: a number of 2^b - 1 may have it")
    return most - 1


def check_drop(layer: ir.Conv | ir.SumPool, config: Config) -> None:
    """Raises CompileError where this machine cannot leave out a sum's lowest bits."""
    if layer.drop and not config.shift_lanes:
        raise CompileError(f"{layer.name}: sums without {layer.drop} low bits need the shift-add engine; there is none")


def bound_of(layer: ir.Conv | ir.SumPool) -> int:
    """The largest magnitude of an accumulator."""
    low, high = legal.acc_range(layer)
    return int(max(-low.min(), high.max()))
