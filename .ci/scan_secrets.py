"""Look for secrets in the files that git tracks: keys, tokens, passwords in connection strings. Exit 1 with a
list when there are any.

A small set of rules with few false alarms, and no dependencies; `git ls-files` decides what is looked at. A
line that must hold something secret-looking says `not-a-secret`. What is found is shown by place and rule,
never by value.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXEMPT = "not-a-secret"
#: made-up secrets are what these files are about
EXEMPT_FILES = {"tests/unit/test_masking.py"}
MAX_BYTES = 2_000_000
#: passwords that are no secret: placeholders, and what documentation and tests use
PLACEHOLDERS = re.compile(
    r"^(\*+|…|\.\.\.|x+|secret|s3cret|hunter2|p?w|pass|password|postgres|packhorse|example|[{<$%].*)$",
    re.IGNORECASE,
)

RULES = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{50,})\b"),
    "Slack token": re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    "OpenAI or Anthropic key": re.compile(r"\bsk-(?:ant-|proj-)?[0-9A-Za-z_-]{32,}\b"),
    "Stripe key": re.compile(r"\b[rs]k_live_[0-9A-Za-z]{20,}\b"),
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "Meta access token": re.compile(r"\bEAA[0-9A-Za-z]{60,}\b"),
    "JSON web token": re.compile(r"\beyJ[0-9A-Za-z_-]{15,}\.eyJ[0-9A-Za-z_-]{15,}\.[0-9A-Za-z_-]{20,}"),
    "PyPI token": re.compile(r"\bpypi-[0-9A-Za-z_-]{50,}"),
    "assigned secret": re.compile(
        r"""(?i)\b(?:api_?key|secret(?:_?key)?|access_?token|auth_?token)["']?\s*[:=]\s*["']([0-9a-z+/_=-]{24,})["']"""
    ),
}
PASSWORD_IN_URL = re.compile(r"\b[a-z][a-z0-9+]*://[^\s:/@'\"]*:([^\s@/'\"]+)@")


def findings(text: str) -> Iterator[tuple[int, str]]:
    """(line number, rule) of everything in `text` that looks like a secret."""
    for number, line in enumerate(text.splitlines(), 1):
        if EXEMPT in line:
            continue
        for rule, pattern in RULES.items():
            if pattern.search(line):
                yield number, rule
        for match in PASSWORD_IN_URL.finditer(line):
            if not PLACEHOLDERS.match(match[1]):
                yield number, "password in a URL"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name]


def main() -> int:
    count = 0
    for path in tracked():
        if (
            str(path.relative_to(ROOT)) in EXEMPT_FILES
            or not path.is_file()
            or path.stat().st_size > MAX_BYTES
        ):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, rule in findings(text):
            count += 1
            print(f"{path.relative_to(ROOT)}:{number}: {rule}")
    print(f"{count} possible secrets in tracked files" if count else "no secrets in tracked files")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
