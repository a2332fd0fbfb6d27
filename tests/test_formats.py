"""Number formats: values against their definitions."""

import pytest

from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind


@pytest.mark.parametrize("text", [
    "uint8", "uint8z3", "int4", "bipolar1", "log4r2", "log4r1s", "log4r2k3", "log5r8k7s", "uint16", "codebook4",
    "codebook2[0,5,9,14]", "codebook1[-3,3]",
])
def test_text_and_back(text):
    assert str(Format.parse(text)) == text


@pytest.mark.parametrize("text, codes, values", [
    ("uint2", [0, 1, 2, 3], [0, 1, 2, 3]), ("uint2z1", [0, 1, 2, 3], [-1, 0, 1, 2]), ("int2", [-2, -1, 0, 1], [-2, -1, 0, 1]),
    ("bipolar1", [0, 1], [-1, 1]), ("bipolar2", [0, 1, 2, 3], [-3, -1, 1, 3]),
])
def test_values(text, codes, values):
    f = Format.parse(text)
    assert [f.value(c) for c in codes] == values
    assert (f.min_value, f.max_value) == (values[0], values[-1])
    assert (f.lo, f.hi) == (codes[0], codes[-1])


@pytest.mark.parametrize("make, message", [
    (lambda: Format.parse("float8"), "'float8'"), (lambda: Format.parse("uint0"), "0 bits"),
    (lambda: Format.parse("uint17"), "17 bits"),
    (lambda: Format.parse("uint2z4"), "zero point 4"), (lambda: Format(Kind.INT, 4, zero=1), "only uint"),
    (lambda: Format(Kind.LOG, 4, residues=3), "3 residue"), (lambda: Format(Kind.CODEBOOK, 2, table=(1, 2)), "2 entries"),
    (lambda: Format.parse("uint8z3").top(4), "zero point"), (lambda: Format.parse("int4").top(5), "5 top planes"),
    (lambda: Format.parse("log4r1").value(1), "linear"), (lambda: Format(Kind.INT, 4, step=2), "step 2 on int: only log"),
    (lambda: Format(Kind.LOG, 4, step=0), "step 0"),
])
def test_bad_formats(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_top_planes():
    assert Format.parse("uint8z16").top(4) == Format.parse("uint4z1")
    assert Format.parse("int8").top(3) == Format.parse("int3")


@pytest.mark.parametrize("text, values", [
    ("uint2z1", [-1, 0, 1, 2]), ("int2", [0, 1, -2, -1]), ("bipolar2", [-3, -1, 1, 3]), ("log2r1", [0, 1, 2, 4]),
    ("log2r1k2", [0, 1, 4, 16]), ("log3r1s", [0, 1, 2, 4, 0, -1, -2, -4]),
    ("log3r2", [0, 16384, 23170, 32768, 46340, 65536, 92680, 131072]), ("log2r2k3", [0, 16384, 46340, 131072]),
])
def test_values_of_all_codes(text, values):
    """16384 = 2^14 and 23170 = round(2^14.5)."""
    assert list(Format.parse(text).values) == values


def test_a_codebooks_values_are_its_table():
    assert Format(Kind.CODEBOOK, 2, table=(-7, -2, 2, 7)).values == (-7, -2, 2, 7)
