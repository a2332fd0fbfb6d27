"""`Shell`: the accelerator with a memory and a UART link to a host, for any board."""

from amaranth.hdl import Module, ResetInserter
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.hw.top import machine

from . import uart
from .bridge import Bridge
from .framing import Deframer, Framer
from .memory import Arbiter, AxiPort, OnChip

BUFFER_BYTES = 512
"""Buffer of requests: one block RAM of the smallest FPGA."""


class Shell(wiring.Component):
    """A system on chip of one clock. The host reaches registers and memory (from address 0 on) at any time, also while the
    accelerator runs: `seriatim.boards.protocol`.

    Parameters
    ----------
    clock_hz, baud : clock of the whole; rate of the UART, at most a fourth of it.
    memory : `OnChip`, `Spram` or another that has `size` and `controller(bits)`.

    Members
    -------
    rx, tx : the UART's lines.
    pins : the memory's, where its controller has any.
    """

    def __init__(self, config: Config, *, clock_hz: int, baud: int, memory: OnChip):
        self.config, self.clock_hz, self.memory = config, clock_hz, memory
        self.divisor = uart.divisor(clock_hz, baud)
        self.controller = memory.controller(config.axi_bits, clock_hz)
        pins = {"pins": self.controller.signature.members["pins"]} if "pins" in self.controller.signature.members else {}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), **pins})

    def elaborate(self, platform):
        m = Module()
        c, size = self.config, self.memory.size
        m.submodules.receiver = receiver = uart.Receiver(self.divisor)
        m.submodules.transmitter = transmitter = uart.Transmitter(self.divisor)
        m.submodules.deframer = deframer = Deframer(BUFFER_BYTES)
        m.submodules.framer = framer = Framer()
        m.submodules.bridge = bridge = Bridge(c, clock_hz=self.clock_hz, size=size, buffer_bytes=BUFFER_BYTES)
        m.d.comb += [
            receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx),
            deframer.data.eq(receiver.data), deframer.valid.eq(receiver.valid), bridge.errors.eq(deframer.errors),
        ]
        wiring.connect(m, deframer.body, bridge.body)
        wiring.connect(m, bridge.response, framer.body)
        wiring.connect(m, framer.o, transmitter.i)

        resettable = ResetInserter(bridge.reset)
        accelerator, port = machine(c), AxiPort(c, size)
        m.submodules.accelerator, m.submodules.port = resettable(accelerator), resettable(port)
        m.submodules.arbiter = arbiter = Arbiter(c.axi_bits, size)
        m.submodules.controller = controller = self.controller
        wiring.connect(m, bridge.csr, accelerator.s_axil)
        wiring.connect(m, accelerator.m_axi, port.axi)
        wiring.connect(m, port.bus, arbiter.machine)
        wiring.connect(m, bridge.bus, arbiter.host)
        wiring.connect(m, arbiter.bus, controller.bus)
        if hasattr(self, "pins"):
            wiring.connect(m, wiring.flipped(self.pins), controller.pins)
        return m
