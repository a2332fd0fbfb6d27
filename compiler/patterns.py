"""Which parts of a Relax graph the accelerator takes: a pattern table with real checks, and the reasons for what it leaves.

| composite            | graph                                |
|----------------------|--------------------------------------|
| `seriatim.conv`      | requant(qconv2d(x, w), m, b)         |
| `seriatim.conv_add`  | requant_add(qconv2d(x, w), res, m, b)|
| `.._table`           | both with `_table` and thresholds    |
| `seriatim.max_pool`  | qmaxpool2d(x)                        |
| `seriatim.sum_pool`  | requant(qsumpool2d(x), m, b)         |

A match becomes a layer of `ir`, and `legal` judges that layer; a caller's `accept` may refuse more, such as what fits no tile.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Call, GenericConst, GlobalVar
from tvm.relax.dpl import is_op, wildcard

from seriatim.compiler import legal
from seriatim.compiler.ir import INT32, Conv, Layer, MaxPool, Requant, SumPool, Tensor
from seriatim.compiler.ops import OPS, PREFIX, attrs_of, formats, op_name, shape_of
from seriatim.errors import CompileError, ConfigError
from seriatim.formats import MAX_PLANES, Format, Kind

CODEGEN = "seriatim"
CONV, SUM_POOL, MAX_POOL = PREFIX + "qconv2d", PREFIX + "qsumpool2d", PREFIX + "qmaxpool2d"
REQUANT, REQUANT_ADD = PREFIX + "requant", PREFIX + "requant_add"
REQUANT_TABLE, REQUANT_ADD_TABLE = REQUANT + "_table", REQUANT_ADD + "_table"
ADDING = REQUANT_ADD, REQUANT_ADD_TABLE
TABLES = REQUANT_TABLE, REQUANT_ADD_TABLE
NAMED = (REQUANT, *ADDING, REQUANT_TABLE, MAX_POOL)
"""Operators whose output is a tensor of the network; each carries its layer's name."""
INPUT_FORMATS = dict.fromkeys((CONV, SUM_POOL, MAX_POOL), {0: "x_format"}) | dict.fromkeys(ADDING, {1: "res_format"})
"""For each operator, which of its inputs are codes, and the attribute that declares their format."""

IMAGE = Format(Kind.UINT, 8)
"""Format of images that the host hands over as plain bytes."""

Accept = Callable[[Layer], str | None]


def bindings_of(func: relax.Function):
    """Every (variable, value) of a function's body, in order."""
    for block in func.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def smallest_format(lo: int, hi: int) -> Format | None:
    """Narrowest format whose codes are `lo` to `hi`, or None where that takes more planes than a tensor has."""
    signed = lo < 0
    bits = max(1, hi.bit_length() + signed, (-lo - 1).bit_length() + 1 if signed else 1)
    return Format(Kind.INT if signed else Kind.UINT, bits) if bits <= MAX_PLANES else None


@dataclass
class Facts:
    """What the graph says about its tensors before anything is fused.

    `formats[layer]` is the stored format of a layer's output (None: 32-bit words), decided by those who read it; `images` are the
    inputs of the network that lie in memory as plain bytes; `refused[layer]` is why a layer cannot run on the accelerator.
    """

    formats: dict[str, Format | None] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str | None, reason: str) -> None:
        """Note the first reason against a layer; `name` is None for accumulators that no layer requantises."""
        if name is not None:
            self.refused.setdefault(name, reason)


