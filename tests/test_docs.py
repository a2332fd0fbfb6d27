"""The documentation: the site is whole and needs no network, its commands exist, the code of its worked examples runs."""

import argparse
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from seriatim import cli
from seriatim.config import Config
from seriatim.hw import emit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.name for path in PAGES] + ["integration.md"]
pytestmark = pytest.mark.unit


def text_of(name: str) -> str:
    if name == "integration.md":
        return emit.integration(Config())
    return next(path for path in PAGES if path.name == name).read_text()


class Page(HTMLParser):
    """What an HTML page refers to, and the anchors that it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.anchors.add(attrs["id"])
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag in ("img", "script", "iframe") and attrs.get("src"):
            self.loaded.append(attrs["src"])
        elif tag == "link" and attrs.get("href") and attrs.get("rel") != "canonical":
            self.loaded.append(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; mkdocs ends with an error at its first warning."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def built(site) -> dict[Path, Page]:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # a server's page: absolute links
    assert {path.stem for path in pages} == {Path(name).stem for name in NAMES} - {"README"} | {
        "index", "isa", "registers", "examples"}
    return pages


def test_every_internal_link_and_anchor_resolves(site, built):
    broken, checked = [], 0
    for path, page in built.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            checked += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (parts.fragment and target.suffix == ".html"
                                        and unquote(parts.fragment) not in built[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken and checked > 10 * len(built)


def test_pages_load_nothing_from_a_network(built):
    assert not [(path.name, link) for path, page in built.items() for link in page.loaded if urlsplit(link).netloc]


@pytest.mark.parametrize("name", NAMES)
def test_documents_that_a_page_names_exist(name):
    """`docs/x.md`, `hw/y.py` and the like, as they are named in running text."""
    named = re.findall(r"`((?:docs|algo|compiler|hw|sim|src|tests|tools|examples)/[\w/.-]+\.\w+)`", text_of(name))
    generated = {"docs/bench.json"}
    assert not [path for path in named if not (ROOT / path).exists() and path not in generated]


def commands(text: str) -> list[str]:
    """Command lines of `seriatim` and `make` in code blocks and code spans, without comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"(?:^    .*\n)+", text, re.M)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    found = (re.match(r"(?:\$ )?(?:\.venv/bin/)?((?:seriatim|make) .*)", line) for line in lines)
    return [match[1] for match in found if match]


def verbs() -> dict[str, argparse.ArgumentParser]:
    action, = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def fault(command: str) -> str | None:
    """What a command line of the documentation has that the command line does not take."""
    tool, *words = shlex.split(command.replace("\\|", "|"))
    if tool == "make":
        makefile = (ROOT / "Makefile").read_text()
        goal, *rest = [word for word in words if word != "..."]
        if not re.search(rf"^{re.escape(goal)}:", makefile, re.M):
            return f"no make {goal}"
        names = (re.match(r"\[?(\w+)=", word) for word in rest)
        unknown = [match[1] for match in names if match and not re.search(rf"\b{match[1]}\b", makefile)]
        return f"make {goal} knows no {unknown[0]}" if unknown else None
    if words[0] == "--help":
        return None
    if words[0] not in verbs():
        return f"no verb {words[0]}"
    known = verbs()[words[0]]._option_string_actions
    options = (word.strip("[]").split("=")[0] for word in words[1:] if word.strip("[").startswith("--"))
    return next((f"{words[0]} has no {option}" for option in options if option not in known), None)


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_exist(name):
    faults = {command: fault(command) for command in commands(text_of(name))}
    assert not {command: what for command, what in faults.items() if what}


def test_pages_hold_commands_and_faults_are_found():
    assert len([command for name in NAMES for command in commands(text_of(name))]) > 30
    assert fault("seriatim fly --net x") == "no verb fly" and fault("seriatim sim --wings 2") == "sim has no --wings"
    assert fault("make tea") == "no make tea" and "SUGAR" in fault("make sim SUGAR=2")


def test_readme_names_every_verb_of_everyday_use():
    text = " ".join(command for name in NAMES for command in commands(text_of(name)))
    assert not [verb for verb in cli.VERBS if not re.search(rf"(seriatim|make) {verb}\b", text)]


@pytest.mark.parametrize("page, least", [("extending.md", 5), ("training.md", 4), ("own-net.md", 4)])
def test_code_of_a_page_runs(page, least):
    """Block by block, as a reader would; in a process of its own, since one page adds a network to the table."""
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S)
    assert len(blocks) >= least
    run = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
