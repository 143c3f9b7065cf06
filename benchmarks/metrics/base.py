"""The shape of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.harness.config import Settings
from benchmarks.systems.base import System


@dataclass(frozen=True)
class Case:
    """One thing to measure. key: what a system lists in `cases`. messages: 0 = the system's own size."""

    key: str
    processes: int = 1
    messages: int = 0

    @property
    def title(self) -> str:
        """For the progress line."""
        parts = [self.key]
        if self.processes > 1:
            parts.append(f"{self.processes} processes")
        if self.messages:
            parts.append(f"{self.messages:,} messages")
        return ", ".join(parts)


@dataclass(frozen=True)
class Number:
    """One measured value; the orchestrator adds system and round."""

    metric: str
    variant: str
    processes: int
    value: float
    unit: str


Measure = Callable[[System, Case, Settings], Iterator[Number]]
"""Measures a case on an opened system."""
