"""Units that sleep: in a fast simulation a unit's clock stops in cycles that would not change any of its registers."""

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

UNITS = ("fetch", "load", "patch", "store", "drain", "pool", "semaphores", "registers")
"""Units with an `awake` port: high unless the next clock edge leaves all their registers as they are (payloads of pipeline stages
that hold nothing excepted). It follows registers alone. A unit is its own clock domain where units sleep."""


def units(config: Config) -> tuple[str, ...]:
    """The units that this machine has."""
    return (*UNITS, "shift") if config.shift_lanes else UNITS


class Sleep:
    """Which clock domain a unit is in: `sync` for all, or, with `enabled`, one for each of `units`.

    The harness clocks a unit when its wake port is high; what a run does, cycle by cycle, is the same (the tests compare), but a
    simulator does not evaluate what rests. A chip could gate its clocks by the same signals.
    """

    def __init__(self, enabled: bool, units: tuple[str, ...] = UNITS):
        self.enabled, self.units = enabled, units

    def domain(self, unit: str) -> str:
        return unit if self.enabled else "sync"

    def put(self, unit: str, component):
        """`component`, with its registers in the unit's domain."""
        return DomainRenamer(unit)(component) if self.enabled else component

    def ports(self) -> dict:
        """A clock in and a wake out for each unit."""
        names = self.units if self.enabled else ()
        return {f"clk_{name}": In(1) for name in names} | {f"wake_{name}": Out(1) for name in names}

    def connect(self, m: Module, top: wiring.Component, awake: dict, always) -> None:
        """Makes the domains of `top`'s ports; `awake` are the units' ports, `always` wakes them all."""
        if not self.enabled:
            return
        for name in self.units:
            domain = ClockDomain(name)
            m.domains += domain
            m.d.comb += [
                ClockSignal(name).eq(getattr(top, f"clk_{name}")), ResetSignal(name).eq(ResetSignal("sync")),
                getattr(top, f"wake_{name}").eq(awake[name] | always),
            ]


AWAKE = Sleep(False)
"""Nothing sleeps: one clock."""
