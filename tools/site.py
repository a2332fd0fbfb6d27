"""Hooks of mkdocs: the pages of the site that are not files of docs/."""

import re
from pathlib import Path

from mkdocs.structure.files import File

from seriatim import csr, isa
from seriatim.config import Config
from seriatim.hw import emit

ROOT = Path(__file__).parent.parent
LANGUAGES = {".py": "python", ".c": "c", ".h": "c"}


def examples() -> str:
    """One page with every example's source."""
    out = ["# Examples", ""]
    for path in sorted((ROOT / "examples").rglob("*.*")):
        if path.suffix in LANGUAGES:
            out += [f"## {path.relative_to(ROOT)}", "", f"```{LANGUAGES[path.suffix]}", path.read_text().rstrip(), "```", ""]
    return "\n".join(out)


def pages() -> dict[str, str]:
    """Markdown of each page by name."""
    readme = (ROOT / "README.md").read_text()
    return {
        "index.md": readme.replace("](docs/", "]("),
        "isa.md": isa.manual(),
        "registers.md": csr.manual(),
        "integration.md": emit.integration(Config()),
        "examples.md": examples(),
    }


def on_files(files, config):
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_post_page(output, page, config):
    """Leaves out the one script that the theme would load from a network, a help for its search in pages opened as files."""
    return re.sub(r'<script src="https://unpkg\.com/iframe-worker/shim"></script>', "", output)
