import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch

from seriatim.algo import train, trained
from seriatim.algo.data import Images, digits
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.algo.train import Recipe, accuracy, calibrate, fit
from seriatim.errors import CheckpointError, ConfigError, DataError

RECIPE = Recipe(((8, 3),), batch=64, rate=5e-3, optimizer="adam", weight_decay=0, calibration=256,
                shift=1)  # fmt: skip


def quiet(_):
    pass


@pytest.fixture(scope="module")
def part():
    whole = digits(True)
    return Images(whole.images[:256], whole.labels[:256], 10, "digits")


def low_bit(seed=1):
    torch.manual_seed(seed)
    return quantize_(build("digits"), SLB(1, 8))


class Stop(Exception):
    pass


def test_resuming_gives_the_bits_of_a_run_without_interruption(tmp_path, part):
    whole = low_bit()
    history = fit(whole, part, RECIPE, tmp_path / "a.pt", log=quiet)

    path = tmp_path / "b.pt"
    lines = []

    def stop_after_two(line):
        lines.append(line)
        if len(lines) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(low_bit(), part, RECIPE, path, log=stop_after_two)
    resumed = low_bit(seed=99)
    after = fit(resumed, part, RECIPE, path, log=quiet)
    assert len(after) == 3 and after[2]["loss"] == history[2]["loss"]
    other = resumed.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.state_dict().items())


def test_resuming_refuses_other_runs_and_damaged_files(tmp_path, part):
    path = tmp_path / "a.pt"
    fit(low_bit(), part, replace(RECIPE, sizes=((8, 1),)), path, log=quiet)
    with pytest.raises(CheckpointError, match="holds a run of"):
        fit(low_bit(), part, RECIPE, path, log=quiet)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="delete it"):
        fit(low_bit(), part, RECIPE, path, log=quiet)


def test_calibration_is_batch_norm_on_argmax_weights(part):
    net = low_bit().train()
    with torch.no_grad():
        net(torch.from_numpy(part.images).float())
    set_hard(net)
    calibrate(net, part, 8, count=256)
    integers = net.conv1.quantiser.integers().double()
    acc = torch.nn.functional.conv2d(torch.from_numpy(part.images).double(), integers, None, 1, 1)
    assert net.conv1.bn.running_mean.double().allclose(acc.mean((0, 2, 3)), rtol=1e-5)
    assert net.conv1.bn.running_var.double().allclose(acc.var((0, 2, 3)), rtol=1e-4)
    assert net.conv1.bn.momentum == 0.1


def test_training_learns_and_the_integer_network_is_what_counts(part):
    net = low_bit()
    fit(net, part, replace(RECIPE, sizes=((8, 25),), shift=0, flip=False), log=quiet)
    share = accuracy(net, part, 8)
    print("share", share)
    assert share > 0.8


def test_recipes_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="'rmsprop'"):
        Recipe(((8, 1),), optimizer="rmsprop")
    with pytest.raises(ConfigError, match="'steps'"):
        Recipe(((8, 1),), schedule="steps")
    with pytest.raises(ConfigError, match="never decays"):
        Recipe(((8, 1),), schedule="constant")
    with pytest.raises(ConfigError, match="0 epochs"):
        Recipe(((8, 0),))
    file = tmp_path / "recipe.json"
    file.write_text('{"sizes": [[8, 2], [16, 1]], "rate": 0.01, "tau": [0.1, 0.02]}')
    assert train.read_recipe(file) == Recipe(((8, 2), (16, 1)), rate=0.01, tau=(0.1, 0.02))
    file.write_text('{"size": 8}')
    with pytest.raises(ConfigError, match="recipe.json.*sizes"):
        train.read_recipe(file)


def test_command_trains_and_packs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = argparse.Namespace(
        net="digits", quant="slb", w=2, a=4, image=None, first_last=None, epochs=2, seed=0,
        recipe=None, out="net.ckpt",
    )  # fmt: skip
    monkeypatch.setitem(trained.recipes.FLOAT, "digits", Recipe(((8, 2),), batch=64, flip=False))
    assert train.main(args) == 0
    assert "held-out images" in capsys.readouterr().out
    network, metadata = trained.load_or_train("digits", w=2, a=4, path=tmp_path / "net.ckpt")
    assert metadata.test_images == 359 and metadata.command.startswith("seriatim train --net digits")
    codes, labels = trained.sample_images("digits", 10)
    assert network(torch.from_numpy(codes).int()).shape == (10, 10, 1, 1) and len(labels) == 10


def test_commands_refuse_what_does_not_exist():
    for arguments, words in (
        (("vgg", "slb", 1, 8), "'vgg'.*resnet18"),
        (("digits", "weq", 1, 8), "'weq'.*slb"),
        (("digits", "slb", 9, 8), "W=9"),
        (("digits", "slb", 1, 0), "A=0"),
    ):
        with pytest.raises(ConfigError, match=words):
            trained.load_or_train(*arguments)


def test_short_training_starts_at_the_shipped_net_and_is_cached(tmp_path):
    lines = []
    network, metadata = trained.load_or_train(
        "digits", w=2, a=4, folder=tmp_path, log=lines.append, progress=False
    )
    print(lines)
    assert metadata.accuracy > 0.8
    assert (tmp_path / "digits-slb-w2a4.ckpt").exists()
    again, _ = trained.load_or_train("digits", w=2, a=4, folder=tmp_path, log=lines.append)
    codes = torch.from_numpy(trained.sample_images("digits", 20)[0]).int()
    assert torch.equal(network(codes), again(codes))


@pytest.mark.parametrize("w, a", [(1, 8), (2, 8), (8, 8)])
def test_copied_start_computes_what_its_source_does(w, a):
    source = low_bit().train()
    images = torch.from_numpy(digits(False).images[:64]).float()
    with torch.no_grad():
        source(images)
    set_hard(source)
    twin = trained.copy_start(source, SLB(w, a))
    set_hard(twin)
    a_codes, b_codes = (net.eval()(images).argmax(1) for net in (source, twin))
    assert (a_codes == b_codes).float().mean() > 0.95


def test_sample_images():
    codes, labels = trained.sample_images("resnet18", 300, 32)
    assert codes.shape == (300, 3, 32, 32) and codes.dtype == np.uint8
    assert (codes[0] == codes[256]).all() and labels.max() == 9
    assert trained.sample_images("resnet18", 1)[0].shape == (1, 3, 64, 64)
    with pytest.raises(ConfigError, match="0 images"):
        trained.sample_images("resnet18", 0)


def test_a_missing_sample_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(trained, "SAMPLES", tmp_path / "none.npz")
    with pytest.raises(DataError, match="none.npz.*install"):
        trained.sample_images("resnet18", 1)
