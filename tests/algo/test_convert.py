"""A user's own modules as nets: the same outputs, whatever they are written in; what cannot be taken is named."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seriatim import cli
from seriatim.algo import checkpoint
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.convert import from_module
from seriatim.algo.export import agreement, export_integer
from seriatim.algo.graph import GraphNet
from seriatim.algo.nets import set_hard
from seriatim.algo.quantisers.model import quantize_
from seriatim.algo.quantisers.scheme import SLB, Scheme
from seriatim.algo.trained import read_samples, settle
from seriatim.errors import CheckpointError, ConfigError, ConvertError, DataError
from seriatim.sim.driver import Job

SEED = 7


def conv_bn(cin, cout, kernel, stride=1, groups=1, act=None):
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return layers + ([act] if act else [])


class BasicBlock(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, cout, 3, stride)
        self.conv2, self.bn2 = conv_bn(cout, cout, 3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(*conv_bn(cin, cout, 1, stride)) if stride > 1 or cin != cout else None

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 12, 3, padding="same"), nn.ReLU(True), nn.Identity(), nn.MaxPool2d(2, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class LeNet(nn.Module):
    """As PyTorch's MNIST example writes it: functions, ReLU behind the pool, log-softmax."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 3)
        self.drop, self.fc1, self.fc2 = nn.Dropout2d(), nn.Linear(16 * 5 * 5, 20), nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 1)).view(-1, 400)
        return F.log_softmax(self.fc2(F.dropout(self.fc1(x).relu_(), training=self.training)), dim=1)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class MobileNet(nn.Module):
    """Version 1's block, version 2's inverted residual with its linear end, ReLU6."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3, 2, act=nn.ReLU6()))
        self.v1 = nn.Sequential(*conv_bn(8, 8, 3, groups=8, act=nn.ReLU6(True)), *conv_bn(8, 8, 1, act=Call(F.relu6)))
        self.v2 = nn.Sequential(*conv_bn(8, 16, 1, act=nn.ReLU6()), *conv_bn(16, 16, 3, groups=16, act=nn.ReLU6()),
                                *conv_bn(16, 8, 1))
        self.head, self.fc = nn.Sequential(*conv_bn(8, 16, 1, act=nn.ReLU6())), nn.Linear(16, 5)

    def forward(self, x):
        x = self.v1(self.stem(x))
        x = x + self.v2(x)
        return self.fc(self.head(x).amax((2, 3)))


class PreActivation(nn.Module):
    """Batch norm and ReLU before the convolution, sums that nothing follows, a padding of its own, averages over windows."""

    def __init__(self):
        super().__init__()
        self.pad, self.conv0 = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 6, 3, 2)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, (3, 1), padding=(1, 0))
        self.bn2, self.conv2 = nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.end, self.fc, self.last = nn.BatchNorm2d(6), nn.Linear(6 * 4, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.conv0(self.pad(x))
        x = torch.add(x, self.conv1(torch.clamp(self.bn1(x), min=0)))
        x = self.conv2(self.bn2(x).relu()) + x
        x = F.avg_pool2d(self.end(x).clamp_min(0), 4)
        return self.last(self.fc(x.reshape(x.size(0), -1)))


class Sums(nn.Module):
    """Both orders of a sum, one in place, one of three, one of finished tensors; scales; the same map read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 4, k, padding=k // 2) for k in (1, 3, 5))
        self.fc = nn.Conv2d(4, 5, 8)

    def forward(self, x):
        a = self.a(x)
        y = F.relu(a + self.b(x) * 0.5)
        z = F.relu(self.c(x) - 0.25)
        z = y + z
        z += y
        return self.fc(z).flatten(1)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.body = nn.Sequential(*conv_bn(3, 4, 3, 2, act=nn.ReLU()), nn.Flatten(), nn.Linear(4 * 64, 5), nn.Softmax(1))

    def forward(self, x):
        return self.body((x - self.mean) / torch.tensor([0.2, 0.3, 0.25])[:, None, None])


