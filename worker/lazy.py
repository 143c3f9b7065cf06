"""Public names that are imported at their first use: `packhorse`, its `calls`, `testing` and `schedules` have
theirs so.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def names_of(
    module: str,
    names: Sequence[str],
    homes: Mapping[str, str],
    *,
    package: str = "packhorse.worker",
    rest: str = "",
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that has these public names.

    homes: name -> where it is, below the package, or in full as `packhorse.…`; rest: where all others are.
    """

    def found(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = homes.get(name, rest)
        value = getattr(
            importlib.import_module(home if home.startswith("packhorse.") else f"{package}.{home}"), name
        )
        setattr(sys.modules[module], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[module]), *names})

    return found, listed
