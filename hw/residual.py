"""Residual operands: planes from the residual buffer, turned into numbers, a column tile ahead of the drain."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

from .requant import RES_BITS


class Residual(wiring.Component):
    """Lane g * N + n of row m of the residual of position p, for the column tiles (p, g) in order.

    From `start`, the planes of the next column tile are read (one a cycle, most significant first), the tile's N lanes are cut
    out of each and shifted into M x N numbers; `ready` then waits for `take`, which makes them the ones that `row` reads and
    starts the next. It reads ahead past an instruction's last tile: what it found there is dropped by the next `start`, and an
    address beyond the buffer only counts (`bad`) once its tile is wanted.

    Latency: planes + 3 cycles for a tile, hidden where a tile's steps take as long.

    Members
    -------
    start : take over planes (at least 1), is_signed, base, pitch and ng (column tiles of a position, less one), which hold after.
    ready, bad, take : handshake with the drain.
    row_en, row, value : N residuals of a row, one cycle after `row_en`.
    en, addr, data : read port of the residual buffer.
    awake : see `sleep`.
    """

    def __init__(self, config: Config):
        self.config = config
        c = config
        super().__init__({
            "start": In(1),
            "planes": In(5),
            "is_signed": In(1),
            "base": In(16),
            "pitch": In(16),
            "ng": In(8),
            "ready": Out(1),
            "bad": Out(1),
            "take": In(1),
            "row_en": In(1),
            "row": In(range(c.m)),
            "value": Out(signed(RES_BITS)).array(c.n),
            "en": Out(1),
            "addr": Out(16),
            "data": In(c.k).array(c.m),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        rows, cols = range(c.m), range(c.n)

        # Read the planes of a tile.
        position = Signal(18)
        addr = Signal(18)
        left = Signal(5)
        tile = Signal(8)
        reading = Signal()
        fits = Signal()
        m.d.comb += [
            fits.eq(addr < c.res_words),
            self.en.eq(reading & fits),
            self.addr.eq(addr),
        ]
        read = Signal()
        read_first = Signal()
        read_last = Signal()
        m.d.sync += read.eq(reading)
        with m.If(reading):
            m.d.sync += [
                addr.eq(addr + 1),
                left.eq(left - 1),
                read_first.eq(left == self.planes),
                read_last.eq(left == 1),
                self.bad.eq(Mux(left == self.planes, ~fits, self.bad | ~fits)),
            ]
            with m.If(left == 1):
                m.d.sync += reading.eq(0)

        # Cut out the tile's lanes.
        cut = [Signal(c.n, name=f"cut_{i}", reset_less=True) for i in rows]
        cut_valid = Signal()
        cut_first = Signal()
        cut_last = Signal()
        lanes = Signal(range(c.tiles_per_word))
        m.d.sync += [cut_valid.eq(read), cut_first.eq(read_first), cut_last.eq(read_last)]
        m.d.comb += lanes.eq(tile)
        with m.If(read):
            m.d.sync += [cut[i].eq(self.data[i].word_select(lanes, c.n)) for i in rows]

        # Shift them in.
        staged = [[Signal(RES_BITS, name=f"staged_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        active = [[Signal(RES_BITS, name=f"active_{i}_{j}", reset_less=True) for j in cols] for i in rows]
        with m.If(cut_valid):
            with m.If(cut_first):
                for i in rows:
                    for j in cols:
                        sign = cut[i][j] & self.is_signed
                        m.d.sync += staged[i][j].eq(Cat(cut[i][j], sign.replicate(RES_BITS - 1)))
            with m.Else():
                m.d.sync += [staged[i][j].eq(Cat(cut[i][j], staged[i][j])) for i in rows for j in cols]
            with m.If(cut_last):
                m.d.sync += self.ready.eq(1)

        # Hand over, and start the next tile.
        with m.If(self.take):
            m.d.sync += [active[i][j].eq(staged[i][j]) for i in rows for j in cols]
            m.d.sync += [self.ready.eq(0), reading.eq(1), left.eq(self.planes)]
            with m.If(tile == self.ng):
                m.d.sync += [tile.eq(0), position.eq(position + self.pitch), addr.eq(position + self.pitch)]
            with m.Else():
                m.d.sync += [tile.eq(tile + 1), addr.eq(position)]
        with m.If(self.start):
            m.d.sync += [
                self.ready.eq(0), reading.eq(1), read.eq(0), cut_valid.eq(0), tile.eq(0),
                left.eq(self.planes), position.eq(self.base), addr.eq(self.base),
            ]
        m.d.comb += self.awake.eq(self.start | self.take | reading | read | cut_valid | self.row_en)
        with m.If(self.row_en):
            with m.Switch(self.row):
                for i in rows:
                    with m.Case(i):
                        m.d.sync += [self.value[j].eq(active[i][j]) for j in cols]
        return m
