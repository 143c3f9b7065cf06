"""Health gates: what makes a long run wait, and for how long (SPEC M6).

A gate closes above its threshold and opens again below four fifths of it, so that it does not flutter. What
this role may not see is unknown: the run goes on at half speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.store.maintenance import HealthGate

OPEN_AGAIN_RATIO = 0.8


@dataclass(frozen=True, slots=True)
class Verdict:
    """closed: the first gate that holds the run, or None; reason: in words. slow: some gate is unknown."""

    closed: str | None
    reason: str
    slow: bool


def judge(found: Iterable[HealthGate], thresholds: Gates, held_by: str | None) -> Verdict:
    """May a run go on? held_by: the gate that holds it now, which opens only below OPEN_AGAIN_RATIO of its
    threshold.
    """
    slow = False
    for gate in found:
        most = getattr(thresholds, gate.gate, None)
        if most is None:
            continue
        slow = slow or not gate.known
        limit = most * OPEN_AGAIN_RATIO if held_by == gate.gate else most
        if gate.value is not None and gate.value > limit:
            return Verdict(
                gate.gate, f"{gate.gate} is {gate.value:.4g}, at most {most:g} ({gate.detail or ''})", slow
            )
    return Verdict(None, "", slow)
