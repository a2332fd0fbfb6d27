"""The packer: gathers results into out words, and is the one writer of the out buffer."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config


def tag_layout(config: Config) -> data.StructLayout:
    """What travels with a row of N results."""
    return data.StructLayout({
        "row": range(config.m),
        "tile": range(config.tiles_per_word),  # column tile: which lanes
        "clear": 1,  # first column tile: the other lanes become 0
        "emit": 1,   # last row of the last column tile: write the words
    })


class Packer(wiring.Component):
    """Turns rows of N results into planes: bit b of result n, row r, column tile g is lane g * N + n of slice r of plane b. Once
    the last row of a position is in, its words move to the emit registers and are written, most significant plane first, one word
    of all slices a cycle, while the next position is gathered.

    With `raw` the N results of a row are `raw_words` words of 32-bit lanes instead, one position and column tile after the other.

    The pool unit's words pass through on their way to the buffer; they never come together with results.

    Throughput: one row a cycle. The caller spaces rows with `emit` by at least the number of words.
    Latency: `LATENCY` cycles from a row with `emit` to the write of its first word.

    Members
    -------
    start, base : the next word goes to `base`.
    raw, planes : words are 32-bit lanes; planes of a result. They hold while rows are under way.
    early_valid, early_tag, valid, tag, q : rows, announced one cycle before.
    pool_valid, pool : words of the pool unit.
    stop : write nothing.
    we, addr, data : write port.
    error : a word's address is outside the buffer; it is not written.
    awake : see `sleep`.
    """

    LATENCY = 4

    def __init__(self, config: Config):
        self.config = config
        c = config
        tag = tag_layout(config)
        super().__init__({
            "start": In(1),
            "base": In(16),
            "raw": In(1),
            "planes": In(5),
            "early_valid": In(1),
            "early_tag": In(tag),
            "valid": In(1),
            "tag": In(tag),
            "q": In(32).array(c.n),
            "pool_valid": In(1),
            "pool": In(c.k).array(c.m),
            "stop": In(1),
            "we": Out(c.m),
            "addr": Out(16),
            "data": Out(c.k).array(c.m),
            "error": Out(1),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        depth = max(c.max_planes, c.raw_words)
        rows, words = range(c.m), range(depth)

        # Place a row's bits in their lanes.
        lanes = Signal(c.k, reset_less=True)
        with m.If(self.early_valid):
            m.d.sync += lanes.eq(Cat((self.early_tag.tile == g).replicate(c.n) for g in range(c.tiles_per_word)))
        placed = [Signal(c.k, name=f"placed_{w}", reset_less=True) for w in words]
        tag, placed_valid = Signal(tag_layout(c), reset_less=True), Signal()
        raw = Cat(*self.q, Const(0, c.raw_words * c.k - 32 * c.n))
        m.d.sync += placed_valid.eq(self.valid)
        with m.If(self.valid):
            m.d.sync += tag.eq(self.tag)
            with m.If(self.raw):
                m.d.sync += [placed[c.raw_words - 1 - w].eq(raw.word_select(w, c.k)) for w in range(c.raw_words)]
            with m.Else():
                for b in range(min(32, c.max_planes)):
                    bits = Cat(lane[b] for lane in self.q)
                    m.d.sync += placed[b].eq(bits.replicate(c.tiles_per_word) & lanes)

        # Gather.
        packed = [[Signal(c.k, name=f"packed_{w}_{i}", reset_less=True) for i in rows] for w in words]
        full = Signal()
        m.d.sync += full.eq(placed_valid & tag.emit)
        with m.If(placed_valid):
            with m.Switch(tag.row):
                for i in rows:
                    with m.Case(i):
                        with m.If(tag.clear):
                            m.d.sync += [packed[w][i].eq(placed[w]) for w in words]
                        with m.Else():
                            m.d.sync += [packed[w][i].eq(packed[w][i] | placed[w]) for w in words]

        # Emit.
        emit = [[Signal(c.k, name=f"emit_{w}_{i}", reset_less=True) for i in rows] for w in words]
        emitting = Signal()
        word = Signal(range(depth))
        with m.If(emitting):
            m.d.sync += word.eq(word - 1)
            with m.If(word == 0):
                m.d.sync += emitting.eq(0)
        with m.If(full):
            m.d.sync += [emit[w][i].eq(packed[w][i]) for w in words for i in rows]
            m.d.sync += [emitting.eq(1), word.eq(Mux(self.raw, c.raw_words, self.planes) - 1)]

        # Write.
        at = Signal(17)
        fits = Signal()
        write = Signal()
        m.d.comb += [
            fits.eq(at < c.out_words),
            write.eq((emitting | self.pool_valid) & ~self.stop),
            self.error.eq(write & ~fits),
        ]
        ready = Signal()
        m.d.sync += ready.eq(write & fits)
        m.d.comb += self.we.eq((ready & ~self.stop).replicate(c.m))
        with m.If(write):
            m.d.sync += [at.eq(at + 1), self.addr.eq(at)]
        with m.If(self.pool_valid):
            m.d.sync += [self.data[i].eq(self.pool[i]) for i in rows]
        with m.Elif(emitting):
            with m.Switch(word):
                for w in words:
                    with m.Case(w):
                        m.d.sync += [self.data[i].eq(emit[w][i]) for i in rows]
        with m.If(self.start):
            m.d.sync += at.eq(self.base)
        m.d.comb += self.awake.eq(self.start | self.early_valid | self.valid | placed_valid | full | write | ready)
        return m
