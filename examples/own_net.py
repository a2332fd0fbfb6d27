"""Your own `nn.Module`, from its float training to a run on the Verilated accelerator and the report.

    .venv/bin/python examples/own_net.py            # the Verilated RTL: builds it the first time
    .venv/bin/python examples/own_net.py isa        # the ISA simulator

`docs/own-net.md` goes through it step by step.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from seriatim import cli
from seriatim.algo import data
from seriatim.algo.checkpoint import Metadata
from seriatim.algo.convert import from_module
from seriatim.algo.export import agreement, export_integer
from seriatim.algo.quantisers.model import quantize_
from seriatim.algo.quantisers.scheme import SLB
from seriatim.algo.recipes import Recipe
from seriatim.algo.train import accuracy, fit
from seriatim.algo.trained import finish

MEAN, STD = 0.3, 0.4


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x
        return F.relu(y)


class DigitNet(nn.Module):
    """Nothing in here knows of Seriatim."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = Block(16)
        self.pool = nn.MaxPool2d(2)
        self.widen = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32 * 4, 10))

    def forward(self, x):
        return self.head(self.widen(self.pool(self.block(self.stem(x)))))


def train_float(module: nn.Module, images: data.Images, epochs: int) -> None:
    """Your own training, on images that your own pipeline normalises."""
    x = (torch.from_numpy(images.images).float() / 255 - MEAN) / STD
    y = torch.from_numpy(images.labels)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
        rate.step()


def main(level: str = "rtl", folder: Path = Path("build", "own_net"), epochs: tuple[int, int] = (15, 40)) -> int:
    torch.manual_seed(0)
    train, held_out = data.digits(True), data.digits(False)
    module = DigitNet()
    train_float(module, train, epochs[0])

    net = from_module(module, image_size=8, channels=1, mean=MEAN, std=STD)
    float_share = accuracy(net, held_out, 8)
    print(f"float: {float_share:.2%} of {len(held_out)} held-out images")

    quantize_(net, SLB(weight_bits=1, act_bits=4))
    recipe = Recipe(((8, epochs[1]),), batch=64, rate=5e-3, weight_decay=0, optimizer="adam", shift=0, flip=False)
    fit(net, train, recipe, log=lambda line: None)

    network = export_integer(net)
    share = min(agreement(net, network, torch.from_numpy(held_out.images[:50]).long()).values())
    print(f"{len(network.layers)} integer layers; the least share of codes that equal the float64 graph's: {share:.2%}")

    path = Path(folder, "digitnet.ckpt")
    finish(net, Metadata(net.name, w=1, a=4, dataset="digits", image_size=8, float_accuracy=float_share), held_out, path)
    return cli.main(["sim", "--checkpoint", str(path), "--images", "5", "--session", level, "--out", str(folder)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
