"""One module per question; each yields numbers for one system and knows none of them by name."""

from __future__ import annotations

from benchmarks.harness.config import ConfigError, Settings
from benchmarks.metrics import (
    backfill,
    backlog,
    bursts,
    enqueue,
    fairness,
    http_enqueue,
    idle,
    maintenance,
    observability,
    outage,
    pickup,
    platform,
    producers,
    push,
    recovery,
    relay,
    snapshot,
    tree,
    waiting,
    web,
    work,
)
from benchmarks.metrics.base import Case, Measure


def chosen(settings: Settings) -> list[tuple[Case, Measure]]:
    """The cases of a run in their order. Raises ConfigError for a case that no metric of the run has."""
    found = cases(settings.metrics, settings.snapshot_messages)
    known = {case.key for case, _ in found}
    if strange := [key for key in settings.cases if key not in known]:
        raise ConfigError(
            "\n".join(f"CASES: {key!r} is none of {', '.join(sorted(known))}" for key in strange)
        )
    return [(case, measure) for case, measure in found if not settings.cases or case.key in settings.cases]


def cases(metrics: tuple[str, ...], snapshot_messages: tuple[int, ...]) -> list[tuple[Case, Measure]]:
    """All cases of some metrics. `work` and `memory` share a drain."""
    found: list[tuple[Case, Measure]] = []
    if "work" in metrics or "memory" in metrics:
        found += [(case, work.measure) for case in work.CASES]
    if "memory" in metrics:
        found += [(case, tree.measure) for case in tree.CASES]
    if "enqueue" in metrics:
        found += [(case, enqueue.measure) for case in enqueue.CASES]
    if "pickup" in metrics:
        found += [(case, pickup.measure) for case in pickup.CASES]
    if "backlog" in metrics:
        found += [(case, backlog.measure) for case in backlog.CASES]
    if "snapshot" in metrics:
        found += [(case, snapshot.measure) for case in snapshot.cases(snapshot_messages)]
    if "idle" in metrics:
        found += [(case, idle.measure) for case in idle.CASES]
    if "maintenance" in metrics:
        found += [(case, maintenance.measure) for case in maintenance.CASES]
    if "observability" in metrics:
        found += [(case, observability.measure) for case in observability.CASES]
    if "backfill" in metrics:
        found += [(case, backfill.measure) for case in backfill.CASES]
    if "bursts" in metrics:
        found += [(case, bursts.measure) for case in bursts.CASES]
    if "recovery" in metrics:
        found += [(case, recovery.measure) for case in recovery.CASES]
    if "producers" in metrics:
        found += [(case, producers.measure) for case in producers.CASES]
    if "waiting" in metrics:
        found += [(case, waiting.measure) for case in waiting.CASES]
    if "outage" in metrics:
        found += [(case, outage.measure) for case in outage.CASES]
    if "fairness" in metrics:
        found += [(case, fairness.measure) for case in fairness.CASES]
    if "platform" in metrics:
        found += [(case, platform.measure) for case in platform.CASES]
    if "http" in metrics:
        found += [(case, http_enqueue.measure) for case in http_enqueue.CASES]
    if "push" in metrics:
        found += [(case, push.measure) for case in push.CASES]
    if "relay" in metrics:
        found += [(case, relay.measure) for case in relay.CASES]
    if "web" in metrics:
        found += [(case, web.measure) for case in web.CASES]
    return found
