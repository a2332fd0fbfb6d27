"""Which engine a layer gets, with which codes, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from seriatim.compiler import engines, ir
from seriatim.compiler.codegen import generate
from seriatim.compiler.program import LayerInfo
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.formats import Format, Kind
from seriatim.isa import Engine, Table

CONFIG = Config(shift_lanes=4)
SOME = np.array([1, 2, -4, 0]).reshape(2, 2, 1, 1)


def alone(codes: engines.Codes, cycles=None, steps=None) -> LayerInfo:
    """A layer of one pair of words that waits for nothing."""
    steps = steps or codes.steps
    return LayerInfo("layer", "conv", (1, 8, 1, 1), 0, codes.bits, 4, 64, 64, 64, "y", cycles or steps, steps, 512, (0, 0, 0))


def choose(read: str, w_format: str, w=SOME, config=CONFIG, zeros=True, lanes=64, bound=1000, alone=alone) -> engines.Codes:
    found = engines.candidates("layer", np.asarray(w), Format.parse(w_format), Format.parse(read), zeros, lanes, bound, config)
    return engines.cheaper(found, alone, config)


@pytest.mark.parametrize("read, w_format, engine, steps", [
    ("uint4", "int4", Engine.BIT_SERIAL, 16), ("log4r1", "log4r1s", Engine.SHIFT_ADD, 16),
    ("log4r2", "int4", Engine.SHIFT_ADD, 16), ("uint8", "log4r1s", Engine.SHIFT_ADD, 16),
    ("log4r8k3", "codebook4", Engine.SHIFT_ADD, 16), ("uint2", "codebook2", Engine.BIT_SERIAL, 6),
    ("bipolar1", "log4r1s", Engine.BIT_SERIAL, 3),
])
def test_the_engine_of_fewer_steps(read, w_format, engine, steps):
    """Codebook weights with linear activations take a pass for each plane in the shift-add array; these values are 3 planes."""
    got = choose(read, w_format)
    assert (got.engine, got.steps) == (engine, steps), got.reason


def test_both_engines_are_compared():
    wide = np.array([1, -64, 0, 64]).reshape(2, 2, 1, 1)
    assert choose("uint8", "log4r1s", wide).reason == "16 cycles predicted, bit-serial 64"
    assert choose("uint1", "log4r1s", wide).engine is Engine.BIT_SERIAL
    assert choose("uint1", "log4r1s", wide).reason == "8 cycles predicted, shift-add 16"


def test_of_equal_cycles_the_engine_of_less_energy_runs_the_layer():
    """A step of the bit-serial array takes 3,584 binary products, one of the other 224."""
    wide = np.array([1, -64, 0, 64]).reshape(2, 2, 1, 1)
    got = choose("uint8", "log4r1s", wide, alone=lambda codes: alone(codes, cycles=1000, steps=64_000))
    assert got.engine is Engine.SHIFT_ADD and "µJ expected, bit-serial" in got.reason and "as many cycles" in got.reason
    few = choose("uint8", "log4r1s", wide,
                 alone=lambda codes: alone(codes, cycles=1000, steps=64 if codes.engine is Engine.BIT_SERIAL else 64_000))
    assert few.engine is Engine.BIT_SERIAL


def test_the_program_takes_the_engine_that_the_model_prefers():
    """At one activation bit the bit-serial array takes 8 passes of a word, the shift-add array 16 steps; at 8 bits 64 and 16."""
    rng = np.random.default_rng(0)
    w = rng.choice([0, 1, -2, 64], (64, 64, 3, 3)).astype(np.int32)
    for bits, engine in ((1, "bit-serial"), (8, "shift-add")):
        x, y = ir.Tensor("x", (1, 64, 7, 7), Format(Kind.UINT, bits)), ir.Tensor("y", (1, 64, 7, 7), Format(Kind.UINT, 8))
        requant = ir.Requant(np.ones(64, np.int32), np.zeros(64, np.int64), 0, 0, 255, 0)
        layer = ir.Conv("layer", x, x.format, w, Format.parse("log4r1s"), (1, 1), (1,) * 4, (1, 1), 1, requant, None, y)
        info = generate(ir.Region((x,), (y,), (layer,)), CONFIG).layers[0]
        assert info.engine == engine and "cycles predicted" in info.reason


def test_few_lanes_take_few_steps():
    assert choose("log4r1", "log4r1s", lanes=16).steps == 4
    assert choose("log5r1", "log2r1s", np.array([[[[1]]], [[[0]]]]), lanes=3).steps == 5, "a plane of activations a step"


def test_codes_of_log_weights():
    got = choose("log4r1", "log4r1s", np.array([0, 1, -1, 64]).reshape(2, 2, 1, 1))
    assert got.codes.ravel().tolist() == [0, 1, 9, 7]
    assert choose("log4r2", "log4r1s").form == dict(a_signed=0, w_signed=1, scaled=1, a_step=4, w_step=8, slices=16)


@pytest.mark.parametrize("values, zeros, bits, outside", [
    (range(-8, 8), True, 4, 8), (range(1, 17), True, 5, 16), (range(1, 17), False, 4, 0), (range(1, 16), True, 4, 15),
    ((5,), False, 1, 1),
])
def test_a_table_has_a_code_for_lanes_outside(values, zeros, bits, outside):
    """Where they must count nothing: the code of 0, an entry that is 0 for want of a value, or a code beyond the table."""
    w = np.array(values).reshape(-1, 1, 1, 1)
    got = choose("log4r1", "codebook4", w, zeros=zeros)
    table = [*got.values, *[0] * (32 - len(got.values))]
    assert (got.kind, got.bits, got.lut[0]) == (Kind.CODEBOOK, bits, outside)
    assert [table[code] for code in got.lut[got.codes].ravel()] == w.ravel().tolist() and got.codes.min() >= 1
    assert not zeros or table[outside] == 0


@pytest.mark.parametrize("change, reason", [
    (dict(config=Config()), "layer: .*needs? the shift-add engine, which this machine has not"),
    (dict(config=replace(CONFIG, shift_span=19)), "a shift by 20 octaves: the engine shifts by 19"),
    (dict(config=replace(CONFIG, shift_classes=2), read="log3r4"), "4 residue classes: the shift-add engine has 2"),
    (dict(config=replace(CONFIG, shift_w_bits=3)), "w_bits = 4: the shift-add engine has 3 planes"),
    (dict(bound=1 << 47), "accumulators up to 140737488355328: the shift-add engine has 48 bits"),
    (dict(w=np.arange(17).reshape(17, 1, 1, 1), w_format="codebook5"), "17 different weights: .* table has 16"),
    (dict(w=np.array([[[[1 << 15]]]]), w_format="codebook1"), "weights of 32768 to 32768"),
    (dict(read="log6r2"), "log codes have 5 bits"),
])
def test_refusals_say_what_is_needed_and_what_there_is(change, reason):
    with pytest.raises(CompileError, match=reason):
        choose(**dict(read="log4r1", w_format="log4r1s") | change)


def coded(count: int, out: str, largest: int = 1000) -> ir.Region:
    """A layer whose output is encoded by thresholds."""
    x, y = ir.Tensor("x", (1, 64, 2, 2), Format.parse("uint4")), ir.Tensor("y", (1, 8, 2, 2), Format.parse(out))
    thresholds = np.linspace(1, largest, count).astype(np.int32)
    requant = ir.Requant(np.ones(8, np.int32), np.zeros(8, np.int64), 0, *ir.INT32, 0, thresholds)
    w = np.ones((8, 64, 1, 1), np.int32)
    layer = ir.Conv("layer", x, x.format, w, Format.parse("int4"), (1, 1), (0,) * 4, (1, 1), 1, requant, None, y)
    return ir.Region((x,), (y,), (layer,))


@pytest.mark.parametrize("region, config, reason", [
    (coded(7, "log3r1"), Config(), "layer: output by a table of thresholds needs the shift-add engine"),
    (coded(31, "log5r1"), CONFIG, "layer: 31 thresholds: this machine has 15"),
    (coded(5, "log4r1", (1 << 31) - 1), CONFIG, "layer: 5 thresholds, one of them 2147483647"),
])
def test_thresholds_are_refused(region, config, reason):
    with pytest.raises(CompileError, match=reason):
        generate(region, config)


def test_settings_of_a_layer_come_once():
    """FORMAT and the halves of both tables; of a layer in linear codes the FORMAT of a program's start."""
    codes, layer = choose("log4r1", "codebook4"), coded(7, "log3r1", 7).layers[0]
    made = engines.settings(codes, layer)
    assert [name for name, _ in made] == ["FORMAT", "TABLE", "TABLE", "TABLE", "TABLE"]
    assert [f["table"] for _, f in made[1:]] == [Table.VALUES] * 2 + [Table.THRESHOLDS] * 2
    assert [made[3][1][f"entry_{i}"] for i in range(8)] == [1, 2, 3, 4, 5, 6, 7, (1 << 31) - 1]
    assert made[0][1] == codes.form and engines.settings(codes, replace(layer, drop=3))[0][1] == codes.form | dict(drop=3)
    assert engines.settings(choose("uint4", "int4"), replace(layer, requant=replace(layer.requant, thresholds=None))) == [
        ("FORMAT", {})]
