"""The trace of a real run, read back by Perfetto's own schema, against the program and the machine's counters."""

import re
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from seriatim import cli, isa
from seriatim.compiler.program import Compiled
from seriatim.csr import STALLS
from seriatim.isa import Queue, Sem
from seriatim.sim import report as reports
from seriatim.sim import rtl, trace
from seriatim.sim.executor import execute

pytestmark = pytest.mark.rtl

UNITS = {"load": Queue.LOAD, "execute": Queue.EXEC, "store": Queue.STORE}


@dataclass
class Slice:
    name: str
    start: int
    end: int
    depth: int
    arguments: dict[str, str]


@dataclass
class Table:
    """A trace as Perfetto's trace processor sees it: tracks by path, slices with their depth, counters. What it would drop (it
    counts such packets as errors) fails here."""

    slices: dict[tuple[str, ...], list[Slice]]
    counters: dict[tuple[str, ...], list[tuple[int, int]]]

    @classmethod
    def read(cls, path) -> "Table":
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

        tracks, open_, table = {}, defaultdict(list), cls(defaultdict(list), defaultdict(list))
        for packet in Trace.FromString(path.read_bytes()).packet:
            assert packet.trusted_packet_sequence_id and not packet.sequence_flags
            if packet.HasField("track_descriptor"):
                d = packet.track_descriptor
                assert d.uuid and d.name and d.uuid not in tracks, "a track is declared once"
                tracks[d.uuid] = *(tracks[d.parent_uuid] if d.HasField("parent_uuid") else ()), d.name
                if d.HasField("counter"):
                    table.counters[tracks[d.uuid]] = []
                continue
            event, at = packet.track_event, packet.timestamp
            track = tracks[event.track_uuid]
            assert packet.HasField("timestamp")
            if event.type == TrackEvent.TYPE_COUNTER:
                assert track in table.counters and event.HasField("counter_value")
                table.counters[track].append((at, event.counter_value))
            elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
                notes = {note.name: note.string_value for note in event.debug_annotations}
                slice_ = Slice(event.name, at, -1, len(open_[track]), notes)
                open_[track].append(slice_)
                table.slices[track].append(slice_)
            else:
                assert event.type == TrackEvent.TYPE_SLICE_END
                open_[track].pop().end = at
        assert not any(open_.values()), "every slice ends"
        return table


@dataclass
class Traced:
    report: dict
    compiled: Compiled
    table: Table
    root: str

    def slices(self, track: str, depth: int = 0) -> list[Slice]:
        return [s for s in self.table.slices[self.root, track] if s.depth == depth]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    from seriatim.compiler import artefact

    folder = tmp_path_factory.mktemp("trace")
    assert cli.main(["sim", "--net", "digits", "--images", "3", "--trace", "--no-baseline", "--out", str(folder)]) == 0
    report = reports.load(folder)
    loaded = artefact.load(folder / "artefact.zip", isa.VERSION, int(report["config"]["hash"], 16))
    program, = loaded.programs
    table = Table.read(folder / "trace.pftrace")
    roots = {track[0] for track in table.slices}
    assert len(roots) == 1
    return Traced(report, Compiled.from_bytes(program), table, roots.pop())


def test_tracks_do_not_overlap(traced):
    for spans in traced.table.slices.values():
        assert all(s.start < s.end for s in spans)
        for depth in {s.depth for s in spans}:
            assert all(a.end <= b.start for a, b in pairwise(s for s in spans if s.depth == depth))


def test_every_cycle_is_in_the_counter_s_slices(traced):
    total, spent = traced.report["totals"], defaultdict(int)
    slices = traced.slices("cycle")
    for s in slices:
        spent[s.name] += s.end - s.start
    assert (slices[0].start, slices[-1].end) == (0, total["cycles"])
    assert all(a.end == b.start and a.name != b.name for a, b in pairwise(slices))
    assert {name: spent.get(f"stall {name}", 0) for name in STALLS} == total["stalls"]
    assert spent["busy"] == total["cycles"] - sum(total["stalls"].values())


