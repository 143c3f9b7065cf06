"""Which conditions of our SQL does no test miss? `python -m tests.mutants migrations/functions/claim.sql
[more files] [--tests FILES]`.

Takes out one condition at a time (an operand of AND in WHERE, ON and IF, and SKIP LOCKED) from the functions
of a file, in the database that all databases of the tests are cloned from, and runs the fast tests of SQL, or
`--tests`. No file is changed. A mutant that no test notices survives: either a test is missing, or the
condition is not needed for what is promised (a faster plan, say); those of the second kind stand in
mutants.toml with the reason, and are not tried. Prints the survivors with their lines and exits with their
number.

One server for all mutants, and a fork of this process, which has imported all tests, for each: what has
noticed most so far is asked first. A mutant that is noticed takes seconds, one that survives as long as the
tests: try few files first, then only the lines that are left with all.
Tests that start a server of their own, or apply the migrations themselves, see the functions as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import psutil
import psycopg
import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests import conftest
from tests.support.postgres import TEMPLATE, Server

#: What is run for each mutant when nothing else is asked for: nearly all tests of the queue's SQL.
TESTS = ("--ignore", "tests/sql/test_catalogue.py", "--ignore", "tests/sql/test_servers.py", "--ignore", "tests/sql/platform", "tests/sql")  # fmt: skip
OPTIONS = ("-q", "--no-header", "-p", "no:cacheprovider", "--timeout", "60")
LONGEST_SECONDS = 240
KNOWN = Path(__file__).with_name("mutants.toml")
#: What a test says that breaks a function itself and does not find what it is to cut out.
NOT_NOTICED = "mend the mutation"

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
        if word == "where" or (
            word in ("if", "on") and tokens[place - 1][0] not in ("end", "or", "comment", "not")
        ):
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


def function_at(text: str, place: int) -> str:
    """The function of a file within which a place is."""
    names = re.findall(r"^create or replace function \w+\.(\w+)", text[:place], re.MULTILINE)
    return names[-1] if names else ""


@dataclass(frozen=True)
class Known:
    """What nobody has to test, and why. occurrence: which of those in the function, from 1 on; None: all."""

    function: str
    condition: str
    why: str
    occurrence: int | None = None

    def is_at(self, text: str, mutant: Mutant) -> bool:
        """Is this mutant of a file the one?"""
        if (function_at(text, mutant.start), plain(mutant.what)) != (self.function, self.condition):
            return False
        same = [
            other.start
            for other in mutants(text)
            if (function_at(text, other.start), plain(other.what)) == (self.function, self.condition)
        ]
        return self.occurrence in (None, same.index(mutant.start) + 1)


def known_equivalents() -> list[Known]:
    """What stands in mutants.toml."""
    return [
        Known(function, plain(entry["condition"]), entry["why"], entry.get("occurrence"))
        for entry in tomllib.loads(KNOWN.read_text())["equivalent"]
        for function in entry["in"]
    ]


def plain(condition: str) -> str:
    """Without comments and line breaks."""
    words = " ".join(re.sub(r"--[^\n]*", "", condition).split())
    return words.replace("( ", "(").replace(" )", ")")


class Watch:
    """A plugin of one run: asks first what has noticed most, and stops at the first test that fails."""

    def __init__(self, likely: Counter[str]) -> None:
        self.likely = likely
        self.noticed = ""
        self._session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if conftest._server_of(item) == conftest.FIRST]
        items.sort(key=lambda item: (-self.likely[item.nodeid], -self.likely[_file(item.nodeid)]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.noticed and NOT_NOTICED not in report.longreprtext:
            self.noticed = report.nodeid
            assert self._session is not None
            self._session.shouldstop = "noticed"


def _file(node: str) -> str:
    return node.partition("::")[0]


def run_tests(asked: list[str], likely: Counter[str], answer: Connection) -> None:
    """In a fork: the tests, until one fails; sends its name, or "" when all have passed."""
    watch = Watch(likely)
    code = pytest.main([*OPTIONS, *asked], plugins=[watch])
    answer.send(watch.noticed or ("" if code == 0 or watch._session is not None else f"exit {code}"))


class Mutations:
    """A server whose template database has one broken function at a time."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked
        self.likely: Counter[str] = Counter()
        if pytest.main([*OPTIONS, "--collect-only", "-qq", *asked]):  # imports all tests, for all forks
            raise SystemExit("the tests cannot be collected")
        self.server = conftest._server(conftest.FIRST)

    def noticed_by(self, text: str, mutant: Mutant) -> str | None:
        """The test that fails without the condition; "" when none does, None when what is left is no SQL."""
        try:
            self._apply(text[: mutant.start] + mutant.instead + text[mutant.end :])
        except psycopg.Error:
            return None
        try:
            return self._tested()
        finally:
            self._apply(text)

    def _apply(self, text: str) -> None:
        with connect(self.server.url(TEMPLATE), deadline_seconds=60) as connection:
            connection.execute("set check_function_bodies = on")
            migrate.apply_text(connection, text)

    def _tested(self) -> str:
        ours, theirs = Pipe(duplex=False)
        if child := os.fork():
            theirs.close()
            noticed = ours.recv() if ours.poll(LONGEST_SECONDS) else "too long"
            _end(child)
        else:
            _quietly(lambda: run_tests(self.asked, self.likely, theirs), self.server)
        self._drop_databases()
        if "::" in noticed:
            self.likely[noticed] += 1
            self.likely[_file(noticed)] += 1
        return noticed

    def _drop_databases(self) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as admin:
            for (name,) in admin.execute(
                "select datname from pg_database where datname like 'test\\_%'"
            ).fetchall():
                self.server.command("drop database {} with (force)", name)


