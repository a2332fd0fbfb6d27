"""What the accelerator refuses, whatever its size: each check returns the reason, or None where the layer is taken.

The proofs are over values, not over widths: a convolution's accumulators are bounded by its own weights, channel by channel.
"""

import numpy as np

from seriatim.compiler.ir import INT32, Conv, Layer, MaxPool, Requant, SumPool, log_parts
from seriatim.formats import Format, Kind, residue_factor

MAX_READ_BITS = 8
"""Most planes of activations, and of weights, that the array multiplies (a pool's sum multiplies by one)."""
INT48 = -(1 << 47), (1 << 47) - 1
INT64 = -(1 << 63), (1 << 63) - 1


def refusal(layer: Layer) -> str | None:
    """Why the accelerator cannot run `layer`, or None."""
    reason = _formats(layer)
    if reason or isinstance(layer, MaxPool):
        return reason
    if isinstance(layer, Conv):
        reason = _weights(layer)
        if layer.requant.per_position:
            reason = reason or "requantisation that differs by position: only sums of a pool have it; use one m for each channel"
        if reason:
            return reason
    if layer.drop and layer.x_read.zero:
        return f"{layer.drop} low bits of sums are left out, where the zero point of {layer.x_read} is not yet taken off; use 0"
    low, high = acc_range(layer)
    least, most = INT32 if linear(layer) else INT48
    if low.min() < least or high.max() > most:
        worst = int(max(-low.min(), high.max()))
        bits = most.bit_length() + 1
        return f"accumulators may reach {worst}, beyond {bits} bits; use fewer bits, or fewer channels in a group"
    low, high = low >> layer.drop, high >> layer.drop
    if low.min() < INT32[0] or high.max() > INT32[1]:
        worst = int(max(-low.min(), high.max()))
        return f"accumulators without {layer.drop} low bits may reach {worst}, beyond 32 bits; leave out more"
    return _thresholds(layer.requant, layer) or _requant(layer.requant, low, high, layer)


def linear(layer: Conv | SumPool) -> bool:
    """Whether the layer's products are those of linear codes."""
    return layer.x_read.linear and (isinstance(layer, SumPool) or layer.w_format.linear)


def _formats(layer: Layer) -> str | None:
    for role, fmt in (("input", layer.x.format), ("output", layer.out.format)):
        if fmt and fmt.kind is Kind.LOG and fmt.signed:
            return f"{role} in format {fmt}: activations in log codes have no sign; use log{fmt.bits}r{fmt.residues}"
    if layer.x.format and layer.x.format.kind is Kind.CODEBOOK and not isinstance(layer, MaxPool):
        return f"input in format {layer.x.format}: no engine takes activations of a codebook; use log, uint or int"
    res = layer.res if isinstance(layer, Conv) else None
    if res and not res.format.linear:
        return f"residual in format {res.format}: residuals are linear; use uint or int"
    if not isinstance(layer, MaxPool) and layer.x_read.bits > MAX_READ_BITS:
        return f"input read as {layer.x_read}: the array takes at most {MAX_READ_BITS} bits; read fewer top planes"
    if isinstance(layer, Conv) and layer.w_format.bits > MAX_READ_BITS:
        return f"weights in {layer.w_format}: the array takes at most {MAX_READ_BITS} bits"
    if layer.x.format is None:
        return "input of 32-bit words; requantise it to 16 bits or fewer"
    return None


def values_of(fmt: Format) -> tuple[int, int]:
    """Smallest and largest value of a format, in units of its scale."""
    return (fmt.min_value, fmt.max_value) if fmt.linear else (min(fmt.values), max(fmt.values))