def test_layers_are_those_of_the_counters(traced):
    spans = traced.slices("layer")
    assert [(s.name, s.end - s.start) for s in spans] == [(row["name"], row["cycles"]) for row in traced.report["layers"]]
    assert spans[0].start == 0 and all(a.end == b.start for a, b in pairwise(spans))


def test_one_slice_for_each_instruction_in_its_unit(traced):
    lines = list(isa.disassemble(traced.compiled.program))
    for track, queue in UNITS.items():
        expected = [line for line in lines if isa.BY_NAME[line.split()[1]].queue is queue]
        slices = traced.slices(track)
        assert [s.name.split()[0] for s in slices] == [line.split()[1] for line in expected]
        assert [int(s.arguments["pc"], 16) for s in slices] == [int(line.split()[0], 16) for line in expected]
        assert [s.arguments["text"].split()[1:] for s in slices] == [line.split()[1:] for line in expected]
    assert sum(len(traced.slices(track)) for track in UNITS) == len(lines) - 1  # END never leaves the fetch unit
    jobs = [s for s in traced.slices("execute") if not s.name.startswith("MARK")]
    assert [s.name for s in traced.slices("drain")] == [s.name for s in jobs]
    for job, results in zip(jobs, traced.slices("drain")):
        assert results.end > job.end


def test_instructions_have_their_layers(traced):
    """The weights' and the results' addresses tell which layer an instruction works for."""
    layers = {layer.name: layer for layer in traced.compiled.layers}
    for s in traced.slices("store"):
        place = traced.compiled.places[layers[s.arguments["layer"]].out]
        pc = int(s.arguments["pc"], 16)
        _, values = isa.decode(traced.compiled.program[pc:pc + isa.INSTR_BYTES])
        assert place.address <= values["dram"] < place.address + place.size
    marks = [s.arguments["layer"] for s in traced.slices("execute") if s.name.startswith("MARK")]
    assert marks == list(layers)
    for track in UNITS:
        order = [list(layers).index(s.arguments["layer"]) for s in traced.slices(track)]
        assert order == sorted(order) and set(order) == set(range(len(layers)))


def test_steps_are_in_execute_slices(traced):
    """The array and the pool step only within CONV and POOL instructions, never while these wait for a semaphore."""
    work = [(s.start, s.end) for s in traced.slices("execute") if not s.name.startswith("MARK")]
    waits = [(s.start, s.end) for s in traced.slices("execute", 1)]
    busy = [(s.start, s.end) for s in traced.slices("cycle") if s.name == "busy"]
    covered = sum(max(0, min(b, d) - max(a, c)) for a, b in busy for c, d in work)
    assert covered == sum(b - a for a, b in busy)
    assert waits and not any(max(a, c) < min(b, d) for a, b in busy for c, d in waits)


def test_waits_are_inside_and_named(traced):
    for track in UNITS:
        outer = traced.slices(track)
        inner = traced.slices(track, 1)
        assert inner, f"{track} never waits"
        names = {sem.name.lower() for sem in Sem}
        for s in inner:
            assert s.name.split()[0] == "wait" and set(s.name.split()[1:]) <= names
            assert sum(o.start <= s.start and s.end <= o.end for o in outer) == 1
    stalls = traced.report["totals"]["stalls"]
    waiting = sum(s.end - s.start for s in traced.slices("execute", 1) if "act_ready" in s.name)
    assert stalls["act"] * 0.9 < waiting <= stalls["act"] + stalls["drain"]


