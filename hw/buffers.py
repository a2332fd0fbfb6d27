"""On-chip buffers: banks of memory with one read port and one write port."""

from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out


class Banks(wiring.Component):
    """`count` memories of `depth` x `shape` with one address for all reads and one for all writes.

    Data follow one cycle after `en`. A read of the word that is being written gives either value: semaphores keep them apart.
    Banks are at most K bits wide, since simulators are slow on wide words.

    Parameters
    ----------
    shared : writers of different banks: number of data ports; bank i writes `data[i % shared]`.
    writer, reader : clock domains of the units that write and read.
    """

    def __init__(self, count: int, depth: int, shape, shared: int = 1, *, writer: str = "sync", reader: str = "sync"):
        self.count, self.depth, self.shape, self.shared = count, depth, shape, shared
        self.writer, self.reader = writer, reader
        super().__init__({
            "we": In(count),
            "waddr": In(16),
            "wdata": In(shape).array(shared),
            "en": In(1),
            "raddr": In(16),
            "rdata": Out(shape).array(count),
        })

    def elaborate(self, platform):
        m = Module()
        for i in range(self.count):
            m.submodules[f"bank_{i}"] = bank = memory.Memory(shape=self.shape, depth=self.depth, init=[])
            write, read = bank.write_port(domain=self.writer), bank.read_port(domain=self.reader)
            m.d.comb += [
                write.en.eq(self.we[i]), write.addr.eq(self.waddr), write.data.eq(self.wdata[i % self.shared]),
                read.en.eq(self.en), read.addr.eq(self.raddr), self.rdata[i].eq(read.data),
            ]
        return m


class Flags(wiring.Component):
    """A memory of `depth` words of `count` bits, each with its own write enable: the validity of the act words."""

    def __init__(self, count: int, depth: int, *, writer: str = "sync"):
        self.count, self.depth, self.writer = count, depth, writer
        super().__init__({
            "we": In(count), "waddr": In(16), "wdata": In(1), "en": In(1), "raddr": In(16), "rdata": Out(count),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.flags = flags = memory.Memory(shape=self.count, depth=self.depth, init=[])
        write, read = flags.write_port(granularity=1, domain=self.writer), flags.read_port()
        m.d.comb += [
            write.en.eq(self.we), write.addr.eq(self.waddr), write.data.eq(self.wdata.replicate(self.count)),
            read.en.eq(self.en), read.addr.eq(self.raddr), self.rdata.eq(read.data),
        ]
        return m
