"""What the guides for operators name exists."""

from __future__ import annotations

import re

import pytest

from tests.integration.test_cli_documented import commands, options
from tests.support.workers import ROOT

GUIDES = ["docs/runbook.md", "docs/deployment.md", "SECURITY.md"]


def _anchors(text: str) -> set[str]:
    """The anchors of the headings, as the usual renderers make them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_option_in_a_guide_exists(guide):
    known = commands()
    text = (ROOT / guide).read_text()
    for line in re.findall(r"`packhorse ([a-z][^`]*)`", text) + re.findall(r"^ *packhorse ([a-z].*)$", text, re.MULTILINE):
        words = line.split()
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in known), None)
        assert name, f"{guide}: packhorse {line}"
        assert set(re.findall(r"--[a-z-]+", line)) <= options(known[name]), f"{guide}: packhorse {line}"


@pytest.mark.parametrize("guide", GUIDES)
def test_every_anchor_that_a_guide_links_to_exists(guide):
    page = ROOT / guide
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        other = page if not target else page.parent / target
        assert anchor in _anchors(other.read_text()), f"{guide}: {target}#{anchor}"
