"""What operators ask of a daemon: who learns it, what each word answers, and when it is forgotten (SPEC
O5).
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from tests.sql.client import Sql

DAEMON = UUID(int=7)


def register(sql: Sql, daemon: UUID | None = DAEMON) -> UUID:
    worker = uuid4()
    sql.rows(
        "select register_worker(%s, 'h', 1, 'v', array['q'], array['effect'], 1, '1 minute', p_daemon => %s)",
        worker,
        daemon,
    )
    return worker


def ask(sql: Sql, worker: UUID, request: str) -> str:
    return sql.value("select ask_worker(%s, %s, 'ann', 'disk')", worker, request)


def asked(sql: Sql, worker: UUID) -> str | None:
    return sql.value("select asked_of_worker(%s)", worker)


def test_every_process_of_the_daemon_learns_it_also_one_that_starts_later_and_no_other(sql: Sql) -> None:
    first, second, other, alone = (
        register(sql),
        register(sql),
        register(sql, UUID(int=8)),
        register(sql, None),
    )
    assert ask(sql, first, "quiet") == "asked"
    sql.rows("select deregister_worker(%s), deregister_worker(%s)", first, second)
    assert asked(sql, register(sql)) == "quiet"
    assert (asked(sql, other), asked(sql, alone)) == (None, None)
    assert ask(sql, alone, "drain") == "asked" and asked(sql, alone) == "drain"


def test_each_answer(sql: Sql) -> None:
    worker = register(sql)
    told = [
        (request, ask(sql, worker, request))
        for request in ("resume", "quiet", "quiet", "resume", "quiet", "drain", "drain", "quiet", "resume")
    ]
    assert told == [
        ("resume", "unchanged"),
        ("quiet", "asked"),
        ("quiet", "unchanged"),
        ("resume", "asked"),
        ("quiet", "asked"),
        ("drain", "asked"),
        ("drain", "unchanged"),
        ("quiet", "draining"),
        ("resume", "draining"),
    ]
    assert ask(sql, uuid4(), "quiet") == "gone"
    assert [row[0] for row in sql.rows("select action from operator_actions order by id")] == [
        "quiet_worker",
        "resume_worker",
        "quiet_worker",
        "drain_worker",
    ]
    assert sql.rows("select distinct operator, reason, details ->> 'daemon' from operator_actions") == [
        ("ann", "disk", str(DAEMON))
    ]


@pytest.mark.parametrize("request_", ["stop", "", None])
def test_another_word_is_refused(sql: Sql, request_: str | None) -> None:
    assert sql.refused("select ask_worker(%s, %s)", register(sql), request_) == ("PH001", "request")


def test_a_request_is_forgotten_with_the_daemon_and_not_before(sql: Sql) -> None:
    worker = register(sql)
    ask(sql, worker, "quiet")
    sql.rows("update daemon_requests set requested_at = requested_at - interval '1 hour'")
    sql.rows("select forget_dead_workers()")
    assert asked(sql, worker) == "quiet", "its worker lives"
    sql.rows("select deregister_worker(%s)", worker)
    sql.rows("update daemon_requests set requested_at = clock_timestamp()")
    sql.rows("select forget_dead_workers()")
    assert asked(sql, register(sql)) == "quiet", "its processes may be replaced at this moment"
    sql.rows("delete from workers")
    sql.rows("update daemon_requests set requested_at = requested_at - interval '1 hour'")
    sql.rows("select forget_dead_workers()")
    assert sql.rows("select * from daemon_requests") == []


def test_a_quiet_worker_counts_as_quiet_and_takes_nothing(sql: Sql) -> None:
    worker = register(sql)
    message_id = sql.enqueue()
    sql.rows("select beat_worker(%s, '{}', '{}', '1 minute', 'quiet')", worker)
    gates = {row[0]: row[1] for row in sql.rows("select gate, passed from explain_message(%s)", message_id)}
    assert gates["worker"] is False
    sql.rows("select beat_worker(%s, '{}', '{}', '1 minute', 'running')", worker)
    assert {row[0]: row[1] for row in sql.rows("select gate, passed from explain_message(%s)", message_id)}[
        "worker"
    ] is True
