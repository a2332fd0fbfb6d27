"""Synthesis smoke: the array and the requantisation unit go through synth_ecp5."""

import dataclasses

import pytest

from seriatim.config import Config
from seriatim.hw.array import Array
from seriatim.hw.requant import Requant
from seriatim.hw.synth import cells, lut4

CONFIG = dataclasses.replace(Config(), m=1, n=1, k=32, axi_bits=32)


@pytest.mark.slow
def test_array_and_requant_synthesise():
    array = cells(Array(CONFIG), "array")
    assert lut4(array) >= CONFIG.k / 2 and array["TRELLIS_FF"] >= 2 * CONFIG.k  # a LUT4 takes two ANDs at best; operand registers
    requant = cells(Requant(lanes=1, tag_bits=1), "requant")
    assert requant["MULT18X18D"] >= 4  # m * acc is 32 by 32 bits
