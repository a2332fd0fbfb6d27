"""What a net is trained for: the loss of a batch, and the figure that says how good the answers are.

`train.fit` knows nothing else of it: the data give batches of (codes, targets), the net's `task` judges what comes out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Classification:
    """Logits (N, classes) against labels (N,): cross-entropy; the share of right answers, 0..1."""

    metric, unit, units = "accuracy", "%", 100
    """Name of the metric; the unit that it is shown in, and how many of that 1 is."""

    @staticmethod
    def text(value: float) -> str:
        """A value of the metric as a reader wants it."""
        return f"{value:.2%}"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Scalar to be minimised, the mean over the batch."""
        return F.cross_entropy(output, target)

    @torch.no_grad()
    def measure(self, output: Tensor, target: Tensor) -> Tensor:
        """The metric, its mean over the batch: a float64 scalar on the device, so that a step does not wait for it."""
        return (output.argmax(1) == target).double().mean()
