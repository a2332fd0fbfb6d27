"""Super-resolution: scaling against its closed forms and Pillow, metrics, data, and the net from training to the machine."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seriatim import cli
from seriatim.algo import checkpoint, data, superres
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.data import Images
from seriatim.algo.export import agreement, export_integer, prove_network
from seriatim.algo.layers import SLB
from seriatim.algo.nets import NETS, build, quantize_, set_hard, size_of
from seriatim.algo.nets.vdsr import VDSR
from seriatim.algo.recipes import Recipe
from seriatim.algo.superres import Pictures, SuperResolution, bicubic, luma, modcrop, pairs_of, psnr, shave, ssim
from seriatim.algo.train import accuracy, fit
from seriatim.compiler.codegen import generate
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.errors import ConfigError, DataError
from seriatim.sim.driver import opener
from seriatim.sim.executor import Executor

SEED = 7
RATIOS = [Fraction(2), Fraction(3), Fraction(4), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(3, 2), Fraction(5, 6)]
SET5 = Path(os.environ.get("SERIATIM_SR_DATA", "none")) / "CSet5"


def noise(*shape):
    print("seed", SEED)
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def test_luma_is_that_of_matlab():
    """Black, white, and the primaries of rgb2ycbcr's documented matrix; grey images are their own luma."""
    pixels = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(pixels).tolist() == [[16, 235, 81, 145, 41]]
    exact = noise(20, 20, 3) @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    assert np.abs(luma(noise(20, 20, 3)) - exact).max() <= 0.5 + 1e-9
    assert (luma(pixels[..., 0]) == pixels[..., 0]).all()


@pytest.mark.parametrize("scale", RATIOS, ids=str)
def test_bicubic_weights_sum_to_one_and_mirror(scale):
    index, weight = superres.taps(24, scale)
    assert len(index) == -(-24 * scale // 1) and index.min() == 0 and index.max() == 23
    assert np.abs(weight.sum(1) - 1).max() < 1e-15
    for image in (noise(24, 24).astype(float), np.full((24, 24), 77.0)):
        found = bicubic(image, scale)
        assert np.allclose(bicubic(image[::-1, ::-1], scale), found[::-1, ::-1], atol=1e-9)
        assert image.std() or np.allclose(found, 77.0, atol=1e-12)


def test_bicubic_closed_forms():
    """Scale 1 is the identity; a line is kept away from the borders; twice the size has Keys' weights at a quarter."""
    image = noise(12, 15).astype(float)
    assert np.abs(bicubic(image, 1) - image).max() == 0
    line = np.tile(np.arange(40.0), (40, 1))
    for scale in (2, 3):
        place = (np.arange(40 * scale) + 0.5) / scale - 0.5
        assert np.abs(bicubic(line, scale) - place)[:, 4 * scale : -4 * scale].max() < 1e-12
        down = bicubic(line, Fraction(1, scale))
        assert np.abs(down - (np.arange(down.shape[1]) * scale + (scale - 1) / 2))[:, 4:-4].max() < 1e-12
    impulse = np.zeros((1, 9))
    impulse[0, 4] = 1
    wanted = [-0.0234375, -0.0703125, 0.2265625, 0.8671875, 0.8671875, 0.2265625, -0.0703125, -0.0234375]
    assert bicubic(impulse, 2)[0, 5:13].tolist() == wanted


@pytest.mark.parametrize("scale", [2, 3, 4, Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)], ids=str)
def test_bicubic_is_pillows_away_from_the_borders(scale):
    """Pillow has the same kernel and antialiasing, but renormalises at borders where MATLAB mirrors."""
    image = noise(48, 60).astype(np.float32)
    found = bicubic(image, scale)
    other = np.asarray(Image.fromarray(image).resize(found.shape[::-1], Image.Resampling.BICUBIC))
    border = max(2, int(2 * scale))
    assert np.abs(found - other)[border:-border, border:-border].max() < 1e-3


