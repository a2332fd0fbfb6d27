import hashlib
import json
import struct

import numpy as np
import pytest
import torch

from seriatim.algo import checkpoint
from seriatim.algo.checkpoint import Metadata, pack_codes, unpack_codes
from seriatim.algo.export import export_integer
from seriatim.algo.layers import SLB
from seriatim.algo.nets import build, quantize_, set_hard
from seriatim.errors import CheckpointError, ConfigError


def digits(w=1, a=8, first_last=None):
    torch.manual_seed(4)
    net = quantize_(build("digits"), SLB(w, a, first_last))
    with torch.no_grad():
        net.train()(torch.randint(0, 256, (8, 1, 8, 8)).float())
    set_hard(net)
    return net.eval(), Metadata("digits", w, a, first_last=first_last, image_size=8)


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(*digits(), tmp_path / "net.ckpt")


def resealed(path, change):
    """The file with another header, its checksum made right again."""
    raw = path.read_bytes()[:-32]
    (length,) = struct.unpack_from("<I", raw, 8)
    header, body = json.loads(raw[12 : 12 + length]), bytearray(raw[12 + length :])
    change(header, body)
    text = json.dumps(header).encode()
    raw = raw[:8] + struct.pack("<I", len(text)) + text + bytes(body)
    path.write_bytes(raw + hashlib.sha256(raw).digest())


@pytest.mark.parametrize("w, a, first_last", [(1, 8, None), (3, 4, 8), (4, 1, None), (7, 2, None)])
def test_round_trip_to_the_bit(tmp_path, w, a, first_last):
    net, metadata = digits(w, a, first_last)
    path = checkpoint.save(net, metadata, tmp_path / "net.ckpt")
    other, found = checkpoint.load(path, "digits")
    assert found == metadata == checkpoint.read_metadata(path)
    old, new = (dict(export_integer(n).named_buffers()) for n in (net, other))
    assert all(torch.equal(old[name], new[name]) for name in old)
    again = checkpoint.save(other, found, tmp_path / "again.ckpt")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 5, 2))
    raw = pack_codes(codes, bits)
    assert len(raw) == bits * 4
    assert (unpack_codes(raw, codes.shape, bits) == codes).all()


def test_one_bit_weights_take_one_bit(saved):
    parts = {e["name"]: e for e in json.loads(_header(saved))["arrays"]}
    assert parts["conv2"]["bytes"] == 16 * 16 * 9 // 8


def _header(path):
    raw = path.read_bytes()
    return raw[12 : 12 + struct.unpack_from("<I", raw, 8)[0]]


def test_truncated_flipped_or_foreign_files_are_refused(saved):
    raw = saved.read_bytes()
    for content, words in (
        (raw[:-40], "truncated or damaged"),
        (raw[:20], "truncated or damaged"),
        (raw[:500] + bytes([raw[500] ^ 4]) + raw[501:], "sha256 does not match"),
        (b"PK" + raw, "starts with"),
        (b"", "starts with"),
    ):
        saved.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(saved)
    with pytest.raises(CheckpointError, match="train it"):
        checkpoint.load(saved.parent / "none.ckpt")


def test_another_net_is_refused(saved):
    with pytest.raises(CheckpointError, match="of digits, not of resnet20"):
        checkpoint.load(saved, "resnet20")


def test_illegal_values_are_refused(saved):
    raw = saved.read_bytes()

    def nan(header, body):
        entry = next(e for e in header["arrays"] if e["name"] == "conv1.bn.weight")
        body[entry["at"] : entry["at"] + 4] = struct.pack("<f", float("nan"))

    def missing(header, body):
        header["arrays"] = [e for e in header["arrays"] if e["name"] != "conv1.bn.weight"]

    def shape(header, body):
        entry = next(e for e in header["arrays"] if e["name"] == "fc.bias")
        entry["shape"], entry["bytes"] = [5], 20

    def version(header, body):
        header["version"] = 99

    def net(header, body):
        header["metadata"]["net"] = "lenet"

    def metadata(header, body):
        header["metadata"]["colour"] = 1

    for change, words in (
        (nan, "conv1.bn.weight holds NaN"),
        (missing, "conv1.bn.weight is missing"),
        (shape, r"fc.bias has shape \(5,\)"),
        (version, "version 99"),
        (net, "'lenet'"),
        (metadata, "colour"),
    ):
        saved.write_bytes(raw)
        resealed(saved, change)
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load(saved)


def test_saving_refuses_what_cannot_be_loaded(tmp_path):
    net, metadata = digits()
    with pytest.raises(ConfigError, match="float net"):
        checkpoint.save(build("digits"), metadata, tmp_path / "x")
    with pytest.raises(ConfigError, match="agree"):
        checkpoint.save(net, Metadata("digits", 2, 8), tmp_path / "x")
    with torch.no_grad():
        net.conv1.bn.weight[0] = float("inf")
    with pytest.raises(CheckpointError, match="diverged"):
        checkpoint.save(net, metadata, tmp_path / "x")
    assert not (tmp_path / "x").exists()
