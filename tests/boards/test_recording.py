"""Recordings: what is played back is what was recorded, and nothing else can be asked of it."""

import random
from pathlib import Path

import numpy as np
import pytest
from board_layers import BOARD, layer, run
from shell_model import ModelPort, Noise, ShellModel

from seriatim.boards import session
from seriatim.boards.link import Link
from seriatim.boards.recording import FORMAT, Player, Recorder, Tape
from seriatim.csr import CYCLE_COUNTERS
from seriatim.errors import ArtefactError, LinkError

RECORDING = Path(__file__).parent / "recordings" / "icebreaker-layer.txt"
SEED, KIND = 7, "conv"
AGAIN = ("the machine, the instruction set or the driver has changed; to record it again: "
         "PYTHONPATH=tests:tests/boards python tests/boards/test_recording.py")


def work(link: Link, rng: random.Random) -> list:
    """Everything that a link does, and what came of it."""
    found = [link.csr_read("SHELL_ID", 7)]
    for _ in range(20):
        data = rng.randbytes(4 * rng.randrange(1, 200))
        link.write(0, data)
        link.csr_write("CTRL", len(data))
        found.append(link.read(4, len(data)))
    return found


@pytest.mark.unit
@pytest.mark.parametrize("line", [lambda data, to_board: data, Noise(1, 0.002)], ids=["good", "noisy"])
def test_what_was_recorded_is_played(tmp_path, line):
    path = tmp_path / "recording.txt"
    link = Link(Recorder(ModelPort(ShellModel(), line), Tape("model"), path), timeout_s=0.001, attempts=200)
    expected = work(link, random.Random(5))
    link.close()
    tape = Tape.load(path)
    assert work(Link(Player(tape)), random.Random(5)) == expected and tape.played == len(tape.exchanges)


@pytest.mark.unit
def test_what_was_not_recorded_is_refused(tmp_path):
    path = tmp_path / "recording.txt"
    link = Link(Recorder(ModelPort(ShellModel()), Tape("model"), path))
    link.write(0, b"data")
    link.close()
    player = Link(Player(Tape.load(path)))
    with pytest.raises(LinkError, match=r"exchange 2 is WRITE of 1 words at 0x0 \(64617461...\), and WRITE .*\(64617462"):
        player.write(0, b"datb")
    player.write(0, b"data")
    with pytest.raises(LinkError, match="all 3 exchanges are played, and READ of 1 words at 0x0 comes"):
        player.read(0, 4)


@pytest.mark.unit
@pytest.mark.parametrize("text", ["", "something else\n", f"{FORMAT}\n00\n", f"{FORMAT}\nxy zz\n"])
def test_file_that_is_no_recording(tmp_path, text):
    path = tmp_path / "recording.txt"
    path.write_text(text)
    with pytest.raises(LinkError, match="recording"):
        session.opener(f"replay:{path}", 0)
    with pytest.raises(LinkError, match="no recording can be read"):
        Tape.load(tmp_path / "none")


@pytest.mark.board
def test_recorded_layer():
    """A layer on the board, from its recording: the driver still writes what it wrote, and reads the right answer."""
    compiled, inputs, expected = layer(SEED, KIND)
    try:
        with session.opener(f"replay:{RECORDING}", 0)(BOARD.config, BOARD.memory.size) as board:
            got, counts = run(board, compiled, inputs)
    except (ArtefactError, LinkError) as e:
        raise AssertionError(f"{e}\n{AGAIN}") from e
    np.testing.assert_array_equal(got, expected)
    assert counts.cycles == sum(sum(row[c] for c in CYCLE_COUNTERS) for row in counts.layers) > 0


def record() -> None:
    """Makes the recording anew, from the simulated board."""
    from seriatim.boards.soc import BAUD, Plugged

    compiled, inputs, _ = layer(SEED, KIND)
    with Plugged(BOARD) as plugged:
        with session.opener(plugged.port, BAUD, str(RECORDING))(BOARD.config, BOARD.memory.size) as board:
            run(board, compiled, inputs)


if __name__ == "__main__":
    record()
