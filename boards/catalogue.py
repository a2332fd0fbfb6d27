"""The boards, a folder each; in it a file for each of its variants, by whose name it is called: `ulx3s/ulx3s-25f.toml`.

    doc = "ULX3S: ..."
    platform = "amaranth_boards.ulx3s:ULX3S_25F_Platform"    # module and class of Amaranth's platform, which has the pins
    tools = "ecp5"               # what makes its bitstream, one of `targets.TOOLS`
    clock_hz = 25_000_000        # of machine and shell
    baud = 1_000_000             # of the UART
    images = 10                  # that `seriatim sim` runs where nobody says

    [config]                     # the machine: members of `Config`
    [memory]                     # behind its AXI port: kind, one of MEMORIES, and members of that

Where a processing system is host and memory, there is no `platform`, `baud` and `[memory]`, but

    [timing]                     # of its memory, as the compiler's cycle model expects it: members of `config.Memory`

A user's own file is a board by its path.
"""

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path

from seriatim.config import Config, Memory
from seriatim.errors import ConfigError

from .memory import OnChip, Spram
from .sdram import Sdram

IMAGES = 10
"""Images that `seriatim sim` runs where nobody says."""
MEMORIES = {"block RAM": OnChip, "spram": Spram, "sdram": Sdram}


@dataclass(frozen=True)
class Board:
    """A board and the machine that fits it.

    Members
    -------
    folder : where its file is.
    config : the machine. clock_hz : its clock.
    timing : the memory behind its AXI port, as the compiler's cycle model expects it.
    tools : what makes its bitstream, a key of `targets.TOOLS`.
    platform : MODULE:CLASS of its pins; "": a processing system around the machine, planned by `zynq`.
    memory : what is behind the AXI port; None: the memory of a processing system, which is the host as well.
    baud : rate of the UART; 0: none.
    images : that `seriatim sim` runs where nobody says.

    Raises ConfigError: a platform without UART and memory or the other way round, a clock or a number of images that is none.
    """

    name: str
    folder: Path
    doc: str
    config: Config
    clock_hz: int
    timing: Memory
    tools: str
    platform: str = ""
    memory: OnChip | Sdram | None = None
    baud: int = 0
    images: int = IMAGES

    def __post_init__(self):
        if len({bool(self.platform), bool(self.baud), bool(self.memory)}) > 1:
            raise ConfigError(f"platform={self.platform!r}, baud={self.baud} and [memory] {self.memory}: a shell needs all "
                              "three, a processing system none")
        for name in ("clock_hz", "images"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: a whole number from 1 on")


def read(path: Path) -> Board:
    """The board of a file.

    Raises:
        ConfigError: unreadable, an unknown or a missing member, or one out of range.
    """
    try:
        content = tomllib.loads(path.read_text())
        content["config"] = Config(**content["config"])
        if "memory" in content:
            memory = content["memory"]
            content["memory"] = MEMORIES[memory.pop("kind")](**memory)
            content["timing"] = content["memory"].timing
        else:
            timing = content["timing"]
            content["timing"] = Memory(**{name: tuple(v) if isinstance(v, list) else v for name, v in timing.items()})
        return Board(path.stem, path.parent, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"board {path}: {error}; a board is a TOML file with doc, tools, clock_hz, [config] and either "
                          f"platform, baud and [memory] of kind {', '.join(MEMORIES)}, or [timing]") from error


BOARDS = {path.stem: read(path) for path in sorted(Path(__file__).parent.glob("*/*.toml"))}


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
    """The board of that name, or that of a user's file. Raises ConfigError."""
    if name in BOARDS:
        return BOARDS[name]
    if name.endswith(".toml"):
        return read(Path(name))
    raise ConfigError(f"board {name!r}: there are {', '.join(BOARDS)}; or name a file of yours that ends with .toml")
