import copy

import numpy as np
import pytest
import torch

from seriatim.algo.export import agreement, export_integer, prove_network
from seriatim.algo.layers import SLB, Layer
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.errors import ConfigError
from seriatim.formats import Format
from seriatim.sim.requant import requant

SEED = 5


def low_bit(name, w, a, first_last=None, batch=4, size=None):
    print("seed", SEED)
    torch.manual_seed(SEED)
    net = quantize_(build(name), SLB(w, a, first_last))
    size = size or net.image_size
    images = torch.randint(0, 256, (batch, net.channels, size, size)).float()
    with torch.no_grad():
        net.train()(images)
        net(images)
    set_hard(net)
    return net.eval(), images


COMBINATIONS = [
    ("digits", 1, 8), ("digits", 2, 4), ("digits", 3, 1), ("digits", 4, 2), ("digits", 8, 8),
    ("resnet20", 1, 8), ("resnet20", 2, 2), ("resnet20", 5, 4), ("resnet18", 1, 8),
    ("resnet18", 1, 2),
]  # fmt: skip


@pytest.mark.parametrize("name, w, a", COMBINATIONS)
def test_integer_network_agrees_and_survives_torch_export(name, w, a):
    size = 32 if name == "resnet18" else None
    net, images = low_bit(name, w, a, batch=2, size=size)
    network = export_integer(net, size)
    codes = images.int()
    logits = network(codes)
    assert logits.dtype == torch.int32 and logits.shape == (2, 10, 1, 1)
    shares = agreement(net, network, images)
    assert set(shares) == {info.name for info in network.layers}
    assert min(shares.values()) > 0.98
    program = torch.export.export(network, (codes,))
    assert torch.equal(program.module()(codes), logits)
    named = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert all(str(target).startswith("seriatim.") for target in named)
    assert len(named) == sum(1 if info.kind == "maxpool" else 2 for info in network.layers)


@pytest.mark.parametrize("w, a", [(1, 8), (4, 4), (8, 1)])
def test_layer_table_tells_formats(w, a):
    net, _ = low_bit("resnet20", w, a)
    table = {info.name: info for info in export_integer(net).layers}
    w_format = f"bipolar{w}" if w < 5 else f"int{w}"
    assert {info.w_format for info in table.values() if info.kind == "conv"} == {w_format}
    assert table["conv1"].x_format == "uint8:uint8"
    assert table["layer1.0.conv1"].x_format == f"uint8:uint{a}"
    assert table["layer1.0.conv2"].x_format == f"uint{a}:uint{a}"
    assert table["layer2.0.conv2"].residual_format == "int8"
    assert table["layer2.1.conv2"].residual_format == "uint8"
    assert table["fc"].x_format == f"uint{a}:uint{a}" and table["fc"].out_format == "int32"
    assert table["layer3.2.conv2"].in_shape == table["layer3.2.conv2"].out_shape == (64, 8, 8)
    for info in table.values():
        if info.out_format != "int32":
            assert Format.parse(info.out_format).linear


def test_first_and_last_layer_keep_eight_bits():
    net, _ = low_bit("digits", 1, 4, first_last=8)
    table = {info.name: info.w_format for info in export_integer(net).layers}
    assert table["conv1"] == table["fc"] == "int8" and table["conv2"] == "bipolar1"


@pytest.mark.parametrize("name, w, a", [("digits", 1, 8), ("resnet20", 2, 4)])
def test_every_channel_is_proven_after_refining(name, w, a):
    net, images = low_bit(name, w, a)
    network = export_integer(net, exact=True)
    proofs = prove_network(network)
    assert sum(proof.channels for proof in proofs) == sum(len(m.b) for m in network.tails())
    assert not any(proof.failing for proof in proofs)
    assert min(agreement(net, network, images).values()) == 1


def test_eval_mode_is_the_integer_network():
    net, images = low_bit("digits", 1, 8)
    network = export_integer(net)
    assert torch.equal(net(images), network(images.int()).flatten(1) * network.unit)
    before = net(images)
    with torch.no_grad():
        net.fc.bias.add_(1.0)
    net.train()
    assert (net.eval()(images) - before - 1).abs().max() < 1e-4


def test_one_checkpoint_serves_other_image_sizes():
    net, _ = low_bit("resnet20", 1, 8)
    small, large = export_integer(net, 32), export_integer(net, 48)
    images = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.int32)
    assert large(images).shape == (1, 10, 1, 1)
    buffers = dict(large.named_buffers())
    changed = {n for n, t in small.named_buffers() if not torch.equal(t, buffers[n])}
    assert all("avgpool" in name for name in changed)


def test_the_network_is_plain_numpy_layer_by_layer():
    """Each layer again with NumPy integers and sim.requant, from the buffers and the table alone."""
    net, images = low_bit("digits", 2, 4)
    network = export_integer(net)
    codes = network.codes(images.int())
    conv3 = network.body.conv3
    x = codes["conv2"].numpy().astype(np.int64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    acc = np.einsum("nchwij,ocij->nohw", windows, conv3.w.numpy().astype(np.int64))
    found = requant(
        acc, conv3.m.numpy(), conv3.b.numpy(), conv3.shift, conv3.lo, conv3.hi,
        codes["conv1"].numpy(), conv3.m2,
    )  # fmt: skip
    assert (found == codes["conv3"].numpy()).all()


def test_refuses_float_nets_and_impossible_sizes():
    with pytest.raises(ConfigError, match="quantize_"):
        export_integer(build("digits"))
    net, _ = low_bit("digits", 1, 8)
    with pytest.raises(ConfigError, match="image size 2"):
        export_integer(net, 2)


@pytest.mark.parametrize("w, a", [(0, 8), (9, 8), (1, 0), (1, 9)])
def test_refuses_other_widths(w, a):
    with pytest.raises(ConfigError, match="1 to 8 bits"):
        SLB(w, a)
    with pytest.raises(ConfigError, match="FIRST_LAST=4"):
        SLB(1, 8, 4)


def test_quantising_twice_and_unknown_nets_are_refused():
    with pytest.raises(ConfigError, match="already"):
        quantize_(quantize_(build("digits"), SLB()), SLB())
    with pytest.raises(ConfigError, match="'resnet19'.*resnet18"):
        build("resnet19")


def test_float_and_quantised_net_share_their_definition():
    net = build("resnet20")
    twin = quantize_(copy.deepcopy(net), SLB(1, 8))
    names = [n for n, m in net.named_modules() if isinstance(m, Layer)]
    assert names == [n for n, m in twin.named_modules() if isinstance(m, Layer)]
