"""AXI4 master: bursts from segments, the shared read channel, the write channel."""

from amaranth.hdl import Array, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config

BURST = 64
"""Most beats of a burst; none crosses an address that is a multiple of so many beats (hence none a 4 KB page). Longer bursts
would gain nothing, and an instruction fetch would wait longer behind them."""

SEGMENT = data.StructLayout({"addr": 32, "beats": 26})
"""Consecutive beats from a byte address on; at least one."""

REQUEST = data.StructLayout({"addr": 32, "len": 8})
"""A burst, as AXI has it: `len` is one less than its beats."""


def beat_layout(config: Config) -> data.StructLayout:
    """A beat of the write channel."""
    return data.StructLayout({"data": config.axi_bits, "strb": config.axi_bytes, "last": 1})


def read_signature(config: Config) -> wiring.Signature:
    """AXI4 read channels, seen by the master."""
    return wiring.Signature({
        "araddr": Out(32), "arlen": Out(8), "arsize": Out(3), "arburst": Out(2), "arvalid": Out(1), "arready": In(1),
        "rdata": In(config.axi_bits), "rresp": In(2), "rlast": In(1), "rvalid": In(1), "rready": Out(1),
    })


def write_signature(config: Config) -> wiring.Signature:
    """AXI4 write channels, seen by the master."""
    return wiring.Signature({
        "awaddr": Out(32), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2), "awvalid": Out(1), "awready": In(1),
        "wdata": Out(config.axi_bits), "wstrb": Out(config.axi_bytes), "wlast": Out(1), "wvalid": Out(1), "wready": In(1),
        "bresp": In(2), "bvalid": In(1), "bready": Out(1),
    })


