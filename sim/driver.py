"""The main job: `make sim`. Load or train, compile, run on the simulated accelerator, compare every layer, report."""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError, MismatchError
from seriatim.sim import baseline, energy, html
from seriatim.sim import report as reports
from seriatim.sim.executor import Executor, OpenSession, Run

if TYPE_CHECKING:  # torch takes seconds to import
    from seriatim.algo.checkpoint import Metadata
    from seriatim.algo.export import IntegerNetwork
    from seriatim.algo.nets import Net


def config_of(args) -> Config:
    """The machine that the command line describes: what it leaves out is the default. It has the shift-add array where the
    quantiser's codes need it."""
    from seriatim.algo.quantisers.registry import uneven
    from seriatim.boards import catalogue

    config = catalogue.machine(args)
    if not args.board and args.shift_lanes is None and uneven(args.quant or ""):
        config = dataclasses.replace(config, shift_lanes=config.k // 16)
    return config


def memory_of(args) -> Memory:
    """The memory behind the machine that the command line describes."""
    if args.board:
        from seriatim.boards import catalogue

        return catalogue.find(args.board).timing
    return Memory(latency=args.latency, outstanding=args.outstanding)


def complete(args) -> None:
    """Fills in what the command line leaves to --board: the level, the number of images, the clock, the memory."""
    if args.device and not args.board:
        raise ConfigError(f"--device {args.device} without --board: say which board is there")
    args.session = args.session or ("board" if args.board else "rtl")
    if args.images is None:
        from seriatim.boards import catalogue

        args.images = catalogue.find(args.board).images if args.board else catalogue.IMAGES
    if getattr(args, "clock_mhz", 0) is None:
        from seriatim.boards import catalogue

        args.clock_mhz = catalogue.find(args.board).clock_hz / 1e6 if args.board else 100
    if args.board:
        memory = memory_of(args)
        args.latency, args.outstanding = memory.latency, memory.outstanding


def opener(level: str, memory: Memory | None = None, library: Path | None = None, observe: bool = False, board: str | None = None,
           device: str | None = None) -> OpenSession:
    """Opens sessions of a level: "rtl" (the Verilated machine, on `memory`, by default `Memory()`), "isa", or "board": the board
    of that name, at serial port `device` or simulated. `observe`: they remember what a trace is made of; raises ConfigError where
    the level cannot."""
    if observe and level != "rtl":
        raise ConfigError(f"--trace on the {level} level: it has no trace ports; use --session rtl")
    if level == "board":
        from seriatim.boards import catalogue, session, soc

        found = catalogue.find(board)
        if device:
            return session.opener(device, found.baud)
        return soc.opener(found)
    if level == "isa":
        from seriatim.sim.session import IsaSession

        return IsaSession
    from seriatim.sim.rtl import RtlSession
    from seriatim.sim.verilated import MemoryModel

    model = MemoryModel(**dataclasses.asdict(memory or Memory()))
    return lambda config, size: RtlSession(config, size, model=model, library_path=library, progress=_cycles, observe=observe)


def _cycles(cycles: int) -> None:
    print(f"\r{cycles:,} cycles", end="", file=sys.stderr, flush=True)


class Step:
    """Prints what a long step does, and how long it took."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self):
        self.start = time.perf_counter()
        print(f"{self.what} ...", file=sys.stderr, flush=True)
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            print(f"\r  {time.perf_counter() - self.start:.1f} s", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Job:
    """A trained net, its integer network, and the images that it is to be run on: integer codes (N, C, H, W) and what the net's
    task compares the answers with (a classifier's labels)."""

    net: "Net"
    network: "IntegerNetwork"
    metadata: "Metadata"
    images: np.ndarray
    targets: np.ndarray

    @classmethod
    def load(cls, args) -> "Job":
        """The network of the command line, completed by `settle` (trained, if there is none yet), and its sample images."""
        from seriatim.algo.export import export_integer
        from seriatim.algo.trained import load_net, sample_images, settle

        settle(args)
        net, metadata = load_net(args.net, args.quant, args.w, args.a, args.first_last, path=args.checkpoint)
        network = export_integer(net, args.image)
        images, targets = sample_images(net, args.images, network.image_size, args.samples)
        return cls(net, network, metadata, images, targets)

    def reference(self) -> dict[str, np.ndarray]:
        """Codes of every layer by name, from PyTorch."""
        import torch

        with torch.no_grad():
            codes = self.network.codes(torch.from_numpy(self.images.astype(np.int32)))
        return {name: tensor.numpy() for name, tensor in codes.items()}

    def measure(self, output: np.ndarray) -> float:
        """The metric of the net's task for what the integer network gave."""
        import torch

        answer = self.net.answer(torch.from_numpy(output)) * self.network.unit
        return float(self.net.task.measure(answer, torch.from_numpy(self.targets)))

    def differences(self, runs: list[Run], logits: np.ndarray) -> list[str]:
        """Names of the layers, and "the logits", of which an element differs from PyTorch."""
        reference = self.reference()
        *_, last = reference
        return [name for name, equal in compare(runs, reference).items() if not equal] + (
            [] if np.array_equal(logits, reference[last]) else ["the logits"])

    def agreement(self, images: int = 2) -> dict[str, float]:
        """Share of codes by layer that equal those of the float64 graph which was trained, over the first images."""
        import torch

        from seriatim.algo.export import agreement

        return agreement(self.net, self.network, torch.from_numpy(self.images[:images].astype(np.int64)))

    def compile(self, config: Config, memory: Memory | None = None):
        """The artefact for these images' number and size; its cycles are foretold with `memory` (by default `Memory()`)."""
        import torch

        from seriatim.compiler.codegen import generate
        from seriatim.compiler.driver import compile_network

        example = torch.zeros(self.images.shape, dtype=torch.int32)
        return compile_network(self.network, example, config, partial(generate, memory=memory),
                               metadata=dataclasses.asdict(self.metadata))


def compare(runs: list[Run], reference: dict[str, np.ndarray]) -> dict[str, bool]:
    """Layer name -> whether every element in the machine's memory equals PyTorch's. Raises MismatchError where a layer that
    ran has no counterpart."""
    equal = {}
    for run in runs:
        for layer in run.compiled.layers:
            if layer.name not in reference:
                raise MismatchError(f"layer {layer.name} ran on the machine, but PyTorch has {', '.join(reference)}")
            equal[layer.name] = bool(np.array_equal(run.tensors[layer.out], reference[layer.name]))
    return equal


def build_report(args, config: Config, job: Job, artefact, runs: list[Run], logits: np.ndarray, speedups: dict[str, dict],
                 wall_s: float) -> dict:
    """The report of a run, as `report.json` holds it."""
    reference, agreement = job.reference(), job.agreement()
    equal = compare(runs, reference)
    *_, last = reference
    layers = []
    for run in runs:
        for number, layer in enumerate(run.compiled.layers):
            tensor = run.compiled.places[layer.out].tensor
            known = number < len(run.counts.layers)
            counts = run.counts.layers[number] if known else dict.fromkeys(run.counts.total, 0)
            live = reports.liveness(run.tensors[layer.out], tensor.lo, tensor.hi)
            layers.append(reports.layer_row(layer, config, counts, live, equal[layer.name], agreement[layer.name]))
    total = reports.totals(config, runs, layers, len(job.images), args.clock_mhz, speedups,
                           energy.counts_all(config, args.session))
    seconds = sum(run.counts.wall_s for run in runs)
    return {
        "net": args.net, "quant": args.quant, "w": args.w, "a": args.a, "first_last": args.first_last,
        "image": job.network.image_size, "images": len(job.images), "level": args.session,
        "bit_exact": all(equal.values()) and bool(np.array_equal(logits, reference[last])),
        "accuracy": {"metric": job.net.task.metric, "rtl_images": len(job.images), "rtl": job.measure(logits),
                     "held_out_images": job.metadata.test_images, "held_out": job.metadata.accuracy,
                     "float_held_out": job.metadata.float_accuracy, "dataset": job.metadata.dataset,
                     "trained_at": job.metadata.image_size},
        "config": {"m": config.m, "n": config.n, "k": config.k, "on_chip_bytes": config.on_chip_bytes,
                   "axi_bits": config.axi_bits, "latency": args.latency, "hash": f"{config.hash:#010x}"},
        "totals": total,
        "sim": {"cycles_per_second": round(total["cycles"] / seconds) if seconds else 0, "wall_s": round(seconds, 3),
                "job_s": round(wall_s, 1)},
        "cpu_fallback": artefact.cpu_fallback,
        "layers": layers,
    }


def folder_of(args) -> Path:
    """Where a run's results go: `build/sim/NET-QUANT-wWaA[-fl8][-IMAGE]`, unless the command line says."""
    if args.out:
        return Path(args.out)
    name = f"{args.net}-{args.quant}-w{args.w}a{args.a}"
    if args.first_last:
        name += f"-fl{args.first_last}"
    if args.image:
        name += f"-{args.image}"
    return Path("build", "sim", name)


def main_sim(args) -> int:
    """`seriatim sim`. Returns 0 where every element of every layer equals PyTorch's, 1 otherwise."""
    start = time.perf_counter()
    complete(args)
    config, memory = config_of(args), memory_of(args)
    open_session = opener(args.session, memory, board=args.board, device=args.device)
    traced = opener(args.session, memory, observe=args.trace) if args.trace else open_session
    with Step(f"network {args.checkpoint or args.net or ''}"):
        job = Job.load(args)
    with Step(f"compiling for the {config} machine"):
        artefact = job.compile(config, memory)
    executor = Executor(config, traced)
    with Step(f"{len(job.images)} image(s) of {job.images.shape[-1]}x{job.images.shape[-1]} on the {args.session} level"):
        logits = np.asarray(artefact.run(job.images.astype(np.int32), executor=executor))
    wall_s = time.perf_counter() - start
    speedups = {}
    whole = all(row["op"] != "seriatim.qconv2d" for row in artefact.cpu_fallback)  # else these are not the network's cycles
    if args.baseline and args.session == "rtl" and executor.runs and whole and job.net.spec() is None:
        own = reports.counters(executor.runs)
        for name, twin in baseline.twins(args).items():
            with Step(f"the same network at W{twin.w}A{twin.a}, bit-serial, to compare with"):
                speedups[name] = baseline.speedup(args, twin, config, memory, open_session, own)
    with Step("comparing every layer with PyTorch"):
        report = build_report(args, config, job, artefact, executor.runs, logits, speedups, wall_s)
    path = reports.write(report, folder_of(args))
    html.write(report, path.with_name("report.html"))
    if args.trace:
        from seriatim.sim import trace

        with Step("writing the trace"):
            trace.write(executor.runs, f"{args.net} W{args.w}A{args.a} on {config}", path.with_name("trace.pftrace"))
    artefact.save(path.with_name("artefact.zip"))
    reports.show(report)
    if args.trace:
        print(f"trace, for ui.perfetto.dev: {path.with_name('trace.pftrace')}")
    print(f"report: {path}, {path.with_name('report.html')}")
    if report["bit_exact"]:
        return 0
    wrong = [layer["name"] for layer in report["layers"] if not layer["bit_exact"]]
    raise MismatchError(f"not bit-exact in {', '.join(wrong) or 'the logits'}: `seriatim diverge` with the same options "
                        "locates the first difference")
