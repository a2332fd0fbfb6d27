"""Bridge, memory and registers of the shell against the shell in Python; framing and UART against the codec. No accelerator."""

import random
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from shell_model import Noise, ShellModel

from seriatim import csr, isa
from seriatim.boards import soc, uart
from seriatim.boards.bridge import Bridge
from seriatim.boards.framing import Deframer, Framer
from seriatim.boards.memory import Arbiter, AxiPort, OnChip
from seriatim.boards.protocol import ADDR, SHELL_AT, Command, Decoder, Request, encode
from seriatim.boards.soc import DIVISOR, Board
from seriatim.config import Config
from seriatim.hw.convert import SIM, to_verilog
from seriatim.hw.csr import Registers
from seriatim.sim import build

SIZE, BUFFER = 1 << 13, 128
HARNESS = Path(soc.__file__).with_name("soc.cpp")

pytestmark = pytest.mark.rtl


class Soc(wiring.Component):
    """The shell without accelerator: its registers alone, nobody on its AXI port."""

    def __init__(self, config: Config):
        self.config = config
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "broken": Out(8)})

    def elaborate(self, platform):
        m = Module()
        bits = self.config.axi_bits
        m.submodules.receiver = receiver = uart.Receiver(DIVISOR)
        m.submodules.transmitter = transmitter = uart.Transmitter(DIVISOR)
        m.submodules.deframer = deframer = Deframer(BUFFER)
        m.submodules.framer = framer = Framer()
        m.submodules.bridge = bridge = Bridge(self.config, clock_hz=12_000_000, size=SIZE, buffer_bytes=BUFFER)
        m.submodules.registers = registers = Registers(self.config)
        m.submodules.port = port = AxiPort(self.config, SIZE)
        m.submodules.arbiter = arbiter = Arbiter(bits, SIZE)
        m.submodules.memory = memory = OnChip(SIZE).controller(bits, 12_000_000)
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx), deframer.data.eq(receiver.data),
                     deframer.valid.eq(receiver.valid), bridge.errors.eq(deframer.errors)]
        for a, b in ((deframer.body, bridge.body), (bridge.response, framer.body), (framer.o, transmitter.i),
                     (bridge.csr, registers.bus), (port.bus, arbiter.machine), (bridge.bus, arbiter.host),
                     (arbiter.bus, memory.bus)):
            wiring.connect(m, a, b)
        return m


@pytest.fixture(scope="module", params=(32, 64, 128))
def board(request):
    """A simulated board of each width of AXI: its config, and itself."""
    config = Config(m=1, n=8, k=128, axi_bits=request.param)
    verilog = to_verilog(Soc(config), "seriatim_top", platform=SIM)
    board = Board(build.build(verilog, axi_bits=config.axi_bits, harness=HARNESS))
    yield config, board
    board.close()


def exchange(board: Board, requests: list[bytes], ahead: int = 1) -> list[bytes]:
    """Bodies of the responses to frames, of which at most `ahead` are unanswered, until the lines are quiet."""
    decoder, found = Decoder(), []
    waiting, sent = iter(requests), 0
    while True:
        while sent - len(found) < ahead and (frame := next(waiting, None)) is not None:
            board.send(frame)
            sent += 1
        quiet = board.run(200)
        found += decoder.feed(board.take())
        if quiet > 2000:
            return found


def shell_model(config: Config) -> ShellModel:
    shell = ShellModel(SIZE, BUFFER)
    values = {"ID": csr.ID_VALUE, "ISA_VERSION": isa.VERSION, "CONFIG_HASH": config.hash,
              "GEOMETRY": config.m | config.n << 8 | config.k << 20}
    shell.registers |= {csr.ADDR[name]: value for name, value in values.items()}
    return shell


