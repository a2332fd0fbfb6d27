"""cocotb tests of the units with a stream or AXI interface, each on its own: random instructions, streams held back at random."""

import os
import random

import axi
import cocotb
import numpy as np
import random_programs as programs
from cocotb.triggers import FallingEdge, ReadOnly
from cocotbext.axi import AxiRamRead, AxiRamWrite, AxiReadBus, AxiWriteBus

from seriatim import isa
from seriatim.csr import Cause
from seriatim.errors import ProgramError
from seriatim.isa import Queue
from seriatim.sim.isasim import Machine, Stop

SEED = int(os.environ["SERIATIM_SEED"])
CONFIG = programs.CONFIG
BEAT = CONFIG.axi_bytes
LIMIT = 20_000


class Source:
    """Offers `items` in order on a stream; an offer stays until it is taken."""

    def __init__(self, dut, name: str, items, rng, percent: int = 40):
        self.valid, self.ready, self.payload = (getattr(dut, f"{name}_{end}") for end in ("valid", "ready", "payload"))
        self.items, self.rng, self.percent = list(items), rng, percent
        self.offered = False

    def drive(self):
        if not self.offered and self.items and self.rng.random() * 100 >= self.percent:
            self.offered = True
            self.payload.value = self.items[0]
        self.valid.value = int(self.offered)

    def sample(self):
        if self.offered and int(self.ready.value):
            self.items.pop(0)
            self.offered = False


class Sink:
    """Takes what a stream offers, when it likes; an offer must not change while it waits."""

    def __init__(self, dut, name: str, rng, percent: int = 40):
        self.name = name
        self.valid, self.ready, self.payload = (getattr(dut, f"{name}_{end}") for end in ("valid", "ready", "payload"))
        self.rng, self.percent = rng, percent
        self.got: list[int] = []
        self.waiting = None
        self.taking = False

    def drive(self):
        self.taking = self.rng.random() * 100 >= self.percent
        self.ready.value = int(self.taking)

    def sample(self):
        if not int(self.valid.value):
            assert self.waiting is None, f"{self.name} took back its offer"
            return
        now = int(self.payload.value)
        assert self.waiting in (None, now), f"{self.name} changed its offer: {self.waiting:#x} to {now:#x}"
        self.waiting = None if self.taking else now
        if self.taking:
            self.got.append(now)


async def clock(dut, agents, done, tail: int = 20):
    """Clocks until `done()` and `tail` cycles more. Inputs change in the middle of a cycle and are sampled at its end."""
    left = None
    for _ in range(LIMIT):
        await FallingEdge(dut.clk)
        for agent in agents:
            agent.drive()
        await ReadOnly()
        for agent in agents:
            agent.sample()
        if left is None and done():
            left = tail
        if left is not None:
            left -= 1
            if left < 0:
                return
    raise AssertionError(f"not finished within {LIMIT} cycles")


async def open_unit(dut) -> random.Random:
    await axi.start(dut)
    await axi.release(dut)
    return random.Random(SEED)


def beats_of(requests) -> list[int]:
    """Addresses of the beats of bursts given as stream payloads."""
    return [(payload & 0xFFFF_FFFF) + BEAT * i for payload in requests for i in range((payload >> 32) + 1)]


