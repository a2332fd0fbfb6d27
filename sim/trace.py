"""The trace of a run: what each unit did in every cycle, for ui.perfetto.dev and its SQL.

`timeline` makes spans and levels out of what the trace ports of the RTL did (`hw.observe`); `write` puts them into a file in
Perfetto's format. A cycle is a nanosecond of the trace. Programs of one run follow one another.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seriatim import isa
from seriatim.compiler.program import Compiled
from seriatim.csr import Counter
from seriatim.isa import Queue, Sem
from seriatim.sim import files
from seriatim.sim.executor import Run

UNITS = {Queue.EXEC: 0, Queue.LOAD: 1, Queue.STORE: 2}
"""Number of a unit's trace ports, by its queue."""
FIRST = {Queue.LOAD: 0, Queue.EXEC: 1, Queue.STORE: 2}
"""Place of a queue in `LayerInfo.first`."""
TRACKS = {Queue.LOAD: "load", Queue.EXEC: "execute", Queue.STORE: "store"}
PACKETS = 20_000
"""Packets that are held before they are written."""


@dataclass(frozen=True)
class Span:
    """Cycles `[start, end)` of a track, with spans inside it."""

    start: int
    end: int
    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    inner: tuple["Span", ...] = ()


@dataclass(frozen=True)
class Timeline:
    """One program, in cycles since its start.

    Members
    -------
    tracks : spans by track, in order and without overlap:
        layer: from MARK to MARK, as the profile memory has it; cycle: the counter that each cycle went to;
        load, execute, store: an instruction from when it is first in its queue and its predecessor is through (written to the
        buffer; issued its last step; acknowledged by memory) until it is through itself, with its waits for semaphores inside;
        drain: a CONV or POOL from its first step, or the end of its predecessor's results, until its last result is written.
    levels : (cycle, new value) by name, grouped: instructions in a queue; the semaphores.
    """

    cycles: int
    tracks: dict[str, list[Span]]
    levels: dict[str, dict[str, list[tuple[int, int]]]]


@dataclass(frozen=True)
class _Instruction:
    name: str
    queue: Queue
    arguments: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.name} {self.arguments['layer']}"


def timeline(run: Run) -> Timeline:
    """What the trace ports saw of `run`."""
    running = [row for row in _stretches(run.observed["observe_running"], 0, None) if row[2]]
    assert len(running) == 1, "a session runs one program"
    start, end, _ = running[0]

    def of(port: str) -> Iterator[tuple[int, int, int]]:
        return _stretches(run.observed[f"observe_{port}"], start, end)

    program = _instructions(run.compiled)
    heads = {queue: [(a, b, value >> 1) for a, b, value in of(f"head_{i}") if value & 1] for queue, i in UNITS.items()}
    gave = {queue: {value >> 1: b for _, b, value in of(f"gave_{i}") if value & 1} for queue, i in UNITS.items()}
    waits = {queue: [row for row in of(f"wait_{i}") if row[2] & 1] for queue, i in UNITS.items()}
    steps = {a: b for a, b, _ in _steps(heads[Queue.EXEC], list(of("stepping_on")), program)}
    ends = {
        # Load and store tell in the cycle after; execute, whose sums are still to drain, is through with its last step.
        Queue.LOAD: {pc: after - 1 for pc, after in gave[Queue.LOAD].items()},
        Queue.STORE: {pc: after - 1 for pc, after in gave[Queue.STORE].items()},
        Queue.EXEC: {pc: steps.get(leave, leave) for _, leave, pc in heads[Queue.EXEC]},
    }
    tracks = {
        "layer": _layers(run.compiled, of("mark"), end - start),
        "cycle": [Span(a, b, Counter(value).name.lower().replace("_", " ")) for a, b, value in of("cause")],
        **{name: _unit(heads[queue], ends[queue], waits[queue], program) for queue, name in TRACKS.items()},
        "drain": _drain(heads[Queue.EXEC], gave[Queue.EXEC], program),
    }
    levels = {
        "queues": {name: [(a, value) for a, _, value in of(f"queue_{UNITS[queue]}")] for queue, name in TRACKS.items()},
        "semaphores": {sem.name.lower(): [(a, value) for a, _, value in of(f"level_{i}")] for i, sem in enumerate(Sem)},
    }
    return Timeline(end - start, tracks, levels)


def _stretches(rows: np.ndarray, start: int, end: int | None) -> Iterator[tuple[int, int, int]]:
    """(first cycle, cycle after the last, value) of a port's constant stretches within [start, end), counted from `start`."""
    cycles, values = rows[:, 0].tolist(), rows[:, 1].tolist()
    last = cycles[-1] if end is None else end
    for a, b, value in zip(cycles, [*cycles[1:], last], values):
        a, b = max(a, start), min(b, last)
        if a < b:
            yield a - start, b - start, value


def _instructions(compiled: Compiled) -> dict[int, _Instruction]:
    """The program by byte offset."""
    firsts = {queue: [layer.first[i] for layer in compiled.layers] for queue, i in FIRST.items()}
    seen = dict.fromkeys(firsts, 0)
    found = {}
    for pc in range(0, len(compiled.program), isa.INSTR_BYTES):
        word = compiled.program[pc:pc + isa.INSTR_BYTES]
        instr = isa.BY_OPCODE[word[0]]
        if instr.queue is Queue.FETCH:
            continue
        layer = compiled.layers[max(0, bisect_right(firsts[instr.queue], seen[instr.queue]) - 1)].name
        seen[instr.queue] += 1
        found[pc] = _Instruction(instr.name, instr.queue, {"layer": layer, "pc": f"{pc:#x}", "text": next(isa.disassemble(word))})
    return found


