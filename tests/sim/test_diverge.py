"""A fault injected into the RTL is located: layer, tile, coordinate, stage and bits."""

import dataclasses
import re

import numpy as np
import pytest

from seriatim.compiler.codegen import generate
from seriatim.compiler.ir import Conv, MaxPool, Region, Requant, Tensor, interpret
from seriatim.config import Config
from seriatim.formats import Format
from seriatim.sim import build, rtl
from seriatim.sim.diverge import locate
from seriatim.sim.driver import opener
from seriatim.sim.executor import execute

CONFIG = dataclasses.replace(Config(), m=2, n=4, k=32, axi_bits=32)
UINT4 = Format.parse("uint4")


def region(seed=0) -> Region:
    """Two convolutions with a pool between them, 5x6, 8 channels."""
    rng = np.random.default_rng(seed)
    x, a, b, c = (Tensor(name, (1, 8, 5 - i // 2, 6 - i // 2), UINT4) for i, name in enumerate("xabc"))
    b, c = (Tensor(t.name, (1, 8, 4, 5), UINT4) for t in (b, c))

    def conv(name, source, out):
        w = rng.integers(-2, 2, (8, 8, 3, 3)).astype(np.int32)
        requant = Requant(rng.integers(200, 900, 8).astype(np.int32), rng.integers(1 << 15, 1 << 17, 8), 14, 0, 15)
        return Conv(name, source, UINT4, w, Format.parse("int2"), (1, 1), (1, 1, 1, 1), (1, 1), 1, requant, None, out)

    layers = (conv("first", x, a), MaxPool("pool", a, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1), b), conv("second", b, c))
    return Region((x,), (c,), layers)


@pytest.fixture(scope="module")
def golden():
    r = region()
    codes = {"x": np.random.default_rng(1).integers(0, 16, r.inputs[0].shape)}
    tensors = interpret(r, codes)
    expected = {layer.name: tensors[layer.out.name] for layer in r.layers}
    assert all(len(np.unique(value)) > 4 for value in expected.values())
    return r, codes, expected


def diverge(golden, library=None):
    r, codes, expected = golden
    open_session = opener("rtl", library=library)
    return locate(r, execute(generate(r, CONFIG), codes, open_session), expected, open_session)


def faulty(pattern: str, replacement: str):
    """The accelerator with one edit in its Verilog."""
    text, count = re.subn(pattern, replacement, rtl.verilog(CONFIG))
    assert count, f"{pattern!r} is not in the Verilog"
    return build.build(text, axi_bits=CONFIG.axi_bits)


def test_the_sound_machine_does_not_diverge(golden):
    assert diverge(golden) is None


def test_a_fault_in_a_popcount_is_an_accumulator_fault(golden):
    found = diverge(golden, faulty(r"assign o = \$countones\(i\)", "assign o = $countones(i) & ~4"))
    assert (found.layer, found.stage) == ("first", "accumulator")
    assert found.acc_expected != found.acc_found and found.count > 0
    assert found.tile is not None and 0 <= found.tile.slice < CONFIG.m
    assert "accumulator" in str(found) and f"{found.tile.execute_pc:#x}" in str(found)


def test_the_tile_is_the_one_that_wrote_the_element(golden):
    r, codes, _ = golden
    compiled = generate(r, CONFIG)
    run = execute(compiled, codes, opener("isa"))
    for layer in r.layers:
        expected = {other.name: run.tensors[other.out.name] for other in r.layers}
        for at in [(0, 0, 0, 0), (0, 7, 3, 4), (0, 5, 2, 1)]:
            wrong = expected[layer.name].copy()
            wrong[at] ^= 5
            found = locate(r, run, expected | {layer.name: wrong}, opener("isa"))
            assert (found.layer, found.coordinate, found.count) == (layer.name, at, 1)
            assert found.expected ^ found.found == 5 and "bits 0, 2" in str(found)
            assert found.stage.startswith("pool" if layer.name == "pool" else "requant")
            assert found.tile is not None