def _weights(layer: Conv) -> str | None:
    w, fmt = layer.w, layer.w_format
    if fmt.kind is Kind.CODEBOOK:
        most = max(len(np.unique(channel)) for channel in w)
        return f"{most} different weights in a channel: {fmt} holds {1 << fmt.bits}" if most > 1 << fmt.bits else None
    if fmt.kind is Kind.LOG:
        foreign = ~np.isin(w, fmt.values)
        return f"weight {int(w[foreign][0])} is no value of {fmt}; declare the format that it has" if foreign.any() else None
    low, high = values_of(fmt)
    outside = (w < low) | (w > high)
    if fmt.kind is Kind.BIPOLAR:
        outside |= w % 2 == 0
    if outside.any():
        odd = "odd values, " if fmt.kind is Kind.BIPOLAR else ""
        return f"weight {int(w[outside][0])} is no value of {fmt}: it holds {odd}{low} to {high}; declare a wider format"
    return None


def acc_range(layer: Conv | SumPool) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest accumulator of each output channel, for any codes that the input's format can hold."""
    low, high = values_of(layer.x_read)
    if any(layer.padding):
        low, high = min(low, 0), max(high, 0)
    if isinstance(layer, SumPool):
        channels = np.ones(layer.out.shape[1], np.int64)
        return layer.k * low * channels, layer.k * high * channels
    w = layer.w.astype(np.int64)
    if layer.x_read.kind is layer.w_format.kind is Kind.LOG:  # exponents add up: the largest code has the largest products
        w, low, high = largest_products(layer), 0, 1
    positive, negative = np.maximum(w, 0).sum(axis=(1, 2, 3)), np.minimum(w, 0).sum(axis=(1, 2, 3))
    return positive * low + negative * high, positive * high + negative * low


def largest_products(layer: Conv) -> np.ndarray:
    """The product of each weight with the largest log code, int64."""
    residues = max(layer.x_read.residues, layer.w_format.residues)
    x, x_class = log_parts(np.array(max(layer.x_read.values)), layer.x_read, residues)
    w, w_class = log_parts(layer.w, layer.w_format, residues)
    octave, residue = np.divmod(x_class + w_class, residues)
    return w * x * np.array([residue_factor(i, residues) for i in range(residues)])[residue] << octave


def _thresholds(q: Requant, layer: Layer) -> str | None:
    out, t = layer.out, q.thresholds
    if t is None:
        return None if out.format is None or out.format.linear else f"output in format {out.format} without thresholds"
    if (np.diff(t.astype(np.int64)) < 0).any():
        return "thresholds that descend; sort them"
    if out.format is None or len(t) > out.hi:
        return f"{len(t)} thresholds: its reader takes {out.format or 'int32'}, {out.hi} at most; declare them alike"
    return None


def _requant(q: Requant, low: np.ndarray, high: np.ndarray, layer: Layer) -> str | None:
    if not 0 <= q.shift <= 63:
        return f"shift {q.shift}: it is 0 to 63"
    if not INT32[0] <= q.m2 <= INT32[1]:
        return f"residual multiplier {q.m2}: it is a signed 32-bit number; use a smaller shift"
    if q.lo > q.hi:
        return f"clip to {q.lo}..{q.hi}: lo is above hi"
    out = layer.out
    if q.thresholds is None and (q.lo < out.lo or q.hi > out.hi):
        return f"clip to {q.lo}..{q.hi}: its reader takes {out.format or 'int32'}, {out.lo} to {out.hi}; declare them alike"
    shape = (-1, 1, 1) if q.per_position else (-1,)
    products = [q.m.astype(object) * edge.astype(object).reshape(shape) for edge in (low, high)]
    res = getattr(layer, "res", None)
    if res is not None and res.format.kind is Kind.BIPOLAR and not INT32[0] <= 2 * q.m2 <= INT32[1]:
        return f"residual multiplier {q.m2} of {res.format}: its codes count double, in 32 bits; use a smaller shift"
    added = [q.m2 * value for value in values_of(res.format)] if res is not None else [0]
    smallest = (np.minimum(*products) + min(added) + q.b.astype(object)).min()
    largest = (np.maximum(*products) + max(added) + q.b.astype(object)).max()
    if smallest < INT64[0] or largest > INT64[1]:
        return f"m * acc + m2 * res + b may reach {max(-smallest, largest)}, beyond 64 bits; use smaller multipliers and shift"
    return None
