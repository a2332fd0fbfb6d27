"""Number formats: values against their definitions."""

import pytest

from seriatim.errors import ConfigError
from seriatim.formats import Format, Kind


@pytest.mark.parametrize("text", ["uint8", "uint8z3", "int4", "bipolar1", "log4r2", "log4r1s", "uint16"])
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
    (lambda: Format.parse("log4r1").value(1), "linear"),
])
def test_bad_formats(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_top_planes():
    assert Format.parse("uint8z16").top(4) == Format.parse("uint4z1")
    assert Format.parse("int8").top(3) == Format.parse("int3")
