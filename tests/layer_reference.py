"""The random layers of `seriatim.sim.random_layers`, evaluated by the big-integer reference."""

import numpy as np
import reference

from seriatim.compiler import ir


def by_reference(case) -> np.ndarray:
    """The layer's output by the big-integer reference (int64, though no step computes in it)."""
    layer, x = case.layer, case.inputs["x"].tolist()
    if isinstance(layer, ir.MaxPool):
        out = reference.max_pool(x, str(layer.x.format), layer.kernel, layer.stride, layer.padding, layer.dilation)
        return np.array(out, np.int64)
    stored, bits = str(layer.x.format), layer.x_read.bits
    if isinstance(layer, ir.SumPool):
        acc = reference.sum_pool(x, stored, bits, layer.kernel, layer.stride, layer.padding)
    else:
        acc = reference.conv(x, stored, bits, layer.w.tolist(), layer.stride, layer.padding, layer.dilation, layer.groups,
                             str(layer.w_format))
    acc = reference.without_low_bits(acc, layer.drop)
    q = layer.requant
    m, b = q.m, q.b
    if q.per_position and len(m) == 1:
        m, b = (np.broadcast_to(p, layer.out.shape[1:]) for p in (m, b))
    res = getattr(layer, "res", None)
    more = (case.inputs["res"].tolist(), str(res.format), q.m2) if res else ()
    thresholds = None if q.thresholds is None else q.thresholds.tolist()
    return np.array(reference.requant(acc, m.tolist(), b.tolist(), q.shift, q.lo, q.hi, *more, thresholds=thresholds), np.int64)
