"""The `seriatim` command: declares the arguments of each verb and hands them to the part that owns it.

A verb is a row of `VERBS`; its part is imported only when the verb runs, so that `--help` needs the standard library alone. A
`SeriatimError` is printed without a traceback and exits 1, wrong usage exits 2 (argparse's), Ctrl-C exits 130, SIGTERM 143.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from seriatim import __version__
from seriatim.errors import SeriatimError

QUANTS = ("slb", "logquant", "weq", "qn", "binaryconnect", "xnor", "dorefa", "lqnet", "lsq", "uniform")
ACT_QUANTS = ("lsq", "uniform", "pact", "dorefa", "logquant", "weq", "qn", "lqnet", "xnor")
"""Weight and activation quantisers of `seriatim.algo.quantisers.registry`, whose import takes seconds."""


def whole(what: str, low: int, high: int | None = None, unit: str = "") -> Callable[[str], int]:
    """A converter for argparse: a whole number `low..high`. Its message says the value, the rule and the remedy."""
    span = f"{low}..{high}" if high is not None else f"{low} or more"
    span += f" {unit}" if unit else ""

    def convert(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number: {what} takes {span}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: {what} takes {span}")
        return value

    return convert


def number(what: str, low: float, below: float) -> Callable[[str], float]:
    """A converter for argparse: a number of at least `low` and less than `below`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number: {what} takes {low:g} up to {below:g}") from None
        if not low <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is out of range: {what} takes {low:g} up to {below:g}, which is excluded")
        return value

    return convert


def _network(p: argparse.ArgumentParser, extra: tuple[str, ...] = ()) -> None:
    """Which quantised network: shared by train, compile, sim, diverge. `extra`: values of --quant besides the quantisers."""
    p.add_argument("--net", metavar="NAME", help="network (default: that of --checkpoint, else resnet18)")
    p.add_argument("--w", type=whole("the weights' width", 1, 8, "bits"), metavar="BITS",
                   help="bits of a weight, 1..8 (default: those of --checkpoint, else 1)")
    p.add_argument("--a", type=whole("the activations' width", 1, 8, "bits"), metavar="BITS",
                   help="bits of an activation, 1..8 (default: those of --checkpoint, else 8)")
    p.add_argument("--quant", choices=(*QUANTS, *extra), help="quantiser (default: that of --checkpoint, else slb)")
    p.add_argument("--act-quant", choices=ACT_QUANTS,
                   help="quantiser of the activations (default: the one that goes with --quant)")
    p.add_argument("--image", type=whole("the image's edge", 8, 1024, "pixels"), metavar="PIXELS",
                   help="edge of the input image, e.g. 224 (default: the network's own)")
    p.add_argument("--first-last", type=whole("first and last layers' weights", 1, 8, "bits"), metavar="BITS",
                   help="bits of the first and last layers' weights (default: as --w)")
    p.add_argument("--checkpoint", metavar="FILE", help="trained net (default: the packaged one, if there is)")


def _geometry(p: argparse.ArgumentParser) -> None:
    """Which accelerator: a board's, or that of Config's default but for what is given."""
    p.add_argument("--board", metavar="NAME", help="the machine of that board (`seriatim board list`), or of a board file")
    p.add_argument("--m", type=whole("the array's rows M", 1, 64), metavar="ROWS", help="array rows: output positions")
    p.add_argument("--n", type=whole("the array's columns N", 1, 64), metavar="COLS", help="array columns: output channels")
    p.add_argument("--k", type=whole("the lanes K", 8, 512), metavar="LANES", help="lanes of a dot product: input channels")
    p.add_argument("--axi", type=whole("the AXI data width", 32, 256, "bits"), metavar="BITS", help="AXI data width")
    p.add_argument("--shift-lanes", type=whole("the shift-add array's lanes", 0, 64), metavar="LANES",
                   help="lanes of each sum of the shift-add array, 0: none (default: K / 16 where the quantiser's levels are "
                        "uneven, else 0)")


def _run(p: argparse.ArgumentParser) -> None:
    p.add_argument("--images", type=whole("the number of images", 1), metavar="N",
                   help="images to run (default: 10, or what suits the --board's memory)")
    p.add_argument("--samples", metavar="FILE", help="images to run, an .npz of images (N, C, H, W) and labels (default: of the "
                                                     "network's data set)")
    p.add_argument("--latency", type=whole("the memory's latency", 1, 100_000, "cycles"), default=100, metavar="CYCLES",
                   help="cycles from an address to its first data (default: %(default)s)")
    p.add_argument("--outstanding", type=whole("the outstanding bursts", 1, 64), default=8, metavar="N",
                   help="bursts the memory accepts at a time, each way (default: %(default)s)")
    p.add_argument("--session", choices=("rtl", "isa"),
                   help="rtl: the Verilated accelerator; isa: the ISA simulator (default: rtl, or with --board that whole board "
                        "behind its link)")
    p.add_argument("--device", metavar="PORT",
                   help="serial port of the --board, e.g. /dev/ttyUSB1 (default: the board is simulated)")
    p.add_argument("--seed", type=whole("the seed", 0), default=0, help="seed of whatever is random (default: %(default)s)")


