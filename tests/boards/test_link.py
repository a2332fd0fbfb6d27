"""The driver against a shell in Python: windows, repeats, faults of the line, boards that are not ours."""

import random
import socket
import threading

import pytest
from shell_model import ModelPort, Noise, ShellModel, csr_values

from seriatim.boards.link import Link
from seriatim.boards.protocol import ADDR, Command, Decoder, Request, encode
from seriatim.boards.serialport import SerialPort
from seriatim.boards.session import BoardSession
from seriatim.config import Config
from seriatim.csr import ADDR as CSR_ADDR
from seriatim.csr import ID_VALUE
from seriatim.errors import ArtefactError, LinkError, MachineError
from seriatim.isa import VERSION

pytestmark = pytest.mark.unit
CONFIG = Config()


def machine(config: Config = CONFIG, **values) -> ShellModel:
    shell = ShellModel(1 << 16)
    shell.registers |= csr_values(ID=ID_VALUE, ISA_VERSION=VERSION, CONFIG_HASH=config.hash, **values)
    return shell


def link(shell: ShellModel, line=None, **options) -> Link:
    return Link(ModelPort(shell, *([line] if line else [])), **{"timeout_s": 0.001, "attempts": 200} | options)


@pytest.mark.parametrize("buffer_bytes", (64, 512, 4096))
def test_memory_of_any_size_and_buffer(buffer_bytes):
    rng = random.Random(buffer_bytes)
    shell = ShellModel(1 << 14, buffer_bytes)
    board = link(shell, timeout_s=5)
    for _ in range(30):
        words = rng.randrange(1, 900)
        at, data = 4 * rng.randrange((1 << 12) - words), rng.randbytes(4 * words)
        board.write(at, data)
        assert shell.memory[at:at + len(data)] == data and board.read(at, len(data)) == data
    assert board.traffic.resent == 0


def test_unanswered_requests_fit_the_buffer():
    """The shell never has to drop a request of ours for want of room."""
    shell = ShellModel(1 << 14, 512)
    held, most, decoder = [], [], Decoder()

    class Slow(ModelPort):
        def write(self, data):
            held.extend(len(body) + 4 for body in decoder.feed(data))
            most.append(sum(held))
            super().write(data)

        def read(self):
            answer = super().read()
            if answer:
                held.pop(0)
            return answer

    board = Link(Slow(shell))
    most.clear()
    board.write(0, bytes(1 << 14))
    board.read(0, 1 << 14)
    assert 400 < max(most) < 512


@pytest.mark.parametrize("what", [*((kind,) for kind in Noise.KINDS), Noise.KINDS])
@pytest.mark.parametrize("seed", range(5))
def test_no_fault_gives_wrong_data(what, seed):
    rng, noise = random.Random(seed), Noise(seed, 0.003, what)
    shell = machine()
    board = link(shell, noise)
    expected = bytearray(1 << 14)
    for _ in range(40):
        words = rng.randrange(1, 300)
        at, data = 4 * rng.randrange((1 << 12) - words), rng.randbytes(4 * words)
        board.write(at, data)
        expected[at:at + len(data)] = data
        at = 4 * rng.randrange(1 << 11)
        assert board.read(at, 2048) == expected[at:at + 2048]
        board.csr_write("CTRL", at)
        assert board.csr_read("CONFIG_HASH") == [CONFIG.hash]
    assert shell.memory[:1 << 14] == expected and noise.hits > 20 and board.traffic.resent > 10
    assert len(shell.written) == 40, "each register write is done once"


def test_lost_answer_to_a_register_write_does_not_write_again():
    shell, lost = machine(), []

    def line(data, to_board):
        if not to_board and data[2] == Command.WRITE_CSR and len(lost) < 5:
            lost.append(data)
            return b""
        return data

    board = link(shell, line)
    board.csr_write("CTRL", 1)
    board.csr_write("CTRL", 1)
    assert len(lost) == 5 and shell.written == [(CSR_ADDR["CTRL"], 1)] * 2


