"""Operators that look like PostgreSQL's and fit some arguments better: what anybody who may create in a
schema of the path can make.

PostgreSQL takes the operator whose arguments fit exactly, in whatever schema of the path it is; only where
its own fit exactly, too, do they come first. Each of these says who called it. So a statement of ours that
leaves the choice to the path fails (SPEC N2).
"""

from __future__ import annotations

import itertools
from typing import Any

#: An environment variable: databases of this run have them, and every client of a test has their schema on
#: its path.
ASKED = "TESTS_WITH_LOOKALIKES"
SCHEMA = "lookalikes"
TYPES = (
    "text",
    "integer",
    "bigint",
    "smallint",
    "double precision",
    "real",
    "numeric",
    "interval",
    "timestamptz",
    "timestamp",
    "date",
    "uuid",
    "json",
    "jsonb",
    "boolean",
    "name",
    "oid",
    "regclass",
    '"char"',
    "text[]",
    "bigint[]",
    "integer[]",
    "timestamptz[]",
    "uuid[]",
    "jsonb[]",
)
OPERATORS = (
    "=",
    "<>",
    "<",
    ">",
    "<=",
    ">=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "||",
    "@>",
    "<@",
    "&&",
    "~",
    "!~",
    "->",
    "->>",
    "?",
    "@?",
)


def make(connection: Any) -> int:
    """One of each that PostgreSQL does not have; how many."""
    connection.execute(f"create schema {SCHEMA}; grant usage on schema {SCHEMA} to public", prepare=False)
    numbers = {name: connection.execute("select %s::regtype::oid", (name,)).fetchone()[0] for name in TYPES}
    known = set(
        connection.execute(
            "select oprname, oprleft, oprright from pg_operator where oprnamespace = 'pg_catalog'::regnamespace"
        ).fetchall()
    )
    statements = []
    for left, right in itertools.product(TYPES, TYPES):
        missing = [name for name in OPERATORS if (name, numbers[left], numbers[right]) not in known]
        statements.append(
            f"create function {SCHEMA}.caught({left}, {right}) returns boolean language plpgsql as "
            f"$$ begin raise exception 'a look-alike was called: {left} and {right}'; end $$"
        )
        statements += [
            f"create operator {SCHEMA}.{name} (leftarg = {left}, rightarg = {right}, function = {SCHEMA}.caught)"
            for name in missing
        ]
    connection.execute("; ".join(statements).encode(), prepare=False)
    return len(statements)
