"""The files of the migrations: plain SQL, in two kinds and three sets.

- Numbered: tables, types, indexes, policies. Each is applied once, and never changed once released.
- `functions/`: the current text of functions and views, one file per verb. A file is applied again when its
  text has changed.

Besides the queue's own there are optional sets, each a subfolder of the same shape: `platform/0001_...`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packhorse.worker.errors import MigrationError

#: Optional sets: subfolders of the migrations, applied after the queue's own and taken back before them.
SETS = ("platform", "public-api")
FUNCTIONS = "functions/"
_RUNS_BESIDE = re.compile(r"^-- Runs beside: (\d+\.\d+\.\d+)\s*$", re.MULTILINE)
_MADE = re.compile(
    r"^create (?:or replace )?(?:table|view|sequence|domain|type|function) (?:if not exists )?(packhorse|platform)\.(\w+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `name` without suffix, with its set and kind (`platform/0001_...`, `functions/claim`), text,
    sha256 of it, way back.

    runs_beside: the oldest release whose code works on the schema with it; None: only the release that brings
    it.
    """

    name: str
    text: str
    checksum: str
    down: str | None
    runs_beside: str | None = None

    @property
    def repeats(self) -> bool:
        """Is it applied again when its text has changed?"""
        return FUNCTIONS in self.name

    @property
    def objects(self) -> list[str]:
        """Names of the tables, views, sequences, types and functions that it makes in the schema of its set.

        What it makes elsewhere has names that the other schema's own objects have, too: that goes by `down`.
        """
        home = "platform" if set_of(self.name) else "packhorse"
        return list(dict.fromkeys(name for schema, name in _MADE.findall(self.text) if schema == home))


def directory() -> Path:
    """Where the files are: packhorse/migrations, a link in a checkout."""
    return Path(__file__).parent.parent.parent / "migrations"


def available(path: Path | None = None, *, sets: Iterable[str] = ()) -> list[Migration]:
    """The queue's migrations in order, then those of each set; of each the numbered ones first.

    Raises MigrationError when a folder is missing or empty, or a set is not known.
    """
    folder = path or directory()
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        raise MigrationError(f"no set of migrations is called {unknown[0]!r}; there is: {', '.join(SETS)}")
    found = _read(folder, "")
    for name in SETS:
        if name in sets:
            found += _read(folder / name, f"{name}/")
    return found


def _read(folder: Path, prefix: str) -> list[Migration]:
    """The migrations of one folder, in order."""
    numbered = [file for file in sorted(folder.glob("[0-9]*.sql")) if not file.name.endswith(".down.sql")]
    if not numbered:
        raise MigrationError(f"no migrations found in {folder}: the installation is incomplete")
    found = [_file(file, prefix + file.stem) for file in numbered]
    functions = [
        file for file in sorted((folder / FUNCTIONS).glob("*.sql")) if not file.name.endswith(".down.sql")
    ]
    return found + [_file(file, f"{prefix}{FUNCTIONS}{file.stem}") for file in functions]


def _file(file: Path, name: str) -> Migration:
    text = file.read_text()
    down = file.with_suffix(".down.sql")
    beside = _RUNS_BESIDE.search(text)
    return Migration(
        name,
        text,
        hashlib.sha256(text.encode()).hexdigest(),
        down.read_text() if down.exists() else None,
        beside[1] if beside else None,
    )


def sets_in(names: Iterable[str]) -> set[str]:
    """The optional sets that a database has, by the names recorded in it."""
    return {prefix for name in names if (prefix := name.partition("/")[0]) in SETS and prefix != name}


def set_of(name: str) -> str:
    """The set of a migration; "" for the queue's own."""
    prefix = name.partition("/")[0]
    return prefix if prefix in SETS else ""
