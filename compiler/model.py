"""The cycle model: how long a program takes on a machine with a given memory, layer by layer.

It goes through the instructions as the hardware does, unit by unit (`hw/fetch.py`, `load.py`, `patch.py`, `axi.py`, `execute.py`,
`drain.py`, `store.py`), but from event to event instead of cycle by cycle: an instruction, a burst, a column tile. Cycles count
from the first one in which the machine runs, and the time of an event is the cycle in which its signal is up: a `+ 1` is a
register.

Each unit is a generator, which yields what it waits for: news of another unit, or the grant of a burst. What is known ahead (when
a semaphore will be given, say) is handed on at once, with its time; only requests for bursts go in the order of time, since fetch
and load share the read channel.
"""

import heapq
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache

from seriatim import isa
from seriatim.config import Config, Memory
from seriatim.csr import ACTIVITY_COUNTERS, CYCLE_COUNTERS, Counter
from seriatim.isa import Buffer, Output, Queue, Sem
from seriatim.sim import shiftadd

BURST = 64
"""Most beats of a burst; none crosses a multiple of so many beats."""
AHEAD = 8
"""Instructions that fetch asks for ahead."""
NOTICE = 5
"""Cycles from a column tile's last step until its sum moves to the drain registers, at their end."""
SUM_CYCLES, REQUANT_CYCLES, PACK_CYCLES = 2, 4, 4
"""Stages of the drain."""
ENCODE_CYCLES = 1
"""Another one, of machines that encode by thresholds."""
RESIDUAL_CYCLES = 3
"""From the start of a residual's reading to its numbers, planes apart."""
POOL_CYCLES = 3
"""From a POOL's step to its word at the packer."""
PRODUCTS = 11
"""Products that the patch builder forms before it begins, a cycle each."""
MARK_CYCLES = len(Counter) - len(ACTIVITY_COUNTERS)
"""Counters that a MARK copies, a cycle each."""
CHUNK, PLANES = 8, 8
"""Bytes that the patch builder gathers in a cycle; words that it writes for K of them."""

Process = Generator
"""A unit, or a part of what it does: yields a `Condition` or a `Request`."""


@dataclass(frozen=True)
class Prediction:
    """Cycles from the start to the end of a program, and those of each layer that has a MARK: as the counters show them."""

    cycles: int
    layers: tuple[int, ...]


def predict(program: bytes, config: Config, memory: Memory) -> Prediction:
    """What `program` takes on the machine of `config` with `memory`. The program must be one that `schedule.check` accepts."""
    listing = [isa.decode(program[at:at + isa.INSTR_BYTES]) for at in range(0, len(program), isa.INSTR_BYTES)]
    clock = Clock()
    queues = {q: InstructionQueue(clock, config.queue) for q in (Queue.LOAD, Queue.EXEC, Queue.STORE)}
    tokens = {sem: Tokens(clock) for sem in Sem}
    reader = Reader(clock, config, memory)
    fetch = Fetch(clock, config, reader, queues, [instr.queue for instr, _ in listing])
    lists = defaultdict(list)
    for instr, fields in listing:
        lists[instr.queue].append((instr.name, fields))
    load = Load(clock, config, queues[Queue.LOAD], lists[Queue.LOAD], tokens, reader)
    execute = Execute(clock, config, queues[Queue.EXEC], lists[Queue.EXEC], tokens)
    store = Store(clock, config, queues[Queue.STORE], lists[Queue.STORE], tokens, Writer(clock, config, memory))
    units = load, execute, store
    for process in (fetch.requests(), fetch.decode(), *(unit.run() for unit in units)):
        clock.at(0, process)
    clock.run()
    ends = [fetch.ended, *(unit.ended for unit in units)]
    assert all(unit.done for unit in units), "a program that waits for ever"
    cycles = max(ends) + 1
    edges = [0, *execute.marks[1:], cycles]
    return Prediction(cycles, tuple(b - a for a, b in zip(edges, edges[1:])) if execute.marks else ())


# Time

class Condition:
    """Processes that wait for another one's news."""

    def __init__(self, clock: "Clock"):
        self.clock, self.waiting = clock, []

    def wait(self, process: "Process") -> None:
        self.waiting.append(process)

    def notify(self) -> None:
        for process in self.waiting:
            self.clock.at(self.clock.now, process)
        self.waiting.clear()


