"""Nets without shortcuts."""

from torch import nn

from seriatim.algo.layers import Dropout, Layer, MaxPool
from seriatim.algo.nets.base import Net
from seriatim.errors import ConfigError


class VGGSmall(Net):
    """VGG-Small for CIFAR: 128, 128, pool, 256, 256, pool, 512, 512, pool, one fully connected layer.

    Zhang et al., "LQ-Nets", ECCV 2018, section 5.1; Yang et al., "Searching for Low-Bit Weights", NeurIPS 2020, table 2.
    """

    name, short = "vgg_small", {"images": 1280, "batch": 64}

    def __init__(self, classes: int = 10):
        super().__init__()
        stages, cin = [], 3
        for cout in (128, 256, 512):
            first = Layer(cin, cout, 3, 1, 1, role="body" if stages else "stem")
            stages.append(nn.Sequential(first, Layer(cout, cout, 3, 1, 1), MaxPool(2)))
            cin = cout
        self.features = nn.Sequential(*stages)
        self.fc = Layer(cin, classes, self.image_size // 8, role="classifier")

    def graph(self, x):
        return self.fc(self.features(x))


class AlexNet(Net):
    """AlexNet with one tower (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014), as in
    torchvision: biases instead of batch norm, dropout before the first two fully connected layers.

    fc6 is a convolution over the whole map that the features leave, 6x6 at 224x224: a class has one image size.
    """

    name, image_size, short = "alexnet", 224, {"images": 320, "batch": 32}

    def __init__(self, classes: int = 10):
        super().__init__()
        edge = self.image_size
        for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (3, 2, 0), (3, 2, 0)):
            edge = (edge + 2 * padding - kernel) // stride + 1
        if edge < 1:
            raise ConfigError(f"image size {self.image_size}: {self.name} needs 63 at least; scale the images up")
        self.features = nn.Sequential(
            Layer(3, 64, 11, 4, 2, bn=False, role="stem"), MaxPool(3, 2),
            Layer(64, 192, 5, 1, 2, bn=False), MaxPool(3, 2),
            Layer(192, 384, 3, 1, 1, bn=False), Layer(384, 256, 3, 1, 1, bn=False), Layer(256, 256, 3, 1, 1, bn=False),
            MaxPool(3, 2),
        )  # fmt: skip
        self.drop6, self.fc6 = Dropout(), Layer(256, 4096, edge, bn=False)
        self.drop7, self.fc7 = Dropout(), Layer(4096, 4096, 1, bn=False)
        self.fc = Layer(4096, classes, 1, role="classifier")

    def graph(self, x):
        x = self.fc6(self.drop6(self.features(x)))
        return self.fc(self.fc7(self.drop7(x)))


class AlexNet64(AlexNet):
    """AlexNet for images of 64x64, where the features leave a map of 1x1."""

    name, image_size, short = "alexnet_64", 64, {"images": 2560, "batch": 64}


class Digits(Net):
    """A net for 8x8 grey digits that trains in seconds and holds every kind of layer but sums."""

    name, channels, image_size, dataset = "digits", 1, 8, "digits"
    short = {"batch": 64, "epochs": 30, "shift": 0, "flip": False}

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(1, 16, 3, 1, 1, wide=True, role="stem")
        self.conv2 = Layer(16, 16, 3, 1, 1)
        self.conv3 = Layer(16, 16, 3, 1, 1, wide=True)
        self.maxpool = MaxPool(2)
        self.fc = Layer(16, classes, 4, role="classifier")

    def graph(self, x):
        x = self.conv1(x)
        return self.fc(self.maxpool(self.conv3(self.conv2(x), x)))
