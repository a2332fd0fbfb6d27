"""What is simulated of a board: its shell, and the chips around the FPGA."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .sdram_model import SdramModel
from .shell import Shell


class Simulated(wiring.Component):
    """A shell with its memory's chip, where there is one.

    Members
    -------
    rx, tx : the UART's lines.
    broken : the first rule (`sdram_model.Rule`) of the chip that was broken; 0: none.
    """

    def __init__(self, shell: Shell):
        self.shell = shell
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "broken": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.shell = shell = self.shell
        m.d.comb += [shell.rx.eq(self.rx), self.tx.eq(shell.tx)]
        if hasattr(shell, "pins"):
            m.submodules.chip = chip = SdramModel(shell.memory, shell.clock_hz)
            wiring.connect(m, shell.pins, chip.pins)
            m.d.comb += self.broken.eq(chip.broken)
        return m
