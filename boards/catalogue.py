"""The boards: what machine each has, at which clock, on which memory, and how fast its link is."""

from dataclasses import dataclass

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError

from .memory import OnChip, Spram


@dataclass(frozen=True)
class Board:
    """A board and the machine that fits it.

    Members
    -------
    config : the machine. clock_hz : its clock.
    memory : what is behind its AXI port. timing : the same, as the compiler's cycle model expects it.
    baud : rate of the UART.
    """

    name: str
    doc: str
    config: Config
    clock_hz: int
    memory: OnChip
    timing: Memory
    baud: int


BOARDS = {board.name: board for board in (
    Board("icebreaker", "iCEBreaker: Lattice iCE40 UP5K, on-chip memory",
          Config(m=2, n=2, k=32, axi_bits=32, act_words=256, wgt_words=256, prm_words=32, res_words=16, out_words=64,
                 psum_words=16, line_bytes=256, marks=8, queue=2, outstanding=2),
          12_000_000, Spram(), Memory(latency=2, outstanding=1), 3_000_000),
)}


def find(name: str) -> Board:
    """The board of that name. Raises ConfigError."""
    if name not in BOARDS:
        raise ConfigError(f"board {name!r}: there are {', '.join(BOARDS)}")
    return BOARDS[name]
