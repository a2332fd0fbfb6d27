"""Traces a user's module by `torch.export`, and says where in the source an operation comes from."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from seriatim.errors import ConvertError

TORCH = str(Path(torch.__file__).parent)


def export(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns of its own pytree
            return torch.export.export(module, (example,)).run_decompositions({})
    except Exception as error:  # whatever the module's own code, or PyTorch's tracer, raises
        frames = []
        trace = error.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if TORCH not in file and file != __file__ and not file.startswith("<"):
                frames.append(f'"{file}", line {trace.tb_lineno}')
            trace = trace.tb_next
        place = f" at {frames[-1]}" if frames else ""
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConvertError(
            f"{type(module).__name__} cannot be traced by torch.export on images of {tuple(example.shape)}{place}: {said}; its "
            "forward takes one image batch, and what it does must not depend on the values in it"
        ) from error


def constants(program: torch.export.ExportedProgram) -> tuple[dict[fx.Node, Tensor], list[fx.Node]]:
    """Values of the placeholders that are parameters, buffers and constants, and the placeholders that are inputs."""
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    values = {**program.constants, **program.state_dict}
    found, inputs = {}, []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in named:
                found[node] = values[named[node.name]].detach()
            else:
                inputs.append(node)
    return found, inputs


def where(node: fx.Node) -> str:
    """The operation, the module that holds it, and the line of the user's source that calls it."""
    path = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("",))[0]
    said = f"{node.name} ({node.target}{f', in {path}' if path else ''}"
    lines = (node.meta.get("stack_trace") or "").splitlines()
    frames = [(line.strip(), code.strip()) for line, code in zip(lines, lines[1:]) if line.strip().startswith("File ")]
    own = [frame for frame in frames if TORCH not in frame[0]]
    if own:
        (place, code) = own[-1]
        said += f"; {place.removeprefix('File ')}: {code}"
    return said + ")"


def refuse(node: fx.Node, rule: str) -> ConvertError:
    return ConvertError(f"{where(node)}: {rule}")


def base_name(node: fx.Node) -> str:
    """Name of an operation without library and overload."""
    return node.target._schema.name.partition("::")[2] if hasattr(node.target, "_schema") else str(node.target)
