"""What `seriatim bench` does with figures: history, record, comparison, tables. No times, no machine."""

import argparse
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from seriatim.csr import CYCLE_COUNTERS
from seriatim.errors import ConfigError, DataError
from seriatim.sim import bench, figures

WHERE = {"date": "2026-01-02T03:04:05Z", "commit": "0123456789ab", "cores": 2, "cpu": "a processor", "python": "3.11.7"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree's root with two stand-ins as measurements."""
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "BENCHES", {"fast": fast, "slow": slow})
    monkeypatch.setattr(figures, "origin", lambda: WHERE)
    return tmp_path


def fast():
    """Cycles."""
    return {"cycles": 900, "utilisation": 0.95}


def slow():
    """Seconds."""
    return {"s": 2.5}


def run(*names, record=False):
    bench.main(argparse.Namespace(names=list(names), out=None, record=record))


def history(tree) -> list[dict]:
    return [json.loads(line) for line in (tree / "build" / "bench-history.jsonl").read_text().splitlines()]


def test_each_run_is_added_to_the_history(tree):
    run()
    run("slow")
    first, second = history(tree)
    assert first["measured"] == {"fast": fast(), "slow": slow()} and not first["interrupted"]
    assert second["measured"] == {"slow": slow()} and second["commit"] == WHERE["commit"]


@pytest.mark.parametrize("error", (KeyboardInterrupt, ValueError))
def test_an_interrupted_run_keeps_what_it_has(tree, monkeypatch, error):
    def stopped():
        """Stops."""
        raise error

    run()
    monkeypatch.setitem(bench.BENCHES, "slow", stopped)
    with pytest.raises(error):
        run(record=True)
    kept = [(line["interrupted"], list(line["measured"])) for line in history(tree)]
    assert kept == [(False, ["fast", "slow"]), (True, ["fast"])]
    assert not (tree / "docs" / "bench.json").exists()
    with pytest.raises(error):
        run("slow")
    assert len(history(tree)) == 2, "nothing was measured"


def test_the_record_keeps_what_was_not_measured(tree, monkeypatch):
    run(record=True)
    monkeypatch.setattr(figures, "origin", lambda: WHERE | {"commit": "later"})
    monkeypatch.setitem(bench.BENCHES, "fast", lambda: {"cycles": 450})
    bench.BENCHES["fast"].__doc__ = "Cycles."
    run("fast", record=True)
    kept = figures.load(tree / "docs" / "bench.json")
    assert kept["fast"] == WHERE | {"commit": "later", "figures": {"cycles": 450}}
    assert kept["slow"] == WHERE | {"figures": slow()}
    assert [path.name for path in (tree / "docs").iterdir()] == ["bench.json"], "no temporary file is left"


def test_figures_beside_the_recorded_ones(tree, capsys):
    figures.record(tree / "docs" / "bench.json", {"fast": {"cycles": 1000, "utilisation": 0.95}}, WHERE)
    run()
    rows = {(row.measurement, row.figure): row for row in figures.compare(
        {"fast": fast(), "slow": slow()}, figures.load(tree / "docs" / "bench.json"))}
    assert rows["fast", "cycles"].change == pytest.approx(-0.1)
    assert rows["fast", "utilisation"].change == 0
    assert rows["slow", "s"].before is None and rows["slow", "s"].change is None
    out = capsys.readouterr().out
    assert "1,000" in out and "-10.0%" in out and "recorded 2026-01-02 at 0123456789ab on 2 cores of a processor" in out
    page = (tree / "build" / "bench.md").read_text().splitlines()
    assert "| fast | cycles | 900 | 1,000 | -10.0% |" in page
    assert "| fast | utilisation | 0.95 | 0.95 | = |" in page
    assert "| slow | s | 2.5 |  |  |" in page


def test_the_readmes_table():
    measured = {"utilisation": {}, "speed": {}}
    for name in bench.SHAPES:
        measured["utilisation"] |= {f"{name}: cycles": 1234, f"{name}: utilisation": 0.9876,
                                    f"{name}: layers equal to PyTorch": 23}
        measured["speed"] |= {f"{name}: cycles/s": 100, f"{name}: s": 12.34}
    lines = bench.readme(measured).splitlines()
    assert lines[2] == "| 224x224, one image | 1,234 | 98.8% | 12.3 s | every element of 23 layers equal |" and len(lines) == 5
    assert bench.readme({"speed": measured["speed"]}) == ""


@pytest.mark.parametrize("before, now, change", ((0, 0, "="), (0, 1, ""), (None, 1, ""), (4, 5, "+25.0%"), (0.5, 0.25, "-50.0%")))
def test_change(before, now, change):
    assert figures.percent(figures.Row("m", "f", now, before).change) == change


def test_the_table_has_no_row_twice():
    console = Console(width=100, record=True)
    figures.show(figures.compare({"fast": fast()}, {}), {}, console)
    assert console.export_text().count("fast") == 1


def test_wrong_use(tree):
    with pytest.raises(ConfigError, match="no measurement fats: there are fast, slow"):
        run("fats")
    (tree / "docs" / "bench.json").write_text("{")
    with pytest.raises(DataError, match="bench.json"):
        run()
    (tree / "docs" / "bench.json").unlink()
    (tree / "docs").rmdir()
    with pytest.raises(DataError, match="root of the source tree"):
        run(record=True)


def test_origin_says_which_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no repository
    where = figures.origin()
    assert where["commit"] == "unknown" and where["cores"] >= 1 and where["cpu"] and where["date"].endswith("Z")


def test_errors_of_the_model(capsys):
    def run(predicted, took):
        layers = [SimpleNamespace(name=f"layer{i}", cycles=n) for i, n in enumerate(predicted)]
        counts = [dict.fromkeys(CYCLE_COUNTERS, 0) | {CYCLE_COUNTERS[0]: n} for n in took]
        return SimpleNamespace(compiled=SimpleNamespace(layers=layers, cycles=sum(predicted)),
                               counts=SimpleNamespace(layers=counts, cycles=sum(took)))

    found = bench.errors([("good", run([100, 300], [100, 300])), ("bad", run([90, 310], [100, 300]))])
    assert found == {"runs": 2, "layers": 4, "largest error of a layer": pytest.approx(0.1),
                     "mean error of a layer": pytest.approx((0.1 + 10 / 300) / 4), "largest error of a total": 0}
    out = capsys.readouterr().out
    assert "bad: layer0 predicted 90, took 100" in out and "good" not in out


@pytest.mark.unit
def test_weq_is_never_above_the_optimum(monkeypatch):
    monkeypatch.setattr(bench, "WEQ_DRAWS", 2)
    found = bench.weq()
    assert len(found) == 2 * len(bench.LAWS) * len(bench.WEQ_BITS) and min(found.values()) >= 0
    assert found["Gaussian, 4 bits: missing at most"] < 1e-3 and max(found.values()) < 0.05
