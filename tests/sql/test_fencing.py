"""Fencing: a holder whose lease is gone changes nothing, whatever it asks for (SPEC P2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, OTHER, Lease, Sql

#: Each write that a holder can make: the call, and the answer that says "not yours".
VERBS: dict[str, tuple[str, object]] = {
    "complete": ("complete_messages(array[{id}::bigint], array[{token}::bigint])", []),
    "fail": ("fail_message({id}, {token}, 'E', 'm')", "lost"),
    "fail_last": ("fail_message({id}, {token}, 'E', 'm', p_max_attempts => 1)", "lost"),
    "retry": ("schedule_message_retry({id}, {token})", None),
    "snooze": ("snooze_message({id}, {token}, '1 second')", None),
    "release": ("release_message({id}, {token})", False),
    "release_lock": ("release_message_lock({id}, {token})", False),
    "bury": ("bury_message({id}, {token})", False),
    "cancel": ("cancel_message({id}, p_token => {token})", "gone"),
    "extend": ("extend_message_lease({id}, {token})", None),
    "step": ("store_message_step({id}, {token}, 'answer', '42')", False),
    "steps": (
        "store_message_steps(array[{id}, {id}]::bigint[], array[{token}, {token}]::bigint[], array['a', 'b'], array['1', '2']::jsonb[])",
        ["lost", "lost"],
    ),
    "refused": ("mark_completion_refused(array[{id}::bigint], array[{token}::bigint], 'm')", 0),
    "beat": (
        "row(b.*)::text from beat_worker('%s', array[{id}::bigint], array[{token}::bigint], '1 minute') b"
        % HOLDER,
        None,
    ),
}


def rescued(sql: Sql, lease: Lease) -> None:
    sql.crash(lease)


def claimed_by_another(sql: Sql, lease: Lease) -> None:
    sql.crash(lease)
    sql.due_now()
    assert [other.id for other in sql.claim(1, holder=OTHER)] == [lease.id]


def claimed_again_by_the_same_holder(sql: Sql, lease: Lease) -> None:
    sql.crash(lease)
    sql.due_now()
    assert [again.id for again in sql.claim(1)] == [lease.id]


def retried(sql: Sql, lease: Lease) -> None:
    sql.fail(lease)


def completed(sql: Sql, lease: Lease) -> None:
    sql.complete(lease)


def buried(sql: Sql, lease: Lease) -> None:
    sql.rows("select bury_message(%s, %s)", lease.id, lease.token)


def cancelled(sql: Sql, lease: Lease) -> None:
    sql.rows("select cancel_message(%s, p_token => %s)", lease.id, lease.token)


def redriven(sql: Sql, lease: Lease) -> None:
    buried(sql, lease)
    sql.rows("select redrive_dead_letters(array[%s::bigint])", lease.id)


LOSSES = [
    rescued,
    claimed_by_another,
    claimed_again_by_the_same_holder,
    retried,
    completed,
    buried,
    cancelled,
    redriven,
]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("lose", LOSSES, ids=lambda loss: loss.__name__)
def test_a_stale_token_changes_nothing_and_is_told_so(
    sql: Sql, lose: Callable[[Sql, Lease], None], verb: str
) -> None:
    stale = sql.claimed(conversation_key="c")
    follower = sql.enqueue(conversation_key="c")
    sql.claim(10)
    assert sql.state(follower) == "blocked"
    lose(sql, stale)
    before = sql.snapshot()
    call, lost = VERBS[verb]
    answer = sql.value("select " + call.format(id=stale.id, token=stale.token))
    assert answer == (f"({stale.id},f,f,f)" if verb == "beat" else lost)
    assert sql.snapshot() == before


@pytest.mark.parametrize("verb", VERBS)
def test_the_token_of_another_message_opens_nothing(sql: Sql, verb: str) -> None:
    mine, theirs = sql.claimed(), sql.enqueue()
    other = sql.claim(1, holder=OTHER)[0]
    assert other.id == theirs
    before = sql.snapshot()
    sql.rows("select " + VERBS[verb][0].format(id=mine.id, token=other.token))
    assert sql.snapshot() == before


@pytest.mark.parametrize("verb", VERBS)
def test_the_holder_itself_succeeds(sql: Sql, verb: str) -> None:
    """The counterpart: with the right token every verb does something, so the tests above can fail."""
    lease = sql.claimed()
    before = sql.snapshot()
    sql.rows("select " + VERBS[verb][0].format(id=lease.id, token=lease.token))
    assert sql.snapshot() != before


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("bury", "cancel")])
def test_no_token_is_a_lost_lease(sql: Sql, verb: str) -> None:
    lease = sql.claimed()
    before = sql.snapshot()
    sql.rows("select " + VERBS[verb][0].format(id=lease.id, token="null"))
    assert sql.snapshot() == before


def test_a_completion_that_waits_for_a_rescue_is_lost(clients: Callable[..., Sql]) -> None:
    from tests.sql.parking import blocked_behind, in_background

    holder, rescuer, watcher = clients(), clients(), clients()
    lease = holder.claimed()
    with rescuer.connection.transaction():
        assert rescuer.crash(lease) == 1
        answer = in_background(lambda: holder.complete(lease))
        blocked_behind(watcher, holder, rescuer)
    assert answer.result(10) == []
    assert watcher.state(lease.id) == "pending"


def test_a_rescue_passes_over_a_message_that_is_being_completed(clients: Callable[..., Sql]) -> None:
    holder, rescuer = clients(), clients()
    lease = holder.claimed()
    holder.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 second'")
    with holder.connection.transaction():
        assert holder.complete(lease) == [lease.id]
        assert rescuer.value("select rescue_expired_messages()") == 0
    assert rescuer.state(lease.id) == "done"