class Twice(nn.Module):
    """One pool and one ReLU for all; attributes that are named like those of a net."""

    def __init__(self):
        super().__init__()
        self.task, self.nodes, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 5)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()

    def forward(self, x):
        x = self.pool(self.relu(self.nodes(self.pool(self.relu(self.task(x))))))
        return self.fc(x.flatten(1))


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5, bias=False))


MODULES = {"resnet": ResNet, "vgg": VGG, "lenet": LeNet, "mobilenet": MobileNet, "preactivation": PreActivation, "sums": Sums,
           "twice": Twice, "perceptron": perceptron}
SIZE = {"lenet": 18, "sums": 8, "resnet": 32}


def trained(make, size=16):
    """The module with weights and statistics as training leaves them: none at its initial value."""
    print("seed", SEED)
    torch.manual_seed(SEED)
    module = make()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d)]
    for part in norms:
        part.momentum = None
        if part.affine:
            part.weight.data.uniform_(-0.5, 2)
            part.bias.data.normal_()
    with torch.no_grad():
        module.train()(images(size, 8) / 255)
    return module


def images(size, count=3):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(SEED)).float()


@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_those_of_the_module_in_float_and_low_bit(name):
    size = SIZE.get(name, 16)
    module = trained(MODULES[name], size)
    before = copy.deepcopy(module.state_dict())
    net = from_module(module, size, 3, name=name)
    x = images(size)
    with torch.no_grad():
        wanted = copy.deepcopy(module).eval()(x / 255)
        found = net(x)
    found = found.log_softmax(1) if name == "lenet" else found
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.abs().max() > 0.05 and found.std(0).max() > 1e-3  # the images matter
    assert module.training and all(torch.equal(t, before[key]) for key, t in module.state_dict().items())

    again = GraphNet.from_spec(net.spec())
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), net(x))

    quantize_(again, SLB(2, 8)).train()(x)
    set_hard(again)
    again(x)
    network = export_integer(again.eval())
    assert min(agreement(again, network, x).values()) > 0.98
    assert torch.equal(again(x), network(x.int()).flatten(1) * network.unit)


def test_nodes_are_named_and_joined_as_the_module_has_them():
    nodes = {n.name: n for n in from_module(trained(ResNet, 32), 32).nodes}
    assert list(nodes) == ["conv1", "maxpool", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.downsample.0", "layer1.1.conv1",
                           "layer1.1.conv2", "avgpool", "fc"]
    assert nodes["layer1.0.conv2"].inputs == ("layer1.0.conv1", "maxpool")
    assert nodes["layer1.1.conv2"].inputs == ("layer1.1.conv1", "layer1.1.downsample.0")
    assert nodes["conv1"].options["wide"] and nodes["layer1.1.downsample.0"].options["relu"] is False
    assert nodes["conv1"].options["role"] == "stem" and nodes["fc"].options["role"] == "classifier"


def test_a_normalised_image_is_read_by_convolutions_alone():
    module = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 5, 4), nn.Flatten())
    assert from_module(module, 8).nodes[0].kind == "averagepool"
    with pytest.raises(ConvertError, match="reads the normalised image.*begin with one"):
        from_module(module, 8, mean=0.5)


