"""Pages of docs/ whose code is run: their blocks, as they are written."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.harness import House
from tests.support.workers import ROOT


@dataclass(frozen=True)
class Block:
    """One block of code. path: the file that its first line names, None of a fragment."""

    language: str
    text: str

    @property
    def path(self) -> str | None:
        match = re.match(r"# ([\w/]+\.py)\n", self.text)
        return match[1] if match else None


class Page:
    """A page by its name below docs/."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = (ROOT / "docs" / name).read_text()
        self.blocks = [
            Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        ]

    def block(self, words: str) -> str:
        """The text of the only block with these words in it."""
        (found,) = [block.text for block in self.blocks if words in block.text]
        return found

    def line(self, words: str) -> str:
        """The only line of a block with these words in it, without its comment."""
        (found,) = [line for block in self.blocks for line in block.text.splitlines() if words in line]
        return found.partition("  #")[0].rstrip()

    def write(self, folder: Path) -> list[str]:
        """Write the blocks that name a file into it; which files."""
        written = [block for block in self.blocks if block.path]
        for block in written:
            target = folder / str(block.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        return [str(block.path) for block in written]


@contextmanager
def imported(folder: Path, *names: str) -> Iterator[list[ModuleType]]:
    """Modules below the folder, importable meanwhile and forgotten afterwards."""
    tops = {name.split(".")[0] for name in names}
    sys.path.insert(0, str(folder))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in tops]:
            del sys.modules[name]


@contextmanager
def working(broker: Any, database: Any, monkeypatch: Any) -> Iterator[House]:
    """The runtime works for this broker in threads of this process."""
    house = House("runtime", database, monkeypatch)
    house.broker.close()
    house.broker = broker
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    broker.configure(house.settings)
    house.start()
    try:
        yield house
    finally:
        house.stop()


def environment(database: Any, **more: str) -> dict[str, str]:
    """For programs that the page starts."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DATABASE_URL": database.url, "PYTHONPATH": str(ROOT), **more}
