"""`seriatim soak`: random nets through the whole compiler, on every level, until the time is over.

A net is a handful of random layers (`sim.random_layers`) that read one another, with residuals, on one of few machines and on a
random memory. PyTorch, TVM on the CPU, the ISA simulator and the RTL must give the same integers in every layer, and the last two
the same counts of beats and steps. Everything follows from a seed; the first difference stops the run and leaves what is needed
to look at it.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seriatim.compiler import ir
from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.errors import MismatchError
from seriatim.formats import Format, Kind
from seriatim.sim import files, random_layers
from seriatim.sim.executor import Executor, Run
from seriatim.sim.verilated import MemoryModel

if TYPE_CHECKING:  # torch and TVM take seconds to import
    import torch

    from seriatim.compiler.artefact import Artefact

FOLDER = Path("build", "soak")
COUNTED = (Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS)
"""What the ISA simulator counts exactly as the RTL does; read beats as well, less those of the program."""
MOST_LAYERS = 9
TRIES = 40
"""Draws for each layer; most of what is refused is too large."""


@dataclass(frozen=True)
class Net:
    """A random net: its layers as the generator drew them, codes of its input, and the memory that the RTL runs on."""

    seed: int
    geometry: str
    region: ir.Region
    x: np.ndarray
    memory: MemoryModel

    @property
    def config(self) -> Config:
        return random_layers.GEOMETRIES[self.geometry]

    def describe(self) -> dict:
        """For `repro.json`: everything but the weights and the data, which lie beside it."""
        return {"seed": self.seed, "geometry": self.geometry, "config": asdict(self.config), "memory": asdict(self.memory),
                "layers": [f"{layer.name}({', '.join(t.name for t in layer.reads)}): {random_layers.describe(layer)}"
                           for layer in self.region.layers]}


def draw(seed: int) -> Net:
    """The net of `seed`."""
    rng = np.random.default_rng([seed, 0x50A6])
    geometry = list(random_layers.GEOMETRIES)[rng.integers(len(random_layers.GEOMETRIES))]
    x, codes, layers = None, None, []
    while len(layers) < 2:  # some inputs are too small, or too large, for anything
        x, codes, layers = _layers(rng, random_layers.GEOMETRIES[geometry])
    read = {t.name for layer in layers for t in layer.reads}
    outputs = tuple(layer.out for layer in layers if layer.out.name not in read)
    read_bandwidth, write_bandwidth = ((1, 1) if rng.random() < 0.5 else (int(rng.integers(1, 4)), 4) for _ in range(2))
    memory = MemoryModel(int(rng.integers(1, 200)), int(rng.integers(1, 17)), read_bandwidth, write_bandwidth,
                         int(rng.choice([0, 0, 20, 50])), int(rng.integers(1 << 32)))
    return Net(seed, geometry, ir.Region((x,), outputs, tuple(layers)), codes, memory)


def _layers(rng, config: Config) -> tuple[ir.Tensor, np.ndarray, list[ir.Layer]]:
    """The input, its codes, and layers that read it or one another."""
    image = rng.random() < 0.5
    channels = int(rng.choice([1, 3, 3, 4]) if image else rng.integers(1, config.k + 8))
    shape = int(rng.integers(1, 4)), channels, int(rng.integers(2, 18)), int(rng.integers(2, 18))
    x = ir.Tensor("x", shape, Format(Kind.UINT, 8) if image else random_layers.random_format(rng, int(rng.integers(1, 9))))
    codes = rng.integers(x.lo, x.hi + 1, shape).astype(np.int32)
    known = {"x": (x, codes)}  # what a layer may read: int32 words are for the host only
    layers = []
    wanted = int(rng.integers(2, MOST_LAYERS + 1))
    for _ in range(TRIES * wanted):
        tensors = list(known.values())
        at = -1 if rng.random() < 0.75 else int(rng.integers(len(tensors)))
        layer = random_layers.layer_on(rng, config, random_layers.Given(f"layer{len(layers)}", *tensors[at], tuple(tensors)))
        if layer is None:
            continue
        layers.append(layer)
        if layer.out.format is not None:
            one = ir.Region(tuple(dict.fromkeys(layer.reads)), (layer.out,), (layer,))
            found = ir.interpret(one, {tensor.name: known[tensor.name][1] for tensor in layer.reads})
            known[layer.out.name] = layer.out, found[layer.out.name]
        if len(layers) == wanted:
            break
    return x, codes, layers


def module_of(region: ir.Region) -> "torch.nn.Module":
    """The net in PyTorch's integer operators; its `layers(x)` are the codes of every tensor by name."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for layer in region.layers:
                for name, tensor in random_layers.torch_constants(layer).items():
                    self.register_buffer(f"{layer.name}_{name}", tensor)

        def layers(self, x):
            found = {region.inputs[0].name: x}
            for layer in region.layers:
                constants = {name: getattr(self, f"{layer.name}_{name}") for name in random_layers.torch_constants(layer)}
                x, *res = (found[tensor.name] for tensor in layer.reads)
                found[layer.out.name] = random_layers.apply_torch(layer, constants, x, res[0] if res else None)
            return found

        def forward(self, x):
            found = self.layers(x)
            outputs = tuple(found[tensor.name] for tensor in region.outputs)
            return outputs if len(outputs) > 1 else outputs[0]

    return Module()


