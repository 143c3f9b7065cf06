"""A row inserted by hand may name a queue that nobody has declared: no worker takes it, and everybody can see
that (SPEC P8, Q8b).
"""

from __future__ import annotations

from tests.sql.client import Sql


def test_it_is_seen_and_explained_and_goes_on_once_the_queue_is_declared(sql: Sql) -> None:
    sql.rows("insert into message_queue (queue, message_type) values ('Typo', 'effect')")
    message_id = sql.value("select max(id) from message_queue")
    assert sql.rows("select queue, paused, pending, dead from message_queue_health where queue = 'Typo'") == [
        ("Typo", False, 1, 0)
    ]
    assert sql.rows("select passed, detail from explain_message(%s) where gate = 'queue'", message_id) == [
        (False, "nobody has declared it: select packhorse.declare_queue('Typo')")
    ]
    sql.rows("select declare_queue('Typo')")
    assert [lease.id for lease in sql.claim(queue="Typo")] == [message_id]


def test_its_dead_letters_are_seen_too_and_every_queue_stands_once(sql: Sql) -> None:
    for queue in ("Typo", "Typo", "q"):
        sql.rows("insert into message_queue (queue, message_type) values (%s, 'effect')", queue)
    sql.rows("select bury_message(min(id)) from message_queue where queue = 'Typo'")
    assert sql.rows(
        "select queue, pending, dead from message_queue_health where queue <> 'default' order by queue"
    ) == [("Typo", 1, 1), ("q", 1, 0)]
