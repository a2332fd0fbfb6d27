"""Plain files of an artefact: a driver that knows nothing but them computes what the network does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from seriatim import cli, isa
from seriatim.compiler import dump
from seriatim.compiler.artefact import Artefact
from seriatim.compiler.codegen import generate
from seriatim.csr import ADDR, Status
from seriatim.errors import ArtefactError
from seriatim.sim import random_layers
from seriatim.sim.session import IsaSession

BASE, PAGES = 0x8000_0000, 3
pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def case():
    return random_layers.draw(73)


@pytest.fixture(scope="module")
def compiled(case):
    return generate(case.region, case.config)


@pytest.mark.parametrize("base", [0, BASE])
def test_files_alone_run_the_program(case, compiled, tmp_path, base, capsys):
    """Memory and registers are filled from the files, as somebody else's driver would; only packing and unpacking are ours."""
    Artefact({"regions": [{}], "cpu_fallback": []}, b"", (compiled.to_bytes(),)).save(tmp_path / "artefact.zip")
    assert cli.main(["dump", str(tmp_path), "--out", str(tmp_path / "soc"), "--base", hex(base)]) == 0
    folder = tmp_path / "soc" / "region0"
    assert str(folder) in capsys.readouterr().out
    layout = json.loads((folder / "layout.json").read_text())
    session = IsaSession(case.config, layout["memory"]["size"], layout["memory"]["address"])
    assert session.config.hash == layout["config_hash"] and set(layout["registers"]) <= set(ADDR)
    for name in ("program", "image"):
        data = (folder / f"{name}.bin").read_bytes()
        assert len(data) == layout[name]["size"]
        session.write(layout[name]["address"], data)
    for place in layout["inputs"]:
        session.write(place["address"], compiled.pack(place["name"], case.inputs[place["name"]]))
    for name, value in layout["registers"].items():
        session.csr_write(name, value)
    session.csr_write("CTRL", 1)
    assert session.csr_read("STATUS") == Status.DONE | Status.INTERRUPT
    place, = layout["outputs"]
    found = compiled.unpack(place["name"], session.read(place["address"], place["size"]))
    assert (found == random_layers.by_torch(case)).all() and len(np.unique(found)) > 1


def test_text_of_the_program_assembles_to_it(compiled):
    files = dump.contents(compiled, BASE)
    assert isa.assemble(files["program.s"].decode().splitlines()) == files["program.bin"]
    assert dump.contents(compiled)["program.bin"] == compiled.program != files["program.bin"]


@pytest.mark.parametrize("base, rule", [(0x800, "a multiple of 4096"), (0xFFFF_D000, "end beyond 32-bit addresses")])
def test_a_base_that_cannot_be_is_refused(compiled, base, rule):
    with pytest.raises(ArtefactError, match=rule):
        dump.contents(replace(compiled, memory_bytes=PAGES * dump.PAGE), base)
