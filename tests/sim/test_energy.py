"""Energy: the constants meet the figures they come from, memories are priced by their size, the table adds up."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.sim import energy

pytestmark = pytest.mark.unit
DOCS = Path(__file__).parents[2] / "docs" / "energy.md"
CONFIG = Config()


def counts(**given) -> dict:
    return dict.fromkeys(Counter, 0) | {Counter[name]: value for name, value in given.items()}


def uj(**given) -> float:
    return energy.table(CONFIG, counts(**given))["total"]


def array_pj(act_planes, steps=2000) -> float:
    """pJ of a binary multiply-accumulate of the default array on random words whose planes have these shares of ones, W1."""
    rng, c = np.random.default_rng(1), CONFIG
    ones = act_flips = wgt_flips = 0
    for share in act_planes:
        act = rng.random((steps, c.m, c.k)) < share
        wgt = rng.random((steps, c.n, c.k)) < 0.5
        ones += int(np.einsum("smk,snk->", act.astype(np.int64), wgt.astype(np.int64)))
        act_flips, wgt_flips = act_flips + int((act[1:] ^ act[:-1]).sum()), wgt_flips + int((wgt[1:] ^ wgt[:-1]).sum())
    steps *= len(act_planes)
    table = energy.table(c, counts(ARRAY_STEPS=steps, ARRAY_ONES=ones, ACT_FLIPS=act_flips, WGT_FLIPS=wgt_flips))
    return 1e6 * sum(row["uj"] for name, row in table["events"].items() if name.startswith("array_")) / (steps * c.peak)


def test_array_meets_the_measured_points():
    """Bits are drawn, not reckoned: 30 fJ with half-normal activations, and twice as much at 50 % ones as at 10 %."""
    values = np.abs(np.random.default_rng(0).normal(size=200_000))
    codes = np.minimum(np.rint(values / 3 * 255), 255).astype(int)
    assert array_pj([(codes >> bit & 1).mean() for bit in range(8)], steps=500) == pytest.approx(0.030, rel=0.01)
    assert array_pj([0.5]) / array_pj([0.1]) == pytest.approx(2.01, rel=0.01)
    assert min(dataclasses.astuple(energy.array_energy())) > 0
    assert array_pj([0.0]) < array_pj([0.1]) < array_pj([0.5]) < array_pj([0.9]), "more ones, more energy"


@pytest.mark.parametrize("write", [False, True])
def test_memories_are_interpolated_by_size(write):
    for kib, figures in energy.CACTI.items():
        assert energy.sram_pj(kib * 128, 64, write) == pytest.approx(figures[write]), f"{kib} KiB of 64-bit words is in the table"
    sizes = [energy.sram_pj(words, 64, write) for words in (16, 128, 200, 1024, 3000, 4096, 1 << 16, 1 << 19)]
    assert sizes == sorted(sizes) and min(sizes) > 0
    assert energy.sram_pj(512, 128, write) == pytest.approx(2 * energy.sram_pj(1024, 64, write)), "in proportion to the width"


def test_accesses_by_counter():
    """One array step reads M act banks and N wgt banks; a smaller machine's are cheaper."""
    event = {e.name: e for e in energy.events(CONFIG)}
    step = counts(ARRAY_STEPS=1)
    assert event["act_read"].count(step) == CONFIG.m and event["wgt_read"].count(step) == CONFIG.n
    assert event["prm_read"].count(counts(REQUANTS=3 * CONFIG.m)) == 3 * CONFIG.n
    assert event["out_read"].count(counts(WRITE_BEATS=5)) == 5 * CONFIG.m
    assert event["array_flips"].count(counts(ACT_FLIPS=2, WGT_FLIPS=3)) == 2 * CONFIG.n + 3 * CONFIG.m
    assert uj(READ_BEATS=1000, WRITE_BEATS=0) == pytest.approx(1000 * 64 * 8e-6)
    small = {e.name: e for e in energy.events(dataclasses.replace(CONFIG, act_words=256))}
    assert small["act_read"].pj < event["act_read"].pj / 3


def test_steps_of_the_shift_add_array():
    """They are priced as such, and read fewer words than the bit-serial array's."""
    config = dataclasses.replace(CONFIG, shift_lanes=4)
    event = {e.name: e for e in energy.events(config)}
    found = counts(ARRAY_STEPS=100, SHIFT_STEPS=64, SHIFT_ACT_READS=16, SHIFT_WGT_READS=12)
    assert event["shift_add"].count(found) == 64 * config.m * config.n * 4
    assert event["shift_add"].pj == pytest.approx(0.3), "a shift and an addition of 48 bits, 0.1 pJ each at 32"
    assert event["array_steps"].count(found) == 36 * config.peak
    assert event["act_read"].count(found) == 52 * config.m and event["wgt_read"].count(found) == 48 * config.n
    assert set(energy.simulation_only(config)) - set(energy.simulation_only(CONFIG)) == {
        "array_steps", "shift_add", "act_read", "wgt_read"}, "a synthesised machine counts the steps of both arrays as one"


SHIFT_COUNTERS = (Counter.SHIFT_STEPS, Counter.SHIFT_ACT_READS, Counter.SHIFT_WGT_READS)


@pytest.mark.parametrize("counter", [c for c in Counter if c > Counter.STALL_FETCH and c is not Counter.FETCH_BEATS
                                     and c not in SHIFT_COUNTERS])
def test_every_event_costs(counter):
    """FETCH_BEATS are READ_BEATS as well, and cycles alone cost nothing here."""
    assert uj(**{counter.name: 7000}) > 0
    assert uj(BUSY=10 ** 9, FETCH_BEATS=10 ** 9) == 0


def test_table_adds_up_and_names_its_sources():
    given = counts(ARRAY_STEPS=10_000, ARRAY_ONES=9_000_000, ACT_FLIPS=2_000_000, WGT_FLIPS=2_000_000, POOL_STEPS=500,
                   REQUANTS=700, READ_BEATS=9000, WRITE_BEATS=800, ACT_WRITES=4000, OUT_WRITES=300)
    table = energy.table(CONFIG, given)
    rows = table["events"]
    assert table["total"] == pytest.approx(sum(row["uj"] for row in rows.values()), abs=1e-5)
    low, high = table["error"]
    assert 0.5 * table["total"] < low < table["total"] < high < 3.1 * table["total"]
    for name, row in rows.items():
        assert row["uj"] == pytest.approx(row["count"] * row["pj_each"] / 1e6, rel=1e-3, abs=1e-6), name
        assert row["error"][0] <= row["uj"] <= row["error"][1]
        assert row["source"].startswith(("measured", "two 32-bit", "an eighth", "CACTI 7", "LPDDR4")) and row["unit"]
    assert energy.by_event(CONFIG, given) == {name: row["uj"] for name, row in rows.items()}


def test_it_says_what_the_simulation_build_alone_counts():
    assert energy.table(CONFIG, counts())["simulation_only"] == [
        "array_ones", "array_flips", "act_write", "wgt_write", "prm_write", "res_read", "res_write", "out_write", "psum_read",
        "psum_write"]


def test_docs_have_the_table():
    assert energy.manual(CONFIG) in DOCS.read_text()


def test_who_counts_all():
    """The ISA simulator, and the simulation build of the machine that has such counters."""
    compact = Config(m=1, n=1, k=32, axi_bits=32, compact=1)
    assert [energy.counts_all(config, level) for config in (CONFIG, compact) for level in ("isa", "rtl", "board")] == [
        True, True, False, True, False, False]
