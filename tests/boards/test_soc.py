"""The whole board in Verilator behind a pseudo-terminal, and the real driver: layers, faults of the line, boards that hang."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from board_layers import BOARD, layer, run
from shell_model import Noise

from seriatim import cli, isa
from seriatim.boards.link import Link
from seriatim.boards.protocol import Command, Request, encode
from seriatim.boards.sdram import Sdram
from seriatim.boards.sdram_model import Rule
from seriatim.boards.serialport import SerialPort
from seriatim.boards.session import BoardSession
from seriatim.boards.soc import BAUD, Plugged
from seriatim.csr import CYCLE_COUNTERS, Cause, Counter
from seriatim.errors import ArtefactError, LinkError, MachineError
from seriatim.isa import Sem
from seriatim.sim import random_layers as layers
from seriatim.sim.executor import program_of
from seriatim.sim.session import IsaSession, Program

pytestmark = pytest.mark.rtl

MEMORY_BYTES = 1 << 16
"""What the programs here take at most."""
COUNTED = (Counter.WRITE_BEATS, Counter.ARRAY_STEPS, Counter.POOL_STEPS, Counter.REQUANTS)
"""What the board counts as the ISA simulator does."""


class Wire:
    """A line whose fault (if any) a test puts in place."""

    def __init__(self):
        self.fault = None

    def __call__(self, data, to_board):
        return self.fault(data, to_board) if self.fault else data


@pytest.fixture(scope="module")
def plugged():
    wire = Wire()
    with Plugged(BOARD, wire) as board:
        board.wire = wire
        yield board


@pytest.fixture(autouse=True)
def good_line(plugged):
    yield
    plugged.wire.fault = None


def session(plugged, config=BOARD.config, timeout_s=0.5, attempts=100, **options) -> BoardSession:
    link = Link(SerialPort(plugged.port, BAUD), timeout_s=timeout_s, attempts=attempts)
    return BoardSession(config, MEMORY_BYTES, link, **options)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", layers.MAKERS)
def test_layer(plugged, kind, seed):
    compiled, inputs, expected = layer(seed, kind)
    with session(plugged) as board:
        got, counts = run(board, compiled, inputs)
        again = board.run(program_of(compiled))
    np.testing.assert_array_equal(got, expected)
    assert counts.total == again.total, "what the host does takes no cycle of the machine's"
    _, isa_counts = run(IsaSession(BOARD.config, BOARD.memory.size), compiled, inputs)
    assert [counts.total[c] for c in COUNTED] == [isa_counts.total[c] for c in COUNTED]
    assert counts.cycles == sum(sum(row[c] for c in CYCLE_COUNTERS) for row in counts.layers) > 0


def test_layers_on_an_sdram():
    """A quarter of a MiB of an ULX3S's chip, which looks that its data sheet's rules are kept."""
    with Plugged(dataclasses.replace(BOARD, memory=Sdram(row_bits=6))) as plugged, session(plugged) as board:
        for kind in layers.MAKERS:
            compiled, inputs, expected = layer(20, kind)
            np.testing.assert_array_equal(run(board, compiled, inputs)[0], expected)


def test_a_chip_whose_rules_are_broken_ends_the_simulation(monkeypatch):
    with pytest.raises(MachineError, match="rule TRFC is broken"), Plugged(BOARD) as plugged:
        monkeypatch.setattr(plugged._board, "_broken", lambda handle: Rule.TRFC)
        with pytest.raises(LinkError, match="gone"):
            session(plugged)


@pytest.mark.parametrize("what", Noise.KINDS)
def test_noise_costs_time_alone(plugged, what):
    compiled, inputs, expected = layer(7, "conv")
    plugged.wire.fault = noise = Noise(7, 1 / 400, (what,))
    with session(plugged, timeout_s=0.2) as board:
        got, _ = run(board, compiled, inputs)
        traffic = board.link.traffic
    np.testing.assert_array_equal(got, expected)
    assert noise.hits > 10 and traffic.resent > 5


def test_program_is_started_once_however_often_it_is_asked_for(plugged):
    compiled, inputs, expected = layer(8, "conv")
    starts, lost = [], []

    def lose(data, to_board):
        """The answers to register writes, each four times."""
        if to_board:
            starts.extend(data.split(b"\x7e")[1:2])
        elif len(data) > 3 and data[2] == Command.WRITE_CSR and lost.count(data) < 4:
            lost.append(data)
            return b""
        return data

    plugged.wire.fault = lose
    with session(plugged, timeout_s=0.1) as board:
        got, counts = run(board, compiled, inputs)
        assert board.link.traffic.resent >= 4 * 11
    plugged.wire.fault = None
    with session(plugged) as board:
        np.testing.assert_array_equal(got, expected)
        assert run(board, compiled, inputs)[1].total == counts.total


def test_host_that_died_leaves_nothing_behind(plugged):
    compiled, inputs, expected = layer(9, "conv")
    port = SerialPort(plugged.port, BAUD)
    for sequence in range(8):
        port.write(encode(Request(sequence, Command.READ, 8, 0).body))
    port.write(encode(Request(9, Command.WRITE, 60, 0, bytes(240)).body)[:100])
    port.close()
    with session(plugged) as board:
        np.testing.assert_array_equal(run(board, compiled, inputs)[0], expected)


def test_wrong_bitstream(plugged):
    other = dataclasses.replace(BOARD.config, act_words=BOARD.config.act_words * 2)
    with pytest.raises(ArtefactError, match=f"built from config {BOARD.config.hash:#010x}, the program for {other.hash:#010x}"):
        session(plugged, other)


def test_machine_that_waits_for_nothing(plugged):
    """A program that waits for a token which nobody gives: by the watchdog, without it, and the board works afterwards."""
    code = b"".join(isa.encode(name, **fields) for name, fields in (("POOL", dict(wait=Sem.ACT_READY, nx=1, ng=1)), ("END", {})))
    program = Program(code, 0x1000, (0, 0x1000), (0x1000, 0x2000))
    compiled, inputs, expected = layer(10, "max")
    with session(plugged, patience_s=1.0) as board:
        with pytest.raises(MachineError, match="WATCHDOG") as caught:
            board.run(program, watchdog=5000)
        assert (caught.value.cause, caught.value.pc) == (Cause.WATCHDOG, 0)
        np.testing.assert_array_equal(run(board, compiled, inputs)[0], expected)
        with pytest.raises(MachineError, match="busy for 1 s: it hangs"):
            board.run(program, watchdog=0)
        board.link.csr_write("RESET", 1)
        assert board.csr_read("ID") == 0, "a machine in reset says nothing, and the link goes on"
    with session(plugged) as board:
        np.testing.assert_array_equal(run(board, compiled, inputs)[0], expected)


def test_unplugged():
    with Plugged(BOARD) as board:
        open_session = session(board)
        threading.Timer(0.5, board.close).start()
        with pytest.raises(LinkError, match="has gone .*: was the board unplugged"):
            while True:
                open_session.write(0, bytes(4000))
        open_session.close()


def test_simulated_board_for_another_process(plugged):
    """`plugged` has had the simulator built. Ctrl-C pulls the plug."""
    command = [sys.executable, "-m", "seriatim.cli", "board", "simulate", "--board", BOARD.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port = re.match(r"icebreaker: (\S+) ", process.stdout.readline())[1]
        link = Link(SerialPort(port, BAUD), timeout_s=5)
        assert link.shell["MEMORY_BYTES"] == BOARD.memory.size
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and "Traceback" not in process.stderr.read()
        with pytest.raises(LinkError, match="gone"):
            link.read(0, 4)
        link.close()


@pytest.mark.slow
def test_digits_whole(tmp_path, capsys):
    assert cli.main(["sim", "--board", "icebreaker", "--net", "digits", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bit_exact"] and report["level"] == "board" and report["cpu_fallback"] == []
    assert [row["name"] for row in report["layers"]] == ["conv1", "conv2", "conv3", "maxpool", "fc"]
    for row in report["layers"]:
        assert abs(row["cycles"] / row["predicted_cycles"] - 1) < 0.15, row["name"]
    assert "bit-exact: every element of every layer equals PyTorch" in capsys.readouterr().out


@pytest.mark.slow
def test_artefact_at_a_port(tmp_path, capsys, plugged):
    """`seriatim run` at a port, recorded; the recording in its place; a recording of other inputs."""
    folder, recording = str(tmp_path), str(tmp_path / "recording.txt")
    assert cli.main(["compile", "--net", "digits", "--board", "icebreaker", "--out", folder]) == 0
    capsys.readouterr()
    assert cli.main(["run", folder, "--device", plugged.port, "--baud", str(BAUD), "--record", recording]) == 0
    shown = capsys.readouterr().out
    assert "bit-exact: every tensor of 1 program(s) on the 1x1x32 machine" in shown and "conv3" in shown
    assert cli.main(["run", folder, "--device", f"replay:{recording}"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["run", folder, "--device", f"replay:{recording}", "--seed", "1"]) == 1
    assert "not those that were recorded" in capsys.readouterr().err
    assert cli.main(["run", folder, "--device", plugged.port]) == 1
    assert "without --board or --baud" in capsys.readouterr().err
