"""Relax operators of quantised layers, each with an exact integer reference that runs on the CPU.

| operator               | inputs            | computes                                                       |
|------------------------|-------------------|----------------------------------------------------------------|
| `seriatim.qconv2d`     | x, w              | int32 convolution of the values of x's top planes with w, >> drop |
| `seriatim.qsumpool2d`  | x                 | int32 sum of values in each window, >> drop                    |
| `seriatim.qmaxpool2d`  | x                 | largest code in each window; padding is the smallest code      |
| `seriatim.requant`     | acc, m, b         | clip((m acc + b) >> shift, lo, hi), int64, floor               |
| `seriatim.requant_add` | acc, res, m, b    | clip((m acc + m2 value(res) + b) >> shift, lo, hi)             |
| `seriatim.requant_table` | acc, m, b, thresholds | how many thresholds (m acc + b) >> shift has reached     |
| `seriatim.requant_add_table` | acc, res, m, b, thresholds | the same of (m acc + m2 value(res) + b) >> shift |

They mirror the torch operators of the same names in `seriatim.algo.ops`: same arguments, tensors first, the rest as attributes.
Codes and accumulators are int32, `b` is int64. Accumulation wraps modulo 2^32, so a result that fits 32 bits is exact; log and
codebook formats are accumulated in 64 bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import tvm_ffi
from tvm import relax, te, tirx
from tvm.ir import Call, Op, make_node
from tvm.ir.op import _ffi_api as op_api
from tvm.ir.op import register_op_attr
from tvm.s_tir import Schedule

from seriatim.compiler.ir import window_shape
from seriatim.errors import CompileError, ConfigError
from seriatim.formats import Format, factors

PREFIX = "seriatim."


@dataclass(frozen=True)
class OpSpec:
    """One operator: names of its tensor inputs and attributes, output shape, and reference as a tensor expression."""

    inputs: tuple[str, ...]
    attrs: tuple[str, ...]
    shape: Callable[..., tuple[int, ...]]
    compute: Callable[..., te.Tensor]
    schedule: Callable[[Schedule], None] | None = None
    defaults: dict = field(default_factory=dict)
    """Attributes that may be left out."""


def formats(text: str) -> tuple[Format, Format]:
    """(stored, read) formats of an input declared as `uint8:uint4`, or of `uint8`, which is read as it is stored."""
    stored, _, reader = text.partition(":")
    stored = Format.parse(stored)
    reader = Format.parse(reader) if reader else stored
    if reader.bits > stored.bits or reader != stored.top(reader.bits):
        raise CompileError(f"format {text!r}: a reader sees the top planes of what is stored, as uint8:uint4")
    return stored, reader


def op_name(expr) -> str | None:
    """Full name of the operator that `expr` calls, or None."""
    return expr.op.name if isinstance(expr, Call) and isinstance(expr.op, Op) else None


def attrs_of(call: Call) -> dict:
    """Attributes of a call of one of our operators as Python integers, strings and tuples."""
    spec = OPS[call.op.name]
    given = {name: call.attrs[name] for name in spec.attrs if name in call.attrs.keys()}
    return spec.defaults | {
        name: value if isinstance(value, str) else int(value) if isinstance(value, int) else tuple(int(v) for v in value)
        for name, value in given.items()
    }


def shape_of(expr) -> tuple[int, ...]:
    """Shape of a tensor expression; every dimension is known."""
    return tuple(int(size) for size in expr.ty.shape)


def make(op: str, args: list, attrs: dict) -> Call:
    """A call of operator `op`, one of OPS."""
    return Call(Op.get(op), args, attrs=make_node("ir.DictAttrs", **attrs))


# References, as tensor expressions


def _look_up(index, table: Sequence[int]):
    """The int64 entry of a small table."""
    found = tirx.const(table[0], "int64")
    for i, value in enumerate(table[1:], 1):
        found = tirx.Select(index == i, tirx.const(value, "int64"), found)
    return found


def _value(code, stored: Format, reader: Format):
    if not reader.linear:
        return _look_up(code, reader.values)
    return reader.value(code >> tirx.const(stored.bits - reader.bits, "int32") if stored != reader else code)


def _padded(x, padding, convert, pad_value: int, name: str, kind: str = "int32"):
    """`x` surrounded by `pad_value`, every element inside converted, to `kind`."""
    n, c, height, width = x.shape
    top, left, bottom, right = padding
    pad = tirx.const(pad_value, kind)
    if not any(padding):
        return te.compute(x.shape, lambda i, k, y, z: convert(x[i, k, y, z]), name)
    return te.compute(
        (n, c, height + top + bottom, width + left + right),
        lambda i, k, y, z: tirx.if_then_else(
            tirx.all(y >= top, y < height + top, z >= left, z < width + left), convert(x[i, k, y - top, z - left]), pad
        ),
        name,
    )


def _conv_shape(x, w, stride, padding, dilation, groups, x_format, w_format, drop):
    if x[1] != w[1] * groups or w[0] % groups:
        raise CompileError(f"convolution of {x[1]} channels in {groups} groups by weights {w}: channels = groups x {w[1]}")
    return x[0], w[0], *window_shape(x, w[2:], stride, padding, dilation)


def _conv(x, w, stride, padding, dilation, groups, x_format, w_format, drop):
    stored, reader = formats(x_format)
    w_read = Format.parse(w_format)
    if reader.linear and w_read.linear:
        values = _padded(x, padding, lambda code: _value(code, stored, reader), 0, "values")
        return _dropped(_sums(values, w, stride, dilation, groups, "acc"), drop)
    total = None
    for number, (table, images) in enumerate([(None, None)] if reader.linear else factors(w_read, reader)):
        seen = partial(_value, stored=stored, reader=reader) if table is None else partial(_look_up, table=table)
        values = _padded(x, padding, lambda code, seen=seen: seen(code).astype("int64"), 0, f"values{number}", "int64")
        some = _sums(values, _images(w, images, f"weights{number}"), stride, dilation, groups, f"acc{number}")
        total = some if total is None else _added(total, some, f"total{number}")
    return te.compute(total.shape, lambda *at: (total(*at) >> tirx.const(drop, "int64")).astype("int32"), "dropped")


def _images(w, images: dict[int, int] | None, name: str):
    """The int64 image of each value; None: the values themselves."""

    def image(*at):
        if images is None:
            return w(*at).astype("int64")
        found = tirx.const(0, "int64")
        for key, value in images.items():
            found = tirx.Select(w(*at) == tirx.const(key, "int32"), tirx.const(value, "int64"), found)
        return found

    return te.compute(w.shape, image, name)


def _added(a, b, name: str):
    return te.compute(a.shape, lambda *at: a(*at) + b(*at), name)


def _dropped(sums, drop: int):
    return te.compute(sums.shape, lambda *at: sums(*at) >> tirx.const(drop, "int32"), "dropped") if drop else sums


def _sums(values, w, stride, dilation, groups, name: str):
    """The convolution of values that are padded already; both of one type."""
    rows, columns = window_shape(values.shape, w.shape[2:], stride, (0, 0, 0, 0), dilation)
    shape = values.shape[0], w.shape[0], rows, columns
    c = te.reduce_axis((0, w.shape[1]), "c")
    y = te.reduce_axis((0, w.shape[2]), "y")
    z = te.reduce_axis((0, w.shape[3]), "z")
    per_group = shape[1] // groups

    def body(n, o, h, v):
        channel = c if groups == 1 else o // per_group * w.shape[1] + c
        seen = values[n, channel, h * stride[0] + y * dilation[0], v * stride[1] + z * dilation[1]]
        return te.sum(seen * w[o, c, y, z], axis=[c, y, z])

    return te.compute(shape, body, name)


def _schedule_conv(sch: Schedule) -> None:
    """Output rows innermost and contiguous, so that LLVM vectorises; output channels on all cores."""
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        name = sch.get(block).name_hint
        if name.startswith("acc"):
            n, o, h, v, c, y, z = sch.get_loops(block)
            sch.reorder(n, o, h, c, y, z, v)
            sch.parallel(sch.fuse(n, o))
            sch.vectorize(v)
            sch.decompose_reduction(block, c)
        elif name.startswith("values"):
            n, k, *_ = sch.get_loops(block)
            sch.parallel(sch.fuse(n, k))


def _pool_shape(x, kernel, stride, padding, dilation=(1, 1), **_):
    return x[0], x[1], *window_shape(x, kernel, stride, padding, dilation)


def _pool(x, kernel, stride, padding, dilation, reduce):
    y = te.reduce_axis((0, kernel[0]), "y")
    z = te.reduce_axis((0, kernel[1]), "z")
    shape = _pool_shape([int(s) for s in x.shape], kernel, stride, (0, 0, 0, 0), dilation)
    return te.compute(
        shape,
        lambda n, c, h, v: reduce(x[n, c, h * stride[0] + y * dilation[0], v * stride[1] + z * dilation[1]], axis=[y, z]),
        "pool",
    )


def _max_pool(x, kernel, stride, padding, dilation, x_format, name):
    stored, reader = formats(x_format)
    if stored != reader:
        raise CompileError(f"max pool {name} of {x_format!r}: it compares whole codes; read the format that is stored")
    return _pool(_padded(x, padding, lambda code: code, stored.lo, "codes"), kernel, stride, padding, dilation, te.max)


def _sum_pool(x, kernel, stride, padding, x_format, drop):
    stored, reader = formats(x_format)
    kind = "int32" if reader.linear else "int64"
    values = _padded(x, padding, lambda code: _value(code, stored, reader), 0, "values", kind)
    sums = _pool(values, kernel, stride, padding, (1, 1), te.sum)
    if reader.linear:
        return _dropped(sums, drop)
    return te.compute(sums.shape, lambda *at: (sums(*at) >> tirx.const(drop, "int64")).astype("int32"), "dropped")


def _channel(parameter, n, c, h, v):
    """Element of a parameter `(C,)` or `(C | 1, H, W)`."""
    if len(parameter.shape) == 1:
        return parameter[c]
    return parameter[0 if int(parameter.shape[0]) == 1 else c, h, v]


def _table_shape(acc, *parameters, name, **_):
    return _requant_shape(acc, *parameters[:-1], name=name)


def _requant_shape(acc, *parameters, name, **_):
    for parameter in parameters[-2:]:
        if tuple(parameter) not in ((acc[1],), tuple(acc[1:]), (1, *acc[2:])):
            raise CompileError(f"requantisation {name}: parameters {parameter} for {acc}; they are (C,) or (C | 1, H, W)")
    return acc


def _shifted(acc, res, m, b, m2, shift, res_format):
    """v of the requantisation at a place."""
    stored, reader = (None, None) if res is None else formats(res_format)

    def at_place(*at):
        total = _channel(m, *at).astype("int64") * acc(*at).astype("int64")
        if res is not None:
            total += tirx.const(m2, "int64") * _value(res(*at), stored, reader).astype("int64")
        return (total + _channel(b, *at)) >> tirx.const(shift, "int64")

    return at_place


def _requant_add_table(acc, res, m, b, thresholds, m2, shift, res_format, name):
    shifted = te.compute(acc.shape, _shifted(acc, res, m, b, m2, shift, res_format), "shifted")
    t = te.reduce_axis((0, thresholds.shape[0]), "t")
    return te.compute(
        acc.shape,
        lambda *at: te.sum(tirx.Select(thresholds[t].astype("int64") <= shifted(*at), tirx.const(1), tirx.const(0)), axis=[t]),
        "requant",
    )


def _requant_table(acc, m, b, thresholds, shift, name):
    return _requant_add_table(acc, None, m, b, thresholds, 0, shift, "", name)


def _requant_add(acc, res, m, b, m2, shift, lo, hi, res_format, name):
    shifted = _shifted(acc, res, m, b, m2, shift, res_format)

    def body(*at):
        total = shifted(*at)
        return tirx.min(tirx.max(total, tirx.const(lo, "int64")), tirx.const(hi, "int64")).astype("int32")

    return te.compute(acc.shape, body, "requant")


def _requant(acc, m, b, shift, lo, hi, name):
    return _requant_add(acc, None, m, b, 0, shift, lo, hi, "", name)


OPS = {
    PREFIX + "qconv2d": OpSpec(
        ("x", "w"),
        ("stride", "padding", "dilation", "groups", "x_format", "w_format", "drop"),
        _conv_shape,
        _conv,
        _schedule_conv,
        {"drop": 0},
    ),
    PREFIX + "qsumpool2d": OpSpec(
        ("x",), ("kernel", "stride", "padding", "x_format", "drop"), _pool_shape, _sum_pool, defaults={"drop": 0}
    ),
    PREFIX + "qmaxpool2d": OpSpec(
        ("x",), ("kernel", "stride", "padding", "dilation", "x_format", "name"), _pool_shape, _max_pool
    ),
    PREFIX + "requant": OpSpec(("acc", "m", "b"), ("shift", "lo", "hi", "name"), _requant_shape, _requant),
    PREFIX + "requant_add": OpSpec(
        ("acc", "res", "m", "b"), ("m2", "shift", "lo", "hi", "res_format", "name"), _requant_shape, _requant_add
    ),
    PREFIX + "requant_table": OpSpec(("acc", "m", "b", "thresholds"), ("shift", "name"), _table_shape, _requant_table),
    PREFIX + "requant_add_table": OpSpec(
        ("acc", "res", "m", "b", "thresholds"), ("m2", "shift", "res_format", "name"), _table_shape, _requant_add_table
    ),
}


def _infer_type(call: Call, builder) -> relax.TensorType:
    spec = OPS[call.op.name]
    for name, arg in zip(spec.inputs, call.args):
        wanted = "int64" if name == "b" else "int32"
        if arg.ty.dtype != wanted:
            raise CompileError(f"{call.op.name}: input {name} is {arg.ty.dtype}; it must be {wanted}")
    shape = spec.shape(*(shape_of(arg) for arg in call.args), **attrs_of(call))
    if min(shape) < 1:
        raise CompileError(f"{call.op.name}: output of shape {shape}; the window is larger than its input")
    return relax.TensorType(list(shape), "int32")


def _legalize(builder: relax.BlockBuilder, call: Call):
    spec = OPS[call.op.name]
    tensors = [te.placeholder(shape_of(arg), arg.ty.dtype, name) for name, arg in zip(spec.inputs, call.args)]
    func = te.create_prim_func([*tensors, spec.compute(*tensors, **attrs_of(call))])
    if spec.schedule:
        schedule = Schedule(func)
        spec.schedule(schedule)
        func = schedule.mod["main"]
    symbol = builder.add_func(func.without_attr("global_symbol"), call.op.name.removeprefix(PREFIX))
    return relax.call_tir(symbol, list(call.args), call.ty)


def _register() -> None:
    for error in (CompileError, ConfigError):
        tvm_ffi.register_error(error)  # so that it crosses TVM as itself
    for name, spec in OPS.items():
        op_api.RegisterOp(name, "")
        Op.get(name).set_num_inputs(len(spec.inputs))
        register_op_attr(name, "FInferType", _infer_type)
        register_op_attr(name, "FLegalize", _legalize)
        register_op_attr(name, "FPurity", True)


_register()
