"""`seriatim run`: an artefact on a board, every tensor compared with the ISA simulator's."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from seriatim.compiler import artefact
from seriatim.compiler.program import Compiled
from seriatim.errors import ConfigError, DataError, MismatchError
from seriatim.formats import Format
from seriatim.sim.executor import Executor, OpenSession, Run, execute
from seriatim.sim.session import IsaSession, cycles

from . import catalogue, session, soc

NAME = "artefact.zip"


def open_of(args: argparse.Namespace) -> OpenSession:
    """Opens sessions of what the command line names: a device, or a board to be simulated."""
    if args.device:
        baud = args.baud or (catalogue.find(args.board).baud if args.board else None)
        if baud is None and not args.device.startswith(session.PLAY):
            raise ConfigError(f"--device {args.device} without --board or --baud: say at which rate its link runs")
        return session.opener(args.device, baud, args.record)
    if not args.board:
        raise ConfigError("no board: --device PORT names the one to run on, --board NAME alone one to simulate")
    if args.record:
        raise ConfigError(f"--record {args.record} without --device: only the link of a device is recorded")
    return soc.opener(catalogue.find(args.board))


def inputs_of(specs: list[dict], seed: int, samples: str | None) -> list[np.ndarray]:
    """Codes for each input of an artefact: those of `samples` (an .npz with an array for each, by name), or random ones."""
    if samples:
        try:
            with np.load(samples) as data:
                return [data[spec["name"]].astype(np.int32) for spec in specs]
        except (OSError, ValueError, KeyError) as e:
            raise DataError(f"{samples}: {e}; an .npz with arrays {', '.join(spec['name'] for spec in specs)} of codes") from e
    for spec in specs:
        if "format" not in spec:
            raise DataError(f"input {spec['name']} goes to a layer on the CPU, so that its codes' range is not known: "
                            "give --samples")
    rng = np.random.default_rng(seed)
    formats = [Format.parse(spec["format"]) for spec in specs]
    return [rng.integers(f.lo, f.hi + 1, spec["shape"], np.int32) for f, spec in zip(formats, specs)]


def compared(config, open_session: OpenSession, done: Callable[[Run], None]) -> Callable:
    """An executor that runs each program on the board and on the ISA simulator, and hands the board's run to `done`. Raises
    MismatchError where a tensor differs."""
    board = Executor(config, open_session)

    def run(program: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = board(program, inputs)
        found = board.runs[-1]
        compiled = Compiled.from_bytes(program)
        expected = execute(compiled, dict(zip(compiled.inputs, inputs)), IsaSession)
        for name, codes in expected.tensors.items():
            if not np.array_equal(codes, found.tensors[name]):
                wrong = np.argwhere(codes != found.tensors[name])
                at = tuple(map(int, wrong[0]))
                raise MismatchError(f"tensor {name}: {len(wrong)} of {codes.size} codes differ from the ISA simulator's, the "
                                    f"first at (n, c, y, x) = {at}: {found.tensors[name][at]} instead of {codes[at]}")
        done(found)
        return outputs

    return run


def show(run: Run) -> None:
    """Prints the counters of a run, by layer."""
    print(f"  {'layer':20} {'cycles':>12} {'predicted':>12}")
    for layer, counts in zip(run.compiled.layers, run.counts.layers):
        print(f"  {layer.name:20} {cycles(counts):12,} {layer.cycles:12,}")
    print(f"  {'total':20} {run.counts.cycles:12,} {run.compiled.cycles:12,}")


def main(args: argparse.Namespace) -> None:
    """`seriatim run ARTEFACT`: see the verb."""
    path = Path(args.path, NAME) if Path(args.path).is_dir() else Path(args.path)
    found = artefact.read(path)
    if not found.programs:
        raise ConfigError(f"{path}: nothing of this network runs on the machine: there is no program to run")
    config = Compiled.from_bytes(found.programs[0]).config
    inputs = inputs_of(found.manifest["inputs"], args.seed, args.samples)
    found.run(inputs, executor=compared(config, open_of(args), show))
    print(f"bit-exact: every tensor of {len(found.programs)} program(s) on the {config} machine equals the ISA simulator's")
