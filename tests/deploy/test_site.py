"""`make docs`: a site without a warning that asks nobody on the network, and whose search works from a
folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import packhorse
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Loaded(HTMLParser):
    """What a browser would load for a page by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video") or (
            tag == "link" and given.get("rel") not in ("next", "prev", "search", "index", "author")
        ):
            self.found += [value for name in ("src", "href", "srcset") if (value := given.get(name))]


def test_the_site(tmp_path):
    """One test, for it is built once."""
    pytest.importorskip("sphinx", reason="sphinx is not installed (pip install '.[docs]')")
    site = tmp_path / "site"
    ran = subprocess.run(
        [sys.executable, ROOT / "docs/site/build.py", str(site)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    nothing_is_loaded_from_elsewhere(site)
    the_search_needs_no_server(site)
    every_page_and_every_public_name_is_in_it(site)


def nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loaded = {address for page in pages for address in Loaded(page.read_text()).found}
    assert loaded and [address for address in loaded if re.match(r"(https?:)?//", address)] == []
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*|@import[^;]*//[^;]*", styles) == []


def the_search_needs_no_server(site: Path) -> None:
    """The index is a script that the page of the search names: a browser loads no other file from a
    folder.
    """
    assert 'src="searchindex.js"' in (site / "search.html").read_text()
    text = (site / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert "backup" in index["docnames"] and "python-api" in index["docnames"]
    found = index["terms"]["pgbouncer"]
    assert index["docnames"].index("operations") in (found if isinstance(found, list) else [found])


def every_page_and_every_public_name_is_in_it(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists(), page
    text = (site / "python-api.html").read_text()
    assert [name for name in packhorse.__all__ if f'id="{name.lower().replace("_", "-")}"' not in text] == []


def test_a_broken_link_fails(tmp_path):
    """Strict: what the builder complains of is an error."""
    pytest.importorskip("sphinx", reason="sphinx is not installed (pip install '.[docs]')")
    (tmp_path / "index.md").write_text("# Title\n\n[gone](gone.md#nowhere) and [here](#not-here)\n")
    conf = Path(ROOT / "docs/site")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-q",
            "-W",
            "--keep-going",
            "-c",
            str(conf),
            str(tmp_path),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0 and "gone.md" in ran.stderr and "not-here" in ran.stderr
