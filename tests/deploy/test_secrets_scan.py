"""No secrets in tracked files; the scan finds what it should, and lets placeholders pass."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

_spec = importlib.util.spec_from_file_location("scan_secrets", ROOT / ".ci" / "scan_secrets.py")
assert _spec is not None and _spec.loader is not None
scan = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scan)

# put together here, so that this file holds none of them
FOUND = {
    "private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "AWS access key": "key = AKIA" + "Q7" * 8,
    "GitHub token": "ghp_" + "a1B2" * 9,
    "Slack token": "xoxb-" + "1234567890-abcdef",
    "OpenAI or Anthropic key": "sk-ant-" + "a1B2" * 9,
    "Stripe key": "sk_live_" + "a1B2" * 6,
    "Google API key": "AIza" + "a1B2c" * 7,
    "Meta access token": "EAA" + "a1B2" * 20,
    "JSON web token": "eyJ" + "a1B2" * 5 + ".eyJ" + "a1B2" * 5 + "." + "a1B2" * 6,
    "PyPI token": "pypi-" + "a1B2" * 15,
    "assigned secret": "api_key = '" + "a1b2c3d4" * 4 + "'",
    "password in a URL": "postgresql://app:" + "Tr0ub4dor" + "@db/app",
}


@pytest.mark.parametrize("rule", FOUND)
def test_it_finds(rule):
    assert list(scan.findings(f"first line\n{FOUND[rule]}\n")) == [(2, rule)]


def test_every_rule_has_an_example():
    assert set(FOUND) == set(scan.RULES) | {"password in a URL"}


@pytest.mark.parametrize(
    "line",
    [
        "postgresql://app:…@db/app",
        "postgresql://user:secret@host/db",
        "postgresql://app:${PASSWORD}@db",
        "redis://:***@host",
        "https://example.com/a:b/c@d",
        "DATABASE_URL=postgresql://app@db/app",
    ],
)
def test_it_lets_placeholders_pass(line):
    assert list(scan.findings(line)) == []


def test_tracked_files_hold_no_secrets():
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "scan_secrets.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
