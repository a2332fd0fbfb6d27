"""Runs compiled programs on sessions, and keeps what each run left in memory and in the counters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seriatim.compiler.program import Compiled
from seriatim.config import Config
from seriatim.errors import ArtefactError
from seriatim.sim.session import Counts, Program, Session

OpenSession = Callable[[Config, int], Session]
"""`open(config, memory_bytes)`: a session with that much memory."""


@dataclass(frozen=True)
class Run:
    """One program that ran: every tensor's codes by name, the counters, the bytes that the host wrote for its inputs, and what
    the session's trace ports did (see `Session.observed`)."""

    compiled: Compiled
    tensors: dict[str, np.ndarray]
    counts: Counts
    host_bytes: int
    observed: dict[str, np.ndarray]


def program_of(compiled: Compiled) -> Program:
    return Program(compiled.program, compiled.program_address, compiled.read_range, compiled.write_range, compiled.marks)


class Executor:
    """What `compiler.runtime.use` takes: each program runs on a fresh session; `runs` holds them in order."""

    def __init__(self, config: Config, open_session: OpenSession):
        self.config, self.open_session, self.runs = config, open_session, []

    def __call__(self, program: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
        compiled = Compiled.from_bytes(program)
        if compiled.config != self.config:
            raise ArtefactError(f"a program for config {compiled.config.hash:#010x} ({compiled.config}): this machine is "
                                f"{self.config.hash:#010x} ({self.config}); compile for it")
        run = execute(compiled, dict(zip(compiled.inputs, inputs, strict=True)), self.open_session)
        self.runs.append(run)
        return [run.tensors[name] for name in compiled.outputs]


def execute(compiled: Compiled, inputs: dict[str, np.ndarray], open_session: OpenSession) -> Run:
    """Runs one program on a session of its own; `inputs` are codes (N, C, H, W) by name. Raises DataError, MachineError."""
    with open_session(compiled.config, compiled.memory_bytes) as session:
        session.write(0, compiled.image)
        host_bytes = 0
        for name, codes in inputs.items():
            data = compiled.pack(name, codes)
            session.write(compiled.places[name].address, data)
            host_bytes += len(data)
        counts = session.run(program_of(compiled))
        observed = session.observed()
        tensors = {name: compiled.unpack(name, session.read(place.address, place.size))
                   for name, place in compiled.places.items()}
    return Run(compiled, tensors, counts, host_bytes, observed)
