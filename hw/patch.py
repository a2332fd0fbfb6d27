"""The patch builder: im2col in the load unit."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim import isa
from seriatim.config import Config

from .axi import SEGMENT
from .layouts import layout

CHUNK = 8
"""Bytes gathered in a cycle."""
PLANES = 8


class Patch(wiring.Component):
    """Executes PATCH.

    The columns that the positions need are found by a pass over them (a cycle each), the products by one multiplier. Then, for
    each slice, the rows inside the image are fetched to one half of the line memory while the other half is gathered: up to 8
    contiguous bytes of a tap row a cycle, replaced by the pad code outside the image, and appended to 8 plane words. A full
    (or last) set of plane words waits in a register of its own until its predecessor has been written to the act buffer, a word
    a cycle, while the gather goes on. A position of 7 x 7 x 3 bytes takes 24 cycles at K = 64 (3 x 8 words; the gather takes 21).

    Bounds: a program that keeps within the act buffer has byte columns below 2^33, which 35 bits hold.

    Members
    -------
    word : the instruction; stays until `done`.
    start : begin. done : everything is written (one cycle). busy : between them.
    segment : what to fetch.
    beat_valid, beat_data : its data, in order.
    we, mask, addr, data : write to the act buffer; `mask` is the slice. Not while `outside`.
    outside : beyond the act buffer or the line memory; stays.
    progress : something moves.
    awake : see `sleep`.
    """

    def __init__(self, config: Config):
        self.config = c = config
        super().__init__({
            "word": In(isa.INSTR_BITS),
            "start": In(1),
            "done": Out(1),
            "busy": Out(1),
            "segment": Out(stream.Signature(SEGMENT)),
            "beat_valid": In(1),
            "beat_data": In(c.axi_bits),
            "we": Out(1),
            "mask": Out(c.m),
            "addr": Out(16),
            "data": Out(c.k),
            "outside": Out(1),
            "progress": Out(1),
            "halt": In(1),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        c = self.config
        f = data.View(layout("PATCH"), self.word)
        shift = (c.axi_bytes - 1).bit_length()
        too_long, overrun = Signal(), Signal()

        def reg(shape, name, **kwargs):
            return Signal(shape, name=name, reset_less=True, **kwargs)

        # A tap row is one run of kw * channels bytes where columns adjoin, otherwise kw runs of `channels` bytes.
        joined = Signal()
        runs, run_columns = Signal(16), Signal(16)
        m.d.comb += joined.eq(f.dw == 1)
        m.d.comb += [runs.eq(Mux(joined, 1, f.kw)), run_columns.eq(Mux(joined, f.kw, 1))]

        # Setup: first and last image column needed (a pass over all runs), then the products.
        column, x_column = reg(signed(28), "column"), reg(signed(28), "x_column")
        p_x, p_t = reg(16, "p_x"), reg(16, "p_t")
        low, high, none = reg(16, "low"), reg(17, "high"), reg(1, "none")  # [low, high)
        a, b = reg(signed(18), "a"), reg(32, "b")
        product = Signal(signed(36))
        m.d.comb += product.eq(a * b)
        row_bytes, x_step, t_step = reg(33, "row_bytes"), reg(24, "x_step"), reg(24, "t_step")
        x_first, run_bytes = reg(signed(35), "x_first"), reg(32, "run_bytes")
        low_byte, high_byte = reg(33, "low_byte"), reg(33, "high_byte")
        y_addr, r_pitch, s_pitch, lines = reg(32, "y_addr"), reg(32, "r_pitch"), reg(32, "s_pitch"), reg(25, "lines")
        products = (
            (f.width, f.channels, row_bytes), (f.sw, f.channels, x_step), (f.dw, f.channels, t_step),
            (f.x0, f.channels, x_first), (run_columns, f.channels, run_bytes), (low, f.channels, low_byte),
            (high, f.channels, high_byte), (f.y0, f.y_pitch, y_addr), (f.dh, f.y_pitch, r_pitch),
            (f.y_step, f.y_pitch, s_pitch), (f.kh, f.seg_bytes, lines),
        )
        step = Signal(range(len(products) + 2))
        begin = Signal()

        with m.FSM(name="setup"):
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [column.eq(f.x0), x_column.eq(f.x0), p_x.eq(f.nx), p_t.eq(runs), low.eq(0xFFFF), high.eq(0),
                                 none.eq(1), step.eq(0), self.busy.eq(1)]
                    m.next = "COLUMNS"
            with m.State("COLUMNS"):
                first, end, beyond = Signal(signed(28)), Signal(signed(28)), Signal(signed(28))
                m.d.comb += [first.eq(Mux(column < 0, 0, column)), end.eq(column + run_columns)]
                m.d.comb += beyond.eq(Mux(end > f.width, f.width, end))
                with m.If(first < beyond):
                    m.d.sync += none.eq(0)
                    with m.If(first < low):
                        m.d.sync += low.eq(first)
                    with m.If(beyond > high):
                        m.d.sync += high.eq(beyond)
                m.d.sync += [p_t.eq(p_t - 1), column.eq(column + f.dw)]
                with m.If(p_t == 1):
                    m.d.sync += [p_t.eq(runs), p_x.eq(p_x - 1), column.eq(x_column + f.sw), x_column.eq(x_column + f.sw)]
                    with m.If(p_x == 1):
                        m.next = "PRODUCTS"
            with m.State("PRODUCTS"):
                m.d.sync += step.eq(step + 1)
                with m.Switch(step):
                    for i, (left, right, _) in enumerate(products):
                        with m.Case(i):
                            m.d.sync += [a.eq(left), b.eq(right)]
                with m.Switch(step):
                    for i, (_, _, to) in enumerate(products):
                        with m.Case(i + 1):
                            m.d.sync += to.eq(product)
                with m.If(step == len(products) + 1):
                    m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += too_long.eq(lines > c.line_bytes)
                with m.If(~too_long & ~self.halt):
                    m.d.comb += begin.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(self.done):
                    m.d.sync += self.busy.eq(0)
                    m.next = "IDLE"

        # Fetch: the rows inside the image, one after the other in a half of the line memory.
        def inside(row):
            return (row >= 0) & (row < f.height) & ~none

        from_byte = Signal(33)  # image byte that a line's first byte holds
        size = Signal(33)
        m.d.comb += from_byte.eq(Cat(Const(0, shift), low_byte[shift:]))
        m.d.comb += size.eq(Cat(Const(0, shift), (high_byte + (c.axi_bytes - 1))[shift:33]) - from_byte)
        fetching, f_half, used = Signal(), Signal(), Signal(2)  # used: halves being fetched, full or gathered
        f_row, f_top = reg(signed(24), "f_row"), reg(signed(24), "f_top")
        f_addr, f_top_addr = reg(32, "f_addr"), reg(32, "f_top_addr")
        f_r, f_s, f_count = reg(8, "f_r"), reg(6, "f_s"), reg(8, "f_count")
        counted = Array(reg(8, f"counted_{i}") for i in range(2))  # rows of a half, once all are requested
        known = Signal(2)
        claim, free, filled = Signal(), Signal(), Signal()
        wanted = inside(f_row)
        m.d.comb += [
            self.segment.payload.addr.eq(f_addr + from_byte),
            self.segment.payload.beats.eq(size >> shift),
        ]
        with m.If(fetching & ~self.halt):
            with m.If(f_r == 0):  # between slices
                with m.If(f_s == 0):
                    m.d.sync += fetching.eq(0)
                with m.Elif(used != 2):
                    m.d.comb += claim.eq(1)
                    m.d.sync += [f_row.eq(f_top), f_addr.eq(f_top_addr), f_r.eq(f.kh), f_count.eq(0)]
            with m.Else():
                m.d.comb += overrun.eq(wanted & (size > f.seg_bytes))
                m.d.comb += self.segment.valid.eq(wanted & ~overrun)
                with m.If(~wanted | (self.segment.valid & self.segment.ready)):
                    m.d.sync += [f_r.eq(f_r - 1), f_row.eq(f_row + f.dh), f_addr.eq(f_addr + r_pitch),
                                 f_count.eq(f_count + wanted)]
                    with m.If(f_r == 1):
                        m.d.sync += [f_s.eq(f_s - 1), f_top.eq(f_top + f.y_step), f_top_addr.eq(f_top_addr + s_pitch)]
                        m.d.sync += [counted[f_half].eq(f_count + wanted), known.bit_select(f_half, 1).eq(1), f_half.eq(~f_half)]
        with m.If(begin):
            m.d.sync += [fetching.eq(1), f_half.eq(0), f_r.eq(0), f_s.eq(f.slices), f_top.eq(f.y0),
                         f_top_addr.eq(f.dram + y_addr), used.eq(0), known.eq(0)]
        with m.Elif(claim | free):
            m.d.sync += used.eq(used + claim - free)

        # Receive: beats to the line memory, half after half.
        half_beats = c.line_bytes // c.axi_bytes
        r_half, r_rows = Signal(), reg(8, "r_rows")
        r_line, r_left = reg(range(2 * half_beats), "r_line"), reg(16, "r_left")
        r_at = reg(range(2 * half_beats), "r_at")
        row_done, rows = Signal(), Signal(8)
        m.d.comb += [row_done.eq(self.beat_valid & (r_left == 1)), rows.eq(r_rows + row_done)]
        m.d.comb += filled.eq(known.bit_select(r_half, 1) & (rows == counted[r_half]))
        with m.If(self.beat_valid):
            m.d.sync += [r_at.eq(r_at + 1), r_left.eq(r_left - 1)]
            with m.If(row_done):
                following = r_line + (f.seg_bytes >> shift)
                m.d.sync += [r_rows.eq(rows), r_line.eq(following), r_at.eq(following), r_left.eq(size >> shift)]
        with m.If(filled):
            other = Mux(r_half, 0, half_beats)
            m.d.sync += [r_half.eq(~r_half), r_rows.eq(0), r_line.eq(other), r_at.eq(other), r_left.eq(size >> shift),
                         known.bit_select(r_half, 1).eq(0)]
        with m.If(begin):
            m.d.sync += [r_half.eq(0), r_rows.eq(0), r_line.eq(0), r_at.eq(0), r_left.eq(size >> shift)]
        full = Signal(2)  # halves ready to be gathered

        # The line memory: banks of 8 bytes, byte address 8 * (row * banks + bank); the upper half of the rows is the second half.
        banks = max(2, c.axi_bits // 64)
        bank_bits = (banks - 1).bit_length()
        address = Signal(range(2 * c.line_bytes))
        go = Signal()
        reading = Signal()
        read = []
        bank, bank_row = address[3:3 + bank_bits], address[3 + bank_bits:]
        for i in range(banks):
            m.submodules[f"line_{i}"] = line = memory.Memory(shape=64, depth=2 * c.line_bytes // 8 // banks, init=[])
            rp = line.read_port()
            m.d.comb += [rp.en.eq(reading & go), rp.addr.eq(Mux(bank > i, bank_row + 1, bank_row))]
            read.append(rp.data)
            if c.axi_bits == 32:
                wp = line.write_port(granularity=32)
                m.d.comb += [wp.data.eq(self.beat_data.replicate(2)), wp.addr.eq(r_at >> 2)]
                m.d.comb += wp.en.eq(Mux(self.beat_valid & (r_at[1] == i), Mux(r_at[0], 2, 1), 0))
            else:
                wp = line.write_port()
                m.d.comb += wp.data.eq(self.beat_data[64 * i % c.axi_bits:64 * i % c.axi_bits + 64])
                if c.axi_bits == 64:
                    m.d.comb += [wp.addr.eq(r_at >> 1), wp.en.eq(self.beat_valid & (r_at[0] == i))]
                else:
                    m.d.comb += [wp.addr.eq(r_at), wp.en.eq(self.beat_valid)]
        read = Array(read)

        # Gather, stage 0: the address of a chunk, and which of its bytes are the image's.
        gathering, g_wait = Signal(), Signal()
        g_half = Signal()
        at, t_at, x_at = (reg(signed(35), name) for name in ("at", "t_at", "x_at"))  # bytes of the image row
        left, t_left, r_left_, x_left, s_left = (
            reg(bits, name) for bits, name in ((32, "left"), (16, "t_left"), (8, "tap_left"), (16, "x_left"), (6, "s_left")))
        row, top = reg(signed(24), "row"), reg(signed(24), "top")
        offset = reg(16, "offset")
        short = Signal()
        count, lead, tail = Signal(4), Signal(4), Signal(4)
        ahead = Signal(signed(36))
        m.d.comb += [short.eq(left <= CHUNK), count.eq(Mux(short, left, CHUNK)), ahead.eq(row_bytes - at)]
        m.d.comb += lead.eq(Mux(at >= 0, 0, Mux(at <= -CHUNK, CHUNK, (-at)[:4])))
        m.d.comb += tail.eq(Mux(~inside(row) | (ahead <= 0), 0, Mux(ahead >= CHUNK, CHUNK, ahead[:4])))
        low_bits = len(address)
        m.d.comb += address.eq(at[:low_bits] - from_byte[:low_bits] + offset + Mux(g_half, c.line_bytes, 0))
        m.d.comb += reading.eq(gathering & ~g_wait)
        last_run, last_row, last_position = short & (t_left == 1), Signal(), Signal()
        m.d.comb += [last_row.eq(last_run & (r_left_ == 1)), last_position.eq(last_row & (x_left == 1))]
        with m.If(gathering & g_wait & full.bit_select(g_half, 1)):
            m.d.sync += g_wait.eq(0)
        with m.If(reading & go):
            m.d.sync += [left.eq(left - CHUNK), at.eq(at + CHUNK)]
            with m.If(short):
                m.d.sync += [left.eq(run_bytes), t_left.eq(t_left - 1), t_at.eq(t_at + t_step), at.eq(t_at + t_step)]
            with m.If(last_run):
                m.d.sync += [t_left.eq(runs), r_left_.eq(r_left_ - 1), row.eq(row + f.dh), t_at.eq(x_at), at.eq(x_at)]
                with m.If(inside(row)):
                    m.d.sync += offset.eq(offset + f.seg_bytes)
            with m.If(last_row):
                m.d.sync += [r_left_.eq(f.kh), x_left.eq(x_left - 1), row.eq(top), offset.eq(0)]
                m.d.sync += [each.eq(x_at + x_step) for each in (x_at, t_at, at)]
            with m.If(last_position):
                m.d.comb += free.eq(1)
                m.d.sync += [x_left.eq(f.nx), s_left.eq(s_left - 1), row.eq(top + f.y_step), top.eq(top + f.y_step),
                             g_half.eq(~g_half), g_wait.eq(1)]
                m.d.sync += [each.eq(x_first) for each in (x_at, t_at, at)]
                with m.If(s_left == 1):
                    m.d.sync += gathering.eq(0)
        with m.If(begin):
            m.d.sync += [gathering.eq(1), g_wait.eq(1), g_half.eq(0), left.eq(run_bytes), t_left.eq(runs), r_left_.eq(f.kh),
                         x_left.eq(f.nx), s_left.eq(f.slices), row.eq(f.y0), top.eq(f.y0), offset.eq(0)]
            m.d.sync += [each.eq(x_first) for each in (x_at, t_at, at)]
        for half in range(2):
            with m.If(begin | (free & (g_half == half))):
                m.d.sync += full[half].eq(0)
            with m.Elif(filled & (r_half == half)):
                m.d.sync += full[half].eq(1)

        # Stage 1: the line memory's bytes, rotated and masked, as 8 planes of up to 8 bits.
        valid_1, valid_2 = Signal(), Signal()
        bank_1, byte_1 = reg(bank_bits, "bank_1"), reg(3, "byte_1")
        count_1, lead_1, tail_1, end_1, slice_1 = (
            reg(bits, name) for bits, name in ((4, "count_1"), (4, "lead_1"), (4, "tail_1"), (1, "end_1"), (1, "slice_1")))
        planes_2 = [reg(CHUNK, f"plane_{p}_2") for p in range(PLANES)]
        count_2, end_2, slice_2 = reg(4, "count_2"), reg(1, "end_2"), reg(1, "slice_2")
        with m.If(go):
            m.d.sync += [valid_1.eq(reading), valid_2.eq(valid_1)]
            with m.If(reading):
                m.d.sync += [bank_1.eq(bank), byte_1.eq(address[:3]), count_1.eq(count), lead_1.eq(lead), tail_1.eq(tail),
                             end_1.eq(last_row), slice_1.eq(last_position)]
            with m.If(valid_1):
                chunk, image, present = Signal(64), Signal(CHUNK), Signal(CHUNK)
                high_bits = Signal(7)
                m.d.comb += high_bits.eq(64 - (byte_1 << 3))
                m.d.comb += chunk.eq((read[bank_1] >> (byte_1 << 3)) | (read[(bank_1 + 1)[:bank_bits]] << high_bits))
                ones = Const((1 << CHUNK) - 1, CHUNK)
                m.d.comb += [present.eq(~(ones << count_1)), image.eq((ones << lead_1) & ~(ones << tail_1) & present)]
                for p, plane in enumerate(planes_2):
                    pad = Mux(f.code[PLANES - 1 - p], present & ~image, 0)
                    m.d.sync += plane.eq(Cat(chunk[8 * j + PLANES - 1 - p] for j in range(CHUNK)) & image | pad)
                m.d.sync += [count_2.eq(count_1), end_2.eq(end_1), slice_2.eq(slice_1)]

        # Stage 2: appended to the plane words from above (shifts down by few bits are cheap); words that are full, or end a
        # patch, wait their turn. `fill` lanes are there; the others hold what is to be shifted out.
        words = [reg(c.k, f"word_{p}") for p in range(PLANES)]
        waiting_words = [reg(c.k, f"waiting_{p}") for p in range(PLANES)]
        align = reg(range(c.k), "align")  # the waiting words' lanes that are not there
        fill = Signal(range(c.k))
        sum_ = Signal(range(c.k + CHUNK + 1))
        rest = Signal()  # the end of a patch spilled into a word of its own
        waiting, room, accept, push, patch_end = Signal(), Signal(), Signal(), Signal(), Signal()
        first, fresh = reg(1, "first"), reg(1, "fresh")  # the waiting words, the present ones begin a slice
        complete, spill, flush = Signal(), Signal(), Signal()
        taken = Signal(4)  # lanes of the chunk that still fit
        m.d.comb += [
            sum_.eq(fill + count_2),
            complete.eq(sum_ >= c.k),
            spill.eq(sum_ > c.k),
            taken.eq(Mux(complete, c.k - fill, count_2)),
            flush.eq(rest & room & ~self.halt),
            accept.eq(valid_2 & ~rest & (room | ~(complete | end_2)) & ~self.halt),
            go.eq((accept & ~(end_2 & spill)) | flush | (~valid_2 & ~self.halt)),
            push.eq((accept & (complete | end_2)) | flush),
        ]

        def on_top(bits, count):
            return Cat(Const(0, c.k - CHUNK), (bits << (CHUNK - count)[:4])[:CHUNK])

        left_over = Signal(4)
        m.d.comb += left_over.eq(count_2 - taken)
        for p, (plane, word, to) in enumerate(zip(planes_2, words, waiting_words)):
            longer = Signal(c.k, name=f"longer_{p}")
            with m.If(accept):
                m.d.comb += longer.eq((word >> taken) | on_top(plane, taken))
                with m.If(complete):
                    m.d.sync += word.eq(on_top(plane >> taken, left_over))
                with m.Else():
                    m.d.sync += word.eq(longer)
            with m.If(push):
                m.d.sync += to.eq(Mux(rest, word, longer))
        with m.If(accept):
            m.d.sync += [fill.eq(Mux(end_2 & ~spill, 0, sum_)), rest.eq(end_2 & spill)]  # mod K
            m.d.comb += patch_end.eq(end_2 & ~spill)
        with m.If(flush):
            m.d.sync += [rest.eq(0), fill.eq(0)]
            m.d.comb += patch_end.eq(1)
        with m.If(push):
            m.d.sync += [first.eq(fresh), fresh.eq(patch_end & slice_2)]
            m.d.sync += align.eq(Mux(rest, -fill, Mux(complete, 0, -sum_)))  # mod K

        # Emission: a plane word a cycle.
        emitted, emit_align = [reg(c.k, f"emit_{p}") for p in range(PLANES)], Signal.like(align, name="emit_align")
        emit_left = Signal(range(PLANES + 1))
        mask, addr = reg(c.m + 1, "emit_mask"), reg(17, "emit_addr")
        beyond_act = Signal()
        next_words = Signal()
        m.d.comb += [
            next_words.eq(waiting & (emit_left <= 1) & ~self.halt),
            room.eq(~waiting | next_words),
            beyond_act.eq((emit_left != 0) & (addr >= c.act_words)),
            self.we.eq((emit_left != 0) & ~self.outside),
            self.addr.eq(addr), self.data.eq(emitted[0] >> emit_align), self.mask.eq(mask[1:]),
        ]
        with m.If(push):
            m.d.sync += waiting.eq(1)
        with m.Elif(next_words):
            m.d.sync += waiting.eq(0)
        with m.If((emit_left != 0) & ~self.halt):
            m.d.sync += [emit_left.eq(emit_left - 1), addr.eq(addr + 1)]
            m.d.sync += [emitted[p].eq(emitted[p + 1]) for p in range(PLANES - 1)]
        with m.If(next_words):
            m.d.sync += emit_left.eq(PLANES)
            m.d.sync += [emit_align.eq(align), *(out.eq(word) for word, out in zip(waiting_words, emitted))]
            with m.If(first):
                m.d.sync += [mask.eq(mask << 1), addr.eq(f.base)]
        with m.If(begin):
            m.d.sync += [fresh.eq(1), mask.eq(Const(1, c.m + 1) << f.slice)]
        started = Signal()  # a cycle after begin, when `gathering` tells
        m.d.sync += started.eq((started | begin) & ~self.done)
        m.d.comb += self.done.eq(started & ~gathering & ~valid_1 & ~valid_2 & ~rest & ~waiting & (emit_left == 0))
        m.d.comb += self.outside.eq(too_long | overrun | beyond_act)
        m.d.comb += self.progress.eq(self.we | (reading & go))
        m.d.comb += self.awake.eq(self.start | self.busy)
        return m
