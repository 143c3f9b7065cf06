"""Which conditions of our SQL does no test miss? `python -m tests.mutants migrations/functions/claim.sql
[more files]`.

Takes out one condition at a time (an operand of AND in WHERE, ON and IF, and SKIP LOCKED) from the text of a
file, runs the fast tests of SQL, and puts the file back. A mutant that no test notices survives: either a
test is missing, or the condition is not needed for what is promised (a faster plan, say). Prints the
survivors with their lines and exits with their number. Each takes as long as the tests: 5 to 20 s.

Run it in a checkout of its own: while it runs the file is broken.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: What is run for each mutant: nearly all tests of the queue's SQL on one server.
TESTS = ("-m", "not slow", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--timeout", "60", "--ignore", "tests/sql/test_catalogue.py",
         "--ignore", "tests/sql/test_servers.py", "--ignore", "tests/sql/platform", "tests/sql")  # fmt: skip
LONGEST_SECONDS = 240

_TOKEN = re.compile(r"--[^\n]*|'(?:[^']|'')*'|[()\[\];]|\b[a-z_]+\b", re.IGNORECASE)
_ENDS = {"and", "or", "then", "returning", "order", "group", "limit", "for", "union", "else", "end", "when", "on", "loop", "having", "do", "set", "left",
         "join", "cross", "where", "into", "window", "from"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A condition from `start` to `end` of a file's text, in `line`; what stands for it."""

    start: int
    end: int
    line: int
    what: str
    instead: str


def mutants(text: str) -> Iterator[Mutant]:
    """Each operand of an AND, and each SKIP LOCKED, of the statements in a file."""
    tokens = [
        (m.group().lower(), m.start(), m.end())
        for m in _TOKEN.finditer(text)
        if not m.group().startswith(("--", "'"))
    ]
    for place, (word, start, end) in enumerate(tokens):
        line = text.count("\n", 0, start) + 1
        if word == "skip" and tokens[place + 1][0] == "locked":
            yield Mutant(start, tokens[place + 1][2], line, "skip locked", "")
        if word in ("where", "if", "on") and tokens[place - 1][0] not in ("end", "or", "comment", "not"):
            stop = _end_of(tokens, place + 1, text)
            if stop is not None and tokens[stop][0] == "and":
                yield Mutant(end, tokens[stop][1], line, text[end : tokens[stop][1]].strip(), " true ")
        if word == "and" and not _of_between(tokens, place):
            stop = _end_of(tokens, place + 1, text)
            if stop is not None:
                yield Mutant(start, tokens[stop][1], line, text[end : tokens[stop][1]].strip(), "")


def _of_between(tokens: list[tuple[str, int, int]], place: int) -> bool:
    depth = 0
    for word, _, _ in reversed(tokens[:place]):
        depth += {")": 1, "(": -1}.get(word, 0)
        if depth < 0 or (depth == 0 and word in ("and", "or", "where", "if", ";", "on")):
            return False
        if depth == 0 and word == "between":
            return True
    return False


def _end_of(tokens: list[tuple[str, int, int]], place: int, text: str) -> int | None:
    """The first token behind a condition."""
    depth, case, between = 0, 0, False
    for number in range(place, len(tokens)):
        word = tokens[number][0]
        if word in "([":
            depth += 1
        elif word in ")]":
            if depth == 0:
                return number
            depth -= 1
        elif depth == 0 and word == "case":
            case += 1
        elif depth == 0 and case and word == "end":
            case -= 1
        elif depth == 0 and not case:
            if word == "between":
                between = True
            elif word == "and" and between:
                between = False
            elif word == ";" or word in _ENDS:
                if word == "from" and tokens[number - 1][0] == "distinct":
                    continue
                return number
    return None


def survives(file: Path, text: str, mutant: Mutant) -> bool | None:
    """Do all tests pass without it? None: what is left is no SQL, so nothing can be said."""
    file.write_text(text[: mutant.start] + mutant.instead + text[mutant.end :])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *TESTS],
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.write_text(text)
    if "syntax error" in done.stdout:
        return None
    return done.returncode == 0


def main(names: list[str]) -> int:
    """The number of survivors."""
    found: list[str] = []
    tried = 0
    for name in names:
        file = Path(name)
        text = file.read_text()
        for mutant in mutants(text):
            began = time.monotonic()
            alive = survives(file, text, mutant)
            said = {True: "SURVIVES", False: "noticed", None: "no SQL"}[alive]
            tried += alive is not None
            print(
                f"{said:8} {name}:{mutant.line} {' '.join(mutant.what.split())[:110]} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            if alive:
                found.append(f"{name}:{mutant.line} {' '.join(mutant.what.split())}")
    print(f"{len(found)} of {tried} survive", *found, sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
