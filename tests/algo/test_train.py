import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seriatim import cli
from seriatim.algo import recipes, train, trained
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.data import Images, digits
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.algo.recipes import Recipe
from seriatim.algo.train import Run, Trainer, accuracy, calibrate, fit, read_state
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


def killed_after(steps):
    """A `Run` that ends after so many steps, and saves after each."""
    left = iter(range(steps - 1, -1, -1))

    def stop(trainer):
        if next(left) == 0:
            raise Stop

    return Run(save_seconds=0, on_step=stop)


def same(a, b) -> bool:
    """Equal to the bit, through all of a state."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_times(state):
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in state["history"]]
    return {**state, "seconds": 0, "history": history}


@pytest.mark.parametrize("optimizer, quantised", [("adam", True), ("sgd", False)])
def test_resuming_anywhere_gives_the_bits_of_a_run_without_interruption(tmp_path, part, optimizer, quantised):
    """12 steps in 3 epochs, killed three times at random steps, within an epoch and at its edge."""
    recipe = replace(RECIPE, optimizer=optimizer, evaluate=2)
    make = low_bit if quantised else lambda seed=1: torch.manual_seed(seed) and build("digits")
    whole = make()
    fit(whole, part, recipe, tmp_path / "whole.pt", test=part, log=quiet)

    rng = np.random.default_rng(3)
    stops = [*rng.integers(1, 4, 2), 4]
    print("stops", stops)
    path = tmp_path / "killed.pt"
    for seed, steps in zip((1, 50, 60), stops):  # only the first start counts
        with pytest.raises(Stop):
            fit(make(seed), part, recipe, path, test=part, log=quiet, run=killed_after(steps))
        torch.rand(3), np.random.rand(3)  # whatever the next process has drawn already
    resumed = make(99)
    fit(resumed, part, recipe, path, test=part, log=quiet)
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(*(without_times(read_state(p)) for p in (tmp_path / "whole.pt", path)))
    rows = (tmp_path / "killed.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("epoch,size,loss,train,seconds")


def test_resuming_refuses_other_runs_and_damaged_files(tmp_path, part):
    path = tmp_path / "a.pt"
    fit(low_bit(), part, replace(RECIPE, sizes=((8, 1),)), path, log=quiet)
    with pytest.raises(CheckpointError, match="holds a run of.*sizes.*not of"):
        fit(low_bit(), part, RECIPE, path, log=quiet)
    state = torch.load(path)
    older = {k: v for k, v in state["identity"].items() if k not in ("hard_from", "window")}
    torch.save({**state, "identity": older}, path)
    assert len(fit(low_bit(), part, replace(RECIPE, sizes=((8, 1),)), path, log=quiet)) == 1
    torch.save({**state, "version": 1}, path)
    with pytest.raises(CheckpointError, match="version 1"):
        fit(low_bit(), part, RECIPE, path, log=quiet)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no state of a training"):
        fit(low_bit(), part, RECIPE, path, log=quiet)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="delete it"):
        fit(low_bit(), part, RECIPE, path, log=quiet)


def test_logs_and_curves_lie_beside_the_state(tmp_path, part, monkeypatch):
    run = Run(tensorboard=tmp_path / "board")
    fit(low_bit(), part, replace(RECIPE, evaluate=1), tmp_path / "net.pt", test=part, log=quiet, run=run)
    rows = list(csv.DictReader((tmp_path / "net.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and all(float(row["gap"]) <= 1 for row in rows)
    text = (tmp_path / "net.svg").read_text()
    assert text.startswith("<?xml") and text.count('id="axes_') == 4
    events = EventAccumulator(str(tmp_path / "board" / "net")).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in rows])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="tensorboard is not installed.*pip install"):
        fit(low_bit(), part, RECIPE, log=quiet, run=run)


@pytest.mark.parametrize("quantised", [True, False])
def test_bf16_learns_and_keeps_master_weights(part, quantised):
    net = low_bit() if quantised else build("digits")
    recipe = replace(RECIPE, sizes=((8, 10),), shift=0, flip=False)
    history = fit(net, part, recipe, log=quiet, run=Run(precision="bf16"))
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_precisions_and_devices_are_checked(part, monkeypatch):
    cpu = torch.device("cpu")
    for flag, expected in (False, "float32"), (True, "bf16"):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag)  # noqa: B023
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        name, note = train.precision_of("auto", cpu)
        assert name == expected and bool(note) == (not flag)
        assert bool(train.precision_of("bf16", cpu)[1]) == (not flag)
    for run, words in (
        (Run(precision="int3"), "'int3': choose auto"),
        (Run(precision="fp16"), "fp16 on a CPU"),
        (Run(device="tpu9"), "'tpu9'.*choose cpu"),
        (Run(device="cuda:77"), "cuda:77.*choose cpu"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(low_bit(), part, RECIPE, log=quiet, run=run)


def test_measuring_leaves_the_net_as_it_was(part):
    net = low_bit()
    trainer = Trainer(net, part, RECIPE, None, test=part, log=quiet, run=Run())
    net.train()
    with torch.no_grad():
        net(torch.from_numpy(part.images).float())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = trainer.measure()
    assert found.keys() == {"test", "gap"} and 0 <= found["test"] <= 1
    assert same(before, net.state_dict()) and net.training and not net.conv1.quantiser.hard
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("shift", [0, 16])
def test_calibration_is_batch_norm_on_argmax_weights_and_images_as_trained_on(part, shift):
    recipe = replace(RECIPE, shift=shift, flip=False, calibration=300)
    net = low_bit().train()
    with torch.no_grad():
        net(torch.from_numpy(part.images).float())
    set_hard(net)
    calibrate(net, part, recipe)
    integers = net.conv1.quantiser.integers().double()
    feed = part.feed(recipe, 1)
    batches = [x.double() for epoch in (3, 4) for x, _ in feed.epoch(epoch)][:5]
    accs = [torch.nn.functional.conv2d(x, integers, None, 1, 1) for x in batches]
    mean, var = (torch.stack([part(acc, (0, 2, 3)) for acc in accs]).mean(0) for part in (torch.mean, torch.var))
    assert net.conv1.bn.running_mean.double().allclose(mean, rtol=1e-5)
    assert net.conv1.bn.running_var.double().allclose(var, rtol=1e-4)
    assert net.conv1.bn.momentum == 0.1


def test_training_learns_and_the_integer_network_is_what_counts(part):
    net = low_bit()
    fit(net, part, replace(RECIPE, sizes=((8, 25),), shift=0, flip=False), log=quiet)
    share = accuracy(net, part, 8)
    print("share", share)
    assert share > 0.8


def command(*words):
    return cli.parser().parse_args(["train", *words])


SHORT = """
net = "digits"
dataset = "digits"
quantised = {quantised}
{more}
[[stages]]
sizes = [[8, 2]]
batch = 64
flip = false
"""


def test_command_trains_and_packs(tmp_path, monkeypatch, capsys):
    """A float net, two low-bit nets that share it, and the same again from where they ended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text(SHORT.format(quantised="false", more=""))
    (tmp_path / "q.toml").write_text(SHORT.format(quantised="true", more=""))
    torch.set_num_threads(1)
    common = ("--net", "digits", "--quiet", "--threads", "1")
    assert train.main(command(*common, "--quant", "float", "--recipe", "f.toml", "--out", "float.pt")) == 0
    assert "digits float:" in capsys.readouterr().out
    for w, a in (2, 4), (1, 8):
        words = (*common, "--w", str(w), "--a", str(a), "--recipe", "q.toml", "--start", "float.pt", "--out", f"w{w}/net.ckpt")
        assert train.main(command(*words)) == 0
        assert "held-out images, integer network" in capsys.readouterr().out
        network, metadata = trained.load_or_train("digits", w=w, a=a, path=tmp_path / f"w{w}/net.ckpt")
        assert metadata.test_images == 359 and metadata.command.startswith("seriatim train --net digits")
        assert metadata.accuracy > 0.3
    before = (tmp_path / "w1/net.ckpt").read_bytes()
    assert train.main(command(*words)) == 0
    assert "goes on after epoch 2" in capsys.readouterr().out and (tmp_path / "w1/net.ckpt").read_bytes() == before
    codes, labels = trained.sample_images("digits", 10)
    assert network(torch.from_numpy(codes).int()).shape == (10, 10, 1, 1) and len(labels) == 10


