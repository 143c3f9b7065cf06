"""How the metrics are read from the fleet_stats, and rendered (SPEC O2). metric_table.py has them all.

Two groups. PROCESS metrics come from shared memory and are this parent's own: at most 200 lines for 10 queues
and 20 actors with the outcomes done, retry and dead, which tests/unit/test_metrics.py counts. FLEET metrics
describe the database; they are computed once per fleet (functions/fleet_statistics.sql) and every parent
shows the same numbers, so aggregate them with max(), not sum(). prometheus_client is used for the text format
only.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from packhorse.worker.observe import fleet_stats as cells
from packhorse.worker.observe import process_stats as layout
from packhorse.worker.observe.fleet_stats import PARTS, RESTARTS, FleetStats, Totals
from packhorse.worker.observe.metric_table import DEFINITIONS, FLEET, PREFIX
from packhorse.worker.observe.process_stats import (
    ACTOR_OUTCOMES,
    CLAIM_BOUNDS,
    CLAIM_RESULTS,
    DB_ERRORS,
    DURATION_BOUNDS,
    LOOPS,
    OUTCOMES,
    STEP_RESULTS,
    WAIT_BOUNDS,
    width,
)

#: Shown for every queue from the start, so that a rate sees the first one; other outcomes have a line once
#: they happen.
SHOWN_AT_ZERO = frozenset({"done", "retry", "dead"})
#: Most queues whose fleet metrics are shown: those with the greatest values.
FLEET_QUEUES = 100


class FleetCollector(Collector):
    """Hands the fleet_stats's numbers to prometheus_client, anew for each scrape. fleet: the statistics' JSON
    and their age, or None.
    """

    def __init__(
        self, fleet_stats: FleetStats, version: str, fleet: tuple[Mapping[str, Any], float] | None = None
    ) -> None:
        self._fleet_stats = fleet_stats
        self._version = version
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        totals = self._fleet_stats.read()
        yield from _message_metrics(totals)
        yield from _claim_metrics(totals)
        yield from _process_metrics(self._fleet_stats, totals, self._version, time.monotonic())
        if self._fleet is not None:
            yield from _fleet_metrics(*self._fleet)


def render(collector: Collector, accept: str = "") -> tuple[bytes, str]:
    """The text and its content type: OpenMetrics for a client that asks for it."""
    encoder, content_type = choose_encoder(accept)
    return encoder(collector), content_type


def family(name: str) -> Any:
    """An empty family of prometheus_client for a defined metric."""
    definition = DEFINITIONS[name]
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    return kinds[definition.kind](PREFIX + name, definition.help, labels=definition.labels)


def _of(name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """A counter or gauge with these samples: (label values, value)."""
    metric = family(name)
    for labels, value in samples:
        metric.add_metric(labels, value)
    return metric  # type: ignore[no-any-return]


def _histogram(
    name: str, bounds: tuple[float, ...], samples: Iterable[tuple[tuple[str, ...], array[float]]]
) -> Metric:
    """A histogram from cells as a stats holds them: a count per bucket, then the sum."""
    metric = family(name)
    for labels, values in samples:
        buckets, total = [], 0.0
        for bound, count in zip([*map(str, bounds), "+Inf"], values, strict=False):
            total += count
            buckets.append((bound, total))
        metric.add_metric(labels, buckets=buckets, sum_value=values[-1])
    return metric  # type: ignore[no-any-return]


def _message_metrics(totals: Totals) -> Iterator[Metric]:
    queues = totals.queues.items()
    yield _of(
        "messages_finished_total",
        (
            ((name, outcome), row[layout.FINISHED + index])
            for name, row in queues
            for index, outcome in enumerate(OUTCOMES)
            if outcome in SHOWN_AT_ZERO or row[layout.FINISHED + index]
        ),
    )
    yield _of(
        "actor_messages_finished_total",
        (
            ((name, outcome), row[index])
            for name, row in totals.actors.items()
            for index, outcome in enumerate(ACTOR_OUTCOMES)
        ),
    )
    yield _histogram(
        "message_wait_seconds",
        WAIT_BOUNDS,
        (((name,), row[layout.WAIT : layout.WAIT + width(WAIT_BOUNDS)]) for name, row in queues),
    )
    yield _histogram(
        "message_duration_seconds", DURATION_BOUNDS, [((), totals.plain[layout.DURATION : layout.BY_ACTOR])]
    )
    yield _of("handler_seconds_total", (((name,), row[layout.BUSY]) for name, row in queues))
    lost = layout.FINISHED + OUTCOMES.index("lost")
    yield _of("leases_lost_total", [((), sum(row[lost] for _, row in queues))])


def _claim_metrics(totals: Totals) -> Iterator[Metric]:
    plain = totals.plain
    yield _of(
        "claims_total",
        (((result,), plain[layout.CLAIMS + index]) for index, result in enumerate(CLAIM_RESULTS)),
    )
    yield _histogram("claim_seconds", CLAIM_BOUNDS, [((), plain[layout.CLAIM_SECONDS : layout.DURATION])])
    steps = [((result,), plain[layout.STEPS + index]) for index, result in enumerate(STEP_RESULTS)]
    yield _of("steps_total", steps if any(count for _, count in steps) else [])
    yield _of("leases_rescued_total", [((), plain[layout.RESCUED])])
    yield _of(
        "db_errors_total", (((kind,), plain[layout.ERRORS + index]) for index, kind in enumerate(DB_ERRORS))
    )


def _process_metrics(fleet_stats: FleetStats, totals: Totals, version: str, now: float) -> Iterator[Metric]:
    registered = [stats.states for stats in fleet_stats.children if stats.states[layout.REGISTERED]]
    ticks = [stats.ticks() for stats in fleet_stats.children]
    yield _of("worker_threads", [((), sum(states[layout.THREADS] for states in registered))])
    yield _of("worker_busy_threads", [((), sum(busy() for busy in fleet_stats.busy))])
    coroutines = sum(states[layout.COROUTINES] for states in registered)
    if coroutines:  # without `async def` actors these say nothing
        yield _of("worker_coroutines", [((), coroutines)])
        yield _of("worker_busy_coroutines", [((), sum(awaiting() for awaiting in fleet_stats.awaiting))])
        yield _of("event_loop_blocked_total", [((), totals.plain[layout.LOOP_BLOCKED])])
        yield _of("event_loop_blocked_seconds_total", [((), totals.plain[layout.LOOP_BLOCKED_SECONDS])])
    yield _of("worker_processes", [((), fleet_stats.cells[cells.ALIVE])])
    yield _of("worker_draining", [((), fleet_stats.cells[cells.DRAINING])])
    yield _of(
        "loop_tick_age_seconds",
        (
            ((loop,), max(now - tick[loop] for tick in ticks if loop in tick))
            for loop in LOOPS
            if any(loop in tick for tick in ticks)
        ),
    )
    failing: dict[tuple[str, str], float] = {}
    for duties in [fleet_stats.duties, *(stats.duties for stats in fleet_stats.children)]:
        for duty, seconds in duties.failing_seconds(now).items():
            failing[duty.loop, duty.name] = max(seconds, failing.get((duty.loop, duty.name), 0.0))
    yield _of("duty_failing_seconds", failing.items())
    yield _of(
        "listen_connected",
        [((), float(bool(registered) and all(states[layout.LISTENING] for states in registered)))],
    )
    on_broker: dict[str, tuple[int, int]] = {}
    for stats in fleet_stats.children:  # each relay of this parent sees the same, a moment apart
        on_broker.update(stats.on_broker())
    if on_broker:
        yield _of("amqp_messages", (((name,), messages) for name, (messages, _) in on_broker.items()))
        yield _of("amqp_consumers", (((name,), consumers) for name, (_, consumers) in on_broker.items()))
    yield _of(
        "process_restarts_total",
        (((reason,), fleet_stats.cells[cells.RESTART + index]) for index, reason in enumerate(RESTARTS)),
    )
    tracing = {"tracing": totals.plain[layout.TRACING]}  # the children's; the fleet_stats has the other parts
    yield _of(
        "observability_errors_total",
        (
            ((part,), fleet_stats.cells[cells.PART + index] + tracing.get(part, 0.0))
            for index, part in enumerate(PARTS)
        ),
    )
    yield _of("build_info", [((version,), 1.0)])


def _fleet_metrics(statistics: Mapping[str, Any], age_seconds: float) -> Iterator[Metric]:
    """From the JSON of fleet_statistics(): lists of objects whose keys are the labels, plus `value`."""
    for definition in FLEET:
        found = statistics.get(definition.name)
        if definition.name == "fleet_age_seconds":
            yield _of(definition.name, [((), age_seconds)])
        elif isinstance(found, list):
            rows = _few(found) if "queue" in definition.labels else found
            yield _of(
                definition.name,
                (
                    (tuple(str(row.get(label)) for label in definition.labels), float(row["value"]))
                    for row in rows
                ),
            )
        elif found is not None:
            yield _of(definition.name, [((), float(found))])


def _few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of at most FLEET_QUEUES queues, those with the greatest values; what is left out is not shown."""
    greatest: dict[str, float] = {}
    for row in rows:
        greatest[row["queue"]] = max(greatest.get(row["queue"], 0.0), float(row["value"]))
    if len(greatest) <= FLEET_QUEUES:
        return rows
    kept = set(sorted(greatest, key=lambda name: -greatest[name])[:FLEET_QUEUES])
    return [row for row in rows if row["queue"] in kept]