def _out(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="DIR", help="where results go (default: a folder named after the run, under build/)")


def _device(p: argparse.ArgumentParser) -> None:
    """On which data and device to train: shared by train and compare."""
    p.add_argument("--dataset", metavar="KIND", help="fashion-mnist, cifar-10, digits, digits-599, folder, imagenet, or "
                                                     "pictures-x2, -x3, -x4, -x234 (default: the recipe's)")
    p.add_argument("--data", metavar="DIR", help="folder of the data (default: where Debian's package puts it)")
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    p.add_argument("--precision", choices=("auto", "float32", "bf16", "fp16"), default="float32",
                   help="of the convolutions; auto: bf16 where the device has it (default: %(default)s)")
    p.add_argument("--compile", action="store_true", help="run the step through torch.compile")
    p.add_argument("--threads", type=whole("the threads", 1), metavar="N", help="threads of PyTorch (default: all cores)")


def _train(p: argparse.ArgumentParser) -> None:
    _network(p, extra=("float",))
    p.add_argument("--recipe", metavar="NAME", help="training recipe, packaged or a file of yours (default: the network's own)")
    p.add_argument("--list-recipes", action="store_true", help="list the packaged recipes and end")
    p.add_argument("--start", metavar="FILE", help="float net to start at, as --quant float writes it (default: the recipe's, "
                                                   "trained first)")
    p.add_argument("--epochs", type=whole("the number of epochs", 0), metavar="N", help="epochs (default: the recipe's)")
    p.add_argument("--seed", type=whole("the seed", 0), default=0, help="seed of whatever is random (default: the recipe's)")
    p.add_argument("--reference", action="store_true", help="train the float net alike too, and write its accuracy beside")
    p.add_argument("--tensorboard", metavar="DIR", help="write TensorBoard's events too (needs the package tensorboard)")
    _device(p)
    p.add_argument("--save-seconds", type=whole("the seconds between saved states", 1), default=300, metavar="N",
                   help="seconds between saved states within an epoch (default: %(default)s)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.add_argument("--out", metavar="FILE", help="checkpoint to write; states and logs lie beside it")


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("table", nargs="?", default="digits-5-seeds", metavar="TABLE",
                   help="a packaged table, or a file of yours (default: %(default)s)")
    p.add_argument("--list", action="store_true", help="list the packaged tables and end")
    p.add_argument("--seeds", type=whole("the number of seeds", 1), metavar="N", help="seeds 1..N (default: the table's)")
    p.add_argument("--epochs", type=whole("the number of epochs", 1), metavar="N",
                   help="epochs of every net (default: the recipes')")
    p.add_argument("--jobs", type=whole("the nets at a time", 1, 64), default=1, metavar="N",
                   help="nets that are trained at a time, on one device (default: %(default)s)")
    _device(p)
    p.add_argument("--out", metavar="DIR", help="folder of the table: states, logs, results (default: under build/compare)")


def _compress(p: argparse.ArgumentParser) -> None:
    _network(p)
    p.add_argument("--start", metavar="FILE", help="float net whose weights are quantised as they are, as train --quant float "
                                                   "writes it (default: the low-bit net)")
    pruned = p.add_mutually_exclusive_group()
    pruned.add_argument("--prune", type=number("the pruned share", 0, 1), default=0.0, metavar="SHARE",
                        help="share of each layer's weights, those of smallest magnitude, to leave out (with --start)")
    pruned.add_argument("--prune-deviations", type=number("the threshold", 0, 10), default=0.0, metavar="X",
                        help="leave out weights up to so many standard deviations of their layer (with --start)")
    _out(p)


def _enhance(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="NET", help="a packed checkpoint (.ckpt), or a float VDSR as train --quant float writes it")
    p.add_argument("--data", required=True, metavar="DIR", help="folder of pictures")
    p.add_argument("--scale", type=whole("the scale", 2, 4), nargs="+", default=[2], metavar="N", help="scales (default: 2)")
    p.add_argument("--out", metavar="DIR", help="where the luma of the enhanced pictures goes, as PNG (default: nowhere)")


def _compile(p: argparse.ArgumentParser) -> None:
    _network(p)
    _geometry(p)
    _out(p)


def _compared(p: argparse.ArgumentParser) -> None:
    """What a run is compared on: shared by sim and diverge."""
    _network(p)
    _geometry(p)
    _run(p)
    _out(p)


def _sim(p: argparse.ArgumentParser) -> None:
    _compared(p)
    p.add_argument("--clock-mhz", type=whole("the clock", 1, 10_000, "MHz"), metavar="MHZ",
                   help="clock at which the report states latency and images per second: an assumption, no measurement "
                        "(default: 100, or the --board's)")
    p.add_argument("--no-baseline", dest="baseline", action="store_false",
                   help="leave out the same network at W8A8, which the speed-up is stated against (run once, then cached)")
    p.add_argument("--trace", action="store_true",
                   help="write trace.pftrace too: every instruction's cycles, for ui.perfetto.dev")


def _diverge(p: argparse.ArgumentParser) -> None:
    _compared(p)
    p.add_argument("--layer", metavar="NAME", help="look at this layer only")


def _soak(p: argparse.ArgumentParser) -> None:
    p.add_argument("--minutes", type=whole("the minutes", 1), default=10, metavar="N",
                   help="how long (default: %(default)s)")
    p.add_argument("--seed", type=whole("the seed", 0), metavar="N", help="run this net alone: replays a failure")


def _report(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="REPORT", help="a report.json, or the folder of a run")
    p.add_argument("--html", metavar="FILE", help="write the report as one HTML page too")


def _emit(p: argparse.ArgumentParser) -> None:
    _geometry(p)
    p.add_argument("--name", default="seriatim_top", help="name of the top module (default: %(default)s)")
    p.add_argument("--out", metavar="DIR", help="folder to write, or a file ending in .v or .sv for the Verilog alone "
                                                "(default: the Verilog on standard output)")


def _dump(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="ARTEFACT", help="an artefact, or the folder that holds it")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    p.add_argument("--base", type=whole("the memory's first address", 0, 0xFFFF_F000), default=0, metavar="ADDRESS",
                   help="byte address, as the machine sees it, at which its memory begins; a multiple of 4096 (default: 0)")


def _asm(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="FILE", help="assembly text")
    p.add_argument("--out", metavar="FILE", help="program to write (default: beside FILE, ending in .bin)")


def _disasm(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="FILE", help="a program")


def _cocotb(p: argparse.ArgumentParser) -> None:
    p.add_argument("tests", nargs="*", metavar="TEST", help="which of them (default: all in tests/cocotb)")


def _bench(p: argparse.ArgumentParser) -> None:
    p.add_argument("names", nargs="*", metavar="NAME", help="which measurements (default: all)")
    p.add_argument("--record", action="store_true", help="make these figures the reference, docs/bench.json")
    p.add_argument("--out", metavar="DIR", help="where the history and the table go (default: build)")


def _on_device(p: argparse.ArgumentParser) -> None:
    p.add_argument("path", metavar="ARTEFACT", help="an artefact, or the folder that holds it")
    p.add_argument("--device", metavar="PORT", help="serial port of the board, or replay:FILE, a recording that stands for it")
    p.add_argument("--baud", type=whole("the link's rate", 300, unit="baud"), metavar="N",
                   help="rate of its link (default: the --board's)")
    p.add_argument("--board", metavar="NAME", help="which board is there; without --device it is simulated")
    p.add_argument("--record", metavar="FILE", help="keep what goes over the link")
    p.add_argument("--samples", metavar="FILE", help="codes of the inputs, an .npz with an array for each (default: random ones)")
    p.add_argument("--seed", type=whole("the seed", 0), default=0, help="seed of random inputs (default: %(default)s)")


def _board(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", choices=["list", "simulate"],
                   help="list: the boards, what machine each has and how it is made; simulate: --board behind a pseudo-terminal")
    p.add_argument("--board", default="icebreaker", metavar="NAME", help="which one to simulate (default: %(default)s)")


def _bitstream(p: argparse.ArgumentParser) -> None:
    p.add_argument("--board", required=True, metavar="NAME", help="which board (`seriatim board list`)")
    p.add_argument("--out", metavar="DIR", help="folder in which the board's own folder is made (default: build/boards)")
    p.add_argument("--synth-only", action="store_true", help="stop after synthesis: no bitstream, no report")


def _manual(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", required=True, metavar="DIR", help="where the pages go")


@dataclass(frozen=True)
class Verb:
    """`target` is `module:function`; the function takes the parsed arguments and returns None or an exit status."""

    help: str
    target: str
    arguments: Callable[[argparse.ArgumentParser], None]


VERBS = {
    "train": Verb("train a quantised network", "seriatim.algo.train:main", _train),
    "compare": Verb("train the quantisers of a table side by side, over seeds", "seriatim.algo.compare:main", _compare),
    "compile": Verb("compile a network to an artefact", "seriatim.compiler.driver:main_compile", _compile),
    "compress": Verb("sizes of a network's weights and activations: pruned, quantised, Huffman-coded",
                     "seriatim.algo.compression:main", _compress),
    "enhance": Verb("measure a super-resolution net on pictures: PSNR and SSIM beside bicubic", "seriatim.algo.enhance:main",
                    _enhance),
    "sim": Verb("compile a network, run it on the simulated accelerator, compare, report", "seriatim.sim.driver:main_sim", _sim),
    "diverge": Verb("find the first layer, tile and bit at which two levels differ", "seriatim.sim.diverge:main", _diverge),
    "soak": Verb("run random nets on every level until the time is over", "seriatim.sim.soak:main", _soak),
    "report": Verb("show the report of a run", "seriatim.sim.report:main", _report),
    "emit": Verb("write the accelerator as Verilog, with C header and manuals", "seriatim.hw.emit:main", _emit),
    "dump": Verb("write an artefact's programs and memory as plain files", "seriatim.compiler.dump:main", _dump),
    "asm": Verb("assemble a program", "seriatim.isa:main_asm", _asm),
    "disasm": Verb("list a program", "seriatim.isa:main_disasm", _disasm),
    "cocotb": Verb("run the cocotb testbenches", "seriatim.cli:main_cocotb", _cocotb),
    "bench": Verb("measure the published figures", "seriatim.sim.bench:main", _bench),
    "run": Verb("run an artefact on a board and compare every tensor", "seriatim.boards.run:main", _on_device),
    "board": Verb("list the boards, or simulate one for a driver of yours", "seriatim.boards.build:main_board", _board),
    "bitstream": Verb("synthesise, place and route a board's machine", "seriatim.boards.build:main_bitstream", _bitstream),
    "manual": Verb("write the manual's generated pages (ISA, registers)", "seriatim.isa:main_manual", _manual),
}


def main_cocotb(args: argparse.Namespace) -> int:
    """Run tests/cocotb of the tree in the current folder under pytest; returns its exit status."""
    if not os.path.isdir("tests/cocotb"):
        raise SeriatimError("no tests/cocotb in the current folder: `seriatim cocotb` runs the testbenches of a source tree; "
                            "change to its root")
    pytest = importlib.import_module("pytest")
    tests = [t if os.path.exists(t) else f"tests/cocotb/{t}" for t in args.tests]
    return int(pytest.main(["-q", *(tests or ["tests/cocotb"])]))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="seriatim", description="Low-bit networks on a bit-serial accelerator, simulated exactly.")
    top.add_argument("--version", action="version", version=f"seriatim {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verb.arguments(verbs.add_parser(name, help=verb.help, description=verb.help))
    return top


def load(target: str) -> Callable[[argparse.Namespace], int | None]:
    """The function named `module:function`. Raises SeriatimError where this version does not have it."""
    module, function = target.split(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as e:
        if e.name == module:
            raise SeriatimError(f"this verb needs {module}, which this version does not have yet") from None
        if e.name and e.name.split(".")[0] == "seriatim":
            raise
        raise SeriatimError(f"the Python package {e.name!r} is missing: `make env` installs what pyproject.toml pins") from e
    except AttributeError as e:
        if e.name == function:
            raise SeriatimError(f"this verb needs {target}, which this version does not have yet") from None
        raise


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came. (Where a KeyboardInterrupt itself passes through code that a library evaluates, Python ends by
    SIGINT in the end, whatever the exit status.)"""


class Interrupts:
    """Turns SIGINT and SIGTERM into `Stopped`, so that whatever is half done is cleaned up, and remembers the signal: libraries
    turn the exception into others of their own. None is heeded any more once the work is over."""

    def __init__(self):
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _) -> None:
        self.signal = number
        raise Stopped

    def end(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv`, by default the process's own, whose signals are heeded then; returns the exit status."""
    interrupts = Interrupts() if argv is None else None
    try:
        return _main(argv, interrupts)
    finally:
        if interrupts:
            interrupts.end()


def _main(argv: list[str] | None, interrupts: Interrupts | None) -> int:
    try:
        args = parser().parse_args(argv)
        return load(VERBS[args.verb].target)(args) or 0
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt) or interrupts and interrupts.signal:
            print("\nseriatim: stopped", file=sys.stderr)
            return 128 + (interrupts and interrupts.signal or signal.SIGINT)
        if isinstance(e, SeriatimError):
            print(f"seriatim: error: {e}", file=sys.stderr)
            return 1
        if isinstance(e, BrokenPipeError):  # `seriatim disasm ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
