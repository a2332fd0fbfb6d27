"""What the accelerator takes, what it leaves, why, and that both together give torch's integers."""

import numpy as np
import pytest
import torch
from torch import nn

from seriatim.compiler import importer, ir, legal, patterns
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.errors import CompileError
from seriatim.formats import Format

pytestmark = pytest.mark.unit


def compiled(nets, net, *inputs, accept=None):
    """Compile `net`, check that it gives torch's integers, and return its artefact."""
    net(*inputs)  # fits the layers
    want = net(*inputs)
    artefact = compile_network(net, inputs, Config(), nets.generate, accept=accept)
    got = artefact.run(inputs, executor=nets.execute)
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
        assert len(torch.unique(other)) > 4
        np.testing.assert_array_equal(one, other.numpy())
    return artefact


def names(region):
    return [layer.name for layer in region.layers]


def reasons(artefact):
    return {row["name"]: row["reason"] for row in artefact.cpu_fallback}


def test_a_residual_net_is_one_region(rng, nets):
    artefact = compiled(nets, nets.ResNet(rng, image=32, widths=(8, 16)), nets.codes(rng, (1, 3, 32, 32)))
    assert artefact.cpu_fallback == []
    (region,) = artefact.regions
    assert names(region)[:4] == ["stem", "pool", "layer1.0.conv1", "layer1.0.conv2"]
    (image,), (logits,) = region.inputs, region.outputs
    assert (image.name, image.layout, str(image.format)) == ("x", "image", "uint8")
    assert (logits.name, logits.layout, logits.format) == ("fc", "int32", None)
    assert str(region.tensors["layer1.0.conv1"].format) == "uint4" and str(region.tensors["layer1.0.conv2"].format) == "uint8"
    stem, conv2 = region.layers[0], region.layers[3]
    assert isinstance(conv2, ir.Conv) and conv2.res is region.tensors["pool"] and conv2.requant.m2 == 1 << 19
    assert stem.k == 3 * 49 and stem.macs == 8 * 16 * 16 * 147 and stem.binary_macs == stem.macs * 4 * 8


@pytest.mark.parametrize("image", [64, 224])
def test_resnet18_is_one_region_with_nothing_on_the_cpu(rng, nets, image):
    mod = importer.import_module(nets.ResNet(rng, image=image), [np.zeros((1, 3, image, image), np.int32)])
    mod, facts = patterns.partition(mod)
    assert patterns.cpu_fallback(mod, facts) == []
    assert len([1 for _, value in patterns.bindings_of(mod["main"])]) == 1