def _steps(heads, stepping, program) -> Iterator[tuple[int, int, int]]:
    """(first step's cycle, cycle after the last step, byte offset) of each CONV and POOL: from when it leaves the queue until the
    sequencer has none, or its successor."""
    left = [(leave, pc) for _, leave, pc in heads if program[pc].name != "MARK"]
    stops = [a for a, _, value in stepping if not value]
    for (leave, pc), (following, _) in zip(left, [*left[1:], (float("inf"), None)]):
        at = bisect_right(stops, leave)
        yield leave, min(following, stops[at] if at < len(stops) else float("inf")), pc


def _unit(heads, ends: dict[int, int], waits, program) -> list[Span]:
    """A unit's instructions in order. Only the head of a queue waits; what it waits while its predecessor works costs nothing."""
    spans, before, at = [], 0, 0
    for arrival, leave, pc in heads:
        start, end = max(arrival, before), ends[pc]
        inner = []
        while at < len(waits) and waits[at][0] < leave:
            a, b, value = waits[at]
            if b > start:
                lacking = [sem.name.lower() for sem in Sem if sem & value >> 1]
                inner.append(Span(max(a, start), min(b, end), " ".join(["wait", *lacking])))
            at += 1
        spans.append(Span(start, end, program[pc].title, program[pc].arguments, tuple(inner)))
        before = end
    return spans


def _drain(heads, gave: dict[int, int], program) -> list[Span]:
    spans, before = [], 0
    for _, leave, pc in heads:
        if program[pc].name != "MARK":
            spans.append(Span(max(leave, before), gave[pc], program[pc].title, program[pc].arguments))
            before = gave[pc]
    return spans


def _layers(compiled: Compiled, marks, cycles: int) -> list[Span]:
    """Layers as the counters divide them. A MARK copies a counter a cycle, and only STALL_FETCH counts meanwhile, so that the
    boundary is where that one is copied. What comes before the first MARK is the first layer's."""
    begins = [(a + Counter.STALL_FETCH, value >> 1) for a, _, value in marks if value & 1]
    begins = [(a if number else 0, number) for number, (a, _) in enumerate(begins)]
    names = [layer.name for layer in compiled.layers]
    if len(names) > len(begins) > 0:
        names[len(begins) - 1] += f" and {len(names) - len(begins)} more"
    return [Span(a, b, names[number]) for (a, number), (b, _) in zip(begins, [*begins[1:], (cycles, None)])]


def write(runs: list[Run], title: str, path: Path) -> Path:
    """Writes the trace of programs that ran on observing sessions to `path`, whole or not at all."""
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        writer, begin = _Writer(file), 0
        for number, run in enumerate(runs):
            line = timeline(run)
            writer.program(line, f"{title}, program {number}" if len(runs) > 1 else title, begin)
            begin += line.cycles
        writer.flush()
    return path


class _Writer:
    """Packets of Perfetto's format, to a file."""

    def __init__(self, file):
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2

        self.file, self.proto = file, perfetto_trace_pb2
        self.trace, self.tracks = perfetto_trace_pb2.Trace(), 0

    def flush(self) -> None:
        self.file.write(self.trace.SerializeToString())
        self.trace.Clear()

    def packet(self):
        if len(self.trace.packet) >= PACKETS:
            self.flush()
        packet = self.trace.packet.add()
        packet.trusted_packet_sequence_id = 1
        return packet

    def track(self, name: str, parent: int | None, rank: int, counter: bool = False) -> int:
        """Declares a track; returns its number. Tracks are shown by rank, not by name."""
        self.tracks += 1
        descriptor = self.packet().track_descriptor
        descriptor.uuid, descriptor.name, descriptor.sibling_order_rank = self.tracks, name, rank
        descriptor.child_ordering = self.proto.TrackDescriptor.EXPLICIT
        if parent is not None:
            descriptor.parent_uuid = parent
        if counter:
            descriptor.counter.SetInParent()
        return self.tracks

    def event(self, track: int, at: int, kind: int):
        packet = self.packet()
        packet.timestamp, packet.track_event.track_uuid, packet.track_event.type = at, track, kind
        return packet.track_event

    def span(self, track: int, span: Span, begin: int) -> None:
        event = self.event(track, begin + span.start, self.proto.TrackEvent.TYPE_SLICE_BEGIN)
        event.name = span.name
        for name, value in span.arguments.items():
            note = event.debug_annotations.add()
            note.name, note.string_value = name, value
        for inner in span.inner:
            self.span(track, inner, begin)
        self.event(track, begin + span.end, self.proto.TrackEvent.TYPE_SLICE_END)

    def program(self, line: Timeline, title: str, begin: int) -> None:
        """One program, its first cycle at `begin`."""
        root = self.track(title, None, self.tracks)
        for rank, (name, spans) in enumerate(line.tracks.items()):
            track = self.track(name, root, rank)
            for span in spans:
                self.span(track, span, begin)
        for rank, (group, levels) in enumerate(line.levels.items(), len(line.tracks)):
            parent = self.track(group, root, rank)
            for order, (name, values) in enumerate(levels.items()):
                track = self.track(name, parent, order, counter=True)
                for at, value in values:
                    self.event(track, begin + at, self.proto.TrackEvent.TYPE_COUNTER).counter_value = value
