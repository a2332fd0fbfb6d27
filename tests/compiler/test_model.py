"""The cycle model against the RTL's counters: random nets, machines and memories, none of which it was built with."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from seriatim.algo.export import export_integer
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_
from seriatim.compiler import model
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.compiler.program import Compiled
from seriatim.config import Config, Memory
from seriatim.errors import ConfigError
from seriatim.hw import axi, fetch, patch
from seriatim.hw.counters import Counters
from seriatim.hw.drain import Drain
from seriatim.hw.packer import Packer
from seriatim.hw.requant import Requant
from seriatim.sim import random_layers, soak
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor, Run, execute
from seriatim.sim.rtl import RtlSession
from seriatim.sim.session import cycles
from seriatim.sim.verilated import MemoryModel

LAYER, TOTAL = 0.03, 0.01
"""Most that the model may be off."""
SEEDS = range(40)
"""Random nets: 2 to 9 layers each, most of them of a few hundred to a few thousand cycles."""


def rows_of(run: Run) -> list[tuple[str, int, int]]:
    """(layer, predicted, measured) of every layer with counters of its own, and of the whole."""
    rows = [(layer.name, layer.cycles, cycles(counts)) for layer, counts in zip(run.compiled.layers, run.counts.layers)]
    return [*rows, ("total", run.compiled.cycles, run.counts.cycles)]


def beyond(rows, layer: float, total: float) -> list[str]:
    return [f"{name} predicted {predicted}, took {took}" for name, predicted, took in rows
            if abs(predicted - took) > (total if name == "total" else layer) * took]


@pytest.fixture(scope="module")
def measured() -> dict[str, list[tuple[str, int, int]]]:
    found = {}
    for seed in SEEDS:
        net = soak.draw(seed)
        memory = replace(net.memory, stall_percent=0)
        compiled = generate(net.region, net.config, memory)
        run = execute(compiled, {"x": net.x}, lambda config, size, memory=memory: RtlSession(config, size, model=memory))
        found[f"seed {seed} on {net.geometry}, {memory}"] = rows_of(run)
    return found


def test_the_nets_are_diverse(measured):
    rows = [row for rows in measured.values() for row in rows[:-1]]
    took = [took for _, _, took in rows]
    assert len(rows) > 150 and min(took) < 1000 and max(took) > 100_000
    assert all(geometry in " ".join(measured) for geometry in random_layers.GEOMETRIES)


def test_every_layer_and_the_total(measured):
    wrong = [f"{where}: {text}" for where, rows in measured.items() for text in beyond(rows, LAYER, TOTAL)]
    assert not wrong, "\n".join(wrong)


def test_to_the_cycle(measured):
    """The model goes through the same registers as the hardware: who moves one of them moves it in the model."""
    wrong = [f"{where}: {text}" for where, rows in measured.items() for text in beyond(rows, 0, 0)]
    assert not wrong, "\n".join(wrong)


def test_the_shift_add_engine_to_the_cycle():
    """Random layers in log and codebook formats on the machine that has the engine."""
    geometry, wrong, count = list(random_layers.GEOMETRIES).index("2x4x32"), [], 0
    for seed in range(geometry, 280, len(random_layers.GEOMETRIES)):
        case = random_layers.draw(seed)
        memory = MemoryModel(latency=(3, 100, 300)[seed // 4 % 3])
        compiled = generate(case.region, case.config, memory)
        if compiled.layers[0].engine != "shift-add":
            continue
        run = execute(compiled, case.inputs, lambda config, size, memory=memory: RtlSession(config, size, model=memory))
        wrong += [f"{case}: {text}" for text in beyond(rows_of(run), 0, 0)]
        count += 1
    assert not wrong and count > 15, "\n".join(wrong)


@pytest.mark.parametrize("w, a, memory", (
    (1, 2, Memory()), (3, 3, Memory(latency=300)), (2, 1, Memory(10, read_bandwidth=(2, 3), write_bandwidth=(1, 2)))))
def test_resnet20(w, a, memory):
    """Residuals, downsampling, average pool and classifier; cycles do not depend on what the weights have learnt."""
    torch.manual_seed(0)
    network = export_integer(quantize_(build("resnet20"), SLB(w, a)).eval(), 32)
    executor = Executor(Config(), opener("rtl", memory))
    artefact = compile_network(network, torch.zeros(1, 3, 32, 32, dtype=torch.int32), Config(), partial(generate, memory=memory))
    artefact.run(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32)).astype(np.int32), executor=executor)
    run, = executor.runs
    rows = rows_of(run)
    assert len(rows) == len(network.layers) + 1 and not beyond(rows, LAYER, TOTAL)


def test_slow_memory_takes_longer_in_the_same_program():
    net = soak.draw(0)
    slow, fast = (generate(net.region, net.config, Memory(latency)) for latency in (300, 10))
    assert slow.program == fast.program and slow.cycles > fast.cycles
    again = Compiled.from_bytes(slow.to_bytes())
    assert again.cycles == slow.cycles == sum(layer.cycles for layer in again.layers)


def test_constants_are_the_hardwares():
    assert (model.BURST, model.AHEAD, model.NOTICE) == (axi.BURST, fetch.AHEAD, Drain.NOTICE)
    assert (model.SUM_CYCLES, model.PACK_CYCLES) == (Drain.SUM_CYCLES, Packer.LATENCY)
    assert model.REQUANT_CYCLES == Requant(1, 1).latency
    assert model.REQUANT_CYCLES + model.ENCODE_CYCLES == Requant(1, 1, thresholds=15).latency
    assert model.MARK_CYCLES == Counters.OWN
    assert (model.CHUNK, model.PLANES) == (patch.CHUNK, patch.PLANES)


@pytest.mark.parametrize("bad", (dict(latency=0), dict(outstanding=0), dict(read_bandwidth=(2, 1)), dict(write_bandwidth=(0, 1))))
def test_memory_that_cannot_be(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Memory(**bad)