def test_answers_of_an_earlier_process_are_not_taken_for_ours():
    shell = machine()
    port = ModelPort(shell)
    for sequence in range(256):  # whatever number ours begins with
        port.write(encode(Request(sequence, Command.READ, 1, 0).body))
    shell.memory[:4] = b"mine"
    assert Link(port).read(0, 4) == b"mine"


def test_nobody_there():
    with pytest.raises(LinkError, match="no answer to PING after 3 attempts, and not a byte has come: is the board powered"):
        link(machine(), lambda data, to_board: b"", attempts=3)


def test_another_baud_rate():
    def garbage(data, to_board):
        return data if to_board else bytes((byte * 37 + 11) % 251 for byte in data) + b"\x7e"

    with pytest.raises(LinkError, match="with [0-9]+ broken frames: is the baud rate the board's"):
        link(machine(), garbage, attempts=3)


def test_board_that_falls_silent():
    shell, state = machine(), {"on": True}
    board = link(shell, lambda data, to_board: data if state["on"] else b"", attempts=4)
    board.read(0, 4)
    state["on"] = False
    with pytest.raises(LinkError, match="no answer to READ after 4 attempts; .*: the board was reset"):
        board.read(0, 4)


def test_another_shell():
    shell = machine()
    port = ModelPort(shell)
    shell.registers[ADDR["SHELL_ID"]] = 0x1234
    with pytest.raises(LinkError, match="SHELL_ID reads 0x00001234, not 0x4b4e4c53"):
        Link(port)
    assert port.closed
    with pytest.raises(LinkError, match="version 9 of the protocol, this driver 1"):
        link(ShellModel(PROTOCOL=9))


def test_address_beyond_the_memory():
    board = link(ShellModel(4096))
    with pytest.raises(LinkError, match="bytes 0xffc..0x1004: the board's memory ends at 0x1000"):
        board.read(4092, 8)


def test_no_such_port():
    with pytest.raises(LinkError, match="/dev/nosuchport at 115200 baud cannot be opened.*plugged in"):
        SerialPort("/dev/nosuchport", 115_200)


def test_board_at_another_computer():
    shell, decoder = machine(), Decoder()
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(4096):
                    for body in decoder.feed(data):
                        connection.sendall(encode(shell.answer(body)))

        threading.Thread(target=serve, daemon=True).start()
        board = Link(SerialPort(f"socket://127.0.0.1:{server.getsockname()[1]}", 115_200))
        board.write(8, b"over TCP")
        assert board.read(8, 8) == b"over TCP"
        board.close()


def test_wrong_bitstream_is_refused_before_anything_is_written():
    other = Config(m=5)
    shell = machine(other)
    with pytest.raises(ArtefactError, match=f"config {other.hash:#010x}, the program for {CONFIG.hash:#010x}"):
        BoardSession(CONFIG, 4096, link(shell))
    assert shell.written == [(ADDR["RESET"], 1), (ADDR["RESET"], 0)] and not any(shell.memory)


def test_program_larger_than_the_memory():
    with pytest.raises(ArtefactError, match="take 65,540 bytes, the board's memory has 65,536: run fewer images"):
        BoardSession(CONFIG, 65_540, link(machine()))


def test_bytes_at_any_address():
    rng = random.Random(3)
    shell = machine()
    session = BoardSession(CONFIG, 1 << 16, link(shell))
    expected = bytearray(1 << 16)
    for _ in range(100):
        at, data = rng.randrange(1 << 12), rng.randbytes(rng.randrange(1, 40))
        session.write(at, data)
        expected[at:at + len(data)] = data
        assert shell.memory == expected and session.read(at, len(data)).tobytes() == data


def test_machine_that_is_busy_for_ever():
    shell = machine(STATUS=1)
    session = BoardSession(CONFIG, 4096, link(shell), patience_s=0.01)
    with pytest.raises(MachineError, match="busy for 0.01 s: it hangs.*it was reset"):
        session.wait()
    assert shell.written[2:] == [(ADDR["RESET"], 1), (ADDR["RESET"], 0)]
