"""Packed checkpoints: a trained low-bit net in one small file, one bit for each one-bit weight.

    magic "SRTMCKPT", uint32 length of the header, JSON header, packed arrays, sha256 of all before it

The header lists net, quantisation, metadata and, for each array, its place, shape and kind. Weight
codes are packed least significant plane first, eight codes of one plane to a byte, with their formats and tables and a float64
scale for each output channel; everything else (batch norms, biases, activations' scales and levels) keeps its type.
Version 1, which held SLB and uniform weights alone, is read as well.
"""

import copy
import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from seriatim.algo.graph import GraphNet
from seriatim.algo.layers import Layer
from seriatim.algo.nets import Net, build, set_hard
from seriatim.algo.quantisers.base import WeightQuantiser
from seriatim.algo.quantisers.model import restore_
from seriatim.algo.quantisers.scheme import SLB, Scheme, pair_name
from seriatim.algo.quantisers.stored import StoredWeight
from seriatim.errors import CheckpointError, ConfigError
from seriatim.formats import Format, Kind
from seriatim.sim import files

MAGIC = b"SRTMCKPT"
VERSION = 2
CODES = "codes"
"""Kind of an array of packed codes; the others are NumPy's types."""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself.

    Attributes:
        net, quant (a pair as `scheme.pair_of` takes it), w, a, first_last: as on the command line.
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


def _quantisers(net: Net) -> dict[str, WeightQuantiser]:
    """By the name of their layer."""
    return {name.removesuffix(".quantiser"): m for name, m in net.named_modules() if isinstance(m, WeightQuantiser)}


def _entry(name: str, value: np.ndarray) -> tuple[dict, bytes]:
    value = value.astype(value.dtype.newbyteorder("<"))
    return {"name": name, "kind": value.dtype.name, "shape": list(value.shape)}, value.tobytes()


def _arrays(net: Net) -> list[tuple[dict, bytes]]:
    parts = []
    for name, quantiser in _quantisers(net).items():
        quantiser = copy.deepcopy(quantiser).cpu().double()  # as the export takes it
        codes, bits = quantiser.codes().cpu().numpy(), quantiser.bits
        formats = [str(form) for form in quantiser.formats]
        entry = {"name": name, "kind": CODES, "shape": list(codes.shape), "bits": bits, "formats": formats}
        parts.append((entry, pack_codes(codes & (1 << bits) - 1, bits)))
        parts.append(_entry(f"{name}.scale", quantiser.scale().cpu().numpy()))
    for name, value in net.state_dict().items():
        if ".quantiser." not in name and not name.endswith("num_batches_tracked"):
            parts.append(_entry(name, value.cpu().contiguous().numpy()))
    return parts


def save(net: Net, metadata: Metadata, path: Path) -> Path:
    """Write the argmax weights and everything the integer network needs; atomic.

    Raises:
        ConfigError: a float net, or metadata of another net or other widths.
        CheckpointError: a value that is not finite.
    """
    config = net.quantisation
    wanted = (metadata.net, metadata.quant, metadata.w, metadata.a, metadata.first_last)
    if config is None:
        raise ConfigError(f"{net.name} is a float net: packed checkpoints hold low-bit nets")
    if wanted != (net.name, pair_name(config.weight, config.act), config.weight_bits, config.act_bits, config.first_last):
        raise ConfigError(f"metadata of {wanted} for {net.name} with {config}: they must agree")
    parts = _arrays(net)
    for entry, raw in parts:
        if entry["kind"].startswith("float") and not np.isfinite(np.frombuffer(raw, entry["kind"])).all():
            raise CheckpointError(f"{entry['name']} holds NaN or infinity: the training diverged")
    place, entries = 0, []
    for entry, raw in parts:
        entries.append({**entry, "at": place, "bytes": len(raw)})
        place += len(raw)
    header = {
        "version": VERSION, "metadata": asdict(metadata), "quantisation": config.to_dict(), "graph": net.spec(), "arrays": entries
    }  # fmt: skip
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
    if version not in (1, VERSION):
        raise CheckpointError(
            f"{path}: version {version} of the format, this program reads 1 and {VERSION}; train it anew or "
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
        if header["version"] == 1:
            scheme = SLB(metadata.w, metadata.a, metadata.first_last)
        else:
            scheme = Scheme.from_dict(header["quantisation"])
        arrays = {entry["name"]: _array(entry, body, path) for entry in header["arrays"]}
        weights = _weights(header, arrays, path)
        with torch.random.fork_rng():
            graph = header.get("graph")
            net = GraphNet.from_spec(graph) if graph else build(metadata.net, metadata.classes)
            for name, module in net.named_modules():
                if isinstance(module, Layer):
                    _expect(arrays, name, path, module.shape)
            restore_(net, scheme, weights)
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    state = net.state_dict()
    for name, value in state.items():
        if name in arrays:
            found = _expect(arrays, name, path, value.shape)
            state[name] = torch.from_numpy(found.copy()).to(value.dtype)
        elif ".quantiser." not in name and not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"{path}: {name} is missing; the file is of another version")
    net.load_state_dict(state)
    net.dataset = metadata.dataset if graph else net.dataset
    set_hard(net)
    return net.eval(), metadata


def _weights(header: dict, arrays: dict, path) -> dict[str, StoredWeight]:
    """The weights by the names of their layers, which `arrays` gets too (version 1 has the quantisers' names)."""
    found = {}
    for entry in header["arrays"]:
        kind, name = entry["kind"], entry["name"].removesuffix(".quantiser")
        if kind == CODES:
            formats, scale = tuple(map(Format.parse, entry["formats"])), _expect(arrays, f"{name}.scale", path)
        elif kind.startswith(("bipolar", "int")) and kind != "int64":
            formats = (Format.parse(kind),)
            if kind.startswith("bipolar"):
                scale = np.full(entry["shape"][0], 1 / (2 ** formats[0].bits - 1))
            else:
                scale = _expect(arrays, f"{entry['name']}.peak", path).astype(np.float64) / (2 ** (formats[0].bits - 1) - 1)
        else:
            continue
        codes = arrays[name] = arrays[entry["name"]]
        if formats[0].kind is Kind.INT:  # patterns; version 1 counts from the lowest
            half = 1 << formats[0].bits - 1
            codes = (codes + half) % (2 * half) - half if kind == CODES else codes - half
        found[name] = StoredWeight(torch.from_numpy(codes.copy()), formats, torch.from_numpy(np.array(scale, np.float64)))
    return found


def _array(entry: dict, body: bytes, path) -> np.ndarray:
    raw, shape = body[entry["at"] : entry["at"] + entry["bytes"]], tuple(entry["shape"])
    kind = entry["kind"]
    if kind in ("float32", "float64", "int64", "bool"):
        found = np.frombuffer(raw, np.dtype(kind).newbyteorder("<")).reshape(shape)
        if kind.startswith("float") and not np.isfinite(found).all():
            raise CheckpointError(f"{path}: {entry['name']} holds NaN or infinity; train it anew")
        return found
    return unpack_codes(raw, shape, entry["bits"] if kind == CODES else Format.parse(kind).bits)


def _expect(arrays, name, path, shape=None) -> np.ndarray:
    if name not in arrays:
        raise CheckpointError(f"{path}: {name} is missing; the file is of another version")
    if shape is not None and tuple(arrays[name].shape) != tuple(shape):
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(arrays[name].shape)}, the net needs {tuple(shape)}; "
            "it is of another net"
        )
    return arrays[name]