def random_requests(rng, count: int, size: int) -> list[int]:
    found = []
    for _ in range(count):
        beats = rng.choice((1, 2, rng.randrange(1, 65)))
        page = rng.randrange(size // 256) * 256
        found.append(page + rng.randrange(64 - beats + 1) * BEAT | beats - 1 << 32)
    return found


@cocotb.test()
async def bursts(dut):
    """The bursts cover the segments' beats in their order, and none crosses a block; a segment outside the limits is refused."""
    rng = await open_unit(dut)
    base, limit = 0x1000, 0x9000
    dut.bursts_base.value, dut.bursts_limit.value = base, limit
    segments, at = [], None
    for _ in range(60):
        beats = rng.choice((1, 2, 3, rng.randrange(1, 200)))
        if at is None or rng.random() < 0.5 or at + beats * BEAT > limit:
            at = base + rng.randrange((limit - base) // BEAT - beats) * BEAT
        segments.append((at, beats))
        at += beats * BEAT
    bad = rng.choice([(base - BEAT, 2), (limit - BEAT, 2), (base + 1, 1), (0, 1), (0xFFFF_FFFC, 4)])
    source = Source(dut, "bursts_segment", [a | b << 32 for a, b in [*segments, bad, (base, 1)]], rng, 20)
    sink = Sink(dut, "bursts_request", rng)
    await clock(dut, [source, sink], lambda: int(dut.bursts_refused.value), tail=100)
    for payload in sink.got:
        first, beats = payload & 0xFFFF_FFFF, (payload >> 32) + 1
        assert first // 256 == (first + beats * BEAT - 1) // 256, f"{beats} beats at {first:#x}"
    whole = [a + BEAT * i for a, b in segments for i in range(b)]
    got = beats_of(sink.got)
    assert got == whole[:len(got)] and len(whole) - len(got) <= 64, "only the burst before the refused segment may be held back"
    assert int(dut.bursts_refused.value) and len(source.items) >= 1


class Beats:
    """Collects the reader's beats for each owner."""

    def __init__(self, dut):
        self.dut, self.got = dut, {"fetch": [], "load": []}

    def drive(self):
        pass

    def sample(self):
        for owner, got in self.got.items():
            if int(getattr(self.dut, f"reader_to_{owner}").value) and not int(self.dut.reader_error.value):
                got.append(int(self.dut.reader_data.value))


@cocotb.test()
async def reader(dut):
    """Two owners share the read channel: each gets its own beats, in its own order."""
    await axi.start(dut)
    rng = random.Random(SEED)
    ram = AxiRamRead(AxiReadBus.from_prefix(dut, "reader_bus"), dut.clk, dut.rst, size=1 << 16)
    for channel in (ram.ar_channel, ram.r_channel):
        channel.set_pause_generator(axi.pauses(random.Random(rng.random()), 30))
    ram.log.setLevel("ERROR")
    data = rng.randbytes(1 << 16)
    ram.write(0, data)
    await axi.release(dut)
    wanted = {owner: random_requests(rng, 30, 1 << 16) for owner in ("fetch", "load")}
    sources = [Source(dut, f"reader_{owner}", requests, rng) for owner, requests in wanted.items()]
    beats = Beats(dut)
    expected = {owner: [int.from_bytes(data[a:a + BEAT], "little") for a in beats_of(wanted[owner])] for owner in wanted}
    await clock(dut, [*sources, beats], lambda: all(len(beats.got[o]) >= len(expected[o]) for o in expected))
    assert beats.got == expected and int(dut.reader_idle.value)


@cocotb.test()
async def writer(dut):
    """Bursts and their beats reach memory; an error response is told; idle means that all is answered."""
    await axi.start(dut)
    rng = random.Random(SEED)
    ram = AxiRamWrite(AxiWriteBus.from_prefix(dut, "writer_bus"), dut.clk, dut.rst, size=1 << 16)
    for channel in (ram.aw_channel, ram.w_channel, ram.b_channel):
        channel.set_pause_generator(axi.pauses(random.Random(rng.random()), 30))
    ram.log.setLevel("ERROR")
    await axi.release(dut)
    requests = random_requests(rng, 40, 1 << 16)
    addresses = beats_of(requests)
    values = [rng.getrandbits(8 * BEAT) for _ in addresses]
    expected = bytearray(1 << 16)
    for a, v in zip(addresses, values):
        expected[a:a + BEAT] = v.to_bytes(BEAT, "little")
    sources = Source(dut, "writer_request", requests, rng), Source(dut, "writer_data", values, rng)
    await clock(dut, sources, lambda: not any(s.items for s in sources) and int(dut.writer_idle.value))
    assert bytes(ram.read(0, 1 << 16)) == bytes(expected)


class Unit:
    """Gives a unit its semaphores at random, and notes what it gives and the error it reports."""

    def __init__(self, dut, name: str, rng):
        self.dut, self.name, self.rng = dut, name, rng
        self.taken, self.given, self.error = [], [], None

    def _get(self, port: str) -> int:
        return int(getattr(self.dut, f"{self.name}_{port}").value)

    def drive(self):
        getattr(self.dut, f"{self.name}_take_ok").value = self.ok = int(self.rng.random() < 0.6)

    def sample(self):
        if self._get("take_valid") and self.ok:
            self.taken.append(self._get("take_mask"))
        if self._get("give_valid"):
            self.given.append((self._get("give_mask"), self._get("give_pc")))
        if self._get("error_valid"):
            self.error = Cause(self._get("error_cause")), self._get("error_pc")


def instructions(rng: random.Random, machine: Machine, makers, count: int) -> list[tuple[bytes, dict]]:
    """Random instructions that the machine takes (and has executed), with random semaphores."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    found = []
    while len(found) < count:
        name, fields = makers[numbers.integers(len(makers))](numbers)
        fields |= dict(wait=int(numbers.integers(1, 1 << isa.SEM_COUNT)), signal=int(numbers.integers(1, 1 << isa.SEM_COUNT)))
        word = isa.encode(name, **fields)
        kept = {k: getattr(machine, k).copy() for k in ("act", "valid", "res", "memory")}
        try:
            machine.step(isa.BY_NAME[name], isa.decode(word)[1])
            found.append((word, fields))
        except Stop:
            for k, v in kept.items():
                getattr(machine, k)[:] = v
    return found


def payloads(found) -> list[int]:
    return [int.from_bytes(word, "little") | 64 * i << isa.INSTR_BITS for i, (word, _) in enumerate(found)]


def bits(value: int, width: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(value.to_bytes(width // 8, "little"), np.uint8), bitorder="little")


class LoadMemory:
    """Answers the load unit's requests, a beat at a time, and applies its writes to buffers."""

    def __init__(self, dut, memory, buffers: Machine, requests: Sink, rng):
        self.dut, self.memory, self.buffers, self.requests, self.rng = dut, memory, buffers, requests, rng
        self.sent = 0

    def drive(self):
        due = beats_of(self.requests.got)
        valid = self.sent < len(due) and self.rng.random() < 0.7
        self.dut.load_beat_valid.value = int(valid)
        if valid:
            at = due[self.sent]
            self.dut.load_beat_data.value = int.from_bytes(self.memory[at:at + BEAT].tobytes(), "little")
            self.sent += 1

    def sample(self):
        d, b = self.dut, self.buffers
        addr = int(d.load_addr.value)
        for s in range(CONFIG.m):
            if int(d.load_act_we.value) >> s & 1:
                b.act[addr, s], b.valid[addr, s] = bits(int(d.load_data.value), CONFIG.k), int(d.load_act_flag.value)
            if int(d.load_res_we.value) >> s & 1:
                b.res[addr, s] = bits(int(d.load_data.value), CONFIG.k)
        for n in range(CONFIG.n):
            if int(d.load_wgt_we.value) >> n & 1:
                b.wgt[addr, n] = bits(int(d.load_data.value), CONFIG.k)
            if int(d.load_prm_we.value) >> n & 1:
                value = int(d.load_prm_data_0.value)
                b.prm_b[addr, n] = np.uint64(value & (1 << 64) - 1).astype(np.int64)
                b.prm_m[addr, n] = np.uint32(value >> 64 & 0xFFFF_FFFF).astype(np.int32)


@cocotb.test()
async def load(dut):
    """LOAD, FILL and PATCH with random fields leave the buffers as the ISA simulator does, and signal in order."""
    rng = await open_unit(dut)
    memory = programs._memory(np.random.default_rng(SEED))
    machine, seen = (Machine(CONFIG, memory.copy(), 0, programs.READ, programs.WRITE) for _ in range(2))
    found = instructions(rng, machine, (programs._load, programs._load, programs._fill, programs._patch), 25)
    dut.load_read_base.value, dut.load_read_limit.value = programs.READ
    source, requests = Source(dut, "load_instr", payloads(found), rng), Sink(dut, "load_request", rng)
    unit, buffers = Unit(dut, "load", rng), LoadMemory(dut, memory, seen, requests, rng)
    await clock(dut, [source, requests, unit, buffers], lambda: len(unit.given) == len(found))
    assert unit.error is None, unit.error
    assert unit.given == [(fields["signal"], 64 * i) for i, (_, fields) in enumerate(found)]
    assert unit.taken == [fields["wait"] for _, fields in found]
    for name in ("act", "valid", "res", "wgt", "prm_b", "prm_m"):
        wrong = np.argwhere(getattr(machine, name) != getattr(seen, name))
        assert not len(wrong), f"{name} differs at {len(wrong)} places, the first {wrong[0]}"


class StoreMemory:
    """The out buffer's read port, and a memory that answers bursts late."""

    def __init__(self, dut, out, memory, requests: Sink, beats: Sink, rng):
        self.dut, self.out, self.memory, self.requests, self.beats, self.rng = dut, out, memory, requests, beats, rng
        self.address = 0
        self.done = 0

    def drive(self):
        for s in range(CONFIG.m):
            word = np.packbits(self.out[self.address, s], bitorder="little").tobytes()
            getattr(self.dut, f"store_out_data_{s}").value = int.from_bytes(word, "little")
        due = beats_of(self.requests.got)
        if self.done < min(len(self.beats.got), len(due)) and self.rng.random() < 0.6:
            at, beat = due[self.done], self.beats.got[self.done].to_bytes(BEAT, "little")
            self.memory[at:at + BEAT] = np.frombuffer(beat, np.uint8)
            self.done += 1
        self.dut.store_written.value = int(self.done == len(due))

    def sample(self):
        if int(self.dut.store_out_en.value):
            self.address = int(self.dut.store_out_addr.value)


@cocotb.test()
async def store(dut):
    """STORE with random fields leaves memory as the ISA simulator does, and signals once everything is answered."""
    rng = await open_unit(dut)
    memory = programs._memory(np.random.default_rng(SEED))
    machine = Machine(CONFIG, memory.copy(), 0, programs.READ, programs.WRITE)
    machine.out[:] = np.random.default_rng(SEED).integers(0, 2, machine.out.shape)
    found = instructions(rng, machine, (programs._store,), 12)
    dut.store_write_base.value, dut.store_write_limit.value = programs.WRITE
    source, unit = Source(dut, "store_instr", payloads(found), rng), Unit(dut, "store", rng)
    requests, beats = Sink(dut, "store_request", rng), Sink(dut, "store_beats", rng)
    port = StoreMemory(dut, machine.out, memory, requests, beats, rng)
    await clock(dut, [source, requests, beats, unit, port], lambda: len(unit.given) == len(found))
    assert unit.error is None, unit.error
    assert unit.given == [(fields["signal"], 64 * i) for i, (_, fields) in enumerate(found)]
    wrong = np.flatnonzero(memory != machine.memory)
    assert not wrong.size, f"{wrong.size} bytes differ, the first at {wrong[0]:#x}"


class FetchMemory:
    """Answers the fetch unit's requests."""

    def __init__(self, dut, memory: bytes, requests: Sink, rng):
        self.dut, self.memory, self.requests, self.rng, self.sent = dut, memory, requests, rng, 0

    def drive(self):
        due = beats_of(self.requests.got)
        valid = self.sent < len(due) and self.rng.random() < 0.8
        self.dut.fetch_beat_valid.value = int(valid)
        if valid:
            self.dut.fetch_beat_data.value = int.from_bytes(self.memory[due[self.sent]:due[self.sent] + BEAT], "little")
            self.sent += 1

    def sample(self):
        pass


@cocotb.test()
async def fetch(dut):
    """Instructions with random legal fields, or one wrong bit: each reaches its queue, or stops fetch as `isa.decode` says."""
    rng = await open_unit(dut)
    words = []
    for _ in range(40):
        instr = rng.choice([i for i in isa.INSTRS if i.queue is not Queue.FETCH])
        values = {f.name: rng.choice((*f.range, rng.randint(*f.range))) for f in instr.all_fields if f.name != "opcode"}
        words.append(isa.encode(instr.name, **values))
    words.append(isa.encode("END"))
    if rng.random() < 0.7:  # any bit of one of them
        at, bit = rng.randrange(len(words)), rng.randrange(isa.INSTR_BITS)
        words[at] = (int.from_bytes(words[at], "little") ^ 1 << bit).to_bytes(isa.INSTR_BYTES, "little")
    expected, stop = {q: [] for q in (Queue.LOAD, Queue.EXEC, Queue.STORE)}, (Cause.PROGRAM_RANGE, 64 * len(words))
    for i, word in enumerate(words):
        try:
            instr, _ = isa.decode(word)
        except ProgramError:
            stop = Cause.ILLEGAL_FIELD if word[0] in isa.BY_OPCODE else Cause.ILLEGAL_OPCODE, 64 * i
            break
        if instr.queue is Queue.FETCH:
            stop = None
            break
        expected[instr.queue].append(int.from_bytes(word, "little") | 64 * i << isa.INSTR_BITS)
    base = 0x1000
    memory = bytes(base) + b"".join(words) + bytes(4096)
    dut.fetch_base.value, dut.fetch_size.value, dut.fetch_run.value = base, 64 * len(words), 1
    requests = Sink(dut, "fetch_request", rng)
    sinks = {q: Sink(dut, f"fetch_{q.name.lower()}", rng, 60) for q in expected}
    queues = [getattr(dut, f"fetch_{q.name.lower()}_empty") for q in expected]

    def finished():
        return (int(dut.fetch_ended.value) or int(dut.fetch_error_valid.value)) and all(int(empty.value) for empty in queues)

    await clock(dut, [requests, *sinks.values(), FetchMemory(dut, memory, requests, rng)], finished, tail=100)
    error = None
    if int(dut.fetch_error_valid.value):
        error = Cause(int(dut.fetch_error_cause.value)), int(dut.fetch_error_pc.value)
    assert error == stop, f"stops with {error}, not {stop}"
    assert {q: sink.got for q, sink in sinks.items()} == expected


