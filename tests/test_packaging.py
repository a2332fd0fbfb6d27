"""pyproject.toml against the tree: an editable install would hide a forgotten package or file."""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOLS = PROJECT["tool"]["setuptools"]
PARTS = {name: ROOT / folder for name, folder in TOOLS["package-dir"].items()}
OURS = {"seriatim", "tclwrapper"}  # tclwrapper: PyVerilator brings it, and sim.pyveri does without it


def test_every_package_on_disk_is_listed():
    found = set()
    for name, folder in PARTS.items():
        for init in folder.rglob("__init__.py"):
            relative = init.parent.relative_to(folder)
            found.add(".".join([name, *relative.parts]))
    assert found == set(TOOLS["packages"])


def tracked(folder: Path) -> list[Path]:
    """Files that belong to the tree: those git knows, or all where this is no git checkout."""
    result = subprocess.run(["git", "ls-files", "-z", "."], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode == 0:
        return [folder / name for name in result.stdout.split("\0") if name]
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_every_data_file_is_packaged():
    missing = []
    for name, folder in PARTS.items():
        patterns = TOOLS["package-data"].get(name, [])
        for path in tracked(folder):
            relative = path.relative_to(folder).as_posix()
            if path.suffix == ".py" or relative.endswith((".md", "/.gitignore")):
                continue
            if not any(fnmatch.fnmatch(relative, p) for p in patterns):
                missing.append(f"{name}: {relative}")
    assert not missing, "add these to package-data in pyproject.toml"


def requirements() -> list[str]:
    return sum(PROJECT["project"]["optional-dependencies"].values(), PROJECT["project"]["dependencies"])


def test_dependencies_are_pinned_with_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in requirements():
        assert re.fullmatch(r"[\w-]+==[\w.]+", requirement)
        assert re.search(rf'"{re.escape(requirement)}",\s+# \w+', text), f"{requirement} needs a comment that gives its reason"


def test_pins_are_what_is_installed():
    differing = [f"{r} but {version(name)} is installed" for r in requirements() for name, pin in [r.split("==")]
                 if version(name).split("+")[0] != pin]
    assert not differing, "`make env` brings the environment up to date"


def test_what_is_imported_is_pinned():
    """A package that another one happens to bring may be gone with its next version."""
    pinned = {r.split("==")[0].lower().replace("_", "-") for r in requirements()}
    distributions = packages_distributions()
    missing = set()
    for path in [p for folder in [*PARTS.values(), ROOT / "tests"] for p in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - OURS:
                owners = {d.lower().replace("_", "-") for d in distributions.get(name, [])}
                if owners and not owners & pinned:
                    missing.add(f"{path.relative_to(ROOT)}: {name}")
    assert not missing


def test_imports_come_from_the_tree_once():
    code = "import sys, seriatim.sim, seriatim.hw, seriatim.algo; print(sorted({'sim', 'hw', 'algo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
    second_copy = re.compile(r"^\s*(?:from|import) (?:algo|boards|compiler|hw|sim)\b", re.M)
    files = [p for folder in PARTS.values() for p in folder.rglob("*.py")]
    assert not [str(p.relative_to(ROOT)) for p in files if second_copy.search(p.read_text())]


def test_contract_needs_the_standard_library_alone():
    code = ("import sys; import seriatim.config, seriatim.isa, seriatim.csr, seriatim.formats, seriatim.errors, seriatim.cli;"
            "print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'torch', 'amaranth', 'tvm', 'rich'}))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_nothing_names_this_machine():
    """The tree holds no absolute home or work folder."""
    bad = re.compile(r"/(home|root|Users|work)/\w")
    hits = [str(p.relative_to(ROOT)) for name in ("pyproject.toml", "Makefile", ".ci/run") for p in [ROOT / name]
            if bad.search(p.read_text())]
    assert not hits
