"""Named SQL statements, loaded from worker/db/sql/*.sql.

Each statement starts with `-- name: <name>`, followed by a sentence. Python holds no SQL text. A statement
names our schemas as names.py says; the connection that runs it puts in what they are called.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

SQL_DIRECTORY = Path(__file__).parent / "sql"
_HEAD = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


class Statement(str):
    """A text of ours, with our qualifiers in it; what is made of it by format() is one, too."""

    __slots__ = ()

    def format(self, *args: object, **kwargs: object) -> Statement:
        return Statement(super().format(*args, **kwargs))


@cache
def load() -> dict[str, Statement]:
    """All statements by name. Raises ValueError for a name that stands twice or has no sentence."""
    statements: dict[str, Statement] = {}
    for path in sorted(SQL_DIRECTORY.glob("*.sql")):
        parts = _HEAD.split(path.read_text())[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if name in statements:
                raise ValueError(f"{path.name}: statement {name} stands twice")
            if not body.lstrip().startswith("--"):
                raise ValueError(f"{path.name}: statement {name} has no sentence")
            statements[name] = Statement(
                "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip().rstrip(";")
            )
    return statements


def sql(name: str) -> Statement:
    """The text of one statement; KeyError when there is none."""
    return load()[name]
