"""The array's sums for Lattice ECP5: popcounts and accumulators of carry cells that do the ANDs as well.

Each half of a CCU2C computes p = LUT4(A, B, C, D) and g = INIT[3:0](A, B), from them the sum S = p xor CIN and the carry
COUT = p ? CIN : g. Synthesis does not find these forms, hence instances.
"""

from amaranth.hdl import Cat, Const, Instance, Module, Mux, Signal, Value

FAMILY = "ecp5"
"""What an Amaranth platform calls these devices."""

INJECT, MULTIPLY, ADD, COMBINE, ACCUMULATE = 0x0008, 0x7888, 0x6AAA, 0xB874, 0x569A
"""Halves of a carry cell, by INIT, with their pins; an unused pin is 1.

INJECT      A B        ends a chain: S is its carry; begins another, with the carry A and B
MULTIPLY    A B C D    S + 2 COUT = A B + C D + CIN
ADD         A B        S + 2 COUT = A + B + CIN
COMBINE     A B C D    S + 2 COUT = (B ? D : C) + (B and not A) + CIN
ACCUMULATE  A B C D    S + 2 COUT = A + (B ? D : C) + CIN
"""

STRIP = 32
"""Longest chain, in halves: longer ones do not let a sum of products be about square, and then do not route."""


class Model:
    """A platform on which carry cells are simulated."""

    family = FAMILY


def carry_cell(m: Module, platform, name: str, inits, pins, cin):
    """Adds a CCU2C, or on platform `Model` its function. `inits` and `pins` (A, B, C, D): of its halves. Returns (S0, S1), COUT.
    """
    s, cout = [Signal(name=f"{name}_s{half}") for half in (0, 1)], Signal(name=f"{name}_cout")
    if not isinstance(platform, Model):
        options = {f"p_INIT{half}": Const(init, 16) for half, init in enumerate(inits)}
        inputs = {f"i_{pin}{half}": value for half in (0, 1) for pin, value in zip("ABCD", pins[half])}
        m.submodules[name] = Instance("CCU2C", **options, p_INJECT1_0="NO", p_INJECT1_1="NO", **inputs, i_CIN=cin,
                                      o_S0=s[0], o_S1=s[1], o_COUT=cout)
        return s, cout
    carry = cin
    for half, (init, (a, b, c, d)) in enumerate(zip(inits, pins)):
        p, g = Signal(name=f"{name}_p{half}"), Signal(name=f"{name}_g{half}")
        m.d.comb += [p.eq(Const(init, 16).bit_select(Cat(a, b, c, d), 1)), g.eq(Const(init & 15, 4).bit_select(Cat(a, b), 1)),
                     s[half].eq(p ^ carry)]
        carry = Mux(p, carry, g)
    m.d.comb += cout.eq(carry)
    return s, cout


class Strip:
    """Chains one behind the other in a row of carry cells, which `close` puts into module `m`."""

    def __init__(self, m: Module, platform, name: str):
        self._m, self._platform, self._name = m, platform, name
        self._halves, self._carry = [], None

    def __len__(self):
        return len(self._halves)

    def _half(self, init, *pins):
        total = Signal(name=f"{self._name}_s{len(self)}")
        pins = [Value.cast(pin) for pin in pins]
        self._halves.append((init, [*pins, *[Const(1)] * (4 - len(pins))], total))
        return total

    def begin(self, a=0, b=0) -> None:
        """A chain with the carry a and b into its lowest bit."""
        total = self._half(INJECT, a, b)
        if self._carry is not None:
            self._m.d.comb += self._carry.eq(total)
            self._carry = None

    def bit(self, init, *pins):
        """The chain's next bit."""
        return self._half(init, *pins)

    def carry(self):
        """The chain ends; its carry, which the half after it brings out."""
        self._carry = Signal(name=f"{self._name}_c{len(self)}")
        return self._carry

    def close(self) -> None:
        if self._carry is not None:
            self.begin()
        if len(self) % 2:
            self._half(INJECT, 0, 0)
        carry = Const(0)
        for n in range(0, len(self), 2):
            inits, pins, totals = zip(*self._halves[n:n + 2])
            sums, carry = carry_cell(self._m, self._platform, f"{self._name}_{n // 2}", inits, pins, carry)
            self._m.d.comb += [total.eq(each) for total, each in zip(totals, sums)]


def levels(lanes: int) -> int:
    """Levels of the tree of `lanes` lanes: one of n levels counts 2^(n + 1) - 1, and the last lane is injected after it."""
    return lanes.bit_length() - 2


def early_levels(lanes: int) -> int:
    """Levels of the tree before its register."""
    return min(3, levels(lanes) - 1)


def late(lanes: int) -> int:
    """Of K lanes the last ones that are counted after the tree's register: their operands come a cycle later."""
    return 1 << levels(lanes) - early_levels(lanes)


