"""From a network to an artefact."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import tvm

from seriatim import isa
from seriatim.compiler import lower, ops, patterns, reference
from seriatim.compiler.artefact import LIBRARY, Artefact, sha256
from seriatim.compiler.importer import import_module
from seriatim.compiler.ir import Conv, Layer, Region, SumPool, Tensor
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.sim.build import compiler


def compile_network(
    module,
    example_inputs,
    config: Config,
    generate: Callable[[Region, Config], object],
    *,
    accept: patterns.Accept | None = None,
    metadata: dict | None = None,
) -> Artefact:
    """Compile an integer network: a torch module made of `torch.ops.seriatim`, or an imported Relax module.

    `generate(region, config)` writes a region's program, as bytes or as something with `to_bytes()`. `accept(layer)` gives the
    reason why a layer must stay on the CPU, or None; left out, each layer that `generate` refuses alone stays there.
    `metadata` goes into the manifest. Raises CompileError.
    """
    if not isinstance(module, tvm.IRModule):
        module = import_module(module, reference.as_list(example_inputs))
    partitioned, facts = patterns.partition(module, accept or by_trial(generate, config))
    fallback = patterns.cpu_fallback(partitioned, facts)

    def program(region: Region) -> bytes:
        made = generate(region, config)
        return made if isinstance(made, bytes) else made.to_bytes()

    lowered = lower.lower(partitioned, facts, program)
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


def by_trial(generate: Callable[[Region, Config], object], config: Config) -> patterns.Accept:
    """Accepts the layers that `generate` has a program for when they are all there is."""

    def accept(layer: Layer) -> str | None:
        try:
            generate(Region(layer.reads, (layer.out,), (layer,)), config)
        except CompileError as error:
            return str(error).removeprefix(f"{layer.name}: ")
        return None

    return accept


def network_inputs(mod: tvm.IRModule, regions: tuple[Region, ...]) -> list[dict]:
    """Name, shape and, where a region reads it, format of each of the network's inputs."""
    known = {tensor.name: {"format": str(tensor.format)} for region in regions for tensor in region.inputs}
    return [{"name": param.name, "shape": list(ops.shape_of(param))} | known.get(param.name, {}) for param in mod["main"].params]


def library(mod: tvm.IRModule) -> bytes:
    """The shared library of a module that `relax.VirtualMachine` loads. Raises ToolError where no C++ compiler links it."""
    compiler()
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


def summary(artefact: Artefact) -> list[str]:
    """Lines that say what was compiled, and what was not, and why."""
    lines = []
    for number, region in enumerate(artefact.manifest["regions"]):
        layers = region["layers"]
        macs = sum(layer["macs"] for layer in layers)
        lines.append(f"region {number}: {len(layers)} layers, {macs:,} MACs, program of {region['program_bytes']:,} bytes")
    for row in artefact.cpu_fallback:
        lines.append(f"on the CPU: {row['name']} ({row['op']}): {row['reason']}")
    return lines or ["nothing to compute"]


def main_compile(args) -> None:
    """`seriatim compile`: the network of the command line, for one image, into `artefact.zip` in the folder `--out`."""
    from seriatim.algo.trained import load_or_train, name_of, settle
    from seriatim.boards import catalogue
    from seriatim.compiler.codegen import generate
    from seriatim.sim.driver import config_of

    settle(args)
    config, path = config_of(args), Path(args.checkpoint) if args.checkpoint else None
    network, metadata = load_or_train(args.net, args.quant, args.w, args.a, args.first_last, image_size=args.image, path=path)
    example = np.zeros((1, network.channels, network.image_size, network.image_size), np.int32)
    memory = catalogue.find(args.board).timing if args.board else None
    artefact = compile_network(network, example, config, partial(generate, memory=memory),
                               metadata=asdict(metadata) | {"image": network.image_size})
    name = name_of(args.net, args.quant, args.w, args.a, args.first_last) + (f"-{args.image}" if args.image else "")
    path = artefact.save(Path(args.out or Path("build", "compile", name), "artefact.zip"))
    print("\n".join([*summary(artefact), f"artefact: {path}"]))