class Clock:
    """Runs processes, and functions, in the order of time."""

    def __init__(self):
        self.now, self.events, self.number = 0, [], 0

    def at(self, cycle: int, what) -> None:
        self.number += 1
        heapq.heappush(self.events, (max(cycle, self.now), self.number, what))

    def run(self) -> None:
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            if callable(what):
                what()
            else:
                self.resume(what)

    def resume(self, process: Process, value=None) -> None:
        """Lets a process go on; `value` is what its `yield` returns."""
        try:
            until = process.send(value)
        except StopIteration:
            return
        until.wait(process)


class Tokens:
    """A semaphore: the cycles from which each of its tokens can be taken. One queue gives them, one takes them."""

    def __init__(self, clock: Clock):
        self.cycles: list[int] = []
        self.taken = 0
        self.news = Condition(clock)

    def give(self, cycle: int) -> None:
        """`cycle`: in which `give_valid` is up."""
        self.cycles.append(cycle + 1)
        self.news.notify()


class InstructionQueue:
    """`depth` instructions and the one at the head: when each is written, reaches the head and leaves it."""

    def __init__(self, clock: Clock, depth: int):
        self.depth = depth
        self.written: list[int] = []
        self.moved: list[int] = []
        self.left: list[int] = []
        self.news = Condition(clock)

    def room(self) -> Iterator[Condition]:
        """Waits until it is known from which cycle on the next instruction can be written, and returns that."""
        before = len(self.written) - self.depth
        while len(self.moved) <= before:
            yield self.news
        return self.moved[before] + 1 if before >= 0 else 0

    def write(self, cycle: int) -> None:
        self.written.append(cycle)
        self._move()

    def leave(self, cycle: int) -> None:
        """The head instruction is handed over (`ready`) in this cycle."""
        self.left.append(cycle)
        self._move()

    def _move(self) -> None:
        """An instruction moves to the head as soon as the one before it leaves."""
        index = len(self.moved)
        if index < len(self.written) and index <= len(self.left):
            self.moved.append(max(self.written[index] + 1, self.left[index - 1] if index else 0))
        self.news.notify()

    def head(self, index: int) -> Iterator[Condition]:
        """Waits until it is known from which cycle on instruction `index` is at the head, and returns that."""
        while len(self.moved) <= index:
            yield self.news
        return self.moved[index] + 1


class Unit:
    """What load, execute and store have in common. `ended`: first cycle in which the unit no longer keeps the machine running."""

    def __init__(self, clock: Clock, config: Config, queue: InstructionQueue, instructions, tokens, channel=None):
        self.clock, self.config, self.queue = clock, config, queue
        self.instructions, self.tokens, self.channel = instructions, tokens, channel
        self.ended = 0
        self.done = not instructions

    def take(self, index: int, fields: dict) -> Process:
        """Waits until it is known in which cycle instruction `index`, at the head, takes its semaphores, and returns that."""
        cycle = yield from self.queue.head(index)
        for sem in _sems(fields["wait"]):
            tokens = self.tokens[sem]
            while len(tokens.cycles) <= tokens.taken:
                yield tokens.news
            cycle = max(cycle, tokens.cycles[tokens.taken])
            tokens.taken += 1
        return cycle

    def give(self, fields: dict, cycle: int) -> None:
        """`give_valid` is up in this cycle."""
        for sem in _sems(fields["signal"]):
            self.tokens[sem].give(cycle)
        self.ended = max(self.ended, cycle + 1)

    def run(self) -> Process:
        for index, (name, fields) in enumerate(self.instructions):
            yield from self.instruction(index, name, fields)
        self.done = True

    def transfer(self, channel: "Channel", start: int, f: dict, beats: int) -> Process:
        """The segments of a LOAD or STORE that starts in a cycle. Returns in which its last burst is granted, and ends."""
        bursts, valid = Bursts(self.config, channel), start + 1
        for s in range(f["slices"]):
            for y in range(f["ny"]):
                for x in range(f["nx"]):
                    addr = f["dram"] + s * f["slice_pitch"] + y * f["y_pitch"] + x * f["x_pitch"] & 0xFFFFFFFF
                    valid = 1 + (yield from bursts.segment(valid, addr, beats))
        yield from bursts.close()
        return bursts.granted, bursts.ends[-1]


