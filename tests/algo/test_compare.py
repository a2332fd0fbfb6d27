import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from seriatim.algo import compare
from seriatim.algo.compare import Budget, Cell, Row
from seriatim.errors import ConfigError, ToolError

TEXT = """
title = "tiny"
net = "digits"
dataset = "digits-599"
float = "digits-599-float"
recipe = "digits-599-slb"
seeds = [1, 2]
[[rows]]
quant = "float"
[[rows]]
quant = "slb"
w = 2
a = 2
[rows.published]
"someone" = 99.0
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT)
    return compare.load(path)


class Trainings:
    """In place of processes that train: notes the commands, and writes what a training would, or fails."""

    def __init__(self, monkeypatch, fails=()):
        self.commands, self.fails, self.running, self.most = [], fails, 0, 0
        monkeypatch.setattr(compare, "_begin", self.begin)

    def begin(self, cell, table, budget):
        words = cell.command(table, budget)
        self.commands.append(words)
        code = 0
        if any(name in str(cell.out) for name in self.fails):
            code = 1
        else:
            accuracy = 0.9 + 0.01 * cell.seed - (0.02 if cell.row.quant == "slb" else 0)
            cell.folder.mkdir(parents=True, exist_ok=True)
            last = {"gap": 0.001 * cell.seed} if cell.row.quant == "slb" else {}
            cell.result.write_text(json.dumps({"accuracy": accuracy, "test_images": 599, "last": last}))
        self.running += 1
        self.most = max(self.most, self.running)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])


def test_a_table_is_trained_once_and_written(table, tmp_path, monkeypatch):
    trainings = Trainings(monkeypatch)
    out = tmp_path / "out"
    content = compare.run(table, out, Budget(epochs=3, jobs=2), log=print)
    assert [words[words.index("--out") + 1] for words in trainings.commands][:2] == [
        str(out / f"seed{seed}/float.pt") for seed in (1, 2)]
    last = trainings.commands[-1]
    assert last[last.index("--start") + 1] == str(out / "seed2/float.pt") and last[last.index("--epochs") + 1] == "3"
    floats, slb = content["rows"]
    assert floats["n"] == 2 and floats["mean"] == pytest.approx(0.915) and floats["deviation"] == pytest.approx(0.01 / 2**0.5)
    assert slb["to_float"] == pytest.approx(-0.02) and slb["gap"] == pytest.approx(0.0015) and "gap" not in floats
    text = (out / "table.md").read_text()
    measured, published = text.split("Published by others")
    assert "| slb | 2/2 | 89.50 | 0.71 | 2 | -2.00 | +0.15 |" in measured and "someone" not in measured
    assert "| slb | 2/2 | someone | 99.0 |" in published
    assert json.loads((out / "table.json").read_text()) == content and (out / "table.svg").exists()
    assert compare.run(table, out, Budget(epochs=3), log=print) == content and len(trainings.commands) == 4
    more = replace(table, seeds=(1, 2, 3))
    assert compare.run(more, out, Budget(epochs=3), log=print)["rows"][0]["n"] == 3 and len(trainings.commands) == 6


def test_a_table_in_decibels(tmp_path, monkeypatch):
    (tmp_path / "sr.toml").write_text(TEXT.replace('"digits"', '"vdsr"').replace("digits-599-", "pictures-vdsr-"))
    Trainings(monkeypatch)
    said = []
    compare.run(compare.load(tmp_path / "sr.toml"), tmp_path / "out", Budget(), log=said.append)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| quantiser | W/A | PSNR dB |" in text and "| slb | 2/2 | 0.90 | 0.01 | 2 | -0.02 | +0.00 |" in text
    assert any("PSNR 0.91 dB on 599" in line for line in said)
    assert "held-out PSNR, dB" in (tmp_path / "out" / "table.svg").read_text()


def test_all_rows_start_at_nets_that_are_no_row(table, tmp_path, monkeypatch):
    """Then the float row goes on from there as the low-bit ones do."""
    trainings = Trainings(monkeypatch)
    shared = replace(table, start="digits-599-float")
    content = compare.run(shared, tmp_path, Budget(jobs=4), log=print)
    outs = [words[words.index("--out") + 1] for words in trainings.commands]
    assert sorted(outs[:2]) == [str(tmp_path / f"seed{seed}/start.pt") for seed in (1, 2)] and len(outs) == 6
    for words in trainings.commands:
        folder, begins = Path(words[words.index("--out") + 1]).parent, "start.pt" in words[words.index("--out") + 1]
        assert ("--start" in words) is not begins
        assert begins or words[words.index("--start") + 1] == str(folder / "start.pt")
    assert [row["name"] for row in content["rows"]] == ["float", "slb-w2a2"] and content["rows"][0]["n"] == 2
    assert compare.run(shared, tmp_path, Budget(), log=print) == content and len(trainings.commands) == 6


def test_another_table_does_not_go_into_the_same_folder(table, tmp_path, monkeypatch):
    Trainings(monkeypatch)
    compare.run(table, tmp_path, Budget(epochs=3), log=print)
    with pytest.raises(ConfigError, match="another epochs: name another folder"):
        compare.run(table, tmp_path, Budget(epochs=4), log=print)
    with pytest.raises(ConfigError, match="another dataset"):
        compare.run(table, tmp_path, Budget(epochs=3, dataset="digits"), log=print)


def test_a_failure_ends_neither_the_others_nor_goes_unsaid(table, tmp_path, monkeypatch):
    Trainings(monkeypatch, fails=("seed1/slb",))
    with pytest.raises(ToolError, match="seed1/slb-w2a2.ckpt: failed.*Repeat"):
        compare.run(table, tmp_path / "a", Budget(), log=print)
    assert json.loads((tmp_path / "a/table.json").read_text())["rows"][1]["n"] == 1
    Trainings(monkeypatch, fails=("seed1/float",))
    with pytest.raises(ToolError, match="seed1/float.pt, .*seed1/slb-w2a2.ckpt: failed"):
        compare.run(table, tmp_path / "b", Budget(), log=print)


def test_cells_are_commands_that_exist(table):
    from seriatim import cli

    for each in (table, *compare.packaged()):
        for row in (row for row in each.rows if row.quant in ("float", *cli.QUANTS)):
            words = Cell(row, 1, compare.FOLDER).command(each, Budget(2, "folder", compare.FOLDER, compile=True))
            assert cli.parser().parse_args(words).quant == row.quant


@pytest.mark.parametrize("old, new, words", [
    ('quant = "float"', 'quant = "slb"\nw = 1\na = 1', "one float row"),
    ("w = 2", "w = 9", "W=9"),
    ("w = 2", "bits = 2", "unknown field bits in a row: there are a, published"),
    ('net = "digits"', 'net = "lenet"', "'lenet': choose"),
    ('net = "digits"', 'net = "resnet20"', "row float: recipe digits-599-float is for a float digits"),
    ('recipe = "digits-599-slb"', 'recipe = "digits-599-float"', "row slb-w2a2: recipe .* float digits"),
    ('recipe = "digits-599-slb"', 'recipe = "none"', "'none'.*--list-recipes"),
    ("seeds = [1, 2]", "seeds = [1, 1]", "none twice"),
    ("seeds = [1, 2]", "seed = 1", "unknown field seed in a table"),
    ('title = "tiny"', "title = tiny", "tiny.toml.*a table is a TOML file"),
])  # fmt: skip
def test_faults_of_a_table_are_named(tmp_path, old, new, words):
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        compare.load(path)


def test_unknown_tables_say_what_there_is():
    with pytest.raises(ConfigError, match="'imagenet'.*cifar10-resnet20, digits-5-seeds"):
        compare.load("imagenet")


def test_published_figures_are_the_papers():
    rows = {row.name: row for row in compare.load("cifar10-resnet20").rows}
    assert rows["slb-w1a8"] == Row("slb", 1, 8, None, {"SLB, the paper": 90.5, "SLB, the authors' rerun": 90.6})
    assert rows["slb-w1a1"].published["SLB, the paper"] == 85.5 and not rows["lsq-w4a4"].published
