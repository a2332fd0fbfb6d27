"""The examples run as their docstrings say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_one_layer():
    run = subprocess.run([sys.executable, EXAMPLES / "one_layer.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "isa: output (1, 32, 20, 20), equal to PyTorch: True, on the CPU: nothing\n"


def test_own_net(tmp_path, capsys):
    """With an epoch of each training, on the ISA simulator."""
    spec = importlib.util.spec_from_file_location("own_net", EXAMPLES / "own_net.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main("isa", tmp_path, (1, 1)) == 0
    assert "7 integer layers; the least share" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["net"] == "digitnet" and (report["w"], report["a"]) == (1, 4) and report["bit_exact"]
    assert [layer["name"] for layer in report["layers"]] == ["stem.0", "block.conv1", "block.conv2", "pool", "widen.0", "head.0",
                                                             "head.3"]
    assert not report["cpu_fallback"] and report["totals"]["speedup_vs_w8a8"] is None
