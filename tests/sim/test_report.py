"""The report: latency, energy and the comparison with W8A8, from real runs of the digits network."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from seriatim import cli
from seriatim.config import Config, Memory
from seriatim.sim import baseline, driver
from seriatim.sim import report as reports

IMAGES = 3
DEFAULT = Memory()


def sim(folder: Path, *options: str) -> dict:
    """The report of a run, also printed by `seriatim report`."""
    assert cli.main(["sim", "--net", "digits", "--images", str(IMAGES), "--out", str(folder), *options]) == 0
    assert cli.main(["report", str(folder)]) == 0
    return reports.load(folder)


@pytest.fixture
def loads(monkeypatch):
    """(w, a) of every network that is loaded in order to be run."""
    seen, load = [], driver.Job.load

    def record(cls, args):
        job = load(args)
        seen.append((args.w, args.a))
        return job

    monkeypatch.setattr(driver.Job, "load", classmethod(record))
    return seen


@pytest.mark.rtl
def test_w8a8_is_run_once_and_then_known(tmp_path, monkeypatch, loads):
    monkeypatch.setattr(baseline, "CACHE", str(tmp_path / "w8a8"))
    first, again = sim(tmp_path / "1"), sim(tmp_path / "2", "--clock-mhz", "250")
    assert loads == [(1, 8), (8, 8), (1, 8)]
    total, speedup = first["totals"], first["totals"]["speedup_vs_w8a8"]
    assert again["totals"]["speedup_vs_w8a8"] == speedup and again["totals"]["cycles"] == total["cycles"]

    own = sim(tmp_path / "3", "--w", "8", "--a", "8")["totals"]
    assert loads[3:] == [(8, 8)], "W8A8 itself needs no second run"
    assert speedup["twin_cycles"] == own["cycles"] and speedup["twin_energy_uj"] == own["energy_uj"]["total"]
    assert (own["speedup_vs_w8a8"]["cycles"], own["speedup_vs_w8a8"]["energy"]) == (1, 1)
    assert speedup["cycles"] == pytest.approx(own["cycles"] / total["cycles"], abs=1e-3) and speedup["cycles"] > 2
    assert speedup["energy"] == pytest.approx(own["energy_uj"]["total"] / total["energy_uj"]["total"], abs=1e-3)

    assert total["latency_ms"] == pytest.approx(total["cycles"] / 100e3, abs=1e-3) and total["clock_mhz"] == 100
    assert total["images_per_second"] == pytest.approx(IMAGES * 1e3 / total["latency_ms"], rel=1e-3)
    assert again["totals"]["latency_ms"] == pytest.approx(total["latency_ms"] / 2.5, abs=1e-3)
    assert total["predicted_cycles"] == pytest.approx(total["cycles"], rel=0.3)
    assert all(layer["predicted_cycles"] > 0 for layer in first["layers"])
    for event, row in total["energy_uj"]["events"].items():
        assert sum(layer["energy_uj"][event] for layer in first["layers"]) == pytest.approx(row["uj"], abs=1e-4), event
    for event in ("array_ones", "array_flips", "act_write", "out_write", "requant", "dram"):
        assert total["energy_uj"]["events"][event]["uj"] > 0


@pytest.mark.rtl
def test_log_codes_are_compared_with_both_twins(tmp_path, monkeypatch, loads, capsys):
    monkeypatch.setattr(baseline, "CACHE", str(tmp_path / "twins"))
    total = sim(tmp_path / "1", "--quant", "logquant", "--w", "4", "--a", "4")["totals"]
    assert loads == [(4, 4), (8, 8), (4, 4)]
    for name, twin in (("speedup_vs_w8a8", "W8A8"), ("speedup_vs_bit_serial", "W4A4")):
        found = total[name]
        assert found["twin"] == twin and found["cycles"] == pytest.approx(found["twin_cycles"] / total["cycles"], abs=1e-3)
    assert total["speedup_vs_w8a8"]["twin_cycles"] > 2 * total["speedup_vs_bit_serial"]["twin_cycles"]
    energy = total["energy_uj"]["events"]
    assert energy["shift_add"]["uj"] > 0 and energy["array_steps"]["uj"] == 0
    out = capsys.readouterr().out
    assert out.count("bit-serial, on this machine") == 2 * 2 and "5.9x the LUTs and 2.1x the gates" in out


@pytest.mark.unit
def test_without_cycles_there_is_no_speedup(tmp_path, loads, capsys):
    total = sim(tmp_path, "--session", "isa")["totals"]
    assert loads == [(1, 8)] and total["speedup_vs_w8a8"] is None and total["images_per_second"] is None
    assert total["energy_uj"]["events"]["array_ones"]["uj"] > 0, "the ISA simulator counts events, if not cycles"
    out = capsys.readouterr().out
    assert "0.45x" in out and "loses at 8" in out and "power of an FPGA: not estimated" in out
    assert "at W8A8" not in out


@pytest.mark.unit
def test_everything_that_matters_is_in_the_key(tmp_path):
    checkpoint = tmp_path / "net.ckpt"
    checkpoint.write_bytes(b"weights")
    base = dict(net="digits", quant="slb", w=8, a=8, first_last=None, image=None, images=10, session="rtl", samples=None)
    config = Config()

    def key(config=config, memory=DEFAULT, **other) -> str:
        return baseline._key(argparse.Namespace(**base | other), config, memory, checkpoint)

    keys = {key(), key(dataclasses.replace(config, wgt_words=1200)), key(memory=Memory(latency=99)),
            key(memory=Memory(outstanding=4))}
    for other in (dict(net="resnet20"), dict(w=4), dict(a=4), dict(image=16), dict(images=11), dict(samples=checkpoint)):
        keys.add(key(**other))
    assert key() in keys and len(keys) == 10
    checkpoint.write_bytes(b"weighty")
    assert key() not in keys
