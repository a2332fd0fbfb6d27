"""Time and peak memory of a training step, low-bit and float side by side: `seriatim bench steptime`."""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from seriatim.algo.nets import build
from seriatim.algo.quantisers.model import quantize_
from seriatim.algo.quantisers.scheme import SLB, Scheme
from seriatim.algo.recipes import Recipe
from seriatim.algo.train import make_optimizer
from seriatim.errors import ToolError

NET, IMAGE, BATCH = "resnet18", 64, 64
STEPS, WARM_UP = 20, 3
FLOAT = "float"
SCHEMES: dict[str, Scheme | None] = {
    FLOAT: None,
    "SLB W1A8": SLB(1, 8),
    "SLB W2A8": SLB(2, 8),
    "LSQ W4A4": Scheme("lsq", 4, "lsq", 4),
    "DoReFa W4A4": Scheme("dorefa", 4, "dorefa", 4),
    "LogQuant W4A4": Scheme("logquant", 4, "logquant", 4),
}


class Training:
    """One net with its optimiser (SGD with momentum) and a batch of random images; a call is one step."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.net = build(NET)
        if SCHEMES[name] is not None:
            quantize_(self.net, SCHEMES[name])
        self.optimizer = make_optimizer(self.net.train(), Recipe(((IMAGE, 1),), rate=1e-3))
        x = torch.randint(0, 256, (BATCH, self.net.channels, IMAGE, IMAGE)).float()
        self.x, self.y = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (BATCH,))

    def __call__(self) -> None:
        loss = self.net.task.loss(self.net(self.x), self.y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def seconds() -> dict[str, float]:
    """Median of `STEPS` steps by name. The nets take turns, step by step, so that all see the same state of the machine."""
    trainings = {name: Training(name) for name in SCHEMES}
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    for step in range(WARM_UP + STEPS):
        for name, training in trainings.items():
            start = time.perf_counter()
            training()
            if step >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in taken.items()}


def resident_peak() -> int:
    """Most bytes that this process had in memory so far. Linux' VmHWM: `getrusage` would count what its parent had."""
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak(name: str) -> int:
    """Bytes that the training of `name` adds to a process that has imported all it needs, at their peak: its net, optimiser,
    batch and three steps. For a process that has done nothing else."""
    before = resident_peak()
    training = Training(name)
    for _ in range(WARM_UP):
        training()
    return resident_peak() - before


def peaks() -> dict[str, int]:
    """`peak` by name, each in a process of its own.

    Raises:
        ToolError: such a process failed.
    """
    found = {}
    for name in SCHEMES:
        run = subprocess.run([sys.executable, "-m", __name__, name], capture_output=True, text=True)
        if run.returncode:
            raise ToolError(f"peak memory of {name}: the process that measures it failed ({run.returncode}): {run.stderr[-500:]}")
        found[name] = int(run.stdout)
    return found


def measure() -> dict:
    """Seconds and peak memory by name, and how many times the float net's they are."""
    found = {}
    for what, unit, figures in (("step", "s", seconds()), ("peak memory", "MiB", {k: v / 2**20 for k, v in peaks().items()})):
        for name, value in figures.items():
            found[f"{name}: {what}: {unit}"] = round(value, 3 if unit == "s" else 0)
            if name != FLOAT:
                found[f"{name}: {what}: times float"] = round(value / figures[FLOAT], 3)
    return found


if __name__ == "__main__":
    print(peak(sys.argv[1]))
