"""From an integer `torch.nn.Module` to Relax: one custom operator for each quantised layer, everything else as TVM imports it."""

import warnings

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from seriatim.compiler import ops
from seriatim.errors import CompileError

FLOAT_IMPORTS = ("conv", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
"""ATen operators that TVM imports as float32 whatever their inputs are."""


def _convert(node: torch.fx.Node, importer) -> relax.Var:
    """Relax call of the operator that shares its name and arguments with a torch custom operator."""
    schema = node.target._schema
    name = ops.PREFIX + schema.name.partition("::")[2]
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args)} | node.kwargs
    spec = ops.OPS[name]
    tensors = [_tensor(given[key], importer) for key in spec.inputs]
    attrs = {key: list(given[key]) if isinstance(given[key], (list, tuple)) else given[key] for key in spec.attrs if key in given}
    return importer.block_builder.emit(ops.make(name, tensors, attrs))


def _tensor(value, importer):
    value = importer.env[value]
    if not isinstance(value, torch.Tensor):
        return value
    array = value.numpy()
    return relax.const(array, str(array.dtype))  # without the type, int64 would become int32


def _refuse_silent_floats(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        name = getattr(node.target, "_schema", None) and node.target._schema.name
        if node.op != "call_function" or not name or not name.startswith("aten::"):
            continue
        value = node.meta.get("val")
        integer = isinstance(value, torch.Tensor) and not value.is_floating_point()
        if integer and name.removeprefix("aten::").startswith(FLOAT_IMPORTS):
            raise CompileError(
                f"{node.name}: {name} on {value.dtype} would be imported as float32, which is not exact; "
                "write it as seriatim::qconv2d (a fully connected layer is a convolution of (N, C, 1, 1))"
            )


def import_module(module: torch.nn.Module, example_inputs) -> tvm.IRModule:
    """Relax module whose `main` takes what `module.forward` takes, with weights bound as constants.

    The example inputs, int32 tensors or arrays, fix the shapes. Raises CompileError where an operator has no import, or only an
    inexact one.
    """
    examples = tuple(torch.as_tensor(np.ascontiguousarray(array, np.int32)) for array in example_inputs)
    converters = {f"{name.removeprefix(ops.PREFIX)}.default": _convert for name in ops.OPS}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.export warns of its own pytree
            program = torch.export.export(module.eval(), examples)
            _refuse_silent_floats(program)
            mod = from_exported_program(program, custom_convert_map=converters, unwrap_unit_return_tuple=True)
    except (AssertionError, NotImplementedError) as error:
        raise CompileError(f"{type(module).__name__}: {error}; express it with integer operators that TVM imports") from error
    return tvm.transform.Sequential([relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()])(mod)