class Tree:
    """popcount(a and w) of K lanes, a power of two from 8 on, without the last lane, `spare`: the count's user injects it.

    Level 1 counts three lanes, [INJECT][MULTIPLY]; level n joins two counts of n bits and one lane, [INJECT][ADD x n]. The counts
    of level `early_levels` are registered, so that the upper levels' lanes, `late` of them, are given a cycle later.
    About 1.5 K - log2 K halves.

    Members
    -------
    count : the number, a cycle after its lanes (and in the cycle of its late ones); combinational from the register on.
    strip : the strip in which its last level stands, still open.
    spare : the last lane's operands.
    """

    def __init__(self, m: Module, platform, name: str, a, w):
        lanes = iter([(a[i], w[i]) for i in range(len(a) - late(len(a)))])
        late_lanes = iter([(a[i], w[i]) for i in range(len(a) - late(len(a)), len(a))])
        strips = 0

        def new_strip():
            nonlocal strips
            strips += 1
            return Strip(m, platform, f"{name}_{strips}")

        def early(strip, level):
            if level == 1:
                strip.begin(*next(lanes))
                return [strip.bit(MULTIPLY, *next(lanes), *next(lanes)), strip.carry()]
            low, high = early(strip, level - 1), early(strip, level - 1)
            strip.begin(*next(lanes))
            return [*(strip.bit(ADD, *bits) for bits in zip(low, high)), strip.carry()]

        def registered():
            strip = new_strip()
            bits = Cat(early(strip, early_levels(len(a))))
            strip.close()
            count = Signal(len(bits), name=f"{name}_early_{strips}", reset_less=True)
            m.d.sync += count.eq(bits)
            return list(count)

        self.strip = None

        def upper(level):
            if level == early_levels(len(a)):
                return registered()
            low, high = upper(level - 1), upper(level - 1)
            if self.strip is None or len(self.strip) + level + 2 > STRIP:
                if self.strip is not None:
                    self.strip.close()
                self.strip = new_strip()
            self.strip.begin(*next(late_lanes))
            return [*(self.strip.bit(ADD, *bits) for bits in zip(low, high)), self.strip.carry()]

        self.count = upper(levels(len(a)))
        self.spare = next(late_lanes)


def _late_register(m: Module, name: str, word):
    """The word with its late lanes a cycle later."""
    first = len(word) - late(len(word))
    held = Signal(len(word) - first, name=f"{name}_late", reset_less=True)
    m.d.sync += held.eq(word[first:])
    return Cat(word[:first], held)


def sums(m: Module, platform, act, wgt, step, row_valid, valid, bits: int):
    """The sums X[m][n] and R[m] of `array.Array` in carry cells.

    Parameters
    ----------
    act, wgt : registered operands.
    step, row_valid, valid : what belongs to them, a cycle later.

    Returns X and R one cycle after `step` and `valid`: they go to the drain registers at its end where the step was the last.
    So a register in the popcount fits into the latency of the other body, which adds first and moves then. A sum starts from 0
    since the last step clears the register.
    """
    k = len(act[0])
    cold = Signal(init=1)  # no sum since the reset
    clear, added, of = Signal(), Signal(), Signal.like(step, reset_less=True)
    m.d.sync += [cold.eq(0), added.eq(valid), of.eq(step)]
    m.d.comb += clear.eq((added & of.last) | cold)
    acts = [_late_register(m, f"act_{i}", word) for i, word in enumerate(act)]
    wgts = [_late_register(m, f"wgt_{j}", word) for j, word in enumerate(wgt)]
    counts = [_ones(m, platform, f"ones_{j}", column) for j, column in enumerate(wgts)]
    ones = Const((1 << k) - 1, k)

    x, r = [], []
    for i, row in enumerate(acts):
        twice = Signal(name=f"twice_{i}")  # activations are bipolar and the row's word is valid
        carry = Signal(name=f"carry_{i}", reset_less=True)
        m.d.comb += twice.eq(step.bipolar & row_valid[i])
        m.d.sync += carry.eq(twice ^ step.sub)

        def total(name, column, count, row=row, twice=twice, carry=carry):
            term = _term(m, platform, f"term_{name}", row, column, count, twice)
            register = Signal(bits, name=name, reset_less=True)
            result = _accumulate(m, platform, f"acc_{name}", register, term, carry, of)
            with m.If(clear):
                m.d.sync += register.eq(0)
            with m.Elif(added):
                m.d.sync += register.eq(result)
            return result

        x.append([total(f"x_{i}_{j}", column, counts[j]) for j, column in enumerate(wgts)])
        r.append(total(f"r_{i}", ones, Const(k)))  # as of a column of ones
    return x, r


def _ones(m, platform, name, word):
    """popcount(word), in the cycle of its late lanes."""
    tree = Tree(m, platform, name, word, Const((1 << len(word)) - 1, len(word)))
    tree.strip.begin(tree.spare[0], 1)
    count = Cat([tree.strip.bit(ADD, bit, 0) for bit in tree.count], tree.strip.carry())
    tree.strip.close()
    return count


def _term(m, platform, name, act, wgt, ones, twice):
    """A register with popcount(act & wgt), or with `twice` twice that less `ones` less 1."""
    width = len(act).bit_length() + 1
    tree = Tree(m, platform, name, act, wgt)
    spare = Signal(name=f"{name}_spare")
    m.d.comb += spare.eq(tree.spare[0] & tree.spare[1])

    def extended(bits):
        return [*bits, *[Const(0)] * (width - len(bits))]

    tree.strip.begin(spare, 1)
    term = Signal(width, name=name, reset_less=True)
    m.d.sync += term.eq(Cat(tree.strip.bit(COMBINE, one, twice, bit, below) for one, bit, below in zip(
        extended(ones), extended(tree.count), [spare, *extended(tree.count)])))
    tree.strip.close()
    return term


def _accumulate(m, platform, name, register, term, carry, step):
    """X or 2X of a register, plus or minus a term. The 1 that a negative number has over a complement, and the one that a term
    lacks, come as `carry`."""
    addend, total = Signal(len(term), name=f"{name}_addend"), Signal(len(register), name=f"{name}_total")
    m.d.comb += addend.eq(term ^ step.sub.replicate(len(term)))
    strip = Strip(m, platform, name)
    strip.begin(carry, 1)
    m.d.comb += total.eq(Cat(strip.bit(ACCUMULATE, addend[min(i, len(term) - 1)], step.shift, register[i], below)
                             for i, below in enumerate([Const(0), *register[:-1]])))
    strip.close()
    return total
