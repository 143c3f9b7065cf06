"""The view over all messages, blocked conversations, health, explain; results and rate limiters (SPEC Q1, Q7,
Q8b, W1).
"""

from __future__ import annotations

import pytest

from tests.sql.client import HOLDER, Sql


def explain(sql: Sql, message_id: int) -> dict[str, tuple[bool, str]]:
    return {
        gate: (passed, detail)
        for gate, passed, detail in sql.rows(
            "select gate, passed, detail from explain_message(%s)", message_id
        )
    }


def failed_gates(sql: Sql, message_id: int) -> list[str]:
    return [gate for gate, (passed, _) in explain(sql, message_id).items() if not passed]


def with_worker(sql: Sql) -> None:
    sql.rows("select register_worker(%s, 'host', 1, '1', '{q}', '{effect}', 8, '30 seconds')", HOLDER)


def test_every_message_is_in_the_view_exactly_once(sql: Sql) -> None:
    done, dead, cancelled, running = (
        sql.claimed(),
        sql.claimed(),
        sql.claimed(),
        sql.claimed(conversation_key="c"),
    )
    sql.complete(done)
    sql.rows("select bury_message(%s, %s)", dead.id, dead.token)
    sql.rows("select cancel_message(%s, p_token => %s)", cancelled.id, cancelled.token)
    blocked = sql.enqueue(conversation_key="c")
    sql.claim(10)
    pending = sql.enqueue()
    assert sql.rows("select id, state from all_messages order by id") == [
        (done.id, "done"),
        (dead.id, "dead"),
        (cancelled.id, "cancelled"),
        (running.id, "running"),
        (blocked, "blocked"),
        (pending, "pending"),
    ]


def test_blocked_conversations_name_the_message_that_holds_them(sql: Sql) -> None:
    sql.set_queue(on_dead="block")
    running = sql.claimed(conversation_key="a")
    dead = sql.claimed(conversation_key="b")
    sql.rows("select bury_message(%s, %s)", dead.id, dead.token)
    for key in "aab":
        sql.enqueue(conversation_key=key)
    assert sql.claim(10) == []
    assert sql.rows(
        "select conversation_key, waiting, holder_kind, holder_id from blocked_conversations order by 1"
    ) == [("a", 2, "running", running.id), ("b", 1, "dead", dead.id)]


def test_a_redriven_message_waits_from_its_redrive_on(sql: Sql) -> None:
    sql.claimed(conversation_key="c")
    dead = sql.enqueue(conversation_key="c")
    sql.rows("select bury_message(%s)", dead)
    sql.rows("update dead_letters set created_at = clock_timestamp() - interval '10 days'")
    assert sql.value("select redrive_dead_letters(array[%s]::bigint[])", dead) == [dead]
    assert sql.claim(10) == []
    assert (
        sql.value("select since > clock_timestamp() - interval '1 minute' from blocked_conversations") is True
    )
    assert sql.value("select status from health_conversation_state()") == "ok"


def test_health_counts_by_state(sql: Sql) -> None:
    sql.claimed(conversation_key="c")
    sql.enqueue(conversation_key="c")
    sql.claim(10)
    sql.enqueue(run_at="2020-01-01")
    sql.enqueue(delay="1 hour")
    sql.rows("select bury_message(%s)", sql.enqueue())
    assert sql.rows(
        "select pending, delayed, blocked, running, dead, paused, oldest_due_seconds > 1000 from message_queue_health where queue = 'q'"
    ) == [(1, 1, 1, 1, 1, False, True)]


def test_a_message_that_may_start_fails_no_gate(sql: Sql) -> None:
    with_worker(sql)
    assert failed_gates(sql, sql.enqueue(conversation_key="c", expires_at="2999-01-01")) == []


def test_each_obstacle_is_the_gate_that_fails(sql: Sql) -> None:
    with_worker(sql)
    sql.set_queue(max_concurrency=1, max_concurrency_per_key=1, rate_limit=1, rate_interval="1 hour")
    running = sql.claimed(conversation_key="c", concurrency_key="k")
    message_id = sql.enqueue(message_type="other", conversation_key="c", concurrency_key="k", delay="1 hour")
    sql.rows("update message_queue set expires_at = '2020-01-01' where id = %s", message_id)
    sql.rows("select pause_queue('q', 'ann')")
    assert failed_gates(sql, message_id) == [
        "run_at",
        "expires_at",
        "queue",
        "conversation",
        "max_concurrency",
        "max_concurrency_per_key",
        "rate_limit",
        "worker",
    ]
    assert f"message {running.id} (running)" in explain(sql, message_id)["conversation"][1]
    assert "ann" in explain(sql, message_id)["queue"][1]
    starts = dict(
        sql.rows(
            "select gate, earliest_start > clock_timestamp() + interval '50 minutes' from explain_message(%s)",
            message_id,
        )
    )
    assert starts["run_at"] is True and starts["rate_limit"] is True and starts["queue"] is None


