"""The measurement of step time and memory, on the net for digits; no times are judged."""

import subprocess
import sys

import pytest

from seriatim.algo import steptime
from seriatim.algo.layers import SLB
from seriatim.errors import ToolError
from seriatim.sim import bench

pytestmark = pytest.mark.unit


@pytest.fixture
def small(monkeypatch):
    for name, value in {"NET": "digits", "IMAGE": 8, "BATCH": 4, "STEPS": 2, "WARM_UP": 1,
                        "SCHEMES": {"float": None, "SLB W1A8": SLB(1, 8)}}.items():
        monkeypatch.setattr(steptime, name, value)


def test_figures_are_relative_to_the_float_net(small, monkeypatch):
    monkeypatch.setattr(steptime, "peaks", lambda: {"float": 100 * 2**20, "SLB W1A8": 150 * 2**20})
    monkeypatch.setattr(steptime, "seconds", lambda: {"float": 0.5, "SLB W1A8": 0.6})
    assert bench.BENCHES["steptime"]() == {
        "float: step: s": 0.5, "SLB W1A8: step: s": 0.6, "SLB W1A8: step: times float": 1.2,
        "float: peak memory: MiB": 100, "SLB W1A8: peak memory: MiB": 150, "SLB W1A8: peak memory: times float": 1.5}


def test_steps_train(small):
    assert all(value > 0 for value in steptime.seconds().values())
    training = steptime.Training("SLB W1A8")
    before = [p.clone() for p in training.net.parameters()]
    training()
    assert sum(not p.equal(q) for p, q in zip(training.net.parameters(), before)) > len(before) / 2


def test_peak_sees_what_is_held():
    """In a process of its own, as `peak` asks for."""
    script = """
import torch
from seriatim.algo import steptime
held = []
steptime.Training = lambda name: lambda: held.append(torch.ones(2**24))  # 64 MiB, touched
print(steptime.WARM_UP, steptime.peak("float"))
"""
    times, grown = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert 0.9 * times < grown / 2**26 < times + 1.5


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(steptime, "SCHEMES", {"tea": None})
    with pytest.raises(ToolError, match="(?s)peak memory of tea: .*KeyError"):
        steptime.peaks()