def test_the_query_of_the_docs(traced):
    """In SQLite, which is the trace processor's SQL, on the tables that it documents."""
    query, = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs" / "reports.md").read_text(), re.S)
    base = sqlite3.connect(":memory:")
    base.execute("create table track (id, name)")
    base.execute("create table slice (id, ts, dur, track_id, name, depth, parent_id)")
    expected, number = Counter(), 0
    for track, path in enumerate(traced.table.slices):
        base.execute("insert into track values (?, ?)", (track, path[-1]))
        parent = None
        for s in traced.table.slices[path]:
            number += 1
            parent = (number, s.name) if s.depth == 0 else parent
            row = number, s.start, s.end - s.start, track, s.name, s.depth, parent[0] if s.depth else None
            base.execute("insert into slice values (?, ?, ?, ?, ?, ?, ?)", row)
            if s.depth and path[-1] == "execute":
                expected[parent[1], s.name] += s.end - s.start
    rows = base.execute(query).fetchall()
    assert expected and {(name, waits): cycles for name, waits, _, cycles in rows} == expected
    assert [row[3] for row in rows] == sorted(expected.values(), reverse=True)


def test_levels_follow_the_program(traced):
    """A semaphore goes up as often as instructions signal it, and down as often as they take it."""
    ups, downs = defaultdict(int), defaultdict(int)
    for pc in range(0, len(traced.compiled.program), isa.INSTR_BYTES):
        _, values = isa.decode(traced.compiled.program[pc:pc + isa.INSTR_BYTES])
        for sem in Sem:
            ups[sem.name.lower()] += bool(values["signal"] & sem)
            downs[sem.name.lower()] += bool(values["wait"] & sem)
    for sem in Sem:
        name = sem.name.lower()
        values = [value for _, value in traced.table.counters[traced.root, "semaphores", name]]
        steps = [b - a for a, b in pairwise(values)]
        assert values[0] == 0 and values[-1] == ups[name] - downs[name]
        risen = sum(step for step in steps if step > 0)
        assert 0 <= ups[name] - risen <= downs[name]  # one up and one down in the same cycle show no step
    for unit in UNITS:
        values = [value for _, value in traced.table.counters[traced.root, "queues", unit]]
        assert values[0] == values[-1] == 0 and 1 <= max(values) <= traced.compiled.config.queue + 1


def test_observing_changes_nothing(traced):
    """The machine without trace ports has none of their logic, and takes the same cycles for the same causes."""
    compiled, total = traced.compiled, traced.report["totals"]
    assert "observe" in rtl.verilog(compiled.config, observe=True) and "observe" not in rtl.verilog(compiled.config)
    blank = {name: np.zeros(compiled.places[name].tensor.shape, np.int32) for name in compiled.inputs}
    run = execute(compiled, blank, lambda config, size: rtl.RtlSession(config, size))
    assert run.counts.cycles == total["cycles"] and run.observed == {}
    assert {name: run.counts.total[counter] for name, counter in STALLS.items()} == total["stalls"]


@pytest.mark.parametrize("packets", (3, trace.PACKETS))
def test_programs_follow_one_another(packets, tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "PACKETS", packets)
    span = trace.Span(2, 5, "x", {"pc": "0x0"}, (trace.Span(3, 4, "wait"),))
    line = trace.Timeline(10, {"load": [span]}, {"queues": {"load": [(0, 1)]}})
    with open(tmp_path / "two", "wb") as file:
        writer = trace._Writer(file)
        writer.program(line, "a", 0)
        writer.program(line, "b", line.cycles)
        writer.flush()
    table = Table.read(tmp_path / "two")
    assert [(s.start, s.end, s.depth) for s in table.slices["a", "load"]] == [(2, 5, 0), (3, 4, 1)]
    assert [(s.start, s.end, s.depth) for s in table.slices["b", "load"]] == [(12, 15, 0), (13, 14, 1)]
    assert table.counters["b", "queues", "load"] == [(10, 1)]


def test_the_isa_level_has_no_trace(capsys):
    assert cli.main(["sim", "--net", "digits", "--session", "isa", "--trace"]) == 1
    assert "--trace on the isa level: it has no trace ports; use --session rtl" in capsys.readouterr().err
