"""MobileNet (Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017)."""

from torch import nn

from seriatim.algo.layers import AveragePool, Layer
from seriatim.algo.nets.base import Net


class Separable(nn.Module):
    """A 3x3 convolution of each channel apart, then a 1x1 convolution over the channels (figure 3)."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.depthwise = Layer(cin, cin, 3, stride, 1, groups=cin)
        self.pointwise = Layer(cin, cout, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class MobileNetV1(Net):
    """Table 1 at any image size from 32 up; `width` multiplies the channels (section 3.3)."""

    name, image_size, short = "mobilenet_v1", 64, {"images": 2560, "batch": 64, "epochs": 4}
    width = 1.0
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    """Output channels and stride of each separable convolution."""

    def __init__(self, classes: int = 10):
        super().__init__()
        cin = int(32 * self.width)
        self.conv1 = Layer(3, cin, 3, 2, 1, role="stem")
        blocks = []
        for channels, stride in self.blocks:
            cout = int(channels * self.width)
            blocks.append(Separable(cin, cout, stride))
            cin = cout
        self.features = nn.Sequential(*blocks)
        self.avgpool = AveragePool()
        self.fc = Layer(cin, classes, 1, role="classifier")

    def graph(self, x):
        return self.fc(self.avgpool(self.features(self.conv1(x))))


class MobileNetV1Half(MobileNetV1):
    """Width multiplier 0.5."""

    name, width = "mobilenet_v1_050", 0.5


class MobileNetV1Quarter(MobileNetV1):
    """Width multiplier 0.25."""

    name, width = "mobilenet_v1_025", 0.25
