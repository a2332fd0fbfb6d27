"""Clocks of a board: the PLL that makes the machine's clock from the oscillator's."""

from dataclasses import dataclass

from amaranth.hdl import ClockDomain, ClockSignal, Const, Elaboratable, Instance, Module, Signal
from amaranth.lib.cdc import ResetSynchronizer

from seriatim.errors import ConfigError

VCO_HZ = (400_000_000, 800_000_000)
"""Range of an ECP5's oscillator."""
PHASE_HZ = (3_125_000, 400_000_000)
"""Range of what it compares."""


@dataclass(frozen=True)
class Dividers:
    """out = in / reference * feedback; its oscillator runs at out * output."""

    reference: int
    feedback: int
    output: int


def dividers(input_hz: int, output_hz: int) -> Dividers:
    """Dividers of an EHXPLLL that give `output_hz` exactly, with its oscillator as near to the middle as can be.

    Raises ConfigError where there are none.
    """
    middle = sum(VCO_HZ) // 2
    found = [
        Dividers(reference, feedback, output)
        for reference in range(1, 129) if PHASE_HZ[0] <= input_hz / reference <= PHASE_HZ[1]
        for feedback in range(1, 81) if input_hz * feedback == output_hz * reference
        for output in range(1, 129) if VCO_HZ[0] <= output_hz * output <= VCO_HZ[1]
    ]
    if not found:
        raise ConfigError(f"a clock of {output_hz} Hz from {input_hz} Hz: no dividers of the PLL give it; round it to MHz")
    return min(found, key=lambda d: (d.reference, abs(output_hz * d.output - middle)))


class Ecp5Pll(Elaboratable):
    """Domain `sync` of `output_hz` from the signal `clock` of `input_hz`; in reset until the PLL has locked."""

    def __init__(self, clock: Signal, input_hz: int, output_hz: int):
        self.clock, self.dividers = clock, dividers(input_hz, output_hz)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        d = self.dividers
        locked, out = Signal(), Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            p_CLKI_DIV=d.reference, p_CLKFB_DIV=d.feedback, p_CLKOP_DIV=d.output, p_CLKOP_CPHASE=d.output - 1, p_CLKOP_FPHASE=0,
            p_CLKOP_ENABLE="ENABLED", p_CLKOS_ENABLE="DISABLED", p_CLKOS2_ENABLE="DISABLED", p_CLKOS3_ENABLE="DISABLED",
            p_FEEDBK_PATH="CLKOP", p_OUTDIVIDER_MUXA="DIVA", p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED", p_DPHASE_SOURCE="DISABLED",
            i_CLKI=self.clock, i_CLKFB=out, o_CLKOP=out, o_LOCK=locked, i_ENCLKOP=Const(0), i_RST=Const(0), i_STDBY=Const(0),
            i_PHASESEL0=Const(0), i_PHASESEL1=Const(0), i_PHASEDIR=Const(1), i_PHASESTEP=Const(1), i_PHASELOADREG=Const(1),
            i_PLLWAKESYNC=Const(0),
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8", a_MFG_ENABLE_FILTEROPAMP="1", a_MFG_GMCREF_SEL="2",
        )
        m.d.comb += ClockSignal("sync").eq(out)
        m.submodules.reset = ResetSynchronizer(~locked, domain="sync")
        return m
