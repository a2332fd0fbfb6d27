"""How small a net becomes: pruned, quantised, Huffman-coded, beside float32.

Han et al., "Deep Compression", ICLR 2016, as Park et al. (CVPR 2017, Table 1) apply it: the weights of smallest magnitude leave,
their places are stored as distances from one weight to the next, the others as codes; both are Huffman-coded layer by layer.
Counted are the weights and activations of convolutions, fully connected layers and pools; biases and batch norms are in neither.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seriatim.algo.codes import Codes
from seriatim.algo.huffman import Huffman, entropy
from seriatim.algo.layers import AveragePool, Layer, MaxPool
from seriatim.algo.nets import Net
from seriatim.algo.quantisers.base import WeightQuantiser
from seriatim.algo.quantisers.registry import weight_quantiser
from seriatim.errors import ConfigError
from seriatim.formats import Kind
from seriatim.sim import files

FLOAT_BITS = 32
TABLE_ENTRY_BITS = 16
"""Of a codebook's integers."""
INDEX_WIDTHS = range(2, 9)


@dataclass(frozen=True)
class WeightSize:
    """One layer's weights. Sizes are in bits.

    Attributes:
        weights, kept: their number before and after pruning.
        code_bits: of a code. index_bits: of a distance between kept weights, 0 without pruning.
        float32: all weights as they were.
        quantised: the kept ones' codes, distances, scales and codebooks.
        huffman: the same with codes and distances Huffman-coded, their tables included.
        bound: the same by the entropies of codes and distances, which no code of single symbols falls below.
        code_entropy, code_huffman: bits a code.
    """

    name: str
    weights: int
    kept: int
    code_bits: int
    index_bits: int
    float32: int
    quantised: int
    huffman: int
    bound: float
    code_entropy: float
    code_huffman: float


@dataclass(frozen=True)
class ActivationSize:
    """One layer's output for one image: elements, and bits of each."""

    name: str
    elements: int
    bits: int


def relative_indices(kept: np.ndarray, bits: int) -> np.ndarray:
    """Distances that locate the True places of a flat mask: the zeros before each, in `bits` bits.

    The largest value 2^bits - 1 skips so many zeros without a weight behind them.
    """
    places = np.flatnonzero(kept)
    gaps = np.diff(places, prepend=-1) - 1
    skips, rest = np.divmod(gaps, 2**bits - 1)
    found = np.full(len(places) + int(skips.sum()), 2**bits - 1)
    found[np.arange(len(places)) + np.cumsum(skips)] = rest
    return found


def places_of(indices: np.ndarray, bits: int) -> np.ndarray:
    """The places that `relative_indices` located."""
    skip = indices == 2**bits - 1
    return (np.cumsum(indices + ~skip) - 1)[~skip]


def keep_largest(weight: Tensor, share: float = 0.0, deviations: float = 0.0) -> Tensor:
    """Mask of the weights that stay: without the `share` of smallest magnitude, or without those up to so many standard
    deviations of the layer.

    Raises:
        ConfigError: a share outside 0..1 (1 excluded), negative deviations, both, or no weight that stays.
    """
    if not 0 <= share < 1 or deviations < 0 or (share and deviations):
        raise ConfigError(f"pruning of a share {share} and of {deviations} deviations: give a share of at least 0 and below 1, "
                          "or deviations of at least 0, not both")
    size = weight.detach().abs().flatten()
    leave = round(share * size.numel())
    if deviations:
        kept = size > deviations * weight.detach().std(correction=0)
    else:
        kept = torch.ones_like(size, dtype=torch.bool)
        kept[size.argsort(stable=True)[:leave]] = False
    if not kept.any():
        raise ConfigError(f"pruning of {share or f'{deviations} deviations'} leaves no weight of {size.numel()}; prune less")
    return kept.view(weight.shape)


def weight_size(name: str, quantiser: WeightQuantiser, kept: np.ndarray | None = None) -> WeightSize:
    """Sizes of what a quantiser holds. `kept`: the flat mask of the layer whose True places its codes fill, in order."""
    forms, scales = quantiser.formats, quantiser.scale()
    codes = quantiser.codes().flatten().cpu().numpy() - (forms[0].lo if forms[0].kind is Kind.INT else 0)
    bits = forms[0].bits
    sides = FLOAT_BITS * len(scales.unique())
    sides += sum(len(form.table) for form in forms) * TABLE_ENTRY_BITS
    streams = [(np.bincount(codes, minlength=2**bits), bits)]
    index_bits = 0
    if kept is not None and not kept.all():
        choices = {width: relative_indices(kept, width) for width in INDEX_WIDTHS}
        index_bits = min(choices, key=lambda width: width * len(choices[width]))
        streams.append((np.bincount(choices[index_bits], minlength=2**index_bits), index_bits))
    coded = [Huffman(counts) for counts, _ in streams]
    count = len(codes) if kept is None else len(kept)
    return WeightSize(
        name, count, len(codes), bits, index_bits, FLOAT_BITS * count,
        sides + sum(int(counts.sum()) * width for counts, width in streams),
        sides + sum(code.bits + code.table_bits for code in coded),
        sides + sum(float(counts.sum()) * entropy(counts) for counts, _ in streams),
        entropy(streams[0][0]), coded[0].bits / len(codes),
    )  # fmt: skip


def layers(net: Net) -> dict[str, Layer]:
    return {name: module for name, module in net.named_modules() if isinstance(module, Layer)}