class Slice(wiring.Component):
    """Two registers between a stream's source and a port: neither side sees the other within a cycle. Holds what it offers;
    a payload a cycle, a cycle later.

    Members
    -------
    i : the stream.
    valid, payload, ready : the port.
    """

    def __init__(self, shape):
        self.shape = shape
        super().__init__({
            "i": In(stream.Signature(shape)), "valid": Out(1), "payload": Out(shape), "ready": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        spare, spare_valid = Signal(self.shape, reset_less=True), Signal()
        m.d.comb += self.i.ready.eq(~spare_valid)
        with m.If(self.i.valid & self.i.ready):
            with m.If(~self.valid | self.ready):
                m.d.sync += [self.payload.eq(self.i.payload), self.valid.eq(1)]
            with m.Else():
                m.d.sync += [spare.eq(self.i.payload), spare_valid.eq(1)]
        with m.Elif(self.ready):
            m.d.sync += [self.valid.eq(spare_valid), spare_valid.eq(0)]
            with m.If(spare_valid):
                m.d.sync += self.payload.eq(spare)
        return m


class Bursts(wiring.Component):
    """Cuts and joins segments into bursts.

    Consecutive segments that are contiguous become one burst. One step (a segment, or a part of one up to the next multiple of
    `BURST` beats) a cycle; a burst is requested when it cannot grow or no segment follows at once. A segment outside
    [base, limit) or not aligned to the beat is refused: `refused` stays until reset, and nothing of it is requested.

    Members
    -------
    segment : what to transfer, in order.
    request : the bursts.
    base, limit : first byte allowed, first byte not allowed.
    busy : something is still to be requested.
    refused : the present segment breaks the range or the alignment.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "segment": In(stream.Signature(SEGMENT)),
            "request": Out(stream.Signature(REQUEST)),
            "base": In(32),
            "limit": In(32),
            "busy": Out(1),
            "refused": Out(1),
            "halt": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        shift = (self.config.axi_bytes - 1).bit_length()
        block = BURST.bit_length() - 1

        addr = Signal(32, reset_less=True)  # what is left of the present segment
        beats = Signal(26, reset_less=True)
        valid = Signal()
        first = Signal(32, reset_less=True)  # the burst that grows
        count = Signal(block + 1, reset_less=True)
        open_ = Signal()

        offset = addr[shift:shift + block]
        room = Signal(block + 1)
        m.d.comb += room.eq(BURST - offset)
        take = Signal(block + 1)
        whole = Signal()
        m.d.comb += [whole.eq(beats <= room), take.eq(Mux(whole, beats, room))]
        # Both ends that the step may have, compared before it is known which: a multiplexer before the sums would take longer.
        end_whole, end_block = Signal(33), Signal(33)
        m.d.comb += [end_whole.eq(addr + (beats[:block + 1] << shift)), end_block.eq(addr + (room << shift))]
        end, beyond = Signal(33), Signal()
        m.d.comb += [
            end.eq(Mux(whole, end_whole, end_block)),
            beyond.eq(Mux(whole, end_whole > self.limit, end_block > self.limit)),
            self.refused.eq(valid & ((addr[:shift] != 0) | (addr < self.base) | beyond)),
        ]
        grows = Signal()
        m.d.comb += grows.eq(open_ & (offset != 0) & (addr == (first + (count << shift))[:32]))
        free = ~self.request.valid | self.request.ready

        m.d.comb += self.busy.eq(valid | open_ | self.request.valid)
        issue = Signal()
        with m.If(self.request.ready):
            m.d.sync += self.request.valid.eq(0)
        with m.If(issue):
            m.d.sync += [
                self.request.valid.eq(1),
                self.request.payload.addr.eq(first),
                self.request.payload.len.eq(count - 1),
            ]
        with m.If(valid):
            with m.If(~self.halt & ~self.refused & (grows | ~open_ | free)):
                m.d.sync += [addr.eq(end), beats.eq(beats - take), open_.eq(1)]
                with m.If(grows):
                    m.d.sync += count.eq(count + take)
                with m.Else():
                    m.d.comb += issue.eq(open_)
                    m.d.sync += [first.eq(addr), count.eq(take)]
                with m.If(whole):
                    m.d.comb += self.segment.ready.eq(1)
                    m.d.sync += valid.eq(0)
        with m.Else():
            m.d.comb += self.segment.ready.eq(1)
            with m.If(open_ & ~self.segment.valid & free & ~self.halt):
                m.d.comb += issue.eq(1)
                m.d.sync += open_.eq(0)
        with m.If(self.segment.ready & self.segment.valid):
            m.d.sync += [valid.eq(1), addr.eq(self.segment.payload.addr), beats.eq(self.segment.payload.beats)]
        return m


class Reader(wiring.Component):
    """The read channel, shared by fetch (which goes first) and load.

    Up to `config.outstanding` bursts are in flight; data come back in order, to whoever asked, and are never held back. A beat
    reaches its owner one cycle after the bus. What is in flight at `clear` is swallowed when it comes.

    Members
    -------
    fetch, load : bursts asked for.
    fetch_valid, load_valid : a beat for this owner.
    data, error : of that beat. `error`: the memory answered SLVERR or DECERR.
    beat : a beat came.
    idle : nothing is in flight.
    halt : no new bursts.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "bus": Out(read_signature(config)),
            "fetch": In(stream.Signature(REQUEST)),
            "load": In(stream.Signature(REQUEST)),
            "fetch_valid": Out(1),
            "load_valid": Out(1),
            "data": Out(config.axi_bits),
            "error": Out(1),
            "beat": Out(1),
            "idle": Out(1),
            "halt": In(1),
            "clear": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        c, bus = self.config, self.bus
        depth = c.outstanding
        in_flight = Signal(range(depth + 1))
        drop = Signal(range(depth + 1))
        owners = Signal(depth)  # bit i: the i-th oldest burst in flight is fetch's
        m.d.comb += [
            bus.rready.eq(1),
            bus.arsize.eq((c.axi_bytes - 1).bit_length()),
            bus.arburst.eq(1),
            self.idle.eq(in_flight == 0),
        ]

        valid, last = Signal(), Signal(reset_less=True)
        m.d.sync += valid.eq(bus.rvalid)
        with m.If(bus.rvalid):
            m.d.sync += [self.data.eq(bus.rdata), self.error.eq(bus.rresp[1]), last.eq(bus.rlast)]
        wanted = valid & (drop == 0)
        m.d.comb += [
            self.beat.eq(valid),
            self.fetch_valid.eq(wanted & owners[0]),
            self.load_valid.eq(wanted & ~owners[0]),
        ]
        pop, push = Signal(), Signal()
        m.d.comb += pop.eq(valid & last)

        m.submodules.requests = requests = Slice(REQUEST)
        m.d.comb += [
            bus.arvalid.eq(requests.valid), bus.araddr.eq(requests.payload.addr), bus.arlen.eq(requests.payload.len),
            requests.ready.eq(bus.arready),
        ]
        with m.If(requests.i.ready & (in_flight != depth) & ~self.halt):
            m.d.comb += [self.fetch.ready.eq(1), self.load.ready.eq(~self.fetch.valid)]
        m.d.comb += [
            push.eq((self.fetch.valid & self.fetch.ready) | (self.load.valid & self.load.ready)),
            requests.i.valid.eq(push),
            requests.i.payload.eq(Mux(self.fetch.valid, self.fetch.payload.as_value(), self.load.payload.as_value())),
        ]
        with m.If(push | pop):
            left = Signal.like(in_flight)
            m.d.comb += left.eq(in_flight - pop)
            m.d.sync += in_flight.eq(left + push)
            m.d.sync += owners.eq(Mux(pop, owners >> 1, owners) & ~(push << left) | ((push & self.fetch.valid) << left))
        with m.If(pop & (drop != 0)):
            m.d.sync += drop.eq(drop - 1)
        with m.If(self.clear):
            m.d.sync += drop.eq(in_flight - pop)
        return m


class Writer(wiring.Component):
    """The write channel: addresses, data in order, responses.

    Up to `config.outstanding` bursts wait for their responses; a beat a cycle. On `halt` no burst is addressed any more, and
    those already addressed get their remaining beats with no byte enabled.

    Members
    -------
    request : bursts, in the order of their data.
    data : their beats.
    beat : a beat went, a cycle ago.
    error : a response was SLVERR or DECERR.
    idle : every burst has been answered.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "bus": Out(write_signature(config)),
            "request": In(stream.Signature(REQUEST)),
            "data": In(stream.Signature(unsigned(config.axi_bits))),
            "beat": Out(1),
            "error": Out(1),
            "idle": Out(1),
            "halt": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        c, bus = self.config, self.bus
        depth = c.outstanding
        pending = Signal(range(depth + 1))  # bursts without a response
        queued = Signal(range(depth + 1))  # bursts with beats to send
        lengths = Array(Signal(8, name=f"length_{i}", reset_less=True) for i in range(depth))
        put, get = Signal(range(depth)), Signal(range(depth))
        sent = Signal(8)
        flush, went = Signal(), Signal()
        m.d.sync += went.eq(bus.wvalid & bus.wready)
        m.d.comb += [
            bus.bready.eq(1),
            bus.awsize.eq((c.axi_bytes - 1).bit_length()),
            bus.awburst.eq(1),
            self.idle.eq(pending == 0),
            self.beat.eq(went),
        ]
        with m.If(self.halt):
            m.d.sync += flush.eq(1)
        with m.Elif(queued == 0):
            m.d.sync += flush.eq(0)
        drain = self.halt | flush

        def following(pointer):
            return Mux(pointer == depth - 1, 0, pointer + 1)

        push, pop, answered = Signal(), Signal(), Signal()
        m.submodules.requests = requests = Slice(REQUEST)
        m.submodules.beats = beats = Slice(beat_layout(c))
        m.d.comb += [
            bus.awvalid.eq(requests.valid), bus.awaddr.eq(requests.payload.addr), bus.awlen.eq(requests.payload.len),
            requests.ready.eq(bus.awready),
            bus.wvalid.eq(beats.valid), bus.wdata.eq(beats.payload.data), bus.wstrb.eq(beats.payload.strb),
            bus.wlast.eq(beats.payload.last), beats.ready.eq(bus.wready),
            self.request.ready.eq(requests.i.ready & (pending != depth) & ~drain),
            push.eq(self.request.valid & self.request.ready),
            requests.i.valid.eq(push),
            requests.i.payload.eq(self.request.payload),
        ]
        with m.If(push):
            m.d.sync += [lengths[put].eq(self.request.payload.len), put.eq(following(put))]

        last = sent == lengths[get]
        m.d.comb += [
            self.data.ready.eq(beats.i.ready & (queued != 0) & ~drain),
            beats.i.valid.eq((queued != 0) & (self.data.valid | drain)),
            beats.i.payload.data.eq(self.data.payload),
            beats.i.payload.strb.eq(Mux(drain, 0, (1 << c.axi_bytes) - 1)),
            beats.i.payload.last.eq(last),
        ]
        with m.If(beats.i.valid & beats.i.ready):
            m.d.sync += sent.eq(sent + 1)
            with m.If(last):
                m.d.comb += pop.eq(1)
                m.d.sync += [sent.eq(0), get.eq(following(get))]
        m.d.sync += [answered.eq(bus.bvalid), self.error.eq(bus.bvalid & bus.bresp[1])]
        m.d.sync += [queued.eq(queued + push - pop), pending.eq(pending + push - answered)]
        return m
