"""An artefact runs in another process, and refuses damage, other machines, and inputs that are not the network's."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from seriatim import isa
from seriatim.compiler import artefact, runtime
from seriatim.compiler.driver import compile_network
from seriatim.config import Config
from seriatim.errors import ArtefactError, MachineError, ToolError

pytestmark = pytest.mark.unit
CONFIG = Config()


@pytest.fixture(scope="module")
def compiled(nets):
    """(artefact, input, torch's output) of a small residual net."""
    rng = np.random.default_rng(3)
    net, x = nets.ResNet(rng, image=16, widths=(8,), blocks=1), nets.codes(rng, (1, 3, 16, 16))
    want = net(x).numpy()
    built = compile_network(net, x, CONFIG, nets.generate, metadata={"net": "small", "w": 4, "a": 4})
    return built, x.numpy(), want


@pytest.fixture
def file(compiled, tmp_path):
    return compiled[0].save(tmp_path / "net.seriatim")


def load(path):
    return artefact.load(path, isa.VERSION, CONFIG.hash)


def test_it_is_the_same_after_a_round_trip(compiled, file, nets):
    built, x, want = compiled
    loaded = load(file)
    assert (loaded.library, loaded.programs) == (built.library, built.programs)
    assert loaded.manifest["network"] == {"net": "small", "w": 4, "a": 4}
    assert loaded.manifest["config"]["m"] == CONFIG.m and loaded.manifest["config_hash"] == CONFIG.hash
    assert [row["name"] for row in loaded.layers] == ["stem", "pool", "layer1.0.conv1", "layer1.0.conv2", "average", "fc"]
    assert loaded.layers[0]["x_read"] == "uint8" and loaded.layers[0]["w_format"] == "int4" and loaded.layers[0]["k"] == 147
    np.testing.assert_array_equal(loaded.run(x, executor=nets.execute), want)


CHILD = """
import json, pickle, sys
import numpy as np
from seriatim.compiler import artefact, ir, runtime

def execute(program, inputs):
    region = pickle.loads(program)
    tensors = ir.interpret(region, {tensor.name: array for tensor, array in zip(region.inputs, inputs)})
    return [tensors[tensor.name] for tensor in region.outputs]

path, isa_version, config_hash, x = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), np.load(sys.argv[4])
runtime.use(execute)
print(json.dumps(artefact.load(path, isa_version, config_hash).run(x).tolist()))
"""


def test_another_process_loads_and_runs_it(compiled, file, tmp_path):
    _, x, want = compiled
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", CHILD, str(file), str(isa.VERSION), str(CONFIG.hash), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want.tolist()


def test_no_flipped_byte_goes_unnoticed(file):
    data = file.read_bytes()
    rng = np.random.default_rng(11)
    for at in [0, 1, 7, len(data) - 1, len(data) - 70, *rng.integers(0, len(data), 30)]:
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        with pytest.raises(ArtefactError, match="damaged|no zip archive"):
            load(file)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtefactError, match="damaged|no zip archive"):
        load(file)


def test_another_isa_version_or_configuration_is_refused_quoting_both(file):
    with pytest.raises(ArtefactError, match=f"ISA version {isa.VERSION}, this machine has 99; compile the network again"):
        artefact.load(file, 99, CONFIG.hash)
    other = Config(m=3)
    with pytest.raises(ArtefactError, match=rf"{CONFIG.hash:#010x} \({CONFIG}\), this machine is {other.hash:#010x}; compile"):
        artefact.load(file, isa.VERSION, other.hash)


def test_a_missing_file_and_a_file_of_something_else_are_refused(tmp_path):
    with pytest.raises(ArtefactError, match="No such file.*compile the network first"):
        load(tmp_path / "none.seriatim")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArtefactError, match="5 bytes that are no zip archive"):
        load(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ArtefactError, match="damaged"):
        load(tmp_path / "zip")


def test_a_member_that_the_manifest_does_not_state_is_refused(compiled, tmp_path):
    built, *_ = compiled
    swapped = artefact.Artefact(built.manifest | {"regions": built.manifest["regions"] * 2}, built.library, built.programs * 2)
    path = swapped.save(tmp_path / "two")
    assert load(path).programs == built.programs * 2
    data = swapped.to_bytes()
    body = data[: -artefact.DIGEST_CHARS].replace(b"program1.bin", b"program2.bin")
    path.write_bytes(body + artefact.sha256(body).encode())
    with pytest.raises(ArtefactError, match="member program1.bin"):
        load(path)


def test_it_is_an_ordinary_zip_and_the_same_each_time(compiled, file):
    assert set(zipfile.ZipFile(file).namelist()) == {"manifest.json", "library.so", "program0.bin"}
    assert zipfile.ZipFile(file).testzip() is None
    assert compiled[0].to_bytes() == file.read_bytes()


def test_a_failed_write_leaves_the_old_file(compiled, file, monkeypatch):
    before = file.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        compiled[0].save(file)
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_library_hands_over_the_programs_that_the_file_holds(compiled, file, nets):
    seen = []

    def watch(program, inputs):
        seen.append(program)
        return nets.execute(program, inputs)

    loaded = load(file)
    loaded.run(compiled[1], executor=watch)
    assert tuple(seen) == loaded.programs


def test_inputs_are_checked(compiled, nets):
    built, x, _ = compiled
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 8\): this network takes \(1, 3, 16, 16\)"):
        built.run(x[..., :8], executor=nets.execute)
    with pytest.raises(ValueError, match="2 inputs: this network takes 1"):
        built.run([x, x], executor=nets.execute)
    with pytest.raises(ValueError, match="holds 0 to 256: codes of uint8 are 0 to 255"):
        wrong = np.zeros_like(x)
        wrong[0, 0, 0, 0] = 256
        built.run(wrong, executor=nets.execute)


def test_without_a_machine_it_says_so(compiled):
    built, x, _ = compiled
    with pytest.raises(ToolError, match="no machine"):
        built.run(x)


def test_a_machine_error_comes_out_as_itself(compiled):
    built, x, _ = compiled

    def broken(program, inputs):
        raise MachineError("illegal instruction", cause=3, pc=128)

    with pytest.raises(MachineError, match="^illegal instruction$") as info:
        built.run(x, executor=broken)
    assert (info.value.cause, info.value.pc) == (3, 128)


def test_a_machine_that_returns_another_shape_is_caught(compiled):
    built, x, _ = compiled
    with pytest.raises(ToolError, match=r"output 0 of shape \(1, 2\): the program's is \(1, 10, 1, 1\)"):
        built.run(x, executor=lambda program, inputs: [np.zeros((1, 2))])


def test_use_is_restored(nets):
    with runtime.use(nets.execute):
        with runtime.use(lambda program, inputs: ["inner"]):
            assert runtime.run(b"", []) == ["inner"]
        assert runtime._executor is nets.execute
    assert runtime._executor is None
