"""The boards: what machine each has, at which clock, on which memory, and how fast its link is."""

import argparse
from dataclasses import dataclass, replace

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError

from .memory import OnChip, Spram
from .sdram import Sdram

IMAGES = 10
"""Images that `seriatim sim` runs where nobody says."""


@dataclass(frozen=True)
class Board:
    """A board and the machine that fits it.

    Members
    -------
    config : the machine. clock_hz : its clock.
    memory : what is behind its AXI port; None: the memory of a processing system, which is the host as well.
    timing : the same, as the compiler's cycle model expects it.
    baud : rate of the UART; 0: none.
    images : that `seriatim sim` runs where nobody says.
    """

    name: str
    doc: str
    config: Config
    clock_hz: int
    memory: OnChip | Sdram | None
    timing: Memory
    baud: int
    images: int = IMAGES


ON_CHIP = Memory(latency=2, outstanding=1)
"""Block RAM's timing."""
SDRAM_32 = Memory(latency=12, outstanding=1, read_bandwidth=(1, 2), write_bandwidth=(1, 2))
"""That of `Sdram` in words of 32 bits at 25 MHz: the cycles of the digits network, as the simulated board counts them."""

_SMALL = Config(m=1, n=2, k=32, axi_bits=32, act_words=1024, wgt_words=512, prm_words=64, res_words=128, out_words=128,
                psum_words=128, line_bytes=256, max_planes=8, marks=16, queue=2, outstanding=2, multiplier_stages=2)

_COMPACT = Config(m=1, n=1, k=32, axi_bits=32, act_words=512, wgt_words=8192, prm_words=512, res_words=128, out_words=128,
                  psum_words=512, line_bytes=256, max_planes=8, marks=16, compact=1)

BOARDS = {board.name: board for board in (
    Board("icebreaker", "iCEBreaker: Lattice iCE40 UP5K, its SPRAM; the compact machine",
          _COMPACT, 12_000_000, Spram(64 << 10), ON_CHIP, 3_000_000, images=4),
    Board("ulx3s-85f", "ULX3S: Lattice ECP5 LFE5U-85F, SDRAM",
          Config(m=4, n=8, k=64, axi_bits=32, act_words=2048, wgt_words=512, prm_words=128, res_words=512, out_words=512,
                 psum_words=512, max_planes=8, multiplier_stages=2),
          25_000_000, Sdram(capture=0), SDRAM_32, 1_000_000),
    Board("ulx3s-45f", "ULX3S: Lattice ECP5 LFE5U-45F, SDRAM", _SMALL, 25_000_000, Sdram(capture=0), SDRAM_32, 1_000_000),
    Board("ulx3s-25f", "ULX3S: Lattice ECP5 LFE5U-25F, SDRAM; the compact machine",
          replace(_COMPACT, act_words=2048, res_words=512, out_words=512), 25_000_000, Sdram(capture=0), SDRAM_32, 1_000_000),
    Board("ecpix5-85", "ECPIX-5: Lattice ECP5 LFE5UM5G-85F, block RAM", _SMALL, 25_000_000, OnChip(64 << 10), ON_CHIP, 1_000_000),
    Board("tang-primer-20k", "Tang Primer 20K with its dock: Gowin GW2A-18C, block RAM; the compact machine",
          replace(_COMPACT, wgt_words=2048, prm_words=128, marks=8), 27_000_000, OnChip(32 << 10), ON_CHIP, 3_000_000, images=1),
    Board("arty-a7-100", "Arty A7-100T: Xilinx XC7A100T, block RAM",
          Config(act_words=2048, wgt_words=1024, max_planes=8, multiplier_stages=2), 100_000_000, OnChip(64 << 10), ON_CHIP,
          3_000_000),
    Board("pynq-z2", "PYNQ-Z2: Xilinx Zynq XC7Z020, the processing system's DDR3",
          Config(act_words=2048, wgt_words=1024, max_planes=8, multiplier_stages=2), 100_000_000, None, Memory(latency=40), 0),
)}


def machine(args: argparse.Namespace) -> Config:
    """The machine of a command line: a board's, or Config's default but for what is given. Raises ConfigError for both."""
    sizes = {"m": args.m, "n": args.n, "k": args.k, "axi_bits": args.axi, "shift_lanes": args.shift_lanes}
    given = {name: value for name, value in sizes.items() if value is not None}
    if not args.board:
        return Config(**given)
    if given:
        raise ConfigError(f"--board {args.board} with --m, --n, --k, --axi or --shift-lanes: a board has its own machine; "
                          "leave them out")
    return find(args.board).config


def find(name: str) -> Board:
    """The board of that name. Raises ConfigError."""
    if name not in BOARDS:
        raise ConfigError(f"board {name!r}: there are {', '.join(BOARDS)}")
    return BOARDS[name]
