"""Our Python files, each parsed and walked once in a process: several tests ask what stands there."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path

TOP = Path(__file__).parents[2]
#: Every module of both packages.
FILES = sorted([*(TOP / "worker").rglob("*.py"), *(TOP / "schedules").rglob("*.py")])


@cache
def tree(path: Path) -> ast.Module:
    was = gc.isenabled()
    gc.disable()  # a tree is many objects and no garbage: looking for it takes twice as long as parsing
    try:
        return ast.parse(path.read_text())
    finally:
        if was:
            gc.enable()


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of its tree."""
    return list(ast.walk(tree(path)))
