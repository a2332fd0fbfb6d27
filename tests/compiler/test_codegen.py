"""Programs run on the ISA simulator give what the region means, in whatever order its queues advance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seriatim import isa
from seriatim.compiler import codegen, ir, schedule
from seriatim.compiler.codegen import generate
from seriatim.compiler.program import Compiled
from seriatim.config import Config
from seriatim.errors import ArtefactError, CompileError
from seriatim.formats import Format, Kind
from seriatim.isa import Queue, Sem
from seriatim.sim.isasim import Machine

pytestmark = pytest.mark.unit
SMALL = Config(2, 4, 32, 32)
TINY = Config(
    3,
    4,
    32,
    32,
    act_words=96,
    wgt_words=80,
    prm_words=16,
    res_words=32,
    out_words=40,
    psum_words=48,
    line_bytes=512,
    marks=4,
    queue=2,
)
WIDE = Config(4, 16, 128, 64, act_words=900, wgt_words=300, marks=0)
CONFIGS = [Config(), SMALL, TINY, WIDE]
F = Format.parse


class Net:
    """Builds a region layer by layer, with full-range random weights and params that spread the outputs over their codes."""

    def __init__(self, seed=0, w="bipolar1", a="uint8"):
        self.rng, self.w, self.a = np.random.default_rng(seed), F(w), F(a)
        self.inputs, self.layers = [], []

    def input(self, shape, fmt="uint8", layout="planes", name="x") -> ir.Tensor:
        self.inputs.append(ir.Tensor(name, shape, F(fmt), layout))
        return self.inputs[-1]

    def _out(self, name, shape, fmt):
        return ir.Tensor(f"{name}.out", shape, None if fmt == "int32" else fmt, "int32" if fmt == "int32" else "planes")

    def _requant(self, channels, spread, out, res, shift=20):
        if out == "int32":
            return ir.Requant(
                np.ones(channels, np.int32), np.zeros(channels, np.int64), 0, *ir.INT32, m2=3 if res else 0
            )
        span = out.hi - out.lo + 1
        m = np.clip(span / (4 * max(spread, 1)) * 2**shift * self.rng.uniform(0.5, 1.5, channels), 1, 2**31 - 1).astype(
            np.int32
        )
        b = (((out.hi + out.lo) / 2 + self.rng.uniform(-0.2, 0.2, channels) * span) * 2**shift).astype(np.int64)
        m2 = int(span / (1 << res.format.bits) * 2**shift / 3) or 1 if res else 0
        return ir.Requant(m, b, shift, out.lo, out.hi, m2)

    def conv(
        self,
        name,
        x,
        outputs,
        kernel=3,
        stride=1,
        padding=None,
        dilation=1,
        groups=1,
        res=None,
        out=None,
        read=None,
        w=None,
    ):
        kernel, stride, dilation = ((v, v) if isinstance(v, int) else v for v in (kernel, stride, dilation))
        padding = tuple((kernel[i % 2] - 1) * dilation[i % 2] // 2 for i in range(4)) if padding is None else padding
        fmt = F(w) if w else self.w
        codes = self.rng.integers(fmt.lo, fmt.hi + 1, (outputs, x.shape[1] // groups, *kernel))
        read, out = read or x.format, out or self.a
        shape = (x.shape[0], outputs, *ir.window_shape(x.shape, kernel, stride, padding, dilation))
        w = np.asarray(fmt.value(codes), np.int32)
        spread = np.sqrt(w[0].size) * max(1, np.abs(w).mean()) * (1 << read.bits) * 0.3
        y = self._out(name, shape, out)
        q = self._requant(outputs, spread, out, res)
        self.layers.append(ir.Conv(name, x, read, w, fmt, stride, padding, dilation, groups, q, res, y))
        return y

    def max_pool(self, name, x, kernel=3, stride=2, padding=1):
        window = (kernel,) * 2, (stride,) * 2, (padding,) * 4
        y = self._out(name, (*x.shape[:2], *ir.window_shape(x.shape, *window, (1, 1))), x.format)
        self.layers.append(ir.MaxPool(name, x, *window, (1, 1), y))
        return y

    def average(self, name, x, kernel=None, stride=1, padding=0, out=None, by_position=False):
        kernel = x.shape[2:] if kernel is None else (kernel,) * 2
        window = kernel, (stride,) * 2, (padding,) * 4
        rows, columns = ir.window_shape(x.shape, *window, (1, 1))
        count = ir.windows(np.ones((1, 1, *x.shape[2:]), int), *window, (1, 1), 0).sum(axis=(4, 5))[0]
        m = (
            np.round((1 << 20) / count).astype(np.int32)
            if by_position
            else np.full(x.shape[1], (1 << 20) // count.max(), np.int32)
        )
        out = out or self.a
        q = ir.Requant(m, np.full(m.shape, 1 << 19, np.int64), 20, out.lo, out.hi)
        y = self._out(name, (*x.shape[:2], rows, columns), out)
        self.layers.append(ir.SumPool(name, x, x.format, *window, q, y))
        return y

    def region(self, *outputs) -> ir.Region:
        return ir.Region(tuple(self.inputs), outputs or (self.layers[-1].out,), tuple(self.layers))


def resnet18(size, w="bipolar1", a="uint8", classes=1000, batch=1, width=64) -> ir.Region:
    net = Net(0, w, a)
    x = net.conv("stem", net.input((batch, 3, size, size), layout="image"), width, 7, 2)
    x = net.max_pool("maxpool", x)
    for stage in range(4):
        for block in range(2):
            stride, outputs, name = 2 if stage and not block else 1, width << stage, f"layer{stage + 1}.{block}"
            y = net.conv(f"{name}.conv1", x, outputs, 3, stride)
            res = net.conv(f"{name}.down", x, outputs, 1, stride) if stride == 2 else x
            x = net.conv(f"{name}.conv2", y, outputs, res=res)
    x = net.average("average", x)
    net.conv("fc", x, classes, 1, out="int32")
    return net.region()


def run(region: ir.Region, config: Config, seed=0, order="load") -> Compiled:
    """Compiles and runs, with memory full of rubbish where results go; compares every tensor with `ir.interpret`."""
    rng = np.random.default_rng(seed)
    inputs = {t.name: rng.integers(t.lo, t.hi + 1, t.shape) for t in region.inputs}
    compiled = generate(region, config)
    memory = compiled.memory(inputs)
    memory[slice(*compiled.write_range)] = 0xA5
    before = memory.copy()
    Machine(config, memory, 0, compiled.read_range, compiled.write_range).run(compiled.program, order)
    for name, codes in ir.interpret(region, inputs).items():
        got = compiled.read(memory, name)
        wrong = np.argwhere(got != codes)
        assert not len(wrong), f"{name}: {len(wrong)} of {codes.size} differ, first {wrong[0].tolist()}"
    before[slice(*compiled.write_range)] = memory[slice(*compiled.write_range)]
    assert np.array_equal(before, memory)
    return compiled


# Layers of any shape


@st.composite
def formats(draw, most=8, kinds=("uint", "int", "bipolar")):
    bits, kind = draw(st.integers(1, most)), draw(st.sampled_from(kinds))
    zero = draw(st.integers(0, (1 << bits) - 1)) if kind == "uint" and draw(st.booleans()) else 0
    return Format(Kind[kind.upper()], bits, zero)


@st.composite
def layers(draw):
    config = draw(st.sampled_from(CONFIGS))
    net = Net(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["conv"] * 5 + ["image"] * 2 + ["max", "sum"]))
    batch = draw(st.sampled_from([1, 1, 2, 5]))
    size = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1), (1, 4), (7, 7)]))
    stride, dilation = (draw(st.sampled_from([(1, 1), (2, 2), (1, 3)])) for _ in range(2))
    padding = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    if kind in ("max", "sum"):
        dilation = (1, 1)
    assume(min(ir.window_shape(size, kernel, stride, padding, dilation)) >= 1)
    groups = draw(st.sampled_from([1, 1, 1, 2, 3])) if kind in ("conv", "image") else 1
    channels = groups * draw(st.integers(1, 3 if kind == "image" else 150 // groups))
    fmt = draw(formats(8 if kind == "image" else 9, ("uint",) if kind == "image" else ("uint", "int", "bipolar")))
    x = net.input((batch, channels, *size), str(fmt), "image" if kind == "image" else "planes")
    if kind == "max":
        assume(np.prod(kernel) * -(-channels // config.k) * fmt.bits <= config.act_words)  # refused: see docs/limits.md
        out = ir.Tensor("out", (batch, channels, *ir.window_shape(size, kernel, stride, padding, dilation)), fmt)
        net.layers.append(ir.MaxPool("layer", x, kernel, stride, padding, dilation, out))
        return config, net.region()
    drop = max(fmt.bits - 8, 0)
    if fmt.zero % (2 << drop) == 0 and fmt.bits - drop > 1 and draw(st.booleans()):
        drop += 1
    assume(fmt.zero % (1 << drop) == 0)
    read = fmt.top(fmt.bits - drop)
    out = "int32" if draw(st.integers(0, 5)) == 0 else draw(formats(12))
    if kind == "sum":
        shape = (batch, channels, *ir.window_shape(size, kernel, stride, padding, (1, 1)))
        q = net._requant(channels, 1 << read.bits, out, None)
        if draw(st.booleans()) and out != "int32":
            m, b = (
                net.rng.permutation(np.resize(p, (channels, *shape[2:])).ravel()).reshape(channels, *shape[2:])
                for p in (q.m, q.b)
            )
            q = replace(q, m=m[:1], b=b[:1]) if draw(st.booleans()) else replace(q, m=m // 2 * 2, b=b // 4 * 4)
        net.layers.append(ir.SumPool("layer", x, read, kernel, stride, padding, q, net._out("layer", shape, out)))
        return config, net.region()
    outputs = groups * draw(st.integers(1, 80 // groups))
    shape = (batch, outputs, *ir.window_shape(size, kernel, stride, padding, dilation))
    res = net.input(shape, str(draw(formats(12))), name="res") if draw(st.integers(0, 3)) == 0 else None
    net.conv(
        "layer",
        x,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        res,
        out,
        read,
        str(draw(formats(8, ("uint", "int", "bipolar", "bipolar")))),
    )
    return config, net.region()


@given(layers(), st.integers(0, 1000))
@settings(deadline=None, max_examples=80)
def test_layers(case, order):
    config, region = case
    assume(sum(np.prod(t.shape) for t in region.tensors.values()) < 60_000)
    run(region, config, order, ("load", "store", order)[order % 3])


# What a net needs


def test_residual_block_with_a_wide_stream():
    net = Net(1, "bipolar2")
    x = net.input((1, 64, 14, 14), "uint12")
    y = net.conv("a", x, 64, read=F("uint12").top(4), out=F("uint4"))
    net.conv("b", y, 64, res=x, out=F("uint12"))
    run(net.region(), Config())


def test_whole_small_net_on_every_machine():
    for config in CONFIGS:
        net = Net(2, "bipolar1", "uint4")
        x = net.conv("stem", net.input((2, 3, 15, 13), layout="image"), 40, 5, 2)
        x = net.max_pool("max", x)
        y = net.conv("a", x, 72, stride=2)
        x = net.conv("b", y, 72, res=net.conv("down", x, 72, 1, 2, out=F("int6")), out=F("uint9"))
        x = net.conv("depthwise", x, 72, groups=72, read=F("uint4"), w="int4")
        x = net.average("edges", x, 3, 1, 1, by_position=True)
        x = net.average("average", x)
        net.conv("fc", x, 10, 1, out="int32")
        compiled = run(net.region(), config, order="store" if config is TINY else "load")
        assert [layer.mark for layer in compiled.layers] == [i if i < config.marks else None for i in range(9)]
        assert bool(compiled.notes) == (config is TINY)


def test_channels_beyond_the_last_lane_stay_zero_for_bipolar_readers():
    """A clip to codes above 0 puts rubbish into spare lanes: the reader's bipolar weights must have a zero there."""
    net = Net(3, "bipolar1")
    y = net.conv("a", net.input((1, 70, 5, 5)), 70)
    net.layers[0] = replace(net.layers[0], requant=replace(net.layers[0].requant, lo=3))
    net.conv("b", y, 16)
    net.conv("c", y, 16, 1, w="bipolar3")
    run(net.region(), Config())


