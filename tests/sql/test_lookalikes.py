"""No call of ours leaves the choice of a function or an operator to the search_path (SPEC N2, O9)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from packhorse.worker.db import migration_files
from packhorse.worker.db.names import CATALOG_FUNCTIONS
from packhorse.worker.db.queries import SQL_DIRECTORY
from tests.support import lookalikes
from tests.support.postgres import Database

HERE = Path(__file__).parent
#: Words that a parenthesis may follow, and syntax that PostgreSQL itself binds to functions of its own.
SYNTAX = frozenset(
    """all and any array as atomic backend by check coalesce conflict delete else elsif execute exists explain extract filter from function greatest
    group if in insert into is join key lateral least materialized not nothing nullif on operator or over partition range return returning returns
    row rows select set substring system table then to trigger unique update using vacuum values when where window with within numeric references
    limit order include""".split()  # noqa: SIM905
)
#: Tests of the whole protocol whose own statements are exact.
FILES = [
    "test_fencing.py",
    "test_transitions.py",
    "test_rescue.py",
    "test_cancel.py",
    "test_claim_obstacles.py",
    "test_failing_claims.py",
    "test_failure_details.py",
]


def code_of(text: str) -> str:
    return re.sub(r"--[^\n]*|'(?:[^']|'')*'", "", text)


def test_every_function_of_postgresql_that_we_call_is_qualified(shared_database: Database) -> None:
    """By the migrator and by connections, which know them by name (worker/db/names.py)."""
    theirs = {
        row[0]
        for row in shared_database.query(
            "select distinct proname::text from pg_proc where pronamespace = 'pg_catalog'::regnamespace"
        )
    }
    texts = [migration.text for migration in migration_files.available(sets=["platform"])] + [
        path.read_text() for path in SQL_DIRECTORY.glob("*.sql") if path.name != "repairs.sql"
    ]
    called = {
        name for text in texts for name in re.findall(r"(?<![\w.$%])([a-z_][a-z0-9_]*)\(", code_of(text))
    }
    assert sorted(called & theirs - CATALOG_FUNCTIONS - SYNTAX) == []
    assert sorted(CATALOG_FUNCTIONS - called - {"json_build_object", "replace"}) == [], (
        "what is called no longer"
    )


@pytest.mark.slow
def test_operators_that_fit_better_are_not_taken() -> None:
    """With 10,000 of them on the path of every caller, one for each pair of types that PostgreSQL leaves
    open.
    """
    files = [str(HERE / name) for name in FILES if (HERE / name).exists()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not slow",
        *files,
    ]
    done = subprocess.run(
        command,
        env=os.environ | {lookalikes.ASKED: "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
