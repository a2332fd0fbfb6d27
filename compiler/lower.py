"""From a partitioned module to one that calls `seriatim.run` with a program for each region."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GlobalVar

from seriatim.compiler.ir import Region, Tensor
from seriatim.compiler.ops import formats, op_name, shape_of
from seriatim.compiler.patterns import ADDING, CODEGEN, INPUT_FORMATS, Facts, bindings_of, describe, output
from seriatim.formats import Format

RUN = "seriatim.run"
"""Global function that runs a program: (program, number of inputs, inputs..., outputs...)."""


@dataclass(frozen=True)
class Lowered:
    """A module for `relax.build`, and what its calls of `seriatim.run` were made from, in order of execution."""

    mod: tvm.IRModule
    regions: tuple[Region, ...]
    programs: tuple[bytes, ...]


def _is_region(func) -> bool:
    return isinstance(func, relax.Function) and func.attrs is not None and func.attrs.get("Codegen") == CODEGEN


def _declared(composite: relax.Function) -> dict[relax.Var, Format]:
    """Stored format of each parameter of a composite function, as its operators declare it."""
    declared = {}
    for _, value in bindings_of(composite):
        for index, attribute in INPUT_FORMATS.get(op_name(value), {}).items():
            if value.args[index] in list(composite.params):
                declared[value.args[index]] = formats(str(value.attrs[attribute]))[0]
    return declared


def region_of(func: relax.Function, names: list[str], images: list[bool], facts: Facts) -> Region:
    """The region that a function of composite calls describes.

    `names` and `images` belong to its parameters: the tensor's name, and whether it is an image as the host hands it over.
    """
    composites, calls = {}, []
    for var, value in bindings_of(func):
        if isinstance(value, relax.Function):
            composites[var] = value
        elif isinstance(value, Call):
            calls.append((var, composites[value.op], value.args))
    stored = {}
    for _, composite, args in calls:
        declared = _declared(composite)
        stored |= {arg: declared[param] for param, arg in zip(composite.params, args)}
    tensors = {
        param: Tensor(name, shape_of(param), stored[param], "image" if image else "planes")
        for param, name, image in zip(func.params, names, images)
    }
    inputs = tuple(tensors[param] for param in func.params)
    layers = []
    for var, composite, args in calls:
        by_param = dict(zip(composite.params, (tensors[arg] for arg in args)))
        *core, root = (value for _, value in bindings_of(composite))
        core = core[0] if core else None
        first = root if core is None else core
        res = by_param[root.args[1]] if root.op.name in ADDING else None
        layers.append(describe(root, core, by_param[first.args[0]], res, output(root, facts)))
        tensors[var] = layers[-1].out
    result = func.body.body
    results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    return Region(inputs, tuple(tensors[var] for var in results), tuple(layers))


def _regions(mod: tvm.IRModule, facts: Facts) -> dict[str, Region]:
    """Region of each region function, by its symbol, in order of execution."""
    main = mod["main"]
    names: dict[relax.Var, list[str]] = {}
    regions = {}
    for var, value in bindings_of(main):
        if isinstance(value, relax.Var):
            names[var] = names.get(value, [value.name])
        elif isinstance(value, relax.TupleGetItem):
            whole = names.get(value.tuple_value, [])
            names[var] = [whole[value.index]] if whole else [var.name]
        if not (isinstance(value, Call) and isinstance(value.op, GlobalVar) and _is_region(mod[value.op])):
            continue
        func = mod[value.op]
        inner = _layer_names(func)
        given = [names.get(arg, [arg.name])[0] for arg in value.args]
        given = [f"{name}.in" if name in inner else name for name in given]
        images = [arg in list(main.params) and arg.name in facts.images for arg in value.args]
        regions[value.op.name_hint] = region_of(func, given, images, facts)
        names[var] = [tensor.name for tensor in regions[value.op.name_hint].outputs]
    return regions


def _layer_names(func: relax.Function) -> set[str]:
    composites = (value for _, value in bindings_of(func) if isinstance(value, relax.Function))
    return {str(list(bindings_of(composite))[-1][1].attrs["name"]) for composite in composites}


@relax.expr_functor.mutator
class _Calls(relax.PyExprMutator):
    """Replaces each call of a region's function by a call of `seriatim.run` with the region's program."""

    def __init__(self, mod: tvm.IRModule, programs: dict[str, bytes]):
        super().__init__(mod)
        self.programs = programs

    def visit_call_(self, call: Call):
        if not isinstance(call.op, GlobalVar) or call.op.name_hint not in self.programs:
            return super().visit_call_(call)
        program = relax.const(np.frombuffer(self.programs[call.op.name_hint], np.uint8))
        args = [program, relax.prim_value(len(call.args)), *(self.visit_expr(arg) for arg in call.args)]
        types = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
        return relax.call_dps_packed(RUN, args, types)


def lower(mod: tvm.IRModule, facts: Facts, generate: Callable[[Region], bytes]) -> Lowered:
    """Generate a program for each region of a partitioned module, and let `main` hand it to `seriatim.run`."""
    regions = _regions(mod, facts)
    programs = {symbol: generate(region) for symbol, region in regions.items()}
    calls = _Calls(mod, programs)
    main = calls.visit_expr(mod["main"])
    lowered = tvm.IRModule({"main": main})
    return Lowered(lowered, tuple(regions.values()), tuple(programs.values()))
