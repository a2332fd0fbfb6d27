"""The shell elaborates for every memory, and refuses what cannot be built."""

import dataclasses

import pytest

from seriatim.boards.memory import OnChip, Spram
from seriatim.boards.shell import Shell
from seriatim.config import Config
from seriatim.errors import ConfigError
from seriatim.hw.convert import to_verilog
from seriatim.hw.synth import Up5k

pytestmark = pytest.mark.filterwarnings("ignore::amaranth._unused.UnusedMustUse")

SMALL = Config(m=2, n=2, k=32, axi_bits=32, act_words=64, wgt_words=64, prm_words=16, res_words=16, out_words=16, psum_words=16,
               line_bytes=64, marks=4, queue=2, outstanding=2)


@pytest.mark.parametrize(("memory", "cell"), [(OnChip(1 << 16), "reg [31:0] memory"), (Spram(), "SB_SPRAM256KA")])
def test_elaborates(memory, cell):
    assert cell in to_verilog(Shell(SMALL, clock_hz=12_000_000, baud=3_000_000, memory=memory), "soc", Up5k())


def test_refuses_a_rate_that_the_clock_does_not_give():
    with pytest.raises(ConfigError, match="4000000 baud from a clock of 12000000 Hz.*3000000 baud at most"):
        Shell(SMALL, clock_hz=12_000_000, baud=4_000_000, memory=OnChip(4096))
    with pytest.raises(ConfigError, match="880000 baud .*14 cycles.*choose 857142"):
        Shell(SMALL, clock_hz=12_000_000, baud=880_000, memory=OnChip(4096))


def test_refuses_a_memory_of_another_width():
    with pytest.raises(ConfigError, match="words of 64 bits.*axi_bits=32"):
        Shell(dataclasses.replace(Config(), m=1), clock_hz=12_000_000, baud=115_200, memory=Spram())
    with pytest.raises(ConfigError, match="5000 bytes: whole pages of 4096"):
        OnChip(5000)