def random_request(rng, sequence: int) -> Request:
    """Any command, known or not; reads of what was written are likely."""
    command = rng.choice([Command.PING, Command.READ_CSR, Command.WRITE_CSR, Command.READ, Command.WRITE, Command.READ,
                          Command.WRITE, rng.randrange(256)])
    if command == Command.PING:
        return Request(sequence, command, 0, rng.getrandbits(32))
    count = rng.randrange(0, 12)
    address = 4 * rng.randrange(8) if rng.random() < 0.8 else rng.choice([SIZE - 12, SIZE, 1 << 30, 0xFFFF_FF00])
    if command == Command.READ_CSR:
        address, count = rng.choice([0, SHELL_AT]), rng.randrange(4)
    if command == Command.WRITE_CSR:
        count, address = 1, rng.choice([csr.ADDR["PROG_BASE"], csr.ADDR["WATCHDOG"]])
    return Request(sequence, command, count, address, rng.randbytes(4 * count) if command & 1 else b"")


def same(request: Request, got: bytes, expected: bytes) -> bool:
    """Equal, but for the words of a read that was refused."""
    return got == expected or (expected[-1] and got[:7] + got[-1:] == expected[:7] + expected[-1:] and len(got) == len(expected))


def test_random_requests(board):
    config, simulated = board
    rng = random.Random(config.axi_bits)
    requests = [random_request(rng, i % 256) for i in range(1, 1500)]
    model = shell_model(config)
    expected = [model.answer(request.body) for request in requests]
    got = exchange(simulated, [encode(request.body) for request in requests], 2)
    assert len(got) == len(expected)
    for request, mine, its in zip(requests, got, expected):
        assert same(request, mine, its), f"{request}: {mine.hex()} instead of {its.hex()}"


def test_register_write_is_done_once(board):
    at = csr.ADDR["PROG_BASE"]

    def write(sequence, value):
        return Request(sequence, Command.WRITE_CSR, 1, at, value.to_bytes(4, "little"))

    requests = [write(5, 1), write(5, 2), Request(6, Command.READ_CSR, 1, at), write(7, 3), Request(8, Command.READ_CSR, 1, at),
                write(8, 4), Request(9, Command.READ_CSR, 1, at)]
    got = exchange(board[1], [encode(request.body) for request in requests])
    assert [int.from_bytes(body[7:-1], "little") for body in got if len(body) > 8] == [1, 3, 3]


def errors(simulated: Board) -> int:
    answer, = exchange(simulated, [encode(Request(200, Command.READ_CSR, 1, ADDR["LINK_ERRORS"]).body)])
    return answer[7]


@pytest.mark.parametrize("kind", Noise.KINDS)
def test_broken_frames_are_dropped_and_counted_and_nothing_else(board, kind):
    _, simulated = board
    rng, before = random.Random(kind), errors(simulated)
    wire, right = [], []
    for i in range(100):
        request = Request(i + 1, Command.WRITE, 3, 4 * i, rng.randbytes(12))
        frame = encode(request.body)
        if i % 2:
            at = rng.randrange(1, len(frame) - 1)
            frame = frame[:at] + Noise(i, 1, (kind,))(frame[at:at + 1], True) + frame[at + 1:]
        else:
            right.append(request)
        wire.append(frame)
    got = exchange(simulated, [b"".join(wire)])
    assert [body[0] for body in got] == [request.sequence for request in right]
    assert 50 <= (errors(simulated) - before) % 256 <= 100, "a fault that makes a flag breaks its frame in two"


def test_frames_that_find_no_room_are_dropped_whole(board):
    """A body longer than the buffer, and one of another length than its header says."""
    _, simulated = board
    before = errors(simulated)
    long = encode(Request(1, Command.WRITE, 40, 0, bytes(160)).body)
    lying = encode(Request(2, Command.WRITE, 2, 0, bytes(12)).body)
    ping = encode(Request(3, Command.PING, 0, 77).body)
    assert exchange(simulated, [long + lying + ping]) == [bytes([3, 0, 0, 77, 0, 0, 0, 0])]
    assert (errors(simulated) - before) % 256 == 2
