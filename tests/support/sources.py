"""Our Python files, each parsed and walked once in a process: several tests ask what stands there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

TOP = Path(__file__).parents[2]
#: Every module of both packages.
FILES = sorted([*(TOP / "worker").rglob("*.py"), *(TOP / "schedules").rglob("*.py")])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of its tree."""
    return list(ast.walk(tree(path)))