@cache
def _sems(mask: int) -> tuple[Sem, ...]:
    return tuple(sem for sem in Sem if sem & mask)


# Bursts and channels

class Bursts:
    """Cuts segments at multiples of `BURST` beats and joins those that are contiguous and follow at once, a step a cycle."""

    def __init__(self, config: Config, channel: "Channel"):
        self.axi_bytes, self.channel = config.axi_bytes, channel
        self.count, self.end = 0, 0  # the burst that grows: its beats, its end's address
        self.stepped = -1  # the last step
        self.granted = 0
        self.ends: list[int] = []
        self.totals: list[int] = []

    def segment(self, valid: int, addr: int, beats: int) -> Process:
        """A segment is offered from the cycle `valid` on. Returns the cycle in which it is taken."""
        gap = max(self.stepped + 1, self.granted)
        if self.count and gap < valid:
            yield from self._issue(gap)
        cycle = taken = max(valid, self.stepped)
        while beats:
            cycle += 1
            offset = addr // self.axi_bytes % BURST
            size = min(beats, BURST - offset)
            if self.count and not (offset and addr == self.end):
                cycle = max(cycle, self.granted)
                yield from self._issue(cycle)
            self.count, beats = self.count + size, beats - size
            addr = self.end = addr + size * self.axi_bytes
        self.stepped = cycle
        return taken

    def close(self) -> Process:
        """No segment follows."""
        if self.count:
            yield from self._issue(max(self.stepped + 1, self.granted))

    def _issue(self, cycle: int) -> Process:
        self.granted, end = yield Request(self.channel, cycle + 1, self.count)
        self.ends.append(end)
        self.totals.append(self.count)
        self.count = 0