def float_weights(net: Net, quant: str, bits: int, *, share: float = 0.0, deviations: float = 0.0) -> list[WeightSize]:
    """Sizes of a float net's weights by any quantiser of the registry, as they are: nothing is trained.

    What is left of a pruned layer is quantised together, with one scale.

    Raises:
        ConfigError: as `weight_quantiser` and `keep_largest`.
    """
    rows = []
    quant = quant.partition("+")[0]  # its weight half
    for name, layer in layers(net).items():
        weight, kept = layer.weight.detach(), None
        if share or deviations:
            mask = keep_largest(weight, share, deviations)
            kept, weight = mask.flatten().cpu().numpy(), weight[mask][None]
        rows.append(weight_size(name, weight_quantiser(quant, weight, bits), kept))
    return rows


def low_bit_weights(net: Net) -> list[WeightSize]:
    """Sizes of a low-bit net's weights."""
    return [weight_size(name, layer.quantiser) for name, layer in layers(net).items()]


@torch.no_grad()
def activations(net: Net, bits: int, image_size: int | None = None) -> list[ActivationSize]:
    """Outputs of a net's layers for one image. `bits`: of an element where the net is float and does not say it."""
    size, found, hooks = image_size or net.image_size, [], []
    for name, module in net.named_modules():
        if isinstance(module, Layer | MaxPool | AveragePool):

            def keep(module: nn.Module, args, y, name=name):
                codes = isinstance(y, Codes)
                given = FLOAT_BITS if getattr(module, "gives_output", False) else bits
                tensor, width = (y.tensor, y.format.bits) if codes else (y, given)
                found.append(ActivationSize(name, tensor[0].numel(), width))

            hooks.append(module.register_forward_hook(keep))
    training = net.training
    net.eval().simulate(torch.zeros(1, net.channels, size, size))
    net.train(training)
    for hook in hooks:
        hook.remove()
    return found


def report(net: Net, quant: str, w: int, a: int, *, share: float = 0.0, deviations: float = 0.0, image_size=None) -> dict:
    """The compression of a net as JSON values, sizes in bits: a low-bit net's as it is, a float one's by `quant`.

    Raises:
        ConfigError: pruning of a low-bit net, and as `float_weights`.
    """
    if net.quantisation is not None and (share or deviations):
        raise ConfigError(f"pruning of {net.name}, which is low-bit: magnitudes are those of float weights; give a float net")
    if net.quantisation is not None:
        weights = low_bit_weights(net)
    else:
        weights = float_weights(net, quant, w, share=share, deviations=deviations)
    acts = activations(net, a, image_size)
    fields = "weights", "kept", "float32", "quantised", "huffman", "bound"
    total = {name: sum(getattr(row, name) for row in weights) for name in fields}
    total |= {"activations_float32": sum(row.elements for row in acts) * FLOAT_BITS,
              "activations": sum(row.elements * row.bits for row in acts)}
    return {"net": net.name, "quant": quant, "w": w, "a": a, "pruned_share": share, "pruned_deviations": deviations,
            "image": image_size or net.image_size, "weights": [asdict(row) for row in weights],
            "activations": [asdict(row) for row in acts], "total_bits": total}


def _kib(bits: float) -> str:
    return f"{bits / 8192:,.1f}"


def show(found: dict) -> None:
    """Prints a report as a table, sizes in KiB."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=f"{found['net']} W{found['w']}A{found['a']} ({found['quant']}), KiB",
                  title_justify="left")
    for column in ("layer", "weights", "kept", "float32", "quantised", "Huffman", "entropy", "bits", "Huffman bits",
                   "entropy bits", "act.", "act. float32"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    acts = {row["name"]: row for row in found["activations"]}
    sizes = {row["name"]: row for row in found["weights"]}
    for name, act in acts.items():
        row = sizes.get(name)
        cells = [""] * 9
        if row:
            cells = [f"{row['weights']:,}", f"{row['kept'] / row['weights']:.1%}", *(_kib(row[k]) for k in
                     ("float32", "quantised", "huffman", "bound")), str(row["code_bits"]), f"{row['code_huffman']:.3f}",
                     f"{row['code_entropy']:.3f}"]
        table.add_row(name, *cells, _kib(act["elements"] * act["bits"]), _kib(act["elements"] * FLOAT_BITS))
    total = found["total_bits"]
    table.add_section()
    table.add_row("total", f"{total['weights']:,}", f"{total['kept'] / total['weights']:.1%}",
                  *(_kib(total[k]) for k in ("float32", "quantised", "huffman", "bound")), "", "", "",
                  _kib(total["activations"]), _kib(total["activations_float32"]))
    Console(width=None if Console().is_terminal else 160).print(table)
    print(f"weights: {total['float32'] / total['quantised']:.1f}x smaller quantised, {total['float32'] / total['huffman']:.1f}x "
          f"Huffman-coded; activations: {total['activations_float32'] / total['activations']:.1f}x smaller")


def main(args) -> None:
    """`seriatim compress`."""
    from seriatim.algo.trained import load_float, load_net, settle

    settle(args)
    if args.start:
        net = load_float(Path(args.start), args.net, 10)
    else:
        net, _ = load_net(args.net, args.quant, args.w, args.a, args.first_last, path=args.checkpoint)
    found = report(net, args.quant, args.w, args.a, share=args.prune, deviations=args.prune_deviations, image_size=args.image)
    show(found)
    name = f"{args.net}-{args.quant}-w{args.w}a{args.a}"
    path = files.write(Path(args.out or Path("build", "compress", name), "compression.json"), json.dumps(found, indent=1) + "\n")
    print(f"report: {path}")
