"""Measured rows: one flat record per number, written to a JSON list after every measurement."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness.stats import median


@dataclass(frozen=True)
class Row:
    """One number. processes: worker (or producer) processes that made it. round: from 1."""

    system: str
    metric: str
    variant: str
    processes: int
    value: float
    unit: str
    round: int


Key = tuple[str, str, int, str, str]
"""metric, variant, processes, unit, system."""


@dataclass
class Results:
    """The rows of one run and the file they are kept in."""

    path: Path
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a row and rewrite the file, so that an interrupted run leaves what it measured."""
        self.rows.append(row)
        records = ",\n  ".join(json.dumps(asdict(each)) for each in self.rows)
        self.path.write_text(f"[\n  {records}\n]\n")

    def groups(self) -> dict[Key, list[float]]:
        """All values by (metric, variant, processes, unit, system), in order of their first measurement."""
        grouped: dict[Key, list[float]] = {}
        for row in self.rows:
            key = (row.metric, row.variant, row.processes, row.unit, row.system)
            grouped.setdefault(key, []).append(row.value)
        return grouped

    def by_round(self, system: str, metric: str, variant: str, processes: int) -> dict[int, float]:
        """Value per round (the median where a round measured it twice); empty when never measured."""
        values: dict[int, list[float]] = {}
        for row in self.rows:
            if (row.system, row.metric, row.variant, row.processes) == (system, metric, variant, processes):
                values.setdefault(row.round, []).append(row.value)
        return {number: median(each) for number, each in values.items()}
