"""From a network to an artefact."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import tvm

from seriatim import isa
from seriatim.compiler import lower, ops, patterns, reference
from seriatim.compiler.artefact import LIBRARY, Artefact, sha256
from seriatim.compiler.importer import import_module
from seriatim.compiler.ir import Conv, Layer, Region, SumPool, Tensor
from seriatim.config import Config


def compile_network(
    module,
    example_inputs,
    config: Config,
    generate: Callable[[Region, Config], bytes],
    *,
    accept: patterns.Accept | None = None,
    metadata: dict | None = None,
) -> Artefact:
    """Compile an integer network: a torch module made of `torch.ops.seriatim`, or an imported Relax module.

    `generate(region, config)` writes a region's program; `accept(layer)` gives the reason why a layer cannot have one, or None.
    `metadata` goes into the manifest. Raises CompileError.
    """
    if not isinstance(module, tvm.IRModule):
        module = import_module(module, reference.as_list(example_inputs))
    partitioned, facts = patterns.partition(module, accept)
    fallback = patterns.cpu_fallback(partitioned, facts)
    lowered = lower.lower(partitioned, facts, lambda region: generate(region, config))
    manifest = {
        "isa_version": isa.VERSION,
        "config_hash": config.hash,
        "config_name": str(config),
        "config": asdict(config),
        "network": metadata or {},
        "inputs": network_inputs(module, lowered.regions),
        "regions": [describe_region(*pair) for pair in zip(lowered.regions, lowered.programs)],
        "cpu_fallback": fallback,
    }
    return Artefact(manifest, library(lowered.mod), lowered.programs, lowered.regions)


def network_inputs(mod: tvm.IRModule, regions: tuple[Region, ...]) -> list[dict]:
    """Name, shape and, where a region reads it, format of each of the network's inputs."""
    known = {tensor.name: {"format": str(tensor.format)} for region in regions for tensor in region.inputs}
    return [{"name": param.name, "shape": list(ops.shape_of(param))} | known.get(param.name, {}) for param in mod["main"].params]


def library(mod: tvm.IRModule) -> bytes:
    """The shared library of a module that `relax.VirtualMachine` loads."""
    with tempfile.TemporaryDirectory(prefix="seriatim-") as folder:
        path = Path(folder, LIBRARY)
        reference.build(mod).export_library(str(path))
        return path.read_bytes()


def describe_tensor(tensor: Tensor) -> dict:
    return {"name": tensor.name, "shape": list(tensor.shape), "format": str(tensor.format or "int32"), "layout": tensor.layout}


def describe_layer(layer: Layer) -> dict:
    """A row of the layer table."""
    row = {
        "name": layer.name,
        "kind": type(layer).__name__.lower(),
        "reads": [tensor.name for tensor in layer.reads],
        "out": describe_tensor(layer.out),
        "kernel": list(layer.kernel),
        "stride": list(layer.stride),
        "padding": list(layer.padding),
        "macs": layer.macs,
        "binary_macs": layer.binary_macs,
    }
    if isinstance(layer, Conv | SumPool):
        row |= {"k": layer.k, "x_read": str(layer.x_read), "shift": layer.requant.shift}
    if isinstance(layer, Conv):
        row |= {"w_format": str(layer.w_format), "groups": layer.groups, "dilation": list(layer.dilation)}
    return row


def describe_region(region: Region, program: bytes) -> dict:
    return {
        "program_bytes": len(program),
        "program_sha256": sha256(program),
        "inputs": [describe_tensor(tensor) for tensor in region.inputs],
        "outputs": [describe_tensor(tensor) for tensor in region.outputs],
        "layers": [describe_layer(layer) for layer in region.layers],
    }
