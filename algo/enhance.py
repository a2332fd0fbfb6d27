"""`seriatim enhance`: what a super-resolution net makes of a folder of pictures, in PSNR and SSIM beside bicubic scaling."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from seriatim.algo import checkpoint
from seriatim.algo.nets import Net
from seriatim.algo.superres import SuperResolution, pairs_of, psnr, read_folder, shave, ssim, to_codes
from seriatim.errors import ConfigError


@dataclass(frozen=True)
class Scores:
    """PSNR (dB) and SSIM at one scale, the means over the images: of bicubic scaling, and of the net."""

    scale: int
    images: int
    bicubic: tuple[float, float]
    net: tuple[float, float]


@torch.no_grad()
def enhanced(net: Net, low: np.ndarray) -> np.ndarray:
    """uint8 luma (H, W) that the net makes of scaled-up luma; a low-bit net by its integer network."""
    return to_codes(net.eval()(torch.from_numpy(low)[None, None].float())[0, 0].double().numpy() * 255)


def scores(net: Net, images: list[np.ndarray], scale: int, keep=lambda number, image: None) -> Scores:
    """Measured on the luma of `images` without a border as wide as the scale. `keep` gets each enhanced luma."""
    found = []
    for number, pair in enumerate(pairs_of(images, (scale,))):
        made = enhanced(net, pair.low)
        keep(number, made)
        wanted = shave(pair.high, scale)
        found.append([(measure(shave(pair.low, scale), wanted), measure(shave(made, scale), wanted)) for measure in (psnr, ssim)])
    mean = np.mean(found, axis=0)
    return Scores(scale, len(found), tuple(mean[:, 0].tolist()), tuple(mean[:, 1].tolist()))


def load_net(path: Path) -> Net:
    """A super-resolution net of a packed checkpoint, or a float VDSR.

    Raises:
        CheckpointError: see `checkpoint.load` and `trained.load_float`. ConfigError: another kind of net.
    """
    from seriatim.algo.trained import load_float

    net = checkpoint.load(path)[0] if path.suffix == ".ckpt" else load_float(path, "vdsr", 1)
    if not isinstance(net.task, SuperResolution):
        raise ConfigError(f"{path}: {net.name} is no super-resolution net; train one by `seriatim train --net vdsr`")
    return net


def main(args) -> None:
    """Prints a row for each scale; writes the images where `--out` says so."""
    from PIL import Image

    net, images = load_net(Path(args.path)), read_folder(Path(args.data))
    print(f"{'scale':>5} {'images':>6}   {'bicubic':>16}   {net.name:>16}")
    for scale in args.scale:

        def keep(number, made, scale=scale):
            if args.out:
                Path(args.out).mkdir(parents=True, exist_ok=True)
                Image.fromarray(made).save(Path(args.out, f"{number:03}-x{scale}.png"))

        row = scores(net, images, scale, keep)
        print(f"{row.scale:>5} {row.images:>6}   {row.bicubic[0]:6.2f} dB {row.bicubic[1]:.4f}   "
              f"{row.net[0]:6.2f} dB {row.net[1]:.4f}", flush=True)
