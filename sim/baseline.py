"""The network to compare with: the same net at W8A8, quantised in its own right, on the same machine, images and memory."""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

import seriatim
from seriatim.config import Config, Memory
from seriatim.csr import Counter
from seriatim.errors import MismatchError
from seriatim.sim import build, energy
from seriatim.sim.executor import Executor, OpenSession
from seriatim.sim.session import cycles

BITS = 8
CACHE = "sim/w8a8"
"""Folder of the figures, in the cache."""
SOURCES = ("", "algo", "compiler", "hw")
"""Parts of the package on whose text the counts depend: contract, export, compiler, machine."""


def is_baseline(args: argparse.Namespace) -> bool:
    """Whether the command line asks for the baseline itself."""
    return args.quant == "slb" and args.w == args.a == BITS and args.first_last in (None, BITS)


def speedup(args: argparse.Namespace, config: Config, memory: Memory, open_session: OpenSession, own: dict[Counter, int]) -> dict:
    """`speedup_vs_w8a8` of a report: how many times the cycles and the energy of `own`, the counters of the run, W8A8 takes.
    `open_session` opens machines on `memory`."""
    if is_baseline(args):
        found = {"counts": {c.name: own[c] for c in Counter}, "checkpoint": "this run", "held_out": None}
    else:
        found = _measure(args, config, memory, open_session)
    counts = {c: found["counts"][c.name] for c in Counter}
    spent, uj = (energy.table(config, n)["total"] for n in (own, counts))
    return {
        "cycles": round(cycles(counts) / cycles(own), 4), "energy": round(uj / spent, 4),
        "w8a8_cycles": cycles(counts), "w8a8_energy_uj": uj,
        "w8a8_checkpoint": found["checkpoint"], "w8a8_held_out": found["held_out"],
    }


def _measure(args: argparse.Namespace, config: Config, memory: Memory, open_session: OpenSession) -> dict:
    """Counters and origin of the W8A8 run, from the cache or from a run, every layer of which equals PyTorch's."""
    from seriatim.algo.trained import load_net
    from seriatim.sim.driver import Job

    twin = argparse.Namespace(**vars(args) | {"quant": "slb", "w": BITS, "a": BITS, "first_last": None, "checkpoint": None})
    path = _checkpoint(twin)
    if not path.exists():
        load_net(twin.net, twin.quant, BITS, BITS)  # trains, and leaves the checkpoint there

    def make(folder: Path) -> None:
        job = Job.load(twin)
        executor = Executor(config, open_session)
        logits = np.asarray(job.compile(config, memory).run(job.images.astype(np.int32), executor=executor))
        wrong = job.differences(executor.runs, logits)
        if wrong:
            raise MismatchError(f"W8A8 is not bit-exact in {', '.join(wrong)}: `seriatim diverge --w 8 --a 8` with the same "
                                "options locates the first difference; --no-baseline leaves W8A8 out")
        counts = {c.name: sum(run.counts.total[c] for run in executor.runs) for c in Counter}
        found = {"counts": counts, "checkpoint": job.metadata.command or path.name, "held_out": job.metadata.accuracy}
        (folder / "counts.json").write_text(json.dumps(found, indent=1) + "\n")

    what = f"the W8A8 figures: {args.net} on the {config} machine, {args.images} image(s)"
    return json.loads((build.cached(CACHE, _key(twin, config, memory, path), make, what) / "counts.json").read_text())


def _checkpoint(args: argparse.Namespace) -> Path:
    """Where `load_net` finds, or leaves, the net."""
    from seriatim.algo import trained

    name = f"{trained.name_of(args.net, args.quant, args.w, args.a, args.first_last)}.ckpt"
    return trained.SHIPPED / name if (trained.SHIPPED / name).exists() else trained.CACHE / name


def _key(args: argparse.Namespace, config: Config, memory: Memory, checkpoint: Path) -> str:
    """Digest of everything that the counts depend on."""
    parts = {"": Path(seriatim.__file__).parent} | {p: Path(__file__).parent.parent / p for p in SOURCES if p}
    said = [config.hash, args.net, args.quant, args.image, args.images, args.session, asdict(memory)]
    key = hashlib.sha256(json.dumps(said).encode() + checkpoint.read_bytes())
    if args.samples:
        key.update(Path(args.samples).read_bytes())
    for part in SOURCES:
        for path in sorted(parts[part].rglob("*.py")):
            key.update(path.read_bytes())
    return key.hexdigest()[:24]
