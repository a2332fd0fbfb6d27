"""Residual nets (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from torch import nn

from seriatim.algo.layers import AveragePool, Layer, MaxPool
from seriatim.algo.nets.base import Net


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, or a 1x1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, cin, width, stride):
        super().__init__()
        self.conv1 = Layer(cin, width, 3, stride, 1)
        self.conv2 = Layer(width, width, 3, 1, 1, wide=True)
        changes = stride != 1 or cin != width
        self.downsample = Layer(cin, width, 1, stride, relu=False) if changes else None

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), residual)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with four times the channels outside; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, cin, width, stride):
        super().__init__()
        cout = width * self.expansion
        self.conv1 = Layer(cin, width, 1)
        self.conv2 = Layer(width, width, 3, stride, 1)
        self.conv3 = Layer(width, cout, 1, wide=True)
        changes = stride != 1 or cin != cout
        self.downsample = Layer(cin, cout, 1, stride, relu=False) if changes else None

    def forward(self, x):
        residual = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), residual)


def _stage(block, cin, width, blocks, stride):
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(cin, width, stride), *rest)


class ResNet18(Net):
    """ImageNet's topology (table 1, 18 layers) at any image size from 32 up."""

    name, image_size = "resnet18", 64
    block, blocks = BasicBlock, (2, 2, 2, 2)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(3, 64, 7, 2, 3, wide=True, role="stem")
        self.maxpool = MaxPool(3, 2, 1)
        cin = 64
        for number, blocks in enumerate(self.blocks):
            width = 64 << number
            setattr(self, f"layer{number + 1}", _stage(self.block, cin, width, blocks, 2 if number else 1))
            cin = width * self.block.expansion
        self.avgpool = AveragePool()
        self.fc = Layer(cin, classes, 1, role="classifier")

    def graph(self, x):
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x))


class ResNet34(ResNet18):
    """Table 1, 34 layers."""

    name, blocks, short = "resnet34", (3, 4, 6, 3), {"images": 1280, "batch": 64}


class ResNet50(ResNet18):
    """Table 1, 50 layers; strides in the 3x3 convolutions, as torchvision and most checkpoints have it."""

    name, block, blocks, short = "resnet50", Bottleneck, (3, 4, 6, 3), {"images": 1280, "batch": 64}


class ResNet20(Net):
    """CIFAR's topology (section 4.2, n = 3), with 1x1 convolutions as shortcuts."""

    name, short = "resnet20", {"images": 12800, "batch": 128}

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = Layer(3, 16, 3, 1, 1, wide=True, role="stem")
        self.layer1 = _stage(BasicBlock, 16, 16, 3, 1)
        self.layer2 = _stage(BasicBlock, 16, 32, 3, 2)
        self.layer3 = _stage(BasicBlock, 32, 64, 3, 2)
        self.avgpool = AveragePool()
        self.fc = Layer(64, classes, 1, role="classifier")

    def graph(self, x):
        return self.fc(self.avgpool(self.layer3(self.layer2(self.layer1(self.conv1(x))))))