class Beats:
    """When the memory's data beats go: one a cycle, in order, no more than its bandwidth (which saves up two beats)."""

    def __init__(self, bandwidth: tuple[int, int]):
        self.num, self.den = bandwidth
        self.last = -1
        self.credit, self.since = 2 * self.den, -1

    def send(self, first: int, beats: int) -> int:
        """Cycle of the last of some beats, the first of which can go from `first` on."""
        first = max(first, self.last + 1)
        if self.num == self.den:
            self.last = first + beats - 1
            return self.last
        credit = min(2 * self.den, self.credit + self.num * (first - self.since))
        wait = max(0, -(-(self.den - credit) // self.num))
        first, credit = first + wait, credit + wait * self.num - self.den
        more = beats - 1
        self.last = first + max(more, -(-(more * self.den - credit) // self.num) if more else 0)
        self.credit, self.since = credit + (self.last - first) * self.num - more * self.den, self.last
        return self.last


@dataclass
class Request:
    """A burst wanted from the cycle `valid` on. A process that yields it goes on in the cycle of the grant, with that cycle and
    the one in which the burst ends."""

    channel: "Channel"
    valid: int
    beats: int
    urgent: bool = False
    process: Process | None = None

    def wait(self, process: Process) -> None:
        self.process = process
        self.channel.requests.append(self)
        self.channel.look()


class Channel:
    """What the read and the write channel have in common. A grant tells when the burst ends, since everything goes in order."""

    def __init__(self, clock: Clock, config: Config, memory: Memory, bandwidth: tuple[int, int]):
        self.clock, self.memory, self.depth = clock, memory, config.outstanding
        self.beats = Beats(bandwidth)
        self.requests: list[Request] = []
        self.granted: list[int] = []
        self.accepted: list[int] = []
        self.ends: list[int] = []

    def ready(self) -> int:
        """First cycle in which another burst can be granted: `depth` are in flight, two wait for the memory at most."""
        cycle = self.granted[-1] + 1 if self.granted else 0
        if len(self.granted) > 1:
            cycle = max(cycle, self.accepted[-2] + 1)
        if len(self.granted) >= self.depth:
            cycle = max(cycle, self.ends[-self.depth] + 2)
        return cycle

    def look(self) -> None:
        if self.requests:
            self.clock.at(max(self.ready(), min(request.valid for request in self.requests)), self.grant)

    def grant(self) -> None:
        now = self.clock.now
        wanting = [request for request in self.requests if request.valid <= now]
        if not wanting or self.ready() > now:
            return  # another look came first
        request = max(wanting, key=lambda request: request.urgent)
        self.requests.remove(request)
        accepted = max(now, self.accepted[-1] if self.accepted else 0) + 1
        if len(self.ends) >= self.memory.outstanding:
            accepted = max(accepted, self.ends[-self.memory.outstanding] + 1)
        self.granted.append(now)
        self.accepted.append(accepted)
        self.ends.append(self.finish(now, accepted, request.beats))
        self.look()
        self.clock.resume(request.process, (now, self.ends[-1]))


class Reader(Channel):
    """Shared by fetch, which goes first, and load. A burst ends with its last beat on the bus."""

    def __init__(self, clock: Clock, config: Config, memory: Memory):
        super().__init__(clock, config, memory, memory.read_bandwidth)

    def finish(self, granted: int, accepted: int, beats: int) -> int:
        return self.beats.send(accepted + self.memory.latency, beats)


class Writer(Channel):
    """A burst ends with its response."""

    def __init__(self, clock: Clock, config: Config, memory: Memory):
        super().__init__(clock, config, memory, memory.write_bandwidth)

    def finish(self, granted: int, accepted: int, beats: int) -> int:
        sent = self.beats.send(max(granted + 2, accepted + 1), beats)
        return max(sent + self.memory.latency, self.ends[-1] + 1 if self.ends else 0)


# Fetch

class Fetch:
    """Requests instructions ahead, and decodes them in three cycles each."""

    def __init__(self, clock: Clock, config: Config, reader: Reader, queues: dict[Queue, InstructionQueue], order: list[Queue]):
        self.reader, self.queues, self.order = reader, queues, order
        self.beats = isa.INSTR_BITS // config.axi_bits
        self.arrived: list[int] = []
        self.taken: list[int] = []
        self.news = Condition(clock)

    def requests(self) -> Process:
        ask = 0
        for index in range(len(self.order)):
            if index >= AHEAD:
                while len(self.taken) <= index - AHEAD:
                    yield self.news
                ask = max(ask, self.taken[index - AHEAD] + 1)
            granted, end = yield Request(self.reader, ask + 1, self.beats, urgent=True)
            self.arrived.append(end + 2)
            self.news.notify()
            ask = granted + 1

    def decode(self) -> Process:
        read = 0
        for index, target in enumerate(self.order):
            while len(self.arrived) <= index:
                yield self.news
            send = max(read, self.arrived[index]) + 2
            if target is not Queue.FETCH:
                queue = self.queues[target]
                send = max(send, (yield from queue.room()))
                queue.write(send)
            self.taken.append(send)
            self.news.notify()
            read = send + 1

    @property
    def ended(self) -> int:
        return self.taken[-1] + 1


# Load

class Load(Unit):
    """LOAD, FILL and PATCH. `free`: the cycle in which the back end finishes what it was last handed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.free, self.filling = -1, False

    def instruction(self, index: int, name: str, f: dict) -> Process:
        start = yield from self.take(index, f)
        if name == "LOAD" and self.filling:
            start = max(start, self.free + 1)
        handed = max(start + 1, self.free)
        if name == "FILL":
            self.free, self.filling = handed + f["ny"] * f["words"], True
            self.queue.leave(handed)
            self.give(f, self.free + 1)
            return
        self.filling = False
        if name == "PATCH":
            done = yield from Patch(self, f).run(max(handed, self.free + 1))
            self.queue.leave(done)
            self.give(f, done + 1)
            return
        beats = f["words"] * self._word_bits(f) // self.config.axi_bits
        granted, end = yield from self.transfer(self.channel, start, f, beats)
        self.free = end + 1
        self.queue.leave(max(handed, granted + 1))
        self.give(f, self.free + 1)

    def _word_bits(self, f: dict) -> int:
        c = self.config
        return {Buffer.WGT: c.n * c.k, Buffer.PRM: c.n * 128}.get(f["buffer"], c.k)


class Patch:
    """The patch builder: rows are fetched to one half of the line memory while the other half is gathered."""

    def __init__(self, load: Load, f: dict):
        self.load, self.f = load, f
        self.axi_bytes = load.config.axi_bytes
        self.runs, self.run_columns = (1, f["kw"]) if f["dw"] == 1 else (f["kw"], 1)
        columns = [f["x0"] + x * f["sw"] + t * f["dw"] for x in range(f["nx"]) for t in range(self.runs)]
        ranges = [(max(at, 0), min(at + self.run_columns, f["width"])) for at in columns]
        inside = [(lo, hi) for lo, hi in ranges if lo < hi]
        self.low = min((lo for lo, _ in inside), default=0) * f["channels"] // self.axi_bytes * self.axi_bytes
        self.beats = -(-(max((hi for _, hi in inside), default=0) * f["channels"] - self.low) // self.axi_bytes)
        self.bursts = Bursts(load.config, load.channel)
        self.requested = 0  # the last row
        self.received: list[tuple[int, int, int]] = []  # of each slice: its last burst, its beats of that, the last request
        self.filled: list[int] = []
        self.gathered: list[int] = []  # the last chunk of each slice is read
        self.left: list[int] = []  # when the last chunks leave the pipeline
        self.next_words = -PLANES  # the emission takes its next words

    def run(self, start: int) -> Process:
        """Returns the cycle in which the last word has been written."""
        f = self.f
        self.requested = start + f["nx"] * self.runs + PRODUCTS + 3
        for s in range(f["slices"]):
            claim = self.requested + 1
            if s > 1:  # the half of the line memory must be free again
                yield from self._gather(s - 2)
                claim = max(claim, self.gathered[s - 2] + 1)
            yield from self._fetch(claim, f["y0"] + s * f["y_step"])
        for s in range(max(0, f["slices"] - 2), f["slices"]):
            yield from self._gather(s)
        return self.next_words + PLANES + 1

    def _fetch(self, claim: int, top: int) -> Process:
        """Requests a slice's rows."""
        f, bursts = self.f, self.bursts
        cycle = claim
        for r in range(f["kh"]):
            cycle += 1
            row = top + r * f["dh"]
            if 0 <= row < f["height"] and self.beats > 0:
                cycle = yield from bursts.segment(cycle, f["dram"] + row * f["y_pitch"] + self.low, self.beats)
        self.requested = cycle
        self.received.append((len(bursts.ends), bursts.count, cycle))

    def _gather(self, s: int) -> Process:
        """Waits for a slice's rows, and gathers them."""
        bursts = self.bursts
        burst, beats, requested = self.received[s]
        if burst == len(bursts.ends):
            yield from bursts.close()
        end = bursts.ends[burst] - bursts.totals[burst] + beats if beats else 0
        self.filled.append(max(end, requested, self.filled[-1] if s else 0) + 1)
        first = max(self.filled[s], self.gathered[s - 1] if s else 0) + 2
        waiting = [cycle for cycle in self.left[-2:] if cycle >= first]  # chunks in the pipeline that are still held back
        first = waiting[0] if waiting else first
        chunks = self._chunks(self.left[-1] + 1 if len(waiting) == 2 else first + 2)
        self.gathered.append(self.left[-3] if chunks > 2 else first + chunks - 1)

    def _operations(self) -> list[tuple[bool, bool]]:
        """What the last stage does for a position, a cycle each: (hands words to the emission, is done with a chunk)."""
        f, k = self.f, self.load.config.k
        run = self.run_columns * f["channels"]
        sizes = ([CHUNK] * ((run - 1) // CHUNK) + [(run - 1) % CHUNK + 1]) * (self.runs * f["kh"])
        operations, lanes = [], 0
        for index, size in enumerate(sizes):
            lanes += size
            last = index == len(sizes) - 1
            spills = last and lanes > k
            operations.append((lanes >= k or last, not spills))
            if spills:
                operations.append((True, True))
            lanes -= k if lanes >= k else 0
        return operations

    def _chunks(self, first: int) -> int:
        """The chunks of a slice, the first of which reaches the last stage in cycle `first`. Returns their number."""
        operations, positions = self._operations(), self.f["nx"]
        now, lag, left, position = first - 1, None, [], 0
        while position < positions:
            before = now, lag
            for push, leaves in operations:
                now += 1
                if push:
                    now = max(now, self.next_words)
                    self.next_words = max(now + 1, self.next_words + PLANES)
                if leaves:
                    left.append(now)
            lag = self.next_words - now
            position += 1
            if lag == before[1] and positions - position > 3:  # from here on all positions take the same time
                skipped = positions - position - 3
                ahead = skipped * (now - before[0])
                now, self.next_words, position = now + ahead, self.next_words + ahead, position + skipped
        self.left = left[-3:]
        return positions * sum(leaves for _, leaves in operations)


# Execute

class Execute(Unit):
    """CONV, POOL, MARK, FORMAT and TABLE. `marks`: cycles that the counters which each MARK copies have counted."""

    def __init__(self, *args):
        super().__init__(*args)
        self.form = isa.decode(isa.encode("FORMAT"))[1]
        self.marks: list[int] = []
        self.issued = self.job = self.given = -1  # of the instruction before: last step, taken by the drain, semaphores given
        self.draining = -self.config.m  # the last column tile begins to drain

    def instruction(self, index: int, name: str, f: dict) -> Process:
        cycle = yield from self.take(index, f)
        if name == "MARK":
            start = max(cycle, self.given) + 1
            self.marks.append(start + len(CYCLE_COUNTERS) - 1)
            self.given = start + MARK_CYCLES - 1
            self.queue.leave(self.given)
        elif name in ("FORMAT", "TABLE"):
            self.given = max(cycle, self.given) + 1
            self.queue.leave(self.given)
            self.form = f if name == "FORMAT" else self.form
        else:
            loaded = max(cycle, self.issued, self.job)
            self.queue.leave(loaded)
            self.job = max(loaded, self.given) + 1
            if name == "POOL":
                self.issued = self.job + f["ny"] * f["nx"] * f["ng"] * f["kh"] * f["kw"] * f["planes"]
                self.given = self.issued + POOL_CYCLES + 2
            else:
                self._tiles(loaded, f)
        self.give(f, self.given)

    def _tiles(self, loaded: int, f: dict) -> None:
        """The column tiles of a CONV: the last step of each, or in the shift-add array the first of its last word, waits for the
        drain registers, the drain for its residual and for the words of the position before."""
        m = self.config.m
        each, notice, word = f["a_bits"] * f["w_bits"], NOTICE, 1  # steps of a pair of words; without a gap
        if f["engine"] == isa.Engine.SHIFT_ADD:
            each, notice = shiftadd.steps(f, self.form), NOTICE + max(self.config.shift_a_bits, self.config.shift_w_bits)
            word = shiftadd.word_steps(f, self.form)
        psum, raw = f["output"] == Output.PSUM, f["output"] == Output.INT32
        words = self.config.raw_words if raw else f["out_planes"]
        planes = 0 if psum else f["res_planes"]
        steps = f["kh"] * f["kw"] * f["nc"] * each
        tiles, every = f["ny"] * f["nx"] * f["ng"], 1 if psum or raw else f["ng"]
        early = max(0, m - NOTICE - 1)  # the registers are free for a sum under way from this row on
        reading = RESIDUAL_CYCLES + planes if planes else 0
        pace = max(notice + word + early, reading, 0 if psum else -(-words // every))  # at fewer steps a tile, the array waits
        issued, ready, emitted = loaded, self.job + max(1, reading), 0
        tile = 0
        while tile < tiles:
            tile += 1
            issued = max(issued + steps, self.draining + early + word - 1)
            emits = not psum and tile % every == 0
            self.draining = max(issued + notice + 1, ready, emitted if emits else 0)
            ready = self.draining + max(m, reading)
            if emits:
                emitted = self.draining + words
            if steps >= pace and self.draining == issued + notice + 1 and tile % every == 0:
                issued += (tiles - tile) * steps  # nothing waits any more
                self.draining = issued + notice + 1
                break
        self.issued = issued
        rows = m - 1 + SUM_CYCLES
        requant = REQUANT_CYCLES + self.config.multiplier_stages + (ENCODE_CYCLES if self.config.shift_lanes else 0)
        self.given = self.draining + 1 + (rows if psum else rows + requant + PACK_CYCLES + words - 1)


# Store

class Store(Unit):
    """STORE, one at a time: finished when every burst has been answered."""

    def instruction(self, index: int, name: str, f: dict) -> Process:
        start = yield from self.take(index, f)
        _, answered = yield from self.transfer(self.channel, start, f, f["words"] * self.config.k // self.config.axi_bits)
        finished = answered + 2
        self.queue.leave(finished)
        self.give(f, finished + 1)
