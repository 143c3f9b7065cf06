"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. subject: fixed, for scripts. repair: the statement or setting that mends it."""

    subject: str
    status: Status
    text: str
    repair: str | None = None
