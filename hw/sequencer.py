"""The sequencer: walks the loop nest of CONV and POOL and gives one pair of addresses a cycle."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config
from seriatim.formats import Kind

from .array import STEP
from .layouts import QUEUED, layout
from .pool import POOL_STEP
from .shift import FORM, shift_step

POINTER = 18
"""Bits of an address before it is checked: a pointer moves by less than 2^16 at a time, and no more than two steps past an
address that was out of range."""


def _bits(instr: str, field: str) -> int:
    return next(f.bits for f in isa.BY_NAME[instr].fields if f.name == field)


class Slices:
    """The innermost loop of a CONV of the shift-add engine: the slices of a word. Of other instructions a step is a slice.

    Members
    -------
    starts, whole_codes : the instruction that is being loaded is one; takes activations as whole codes.
    on : the running one is.
    first, last : slice of its word.
    a_plane, w_plane : planes, counted from the most significant, that come with this slice, the least significant first.
    """

    def __init__(self, config: Config, form, is_pool, conv, reg):
        slices = range(config.k // config.shift_lanes)
        self.starts = ~is_pool & (conv.engine == isa.Engine.SHIFT_ADD)
        by_planes = (conv.w_kind == Kind.CODEBOOK) & (conv.a_kind != Kind.LOG)
        self.whole_codes = self.starts & ~by_planes
        self.on = reg("shift_on", 1, self.starts)
        most = Mux(conv.a_bits > conv.w_bits, conv.a_bits, conv.w_bits)
        rounds = reg("slice_rounds", slices, Mux(self.starts, Mux(form.slices > most, form.slices, most) - 1, 0))
        self.slice, self.slices = reg("slice", slices, 0), form.slices
        self.first, self.last = self.slice == 0, self.slice == rounds
        self.members = {name: reg(name, 1, value) for name, value in (
            ("a_log", conv.a_kind == Kind.LOG), ("a_int", conv.a_kind == Kind.INT), ("w_log", conv.w_kind == Kind.LOG),
            ("w_int", conv.w_kind == Kind.INT), ("w_table", conv.w_kind == Kind.CODEBOOK), ("by_planes", by_planes))}
        tops = {f"{side}_top": reg(f"{side}_top", 3, conv[f"{side}_bits"] - 1) for side in "aw"}
        self.members |= tops | {"slice": self.slice}
        self.a_plane, self.w_plane = ((self.members[name] - self.slice)[:3] for name in ("a_top", "w_top"))
        self.step = shift_step(config)

    def send(self, m: Module, sequencer: "Sequencer", a_plane, first, last):
        """Sends a step on its way. Returns registers: is it the shift-add array's, has it an act word, a wgt word; the step.
        """
        on, act, wgt = (Signal(name=f"sent_{name}", reset_less=True) for name in ("shift", "act", "wgt"))
        step = Signal(self.step, name="shift_step", reset_less=True)
        plane = (self.members["a_top"] - a_plane)[:3]
        with_act = Mux(self.members["by_planes"], self.slice == plane, self.slice <= self.members["a_top"])
        with_wgt = self.slice <= self.members["w_top"]
        members = self.members | {"first": first, "last": last, "final": sequencer.issued,
                                  "plane": plane, "counts": self.slice < self.slices}
        with m.If(sequencer.stepping):
            m.d.sync += [on.eq(self.on), act.eq(~self.on | with_act), wgt.eq(sequencer.array_step & (~self.on | with_wgt))]
            m.d.sync += [step[name].eq(members[name]) for name in self.step.members]
        return on, act, wgt, step


class Sequencer(wiring.Component):
    """Order of the steps, the innermost loop last: y, x, g, pair of planes, kh, kw, c. The pairs go by falling significance, and
    within one from the highest weight plane down. A POOL has one pair, and its planes take the place of c.

    Every loop keeps the address at which its present round began, so that each step is one addition, whichever loop moves.

    Throughput: a step every cycle, also from loop to loop and from instruction to instruction. It waits only
    - with the last step of a column tile, until the drain registers will be free when its sum gets there (`drain_free`); for the
      shift-add array, whose steps of a word have no gaps, with the first step of the tile's last word;
    - with the first step of a POOL, until the drain has taken its job (`job_valid` low).
    Latency: a step of cycle t has its addresses at the memories in t + 1, and is on `array_*` or `pool_*` in t + 2, with the
    data.

    Members
    -------
    load, is_pool, instr : start this instruction with the next cycle.
    running, issued, stepping : an instruction runs; issues its last step; issues a step.
    array_step, pool_step : issues a step of CONV, of POOL.
    shift_step, shift_act, shift_wgt : the step is the shift-add array's; reads an act word, a wgt word for it.
    job_valid : the drain has yet to take the running instruction's job.
    drain_free : the drain registers can take a sum `Drain.NOTICE` cycles from now, if none is under way.
    filled : the drain registers take a sum.
    act_*, wgt_* : as in Execute.
    array_valid, array_step_of, pool_valid, pool_step_of, shift_valid, shift_step_of : what to do with the words that the memories
        give in this cycle.
    form : how the shift-add array reads codes.
    stop : no more steps.
    error, error_pc : an address is outside its buffer. Its step and all that follow are dropped.
    """

    def __init__(self, config: Config):
        self.config = config
        shift = {
            "form": In(FORM), "shift_step": Out(1), "shift_act": Out(1), "shift_wgt": Out(1), "shift_valid": Out(1),
            "shift_step_of": Out(shift_step(config)),
        } if config.shift_lanes else {}
        super().__init__(shift | {
            "load": In(1),
            "is_pool": In(1),
            "instr": In(QUEUED),
            "running": Out(1),
            "issued": Out(1),
            "stepping": Out(1),
            "array_step": Out(1),
            "pool_step": Out(1),
            "job_valid": In(1),
            "drain_free": In(1),
            "filled": In(1),
            "act_en": Out(1),
            "act_addr": Out(16),
            "wgt_en": Out(1),
            "wgt_addr": Out(16),
            "array_valid": Out(1),
            "array_step_of": Out(STEP),
            "pool_valid": Out(1),
            "pool_step_of": Out(POOL_STEP),
            "stop": In(1),
            "error": Out(1),
            "error_pc": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        conv, pool = (data.View(layout(name), self.instr.word) for name in ("CONV", "POOL"))

        def pick(name, other):
            """conv.name, or for POOL what `other` names or is."""
            return Mux(self.is_pool, getattr(pool, other) if isinstance(other, str) else Const(other), getattr(conv, name))

        loads = []  # assignments with which an instruction starts; they come last, to win

        def reg(name, bits, value):
            signal = Signal(bits, name=name, reset_less=True)
            loads.append(signal.eq(value))
            return signal

        # What the instruction says.
        fields = {name: reg(name, _bits("CONV", name), pick(name, other)) for name, other in (
            ("sy", "sy"), ("sx", "sx"), ("sg", "planes"), ("skh", "skh"), ("skw", "skw"), ("sc", 1), ("w_bits", 1),
            ("wgt_base", 0), ("wgt_g", 0), ("wgt_tap", 0), ("ring_words", "ring_words"))}
        sy, sx, sg, skh, skw, sc, w_bits, wgt_base, wgt_g, wgt_tap, ring_words = fields.values()
        ring_end = reg("ring_end", 17, pick("ring_base", "ring_base") + pick("ring_words", "ring_words"))
        pooling = reg("pooling", 1, self.is_pool)
        pc = reg("pc", 32, self.instr.pc)
        a_int = reg("a_int", 1, ~self.is_pool & (conv.a_kind == Kind.INT))
        w_int = reg("w_int", 1, ~self.is_pool & (conv.w_kind == Kind.INT))
        a_bipolar = reg("a_bipolar", 1, ~self.is_pool & (conv.a_kind == Kind.BIPOLAR))
        shift = Slices(self.config, self.form, self.is_pool, conv, reg) if self.config.shift_lanes else None
        a_last = reg("a_last", 3, Mux(shift.whole_codes, 0, pick("a_bits", 1) - 1) if shift else pick("a_bits", 1) - 1)
        w_last = reg("w_last", 4, Mux(shift.starts, 0, pick("w_bits", 1) - 1) if shift else pick("w_bits", 1) - 1)

        # Loops: rounds less one, and how many follow the present one.
        rounds, left, end = {}, {}, {}
        for name, other in (("ny", "ny"), ("nx", "nx"), ("ng", "ng"), ("kh", "kh"), ("kw", "kw"), ("nc", "planes")):
            bits = max(_bits("CONV", name), _bits("POOL", other))
            rounds[name] = reg(f"{name}_rounds", bits, pick(name, other) - 1)
            left[name] = reg(f"{name}_left", bits, pick(name, other) - 1)
            end[name] = left[name] == 0

        def go(name, *, again):
            return left[name].eq(rounds[name] if again else left[name] - 1)

        # Planes, counted from the most significant; *_start: those with which the present significance began.
        a_plane, a_start = reg("a_plane", 3, 0), reg("a_start", 3, 0)
        w_plane, w_start = reg("w_plane", 4, 0), reg("w_start", 4, 0)
        first, drop, tap_first, top = (reg(name, 1, 1) for name in ("first", "drop", "tap_first", "top"))

        # Where the present round of each loop began.
        def wrap(addr, end, words):
            return Mux(addr >= end, addr - words, addr)[:POINTER]

        begin = wrap(pick("act_base", "act_base"), pick("ring_base", "ring_base") + pick("ring_words", "ring_words"),
                     pick("ring_words", "ring_words"))
        row_y, row = reg("row_y", POINTER, begin), reg("row", POINTER, begin)
        at_x, at_g, at_tap, at_c = (reg(f"at_{name}", POINTER, 0) for name in ("x", "g", "tap", "c"))
        wgt_tile, wgt_at_tap, wgt_at_c = (reg(f"wgt_at_{name}", POINTER, pick("wgt_base", 0)) for name in ("g", "tap", "c"))

        # May a step be issued?
        last_plane = (a_plane == a_last) & (w_plane == w_last)
        tile_end = Signal()
        under_way = Signal()  # a sum is between its last step and the drain registers
        last_word = end["nc"] & end["kw"] & end["kh"] & last_plane
        needs_drain = Mux(shift.on, last_word & shift.first, tile_end) if shift else tile_end
        m.d.comb += [
            tile_end.eq(last_word & shift.last if shift else last_word),
            self.stepping.eq(self.running & ~self.stop & ~self.error
                             & Mux(pooling, ~self.job_valid, ~needs_drain | (self.drain_free & ~under_way))),
            self.array_step.eq(self.stepping & ~pooling),
            self.pool_step.eq(self.stepping & pooling),
            self.issued.eq(self.stepping & tile_end & end["ng"] & end["nx"] & end["ny"]),
        ]
        with m.If(self.array_step & tile_end):
            m.d.sync += under_way.eq(1)
        with m.Elif(self.filled):
            m.d.sync += under_way.eq(0)

        # The step after this one.
        tap_wgt = (wgt_at_tap + wgt_tap)[:POINTER]
        with m.If(self.stepping):
            m.d.sync += [first.eq(0), drop.eq(0), top.eq(0)]
            if shift:
                m.d.sync += shift.slice.eq(Mux(shift.last, 0, shift.slice + 1))
        with m.If(self.stepping & shift.last if shift else self.stepping):
            with m.If(~end["nc"]):
                m.d.sync += [go("nc", again=False), at_c.eq(at_c + sc), wgt_at_c.eq(wgt_at_c + w_bits)]
            with m.Else():
                m.d.sync += [go("nc", again=True), top.eq(1), tap_first.eq(0)]
                with m.If(~end["kw"]):
                    m.d.sync += [
                        go("kw", again=False), at_tap.eq(at_tap + skw), at_c.eq(at_tap + skw),
                        wgt_at_tap.eq(tap_wgt), wgt_at_c.eq(tap_wgt),
                    ]
                with m.Elif(~end["kh"]):
                    m.d.sync += [
                        go("kw", again=True), go("kh", again=False), row.eq(wrap(row + skh, ring_end, ring_words)),
                        at_tap.eq(at_g), at_c.eq(at_g), wgt_at_tap.eq(tap_wgt), wgt_at_c.eq(tap_wgt),
                    ]
                with m.Else():
                    m.d.sync += [go("kw", again=True), go("kh", again=True), row.eq(row_y)]
                    with m.If(~last_plane):
                        m.d.sync += [at_tap.eq(at_g), at_c.eq(at_g), wgt_at_tap.eq(wgt_tile), wgt_at_c.eq(wgt_tile)]
                        with m.If((w_plane != w_last) & (a_plane != 0)):
                            m.d.sync += [w_plane.eq(w_plane + 1), a_plane.eq(a_plane - 1)]
                        with m.Elif(a_start != a_last):
                            m.d.sync += [drop.eq(1), a_start.eq(a_start + 1), a_plane.eq(a_start + 1), w_plane.eq(w_start)]
                        with m.Else():
                            m.d.sync += [drop.eq(1), w_start.eq(w_start + 1), w_plane.eq(w_start + 1), a_plane.eq(a_start)]
                    with m.Else():
                        m.d.sync += [first.eq(1), tap_first.eq(1)]
                        m.d.sync += [plane.eq(0) for plane in (a_plane, a_start, w_plane, w_start)]
                        with m.If(~end["ng"]):
                            m.d.sync += [go("ng", again=False)]
                            m.d.sync += [at.eq(at_g + sg) for at in (at_g, at_tap, at_c)]
                            m.d.sync += [at.eq(wgt_tile + wgt_g) for at in (wgt_tile, wgt_at_tap, wgt_at_c)]
                        with m.Else():
                            m.d.sync += [go("ng", again=True)]
                            m.d.sync += [at.eq(wgt_base) for at in (wgt_tile, wgt_at_tap, wgt_at_c)]
                            with m.If(~end["nx"]):
                                m.d.sync += [go("nx", again=False)]
                                m.d.sync += [at.eq(at_x + sx) for at in (at_x, at_g, at_tap, at_c)]
                            with m.Else():
                                m.d.sync += [go("nx", again=True), go("ny", again=False)]
                                m.d.sync += [at.eq(0) for at in (at_x, at_g, at_tap, at_c)]
                                m.d.sync += [r.eq(wrap(row_y + sy, ring_end, ring_words)) for r in (row_y, row)]
        with m.If(self.issued):
            m.d.sync += self.running.eq(0)
        with m.If(self.load):
            m.d.sync += [self.running.eq(1), *loads]

        # Addresses.
        sent, sent_pool, sent_pc = Signal(), Signal(reset_less=True), Signal(32, reset_less=True)
        act_addr, wgt_addr = Signal(POINTER + 1, reset_less=True), Signal(POINTER + 1, reset_less=True)
        array_step, pool_step = Signal(STEP, reset_less=True), Signal(POOL_STEP, reset_less=True)
        m.d.sync += sent.eq(self.stepping)
        with m.If(self.stepping):
            of_array = {"first": first, "shift": drop & ~first, "sub": (w_int & (w_plane == 0)) ^ (a_int & (a_plane == 0)),
                        "last": tile_end, "bipolar": a_bipolar, "final": self.issued}
            of_pool = {"top": top, "tap_first": tap_first, "tap_last": end["kh"] & end["kw"], "final": self.issued,
                       "plane": left["nc"][:4]}
            m.d.sync += [
                sent_pool.eq(pooling),
                sent_pc.eq(pc),
                act_addr.eq(row + at_c + (Mux(shift.on, shift.a_plane, a_plane) if shift else a_plane)),
                wgt_addr.eq(wgt_at_c + (Mux(shift.on, shift.w_plane, w_plane) if shift else w_plane)),
                array_step.eq(Cat(of_array[name] for name in STEP.members)),
                pool_step.eq(Cat(of_pool[name] for name in POOL_STEP.members)),
            ]
        fits, go_on = Signal(), Signal()
        if shift:
            sent_shift, sent_act, sent_wgt, shift_sent_step = shift.send(m, self, a_plane, first, tile_end)
        else:
            sent_shift, sent_act, sent_wgt = Const(0), Const(1), ~sent_pool
        m.d.comb += [
            fits.eq((~sent_act | (act_addr < self.config.act_words)) & (~sent_wgt | (wgt_addr < self.config.wgt_words))),
            go_on.eq(sent & fits & ~self.stop & ~self.error),
            self.act_en.eq(go_on & sent_act),
            self.wgt_en.eq(go_on & sent_wgt),
            self.act_addr.eq(act_addr),
            self.wgt_addr.eq(wgt_addr),
        ]

        with m.If(sent & ~fits & ~self.stop & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_pc.eq(sent_pc)]

        # Data.
        m.d.sync += [self.array_valid.eq(self.wgt_en & ~sent_shift), self.pool_valid.eq(self.act_en & sent_pool)]
        with m.If(self.act_en):
            m.d.sync += [self.array_step_of.eq(array_step), self.pool_step_of.eq(pool_step)]
        if shift:
            m.d.comb += [self.shift_step.eq(self.array_step & shift.on), self.shift_act.eq(self.act_en & sent_shift),
                         self.shift_wgt.eq(self.wgt_en & sent_shift)]
            m.d.sync += self.shift_valid.eq(go_on & sent_shift)
            with m.If(go_on & sent_shift):
                m.d.sync += self.shift_step_of.eq(shift_sent_step)
        return m
