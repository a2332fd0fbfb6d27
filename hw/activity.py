"""Counters of switching activity and of memory accesses, from which a simulation's energy is reckoned. Simulation build only:
a synthesised machine has none of this, and its activity registers read 0."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.csr import ACTIVITY_COUNTERS, Counter

from .popcount import Popcount

ARRAY_ACTIVITY = (Counter.ARRAY_ONES, Counter.ACT_FLIPS, Counter.WGT_FLIPS)
MEMORY_ACTIVITY = tuple(c for c in ACTIVITY_COUNTERS if c not in ARRAY_ACTIVITY)


class ArrayActivity(wiring.Component):
    """Sums the ones of the array's products and the bits in which its operand registers change.

    The first word of each operand after a reset changes nothing: what the register held before belongs to another program.

    Members
    -------
    counted, counts : the ones of all M x N products of a step.
    act_en, act_old, act_new : the act registers take `act_new` with the next edge; wgt_* alike.
    values : the sums, in the order of `ARRAY_ACTIVITY`.
    """

    SUM_BITS = 32

    def __init__(self, config: Config):
        c = config
        self.words = {"act": c.m, "wgt": c.n}
        super().__init__({
            "counted": In(1),
            "counts": In(c.k.bit_length()).array(c.m * c.n),
            "values": Out(64).array(len(ARRAY_ACTIVITY)),
        } | {f"{name}_en": In(1) for name in self.words}
          | {f"{name}_{when}": In(c.k).array(count) for name, count in self.words.items() for when in ("old", "new")})

    def elaborate(self, platform):
        m = Module()
        values = dict(zip(ARRAY_ACTIVITY, self.values))

        def total(terms):
            """Sum of `terms` in signals of one width: simulators would mask after each addition of growing widths."""
            terms = list(terms)
            while len(terms) > 1:
                sums = [Signal(self.SUM_BITS, name="part") for _ in terms[::2]]
                m.d.comb += [s.eq(sum(terms[2 * i:2 * i + 2])) for i, s in enumerate(sums)]
                terms = sums
            return terms[0]

        ones = total(self.counts)
        with m.If(self.counted):
            m.d.sync += values[Counter.ARRAY_ONES].eq(values[Counter.ARRAY_ONES] + ones)
        for name, counter in (("act", Counter.ACT_FLIPS), ("wgt", Counter.WGT_FLIPS)):
            flips = []
            for i, (old, new) in enumerate(zip(getattr(self, f"{name}_old"), getattr(self, f"{name}_new"))):
                m.submodules[f"{name}_flips_{i}"] = flipped = Popcount(len(old), simulation=True)
                m.d.comb += flipped.i.eq(old ^ new)
                flips.append(flipped.o)
            changed = total(flips)
            known = Signal(name=f"{name}_known")
            with m.If(getattr(self, f"{name}_en")):
                m.d.sync += known.eq(1)
                with m.If(known):
                    m.d.sync += values[counter].eq(values[counter] + changed)
        return m


class MemoryActivity(wiring.Component):
    """Counts the words that cross the buffers' ports and the steps of the shift-add array, where the other counters do not tell.

    Members
    -------
    act_writes and so on : write enables, as many bits as words may be written at a time, or an enable of one bit.
    values : the sums, in the order of `MEMORY_ACTIVITY`.
    """

    def __init__(self, config: Config):
        c = config
        self.widths = {Counter.ACT_WRITES: c.m, Counter.RES_WRITES: c.m, Counter.WGT_WRITES: c.n, Counter.PRM_WRITES: c.n}
        super().__init__({"values": Out(64).array(len(MEMORY_ACTIVITY))}
                         | {counter.name.lower(): In(self.widths.get(counter, 1)) for counter in MEMORY_ACTIVITY})

    def elaborate(self, platform):
        m = Module()
        for counter, value in zip(MEMORY_ACTIVITY, self.values):
            enables = getattr(self, counter.name.lower())
            m.submodules[counter.name.lower()] = count = Popcount(len(enables), simulation=True)
            m.d.comb += count.i.eq(enables)
            with m.If(enables.any()):
                m.d.sync += value.eq(value + count.o)
        return m
