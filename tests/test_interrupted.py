"""Ctrl-C and SIGTERM at any moment of a run: the exit status says so, there is no traceback, nothing half-written stays, and the
next run works. Two processes that want the same thing at once: both get it, one makes it.

`python -m pytest tests/test_interrupted.py --seed N` draws other moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seriatim.compiler import artefact

SIM = ["sim", "--net", "digits", "--w", "3", "--a", "5", "--images", "2", "--m", "2", "--n", "4", "--k", "32", "--axi", "32",
       "--no-baseline"]
MOMENTS = {"network": 2.0, "epoch": 1.0, "compiling": 2.0, "image(s) of": 1.0, "building Verilog": 5.0,
           "building the simulator": 15.0, "cycles": 0.2, "comparing": 0.3}
"""What the program has just begun to do, and the most seconds from then to the signal."""
FEW = ("epoch", "image(s) of")
"""Those of `make test`."""
LONGEST = 300
"""Seconds that a run may take, however slow the machine."""


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """`seriatim` with a cache of its own, in `folder`."""
    variables = dict(os.environ, SERIATIM_CACHE=str(folder / "cache"), PYTHONUNBUFFERED="1") | environment
    return piped([sys.executable, "-m", "seriatim.cli", *arguments], folder, variables)


def piped(command: list[str], folder: Path, environment: dict) -> subprocess.Popen:
    """Unbuffered: `communicate` does not see what a buffer of the pipe holds."""
    return subprocess.Popen(command, cwd=folder, env=environment, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def until(process: subprocess.Popen, text: str) -> str:
    """What the process prints, up to `text` or its end."""
    seen = b""
    while text.encode() not in seen:
        letter = process.stdout.read(1)
        if not letter:
            break
        seen += letter
    return seen.decode()


def rest(process: subprocess.Popen) -> str:
    """What the process prints from now to its end."""
    return process.communicate(timeout=LONGEST)[0].decode()


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*")]


def interrupt(folder: Path, session: str, text: str, wait: float, number: signal.Signals) -> bool:
    """Sends the signal so long after `text`; whether it came in time."""
    process = begin(folder, *SIM, "--session", session)
    out = until(process, text)
    assert text in out, out
    time.sleep(wait)
    process.send_signal(number)
    out += rest(process)
    assert "Traceback" not in out and "Exception ignored" not in out, out
    assert not half_written(folder), out
    if process.returncode == 0 and "report: " in out:
        return False
    assert process.returncode == 128 + number and out.endswith("seriatim: stopped\n"), f"exit {process.returncode}\n{out}"
    return True


def finishes(folder: Path, session: str):
    process = begin(folder, *SIM, "--session", session)
    out = rest(process)
    assert process.returncode == 0 and "bit-exact: every element" in out, out
    assert not half_written(folder)


def stops_at(moments, tmp_path, request, session: str, seed: int):
    seed = seed if request.config.getoption("--seed") is None else request.config.getoption("--seed")
    rng = random.Random(seed)
    print(f"seed {seed}")
    came = [interrupt(tmp_path, session, text, rng.uniform(0, MOMENTS[text]), rng.choice([signal.SIGINT, signal.SIGTERM]))
            for text in moments]
    assert sum(came) >= len(came) // 2, "the signals came too late"
    finishes(tmp_path, session)


@pytest.mark.unit
def test_a_stopped_run(tmp_path, request):
    stops_at(FEW, tmp_path, request, "isa", 0)


@pytest.mark.slow
@pytest.mark.rtl
@pytest.mark.parametrize("number", range(4))
def test_a_run_that_is_stopped_everywhere(tmp_path, request, number):
    """Until the simulator of the machine is built, each run ends in the building."""
    stops_at(MOMENTS, tmp_path, request, "rtl", 10 + number)


MAKER = """
import sys
from seriatim import cli
from seriatim.sim import build

def make(folder):
    (folder / "part").write_text("half")
    tool = [sys.executable, "-c", "import time; time.sleep({seconds})", "{tag}"]
    print("making", flush=True)
    build._at_once(lambda number: build.run(tool, "a tool"), range(3))
    (folder / "part").write_text("whole")
    with open("makers", "a") as file:
        file.write("one ")

cli.VERBS = {{"make": cli.Verb("", "__main__:main", lambda parser: None)}}

def main(args):
    print((build.cached("things", "abc", make, "a thing") / "part").read_text())

sys.argv = ["seriatim", "make"]
sys.exit(cli.main())
"""
"""A command that makes a thing in the cache, with tools that take some seconds."""


def maker(folder: Path, seconds: float) -> subprocess.Popen:
    script = MAKER.format(seconds=seconds, tag=folder)
    environment = dict(os.environ, SERIATIM_CACHE=str(folder / "cache"))
    return piped([sys.executable, "-c", script], folder, environment)


def tools(folder: Path) -> list[str]:
    """Process ids of the tools of that folder's makers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().endswith(f"\0{folder}\0".encode()):
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.unit
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_stopped_build_ends_its_tools_and_leaves_nothing(tmp_path, number):
    process = maker(tmp_path, 5 if number is signal.SIGKILL else 60)
    until(process, "making")
    process.send_signal(number)
    out = rest(process)
    things = tmp_path / "cache" / "things"
    if number is signal.SIGKILL:  # nobody is left to clean up
        assert process.returncode == -number and half_written(tmp_path)
    else:
        assert process.returncode == 128 + number and out.endswith("seriatim: stopped\n") and "Traceback" not in out, out
        assert not tools(tmp_path) and not half_written(tmp_path)
    assert not (things / "abc").exists()
    (things / ".other.123").mkdir()  # of another maker that is gone
    out = rest(maker(tmp_path, 0))
    assert out.endswith("whole\n") and not half_written(tmp_path), out


@pytest.mark.unit
def test_several_makers_at_once(tmp_path):
    processes = [maker(tmp_path, 2) for _ in range(3)]
    printed = [rest(process) for process in processes]
    assert all(out.endswith("whole\n") for out in printed), printed
    assert (tmp_path / "makers").read_text() == "one ", "one process made it"
    assert sum("waiting for another process, which is building a thing" in out for out in printed) <= 2
    assert not half_written(tmp_path)


@pytest.mark.unit
def test_two_trainings_at_once(tmp_path):
    """Of the same net: one process trains, both have it, and reports and artefacts of both are whole."""
    processes = [begin(tmp_path, *SIM, "--session", "isa", "--out", str(tmp_path / "out")) for _ in range(2)]
    printed = [rest(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum("training briefly" in out for out in printed) == 1, printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "artefact.zip"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["bit_exact"]
    assert artefact.read(tmp_path / "out" / "artefact.zip").layers
    assert not half_written(tmp_path)


@pytest.mark.rtl
@pytest.mark.slow
def test_two_builds_at_once(tmp_path):
    processes = [begin(tmp_path, *SIM, "--session", "rtl") for _ in range(2)]
    printed = [rest(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert sum(out.count("seriatim: building the simulator of") for out in printed) == 1, printed
    assert not half_written(tmp_path)
