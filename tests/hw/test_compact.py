"""The compact machine in Verilator: random programs and layers equal the ISA simulator's, errors stop it as they stop the other."""

import numpy as np
import pytest
import random_programs as programs
import test_random_layers as layers_test
import test_random_programs as programs_test

from seriatim import csr, isa
from seriatim.config import Config
from seriatim.csr import CYCLE_COUNTERS, Cause, Counter
from seriatim.errors import ConfigError, MachineError, SeriatimError
from seriatim.isa import Sem
from seriatim.sim import random_layers as layers
from seriatim.sim.rtl import RtlSession
from seriatim.sim.session import Program
from seriatim.sim.verilated import MemoryModel

pytestmark = pytest.mark.rtl
CONFIG = Config(1, 1, 32, 32, act_words=512, wgt_words=160, prm_words=32, res_words=64, out_words=64, psum_words=128,
                line_bytes=512, max_planes=16, marks=4, compact=1)
COUNTED = (Counter.READ_BEATS, Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS)
MEMORIES = MemoryModel(latency=2), MemoryModel(latency=1, outstanding=3, stall_percent=40, seed=3)


@pytest.mark.parametrize("model", MEMORIES, ids=["steady", "holding"])
def test_random_programs(monkeypatch, model):
    monkeypatch.setattr(programs, "CONFIG", CONFIG)
    monkeypatch.setattr(programs_test, "COUNTED", COUNTED)
    with RtlSession(CONFIG, programs.SIZE, model=model) as session:
        for seed in range(12) if model is MEMORIES[0] else range(12, 20):
            case = programs.draw(seed, illegal=0.5)
            try:
                programs_test.check(case, session)
            except (AssertionError, SeriatimError) as error:
                raise AssertionError(f"{error}\n{case}") from error


def test_random_layers(monkeypatch):
    monkeypatch.setattr(layers_test, "COUNTED", COUNTED)
    with RtlSession(layers.OTHERS[layers.COMPACT], layers_test.MEMORY_BYTES, model=MEMORIES[0]) as session:
        for seed in range(12):
            case = layers.draw(seed, layers.COMPACT)
            try:
                layers_test.check(case, session)
            except (AssertionError, SeriatimError) as error:
                raise AssertionError(f"{error}\n{case}") from error