def analyse(mod: tvm.IRModule) -> Facts:
    """Decide the format of every tensor, and note the layers whose readers disagree.

    Raises CompileError where two layers share a name.
    """
    facts = Facts()
    bindings = [(var, value) for var, value in bindings_of(mod["main"]) if op_name(value) in {*INPUT_FORMATS, *NAMED}]
    users = defaultdict(list)
    for var, value in bindings:
        for index, arg in enumerate(value.args):
            users[arg].append((var, value, index))
    names = {}
    for var, value in bindings:
        if value.op.name in NAMED:
            name = str(value.attrs["name"])
            if name in names:
                raise CompileError(f"two layers named {name!r}: layer names identify tensors in reports; give each its own")
            names[name] = var

    def layer(var: relax.Var, call: Call) -> str | None:
        """Name of the layer that `call`, bound to `var`, belongs to."""
        if call.op.name in NAMED:
            return str(call.attrs["name"])
        return next((str(user.attrs["name"]) for _, user, _ in users.get(var, ()) if user.op.name in NAMED), None)

    producers = dict(bindings)
    reads = Counter(var for _, value in bindings_of(mod["main"]) for var in relax.analysis.free_vars(value))
    reads.update(relax.analysis.free_vars(mod["main"].body.body))
    for var, uses in users.items():
        stored, readers = set(), []
        for user, call, index in uses:
            attribute = INPUT_FORMATS.get(call.op.name, {}).get(index)
            if attribute is None:
                continue
            readers.append(layer(user, call))
            try:
                stored.add(formats(str(call.attrs[attribute]))[0])
            except (ConfigError, CompileError) as error:
                facts.refuse(readers[-1], str(error))
        producer = producers.get(var)
        if producer is not None and producer.op.name in NAMED:
            readers.append(str(producer.attrs["name"]))
            if len(stored) == 1:
                facts.formats[readers[-1]] = next(iter(stored))
        params = list(mod["main"].params)
        if var in params and stored == {IMAGE} and all((call.op.name, index) == (CONV, 0) for _, call, index in uses):
            facts.images.add(var.name)
        if len(stored) > 1:
            listed = " and ".join(sorted(map(str, stored)))
            for name in filter(None, readers):
                facts.refuse(name, f"one tensor is declared {listed}: its readers must declare one stored format")

    for _, call in bindings:
        if call.op.name not in NAMED:
            continue
        name, attrs = str(call.attrs["name"]), attrs_of(call)
        if call.op.name == MAX_POOL:
            try:
                facts.formats.setdefault(name, formats(attrs["x_format"])[0])
            except (ConfigError, CompileError) as error:
                facts.refuse(name, str(error))
            continue
        lo, hi = (0, shape_of(call.args[-1])[0]) if call.op.name in TABLES else (attrs["lo"], attrs["hi"])
        facts.formats.setdefault(name, smallest_format(lo, hi))
        core = producers.get(call.args[0])
        if core is None or core.op.name not in (CONV, SUM_POOL):
            facts.refuse(name, "requantisation of something else than a convolution or a pool's sum; put it behind one of them")
        elif call.op.name in ADDING and core.op.name == SUM_POOL:
            facts.refuse(name, "residual behind a pool's sum; only a convolution adds one")
        elif max(reads[call.args[0]], len(users[call.args[0]])) > 1:
            facts.refuse(name, "its accumulators are read by something else too; requantise each convolution once")
    return facts


def constant(expr, what: str):
    if not isinstance(expr, GenericConst):
        raise CompileError(f"{what} computed at run time; the accelerator takes constants only")
    return expr.value.numpy()


def describe(root: Call, core: Call | None, x: Tensor, res: Tensor | None, out: Tensor) -> Layer:
    """The layer that a match stands for, reading and writing the given tensors. Raises CompileError, ConfigError."""
    a = attrs_of(root)
    if root.op.name == MAX_POOL:
        if formats(a["x_format"])[1] != x.format or out.format != x.format:
            raise CompileError(f"max pool of {a['x_format']} into {out.format}: it keeps the format that is stored")
        return MaxPool(a["name"], x, a["kernel"], a["stride"], a["padding"], a["dilation"], out)
    first = 2 if root.op.name in ADDING else 1
    m, b, *t = (constant(arg, what) for arg, what in zip(root.args[first:], ("multipliers", "offsets", "thresholds")))
    lo, hi = a.get("lo", INT32[0]), a.get("hi", INT32[1])
    if not INT32[0] <= lo <= INT32[1] or not INT32[0] <= hi <= INT32[1]:
        raise CompileError(f"clip to {lo}..{hi}: the output is a signed 32-bit word at most")
    requant = Requant(m, b, a["shift"], lo, hi, a.get("m2", 0), *t)
    c = attrs_of(core)
    read = formats(c["x_format"])[1]
    if c["drop"] and read.linear and Format.parse(c.get("w_format", "int1")).linear:
        raise CompileError(f"sums without their lowest {c['drop']} bits: linear ones are kept whole; use a larger shift")
    if core.op.name == SUM_POOL:
        return SumPool(a["name"], x, read, c["kernel"], c["stride"], c["padding"], requant, out, c["drop"])
    if res is not None and formats(a["res_format"])[1] != res.format:
        raise CompileError(f"residual read as {a['res_format']}: the accelerator reads all of its planes; add what is stored")
    return Conv(
        a["name"], x, read, constant(core.args[1], "weights"), Format.parse(c["w_format"]), c["stride"], c["padding"],
        c["dilation"], c["groups"], requant, res, out, c["drop"],
    )


