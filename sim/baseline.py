"""The networks to compare with: the same net at W8A8, or at its own widths on the bit-serial engine, quantised in its own right,
on the same machine, images and memory."""

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
from seriatim.sim.report import SPEEDUPS
from seriatim.sim.session import cycles

BITS = 8
CACHE = "sim/twins"
"""Folder of the figures, in the cache."""
SOURCES = ("", "algo", "compiler", "hw")
"""Parts of the package on whose text the counts depend: contract, export, compiler, machine."""


def twins(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """The command lines to compare `args` with, by the name of the comparison in a report's totals: the net at W8A8, and where
    its quantiser asks for the shift-add engine, at its own widths on the bit-serial one."""
    from seriatim.algo.quantisers.registry import uneven

    def twin(w: int, a: int, first_last: int | None) -> argparse.Namespace:
        return argparse.Namespace(**vars(args) | {"quant": "slb", "w": w, "a": a, "first_last": first_last, "checkpoint": None})

    w8a8, bit_serial = SPEEDUPS
    found = {w8a8: twin(BITS, BITS, None)}
    if uneven(args.quant):
        found[bit_serial] = twin(args.w, args.a, args.first_last)
    return found


def is_twin(args: argparse.Namespace, twin: argparse.Namespace) -> bool:
    """Whether the command line asks for the twin itself."""
    same = args.first_last in (None, args.w) if twin.first_last is None else args.first_last == twin.first_last
    return (args.quant, args.w, args.a) == (twin.quant, twin.w, twin.a) and same


def speedup(args: argparse.Namespace, twin: argparse.Namespace, config: Config, memory: Memory, open_session: OpenSession,
            own: dict[Counter, int]) -> dict:
    """How many times the cycles and the energy of `own`, the counters of the run, `twin` takes. `open_session` opens machines on
    `memory`."""
    if is_twin(args, twin):
        found = {"counts": {c.name: own[c] for c in Counter}, "checkpoint": "this run", "held_out": None}
    else:
        found = _measure(twin, config, memory, open_session)
    counts = {c: found["counts"][c.name] for c in Counter}
    spent, uj = (energy.table(config, n)["total"] for n in (own, counts))
    return {
        "cycles": round(cycles(counts) / cycles(own), 4), "energy": round(uj / spent, 4),
        "twin": f"W{twin.w}A{twin.a}", "twin_cycles": cycles(counts), "twin_energy_uj": uj,
        "twin_checkpoint": found["checkpoint"], "twin_held_out": found["held_out"],
    }


def _measure(twin: argparse.Namespace, config: Config, memory: Memory, open_session: OpenSession) -> dict:
    """Counters and origin of the twin's run, from the cache or from a run, every layer of which equals PyTorch's."""
    from seriatim.algo.trained import load_net
    from seriatim.sim.driver import Job

    name = f"W{twin.w}A{twin.a}"
    path = _checkpoint(twin)
    if not path.exists():
        load_net(twin.net, twin.quant, twin.w, twin.a, twin.first_last)  # trains, and leaves the checkpoint there

    def make(folder: Path) -> None:
        job = Job.load(twin)
        executor = Executor(config, open_session)
        logits = np.asarray(job.compile(config, memory).run(job.images.astype(np.int32), executor=executor))
        wrong = job.differences(executor.runs, logits)
        if wrong:
            raise MismatchError(f"{name} is not bit-exact in {', '.join(wrong)}: `seriatim diverge --w {twin.w} --a {twin.a}` "
                                f"with the same options locates the first difference; --no-baseline leaves {name} out")
        counts = {c.name: sum(run.counts.total[c] for run in executor.runs) for c in Counter}
        found = {"counts": counts, "checkpoint": job.metadata.command or path.name, "held_out": job.metadata.accuracy}
        (folder / "counts.json").write_text(json.dumps(found, indent=1) + "\n")

    what = f"the {name} figures: {twin.net} on the {config} machine, {twin.images} image(s)"
    return json.loads((build.cached(CACHE, _key(twin, config, memory, path), make, what) / "counts.json").read_text())


def _checkpoint(args: argparse.Namespace) -> Path:
    """Where `load_net` finds, or leaves, the net."""
    from seriatim.algo import trained

    name = f"{trained.name_of(args.net, args.quant, args.w, args.a, args.first_last)}.ckpt"
    return trained.SHIPPED / name if (trained.SHIPPED / name).exists() else trained.CACHE / name


def _key(args: argparse.Namespace, config: Config, memory: Memory, checkpoint: Path) -> str:
    """Digest of everything that the counts depend on."""
    parts = {"": Path(seriatim.__file__).parent} | {p: Path(__file__).parent.parent / p for p in SOURCES if p}
    said = [config.hash, args.net, args.quant, args.w, args.a, args.first_last, args.image, args.images, args.session,
            asdict(memory)]
    key = hashlib.sha256(json.dumps(said).encode() + checkpoint.read_bytes())
    if args.samples:
        key.update(Path(args.samples).read_bytes())
    for part in SOURCES:
        for path in sorted(parts[part].rglob("*.py")):
            key.update(path.read_bytes())
    return key.hexdigest()[:24]
