"""How long claims took, written by a worker and read by the harness."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

CLAIM_FILE = "BENCH_CLAIM_FILE"


@dataclass
class ClaimLog:
    """Appends `moment seconds` per claim to BENCH_CLAIM_FILE; without that variable it drops them.

    Written line by line, because a worker may be ended without notice; a claim brings many messages.
    """

    file: TextIO | None = field(default=None)

    @classmethod
    def from_env(cls) -> ClaimLog:
        """The log that BENCH_CLAIM_FILE asks for."""
        path = os.environ.get(CLAIM_FILE)
        return cls(open(path, "a", buffering=1) if path else None)

    def add(self, seconds: float) -> None:
        """Note a claim that has just ended. seconds: its duration."""
        if self.file is not None:
            self.file.write(f"{time.monotonic():.6f} {seconds:.6f}\n")


def read_claims(path: Path) -> list[tuple[float, float]]:
    """All complete lines as (moment of the end, seconds), in the order written."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return [(float(moment), float(seconds)) for moment, seconds in pairs]