def test_linear_with_many_inputs_splits_its_sums():
    net = Net(4)
    x = net.conv("fc1", net.input((3, 9000, 1, 1)), 100, 1)
    net.conv("fc2", x, 10, 1, out="int32")
    for config in (Config(), TINY):
        run(net.region(), config)


def test_batches_fill_the_rows():
    net = Net(5)
    net.conv("fc", net.input((14, 64, 1, 1)), 64, 1)
    compiled = run(net.region(), Config())
    assert compiled.layers[0].steps == 8 * 8 * 2  # 2 rows of positions, 8 column tiles, 8 planes


def test_global_average_shares_out_channel_words():
    net = Net(6)
    net.average("average", net.input((1, 448, 7, 7)))
    compiled = run(net.region(), Config())
    assert compiled.layers[0].steps == 49 * 8 * 8


@pytest.mark.parametrize("w, a", [("bipolar1", "uint8"), ("int4", "uint4"), ("int8", "uint8"), ("int2", "bipolar2")])
def test_resnet18_at_32(w, a):
    compiled = run(resnet18(32, w, a, 10), Config())
    assert len(compiled.program) < 3000 * isa.INSTR_BYTES


def test_resnet18_at_224_is_quick_and_busy():
    region = resnet18(224)
    compiled = generate(region, Config())
    assert len(compiled.program) < 4000 * isa.INSTR_BYTES
    useful = region.binary_macs / Config().peak
    assert useful / compiled.cycles > 0.9


