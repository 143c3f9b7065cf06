"""A database with something for every screen of the page; each text that somebody outside can choose is
`text`.
"""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from tests.support.postgres import Database

#: Script, attributes, template syntax, an escape sequence, a direction override, an isolate; PostgreSQL
#: stores all of it.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}{% raise %}${7*7}\x1b[2J\u202egnp.exe\u2066</textarea></pre>"
WORKER = "0b7cbe5e-44c2-4c86-b1a5-0f8a77d1a001"
DEAD, DONE, RUNNING, WAITING, BLOCKED, SCHEDULED = 1, 2, 3, 4, 5, 6


def furnish(database: Database, text: str = "plain words", payload: Any = None) -> None:
    """Messages of every state in the conversation `text`, and rows in every other table that a screen
    reads.
    """
    history = Jsonb(
        [
            {
                "attempt": 1,
                "event": "retry",
                "at": "2026-11-30T04:00:00+00:00",
                "error_class": text,
                "error_message": text,
                "error_code": text,
                "traceback": text,
            },
            {"attempt": 2, "event": "lease_expired", "at": text, "holder": WORKER},
            text,
        ]
    )
    error = Jsonb(
        {
            "class": text,
            "message": text,
            "at": "2026-11-30T04:00:00+00:00",
            "code": text,
            "details": {text: text},
        }
    )
    body = Jsonb({text: text, "list": [text]} if payload is None else payload)
    steps = Jsonb({text[:100]: {"value": text, "at": "2026-11-30T04:00:00+00:00", "attempt": 1}})
    key = text[:500]
    with database.session() as owner:

        def run(statement: str, *values: Any) -> None:
            owner.execute(statement, values)

        run("select declare_queue('default')")
        run(
            'select set_queue(\'default\', \'{"max_concurrency": 5, "rate_limit": 10, "max_concurrency_per_key": 1, "failure_breaker": 9}\', \'ada\')'
        )
        run(
            "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, error_code, error_details, traceback,"
            " fingerprint, attempt, crashes, conversation_key, concurrency_key, correlation_id, history, steps, created_at)"
            " values (%s, 'default', 'effect', %s, %s, 5, 'failed', %s, %s, %s, %s, %s, 'cause', 3, 1, %s, %s, %s, %s, %s, now() - interval '1 hour')",
            DEAD, body, body, text, text, text, Jsonb({"context": {text: text}}), text, key, key, key, history, steps,
        )  # fmt: skip
        run(
            "insert into message_archive (id, queue, message_type, payload, options, priority, state, reason, attempt, crashes, conversation_key, correlation_id, error,"
            " history, created_at) values (%s, 'default', 'effect', %s, %s, 5, 'cancelled', %s, 1, 0, %s, %s, %s, %s, now())",
            DONE, body, body, text, key, key, error, history,
        )  # fmt: skip
        live = "insert into message_queue (id, queue, message_type, payload, options, state, conversation_key, concurrency_key, correlation_id, dedup_key, error, history, steps"
        values = [body, body, key, key, key, key, error, history, steps]
        run(
            f"{live}, lease_holder, lease_token, lease_expires_at, claimed_at) values (%s, 'default', 'effect', %s, %s, 'running', %s, %s, %s, %s, %s, %s, %s, %s, 7,"
            " now() + interval '1 minute', now() - interval '5 minutes')",
            RUNNING, *values, WORKER,
        )  # fmt: skip
        run(
            f"{live}) values (%s, 'default', 'effect', %s, %s, 'pending', %s, %s, %s, %s, %s, %s, %s)",
            WAITING,
            *values,
        )
        run(
            f"{live}) values (%s, 'default', 'effect', %s, %s, 'blocked', %s, %s, %s, %s, %s, %s, %s)",
            BLOCKED,
            *values,
        )
        run(
            "insert into message_queue (id, queue, message_type, correlation_id, trace_context) values (%s, 'nobody', 'effect', 'schedule:hourly:2026-11-30T04:00:00Z',"
            " '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01')",
            SCHEDULED,
        )
        run(
            "select register_worker(%s, %s, 4242, '0.1.0', '{default}', '{effect}', 4, '1 minute', p_policies => '{\"effect\": {\"queue\": \"default\"}}', p_problems => %s)",
            WORKER, text, [text],
        )  # fmt: skip
        run(
            "insert into daemon_requests (daemon, request, requested_by) select daemon, 'quiet', %s from workers",
            text,
        )
        run("select set_schedule('hourly', 'effect', p_cron => '0 * * * *')")
        run("select set_schedule('often', 'effect', p_every => '5 minutes')")
        run(
            "update schedules set problem = %s, next_planned_at = now() + interval '10 minutes', paused_by = null where name = 'hourly'",
            text,
        )
        run("update schedules set next_planned_at = now() + interval '5 minutes' where name = 'often'")
        run(
            "insert into schedule_runs (schedule, planned_at, outcome, triggered_by, error) values ('hourly', now() - interval '1 hour', 'failed', %s, %s)",
            text,
            text,
        )
        run(
            "insert into schedule_runs (schedule, planned_at, outcome, triggered_by, message_id) values ('hourly', now(), 'enqueued', %s, %s)",
            text,
            SCHEDULED,
        )
        run(
            "insert into maintenance_tasks (task, policy, rows_total) values ('retention.events', %s, 12)",
            Jsonb({"keep_seconds": 60, text: text}),
        )
        run(
            "insert into maintenance_runs (task, kind, state, triggered_by, gate, error, ended_at, rows_done) values ('retention.events', 'retention', 'failed', %s, %s, %s, now(), 12)",
            text, text, text,
        )  # fmt: skip
        run(
            "insert into maintenance_runs (task, kind, state, triggered_by, gate, rows_done, rows_total) values ('backfill.people', 'backfill', 'running', %s, %s, 30, 40)",
            text,
            text,
        )
        run(
            "insert into backfills (name, state, source, requested_by, source_rows, started_at) values ('people', 'running', %s, %s, 40, now())",
            text,
            text,
        )
        run(
            "insert into detached_partitions (parent, partition, lower_bound, upper_bound) values (%s, %s, %s, %s)",
            text,
            text,
            text,
            text,
        )
        run(
            "select declare_service('whatsapp', %s)",
            Jsonb(
                [
                    {
                        "endpoint": text[:200],
                        "open_ratio": 0.5,
                        "least_calls": 5,
                        "close_after": 1,
                        "reset_after": 30,
                        "judged_over": 60,
                        "probe_lease": 10,
                        "check_every": 30,
                        "fallback": False,
                    }
                ]
            ),
        )
        run(
            "update service_endpoints set state = 'open', opened_at = now(), opened_total = 1, last_error = %s",
            text,
        )
        run("select park_scope('actor:effect', '1 minute', %s, p_by => %s)", text, text)
        run(
            "insert into operator_actions (action, operator, reason, message_id, details) values (%s, %s, %s, %s, %s)",
            text,
            text,
            text,
            WAITING,
            Jsonb({"before": {text: text}, text: text}),
        )