def test_psnr_and_ssim_closed_forms():
    image = noise(32, 40) // 2
    assert psnr(image, image) == np.inf and ssim(image, image) == 1
    assert psnr(image, image + 5) == pytest.approx(20 * np.log10(255 / 5), abs=1e-12)
    a, b, c1 = np.full((16, 16), 100, np.uint8), np.full((16, 16), 150, np.uint8), (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-12)
    assert ssim(image, noise(32, 40)) == pytest.approx(ssim(noise(32, 40), image), abs=1e-12)


def test_ssim_is_the_mean_over_windows():
    """Window by window, as equation 13 of Wang et al. says it."""
    x, y = noise(14, 13).astype(float), noise(13, 14).T.astype(float)
    g = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    w = np.outer(g, g) / g.sum() ** 2
    found = []
    for i in range(4):
        for j in range(3):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(x, y) == pytest.approx(np.mean(found), abs=1e-12)


@pytest.mark.skipif(not SET5.is_dir(), reason="SERIATIM_SR_DATA names no folder with CSet5")
@pytest.mark.parametrize("scale, db, similarity", [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_bicubic_baseline_on_set5_is_the_published_one(scale, db, similarity):
    """Kim et al., CVPR 2016, table 2."""
    pairs = [(shave(p.low, scale), shave(p.high, scale)) for p in pairs_of(superres.read_folder(SET5), (scale,))]
    assert np.mean([psnr(*pair) for pair in pairs]) == pytest.approx(db, abs=0.01)
    assert np.mean([ssim(*pair) for pair in pairs]) == pytest.approx(similarity, abs=2e-4)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(SEED)
    for number in range(12):
        shape = (50, 47) if number == 3 else (50, 47, 3)
        smooth = bicubic(rng.integers(0, 256, (10, 10)), 5)[:, :47]
        pixels = superres.to_codes(smooth if len(shape) == 2 else smooth[..., None] + rng.integers(-9, 9, shape))
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return tmp_path


def test_reads_a_folder_of_pictures(folder):
    train, test = (data.load("pictures-x23", part, folder) for part in (True, False))
    assert (len(train), len(test)) == (20, 4) and train.classes == 1
    grey = np.asarray(Image.open(folder / "03.png"))
    pair = next(p for p in train.pairs if p.scale == 3 and p.high.shape == (48, 45) and (p.high == grey[:48, :45]).all())
    assert pair.low.shape == pair.high.shape and modcrop(grey, 2).shape == (50, 46)
    (folder / "train").mkdir()
    (folder / "00.png").rename(folder / "train" / "a.png")
    assert len(data.load("pictures-x4", True, folder)) == 1


def test_folders_without_pictures_say_what_to_do(folder, tmp_path):
    for name, words in (("pictures-x5", "pictures-x2"), ("pictures-x22", "pictures-x2"), ("pictures", "pictures-x2")):
        with pytest.raises(ConfigError, match=words):
            data.load(name, True, folder)
    with pytest.raises(ConfigError, match="'photos': choose one of fashion-mnist.*pictures-x2"):
        data.load("photos", True, folder)
    with pytest.raises(ConfigError, match="scale 0: it must be positive"):
        bicubic(np.zeros((4, 4)), 0)
    with pytest.raises(DataError, match="holds no images.*--data"):
        data.load("pictures-x2", True, tmp_path / "none")
    with pytest.raises(DataError, match="side of 45 holds no patch of 48x48"):
        data.load("pictures-x3", True, folder).at(48)
    with pytest.raises(DataError, match="10x30: SSIM takes windows of 11x11"):
        ssim(np.zeros((10, 30)), np.zeros((10, 30)))
    Image.fromarray(noise(12, 60)).save(folder / "x.png")
    with pytest.raises(DataError, match="x.png: 60x12 pixels.*at least 16"):
        data.load("pictures-x2", True, folder)
    (folder / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="x.png.*remove"):
        data.load("pictures-x2", True, folder)


def test_patches_are_parts_of_the_images_turned_alike(folder):
    whole = data.load("pictures-x2", True, folder).at(16)
    pictures = Pictures(whole.pairs[:1], whole.name, 16)
    recipe = Recipe(((16, 1),), batch=8, images=24)
    feed = pictures.feed(recipe)
    batches = list(feed.epoch(0))
    assert feed.steps == 3 and batches[0][0].shape == (8, 1, 16, 16) and batches[0][0].dtype == torch.float32
    pair = pictures.pairs[0]
    places = {}
    for turn in range(8):
        low, high = (np.rot90(image, turn % 4)[:, :: -1 if turn > 3 else 1] for image in (pair.low, pair.high))
        for top in range(low.shape[0] - 15):
            for left in range(low.shape[1] - 15):
                part = slice(top, top + 16), slice(left, left + 16)
                places[low[part].tobytes()] = turn, high[part].tobytes()
    turns = set()
    for x, y in batches:
        for low, high in zip(x.numpy().astype(np.uint8), y.numpy().astype(np.uint8)):
            turn, wanted = places[low.tobytes()]
            assert high.tobytes() == wanted
            turns.add(turn)
    assert len(turns) > 4
    again = [torch.cat(batch) for batch in pictures.feed(recipe).epoch(0, 2)]
    assert torch.equal(again[0], torch.cat(batches[2]))
    halves = [next(pictures.feed(recipe, rank=rank, world=2).epoch(0))[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batches[0][0])
    with pytest.raises(ConfigError, match="batch 8 on 3 processes"):
        pictures.feed(recipe, world=3)


def test_task_measures_the_shaved_image():
    task, wanted = SuperResolution(), torch.tensor(noise(2, 1, 12, 12)).float()
    output = (wanted + 3) / 255
    output[:, :, :2] = output[:, :, :, -2:] = 9.0
    found = task.measure(output, shave(wanted, 2))
    exact = [psnr(np.clip(shave(w[0], 2).numpy() + 3, 0, 255), shave(w[0], 2).numpy()) for w in wanted]
    assert float(found) == pytest.approx(np.mean(exact), abs=1e-9)
    assert float(task.loss(output, shave(wanted, 2))) == pytest.approx(0.5 * (3 / 255) ** 2, rel=1e-4)


def test_vdsr_has_its_published_size():
    """665 K parameters and 612.6 G multiply-accumulates for an image of 1280x720: Ahn et al., ECCV 2018, table 1."""
    found, pixels = size_of(build("vdsr"), 41), 41 * 41
    assert found.macs // pixels * 1280 * 720 / 1e9 == pytest.approx(612.6, abs=0.05)
    assert 665_000 <= found.parameters < 666_000


class Shallow(VDSR):
    name, depth, width, image_size = "shallow", 4, 12, 20


def trained(folder, w=2, a=8):
    torch.manual_seed(SEED)
    pictures = data.load("pictures-x2", True, folder)
    net, recipe = Shallow(), Recipe(((20, 1),), batch=16, rate=3e-3, optimizer="adam", weight_decay=0, images=320)
    quiet = {"log": lambda line: None}
    fit(net, pictures, recipe, **quiet)
    start = accuracy(net, pictures, 20)
    fit(quantize_(net, SLB(w, a)), pictures, recipe, **quiet)
    return net.eval(), pictures, start


def test_a_small_vdsr_learns_and_runs_whole_on_the_machine(folder):
    net, pictures, as_float = trained(folder)
    blurred = np.mean([psnr(shave(p.low, 2), shave(p.high, 2)) for p in pictures.pairs])
    print("bicubic", blurred, "float", as_float, "integer", accuracy(net, pictures, 20))
    assert as_float > blurred
    network = export_integer(net, exact=True)
    assert not any(proof.failing for proof in prove_network(network))
    low, high = pictures.sample(2, 20, 1)
    images = torch.from_numpy(low)
    assert min(agreement(net, network, images).values()) == 1
    codes = images.int()
    assert network.layers[-1].out_format == "uint8" and network.layers[-1].residual_format == "uint8"
    assert torch.equal(net(images.float()), network(codes) * network.unit)
    config = Config(m=2, n=4, k=32, axi_bits=32)
    artefact = compile_network(network, codes, config, generate)
    assert artefact.cpu_fallback == []
    for level in ("isa", "rtl"):
        executor = Executor(config, opener(level))
        found = artefact.run(codes.numpy(), executor=executor)
        run, = executor.runs
        for name, expected in network.codes(codes).items():
            np.testing.assert_array_equal(run.tensors[name], expected.numpy(), err_msg=name)
        np.testing.assert_array_equal(found, network(codes).numpy())
    assert found.dtype == np.int32 and found.shape == low.shape and len(np.unique(found)) > 20
    assert high.shape == (2, 1, 16, 16)


def test_enhance_measures_beside_bicubic_and_writes_the_images(folder, tmp_path, capsys, monkeypatch):
    """A net that gives nothing but what it reads scores as bicubic does."""
    monkeypatch.setitem(NETS, "shallow", Shallow)
    torch.manual_seed(SEED)
    net = quantize_(Shallow(), SLB(1, 8))
    with torch.no_grad():
        net.train()(torch.from_numpy(noise(1, 1, 20, 20)).float())
        net.last.log_alpha.fill_(-20.0)
    set_hard(net)
    path = tmp_path / "net.ckpt"
    checkpoint.save(net, Metadata("shallow", 1, 8, classes=1), path)
    out = tmp_path / "out"
    assert cli.main(["enhance", str(path), "--data", str(folder), "--scale", "2", "3", "--out", str(out)]) == 0
    rows = capsys.readouterr().out.splitlines()
    images = superres.read_folder(folder)
    for row, scale in zip(rows[-2:], (2, 3)):
        pairs = [(shave(p.low, scale), shave(p.high, scale)) for p in pairs_of(images, (scale,))]
        said = f"{np.mean([psnr(*p) for p in pairs]):.2f} dB {np.mean([ssim(*p) for p in pairs]):.4f}"
        assert row.split()[:2] == [str(scale), "12"] and row.count(said) == 2
    assert len(list(out.iterdir())) == 24
    pair = pairs_of(images[:1], (3,))[0]
    assert (np.asarray(Image.open(out / "000-x3.png")) == pair.low).all()
    checkpoint.save(quantize_(build("digits"), SLB(1, 8)), Metadata("digits", 1, 8), path)
    assert cli.main(["enhance", str(path), "--data", str(folder)]) == 1
    assert "digits is no super-resolution net" in capsys.readouterr().err


def test_one_net_serves_images_of_any_shape(folder):
    torch.manual_seed(SEED)
    net = quantize_(Shallow(), SLB(1, 8))
    with torch.no_grad():
        net.train()(torch.from_numpy(noise(1, 1, 30, 26)).float())
    set_hard(net)
    images = torch.from_numpy(noise(1, 1, 23, 31)).float()
    assert net.eval()(images).shape == (1, 1, 23, 31)
    assert export_integer(net, (23, 31)).image_size == (23, 31)


def test_samples_are_spread_over_the_images(folder):
    pictures = data.load("pictures-x2", True, folder)
    low, high = pictures.sample(10, 20, 1)
    for number, pair in enumerate(pictures.pairs):  # each holds 2 x 2 patches: the first of each
        assert (low[number, 0] == pair.low[:20, :20]).all() and (high[number, 0] == pair.high[2:18, 2:18]).all()
    low, _ = pictures.sample(45, 20, 1)
    assert (low[40:] == low[:5]).all() and len({image.tobytes() for image in low}) == 40


def test_classifiers_sample_alike():
    images = Images(noise(3, 1, 8, 8), np.arange(3), 10, "noise")
    codes, labels = images.sample(5, 8, 3)
    assert codes.shape == (5, 3, 8, 8) and labels.tolist() == [0, 1, 2, 0, 1] and (codes[3] == codes[0]).all()