def _quietly(work: Callable[[], None], server: Server) -> NoReturn:
    """Do this in a fork, say nothing, leave the server alone, and end."""
    server.close = lambda: None  # type: ignore[method-assign]
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        work()
    finally:
        os._exit(0)


def _end(child: int) -> None:
    """Kill what is left of a fork and of its children."""
    left = psutil.Process(child)
    for process in [*left.children(recursive=True), left]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    os.waitpid(child, 0)


def _lines(text: str) -> set[int]:
    """`26,31,40-50`."""
    parts = [part.partition("-") for part in text.split(",")]
    return {line for first, _, last in parts for line in range(int(first), int(last or first) + 1)}


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("files", nargs="+", metavar="FILE", help="functions, below migrations/functions")
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, metavar="FILE", help="what is run for each mutant"
    )
    parser.add_argument("--slow", action="store_true", help="also slow tests")
    parser.add_argument("--lines", type=_lines, help="only mutants of these lines, as 26,31,40-50")
    parser.add_argument("--all", action="store_true", help="also those of mutants.toml")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The number of survivors."""
    given = _arguments(arguments)
    known = [] if given.all else known_equivalents()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    mutations = Mutations([*([] if given.slow else ["-m", "not slow"]), *given.tests])
    counts: Counter[str] = Counter()
    found: list[str] = []
    try:
        for name in given.files:
            text = Path(name).read_text()
            for mutant in mutants(text):
                if given.lines and mutant.line not in given.lines:
                    continue
                began = time.monotonic()
                what = f"{name}:{mutant.line} {plain(mutant.what)}"
                said, by = "known", ""
                if not any(entry.is_at(text, mutant) for entry in known):
                    by = mutations.noticed_by(text, mutant)
                    said = {None: "no SQL", "": "SURVIVES"}.get(by, "noticed")
                counts[said] += 1
                print(f"{said:8} {what[:150]} ({time.monotonic() - began:.0f} s) {by or ''}", flush=True)
                if said == "SURVIVES":
                    found.append(what)
    finally:
        mutations.server.close()
    print(dict(counts), *found, sep="\n")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
