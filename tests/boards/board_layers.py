"""Random layers for a board's machine."""

import contextlib

import layer_reference
import numpy as np

from seriatim.boards import catalogue
from seriatim.compiler import legal
from seriatim.compiler.codegen import generate
from seriatim.errors import CompileError
from seriatim.sim import random_layers as layers
from seriatim.sim.executor import program_of

BOARD = catalogue.find("icebreaker")


def layer(seed: int, kind: str):
    """A random layer for the board's machine: its program, inputs and right output."""
    rng = np.random.default_rng(seed)
    while True:
        case = layers.MAKERS[kind](rng, BOARD.config)
        if case is not None and legal.refusal(case[0]) is None:
            case = layers.Case(seed, "", *case)
            with contextlib.suppress(CompileError):  # layers too large for this machine
                compiled = generate(case.region, BOARD.config)
                if compiled.memory_bytes <= 12_000:
                    return compiled, case.inputs, layer_reference.by_reference(case)


def run(machine, compiled, inputs):
    """Output and counters of a program."""
    machine.write(0, compiled.memory(inputs))
    counts = machine.run(program_of(compiled))
    place = compiled.places["out"]
    return compiled.unpack("out", machine.read(place.address, place.size)), counts