@pytest.mark.parametrize("mean, std", [(0.3, 0.5), ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))])
def test_normalisation_goes_into_the_first_layer(mean, std):
    module = trained(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)), 8).eval()
    net, x = from_module(module, 8, mean=mean, std=std), images(8)
    with torch.no_grad():
        seen = (x / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(net(x), module(seen), rtol=1e-4, atol=1e-5)


def test_normalisation_within_the_module_differs_at_the_border_alone():
    module = trained(Normalised).eval()
    module.body = module.body[:-1]  # without the softmax
    net, x = from_module(module, 16), images(16)
    with torch.no_grad():
        stem = net.get_submodule("body.0")(x / 255)
        wanted = module.body[:3]((x / 255 - module.mean) / torch.tensor([0.2, 0.3, 0.25]).view(-1, 1, 1))
    torch.testing.assert_close(stem[..., 1:, 1:], wanted[..., 1:, 1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stem[..., 0, :], wanted[..., 0, :], atol=1e-2)


class Steps(nn.Module):
    """A convolution, `middle`, a linear layer."""

    def __init__(self, middle, features=4 * 64, head=True):
        super().__init__()
        self.conv, self.middle = nn.Conv2d(3, 4, 3, padding=1), middle
        self.fc = nn.Linear(features, 5) if head else nn.Identity()

    def forward(self, x):
        return self.fc(torch.flatten(self.middle(self.conv(x)), 1))


def branches(x):
    return x if x.sum() > 0 else -x


shared = nn.Conv2d(4, 4, 3, padding=1)
REFUSED = [
    (Call(torch.sigmoid), "sigmoid (aten.sigmoid.default, in middle; ", "Use ReLU"),
    (nn.LeakyReLU(), "leaky_relu", "Use ReLU"),
    (Call(lambda x: torch.cat([x, x], 1)), "cat", "Add maps of the same shape"),
    (Call(lambda x: x * x), "a product of maps", "leave the gate out"),
    (Call(lambda x: x - F.relu(x)), "a difference of maps", "add a map"),
    (Call(lambda x: x + x), "another map of the same shape", ""),
    (Call(lambda x: x.permute(0, 2, 3, 1)), "permute", "Keep maps as (N, C, H, W)"),
    (Call(lambda x: x.clamp(-1, 1)), "it clips at -1", "use ReLU"),
    (nn.GroupNorm(2, 4), "group_norm", "batch norm with running statistics"),
    (nn.BatchNorm2d(4, track_running_stats=False), "batch_norm", "running statistics"),
    (nn.ConvTranspose2d(4, 4, 3, padding=1), "conv_transpose2d", "it has convolution, linear"),
    (nn.Sequential(shared, nn.ReLU(), shared), "are also those of middle.0", "a module of its own"),
    (nn.ReflectionPad2d(1), "pad", "pads height and width with zeros"),
    (nn.AvgPool2d(2), "it averages values below 0", "put a ReLU before it"),
    (nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 1, 1, count_include_pad=False)), "the border counted too", "leave"),
    (nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(3)), "by unequal windows", "choose a size that divides it"),
    (nn.MaxPool2d(3, 2, ceil_mode=True), "with ceil_mode it gives (4, 4), windows that fit give (3, 3)", "leave ceil_mode out"),
    (Call(branches), "cannot be traced by torch.export", "must not depend on the values"),
    (Call(lambda x: x.sum((2, 3))), "sum", "Use the mean"),
    (Call(lambda x: x.softmax(1)), "a softmax is left out behind the logits alone", "do without"),
    (Call(lambda x: F.dropout(x, 0.5, training=True)), "dropout", "leave it to the host"),
]


@pytest.mark.parametrize("middle, what, remedy", REFUSED)
def test_what_no_net_has_is_named_with_rule_and_remedy(middle, what, remedy):
    with torch.no_grad():
        try:
            features = torch.flatten(middle(torch.zeros(2, 4, 8, 8)), 1).shape[1]
        except RuntimeError:
            features = 4 * 64
    with pytest.raises(ConvertError) as error:
        from_module(Steps(middle, features), 8)
    assert what in str(error.value) and remedy in str(error.value)


def test_an_error_shows_the_line_of_the_users_code():
    with pytest.raises(ConvertError, match=r'test_convert.py", line \d+, in forward: return self.function\(x\)'):
        from_module(Steps(Call(torch.sigmoid)), 8)


@pytest.mark.parametrize("module, what", [
    (Steps(nn.ReLU(), head=False), "ends in"),
    (nn.Sequential(nn.Conv2d(3, 5, 8), nn.ReLU(), nn.Flatten()), "with ReLU"),
    (nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten(0)), "mixes the images of a batch"),
])
def test_a_net_ends_in_logits(module, what):
    with pytest.raises(ConvertError, match=what):
        from_module(module, 8)


