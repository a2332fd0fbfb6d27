"""The shift-add array: M x N sums of products of log, linear and codebook codes, `shift_lanes` lanes a cycle.

Codes come as bit planes, a plane of K lanes a step, as for the bit-serial array. Each plane has a shift register that is
loaded when its word comes and then gives `shift_lanes` lanes a step, for as many steps as a word has slices: by then the next
word's plane is there. So planes are a step apart from each other; delay lines bring the bits of a code together.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.formats import LOG_FRACTION_BITS, Kind, residue_factor

VALUE_BITS = 16
"""Entries of the table of weights."""

FORM = data.StructLayout({f.name: f.bits for f in isa.BY_NAME["FORMAT"].fields})
"""What a FORMAT says; it holds while steps are under way."""
FORM_RESET = {f.name: f.range[0] for f in isa.BY_NAME["FORMAT"].fields}


def shift_step(config: Config) -> data.StructLayout:
    """What the shift-add array is told with each step of the sequencer."""
    return data.StructLayout({
        "first": 1,       # the sum starts
        "last": 1,        # the sum is complete
        "final": 1,       # last step of the instruction
        "slice": range(config.k // config.shift_lanes),
        "counts": 1,      # the slice is one of those that count
        "a_log": 1, "a_int": 1, "w_log": 1, "w_int": 1, "w_table": 1,  # the kinds of codes
        "a_top": range(config.shift_a_bits), "w_top": range(config.shift_w_bits),  # their most significant bits
        "by_planes": 1,   # activations a plane at a time,
        "plane": range(config.shift_a_bits),  # which is this one
    })


def exponent_bits(config: Config) -> int:
    """Bits of k, the exponent of a product in 1 / shift_classes octaves."""
    return ((config.shift_span + 1) * config.shift_classes - 1).bit_length()


class Planes(wiring.Component):
    """Words of `bits` planes, a word a step, to codes of `lanes` lanes a step.

    Plane p of a word must come with the step of slice p. Codes of slice s are on `codes` `lag` cycles after the step of slice s;
    their bits of planes that did not come mean nothing.

    Members
    -------
    moving : a step is given, or was in the last `lag` cycles.
    valid, slice, word : a step.
    codes : the codes of the lanes of a slice.
    """

    def __init__(self, k: int, lanes: int, bits: int, lag: int, slice_shape):
        self.k, self.lanes, self.bits, self.lag = k, lanes, bits, lag
        super().__init__({
            "moving": In(1),
            "valid": In(1),
            "slice": In(slice_shape),
            "word": In(k),
            "codes": Out(bits).array(lanes),
        })

    def elaborate(self, platform):
        m = Module()
        planes = []
        for p in range(self.bits):
            held = Signal(self.k, name=f"plane_{p}", reset_less=True)
            with m.If(self.valid & (self.slice == p)):
                m.d.sync += held.eq(self.word)
            with m.Elif(self.moving):
                m.d.sync += held.eq(held >> self.lanes)
            out = held[:self.lanes]
            for stage in range(self.lag - 1 - p):
                late = Signal(self.lanes, name=f"late_{p}_{stage}", reset_less=True)
                with m.If(self.moving):
                    m.d.sync += late.eq(out)
                out = late
            planes.append(out)
        m.d.comb += [self.codes[lane].eq(Cat(plane[lane] for plane in planes)) for lane in range(self.lanes)]
        return m


class ShiftAdd(wiring.Component):
    """For each row m and column n the sum of products of the codes of act word m and wgt word n, modulo 2^shift_acc_bits.

    An operand is a number (a linear code, an entry of the table; 1 for a log code), an exponent k and a sign (of log codes). A
    product is the number of one side times C(k mod shift_classes), shifted by k div shift_classes, with k the sum of the two
    exponents. The numbers are multiplied by the constants C once for a row or column; a lane picks one of them by the class. So
    one accumulator serves all classes, exactly: sum over i of C_i acc_i with acc_i the sum of class i.

    Throughput: one step a cycle. The steps of a word come without gaps: one for each slice, and no fewer than there are planes.
    Latency: a step of cycle t is in the sums after cycle t + `lag` + 2; if it was the last, they move to the drain registers at
    the end of cycle t + `lag` + 3 (`filled`), from where `row` reads a row, one cycle later.

    Members
    -------
    valid, step : a step; `act` and `wgt` belong to it.
    form, table : what log codes mean; the table of weights. They hold while steps are under way.
    filled, filled_final : the drain registers take a sum in this cycle; it is its instruction's last.
    row_en, row : row to read. x : N sums, one cycle after `row_en`.
    awake : see `sleep`.
    """

    def __init__(self, config: Config):
        self.config = c = config
        self.lag = max(c.shift_a_bits, c.shift_w_bits)
        self.step_shape = shift_step(c)
        super().__init__({
            "valid": In(1),
            "step": In(self.step_shape),
            "act": In(c.k).array(c.m),
            "wgt": In(c.k).array(c.n),
            "form": In(FORM),
            "table": In(VALUE_BITS).array(2 * isa.TABLE_PART),
            "filled": Out(1),
            "filled_final": Out(1),
            "row_en": In(1),
            "row": In(range(c.m)),
            "x": Out(c.shift_acc_bits).array(c.n),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c, lag, lanes = self.config, self.lag, self.config.shift_lanes
        rows, cols = range(c.m), range(c.n)

        # Steps under way: `lag` cycles until a slice's codes are together, one until their operands are decoded, one until a
        # slice's products are added up.
        valid, steps = [self.valid], [self.step]
        for stage in range(1, lag + 3):
            valid.append(Signal(name=f"valid_{stage}"))
            steps.append(Signal(self.step_shape, name=f"step_{stage}", reset_less=True))
            m.d.sync += valid[stage].eq(valid[stage - 1])
            with m.If(valid[stage - 1]):
                m.d.sync += steps[stage].eq(steps[stage - 1])
        moving = Cat(valid[:lag + 1]).any()
        summed, decoded = valid[lag + 2], valid[lag + 1]
        m.d.comb += self.awake.eq(Cat(valid).any() | self.filled | self.row_en)

        def planes(name, bits, words, mask):
            codes = []
            for i, word in enumerate(words):
                m.submodules[f"{name}_{i}"] = unit = Planes(c.k, lanes, bits, lag, range(c.k // lanes))
                m.d.comb += [unit.moving.eq(moving), unit.valid.eq(self.valid), unit.slice.eq(self.step.slice),
                             unit.word.eq(word)]
                codes.append([code & mask for code in unit.codes])
            return codes

        # A code's bits: those that came, or the one that is meant.
        a_mask, w_mask = Signal(c.shift_a_bits), Signal(c.shift_w_bits)
        m.d.comb += [
            a_mask.eq(Mux(steps[lag].by_planes, Const(1, 1) << steps[lag].plane, (Const(2, 2) << steps[lag].a_top) - 1)),
            w_mask.eq((Const(2, 2) << steps[lag].w_top) - 1),
        ]
        act = planes("act", c.shift_a_bits, self.act, a_mask)
        wgt = planes("wgt", c.shift_w_bits, self.wgt, w_mask)

        # Operands.
        a_operands = [[self._activation(m, f"a_{i}_{lane}", act[i][lane], steps[lag], valid[lag]) for lane in range(lanes)]
                      for i in rows]
        w_operands = [[self._weight(m, f"w_{j}_{lane}", wgt[j][lane], steps[lag], valid[lag]) for lane in range(lanes)]
                      for j in cols]
        a_number = Signal()  # the activation has the number
        m.d.comb += a_number.eq(~steps[lag + 1].a_log & ~steps[lag + 1].by_planes)

        # Products and their sum over the lanes.
        sums = [[Signal(c.shift_acc_bits, name=f"sum_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        for i in rows:
            for j in cols:
                terms = [self._product(m, f"{i}_{j}_{lane}", a_number, a_operands[i][lane], w_operands[j][lane])
                         for lane in range(lanes)]
                while len(terms) > 1:
                    pairs = [Signal(c.shift_acc_bits, name=f"part_{i}_{j}") for _ in terms[::2]]
                    m.d.comb += [pair.eq(sum(terms[2 * p:2 * p + 2])) for p, pair in enumerate(pairs)]
                    terms = pairs
                with m.If(decoded):
                    m.d.sync += sums[i][j].eq(terms[0])

        # Accumulators and drain registers.
        x = [[Signal(c.shift_acc_bits, name=f"x_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        with m.If(summed):
            with m.If(steps[lag + 2].first):
                m.d.sync += [x[i][j].eq(sums[i][j]) for i in rows for j in cols]
            with m.Else():
                m.d.sync += [x[i][j].eq(x[i][j] + sums[i][j]) for i in rows for j in cols]
        m.d.sync += [self.filled.eq(summed & steps[lag + 2].last), self.filled_final.eq(steps[lag + 2].final)]
        held = [[Signal(c.shift_acc_bits, name=f"held_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        with m.If(self.filled):
            m.d.sync += [held[i][j].eq(x[i][j]) for i in rows for j in cols]
        with m.If(self.row_en):
            with m.Switch(self.row):
                for i in rows:
                    with m.Case(i):
                        m.d.sync += [self.x[j].eq(held[i][j]) for j in cols]
        return m

    def _scaled(self, m, name: str, number, bits: int, en) -> list:
        """Registers with the number times the constant of each class."""
        c = self.config
        if c.shift_classes == 1:
            held = Signal(signed(bits), name=f"{name}_number", reset_less=True)
            with m.If(en):
                m.d.sync += held.eq(number)
            return [held]
        all_held = []
        for i in range(c.shift_classes):
            held = Signal(signed(bits + LOG_FRACTION_BITS + 1), name=f"{name}_number_{i}", reset_less=True)
            with m.If(en):
                m.d.sync += held.eq(Mux(self.form.scaled, number * residue_factor(i, c.shift_classes), number))
            all_held.append(held)
        return all_held

    def _log(self, m, name: str, code, top, has_sign, step):
        """(sign, not zero, exponent) of a log code."""
        sign, nonzero = Signal(name=f"{name}_sign_now"), Signal(name=f"{name}_nonzero_now")
        magnitude = Signal(isa.LOG_BITS, name=f"{name}_magnitude")
        k = Signal(exponent_bits(self.config), name=f"{name}_k_now")
        m.d.comb += [
            sign.eq(has_sign & code.bit_select(top, 1)),
            magnitude.eq(code & ~Mux(has_sign, (Const(1, 1) << top)[:len(code)], 0)),
            nonzero.eq(magnitude != 0),
            k.eq(Mux(nonzero, (magnitude - 1)[:isa.LOG_BITS] * step, 0)),
        ]
        return sign, nonzero, k

    def _linear(self, m, name: str, code, top, is_int):
        """The number of a linear code."""
        number = Signal(signed(len(code) + 1), name=f"{name}_linear")
        m.d.comb += number.eq(code - Mux(is_int & code.bit_select(top, 1), (Const(2, 2) << top)[:len(code) + 1], 0))
        return number

    def _registers(self, m, name: str, en, sign, nonzero, k, number, bits: int):
        held = [Signal.like(value, name=f"{name}_{what}", reset_less=True)
                for what, value in (("sign", sign), ("nonzero", nonzero), ("k", k))]
        with m.If(en):
            m.d.sync += [register.eq(value) for register, value in zip(held, (sign, nonzero, k))]
        return (*held, self._scaled(m, name, number, bits, en))

    def _activation(self, m, name: str, masked, step, en):
        c = self.config
        code = Signal(len(masked), name=f"{name}_code")
        m.d.comb += code.eq(masked)
        sign, nonzero, k = self._log(m, name, code, step.a_top, self.form.a_signed, self.form.a_step)
        number = self._linear(m, name, code, step.a_top, step.a_int)
        signs, exists = Signal(name=f"{name}_signs"), Signal(name=f"{name}_exists")
        exponent = Signal.like(k, name=f"{name}_exponent")
        with m.If(~step.counts):
            pass
        with m.Elif(step.by_planes):
            m.d.comb += [signs.eq(step.a_int & (step.plane == step.a_top)), exists.eq(code != 0),
                         exponent.eq(step.plane * c.shift_classes)]
        with m.Elif(step.a_log):
            m.d.comb += [signs.eq(sign), exists.eq(nonzero), exponent.eq(k)]
        with m.Else():
            m.d.comb += exists.eq(1)
        return self._registers(m, name, en, signs, exists, exponent, number, len(number))

    def _weight(self, m, name: str, masked, step, en):
        code = Signal(len(masked), name=f"{name}_code")
        m.d.comb += code.eq(masked)
        sign, nonzero, k = self._log(m, name, code, step.w_top, self.form.w_signed, self.form.w_step)
        linear = self._linear(m, name, code, step.w_top, step.w_int)
        number = Signal(signed(max(VALUE_BITS, len(linear))), name=f"{name}_value")
        entry = Signal(signed(VALUE_BITS), name=f"{name}_entry")
        with m.Switch(code):
            for i, value in enumerate(self.table):
                if i < 1 << len(code):
                    with m.Case(i):
                        m.d.comb += entry.eq(value)
        with m.If(step.w_table):
            m.d.comb += number.eq(entry)
        with m.Elif(step.w_log):
            m.d.comb += number.eq(1)
        with m.Else():
            m.d.comb += number.eq(linear)
        signs, exists = Signal(name=f"{name}_signs"), Signal(name=f"{name}_exists")
        exponent = Signal.like(k, name=f"{name}_exponent")
        m.d.comb += [signs.eq(step.w_log & sign), exists.eq(~step.w_log | nonzero), exponent.eq(Mux(step.w_log, k, 0))]
        return self._registers(m, name, en, signs, exists, exponent, number, len(number))

    def _product(self, m, name: str, a_number, a, w):
        """The product of two operands, modulo 2^shift_acc_bits."""
        c = self.config
        (a_sign, a_nonzero, a_k, a_numbers), (w_sign, w_nonzero, w_k, w_numbers) = a, w
        k = Signal(exponent_bits(c), name=f"k_{name}")
        number = Signal(signed(max(len(a_numbers[0]), len(w_numbers[0]))), name=f"number_{name}")
        shifted, term = (Signal(c.shift_acc_bits, name=f"{what}_{name}") for what in ("shifted", "term"))
        classes = c.shift_classes.bit_length() - 1
        m.d.comb += k.eq(a_k + w_k)
        with m.Switch(k[:classes]):
            for i in range(c.shift_classes):
                with m.Case(i) if classes else m.Default():
                    m.d.comb += number.eq(Mux(a_number, a_numbers[i], w_numbers[i]))
        m.d.comb += [
            shifted.eq(number << k[classes:]),
            term.eq(Mux(a_nonzero & w_nonzero, Mux(a_sign ^ w_sign, -shifted, shifted), 0)),
        ]
        return term


def refused_by_engine(m: Module, conv, form, config: Config):
    """Whether the engine cannot take a CONV: its kinds, its widths, or the largest shift that they can need."""
    a_log, w_log, w_table = conv.a_kind == Kind.LOG, conv.w_kind == Kind.LOG, conv.w_kind == Kind.CODEBOOK
    a_linear = (conv.a_kind == Kind.UINT) | (conv.a_kind == Kind.INT)
    w_linear = (conv.w_kind == Kind.UINT) | (conv.w_kind == Kind.INT)
    takes = (a_log & (w_log | w_table | w_linear)) | (a_linear & (w_log | w_table))

    def log(name, bits, has_sign, step):
        """(too wide, largest exponent) of a log code's `bits`, of which one may be a sign."""
        magnitude = Signal(5, name=f"{name}_magnitude_bits")
        largest = Signal(isa.LOG_BITS, name=f"{name}_largest")
        m.d.comb += [magnitude.eq(bits - has_sign), largest.eq(((Const(1, 1) << magnitude[:3]) - 1) & -2)]
        return magnitude > isa.LOG_BITS, largest * step

    (a_wide, a_most), (w_wide, w_most) = (log(side, conv[f"{side}_bits"], form[f"{side}_signed"], form[f"{side}_step"])
                                          for side in "aw")
    by_planes = ~a_log & w_table
    k = Signal(14, name="largest_k")
    m.d.comb += k.eq(Mux(a_log, a_most, Mux(by_planes, (conv.a_bits - 1) * config.shift_classes, 0)) + Mux(w_log, w_most, 0))
    return (~takes | (conv.a_bits > config.shift_a_bits) | (conv.w_bits > config.shift_w_bits) | (a_log & a_wide)
            | (w_log & w_wide) | (k >= (config.shift_span + 1) * config.shift_classes))