def compile_net(net: Net) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], "Artefact"]:
    """(codes of every layer from PyTorch, the same from TVM on the CPU, the artefact)."""
    import torch

    from seriatim.compiler.codegen import generate
    from seriatim.compiler.driver import compile_network
    from seriatim.compiler.reference import Reference

    module = module_of(net.region)
    with torch.no_grad():
        tensors = module.layers(torch.from_numpy(net.x))
    by_torch = {layer.name: tensors[layer.out.name].numpy() for layer in net.region.layers}
    reference = Reference(module, [net.x])
    return by_torch, reference.layers([net.x]), compile_network(reference.mod, [net.x], net.config, generate)


def check(net: Net, rtl: bool = True) -> "Artefact":
    """Runs a net on every level. Raises MismatchError where two differ, and whatever the compiler or a machine raises."""
    from seriatim.sim.driver import compare
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.session import IsaSession

    expected, by_tvm, artefact = compile_net(net)
    differ = [name for name, codes in expected.items() if not np.array_equal(codes, by_tvm[name])]
    if differ:
        raise MismatchError(f"TVM on the CPU differs from PyTorch in {', '.join(differ)}")
    openers = {"the ISA simulator": IsaSession}
    if rtl:
        openers["the RTL"] = lambda config, size: RtlSession(config, size, model=net.memory)
    runs = {}
    for level, opener in openers.items():
        executor = Executor(net.config, opener)
        outputs = artefact.run(net.x, executor=executor)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        equal = compare(executor.runs, expected) | {
            tensor.name: np.array_equal(codes, expected[tensor.name]) for tensor, codes in zip(net.region.outputs, outputs)}
        differ = [name for name, same in equal.items() if not same]
        if differ:
            raise MismatchError(f"{level} differs from PyTorch in {', '.join(differ)}")
        runs[level] = executor.runs
    if rtl:
        _same_counts(*runs.values())
    return artefact


def _same_counts(isa: list[Run], rtl: list[Run]) -> None:
    for number, (plain, timed) in enumerate(zip(isa, rtl, strict=True)):
        plain, timed = plain.counts.total, timed.counts.total
        pairs = {c.name: (timed[c], plain[c]) for c in COUNTED}
        pairs["READ_BEATS"] = timed[Counter.READ_BEATS] - timed[Counter.FETCH_BEATS], plain[Counter.READ_BEATS]
        for name, (found, wanted) in pairs.items():
            if found != wanted:
                raise MismatchError(f"program {number}: the RTL counts {found:,} {name}, the ISA simulator {wanted:,}")


def keep(net: Net, error: BaseException, folder: Path = FOLDER) -> Path:
    """Writes what is needed to look at a failure: `repro.json` with the error, and weights and data in `net.npz`."""
    folder = folder / f"seed-{net.seed}"
    arrays = {"x": net.x}
    for layer in net.region.layers:
        arrays |= {f"{layer.name}.{name}": tensor.numpy() for name, tensor in random_layers.torch_constants(layer).items()}
    with files.replacing(folder / "net.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    text = json.dumps(net.describe() | {"error": f"{type(error).__name__}: {error}"}, indent=1, default=int)
    files.write(folder / "repro.json", text + "\n")
    return folder


def main(args) -> int:
    """`seriatim soak`. Returns 0, or raises MismatchError with the command that repeats the first failure."""
    from tqdm import tqdm

    from seriatim.sim.rtl import library

    one = args.seed is not None
    seed = args.seed if one else int(time.time())
    for config in () if one else random_layers.GEOMETRIES.values():
        library(config)  # before the time runs
    end, seconds = time.monotonic() + 60 * args.minutes, 60 * args.minutes
    nets = layers = on_cpu = 0
    form = "{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=seconds, desc="soak", bar_format=form, disable=one) as bar:
        while nets == 0 or (not one and time.monotonic() < end):
            net = draw(seed)
            try:
                artefact = check(net)
            except Exception as error:  # whatever it is: no net may make any level fail
                folder = keep(net, error)
                raise MismatchError(f"seed {seed} on the {net.geometry} machine: {type(error).__name__}: {error}\n  kept in "
                                    f"{folder}; replay: seriatim soak --seed {seed}") from error
            nets, layers, on_cpu, seed = nets + 1, layers + len(net.region.layers), on_cpu + len(artefact.cpu_fallback), seed + 1
            bar.n = min(seconds, round(seconds - max(0.0, end - time.monotonic())))
            bar.set_postfix_str(f"seed {seed}, {nets} nets, {layers} layers")
    print(f"{nets} net(s), {layers} layers, {on_cpu} of them on the CPU: PyTorch = TVM = ISA simulator = RTL")
    return 0
