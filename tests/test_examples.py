"""The examples run as their docstrings say."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_one_layer():
    run = subprocess.run([sys.executable, EXAMPLES / "one_layer.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "isa: output (1, 32, 20, 20), equal to PyTorch: True, on the CPU: nothing\n"
