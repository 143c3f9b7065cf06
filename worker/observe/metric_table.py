"""Every metric of a worker: its name, type, labels and help (SPEC O2). metrics.py reads and renders them;
docs/observability.md describes them.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "packhorse_"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric; `name` without the prefix."""

    name: str
    kind: str  # counter, gauge, histogram
    help: str
    labels: tuple[str, ...] = ()


PROCESS = [
    Definition(
        "messages_finished_total",
        "counter",
        "Messages that left this worker, by what became of them.",
        ("queue", "outcome"),
    ),
    Definition(
        "actor_messages_finished_total", "counter", "Attempts by actor: ok or failed.", ("actor", "outcome")
    ),
    Definition(
        "message_wait_seconds",
        "histogram",
        "From the moment a message was due until its handler started; counted at the start.",
        ("queue",),
    ),
    Definition(
        "message_duration_seconds",
        "histogram",
        "Time in a handler, middleware included; counted when it ends.",
    ),
    Definition(
        "handler_seconds_total", "counter", "Time in handlers by queue; counted when they end.", ("queue",)
    ),
    Definition("claims_total", "counter", "Claims that found messages, found none, or failed.", ("result",)),
    Definition("claim_seconds", "histogram", "Round trip of a claim, with the completions it carries."),
    Definition(
        "steps_total",
        "counter",
        "Steps of handlers: stored, or reused from an earlier attempt; absent while there are none.",
        ("result",),
    ),
    Definition(
        "leases_rescued_total",
        "counter",
        "Messages of lost holders that this worker returned to their queues.",
    ),
    Definition(
        "leases_lost_total", "counter", "Messages whose lease this worker lost: somebody else owns them."
    ),
    Definition("worker_threads", "gauge", "Threads that can run handlers."),
    Definition("worker_busy_threads", "gauge", "Threads that run a handler."),
    Definition(
        "worker_coroutines",
        "gauge",
        "Coroutines that can run at once; this and the next three only with `async def` actors.",
    ),
    Definition("worker_busy_coroutines", "gauge", "Coroutines that run a handler."),
    Definition(
        "event_loop_blocked_total",
        "counter",
        "How often a handler has blocked the event loop for 250 ms or longer.",
    ),
    Definition(
        "event_loop_blocked_seconds_total",
        "counter",
        "For how long handlers have blocked the event loop, of those times.",
    ),
    Definition("worker_processes", "gauge", "Worker processes that live."),
    Definition("worker_draining", "gauge", "1 while this worker drains."),
    Definition(
        "loop_tick_age_seconds",
        "gauge",
        "Seconds since a loop last ticked, the oldest of all processes.",
        ("loop",),
    ),
    Definition(
        "duty_failing_seconds",
        "gauge",
        "How long a duty of a loop has failed, or is overdue, the longest of all processes; absent while it is well.",
        ("loop", "duty"),
    ),
    Definition("db_errors_total", "counter", "Failed database calls.", ("class",)),
    Definition(
        "listen_connected",
        "gauge",
        "1 when wake-ups reach every process; without them messages are found by polling.",
    ),
    Definition(
        "amqp_messages",
        "gauge",
        "Messages of a forwarded queue that RabbitMQ has and no worker yet, those that wait for a time left out; of relays.",
        ("queue",),
    ),
    Definition(
        "amqp_consumers",
        "gauge",
        "Consumers of a forwarded queue on RabbitMQ, of that part of it that has the fewest; of relays.",
        ("queue",),
    ),
    Definition("process_restarts_total", "counter", "Worker processes that were replaced.", ("reason",)),
    Definition("build_info", "gauge", "Always 1; the version is in the label.", ("version",)),
    Definition(
        "observability_errors_total",
        "counter",
        "Failures of metrics, probes, notifications and tracing; work goes on.",
        ("part",),
    ),
]
FLEET = [
    Definition(
        "queue_messages", "gauge", "Messages of a queue by state; exact up to 100000.", ("queue", "state")
    ),
    Definition(
        "queue_oldest_due_age_seconds", "gauge", "How long the oldest due message has waited.", ("queue",)
    ),
    Definition("queue_paused", "gauge", "1 when the queue is paused.", ("queue",)),
    Definition(
        "queue_forwarded",
        "gauge",
        "1 when the queue is forwarded to RabbitMQ; absent when it is not.",
        ("queue",),
    ),
    Definition(
        "conversations_blocked",
        "gauge",
        "Conversations with messages that wait for an earlier one; exact up to 10000.",
        ("queue",),
    ),
    Definition(
        "conversation_blocked_age_seconds",
        "gauge",
        "How long the message has been due that waits longest for an earlier one of its conversation; 0 when none waits.",
        ("queue",),
    ),
    Definition("dead_letters", "gauge", "Dead letters of a queue; exact up to 100000.", ("queue",)),
    Definition(
        "isolated_messages",
        "gauge",
        "Messages that wait to run apart, for they were there when two processes died; exact up to 100000.",
    ),
    Definition(
        "refused_completions",
        "gauge",
        "Messages whose work is done and whose completion the database refuses; their processes have ended.",
    ),
    Definition(
        "workers",
        "gauge",
        "Worker processes of the fleet: running, draining, or silent for longer than a lease.",
        ("state",),
    ),
    Definition(
        "partition_runway_seconds",
        "gauge",
        "Time until inserts find no partition: the end of the newest, or the first gap.",
        ("table", "every"),
    ),
    Definition(
        "oldest_snapshot_age_seconds",
        "gauge",
        "Age of the oldest snapshot that keeps dead rows from being removed; absent when the role may not see it.",
    ),
    Definition("table_dead_rows", "gauge", "Dead rows, as the statistics know them.", ("table",)),
    Definition("table_bytes", "gauge", "Size with indexes.", ("table",)),
    Definition(
        "schedule_lag_seconds",
        "gauge",
        "How long the next planned time of a schedule has been due; 0 while it is paused.",
        ("schedule",),
    ),
    Definition(
        "schedule_missed_total",
        "counter",
        "Planned times that passed without a run of their own.",
        ("schedule",),
    ),
    Definition(
        "schedule_last_success_timestamp_seconds",
        "gauge",
        "When a run of the schedule was last done.",
        ("schedule",),
    ),
    Definition(
        "maintenance_last_success_timestamp_seconds",
        "gauge",
        "When a maintenance task last succeeded.",
        ("task",),
    ),
    Definition(
        "maintenance_rows_total",
        "counter",
        "Rows that a maintenance task has removed or repaired.",
        ("task",),
    ),
    Definition(
        "backfill_rows_total",
        "counter",
        "Rows that a backfill has copied, and those that it explained and left.",
        ("backfill", "outcome"),
    ),
    Definition(
        "backfill_done_ratio",
        "gauge",
        "Share of its source that the run of a backfill has walked: 0 to 1; 1 when it has come to the end.",
        ("backfill",),
    ),
    Definition(
        "backfill_remaining_seconds",
        "gauge",
        "Time that is left at the rate of the last minute; absent when nothing runs.",
        ("backfill",),
    ),
    Definition(
        "service_breaker_state",
        "gauge",
        "Circuit breaker of an endpoint: 0 closed, 1 half open, 2 open; as an operator forces it.",
        ("service", "endpoint"),
    ),
    Definition(
        "service_endpoint_healthy",
        "gauge",
        "1 when the health checks of an endpoint succeed; absent before the first.",
        ("service", "endpoint"),
    ),
    Definition(
        "service_calls_total", "counter", "Calls of an endpoint by all processes.", ("service", "endpoint")
    ),
    Definition(
        "service_failures_total", "counter", "Calls of an endpoint that failed.", ("service", "endpoint")
    ),
    Definition(
        "service_breaker_opened_total",
        "counter",
        "How often the breaker of an endpoint opened.",
        ("service", "endpoint"),
    ),
    Definition(
        "scope_parked_seconds",
        "gauge",
        "How long a scope has been parked or probing; absent when it is not.",
        ("scope",),
    ),
    Definition(
        "clock_skew_seconds",
        "gauge",
        "Clock of this worker's host minus the database's, as far as the round trip allows to say; else 0.",
    ),
    Definition("fleet_age_seconds", "gauge", "Age of all fleet metrics."),
]
DEFINITIONS = {definition.name: definition for definition in [*PROCESS, *FLEET]}