def test_a_float_net_starts_at_another(tmp_path, monkeypatch):
    """At the one that is given, or else at that of its recipe's own start, trained first: it learns on from there."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    (tmp_path / "first.toml").write_text(SHORT.format(quantised="false", more=""))
    (tmp_path / "on.toml").write_text(SHORT.format(quantised="false", more='start = "first.toml"'))
    common = ("--net", "digits", "--quiet", "--threads", "1", "--quant", "float")
    for words in (("first.toml", "--out", "a/start.pt"), ("first.toml", "--start", "a/start.pt", "--out", "a/on.pt"),
                  ("on.toml", "--out", "b/on.pt")):
        assert train.main(command(*common, "--recipe", *words)) == 0
    nets = [trained.load_float(Path(name), "digits", 10).state_dict() for name in ("a/start.pt", "a/on.pt", "b/on.pt")]
    assert same(nets[1], nets[2]) and not same(nets[0], nets[1])


def test_float_starts_are_checked(tmp_path, part):
    net = build("digits")
    path = trained.save_float(net, Metadata("digits", 32, 32, "float"), tmp_path / "a.pt")
    assert same(trained.load_float(path, "digits", 10).state_dict(), net.state_dict())
    with pytest.raises(CheckpointError, match="holds digits, but a float resnet20"):
        trained.load_float(path, "resnet20", 10)
    with pytest.raises(CheckpointError, match="of 7 classes"):
        trained.load_float(path, "digits", 7)
    fit(low_bit(), part, replace(RECIPE, sizes=((8, 1),)), tmp_path / "b.pt", log=quiet)
    with pytest.raises(CheckpointError, match="digits with Scheme.*float digits is asked for"):
        trained.load_float(tmp_path / "b.pt", "digits", 10)
    path.write_bytes(path.read_bytes()[:500])
    for damaged in (path, tmp_path / "none.pt"):
        with pytest.raises(CheckpointError, match="no float net"):
            trained.load_float(damaged, "digits", 10)
    net.fc.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="fc.bias.*diverged"):
        trained.save_float(net, Metadata("digits", 32, 32, "float"), path)


def test_a_recipe_of_another_kind_is_refused():
    for arguments, words in (
        (("digits", "float"), "recipe digits-slb is for a low-bit digits, not for --net digits --quant float"),
        (("resnet20", "slb"), "recipe digits-slb is for a low-bit digits"),
    ):
        with pytest.raises(ConfigError, match=words):
            trained.produce(*arguments, plan=recipes.load("digits-slb"))


def test_commands_refuse_what_does_not_exist():
    for arguments, words in (
        (("vgg", "slb", 1, 8), "'vgg'.*resnet18"),
        (("digits", "gptq", 1, 8), "'gptq'.*slb"),
        (("digits", "pact", 4, 4), "'pact' has none for weights"),
        (("digits", "logquant", 8, 4), "8 bits: choose 2 to 6"),
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