def test_tensors_between_a_region_and_the_cpu_are_planes_of_the_formats_their_readers_declare(rng, nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.pool = nets.Block(rng, "b", 8, 8), nets.MaxPool("pool", "uint8")

        def forward(self, x):
            y = self.block(x)
            return self.pool(torch.cat([y, x], 1)), y

    artefact = compiled(nets, Net(), nets.codes(rng, (2, 8, 8, 8)))
    assert [names(region) for region in artefact.regions] == [["b.conv1", "b.conv2"], ["pool"]]
    assert [row["op"] for row in artefact.cpu_fallback] == ["relax.concat"]
    assert {tensor.layout for region in artefact.regions for tensor in (*region.inputs, *region.outputs)} == {"planes"}


def test_a_region_has_several_inputs_and_outputs(rng, nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nets.Conv(rng, "a", 3, 8, out="uint6")
            self.b = nets.Conv(rng, "b", 5, 8, x="int4", w="bipolar1", out="int6", res="uint6")
            self.c = nets.Conv(rng, "c", 8, 4, x="int6:int3", out="bipolar3")

        def forward(self, x, y):
            a = self.a(x)
            b = self.b(y, a)
            return self.c(b), a, b

    artefact = compiled(nets, Net(), nets.codes(rng, (1, 3, 7, 6)), nets.codes(rng, (1, 5, 7, 6), "int4"))
    assert artefact.cpu_fallback == []
    (region,) = artefact.regions
    assert {(tensor.name, str(tensor.format)) for tensor in region.outputs} == {("c", "uint3"), ("a", "uint6"), ("b", "int6")}
    assert {(tensor.name, tensor.layout) for tensor in region.inputs} == {("x", "image"), ("y", "planes")}


def test_a_refused_convolution_runs_on_the_cpu_between_two_regions(rng, nets):
    net = nn.Sequential(
        nets.Conv(rng, "a", 4, 8, out="uint9"),
        nets.Conv(rng, "wide", 8, 8, x="uint9", out="uint4"),
        nets.Conv(rng, "b", 8, 4, x="uint4", out="uint8"),
        nets.MaxPool("c", "uint8"),
    )
    artefact = compiled(nets, net, nets.codes(rng, (1, 4, 9, 9)))
    assert [names(region) for region in artefact.regions] == [["a"], ["b", "c"]]
    assert artefact.cpu_fallback == [{
        "name": "wide", "op": "seriatim.qconv2d",
        "reason": "input read as uint9: the array takes at most 8 bits; read fewer top planes",
    }]
    assert [tensor.name for tensor in artefact.regions[1].inputs] == ["lv3"]


def test_the_tilers_refusals_count_too(rng, nets):
    def accept(layer):
        return "no tile holds it" if layer.name == "b" else None

    net = nn.Sequential(nets.Conv(rng, "a", 4, 8), nets.Conv(rng, "b", 8, 8), nets.Conv(rng, "c", 8, 8))
    artefact = compiled(nets, net, nets.codes(rng, (1, 4, 6, 6)), accept=accept)
    assert reasons(artefact) == {"b": "no tile holds it"}
    assert [names(region) for region in artefact.regions] == [["a"], ["c"]]


class RandomGraph(nn.Module):
    """A random graph of layers and concatenations on tensors of four channels."""

    def __init__(self, rng, nets, nodes):
        super().__init__()
        self.steps, self.layers, formats = [], nn.ModuleList(), ["uint8"]
        for index in range(nodes):
            name, (source, other) = f"n{index}", rng.integers(0, len(formats), 2)
            stored, out = formats[source], str(rng.choice(["uint8", "uint5", "int6", "bipolar2", "uint12"]))
            bits = Format.parse(stored).bits
            kind = rng.choice(["conv", "conv", "residual", "residual", "pool", "average", "cat"])
            read = f"{stored}:{Format.parse(stored).top(int(rng.integers(1, min(bits, 8) + 1)))}"
            weights = str(rng.choice(["int4", "bipolar1", "int2"]))
            if kind in ("conv", "residual"):
                res = formats[other] if kind == "residual" else None
                self.layers.append(nets.Conv(rng, name, 4, 4, int(rng.choice([1, 3])), x=read, w=weights, out=out, res=res))
            elif kind == "pool":
                self.layers.append(nets.MaxPool(name, stored, 3, 1, 1))
                out = stored
            elif kind == "average":
                out = "uint8"
                self.layers.append(nets.AveragePool(name, 4, 3, stored, out, stride=1, padding=1))
            else:
                self.layers.append(nets.Conv(rng, name, 8, 4, 1, x=stored, w=weights, out=out))
                other = int(rng.choice([i for i, fmt in enumerate(formats) if fmt == stored]))
            self.steps.append((kind, int(source), int(other)))
            formats.append(out)
        self.outputs = sorted({nodes, *rng.integers(1, nodes + 1, 2).tolist()})

    def forward(self, x):
        tensors = [x]
        for (kind, source, other), layer in zip(self.steps, self.layers):
            inputs = [tensors[source]]
            if kind == "residual":
                inputs.append(tensors[other])
            elif kind == "cat":
                inputs = [torch.cat([tensors[source], tensors[other]], 1)]
            tensors.append(layer(*inputs))
        return tuple(tensors[index] for index in self.outputs)


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_with_random_refusals_stay_exact(nets, seed):
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    net, x = RandomGraph(rng, nets, 12), nets.codes(rng, (2, 4, 6, 5))
    refused = {f"n{index}" for index in rng.integers(0, 12, 3)}
    net(x)
    want = [tensor.numpy() for tensor in net(x)]
    artefact = compile_network(net, x, Config(), nets.generate, accept=lambda layer: "drawn" if layer.name in refused else None)
    got = artefact.run(x, executor=nets.execute)
    got = got if isinstance(got, tuple) else (got,)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
    ran = {layer.name for region in artefact.regions for layer in region.layers}
    left = {row["name"] for row in artefact.cpu_fallback}
    assert not ran & (left | refused) and ran


def test_a_layer_that_has_no_program_of_its_own_stays_on_the_cpu(rng, nets):
    def generate(region, config):
        for layer in region.layers:
            if layer.k > 36:
                raise CompileError(f"{layer.name}: {layer.k} weights fit no tile")
        return nets.generate(region)

    net = nn.Sequential(nets.Conv(rng, "a", 4, 8), nets.Conv(rng, "b", 8, 4), nets.Conv(rng, "c", 4, 8))
    artefact = compile_network(net, nets.codes(rng, (1, 4, 6, 6)), Config(), generate)
    assert reasons(artefact) == {"b": "72 weights fit no tile"}
    assert [names(region) for region in artefact.regions] == [["a"], ["c"]]


def test_accumulators_with_a_second_reader_stay_on_the_cpu(rng, nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nets.Conv(rng, "a", 4, 4), nets.Conv(rng, "b", 4, 4)
            self.sum = nets.Conv(rng, "sum", 4, 4)

        def forward(self, x):
            q, conv = nets.Q, self.sum
            acc = q.qconv2d(x, conv.w, [1, 1], [1] * 4, [1, 1], 1, "uint8", "int4")
            y = q.requant(acc, conv.m, conv.b, 4, 0, 255, "sum")
            return self.a(x), q.requant(acc, conv.m, conv.b, 6, 0, 255, "twice"), self.b(y), acc

    artefact = compiled(nets, Net(), nets.codes(rng, (1, 4, 6, 6)))
    assert reasons(artefact).keys() == {"sum", "twice"}
    assert "read by something else" in reasons(artefact)["sum"]
    assert sorted(sum(map(names, artefact.regions), [])) == ["a", "b"]


def test_accumulators_that_leave_the_network_stay_on_the_cpu(rng, nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nets.Conv(rng, "a", 4, 4)

        def forward(self, x):
            acc = nets.Q.qconv2d(x, self.a.w, [1, 1], [1] * 4, [1, 1], 1, "uint8", "int4")
            return nets.Q.requant(acc, self.a.m, self.a.b, 4, 0, 255, "a"), acc

    artefact = compiled(nets, Net(), nets.codes(rng, (1, 4, 6, 6)))
    assert artefact.regions == () and "read by something else" in reasons(artefact)["a"]


def test_readers_that_disagree_are_refused(rng, nets):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nets.Conv(rng, "a", 4, 4, out="uint4")
            self.b, self.c = nets.Conv(rng, "b", 4, 4, x="uint4"), nets.Conv(rng, "c", 4, 4, x="uint5")

        def forward(self, x):
            a = self.a(x)
            return self.b(a), self.c(a)

    artefact = compiled(nets, Net(), nets.codes(rng, (1, 4, 6, 6)))
    assert artefact.regions == ()
    (reason,) = set(reasons(artefact).values())
    assert reason == "one tensor is declared uint4 and uint5: its readers must declare one stored format"


def test_average_pools_with_position_classes(rng, nets):
    ones = np.pad(np.ones((6, 6)), 1)
    counts = sum(ones[y : y + 6, x : x + 6] for y in range(3) for x in range(3))
    net = nn.Sequential(
        nets.AveragePool("edge", 5, 3, "uint8", "uint8", stride=1, padding=1, counts=counts),
        nets.AveragePool("all", 5, 6, "uint8:uint6", "uint8"),
    )
    artefact = compiled(nets, net, nets.codes(rng, (1, 5, 6, 6)))
    edge, whole = artefact.regions[0].layers
    assert edge.requant.m.shape == (1, 6, 6) and whole.requant.m.shape == (5,) and artefact.cpu_fallback == []


# The checks themselves, on layers


def conv(**change):
    """A convolution of four channels that the accelerator takes, changed."""
    given = dict(x="uint8", read=None, w="int4", out="uint8", res=None, value=None, m=1 << 20, b=0, shift=24, lo=0, hi=255, m2=0,
                 padding=(1, 1, 1, 1), channels=4) | change
    x, w_format = Format.parse(given["x"]), Format.parse(given["w"])
    w = np.full((2, given["channels"], 3, 3), w_format.max_value if given["value"] is None else given["value"], np.int32)
    out = ir.Tensor("out", (1, 2, 8, 8), None, "int32")
    if given["out"]:
        out = ir.Tensor("out", (1, 2, 8, 8), Format.parse(given["out"]))
    res = ir.Tensor("res", (1, 2, 8, 8), Format.parse(given["res"])) if given["res"] else None
    m, b = np.full(2, given["m"], np.int32), np.full(2, given["b"], np.int64)
    edge = 10 - 2 * given["padding"][0]
    source = ir.Tensor("x", (1, given["channels"], edge, edge), x)
    requant = ir.Requant(m, b, given["shift"], given["lo"], given["hi"], given["m2"])
    return ir.Conv(
        "c", source, Format.parse(given["read"] or given["x"]), w, w_format, (1, 1), given["padding"], (1, 1), 1, requant, res,
        out,
    )


@pytest.mark.parametrize("change", [
    {}, dict(x="uint16", read="uint8"), dict(w="bipolar8"), dict(x="bipolar2", w="bipolar1"),
    dict(out=None, lo=-(2**31), hi=2**31 - 1), dict(out="int8", lo=-128, hi=127),
    dict(res="int16", m2=-(2**31)), dict(m=-(2**31), shift=0), dict(channels=7000, value=-4), dict(b=2**62),
], ids=str)
def test_legal_layers(change):
    assert legal.refusal(conv(**change)) is None


@pytest.mark.parametrize("change, reason", [
    (dict(x="uint9", read="uint9"), "at most 8 bits"),
    (dict(w="int9", value=3), "at most 8 bits"),
    (dict(x="log4s", read="log4s"), "activations in log codes have no sign"),
    (dict(x="codebook1[0,5]", read="codebook1[0,5]"), "no engine takes activations of a codebook"),
    (dict(w="log4r2", value=1), "weight 1 is no value of log4r2"),
    (dict(out="log3", hi=7), "output in format log3r1 without thresholds"),
    (dict(res="log3", m2=1), "residual in format log3"),
    (dict(value=8), "weight 8 is no value of int4: it holds -8 to 7"),
    (dict(w="bipolar2", value=2), "weight 2 is no value of bipolar2: it holds odd values"),
    (dict(w="int8", x="uint8", channels=8000, value=-128), "beyond 32 bits"),
    (dict(shift=64), "shift 64"),
    (dict(m2=1 << 31), "residual multiplier 2147483648"),
    (dict(lo=5, hi=3), "lo is above hi"),
    (dict(hi=256), "clip to 0..256: its reader takes uint8"),
    (dict(lo=-1), "clip to -1..255"),
    (dict(b=2**63 - 1), "beyond 64 bits"),
    (dict(b=-(2**63), m=-1), "beyond 64 bits"),
    (dict(b=2**63 - 2**48, m=0, res="uint16", m2=2**31 - 1), None),
    (dict(b=2**63 - 2**46, m=0, res="uint16", m2=2**31 - 1), "beyond 64 bits"),
], ids=str)
def test_refusals(change, reason):
    got = legal.refusal(conv(**change))
    assert got is None if reason is None else reason in (got or "")


def test_accumulators_are_bounded_by_the_weights_themselves(rng):
    layer = conv(x="int3", channels=3, padding=(0, 0, 0, 0))
    w = rng.integers(-8, 8, layer.w.shape)
    layer.w[:] = w
    low, high = legal.acc_range(layer)
    edge = [np.where(w > 0, -4, 3), np.where(w > 0, 3, -4)]
    np.testing.assert_array_equal(low, (w * edge[0]).sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(high, (w * edge[1]).sum(axis=(1, 2, 3)))


def test_padding_adds_the_value_zero_to_what_an_accumulator_may_see():
    inside, outside = conv(x="bipolar1", padding=(0,) * 4, value=-1), conv(x="uint8z255", value=1)
    assert [int(bound[0]) for bound in legal.acc_range(inside)] == [-36, 36]
    assert [int(bound[0]) for bound in legal.acc_range(outside)] == [-36 * 255, 0]


def test_offsets_that_differ_by_position_are_for_sums_only():
    layer = conv()
    requant = ir.Requant(np.ones((2, 8, 8), np.int32), np.zeros((2, 8, 8), np.int64), 8, 0, 255)
    changed = ir.Conv(**{name: getattr(layer, name) for name in layer.__dataclass_fields__} | {"requant": requant})
    assert "differs by position" in legal.refusal(changed)


@pytest.mark.parametrize("lo, hi, wanted", [(0, 255, "uint8"), (0, 0, "uint1"), (3, 4, "uint3"), (-8, 7, "int4"), (-1, 7, "int4"),
                                            (-9, 7, "int5"), (0, 65535, "uint16"), (0, 65536, None), (-(2**31), 2**31 - 1, None)])
def test_an_output_that_nobody_reads_takes_its_narrowest_format(lo, hi, wanted):
    assert patterns.smallest_format(lo, hi) == (Format.parse(wanted) if wanted else None)


def test_errors_inside_a_pass_come_out_as_themselves(rng, nets):
    def accept(layer):
        raise CompileError("from inside a check")

    with pytest.raises(CompileError, match="^from inside a check"):
        compiled(nets, nets.Conv(rng, "a", 4, 4), nets.codes(rng, (1, 4, 6, 6)), accept=accept)


class Dropped(torch.nn.Module):
    """A pointwise convolution whose sums leave out their lowest bits."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.register_buffer("w", torch.ones(8, 8, 1, 1, dtype=torch.int32))
        self.register_buffer("m", torch.ones(8, dtype=torch.int32))
        self.register_buffer("b", torch.zeros(8, dtype=torch.int64))

    def forward(self, x):
        acc = torch.ops.seriatim.qconv2d(x, self.w, [1, 1], [0] * 4, [1, 1], 1, "uint4", "int2", self.drop)
        return torch.ops.seriatim.requant(acc, self.m, self.b, 2, 0, 15, "c")


def test_sums_of_linear_formats_are_kept_whole():
    example = [np.zeros((1, 8, 4, 4), np.int32)]
    assert not patterns.cpu_fallback(*patterns.partition(importer.import_module(Dropped(0), example)))
    (row,) = patterns.cpu_fallback(*patterns.partition(importer.import_module(Dropped(2), example)))
    assert row["name"] == "c" and "lowest 2 bits" in row["reason"]
