"""One line per process type, each a command and nothing more."""

from __future__ import annotations

import re

import pytest

from tests.integration.test_cli_documented import commands
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow


def test_the_procfile_has_a_line_for_each_process_type():
    lines = [
        re.fullmatch(r"([a-z]+): packhorse ([a-z]+)", line)
        for line in (ROOT / "Procfile").read_text().splitlines()
    ]
    assert all(lines)
    assert {match[1]: match[2] for match in lines if match} == {
        "worker": "worker",
        "scheduler": "scheduler",
        "web": "web",
    }
    assert {match[2] for match in lines if match} <= set(commands())
