"""Packed checkpoints: a trained low-bit net in one small file, one bit for each one-bit weight.

    magic "SRTMCKPT", uint32 length of the header, JSON header, packed arrays, sha256 of all before it

The header lists net (its graph too, where that is no net of this package), quantisation, metadata and, for each array, its
place, shape and kind. Weight
codes are packed least significant plane first, eight codes of one plane to a byte; everything else
(batch norms, biases, scales) is float32.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from seriatim.algo.graph import GraphNet
from seriatim.algo.nets import Net, build, quantize_, set_hard
from seriatim.algo.quantisers.scheme import SLB
from seriatim.algo.slb import SLBWeight, UniformWeight
from seriatim.errors import CheckpointError, ConfigError
from seriatim.sim import files

MAGIC = b"SRTMCKPT"
VERSION = 1
LOGIT_STEP = 1.0
"""Logit of the chosen level of a loaded SLB weight; the others are 0 (one bit: +-1)."""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
        net, quant, w, a, first_last: as on the command line.
        dataset, image_size, classes: what it was trained for.
        accuracy: of the integer network on the official test images (0..1; of an image net the PSNR in dB), or None.
        float_accuracy: of the float net trained alike, or None.
        test_images: how many images both were measured on.
        command: that made it. notes: anything else worth knowing.
    """

    net: str
    w: int
    a: int
    quant: str = "slb"
    first_last: int | None = None
    dataset: str = ""
    image_size: int = 0
    classes: int = 10
    accuracy: float | None = None
    float_accuracy: float | None = None
    test_images: int = 0
    command: str = ""
    notes: dict = field(default_factory=dict)


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Unsigned codes below 2^bits, as `bits` planes of ceil(n / 8) bytes, lowest plane first."""
    flat = codes.reshape(-1).astype(np.uint16)
    return b"".join(np.packbits((flat >> k & 1).astype(np.uint8)).tobytes() for k in range(bits))


def unpack_codes(raw: bytes, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """The codes that `pack_codes` packed (int32)."""
    count = int(np.prod(shape))
    planes = np.frombuffer(raw, np.uint8).reshape(bits, -1)
    found = np.unpackbits(planes, axis=1, count=count).astype(np.int32)
    return (found << np.arange(bits, dtype=np.int32)[:, None]).sum(0, dtype=np.int32).reshape(shape)


def _quantisers(net: Net) -> dict[str, SLBWeight | UniformWeight]:
    kinds = SLBWeight | UniformWeight
    return {name: m for name, m in net.named_modules() if isinstance(m, kinds)}


def _arrays(net: Net) -> list[tuple[dict, bytes]]:
    parts, packed = [], set()
    for name, quantiser in _quantisers(net).items():
        key = "logits" if isinstance(quantiser, SLBWeight) else "weight"
        packed.add(f"{name}.{key}")
        integers, bits = quantiser.integers().numpy(), quantiser.bits
        slb = isinstance(quantiser, SLBWeight)
        codes = (integers + 2**bits - 1) // 2 if slb else integers + 2 ** (bits - 1)
        entry = {"name": name, "kind": str(quantiser.format), "shape": list(integers.shape)}
        parts.append((entry, pack_codes(codes, bits)))
        if not slb:
            peak = quantiser.peak().numpy()
            entry = {"name": f"{name}.peak", "kind": "float32", "shape": list(peak.shape)}
            parts.append((entry, peak.astype("<f4").tobytes()))
    for name, value in net.state_dict().items():
        if name in packed or name.endswith("num_batches_tracked"):
            continue
        value = value.float().contiguous().numpy()
        entry = {"name": name, "kind": "float32", "shape": list(value.shape)}
        parts.append((entry, value.astype("<f4").tobytes()))
    return parts


def save(net: Net, metadata: Metadata, path: Path) -> Path:
    """Write the argmax weights and everything the integer network needs; atomic.

    Raises:
        ConfigError: a float net, or metadata of another net or other widths.
        CheckpointError: a value that is not finite.
    """
    config = net.quantisation
    wanted = (metadata.net, metadata.w, metadata.a, metadata.first_last)
    if config is None:
        raise ConfigError(f"{net.name} is a float net: packed checkpoints hold low-bit nets")
    if wanted != (net.name, config.weight_bits, config.act_bits, config.first_last):
        raise ConfigError(f"metadata of {wanted} for {net.name} with {config}: they must agree")
    parts = _arrays(net)
    for entry, raw in parts:
        if entry["kind"] == "float32" and not np.isfinite(np.frombuffer(raw, "<f4")).all():
            raise CheckpointError(f"{entry['name']} holds NaN or infinity: the training diverged")
    place, entries = 0, []
    for entry, raw in parts:
        entries.append({**entry, "at": place, "bytes": len(raw)})
        place += len(raw)
    header = {"version": VERSION, "metadata": asdict(metadata), "graph": net.spec(), "arrays": entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    body = MAGIC + struct.pack("<I", len(text)) + text + b"".join(raw for _, raw in parts)
    return files.write(path, body + hashlib.sha256(body).digest())


def _open(path: Path) -> tuple[dict, bytes]:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; train it or name another file") from error
    again = "fetch the file again or train it anew"
    if raw[: len(MAGIC)] != MAGIC:
        raise CheckpointError(
            f"{path}: starts with {raw[:8]!r}, a packed checkpoint with {MAGIC!r}; name another file"
        )
    body, digest = raw[:-32], raw[-32:]
    if len(raw) < len(MAGIC) + 36 or hashlib.sha256(body).digest() != digest:
        raise CheckpointError(
            f"{path}: {len(raw)} bytes whose sha256 does not match the one at their end: the file is "
            f"truncated or damaged; {again}"
        )
    (length,) = struct.unpack_from("<I", body, len(MAGIC))
    start = len(MAGIC) + 4 + length
    try:
        header = json.loads(body[len(MAGIC) + 4 : start])
        version = header["version"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: unreadable header ({error}); {again}") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path}: version {version} of the format, this program reads {VERSION}; train it anew or "
            "use the program that wrote it"
        )
    return header, body[start:]


def read_metadata(path: Path) -> Metadata:
    """The metadata alone (the checksum is checked).

    Raises:
        CheckpointError: missing, damaged or not a checkpoint.
    """
    return _metadata(_open(path)[0], path)


def _metadata(header: dict, path) -> Metadata:
    try:
        return Metadata(**header["metadata"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: metadata {error}; train it anew") from error


@torch.no_grad()
def load(path: Path, net_name: str | None = None) -> tuple[Net, Metadata]:
    """The low-bit net, hard and in eval mode, and its metadata.

    Its integer network is bit for bit that of the net that was saved.

    Args:
        net_name: the net that the caller expects, or None for any.

    Raises:
        CheckpointError: missing, truncated, damaged, of another net, or with values that are not
            finite or not of their format.
    """
    header, body = _open(path)
    metadata = _metadata(header, path)
    if net_name is not None and metadata.net != net_name:
        raise CheckpointError(
            f"{path}: a checkpoint of {metadata.net}, not of {net_name}; name another file or --net"
        )
    try:
        config = SLB(metadata.w, metadata.a, metadata.first_last)
        with torch.random.fork_rng():
            graph = header.get("graph")
            net = GraphNet.from_spec(graph) if graph else build(metadata.net, metadata.classes)
            quantize_(net, config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    arrays = {entry["name"]: _array(entry, body, path) for entry in header["arrays"]}
    state = net.state_dict()
    for name, quantiser in _quantisers(net).items():
        slb = isinstance(quantiser, SLBWeight)
        key = f"{name}.{'logits' if slb else 'weight'}"
        integers = _expect(arrays, name, path, state[key].shape[:4])
        if slb:
            state[key] = _logits(integers, quantiser.bits)
        else:
            state[key] = _uniform(integers, _expect(arrays, f"{name}.peak", path), quantiser.bits)
    for name, value in state.items():
        if name in arrays:
            found = _expect(arrays, name, path, value.shape)
            state[name] = torch.from_numpy(found.copy()).to(value.dtype)
        elif not name.endswith(("num_batches_tracked", ".logits", "quantiser.weight")):
            raise CheckpointError(f"{path}: {name} is missing; the file is of another version")
    net.load_state_dict(state)
    net.dataset = metadata.dataset if graph else net.dataset
    set_hard(net)
    return net.eval(), metadata


def _array(entry: dict, body: bytes, path) -> np.ndarray:
    raw, shape = body[entry["at"] : entry["at"] + entry["bytes"]], tuple(entry["shape"])
    kind = entry["kind"]
    if kind == "float32":
        found = np.frombuffer(raw, "<f4").reshape(shape)
        if not np.isfinite(found).all():
            raise CheckpointError(f"{path}: {entry['name']} holds NaN or infinity; train it anew")
        return found
    bits = int(kind.lstrip("bipolarnt"))
    codes = unpack_codes(raw, shape, bits)
    return 2 * codes - (2**bits - 1) if kind.startswith("bipolar") else codes - 2 ** (bits - 1)


def _expect(arrays, name, path, shape=None) -> np.ndarray:
    if name not in arrays:
        raise CheckpointError(f"{path}: {name} is missing; the file is of another version")
    if shape is not None and tuple(arrays[name].shape) != tuple(shape):
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(arrays[name].shape)}, the net needs {tuple(shape)}; "
            "it is of another net"
        )
    return arrays[name]


def _logits(integers: np.ndarray, bits: int) -> torch.Tensor:
    integers = torch.from_numpy(integers.copy())
    if bits == 1:
        return integers.float() * LOGIT_STEP
    index = (integers + 2**bits - 1) // 2
    return torch.nn.functional.one_hot(index.long(), 2**bits).float() * LOGIT_STEP


def _uniform(integers: np.ndarray, peak: np.ndarray, bits: int) -> torch.Tensor:
    """Weights whose scale is to the bit the saved one: the largest of a channel is exactly its peak."""
    largest = 2 ** (bits - 1) - 1
    peak = peak.reshape(-1, 1, 1, 1)
    weight = integers.astype(np.float32) * (peak / np.float32(largest))
    return torch.from_numpy(np.where(abs(integers) == largest, np.sign(integers) * peak, weight))