# The artefact


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return run(resnet18(32, classes=10, width=16), Config())


def test_bytes_round_trip(compiled):
    data = compiled.to_bytes()
    assert Compiled.from_bytes(data) == compiled
    for damaged in (data[:-1], data[:100] + b"?" + data[101:], b"", b"SERIPROG"):
        with pytest.raises(ArtefactError, match="compile again"):
            Compiled.from_bytes(damaged)


def test_memory_map(compiled):
    places = sorted(compiled.places.values(), key=lambda p: p.address)
    assert all(a.address + a.size <= b.address for a, b in zip(places, places[1:]))
    first, beyond = compiled.write_range
    assert compiled.read_range == (0, beyond)
    for place in places:
        assert place.address % 64 == 0
        assert (place.role == "input") == (place.address < first)
        assert len(compiled.image) <= place.address and place.address + place.size <= beyond
    assert (
        compiled.program_address >= beyond and compiled.program_address + len(compiled.program) <= compiled.memory_bytes
    )
    assert {layer.name: layer.binary_macs for layer in compiled.layers} == {
        layer.name: layer.binary_macs for layer in resnet18(32, classes=10, width=16).layers
    }


# The check of the schedule


@pytest.fixture(scope="module")
def busy() -> Compiled:
    """A program on small buffers, so that every kind of wait is needed."""
    net = Net(10, "int4")
    x = net.input((1, 64, 12, 12))
    for i in range(3):
        x = net.conv(f"conv{i}", x, 64, res=x)
    net.conv("fc", x, 64, 1, res=x)
    net.conv("wide", x, 256, 1, w="bipolar1")
    config = Config(4, 8, 32, 32, act_words=400, wgt_words=400, prm_words=16, res_words=32, out_words=32, psum_words=128)
    return generate(net.region(), config)


