"""The event counters and the profile memory."""

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.csr import ACTIVITY_COUNTERS, CYCLE_COUNTERS, PROFILE_KEPT, PROFILE_ROW, Counter


class Counters(wiring.Component):
    """Counts cycles by cause and events.

    A MARK copies the counters to row `mark_layer` of the profile memory, one a cycle (layers beyond `config.marks` are not
    kept), and answers `mark_done`; counting goes on meanwhile. The activity counters of a simulation build go to a second memory
    at the same time, so that a MARK takes as long with them as without.

    Members
    -------
    clear : all to zero.
    running : the cycle counts, for counter `cause`.
    events : Counter -> event in this cycle, for the other counters; in their order.
    activity : values of the activity counters.
    values : the counters.
    mark_valid, mark_layer, mark_done : a layer begins.
    layer : of the last MARK.
    profile_addr, profile_data : reads the profile memory; data follow one cycle later.
    """

    EVENTS = tuple(c for c in Counter if c not in CYCLE_COUNTERS + ACTIVITY_COUNTERS)
    OWN = len(CYCLE_COUNTERS + EVENTS)

    def __init__(self, config: Config, simulation: bool = False):
        self.config = config
        self.simulation = simulation
        super().__init__({
            "clear": In(1),
            "running": In(1),
            "cause": In(4),
            "events": In(len(self.EVENTS)),
            "activity": In(64).array(len(ACTIVITY_COUNTERS)),
            "values": Out(64).array(len(Counter)),
            "mark_valid": In(1),
            "mark_layer": In(8),
            "mark_done": Out(1),
            "layer": Out(8),
            "profile_addr": In(range(256 * PROFILE_ROW)),
            "profile_data": Out(64),
        })

    def elaborate(self, platform):
        m = Module()
        with m.If(self.running):
            with m.Switch(self.cause):
                for counter in CYCLE_COUNTERS:
                    with m.Case(counter):
                        m.d.sync += self.values[counter].eq(self.values[counter] + 1)
        for i, counter in enumerate(self.EVENTS):
            with m.If(self.events[i]):
                m.d.sync += self.values[counter].eq(self.values[counter] + 1)

        kept = {"profile": self.values[:self.OWN]}
        if self.simulation:
            kept["activity_profile"] = self.values[self.OWN:]
        for counter, value in zip(ACTIVITY_COUNTERS, self.activity):
            m.d.comb += self.values[counter].eq(value)

        column = Signal(range(PROFILE_ROW))
        last = column == self.OWN - 1
        m.d.comb += self.mark_done.eq(self.mark_valid & last)
        layer, counter = self.profile_addr[PROFILE_ROW.bit_length() - 1:], self.profile_addr[:PROFILE_ROW.bit_length() - 1]
        first = 0
        for name, values in kept.items():
            if not self.config.marks:
                break
            m.submodules[name] = profile = memory.Memory(shape=64, depth=self.config.marks * PROFILE_KEPT, init=[])
            write, read = profile.write_port(), profile.read_port()
            asked = Signal(name=f"{name}_asked")
            m.d.sync += asked.eq((counter >= first) & (counter < first + len(values)))
            m.d.comb += [
                write.addr.eq(self.mark_layer * PROFILE_KEPT + column),
                write.en.eq(self.mark_valid & (self.mark_layer < self.config.marks) & (column < len(values))),
                read.en.eq(1), read.addr.eq(layer * PROFILE_KEPT + (counter - first)[:PROFILE_KEPT.bit_length() - 1]),
            ]
            with m.If(asked):
                m.d.comb += self.profile_data.eq(read.data)
            with m.If(self.mark_valid):
                m.d.comb += write.data.eq(Array(values)[column])
            first += len(values)
        with m.If(self.mark_valid):
            m.d.sync += [column.eq(column + 1), self.layer.eq(self.mark_layer)]
            with m.If(last):
                m.d.sync += column.eq(0)
        with m.If(self.clear):
            m.d.sync += [value.eq(0) for value in self.values[:self.OWN]]
            m.d.sync += [column.eq(0), self.layer.eq(0)]
        return m
