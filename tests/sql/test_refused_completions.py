"""Messages that are done and whose completion the database refuses (SPEC P2, P5): the functions."""

from __future__ import annotations

from collections.abc import Callable

from tests.sql.client import HOLDER, Lease, Sql


def refused(sql: Sql) -> Lease:
    """A message that is done, and could not be completed."""
    lease = sql.claimed()
    assert (
        sql.value(
            "select mark_completion_refused(array[%s::bigint], array[%s::bigint], 'no')",
            lease.id,
            lease.token,
        )
        == 1
    )
    return lease


def test_they_are_completed_later_and_nothing_else_is(sql: Sql) -> None:
    done, running = refused(sql), sql.claimed()
    assert sql.value("select complete_refused_messages()") == 1
    assert [sql.state(lease.id) for lease in (done, running)] == ["done", "running"]


def test_one_that_somebody_keeps_locked_holds_up_no_other(clients: Callable[..., Sql]) -> None:
    sql, somebody = clients(), clients()
    locked, free = refused(sql), refused(sql)
    with somebody.connection.transaction():
        somebody.rows("select from message_queue where id = %s for update", locked.id)
        assert sql.value("select complete_refused_messages()") == 1
    assert [sql.state(lease.id) for lease in (locked, free)] == ["running", "done"]


def test_it_is_not_rescued_and_not_handed_back_with_what_its_process_held(sql: Sql) -> None:
    lease = refused(sql)
    before = sql.snapshot()
    assert sql.value("select release_unknown_messages(%s, '{}')", HOLDER) == 0
    assert sql.value("select recover_worker(%s, array[%s::bigint])", HOLDER, lease.id) == 0
    sql.rows("update message_queue set lease_expires_at = '2000-01-01'")
    assert sql.value("select rescue_expired_messages()") == 0
    sql.rows("update message_queue set lease_expires_at = 'infinity'")
    assert sql.snapshot() == before


def test_it_does_not_expire(sql: Sql) -> None:
    """What is done was worth doing."""
    lease = refused(sql)
    sql.rows("update message_queue set expires_at = '2000-01-01'")
    assert sql.value("select expire_messages()") == 0 and sql.state(lease.id) == "running"
