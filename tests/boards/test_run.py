"""What the command line says of boards that does not go together, and inputs of `seriatim run`. Runs are in test_soc.py."""

import numpy as np
import pytest

from seriatim import cli
from seriatim.boards.run import inputs_of
from seriatim.errors import DataError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("argv", "message"), [
    (["sim", "--board", "icebreaker", "--m", "4"], "a board has its own machine; leave them out"),
    (["sim", "--board", "nosuchboard"], "board 'nosuchboard': there are arty-a7-100, ecpix5-85, icebreaker"),
    (["sim", "--device", "/dev/ttyUSB1"], "--device /dev/ttyUSB1 without --board"),
    (["sim", "--board", "icebreaker", "--trace"], "--trace on the board level: it has no trace ports"),
    (["sim", "--board", "pynq-z2", "--net", "digits"], "board pynq-z2: its memory and host are not on the FPGA"),
    (["board", "simulate", "--board", "pynq-z2"], "board pynq-z2: its memory and host are not on the FPGA"),
    (["run", "nosuchfile", "--board", "icebreaker"], "nosuchfile: No such file"),
])
def test_what_does_not_go_together(argv, message, capsys):
    assert cli.main(argv) == 1
    assert message in capsys.readouterr().err


def test_inputs(tmp_path):
    specs = [{"name": "x", "shape": [1, 2, 3, 4], "format": "uint4"}]
    random, again, other = (inputs_of(specs, seed, None)[0] for seed in (0, 0, 1))
    assert random.shape == (1, 2, 3, 4) and random.min() >= 0 and random.max() <= 15
    assert np.array_equal(random, again) and not np.array_equal(random, other)
    np.savez(tmp_path / "x.npz", x=random)
    assert np.array_equal(inputs_of(specs, 0, str(tmp_path / "x.npz"))[0], random)
    with pytest.raises(DataError, match="an .npz with arrays x of codes"):
        inputs_of(specs, 0, str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match="input x goes to a layer on the CPU.*give --samples"):
        inputs_of([{"name": "x", "shape": [1]}], 0, None)
