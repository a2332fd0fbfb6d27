"""One training on several processes (torchrun): each takes its share of every batch, and a step does what one process would.

Gradients are averaged by DistributedDataParallel. What a step derives from the batch besides is derived from the whole batch:
batch norm's statistics (as SyncBatchNorm does, but on CPUs too), and the scale of LSQ's gradient, which depends on the number of
codes. What follows the data without a gradient (calibrated scales, searched ones) sees the share of its own process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.overrides import TorchFunctionMode

from seriatim.algo.acts import share_of
from seriatim.errors import ConfigError


def rank() -> int:
    """Of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, if it did; gives the device of this one ("cuda" becomes "cuda:1", ...).

    Raises:
        ConfigError: more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine, which has {torch.cuda.device_count()} GPUs: start one for each")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
        wait()
    finally:
        dist.destroy_process_group()


class _WholeBatch(TorchFunctionMode):
    """Batch norm with the statistics of all processes' shares."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _batch_norm(x: Tensor, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = y.numel() // y.shape[1] * world()
    mean = all_reduce(y.sum(axes)) / count
    centred = y - mean.view(shape)
    var = all_reduce(centred.square().sum(axes)) / count
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    result = centred * (var + eps).rsqrt().view(shape)
    if weight is not None:
        result = result * weight.view(shape) + bias.view(shape)
    return result.to(x.dtype)


@contextmanager
def sharded() -> Iterator[None]:
    """Within it, forward and backward, each process has its share of a batch, all of one size."""
    if world() == 1:
        yield
        return
    with _WholeBatch(), share_of(world()):
        yield


def wrapped(net: nn.Module, device: torch.device, partly_frozen: bool) -> nn.Module:
    """`net`, or where several processes train, DistributedDataParallel around it. `partly_frozen`: some parameters get no
    gradient at times."""
    if world() == 1:
        return net
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(net, devices, broadcast_buffers=False, find_unused_parameters=partly_frozen)


@torch.no_grad()
def prime(net: nn.Module, batch: Tensor) -> None:
    """Let whatever starts at the first batch (learned scales) see the whole of it: one pass; batch norm stays as it was."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    net.train()
    net(batch)
    for norm, values in zip(norms, kept, strict=True):
        for name, value in norm.named_buffers():
            value.copy_(values[name])


def total(values: Tensor) -> Tensor:
    """Their sum over all processes."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()
