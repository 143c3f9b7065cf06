"""Build the documentation as a static site that works without a network: python docs/site/build.py OUTPUT.

The pages link to each other as files of the repository, so that they can be read there, too. Here they are
copied beside each other, with the few pages that stand elsewhere, and with the reference of the Python API. A
link to a file that is no page becomes its text.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import reference
from sphinx.cmd.build import build_main

SITE = Path(__file__).resolve().parent
DOCS = SITE.parent
ROOT = DOCS.parent
#: Pages that stand outside of docs/, and what they are called in the site.
OTHERS = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "migrations/README.md": "migrations.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RESULTS.md": "benchmark-results.md",
}
IMAGE = re.compile(r"!\[([^\]]*)\]\((?:[^)\s]*/)?images/([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|`[^`]*`)*)\]\(([^)#:\s]*)(#[^)\s]*)?\)")


def pages() -> dict[Path, str]:
    """File of the repository -> its name in the site."""
    own = {page: page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))}
    return own | {ROOT / path: name for path, name in OTHERS.items()}


def stage(folder: Path) -> None:
    """Write all pages below the folder, with links as they are there."""
    found = pages()
    for page, name in found.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_linked(page, name, found))
    shutil.copytree(DOCS / "images", folder / "images")
    (folder / "python-api.md").write_text(reference.page())
    with (folder / "index.md").open("a") as index:
        index.write(_contents((DOCS / "index.md").read_text(), [*found.values(), "python-api.md"]))


def _linked(page: Path, name: str, found: dict[Path, str]) -> str:
    """The text of a page, its links as the site has them; what stands in blocks of code is left alone."""

    up = "../" * name.count("/")

    def link(match: re.Match[str]) -> str:
        text, path, anchor = match[1], match[2], match[3] or ""
        if not path:
            return match[0]
        target = (page.parent / path).resolve()
        if target in found:
            return f"[{text}]({up}{found[target]}{anchor})"
        return text

    parts = re.split(r"(^```.*?^```$)", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)
    return IMAGE.sub(rf"![\1]({up}images/\2)", text)


def _contents(index: str, names: list[str]) -> str:
    """The index as trees for the side bar: one per heading, in its order; what it does not name comes
    last.
    """
    rest = [name for name in names if name != "index.md"]
    trees = []
    for section in index.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        linked = [OTHERS.get(path.removeprefix("../"), path) for path in re.findall(r"\]\(([^)#:]+)", body)]
        chosen = [name for name in dict.fromkeys(linked) if name in rest]
        rest = [name for name in rest if name not in chosen]
        trees.append((title, chosen))
    trees.append(("More", rest))
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(chosen) + "\n```\n"
        for title, chosen in trees
        if chosen
    )


def build(output: Path) -> int:
    """Build it anew; 0 when there is nothing to complain about: a warning fails."""
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        stage(Path(name))
        return int(
            build_main(
                [
                    "-b",
                    "html",
                    "-q",
                    "-W",
                    "--keep-going",
                    "-c",
                    str(SITE),
                    "-d",
                    f"{name}/.cache",
                    name,
                    str(output),
                ]
            )
        )


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()))
