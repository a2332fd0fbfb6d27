"""What the shift-add engine computes, plainly: codes to classes of shifted values, products, sums."""

import numpy as np

from seriatim import isa
from seriatim.config import Config
from seriatim.formats import Kind, residue_factor


def wrap(values, bits: int) -> np.ndarray:
    """int64 values modulo 2^bits, as signed numbers."""
    half = np.int64(1) << np.int64(bits - 1)
    return ((values + half) & ((half << np.int64(1)) - np.int64(1))) - half


def by_planes(f) -> bool:
    """Whether activations are taken a plane at a time: linear ones with weights from the table."""
    return f["w_kind"] == Kind.CODEBOOK and f["a_kind"] != Kind.LOG


def word_steps(f, form) -> int:
    """Steps for a pass over a pair of words."""
    return max(form["slices"], f["a_bits"], f["w_bits"])


def steps(f, form) -> int:
    """Steps for a pair of words."""
    return word_steps(f, form) * (f["a_bits"] if by_planes(f) else 1)


def largest_shift(f, form, config: Config) -> int:
    """Octaves of the largest product, from the widths and steps."""
    k = (f["a_bits"] - 1) * config.shift_classes if by_planes(f) else 0
    for side in "aw":
        if f[f"{side}_kind"] == Kind.LOG:
            magnitudes = 1 << f[f"{side}_bits"] - form[f"{side}_signed"]
            k += form[f"{side}_step"] * max(0, magnitudes - 2)
    return k // config.shift_classes


def refusal(f, form, config: Config) -> str | None:
    """Why this machine's engine cannot execute the CONV `f` under the FORMAT `form`, or None."""
    if f["engine"] != isa.Engine.SHIFT_ADD or not config.shift_lanes:
        return f"engine {f['engine']}: this machine has none"
    a, w = f["a_kind"], f["w_kind"]
    if a not in (Kind.UINT, Kind.INT, Kind.LOG) or w not in (Kind.UINT, Kind.INT, Kind.LOG, Kind.CODEBOOK):
        return f"the shift-add engine with formats {a}, {w}"
    if a != Kind.LOG and w not in (Kind.LOG, Kind.CODEBOOK):
        return f"the shift-add engine with formats {a}, {w}: one must be log, or the weights a codebook"
    for side, most in (("a", config.shift_a_bits), ("w", config.shift_w_bits)):
        if f[f"{side}_bits"] > most:
            return f"{side}_bits = {f[f'{side}_bits']}: the shift-add engine has {most} planes"
        if f[f"{side}_kind"] == Kind.LOG and f[f"{side}_bits"] - form[f"{side}_signed"] > isa.LOG_BITS:
            return f"{side}_bits = {f[f'{side}_bits']}: log codes have {isa.LOG_BITS} bits, the sign apart"
    span = largest_shift(f, form, config)
    return f"a shift by {span} octaves: the engine shifts by {config.shift_span}" if span > config.shift_span else None


def _classes(planes: np.ndarray, kind: int, signed: int, step: int, table: np.ndarray, classes: int) -> dict[int, np.ndarray]:
    """Shifted values (int64) of codes whose planes (MSB first) are the first axis, by residue class."""
    bits = len(planes)
    code = np.tensordot(1 << np.arange(bits - 1, -1, -1), planes.astype(np.int64), axes=1)
    top = code >> (bits - 1)
    if kind == Kind.UINT:
        return {0: code}
    if kind == Kind.INT:
        return {0: code - (top << bits)}
    if kind == Kind.CODEBOOK:
        return {0: np.where(code < len(table), table[code % len(table)], 0)}
    sign = top if signed else np.zeros_like(code)
    code = code - (sign << (bits - 1))
    k = step * np.maximum(code - 1, 0)
    value = np.where(code > 0, (1 - 2 * sign) << k // classes, 0)
    return {i: np.where(k % classes == i, value, 0) for i in np.unique(k % classes).tolist()}


def _product(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """a @ w.T modulo 2^64: in float64 where that is exact."""
    bound = float(np.abs(a).max(initial=0)) * float(np.abs(w).sum(axis=1, dtype=np.float64).max(initial=0))
    if bound < 2.0 ** 53:
        return (a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int64)
    return a @ w.T


def sums(act: np.ndarray, wgt: np.ndarray, f, form, table: np.ndarray, config: Config) -> np.ndarray:
    """Sums (positions, columns), modulo 2^acc_bits, of products over the last axis of act planes (plane, positions, lanes) and
    wgt planes (plane, columns, lanes)."""
    classes = config.shift_classes
    acts = _classes(act, f["a_kind"], form["a_signed"], form["a_step"], table, classes)
    wgts = _classes(wgt, f["w_kind"], form["w_signed"], form["w_step"], table, classes)
    total = np.zeros((act.shape[1], wgt.shape[1]), np.int64)
    for i, a in acts.items():
        for j, w in wgts.items():
            octave, residue = divmod(i + j, classes)
            factor = residue_factor(residue, classes) if form["scaled"] else 1
            total += _product(a, w) * np.int64(factor << octave)
    return wrap(total, config.acc_bits)
