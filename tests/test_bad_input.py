"""What a user can get wrong, through the command line: one message with value, rule and remedy, exit status 1, no traceback."""

import dataclasses

import numpy as np
import pytest

from seriatim import cli, isa
from seriatim.compiler import artefact
from seriatim.compiler.codegen import generate
from seriatim.config import Config
from seriatim.csr import Cause
from seriatim.errors import ArtefactError, CompileError, MachineError
from seriatim.sim import build, report
from seriatim.sim.executor import Executor
from seriatim.sim.session import IsaSession, Program


def error(capsys, *argv) -> str:
    """What the command prints for a mistake."""
    assert cli.main(list(argv)) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return next(line for line in err.splitlines() if line.startswith("seriatim: error: "))


def test_unknown_net(capsys):
    assert "net 'resnet19': choose one of resnet18, resnet34, " in error(capsys, "sim", "--net", "resnet19")


@pytest.mark.parametrize("geometry, message", [
    (["--n", "7"], "n=7 with k=64: N divides K"), (["--m", "33"], "m=33: 1 to 32 rows"),
    (["--k", "32"], "k=32 with axi_bits=64"), (["--axi", "48"], "axi_bits=48"),
])
def test_impossible_machines(capsys, geometry, message):
    assert message in error(capsys, "sim", "--net", "digits", *geometry)


def test_damaged_checkpoints(capsys, tmp_path):
    from seriatim.algo.trained import SHIPPED

    whole = (SHIPPED / "digits-slb-w1a8.ckpt").read_bytes()
    for name, data in (("cut", whole[:-7]), ("flipped", whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        assert str(path) in error(capsys, "sim", "--net", "digits", "--checkpoint", str(path))
    path.write_bytes(whole)
    assert "digits" in error(capsys, "sim", "--net", "resnet20", "--checkpoint", str(path))
    assert "no-such-file" in error(capsys, "sim", "--net", "digits", "--checkpoint", "no-such-file")


def test_a_missing_compiler(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("SERIATIM_CACHE", str(tmp_path))
    build.compiler.cache_clear()
    try:
        message = error(capsys, "sim", "--net", "digits", "--images", "1", "--m", "2", "--n", "4", "--k", "32", "--axi", "32",
                        "--out", str(tmp_path / "out"))
    finally:
        build.compiler.cache_clear()
    assert "no C++ compiler: looked for no-such-compiler" in message and "install one" in message
    assert not (tmp_path / "out").exists()


def test_reports(capsys, tmp_path):
    assert "not a report" in error(capsys, "report", str(tmp_path))
    (tmp_path / "report.json").write_text('{"net": "dig')
    assert "`make sim` writes one" in error(capsys, "report", str(tmp_path / "report.json"))


def test_assembly_and_programs(capsys, tmp_path):
    source = tmp_path / "p.asm"
    source.write_text("MARK layer=300\nEND\n")
    assert "MARK.layer = 300" in error(capsys, "asm", str(source))
    assert not (tmp_path / "p.bin").exists()
    source.write_text("MARK layer=3 wait=ACT_READY\nEND\n")
    assert cli.main(["asm", str(source)]) == 0
    assert cli.main(["disasm", str(tmp_path / "p.bin")]) == 0
    assert "000000 MARK  wait=ACT_READY layer=3" in capsys.readouterr().out
    (tmp_path / "p.bin").write_bytes(bytes(64))
    assert "opcode 0" in error(capsys, "disasm", str(tmp_path / "p.bin"))


def test_buffers_that_cannot_hold_one_tile(region):
    small = dataclasses.replace(Config(), act_words=16, wgt_words=16, prm_words=16, res_words=16, out_words=16, psum_words=16)
    with pytest.raises(CompileError, match="conv.*word"):
        generate(region, small)


def test_a_program_of_another_machine(region):
    other = dataclasses.replace(Config(), m=6)
    program = generate(region, other).to_bytes()
    with pytest.raises(ArtefactError, match=f"{other.hash:#010x}.*{Config().hash:#010x}"):
        Executor(Config(), IsaSession)(program, [np.zeros(region.inputs[0].shape)])
    with pytest.raises(ArtefactError, match="damaged"):
        Executor(other, IsaSession)(program[:1000] + b"\0" + program[1001:], [np.zeros(region.inputs[0].shape)])


def test_a_machine_of_another_config_or_isa():
    session = IsaSession(Config(), 4096)
    program = Program(isa.encode("END"), 0, (0, 4096), (0, 4096))
    session.run(program)
    wrong = (("CONFIG_HASH", 1, "0x00000001"), ("ISA_VERSION", 99, "ISA version 99"), ("ID", 0, "no Seriatim"))
    for name, value, message in wrong:
        session = IsaSession(Config(), 4096)
        session._csrs[name] = value
        with pytest.raises(ArtefactError, match=message):
            session.run(program)


def test_a_failing_program_names_cause_and_instruction():
    session = IsaSession(Config(), 4096)
    code = isa.encode("MARK") + isa.encode("STORE", dram=1 << 20) + isa.encode("END")
    with pytest.raises(MachineError, match="DRAM_RANGE.*0x40 of the program: 000000 STORE") as error:
        session.run(Program(code, 0, (0, 4096), (0, 4096)))
    assert (error.value.cause, error.value.pc) == (Cause.DRAM_RANGE, 64)


def test_artefacts_of_another_version(tmp_path):
    with pytest.raises(ArtefactError, match="no-such.zip"):
        artefact.load(tmp_path / "no-such.zip", isa.VERSION, Config().hash)


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    report.write({"net": "old"}, tmp_path)
    with pytest.raises(TypeError):
        report.write({"net": object()}, tmp_path)
    assert report.load(tmp_path) == {"net": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.fixture
def region():
    from seriatim.compiler.ir import Conv, Region, Requant, Tensor
    from seriatim.formats import Format

    uint8 = Format.parse("uint8")
    x, out = (Tensor(name, (1, 128, 9, 9), uint8) for name in ("x", "out"))
    w = np.random.default_rng(0).choice(np.array([-1, 1], np.int32), (128, 128, 3, 3))
    requant = Requant(np.full(128, 3, np.int32), np.full(128, 1 << 12, np.int64), 9, 0, 255)
    layer = Conv("conv", x, uint8, w, Format.parse("bipolar1"), (1, 1), (1, 1, 1, 1), (1, 1), 1, requant, None, out)
    return Region((x,), (out,), (layer,))