@pytest.mark.parametrize("sem", Sem, ids=lambda sem: sem.name)
def test_no_semaphore_is_for_nothing(busy, sem):
    ranges = sorted((p.address, p.address + p.size) for p in busy.places.values())
    schedule.check(busy.program, busy.config, ranges)
    program = b""
    for pc in range(0, len(busy.program), isa.INSTR_BYTES):
        instr, f = isa.decode(busy.program[pc:pc + isa.INSTR_BYTES])
        program += isa.encode(instr.name, **f | {"wait": f["wait"] & ~sem, "signal": f["signal"] & ~sem})
    with pytest.raises(CompileError, match="while they are in use|before they are written"):
        schedule.check(program, busy.config, ranges)


def test_check_finds_stuck_programs_and_overflow():
    store = dict(dram=0, slices=1, ny=1, nx=1, words=1)
    with pytest.raises(CompileError, match="waits for OUT_READY, which nothing before it signals"):
        schedule.check(isa.encode("STORE", wait=Sem.OUT_READY, **store) + isa.encode("END"), Config(), [(0, 64)])
    mark = isa.encode("MARK", signal=Sem.OUT_READY)
    take = isa.encode("STORE", wait=Sem.OUT_READY, **store)
    with pytest.raises(CompileError, match="OUT_READY may be signalled past 255"):
        schedule.check((mark + take) * 256 + isa.encode("END"), Config(), [(0, 64)])
    with pytest.raises(CompileError, match="no END"):
        schedule.check(mark, Config())


