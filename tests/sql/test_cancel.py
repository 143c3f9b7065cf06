"""Cancel and expire: at once, on request, and never a retry afterwards (SPEC Q5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.client import Lease, Sql
from tests.sql.parking import blocked_behind, in_background


def cancel(sql: Sql, message_id: int) -> str:
    return sql.value("select cancel_message(%s, 'not wanted', 'ann')", message_id)


def test_a_pending_message_is_cancelled_at_once_and_the_act_is_recorded(sql: Sql) -> None:
    message_id = sql.enqueue()
    assert cancel(sql, message_id) == "cancelled"
    assert sql.rows("select state, reason from message_archive where id = %s", message_id) == [
        ("cancelled", "not wanted")
    ]
    assert sql.rows("select action, operator, reason, message_id from operator_actions") == [
        ("cancel", "ann", "not wanted", message_id)
    ]


def test_a_blocked_message_is_cancelled_and_its_conversation_goes_on(sql: Sql) -> None:
    first, second, third = (sql.enqueue(conversation_key="c") for _ in range(3))
    lease = sql.claim(10)[0]
    assert (lease.id, sql.state(second), sql.state(third)) == (first, "blocked", "blocked")
    assert cancel(sql, second) == "cancelled"
    sql.complete(lease)
    assert sql.claim_one().id == third


def test_a_running_message_is_asked_to_stop_and_its_holder_ends_it(sql: Sql) -> None:
    lease = sql.claimed()
    assert cancel(sql, lease.id) == "requested"
    assert sql.state(lease.id) == "running"
    assert cancel(sql, lease.id) == "requested"
    assert (
        sql.value("select cancel_message(%s, 'stopped', p_token => %s)", lease.id, lease.token) == "cancelled"
    )
    assert sql.state(lease.id) == "cancelled"


def test_a_running_message_that_finishes_before_it_is_stopped_is_done(sql: Sql) -> None:
    lease = sql.claimed()
    cancel(sql, lease.id)
    assert sql.complete(lease) == [lease.id] and sql.state(lease.id) == "done"


def test_what_is_over_cannot_be_cancelled(sql: Sql) -> None:
    done, dead = sql.claimed(), sql.enqueue()
    sql.complete(done)
    sql.rows("select bury_message(%s)", dead)
    assert [cancel(sql, message_id) for message_id in (done.id, dead, 10**12)] == ["gone"] * 3
    assert sql.rows("select * from operator_actions") == []


BACK_TO_PENDING = {
    "fail": "fail_message({id}, {token}, 'E', 'm')",
    "retry": "schedule_message_retry({id}, {token})",
    "snooze": "snooze_message({id}, {token}, '1 hour')",
    "release": "release_message({id}, {token})",
    "recover": "recover_worker(lease_holder, null) from message_queue where id = {id}",
}


@pytest.mark.parametrize("verb", [*BACK_TO_PENDING, "rescue"])
def test_a_message_whose_cancellation_was_requested_never_runs_again(sql: Sql, verb: str) -> None:
    lease = sql.claimed(conversation_key="c")
    follower = sql.enqueue(conversation_key="c")
    sql.claim(10)
    cancel(sql, lease.id)
    if verb == "rescue":
        assert sql.crash(lease) == 1
    else:
        answer = sql.value("select " + BACK_TO_PENDING[verb].format(id=lease.id, token=lease.token))
        assert answer not in (None, False, "lost"), (
            "the lease was held: the holder is not told that it was lost"
        )
    assert sql.state(lease.id) == "cancelled"
    assert sql.claim_one().id == follower


def test_a_failure_of_a_message_to_be_cancelled_says_cancelled(sql: Sql) -> None:
    lease = sql.claimed(max_attempts=1)
    cancel(sql, lease.id)
    assert sql.fail(lease) == "cancelled"


def test_a_cancel_while_the_holder_gives_the_message_back_cancels_it(clients: Callable[..., Sql]) -> None:
    holder, operator, watcher = clients(), clients(), clients()
    lease = holder.claimed()
    with holder.connection.transaction():
        holder.rows("select release_message(%s, %s)", lease.id, lease.token)
        answer = in_background(lambda: cancel(operator, lease.id))
        blocked_behind(watcher, operator, holder)
    assert answer.result(10) == "cancelled"
    assert watcher.state(lease.id) == "cancelled"


def test_a_cancel_while_a_worker_claims_the_message_asks_it_to_stop(clients: Callable[..., Sql]) -> None:
    worker, operator, watcher = clients(), clients(), clients()
    message_id = worker.enqueue()
    with worker.connection.transaction():
        worker.claim_one()
        answer = in_background(lambda: cancel(operator, message_id))
        blocked_behind(watcher, operator, worker)
    assert answer.result(10) == "requested"
    assert watcher.state(message_id) == "running"


def test_a_cancel_while_the_holder_completes_comes_too_late(clients: Callable[..., Sql]) -> None:
    holder, operator, watcher = clients(), clients(), clients()
    lease: Lease = holder.claimed()
    with holder.connection.transaction():
        holder.complete(lease)
        answer = in_background(lambda: cancel(operator, lease.id))
        blocked_behind(watcher, operator, holder)
    assert answer.result(10) == "gone"
    assert watcher.state(lease.id) == "done"


def test_expired_messages_are_cancelled_and_running_ones_are_left_alone(sql: Sql) -> None:
    running = sql.claimed()
    sql.rows("update message_queue set expires_at = clock_timestamp() - interval '1 second'")
    expired = sql.enqueue(expires_at="2020-01-01")
    young = sql.enqueue(expires_at="2999-01-01")
    assert sql.value("select expire_messages()") == 1
    assert [sql.state(message_id) for message_id in (running.id, expired, young)] == [
        "running",
        "cancelled",
        "pending",
    ]
    assert sql.rows("select reason from message_archive where id = %s", expired) == [("expired",)]


def test_expiry_is_bounded_and_ends(sql: Sql) -> None:
    for _ in range(5):
        sql.enqueue(expires_at="2020-01-01")
    assert [sql.value("select expire_messages(2)") for _ in range(4)] == [2, 2, 1, 0]


def test_expiry_releases_the_conversation(sql: Sql) -> None:
    sql.enqueue(conversation_key="c", expires_at="2999-01-01", delay="1 hour")
    second = sql.enqueue(conversation_key="c")
    assert sql.claim(10) == [] and sql.state(second) == "blocked"
    sql.rows("update message_queue set expires_at = '2020-01-01' where expires_at is not null")
    sql.rows("select expire_messages()")
    assert sql.claim_one().id == second