def test_a_message_behind_others_says_how_many(sql: Sql) -> None:
    with_worker(sql)
    for _ in range(3):
        sql.enqueue()
    assert explain(sql, sql.enqueue())["rank"] == (False, "3 ahead in its queue")


def test_explain_tells_the_end_of_a_message_and_what_it_never_heard_of(sql: Sql) -> None:
    lease, dead = sql.claimed(), sql.enqueue()
    assert explain(sql, lease.id)["state"][1].startswith(f"it runs: held by {HOLDER}")
    sql.complete(lease)
    sql.rows("select bury_message(%s)", dead)
    assert explain(sql, lease.id)["exists"][1].startswith("done at")
    assert explain(sql, dead)["exists"][1].startswith("dead at")
    assert explain(sql, 10**12) == {"exists": (False, "no message with this id")}
    late = sql.enqueue(expires_at="2020-01-01")
    sql.rows("select expire_messages()")
    assert explain(sql, late)["exists"][1].startswith("cancelled at") and explain(sql, late)["exists"][
        1
    ].endswith(": expired")


def test_a_message_whose_lease_is_over_is_not_said_to_go_on(sql: Sql) -> None:
    lease = sql.claimed()
    assert "is over" not in explain(sql, lease.id)["state"][1]
    sql.rows("update message_queue set lease_expires_at = clock_timestamp() - interval '1 minute'")
    assert "which is over" in explain(sql, lease.id)["state"][1]


@pytest.mark.parametrize(
    ("lease", "seen", "lives"), [("1 hour", "20 minutes", True), ("20 seconds", "30 seconds", False)]
)
def test_a_worker_lives_for_as_long_as_its_lease(sql: Sql, lease: str, seen: str, lives: bool) -> None:
    sql.rows("select register_worker(%s, 'host', 1, '1', '{q}', '{effect}', 8, %s::interval)", HOLDER, lease)
    sql.rows("update workers set last_seen_at = clock_timestamp() - %s::interval", seen)
    assert explain(sql, sql.enqueue())["worker"][0] is lives


def test_messages_that_run_apart_have_a_line_of_their_own(sql: Sql) -> None:
    with_worker(sql)
    first, second = sql.enqueue(), sql.enqueue(priority=1)
    sql.rows("update message_queue set crashes = 2")
    sql.enqueue(priority=1)
    sql.enqueue(priority=1)
    assert explain(sql, first)["rank"] == (True, "0 ahead in its queue")
    assert explain(sql, second)["rank"] == (False, "1 ahead in its queue")


def test_what_explain_lets_through_the_claim_takes(sql: Sql) -> None:
    """The gates and the claim share their predicates: one by one each obstacle goes, then the message
    starts.
    """
    with_worker(sql)
    sql.set_queue(max_concurrency=1)
    running = sql.claimed(conversation_key="c")
    message_id = sql.enqueue(conversation_key="c", delay="1 hour")
    steps = [lambda: sql.complete(running), lambda: sql.due_now()]
    for step in steps:
        assert failed_gates(sql, message_id) != [] and sql.claim(10) == []
        step()
    assert failed_gates(sql, message_id) == [] and sql.claim_one().id == message_id


def test_a_result_is_there_until_its_time_is_over(sql: Sql) -> None:
    assert sql.value("select get_message_result('k')") is None
    sql.rows("""select store_message_result('k', '{"a": 1}', '1 minute')""")
    sql.rows("""select store_message_result('k', '{"a": 2}', '1 minute')""")
    assert sql.value("select get_message_result('k')") == {"a": 2}
    sql.rows("update message_results set expires_at = clock_timestamp()")
    assert sql.value("select get_message_result('k')") is None


def test_a_counter_is_set_once_and_again_after_its_time(sql: Sql) -> None:
    add = "select add_rate_limiter('k', %s, '1 minute')"
    assert [sql.value(add, value) for value in (1, 2)] == [True, None]
    assert sql.value("select get_rate_limiter('k')") == 1
    sql.rows("update rate_limiters set expires_at = clock_timestamp()")
    assert sql.value("select get_rate_limiter('k')") is None
    assert sql.value(add, 5) is True and sql.value("select get_rate_limiter('k')") == 5


def test_a_counter_stays_in_its_range(sql: Sql) -> None:
    change = "select change_rate_limiter('k', %s, 0, 2, '1 minute')"
    assert [sql.value(change, amount) for amount in (1, 1, 1, -1, -1, -1)] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_a_sum_over_counters_is_limited(sql: Sql) -> None:
    change = "select change_rate_limiter(%s, 1, null, 2, '1 minute', '{a,b}')"
    assert [sql.value(change, key) for key in ("a", "b", "a")] == [True, True, False]
