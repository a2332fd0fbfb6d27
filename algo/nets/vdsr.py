"""Super-resolution nets."""

import torch
from torch import nn

from seriatim.algo.layers import Layer
from seriatim.algo.nets.base import Net
from seriatim.algo.superres import SuperResolution


class VDSR(Net):
    """20 layers of 3x3 over 64 channels with biases and ReLU; the last one gives what the bicubic image lacks.

    Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016, section 3. The net reads the
    luma, scaled up beforehand, as codes 0..255; the last layer's requantisation adds it again and rounds to codes 0..255, so the
    integer network maps images to images. One net serves every scale and image size.
    """

    name, channels, image_size, dataset = "vdsr", 1, 41, "pictures-x2"
    short = {"images": 160, "batch": 16, "epochs": 2}
    task = SuperResolution()
    depth, width = 20, 64

    def __init__(self, classes: int = 1):
        super().__init__()
        body = [Layer(self.width, self.width, 3, 1, 1, bn=False) for _ in range(self.depth - 2)]
        self.features = nn.Sequential(Layer(1, self.width, 3, 1, 1, bn=False, role="stem"), *body)
        self.last = Layer(self.width, classes, 3, 1, 1, role="image")

    def graph(self, x):
        return self.last(self.features(x), x)

    def answer(self, y: torch.Tensor) -> torch.Tensor:
        """Luma (N, 1, H, W) in units of 255."""
        return y
