"""The command line: quick help, honest errors, exit statuses."""

import importlib
import resource
import subprocess
import sys

import pytest

from seriatim import cli
from seriatim.errors import ConfigError

pytestmark = pytest.mark.unit


def usage_error(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as exit:
        cli.main(list(argv))
    assert exit.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_help_is_quick_and_lists_every_verb():
    run = [sys.executable, "-m", "seriatim.cli", "--help"]
    best = float("inf")
    for _ in range(3):  # the best of three, in seconds of the processor: the machine may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5
    assert {line.split()[0] for line in out.splitlines() if line[:4].isspace() and line[4:5].isalpha()} == set(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([verb, "--help"])
    assert exit.value.code == 0 and cli.VERBS[verb].help.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", (
    (["--w", "9"], "argument --w: 9 is out of range: the weights' width takes 1..8 bits"),
    (["--a", "0"], "argument --a: 0 is out of range: the activations' width takes 1..8 bits"),
    (["--a", "x"], "argument --a: 'x' is not a whole number: the activations' width takes 1..8 bits"),
    (["--images", "0"], "argument --images: 0 is out of range: the number of images takes 1 or more"),
    (["--image", "4000"], "argument --image: 4000 is out of range: the image's edge takes 8..1024 pixels"),
    (["--quant", "nope"], "invalid choice: 'nope'"),
    (["--latency", "0"], "takes 1..100000 cycles"),
    (["--session", "board"], "invalid choice: 'board'"),
))
def test_bad_values_quote_value_rule_and_remedy(argv, message, capsys):
    assert message in usage_error(capsys, "sim", *argv)


def test_sim_arguments_reach_the_verb(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "load", lambda target: seen.append(target) or seen.append)
    assert cli.main(["sim", "--net", "resnet20", "--quant", "slb", "--w", "2", "--a", "4", "--image", "224", "--images", "3",
                     "--first-last", "8", "--m", "14", "--session", "isa"]) == 0
    target, args = seen
    assert target == "seriatim.sim.driver:main_sim"
    assert (args.net, args.w, args.a, args.quant, args.image, args.images) == ("resnet20", 2, 4, "slb", 224, 3)
    assert (args.first_last, args.m, args.n, args.k, args.latency, args.session) == (8, 14, None, None, 100, "isa")


def stub(monkeypatch, action):
    monkeypatch.setattr(cli, "load", lambda target: action)


def test_our_errors_have_no_traceback(monkeypatch, capsys):
    def fail(args):
        raise ConfigError("m=0: 1 to 32 rows")

    stub(monkeypatch, fail)
    assert cli.main(["bench"]) == 1
    assert capsys.readouterr().err == "seriatim: error: m=0: 1 to 32 rows\n"


def test_interrupt(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    stub(monkeypatch, interrupted)
    assert cli.main(["bench"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_status_of_a_verb_is_the_exit_status(monkeypatch):
    stub(monkeypatch, lambda args: 3)
    assert cli.main(["bench"]) == 3


def test_missing_parts_are_told(monkeypatch, capsys):
    for target, message in (("seriatim.no_such:main", "needs seriatim.no_such, which this version does not have"),
                            ("seriatim.errors:main", "needs seriatim.errors:main")):
        monkeypatch.setitem(cli.VERBS, "bench", cli.Verb("x", target, cli._bench))
        assert cli.main(["bench"]) == 1
        assert message in capsys.readouterr().err


def test_faults_of_ours_are_not_hidden(monkeypatch):
    def fault(args):
        raise RuntimeError("a bug")

    stub(monkeypatch, fault)
    with pytest.raises(RuntimeError):
        cli.main(["bench"])


def test_cli_is_a_module_of_the_contract():
    assert importlib.import_module("seriatim.cli") is cli