def output(root: Call, facts: Facts) -> Tensor:
    """The tensor that a layer writes."""
    name = str(root.attrs["name"])
    fmt = facts.formats[name]
    return Tensor(name, shape_of(root), fmt, "planes" if fmt else "int32")


def _judge(root: Call, core: Call | None, facts: Facts, accept: Accept | None) -> str | None:
    first, out = root if core is None else core, output(root, facts)
    source = first.args[0]
    layout = "image" if isinstance(source, relax.Var) and source.name in facts.images else "planes"
    try:
        x = Tensor(f"{out.name}.x", shape_of(source), formats(str(first.attrs["x_format"]))[0], layout)
        res = None
        if root.op.name in ADDING:
            res = Tensor(f"{out.name}.res", shape_of(root.args[1]), formats(str(root.attrs["res_format"]))[0])
        layer = describe(root, core, x, res, out)
    except (ConfigError, CompileError) as error:
        return str(error)
    return legal.refusal(layer) or (accept(layer) if accept else None)


def table(facts: Facts, accept: Accept | None = None) -> list[tuple]:
    """Patterns for FuseOpsByPattern. The checks add to `facts.refused` what they refuse."""

    def check(context: relax.transform.PatternCheckContext) -> bool:
        root, core = context.annotated_expr["root"], context.annotated_expr.get("core")
        name = str(root.attrs["name"])
        if name not in facts.refused:
            reason = _judge(root, core, facts, accept)
            if reason:
                facts.refuse(name, reason)
        return name not in facts.refused

    def row(root: str, core: str | None, inputs: int):
        """(core, root) of a pattern: `root` of `core`, of so many inputs, and of `inputs` more."""
        if core is None:
            return None, is_op(root)(*(wildcard() for _ in range(inputs)))
        inner = is_op(core)(*(wildcard() for _ in OPS[core].inputs))
        return inner, is_op(root)(inner, *(wildcard() for _ in range(inputs)))

    roots = {
        "conv_add": row(REQUANT_ADD, CONV, 3), "conv_add_table": row(REQUANT_ADD_TABLE, CONV, 4),
        "conv": row(REQUANT, CONV, 2), "conv_table": row(REQUANT_TABLE, CONV, 3),
        "sum_pool": row(REQUANT, SUM_POOL, 2), "sum_pool_table": row(REQUANT_TABLE, SUM_POOL, 3),
        "max_pool": row(MAX_POOL, None, 1),
    }
    rows = []
    for name, (core, root) in roots.items():
        annotations = {"root": root} if core is None else {"root": root, "core": core}
        rows.append((PREFIX + name, root, annotations, check))
    return rows


def partition(mod: tvm.IRModule, accept: Accept | None = None) -> tuple[tvm.IRModule, Facts]:
    """Move what the accelerator takes into functions of their own, one for each region (attribute `Codegen`)."""
    facts = analyse(mod)
    passes = [
        relax.transform.FuseOpsByPattern(table(facts, accept), bind_constants=True),
        relax.transform.MergeCompositeFunctions(),
    ]
    return tvm.transform.Sequential(passes)(mod), facts


def cpu_fallback(mod: tvm.IRModule, facts: Facts) -> list[dict[str, str]]:
    """What a partitioned module leaves on the CPU: name, operator and reason of each layer or plain operator."""
    main = list(bindings_of(mod["main"]))
    values = dict(main)
    inner = {value.args[0] for _, value in main if op_name(value) in NAMED}
    listed = []
    for var, value in main:
        op = op_name(value)
        if op is None or isinstance(value.op, GlobalVar) or (op in (CONV, SUM_POOL) and var in inner):
            continue
        if op in NAMED:
            name = str(value.attrs["name"])
            core = op_name(values.get(value.args[0])) if op != MAX_POOL else None
            reason = facts.refused.get(name, "no pattern takes it")
            listed.append({"name": name, "op": core if core in (CONV, SUM_POOL) else op, "reason": reason})
        elif op in (CONV, SUM_POOL):
            listed.append({"name": var.name, "op": op, "reason": "its accumulators are not requantised"})
        else:
            listed.append({"name": var.name, "op": op, "reason": "not one of the accelerator's layers"})
    return listed
