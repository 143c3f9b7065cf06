"""Named SQL statements, loaded from worker/db/sql/*.sql.

Each statement starts with `-- name: <name>`, followed by a sentence. Python holds no SQL text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

SQL_DIRECTORY = Path(__file__).parent / "sql"
_HEAD = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def load() -> dict[str, str]:
    """All statements by name. Raises ValueError for a name that stands twice or has no sentence."""
    statements: dict[str, str] = {}
    for path in sorted(SQL_DIRECTORY.glob("*.sql")):
        parts = _HEAD.split(path.read_text())[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if name in statements:
                raise ValueError(f"{path.name}: statement {name} stands twice")
            if not body.lstrip().startswith("--"):
                raise ValueError(f"{path.name}: statement {name} has no sentence")
            statements[name] = "\n".join(line for line in body.splitlines() if not line.startswith("--")).strip().rstrip(";")
    return statements


def sql(name: str) -> str:
    """The text of one statement; KeyError when there is none."""
    return load()[name]
