"""State Batch Norm: statistics of the training weights and of the discrete ones, side by side.

Yang et al., NeurIPS 2020, section 3.3: the outputs of W_c and of W_q have different means and variances. A second set of running
statistics follows those of W_q while training, so that nothing has to be estimated anew afterwards. Scale and offset are shared.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seriatim.algo.quantisers.base import ActivationQuantiser, WeightQuantiser


class StateBatchNorm(_BatchNorm):
    """Batch norm whose running statistics depend on `hard`: those of W_c (`running_mean`, `running_var`), or those of W_q
    (`hard_mean`, `hard_var`). `discrete`: eval mode computes with W_q whatever `hard` says."""

    def __init__(self, norm: _BatchNorm, discrete: bool):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.load_state_dict(norm.state_dict())
        if norm.affine:
            self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("hard_mean", self.running_mean.clone())
        self.register_buffer("hard_var", self.running_var.clone())
        self.hard, self.discrete = False, discrete
        self.train(norm.training)

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # of any number of axes

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance that are followed, or taken in eval mode."""
        hard = self.hard or (self.discrete and not self.training)
        return (self.hard_mean, self.hard_var) if hard else (self.running_mean, self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.statistics
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


def statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance that a batch norm takes in eval mode."""
    return norm.statistics if isinstance(norm, StateBatchNorm) else (norm.running_mean, norm.running_var)


def set_hard(net: nn.Module, hard: bool = True) -> None:
    """Run the graph with the discrete weights W_q and their statistics, and Quantization Networks with steps."""
    for module in net.modules():
        if isinstance(module, WeightQuantiser | ActivationQuantiser | StateBatchNorm) and hasattr(module, "hard"):
            module.hard = hard


def freeze_(net: nn.Module) -> None:
    """Put the quantisers alone into eval mode, so that they no longer follow the data; `net.train()` undoes it."""
    for module in net.modules():
        if isinstance(module, WeightQuantiser | ActivationQuantiser):
            module.eval()


def keep_state_(net: nn.Module, discrete: bool) -> None:
    """Replace each batch norm by a `StateBatchNorm`. Every training step then runs the net a second time, with W_q and without
    gradients, for their statistics. `discrete`: the net's eval mode computes with W_q."""
    for path, module in list(net.named_modules()):
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, StateBatchNorm(module, discrete))
    net.register_forward_hook(_follow)


def _follow(net: nn.Module, inputs: tuple, output) -> None:
    follow_state_(net, *inputs)


@torch.no_grad()
def follow_state_(net: nn.Module, *inputs) -> None:
    """Run `net` with W_q for its state batch norms, if it is in training mode and has some. `net(...)` does so by itself; only
    who runs a part of it needs this."""
    norms = [module for module in net.modules() if isinstance(module, StateBatchNorm)]
    if not net.training or not norms or norms[0].hard:
        return
    set_hard(net)
    try:
        net.forward(*inputs)
    finally:
        set_hard(net, False)
