"""The legality check that the ISA table generates, and fetch with its queues, in Amaranth's simulator."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.errors import ProgramError
from seriatim.hw.fetch import Fetch, illegal
from seriatim.isa import Queue

CONFIG = Config(2, 4, 64, 64, queue=2)


class Checks(wiring.Component):
    """Bit i: the word is illegal as instruction number i."""

    word: In(isa.INSTR_BITS)
    broken: Out(len(isa.INSTRS))

    def elaborate(self, platform):
        m = Module()
        for i, instr in enumerate(isa.INSTRS):
            m.d.comb += self.broken[i].eq(illegal(instr, self.word))
        return m


def words(instr, rng):
    """Words of one instruction: edges of the ranges, just outside them, a bit above the fields."""
    least = {f.name: max(f.range[0], 0) for f in instr.all_fields} | {"opcode": instr.opcode}
    for _ in range(40):
        values = {f.name: int(rng.choice([f.range[0], f.range[1], max(f.range[0], 0)])) for f in instr.all_fields}
        values["opcode"] = instr.opcode
        f = instr.all_fields[rng.integers(1, len(instr.all_fields))]
        if rng.random() < 0.6:
            values[f.name] += int(rng.choice([f.range[0] - 1, f.range[1] + 1])) - values[f.name]
        word = sum((values[f.name] & (1 << f.bits) - 1) << at for f, at in instr.offsets())
        yield word | (int(rng.random() < 0.2) << int(rng.integers(instr.used_bits, isa.INSTR_BITS)))
    yield sum((least[f.name] & (1 << f.bits) - 1) << at for f, at in instr.offsets())


@pytest.mark.parametrize("number", range(len(isa.INSTRS)), ids=[i.name for i in isa.INSTRS])
def test_check_agrees_with_decode(number):
    dut = Checks()
    rng = np.random.default_rng(number)
    seen = set()

    async def testbench(ctx):
        for word in words(isa.INSTRS[number], rng):
            try:
                isa.decode(word.to_bytes(isa.INSTR_BYTES, "little"))
                legal = True
            except ProgramError:
                legal = False
            seen.add(legal)
            ctx.set(dut.word, word)
            await ctx.delay(1e-9)
            assert ctx.get(dut.broken[number]) != legal, f"{word:#x}"

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == {True, False}


def run(code: bytes, size=None, error_beat=None, seed=0, latency=5, drain=1.0, cycles=4000):
    """What comes out of the queues, as (queue, pc, word), and (cause, pc) of the error, if any."""
    dut = Fetch(CONFIG)
    rng = np.random.default_rng(seed)
    base = 0x4000
    got, stopped = [], None

    async def testbench(ctx):
        nonlocal stopped
        ctx.set(dut.base, base)
        ctx.set(dut.size, len(code) if size is None else size)
        ctx.set(dut.run, 1)
        beats, coming = 0, []
        heads = {Queue.LOAD: dut.load, Queue.EXEC: dut.exec, Queue.STORE: dut.store}
        for cycle in range(cycles):
            ctx.set(dut.request.ready, bool(rng.random() < 0.7))
            if ctx.get(dut.request.valid & dut.request.ready):
                addr, count = ctx.get(dut.request.payload.addr), ctx.get(dut.request.payload.len) + 1
                assert addr % isa.INSTR_BYTES == 0 and count * CONFIG.axi_bytes == isa.INSTR_BYTES
                coming += [(cycle + latency, addr - base + i * CONFIG.axi_bytes) for i in range(count)]
            valid = bool(coming) and coming[0][0] <= cycle and rng.random() < 0.8
            ctx.set(dut.beat_valid, valid)
            if valid:
                _, at = coming.pop(0)
                ctx.set(dut.beat_data, int.from_bytes(code[at:at + CONFIG.axi_bytes], "little"))
                ctx.set(dut.beat_error, beats == error_beat)
                beats += 1
            for queue, head in heads.items():
                ctx.set(head.ready, bool(rng.random() < drain))
                if ctx.get(head.valid & head.ready):
                    got.append((queue, ctx.get(head.payload.pc), ctx.get(head.payload.word).to_bytes(isa.INSTR_BYTES, "little")))
            await ctx.tick()
            if ctx.get(dut.error_valid):
                stopped = Cause(ctx.get(dut.error_cause)), ctx.get(dut.error_pc)
                return
            if ctx.get(dut.ended & dut.load_empty & dut.exec_empty & dut.store_empty):
                return

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return got, stopped


def program(rng, count):
    names = [i.name for i in isa.INSTRS if i.queue is not Queue.FETCH]
    return [isa.encode(rng.choice(names), signal=int(rng.integers(1 << isa.SEM_COUNT))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_every_instruction_reaches_its_queue_in_order(seed):
    rng = np.random.default_rng(seed)
    code = program(rng, 30) + [isa.encode("END")] + program(rng, 3)
    got, stopped = run(b"".join(code), seed=seed, drain=(1.0, 0.1)[seed % 2])
    assert stopped is None
    for queue in (Queue.LOAD, Queue.EXEC, Queue.STORE):
        expected = [(queue, 64 * i, word) for i, word in enumerate(code[:30]) if isa.decode(word)[0].queue is queue]
        assert [item for item in got if item[0] is queue] == expected


def test_a_program_without_end():
    code = program(np.random.default_rng(1), 5)
    assert run(b"".join(code))[1] == (Cause.PROGRAM_RANGE, 5 * 64)
    assert run(b"".join([*code, isa.encode("END")]), size=5 * 64 + 63)[1] == (Cause.PROGRAM_RANGE, 5 * 64)
    assert run(b"".join(code), size=0)[1] == (Cause.PROGRAM_RANGE, 0)


def test_illegal_words_and_read_errors():
    code = program(np.random.default_rng(2), 5) + [isa.encode("END")]
    assert run(b"".join([*code[:3], bytes(64), *code[4:]]))[1] == (Cause.ILLEGAL_OPCODE, 3 * 64)
    above = code[:4] + [code[4][:63] + b"\x80"] + code[5:]
    assert run(b"".join(above))[1] == (Cause.ILLEGAL_FIELD, 4 * 64)
    assert run(b"".join(code), error_beat=2 * 8 + 3)[1] == (Cause.AXI_READ, 2 * 64)
    after = b"".join(code) + bytes(256)
    assert run(after, error_beat=6 * 8 + 1)[1] is None, "what was read ahead of END does not matter"
