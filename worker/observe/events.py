"""Every event that a packhorse process logs: its level and its keys, always all of them (SPEC P8, O3).

tests/unit/test_events.py reads every call of a logger below worker/ and schedules/ and compares;
docs/observability.md lists the same. Keys that a line may have besides: `note` (fixed text), `exception` (a
traceback; without the texts of exceptions but in child_failed and config_error), and, inside a handler,
`message_id`, `actor`, `attempt`, `correlation_id`, inside an error boundary `operation_name`,
`correlation_id` and what it was given, and, inside a span, `trace_id`, `span_id`. Level `varies`: the meaning
says how.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """level: debug, info, warning, error, critical or varies."""

    level: str
    keys: tuple[str, ...]
    meaning: str


_MESSAGE = (
    "message_id",
    "queue",
    "actor",
    "attempt",
    "outcome",
    "duration_seconds",
    "wait_seconds",
    "correlation_id",
    "error_class",
    "error_code",
    "worker_id",
    "trace_id",
)

EVENTS: dict[str, Event] = {
    # -- messages
    "message_ended": Event(
        "varies",
        _MESSAGE,
        "A message ended well (debug, or info with log_outcomes=all), was snoozed, cancelled or released.",
    ),
    "message_failed": Event("varies", _MESSAGE, "An attempt failed: outcome retry (info) or dead (warning)."),
    "message_skipped": Event("warning", ("message_id", "actor"), "Middleware skipped a message."),
    "message_ended_for_its_thread": Event(
        "info", ("message_id", "outcome"), "The outcome was written for a handler that would not end."
    ),
    "handlers_left": Event(
        "warning",
        ("count", "worker_id"),
        "Handlers still running when the drain was over; their messages go back once the process is gone.",
    ),
    "shutdown_hooks_left": Event(
        "warning",
        ("worker_id", "seconds"),
        "Middleware did not come to an end at the stop; it is not waited for.",
    ),
    "lease_lost": Event(
        "info", ("message_id", "worker_id"), "Somebody else owns the message; nothing was written."
    ),
    "lease_not_renewed": Event(
        "warning",
        ("message_id", "actor"),
        "The database is out of reach; the handler is interrupted before its lease ends.",
    ),
    "lease_over": Event("error", ("message_id", "actor"), "A handler still runs although its lease is over."),
    "time_limit_exceeded": Event(
        "warning", ("message_id", "actor"), "The soft time limit interrupts a handler."
    ),
    "time_limit_refused": Event(
        "warning",
        ("message_id", "actor"),
        "A message's own time_limit is no number of milliseconds; its actor's holds.",
    ),
    "hard_limit_exceeded": Event(
        "error", ("message_id", "actor"), "A handler ignored its soft limit; the process is replaced."
    ),
    "outcome_not_storable": Event(
        "warning", ("message_id", "error_class"), "An error text cannot be stored; a fixed text is written."
    ),
    "options_not_storable": Event(
        "warning",
        ("message_id", "actor", "names"),
        "Middleware has put what is no JSON into the options; its next attempt does not see these.",
    ),
    "scope_parked": Event(
        "warning",
        ("scope", "seconds", "message_id", "actor"),
        "What a handler calls asked for a pause; all messages of the scope rest.",
    ),
    "failure_breaker_parked": Event(
        "warning",
        ("queue", "actor", "error_class", "message_id"),
        "Failures of one cause in a row, or a probe that failed: messages of the actor or queue rest.",
    ),
    "claims_recovered": Event(
        "info", ("count", "worker_id"), "The answer of a claim was lost; what it had leased is handed back."
    ),
    "outcome_waits": Event(
        "warning",
        ("message_id", "error"),
        "Somebody keeps the message's row locked; tried again, others go on.",
    ),
    "outcomes_refused": Event(
        "debug", ("count", "error_class"), "Outcomes that were to be written together are written one by one."
    ),
    "outcome_refused": Event(
        "error",
        ("message_id", "sqlstate", "error"),
        "The database refuses the outcome; the process keeps the message and its lease and tries again.",
    ),
    "completions_marked": Event(
        "error",
        ("count", "worker_id", "sqlstate"),
        "The process stops and completions are still refused: these messages do not run again.",
    ),
    "follow_up_failed": Event(
        "warning",
        ("message_id", "error_class"),
        "A next stage or success callback was not sent; the message runs again.",
    ),
    "result_discarded": Event("debug", ("actor",), "A handler returned a value and nothing keeps results."),
    "result_not_storable": Event("error", ("message_id", "actor", "error"), "A result could not be stored."),
    "result_lost": Event(
        "error",
        ("message_id", "actor", "error"),
        "Where results are kept is away: the message ends as it would, without one.",
    ),
    "type_unknown": Event(
        "warning",
        ("message_type", "near"),
        "packhorse.enqueue: workers live and none has ever registered this type; said once per process and type.",
    ),
    "redis_unavailable": Event(
        "warning",
        ("use", "error_class"),
        "Redis does not answer. use: results (calls fail at once until it does) or wakeups (workers poll).",
    ),
    "redis_recovered": Event("info", ("use", "seconds"), "Redis answers again."),
    "retry_policy_failed": Event(
        "warning", ("message_id", "actor", "error_class"), "retry_when raised; the usual policy applies."
    ),
    "on_retry_exhausted_unknown": Event(
        "warning", ("actor", "message_id"), "The actor named by on_retry_exhausted does not exist."
    ),
    "hook_failed": Event("critical", ("hook",), "A hook of a middleware raised; the next one runs."),
    "handler_thread_failed": Event(
        "critical",
        ("message_id", "error_class"),
        "The runtime itself failed on a message; the thread goes on.",
    ),
    "step_stored": Event(
        "debug", ("message_id", "step", "bytes"), "A handler has stored the result of a step."
    ),
    "step_reused": Event(
        "info",
        ("message_id", "step"),
        "An earlier attempt has stored this step: its function was not called again.",
    ),
    # -- what handlers call
    "operation_done": Event(
        "info",
        ("operation_name", "duration_seconds", "correlation_id"),
        "An operation in an error boundary has come to its end.",
    ),
    "operation_failed": Event(
        "warning",
        ("operation_name", "code", "error_class", "retryable", "duration_seconds", "correlation_id"),
        "An error left an error boundary; retryable: whether another attempt may help.",
    ),
    "agent_error": Event(
        "warning",
        ("agent_type", "operation_name", "code", "recoverable"),
        "The same once more, when an AI agent has failed.",
    ),
    "operation_left": Event(
        "warning",
        ("operation_name", "count"),
        "A function goes on in its thread after its time was over, or its caller was interrupted; so many do.",
    ),
    # -- the library for handlers of a platform
    "dedup_failed_open": Event(
        "warning",
        ("message_id", "correlation_id", "error_class"),
        "Nobody could say whether a message is new: it counts as new, and may be handled twice.",
    ),
    "message_not_marked": Event(
        "warning",
        ("message_id", "correlation_id", "error_class"),
        "A message was handled, and that could not be noted: it may be handled again.",
    ),
    # -- a worker process
    "exception_ignored": Event(
        "error", ("error_class",), "A finalizer raised, in the code of a handler or of a library."
    ),
    "worker_started": Event(
        "info", ("worker_id", "pid", "queues", "threads"), "A process is registered and works."
    ),
    "amqp_connected": Event(
        "info", ("worker_id", "queues"), "A worker on RabbitMQ is connected and consumes these queues."
    ),
    "amqp_unavailable": Event(
        "warning", ("error",), "Postgres or RabbitMQ does not answer at the start; it is waited for."
    ),
    "amqp_nothing_forwarded": Event(
        "warning",
        ("queues",),
        "A worker on RabbitMQ has no queue to consume: none of those of its actors is forwarded.",
    ),
    "amqp_queue_refused": Event(
        "warning",
        ("queue", "error"),
        "A queue that is forwarded since the start cannot be consumed; tried again.",
    ),
    "amqp_blocked": Event(
        "warning",
        ("reason",),
        "RabbitMQ is short of disk or memory and takes no messages; what is to be published waits, handlers go on.",
    ),
    "relay_unavailable": Event(
        "warning",
        ("error",),
        "A relay cannot publish: RabbitMQ does not answer, or refuses it. Messages wait in Postgres.",
    ),
    "relay_recovered": Event("info", (), "It can publish again."),
    "relay_refused": Event(
        "warning",
        ("queue", "reason"),
        "RabbitMQ does not take messages of this queue now: it is full, is gone, or has too few nodes. They are tried again.",
    ),
    "relay_accepted": Event("info", ("queue",), "It takes them again."),
    "relay_message_refused": Event(
        "error",
        ("message_id", "error"),
        "A message that RabbitMQ never takes (it is too large, say) becomes a dead letter `rejected`.",
    ),
    "relay_queue_refused": Event(
        "error",
        ("queue", "error"),
        "A forwarded queue cannot be had on RabbitMQ; its messages stay in Postgres, those of others are relayed.",
    ),
    "relay_queues_changed": Event(
        "info",
        ("queues",),
        "Other queues are forwarded than at the start of a relay; it is replaced by one for these.",
    ),
    "relay_failed": Event(
        "critical",
        ("error_class",),
        "A relay's publishing failed in a way nobody expected; it connects again.",
    ),
    "amqp_unblocked": Event("info", (), "It takes messages again."),
    "amqp_refused": Event(
        "warning",
        ("message_id", "address"),
        "RabbitMQ did not take the message of a retry; tried again each second.",
    ),
    "amqp_unknown_type": Event(
        "warning",
        ("message_type", "queue"),
        "No actor of this worker has the type; its messages wait for another worker.",
    ),
    "message_repeated": Event(
        "info",
        ("message_id", "queue"),
        "RabbitMQ has delivered a message that is done or a dead letter; it is acknowledged and not run.",
    ),
    "forwarded_outcome_refused": Event(
        "error",
        ("error",),
        "Postgres refuses a dead letter or a note of a message from RabbitMQ; kept, and tried again.",
    ),
    "worker_quiet": Event(
        "info", ("worker_id",), "An operator asked its daemon to claim nothing more; it lives on."
    ),
    "worker_resumed": Event("info", ("worker_id",), "It claims again."),
    "drain_asked": Event("info", ("pid",), "An operator asked the daemon to end; it drains as at SIGTERM."),
    "worker_stopped": Event("info", ("worker_id", "drain_seconds", "exit_code"), "A process has drained."),
    "worker_recycled": Event(
        "info",
        ("worker_id", "messages", "memory_mib"),
        "A process ends after max_messages or above max_memory_mib.",
    ),
    "worker_fenced": Event(
        "error",
        ("worker_id", "count"),
        "A process ends at once because leases are over; so many messages are somebody else's now.",
    ),
    "handler_abandoned": Event(
        "warning",
        ("message_id", "actor"),
        "A coroutine went on after its interrupt, until its hard limit or the end of the drain; it is not resumed.",
    ),
    "handler_coroutine_failed": Event(
        "critical",
        ("message_id", "error_class"),
        "An attempt of a coroutine failed outside its handler; it counts as a failed attempt.",
    ),
    "loop_blocked": Event(
        "warning",
        ("message_id", "actor", "seconds", "stack"),
        "A handler blocks the event loop: the coroutines of this process do not go on.",
    ),
    "loop_recovered": Event("info", ("seconds",), "The event loop goes on; it was blocked for so long."),
    "event_loop_interrupted": Event(
        "critical",
        (),
        "A task that a handler made raised SystemExit or the like in the event loop, which goes on.",
    ),
    "threads_missing": Event(
        "error", ("worker_id", "alive"), "Handler threads have died; the process is replaced."
    ),
    "thread_failed": Event("critical", ("thread",), "An exception that nobody caught ended a thread."),
    "database_unavailable": Event(
        "warning", ("error",), "The database cannot be reached at the start; it is waited for."
    ),
    "drain_waits": Event("warning", ("error_class",), "The last outcomes cannot be written yet."),
    "deregister_failed": Event(
        "info", ("error_class",), "The row of this process stays until it is forgotten."
    ),
    "duty_refused": Event(
        "warning",
        ("duty", "error_class", "error"),
        "The database refuses a duty of the heartbeat; tried again, the others go on. Said once.",
    ),
    "duty_recovered": Event("info", ("duty",), "It was done again."),
    "service_failed": Event(
        "warning",
        ("name", "failures", "error_class", "error"),
        "A loop failed and tries again; repeats are said after 1 s, 2 s … a minute, an outage by one loop of a process a second. "
        "`failures`: since it was last well.",
    ),
    "service_recovered": Event("info", ("name", "failures"), "It works again, and has for a second."),
    # -- the parent
    "supervisor_started": Event(
        "info",
        ("pid", "processes", "app_dir"),
        "The parent begins; app_dir: the folder that each process will enter.",
    ),
    "burst_finished": Event(
        "info",
        ("done", "failed", "dead", "left"),
        "Nothing is left to do now: messages done, waiting after a failure, dead, and left of all kinds.",
    ),
    "burst_gave_up": Event(
        "error",
        ("count",),
        "So many processes in a row ended before they had begun to work; the burst ends with exit code 1.",
    ),
    "burst_look_failed": Event(
        "warning",
        ("error_class",),
        "The database did not say whether there is something to do; it is asked again.",
    ),
    "supervisor_stopped": Event("info", ("exit_code",), "The parent ends."),
    "child_exited": Event(
        "warning", ("pid", "exit_code", "running"), "A process ended unasked; running: messages that it ran."
    ),
    "queue_without_actors": Event(
        "warning",
        ("queue", "near", "worker_id"),
        "The process was told to work on a queue that none of its actors is on; near: one that is.",
    ),
    "reload_waits": Event(
        "warning",
        ("pid", "seconds"),
        "After SIGHUP: the new code is still being tried out; the old processes go on.",
    ),
    "reload_refused": Event(
        "error", ("exit_code",), "After SIGHUP: new processes would not start; the old ones go on."
    ),
    "reload_watches": Event(
        "info", ("folders",), "With --reload: changes of Python files in these folders load the code anew."
    ),
    "source_changed": Event(
        "info", ("path", "count"), "With --reload: so many files have changed, this one among them."
    ),
    "reload_watch_failed": Event("error", ("error",), "With --reload: files are not watched any more."),
    "app_dir_missing": Event(
        "error",
        ("path", "error"),
        "The application's folder is gone: no process can start. Said once, looked for again.",
    ),
    "app_dir_found": Event("info", ("path",), "It is back; processes start again."),
    "foreign_signal_handler": Event(
        "warning",
        ("signal", "handler"),
        "The application has set a handler for a signal that we need (or a wake-up descriptor); ours is set again.",
    ),
    "forked_child_failed": Event(
        "critical",
        ("pid", "error_class"),
        "A child that a handler or a hook forked ended with an exception, with code 1.",
    ),
    "fork_failed": Event(
        "error",
        ("error",),
        "The system has no process to give; tried again with backoff, those that live go on.",
    ),
    "child_retiring": Event("info", ("pid",), "A process is told to drain in a rolling restart."),
    "child_hung": Event(
        "error", ("pid", "loops", "hang_seconds"), "Loops do not tick: the process is killed and replaced."
    ),
    "child_killed": Event("error", ("pid",), "A process did not end within its time."),
    "child_failed": Event("critical", ("pid",), "A process ended with an exception that nobody caught."),
    "config_error": Event(
        "error",
        (),
        "A problem of the configuration, or the traceback of an import that failed; the process ends.",
    ),
    "schema_mismatch": Event("error", (), "Code and database do not fit; the process ends."),
    "start_failed": Event(
        "error", ("error_class", "error"), "A process could not start; it is tried again with backoff."
    ),
    "messages_recovered": Event(
        "warning",
        ("worker_id", "count", "started", "crashed"),
        "What a process held that has ended was given back; crashed: nobody had ordered its end.",
    ),
    "recover_failed": Event(
        "warning",
        ("worker_id", "error_class"),
        "It could not be given back yet: tried again until the daemon stops; then the leases run out.",
    ),
    "isolation_started": Event(
        "warning",
        ("pid", "threads"),
        "Messages that were there when two processes died run apart, in a process of their own.",
    ),
    # -- services that handlers call
    "circuit_opened": Event(
        "warning",
        ("service", "endpoint", "failures_in_row", "retry_seconds"),
        "The breaker of an endpoint opened; said by the process whose calls decided it.",
    ),
    "circuit_probe_failed": Event(
        "info", ("service", "endpoint"), "A probe failed: the breaker stays open for its reset time."
    ),
    "circuit_closed": Event("info", ("service", "endpoint"), "Probes succeeded: the breaker is closed."),
    "breakers_alone": Event(
        "warning",
        ("services",),
        "The database is away: the process opens and closes breakers by its own calls. Said once.",
    ),
    "breakers_shared": Event("info", ("services",), "It is back: breakers are those of the fleet again."),
    "endpoint_unhealthy": Event(
        "warning", ("service", "endpoint", "error"), "Three health checks in a row have failed."
    ),
    "endpoint_healthy": Event("info", ("service", "endpoint"), "A health check succeeded after that."),
    "push_answer_cut": Event("warning", ("push", "message_id", "max_answer_bytes"), "Its end was not read."),
    "push_secrets_read": Event("info", ("push", "secrets"), "Secrets were read anew: so many sign."),
    "push_secrets_refused": Event("error", ("push", "problem"), "It holds no good one: those before go on."),
    "service_unknown": Event(
        "warning", ("service", "actor", "near"), "Nobody declares an actor's service here."
    ),
    # -- the timetable and maintenance
    "timetable_declared": Event(
        "info",
        ("schedules", "changed"),
        "What code and configuration declare was written into the timetable.",
    ),
    "schedule_fired": Event(
        "debug", ("schedule", "planned_at"), "A planned time was decided and its message enqueued."
    ),
    "schedule_missed": Event(
        "warning",
        ("schedule", "count", "policy", "since"),
        "Planned times passed undecided; what is done about it.",
    ),
    "schedule_overlapped": Event(
        "warning", ("schedule", "planned_at"), "The previous run still lives; this one was left out."
    ),
    "schedule_waits": Event(
        "info",
        ("schedule", "error_class"),
        "Somebody else has the row of the schedule locked; tried again, the others go on.",
    ),
    "schedule_failed": Event(
        "error",
        ("schedule", "error_class", "error"),
        "A planned time could not be enqueued; it is in the history.",
    ),
    "schedule_unusable": Event(
        "error",
        ("schedule", "error"),
        "No planned time can be computed; tried again twice a minute, said once.",
    ),
    "schedule_refused": Event(
        "error", ("schedule", "error"), "The database refuses a declared schedule; the others are written."
    ),
    "plan_problem": Event(
        "error", ("task", "problem"), "A policy does not fit the database; its task is left out."
    ),
    "schedule_unserved": Event(
        "warning",
        ("schedule", "message_type", "queue", "near"),
        "No actor that is loaded and no live worker takes its messages from its queue.",
    ),
    "plan_warning": Event("warning", ("problem",), "A policy would work badly."),
    "maintenance_ended": Event(
        "info",
        ("task", "run_id", "state", "rows"),
        "A run ended, or paused; runs that found nothing to do are not said.",
    ),
    "maintenance_failed": Event("error", ("task", "run_id", "error_class", "error"), "A run failed."),
    "maintenance_not_recorded": Event(
        "warning", ("run_id", "error_class"), "That could not be written; the next run takes it over."
    ),
    "maintenance_busy": Event("info", ("task",), "Another process works on the task."),
    "maintenance_waits": Event("info", ("task", "gate"), "A health gate has closed; the run waits."),
    "maintenance_goes_on": Event("info", ("task", "gate"), "It is open again."),
    "backfill_stage": Event(
        "info",
        ("backfill", "stage"),
        "The source is walked; what follows (an index, a key, a swap of names) begins.",
    ),
    "backfill_value_nulled": Event(
        "warning",
        ("backfill", "source", "row"),
        "A value could not be kept and became NULL; the ledger has it.",
    ),
    "backfill_row_refused": Event(
        "warning",
        ("backfill", "source", "row", "code"),
        "The database refuses a row; the ledger has it, the run goes on.",
    ),
    "backfill_finding": Event(
        "warning",
        ("backfill", "level", "check"),
        "What a comparison of source and target has found, unless all is well.",
    ),
    "backfill_ended": Event(
        "info", ("backfill", "state", "rows"), "Workers have carried a backfill to its end."
    ),
    "backfill_finished": Event(
        "info", ("backfill", "source", "rows"), "A clean-up has dropped the old table."
    ),
    "backfill_rolled_back": Event("info", ("backfill", "findings"), "A backfill was taken back."),
    "partition_made": Event("info", ("table", "partition"), "A partition was made."),
    "partition_detached": Event(
        "info", ("table", "partition"), "A partition was detached; its grace begins."
    ),
    "partition_exported": Event(
        "info", ("table", "partition", "path", "rows", "sha256"), "A partition was written to a file."
    ),
    "partition_dropped": Event("info", ("table", "partition"), "A detached partition was dropped."),
    "partition_drained": Event(
        "info", ("table", "partition", "rows"), "Rows of a default partition were moved."
    ),
    "partition_waits": Event(
        "info", ("table", "partition", "attempt", "error"), "A lock could not be had; tried again."
    ),
    # -- observing
    "database_read_only": Event(
        "error",
        ("error",),
        "The database takes no writes any more: a standby, or default_transaction_read_only; nothing can be claimed.",
    ),
    "endpoints_started": Event("info", ("host", "port"), "Metrics and probes are served."),
    "endpoints_moved": Event(
        "warning",
        ("host", "port", "taken_port"),
        "The port of the setting is taken, so they are served on the next free one.",
    ),
    "endpoints_failed": Event(
        "warning",
        ("host", "port", "error"),
        "They are not: the port is taken, and so are the ten after it. Tried again; the worker goes on.",
    ),
    "endpoint_failed": Event("error", ("error_class", "error"), "An answer could not be made."),
    "exporter_exited": Event(
        "warning", ("pid", "exit_code"), "The process that serves them ended; it is replaced."
    ),
    "repeats_suppressed": Event(
        "warning", ("of", "by", "count"), "Lines of an event that were left out: more than 50 in 10 seconds."
    ),
    "tracing_failed": Event(
        "warning", ("error_class",), "A span could not be started, ended or exported; the work goes on."
    ),
    "log_lines_lost": Event(
        "warning", ("count",), "Nobody read the lines for a while; so many were left out, the work went on."
    ),
    "log_line_failed": Event("error", ("logger", "error_class"), "A record that could not be rendered."),
    # -- the page
    "web_database_away": Event(
        "warning",
        ("database", "error_class", "error"),
        "The page gets no answers: it shows old ones. Said once.",
    ),
    "web_database_back": Event("info", ("database",), "It gets answers again."),
    "web_request_failed": Event(
        "error",
        ("path",),
        "A page could not be made, by a bug; with its traceback. The visitor gets an error page.",
    ),
}
