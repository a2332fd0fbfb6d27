"""A DMA copier with the ports of the accelerator: what the harness is tested on."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out

SRC, DST, SHAPE, START, STATUS, FAULT, PROBE = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18
DROP_AR, CHANGE_AR, LATE_WLAST, FOLLOW_RVALID = 1, 2, 4, 8


def ports(axi_bits: int) -> dict:
    lite = {"awaddr": In(12), "awvalid": In(1), "awready": Out(1), "wdata": In(32), "wstrb": In(4), "wvalid": In(1),
            "wready": Out(1), "bresp": Out(2), "bvalid": Out(1), "bready": In(1), "araddr": In(12), "arvalid": In(1),
            "arready": Out(1), "rdata": Out(32), "rresp": Out(2), "rvalid": Out(1), "rready": In(1)}
    full = {"awaddr": Out(32), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(axi_bits), "wstrb": Out(axi_bits // 8), "wlast": Out(1), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1), "araddr": Out(32), "arlen": Out(8), "arsize": Out(3),
            "arburst": Out(2), "arvalid": Out(1), "arready": In(1), "rdata": In(axi_bits), "rresp": In(2), "rlast": In(1),
            "rvalid": In(1), "rready": Out(1)}
    return ({f"s_axil_{k}": v for k, v in lite.items()} | {f"m_axi_{k}": v for k, v in full.items()}
            | {"irq": Out(1), "state": Out(3)})


class Copier(wiring.Component):
    """Copies SHAPE[31:8] bursts of SHAPE[7:0] + 1 beats from SRC to DST, then raises irq; STATUS is 1 done, 2 error. A read at
    PROBE pops 32 bits of popcount of SRC. FAULT breaks rules of AXI on purpose."""

    def __init__(self, axi_bits: int):
        self.axi_bits = axi_bits
        super().__init__(ports(axi_bits))

    def elaborate(self, platform):
        m = Module()
        src, dst, fault = Signal(32), Signal(32), Signal(4)
        length, bursts = Signal(8), Signal(24)
        busy, done, error = Signal(), Signal(), Signal()
        self.registers(m, src, dst, fault, length, bursts, busy, done, error)
        m.d.comb += [self.irq.eq(done), self.state.eq(Cat(busy, done, error))]

        step = ((length + 1) * (self.axi_bits // 8))[:32]
        size = (self.axi_bits // 8 - 1).bit_length()
        for channel, start in (("ar", src), ("aw", dst)):
            valid, ready = getattr(self, f"m_axi_{channel}valid"), getattr(self, f"m_axi_{channel}ready")
            address = getattr(self, f"m_axi_{channel}addr")
            left = Signal(24, name=f"{channel}_left")
            m.d.comb += [getattr(self, f"m_axi_{channel}len").eq(length), getattr(self, f"m_axi_{channel}size").eq(size),
                         getattr(self, f"m_axi_{channel}burst").eq(1), valid.eq(left != 0)]
            with m.If(valid & ready):
                m.d.sync += [left.eq(left - 1), address.eq(address + step)]
            if channel == "ar":
                toggle = Signal()
                m.d.sync += toggle.eq(~toggle)
                with m.If(fault[0] & toggle):
                    m.d.comb += valid.eq(0)
                with m.If(fault[1] & toggle):
                    m.d.comb += self.m_axi_arlen.eq(length ^ 1)
            with m.If(self.go):
                m.d.sync += [left.eq(bursts), address.eq(start)]

        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=self.axi_bits, depth=64)
        m.d.comb += [queue.w_data.eq(self.m_axi_rdata), queue.w_en.eq(self.m_axi_rvalid & self.m_axi_rready),
                     self.m_axi_rready.eq(queue.w_rdy & Mux(fault[3], self.m_axi_rvalid, 1))]
        beat, answers = Signal(8), Signal(24)
        m.d.comb += [self.m_axi_wdata.eq(queue.r_data), self.m_axi_wstrb.eq(-1), self.m_axi_wvalid.eq(queue.r_rdy),
                     self.m_axi_wlast.eq((beat == length) ^ fault[2]), queue.r_en.eq(self.m_axi_wready), self.m_axi_bready.eq(1)]
        with m.If(self.m_axi_wvalid & self.m_axi_wready):
            m.d.sync += beat.eq(Mux(beat == length, 0, beat + 1))
        with m.If(self.m_axi_bvalid & busy):
            m.d.sync += answers.eq(answers + 1)
            with m.If(answers + 1 == bursts):
                m.d.sync += [done.eq(1), busy.eq(0)]
        failed = Signal()
        m.d.comb += failed.eq((self.m_axi_bvalid & (self.m_axi_bresp != 0))
                              | (queue.w_en & (self.m_axi_rresp != 0)))
        with m.If(failed & busy):
            m.d.sync += [error.eq(1), done.eq(1)]
        with m.If(self.go):
            m.d.sync += [busy.eq(1), done.eq(0), error.eq(0), answers.eq(0), beat.eq(0)]
        return m

    def registers(self, m, src, dst, fault, length, bursts, busy, done, error):
        from amaranth.hdl import Instance

        self.go = Signal()
        aw, w, address, data = Signal(), Signal(), Signal(12), Signal(32)
        m.d.comb += [self.s_axil_awready.eq(~aw), self.s_axil_wready.eq(~w), self.go.eq(0)]
        with m.If(self.s_axil_awvalid & ~aw):
            m.d.sync += [aw.eq(1), address.eq(self.s_axil_awaddr)]
        with m.If(self.s_axil_wvalid & ~w):
            m.d.sync += [w.eq(1), data.eq(self.s_axil_wdata)]
        with m.If(aw & w & ~self.s_axil_bvalid):
            m.d.sync += [self.s_axil_bvalid.eq(1), self.s_axil_bresp.eq(0)]
            with m.Switch(address):
                with m.Case(SRC):
                    m.d.sync += src.eq(data)
                with m.Case(DST):
                    m.d.sync += dst.eq(data)
                with m.Case(SHAPE):
                    m.d.sync += Cat(length, bursts).eq(data)
                with m.Case(FAULT):
                    m.d.sync += fault.eq(data)
                with m.Case(START):
                    m.d.comb += self.go.eq(1)
                with m.Default():
                    m.d.sync += self.s_axil_bresp.eq(2)
        with m.If(self.s_axil_bvalid & self.s_axil_bready):
            m.d.sync += [self.s_axil_bvalid.eq(0), aw.eq(0), w.eq(0)]

        ones = Signal(range(33))
        m.submodules.ones = Instance("seriatim_popcount", p_WIDTH=32, i_i=src, o_o=ones)
        m.d.comb += self.s_axil_arready.eq(~self.s_axil_rvalid)
        with m.If(self.s_axil_arvalid & ~self.s_axil_rvalid):
            m.d.sync += [self.s_axil_rvalid.eq(1), self.s_axil_rresp.eq(0)]
            with m.Switch(self.s_axil_araddr):
                for number, value in ((SRC, src), (DST, dst), (SHAPE, Cat(length, bursts)), (STATUS, Cat(done, error)),
                                      (PROBE, ones)):
                    with m.Case(number):
                        m.d.sync += self.s_axil_rdata.eq(value)
                with m.Default():
                    m.d.sync += self.s_axil_rresp.eq(3)
        with m.If(self.s_axil_rvalid & self.s_axil_rready):
            m.d.sync += self.s_axil_rvalid.eq(0)