def test_short_queues_and_any_order():
    net = Net(7)
    x = net.conv("a", net.input((1, 32, 9, 9)), 40)
    net.conv("b", x, 33, 1, res=None)
    region = net.region()
    for queue in (2, 64):
        for order in range(4):
            run(region, replace(SMALL, queue=queue), order=order)


# Errors


def test_errors_name_the_layer_and_the_remedy():
    def fails(match, layer_change=None, config=CONFIGS[0], **conv):
        net = Net(8)
        net.conv("conv7", net.input((1, 8, 4, 4), conv.pop("x", "uint8")), 8, **conv)
        if layer_change:
            net.layers[0] = replace(net.layers[0], **layer_change)
        with pytest.raises(CompileError, match=match):
            generate(net.region(), config)

    fails("conv7: .* 12 planes, this machine 8; make max_planes", config=Config(max_planes=8), out=F("uint12"))
    fails("conv7: .* activations log4r1 with weights .* need the shift-add engine", x="log4")
    net = Net(9)
    y = net.conv("first", net.input((1, 8, 4, 4)), 8, out="int32")
    object.__setattr__(net.layers[0], "out", y)
    with pytest.raises(CompileError, match="second: reads first.out, int32 words; requantise"):
        generate(ir.Region((y,), (y,), (_reader(y),)), Config())


def _reader(x: ir.Tensor) -> ir.Conv:
    fmt, out = F("uint8"), ir.Tensor("out", (1, 8, 4, 4), F("uint8"))
    q = ir.Requant(np.ones(8, np.int32), np.zeros(8, np.int64), 0, 0, 255)
    return ir.Conv(
        "second", x, fmt, np.ones((8, 8, 1, 1), np.int32), F("int2"), (1, 1), (0,) * 4, (1, 1), 1, q, None, out
    )


def test_queues_are_what_the_table_says():
    assert {schedule.PRODUCER[s] for s in Sem} == {Queue.LOAD, Queue.EXEC, Queue.STORE}
    assert codegen.ALIGN % isa.INSTR_BYTES == 0
