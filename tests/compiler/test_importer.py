"""Networks come out of torch.export and TVM with the integers that torch computes."""

import numpy as np
import pytest
import torch
from torch import nn

from seriatim.compiler import importer, ops, patterns, reference
from seriatim.errors import CompileError

pytestmark = pytest.mark.unit


def test_the_cpu_reference_equals_torch(rng, nets):
    net, x = nets.ResNet(rng, image=32, widths=(16, 24)), nets.codes(rng, (2, 3, 32, 32))
    want = net(x).numpy()
    assert len(np.unique(want)) > 10
    np.testing.assert_array_equal(reference.run_cpu(net, x), want)


def test_every_layer_can_be_seen(rng, nets):
    net, x = nets.ResNet(rng, image=32, widths=(8, 16), blocks=1), nets.codes(rng, (1, 3, 32, 32))
    net(x)
    seen, leaves = {}, [module for module in net.modules() if not list(module.children())]

    def keep(module, _, out):
        seen[getattr(module, "name", "pool")] = out.numpy()

    hooks = [module.register_forward_hook(keep) for module in leaves]
    net(x)
    for hook in hooks:
        hook.remove()
    layers = reference.run_cpu_layers(net, x)
    assert list(layers) == [
        "stem", "pool", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.down", "layer2.0.conv2", "average", "fc",
    ]
    assert layers.keys() == seen.keys()
    for name, codes in layers.items():
        np.testing.assert_array_equal(codes, seen[name], err_msg=name)


def test_attributes_and_constants_arrive_as_they_are(rng, nets):
    conv = nets.Conv(rng, "c", 4, 6, 3, 2, padding=[0, 1, 2, 1], x="uint8z16:uint4z1", w="bipolar2", groups=2)
    conv.b[0] = 2**40 + 1
    mod = importer.import_module(conv, [nets.codes(rng, (1, 4, 9, 9))])
    calls = {ops.op_name(value): value for _, value in patterns.bindings_of(mod["main"])}
    attrs = ops.attrs_of(calls["seriatim.qconv2d"])
    assert attrs == dict(
        stride=(2, 2), padding=(0, 1, 2, 1), dilation=(1, 1), groups=2, x_format="uint8z16:uint4z1", w_format="bipolar2", drop=0,
    )
    np.testing.assert_array_equal(calls["seriatim.qconv2d"].args[1].value.numpy(), conv.w.numpy())
    assert int(calls["seriatim.requant"].args[2].value.numpy()[0]) == 2**40 + 1


class Plain(nn.Module):
    """An operator of torch's own on integers."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("w", torch.ones(3, 3, dtype=torch.int32))

    def forward(self, x):
        return self.function(x, self.w)


@pytest.mark.parametrize("function, reason", [
    (lambda x, w: torch.nn.functional.conv2d(x, w[None, None]), "float32"),
    (lambda x, w: torch.nn.functional.linear(x, w), "float32"),
    (lambda x, w: x @ w, "float32"),
    (lambda x, w: x << 1, "lshift"),
])
def test_what_tvm_would_import_wrongly_is_refused(function, reason):
    with pytest.raises(CompileError, match=reason):
        importer.import_module(Plain(function), [np.zeros((1, 1, 3, 3), np.int32)])


def test_two_layers_of_one_name_are_refused(rng, nets):
    net = nn.Sequential(nets.Conv(rng, "same", 4, 4), nets.Conv(rng, "same", 4, 4))
    with pytest.raises(CompileError, match="two layers named 'same'"):
        patterns.partition(importer.import_module(net, [nets.codes(rng, (1, 4, 4, 4))]))
