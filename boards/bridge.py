"""Does the requests that come over the link: registers, memory."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.hw.csr import LITE

from .framing import SENT
from .memory import memory_signature
from .protocol import ADDR, HEADER, MAGIC, REGISTERS, SHELL_AT, VERSION, WORD_BYTES, Command, Status


class Bridge(wiring.Component):
    """Takes bodies of requests, does them in order, gives bodies of responses.

    A word takes a cycle for each of its bytes and a few for its access; a UART is slower.

    Members
    -------
    body : requests. response : responses (`SENT`).
    csr : the accelerator's registers. bus : the memory.
    errors : for register LINK_ERRORS.
    reset : register RESET.
    """

    def __init__(self, config: Config, *, clock_hz: int, size: int, buffer_bytes: int):
        self.config, self.size = config, size
        self.constants = {"SHELL_ID": MAGIC, "PROTOCOL": VERSION, "CLOCK_HZ": clock_hz, "MEMORY_BYTES": size,
                          "BUFFER_BYTES": buffer_bytes}
        super().__init__({
            "body": In(stream.Signature(8)), "response": Out(stream.Signature(SENT)),
            "csr": Out(LITE), "bus": Out(memory_signature(config.axi_bits, size)),
            "errors": In(8), "reset": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        body, response, request = self.body, self.response, self.bus.request
        sequence, before = Signal(8), Signal(8)  # of this request and of the one before
        command, count, address = Signal(8), Signal(8), Signal(32)
        counted = max(SHELL_AT.bit_length(), self.size.bit_length())  # bits of an address that count from word to word
        word = Signal(32, reset_less=True)  # shifts bytes in at the top, out at the bottom
        index = Signal(range(HEADER.size))
        status = Signal(Status)

        # What is asked for.
        known, writes, of_csr, of_shell, beyond = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            known.eq((command == Command.PING) | (command[1:] == Command.READ_CSR >> 1) | (command[1:] == Command.READ >> 1)),
            writes.eq(command[0]), of_csr.eq(command[1]), of_shell.eq(address[SHELL_AT.bit_length() - 1]),
            beyond.eq(address >= self.size),
        ]
        # The accelerator's registers do not answer during its reset: they read as 0 then.
        skipped = ~known | (of_csr & ((writes & (sequence == before)) | (self.reset & ~of_shell)))

        # Registers.
        csr = self.csr
        m.d.comb += [
            csr.awaddr.eq(address), csr.araddr.eq(address), csr.wdata.eq(word), csr.wstrb.eq(0xF),
            csr.bready.eq(1), csr.rready.eq(1),
        ]
        for valid, ready in ((csr.awvalid, csr.awready), (csr.wvalid, csr.wready), (csr.arvalid, csr.arready)):
            with m.If(ready):
                m.d.sync += valid.eq(0)
        values = {**self.constants, "LINK_ERRORS": self.errors, "RESET": self.reset}
        of_register = Array(values[r.name] for r in REGISTERS)[address[2:2 + (len(REGISTERS) - 1).bit_length()]]

        # The memory: a word is a lane of one of its words.
        lanes = self.config.axi_bytes // WORD_BYTES
        lane = address[2:2 + (lanes - 1).bit_length()]
        m.d.comb += [
            request.payload.address.eq(address >> (self.config.axi_bytes - 1).bit_length()), request.payload.write.eq(writes),
            request.payload.data.eq(word.replicate(lanes)), request.payload.strobe.eq(Mux(beyond, 0, 0xF << (lane * WORD_BYTES))),
        ]
        of_memory = self.bus.data.word_select(lane, 32)

        m.d.comb += response.payload.data.eq(word[:8])
        with m.FSM():
            with m.State("HEADER"):  # goes back as it comes
                m.d.comb += [response.payload.data.eq(body.payload), response.valid.eq(body.valid), body.ready.eq(response.ready)]
                with m.If(body.valid & body.ready):
                    m.d.sync += index.eq(index + 1)
                    with m.Switch(index):
                        for i, field in enumerate((sequence, command, count)):
                            with m.Case(i):
                                m.d.sync += field.eq(body.payload)
                        with m.Default():
                            m.d.sync += address.eq(Cat(address[8:], body.payload))
                    with m.If(index == HEADER.size - 1):
                        m.d.sync += status.eq(Status.OK)
                        m.next = "NEXT"
            with m.State("NEXT"):  # a further word, or the end
                m.d.sync += index.eq(0)
                with m.If(~known):
                    m.d.sync += status.eq(Status.UNKNOWN)
                with m.If(count == 0):
                    m.next = "END"
                with m.Elif(writes):
                    m.next = "TAKE"
                with m.Else():
                    m.next = "ACCESS"
            with m.State("TAKE"):
                m.d.comb += body.ready.eq(1)
                with m.If(body.valid):
                    m.d.sync += [word.eq(Cat(word[8:], body.payload)), index.eq(index + 1)]
                    with m.If(index == WORD_BYTES - 1):
                        m.next = "ACCESS"
            with m.State("ACCESS"):
                m.d.sync += index.eq(0)
                with m.If(skipped | (of_csr & of_shell)):
                    m.next = "WAIT"
                    with m.If(~skipped & writes & (address[2:5] == (ADDR["RESET"] >> 2 & 7))):
                        m.d.sync += self.reset.eq(word[0])
                with m.Elif(of_csr):
                    m.d.sync += [csr.awvalid.eq(writes), csr.wvalid.eq(writes), csr.arvalid.eq(~writes)]
                    m.next = "WAIT"
                with m.Else():
                    m.d.comb += request.valid.eq(1)
                    with m.If(beyond):
                        m.d.sync += status.eq(Status.RANGE)
                    with m.If(request.ready):
                        m.next = "WAIT"
            with m.State("WAIT"):
                done = skipped | Mux(of_csr, of_shell | csr.bvalid | csr.rvalid, writes | self.bus.valid)
                with m.If(done):
                    m.d.sync += [count.eq(count - 1), address[2:counted].eq(address[2:counted] + 1)]
                    m.next = "NEXT"
                    with m.If(~writes):
                        m.d.sync += word.eq(Mux(of_csr, Mux(of_shell, of_register, csr.rdata), of_memory))
                        m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += response.valid.eq(1)
                with m.If(response.ready):
                    m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                    with m.If(index == WORD_BYTES - 1):
                        m.next = "NEXT"
            with m.State("END"):
                m.d.comb += [response.valid.eq(1), response.payload.data.eq(status), response.payload.last.eq(1)]
                with m.If(response.ready):
                    m.d.sync += before.eq(sequence)
                    m.next = "HEADER"
        return m
