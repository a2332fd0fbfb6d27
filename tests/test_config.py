"""Config: derived values, and every rule broken once."""

import dataclasses

import pytest

from seriatim.config import Config
from seriatim.errors import ConfigError


def test_default_machine():
    c = Config()
    assert (c.m, c.n, c.k, c.peak) == (7, 8, 64, 3584)
    assert c.on_chip_bytes <= 320 * 1024


@pytest.mark.parametrize("change, message", [
    ({"m": 0}, "m=0"), ({"m": 33}, "m=33"), ({"k": 48}, "k=48"), ({"n": 7}, "n=7 with k=64"), ({"n": 0}, "n=0"),
    ({"axi_bits": 48}, "axi_bits=48"), ({"k": 32}, "k=32 with axi_bits=64"),
    ({"n": 1, "axi_bits": 256, "k": 256}, "n=1 with axi"),
    ({"act_words": 1 << 16}, "act_words=65536"), ({"out_words": 8}, "out_words=8"), ({"line_bytes": 100}, "line_bytes=100"),
    ({"max_planes": 17}, "max_planes=17"), ({"marks": 257}, "marks=257"), ({"queue": 1}, "queue=1"), ({"m": "7"}, "m='7'"),
    ({"outstanding": 0}, "outstanding=0"),
])
def test_rules_quote_the_value(change, message):
    with pytest.raises(ConfigError) as error:
        Config(**change)
    assert message in str(error.value) and ":" in str(error.value)


def test_hash_tells_every_member_apart():
    base, compact = Config(), Config(m=1, n=1, k=32, axi_bits=32, compact=1)
    hashes = {base.hash, compact.hash, dataclasses.replace(compact, compact=0).hash}
    others = [f for f in dataclasses.fields(Config) if f.name != "compact"]
    for f in others:
        other = {"m": 6, "n": 16, "k": 128, "axi_bits": 32, "line_bytes": 4096, "max_planes": 8,
                 "multiplier_stages": 2}.get(f.name)
        hashes.add(dataclasses.replace(base, **{f.name: other or getattr(base, f.name) + 1}).hash)
    assert len(hashes) == 3 + len(others)
    assert Config().hash == base.hash


def test_sizes():
    c = Config(m=2, n=4, k=32, axi_bits=32)
    assert (c.peak, c.tiles_per_word, c.word_bytes, c.wgt_word_bytes, c.prm_word_bytes, c.raw_words) == (256, 8, 4, 16, 64, 4)
    assert Config(m=1, n=1, k=64).raw_words == 1