def test_arguments_are_checked():
    module = nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten())
    for given, what in (({"mean": (1, 2)}, "one for each of the 3 channels"), ({"std": 0.0}, "a deviation is above 0")):
        with pytest.raises(ConvertError, match=what):
            from_module(module, 8, **given)
    with pytest.raises(ConvertError, match="cannot be traced"):
        from_module(module, 8, channels=1)


def test_a_wrong_conversion_is_found_at_its_layer(monkeypatch):
    from seriatim.algo import convert

    load = convert._load

    def wrong(layer, step):
        load(layer, step)
        if step.name == "layer1.0.conv2":
            layer.weight *= 1.01

    monkeypatch.setattr(convert, "_load", wrong)
    with pytest.raises(ConvertError, match=r"^layer1.0.conv2: its outputs differ from the module's by"):
        from_module(trained(ResNet, 32), 32)


def test_malformed_architectures_are_refused():
    spec = from_module(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), 8).spec()
    for change, what in (({"nodes": [["x", "tea", ["image"], {}]]}, "node x of kind tea"), ({"nodes": [["x"]]}, "malformed"),
                         ({"nodes": [["x", "layer", ["y"], {}]]}, "node x reads y"),
                         ({"nodes": [["x", "layer", ["image"], {"tea": 1}]]}, "with {'tea': 1}")):
        with pytest.raises(ConfigError, match=what):
            GraphNet.from_spec(spec | change)


def save(tmp_path, **known):
    """A checkpoint of a converted net, W2A4, and what it gives for images."""
    net = quantize_(from_module(trained(VGG), 16, name="own"), SLB(2, 4))
    x = images(16)
    net.train()(x)
    set_hard(net)
    path = checkpoint.save(net, Metadata("own", 2, 4, classes=5, **known), tmp_path / "own.ckpt")
    return path, x, net.eval()(x)


@pytest.mark.parametrize("quant, w, a", [("weq", 3, 4), ("dorefa", 2, 2)])
def test_any_quantiser_takes_a_converted_net(tmp_path, quant, w, a):
    net, x = quantize_(from_module(trained(LeNet, 18), 18), Scheme(quant, w, quant, a)), images(18)
    net.train()(x)
    path = checkpoint.save(net.eval(), Metadata("lenet", w, a, quant, classes=5), tmp_path / "x.ckpt")
    again, _ = checkpoint.load(path, "lenet")
    assert torch.equal(again(x), net(x)) and net(x).std(0).max() > 0


def command(*argv):
    return cli.parser().parse_args(["sim", "--images", "2", *map(str, argv)])


def test_a_checkpoint_holds_the_architecture(tmp_path):
    path, x, wanted = save(tmp_path)
    net, metadata = checkpoint.load(path, "own")
    assert torch.equal(net(x), wanted) and net.image_size == 16
    args = command("--checkpoint", path)
    settle(args)
    assert (args.net, args.quant, args.w, args.a, args.first_last) == ("own", "slb", 2, 4, None)
    with pytest.raises(ConfigError, match=r"\('slb', 2, 4, None\), but \('slb', 1, 4, None\) were asked for"):
        Job.load(command("--checkpoint", path, "--w", 1))
    with pytest.raises(CheckpointError, match="a checkpoint of own, not of digits"):
        Job.load(command("--checkpoint", path, "--net", "digits"))


def test_a_command_runs_the_users_images(tmp_path):
    path, x, wanted = save(tmp_path, dataset="mine")
    with pytest.raises(ConfigError, match="no images of its data set 'mine' are at hand; give some by --samples FILE"):
        Job.load(command("--checkpoint", path))
    np.savez(tmp_path / "x.npz", images=x.byte().numpy(), labels=np.arange(3))
    job = Job.load(command("--checkpoint", path, "--samples", tmp_path / "x.npz"))
    assert np.array_equal(job.images, x[:2].byte().numpy()) and job.targets.tolist() == [0, 1]
    for bad in ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(2)}, {"labels": np.zeros(2)}):
        np.savez(tmp_path / "x.npz", **bad)
        with pytest.raises(DataError, match="samples are a NumPy archive"):
            read_samples(tmp_path / "x.npz")
