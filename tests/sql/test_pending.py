"""Pending keys: unique among messages that have not started; return, replace, append, debounce (SPEC Q7b)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.sql.client import Sql, enqueue_call
from tests.sql.parking import blocked_behind, in_background

PHONE = "wa:250788000000"


def put(sql: Sql, payload: dict[str, Any] | None = None, **arguments: Any) -> tuple[int, bool, bool]:
    """Enqueue; (id, duplicate, merged)."""
    statement, params = enqueue_call("q", "effect", payload=payload or {}, **arguments)
    return sql.rows(statement.replace("duplicate from", "duplicate, merged from"), *params)[0]


def gathered(sql: Sql, message_id: int) -> list[Any]:
    """What the payloads of a burst say, in order."""
    return [entry["n"] for entry in sql.live(message_id)["payload"]["messages"]]


def window(sql: Sql, message_id: int) -> float:
    """Seconds from now until it starts."""
    return float(
        sql.value(
            "select extract(epoch from run_at - clock_timestamp()) from message_queue where id = %s",
            message_id,
        )
    )


# -- return, replace, append ------------------------------------------------------------------------
def test_a_second_enqueue_of_a_pending_key_returns_the_first(sql: Sql) -> None:
    first = put(sql, {"n": 1}, pending_key="k")
    assert first[1:] == (False, False)
    assert put(sql, {"n": 2}, pending_key="k") == (first[0], True, False)
    assert sql.live(first[0])["payload"] == {"n": 1}


def test_replace_puts_the_new_payload_in_the_place_of_the_first(sql: Sql) -> None:
    first = put(sql, {"n": 1}, pending_key="k", when_pending="replace", delay="1 hour")
    before = sql.live(first[0])
    assert put(sql, {"n": 2}, pending_key="k", when_pending="replace") == (first[0], True, True)
    after = sql.live(first[0])
    assert after["payload"] == {"n": 2} and after["run_at"] == before["run_at"]


def test_append_gives_the_handler_a_list_also_for_one(sql: Sql) -> None:
    first = put(sql, {"n": 1}, pending_key="k", when_pending="append")
    assert sql.live(first[0])["payload"] == {"messages": [{"n": 1}]}
    assert put(sql, {"n": 2}, pending_key="k", when_pending="append") == (first[0], True, True)
    assert sql.live(first[0])["payload"] == {"messages": [{"n": 1}, {"n": 2}]}


def test_a_payload_that_is_a_list_of_messages_already_is_appended_element_by_element(sql: Sql) -> None:
    first = put(sql, {"messages": [{"n": 1}, {"n": 2}]}, pending_key="k", when_pending="append")
    put(sql, {"messages": [{"n": 3}]}, pending_key="k", when_pending="append")
    assert gathered(sql, first[0]) == [1, 2, 3]
    other = put(sql, {"messages": ["text"]}, pending_key="o", when_pending="append")
    assert sql.live(other[0])["payload"] == {"messages": [{"messages": ["text"]}]}


@pytest.mark.parametrize("different", [{"queue": "r"}, {"message_type": "other"}, {"pending_key": "other"}])
def test_another_queue_type_or_key_is_another_message(sql: Sql, different: dict[str, str]) -> None:
    sql.rows("select declare_queue('r')")
    first = sql.enqueue(pending_key="k")
    assert sql.enqueue(**{"pending_key": "k", **different}) != first


@pytest.mark.parametrize("end", ["claimed", "retry", "released", "snoozed", "cancelled", "dead", "deleted"])
def test_what_has_started_or_ended_takes_nothing_more(sql: Sql, end: str) -> None:
    first = put(sql, {"n": 1}, pending_key="k", when_pending="append")[0]
    if end == "cancelled":
        sql.rows("select cancel_message(%s)", first)
    elif end == "dead":
        sql.rows("select bury_waiting_message(%s)", first)
    elif end == "deleted":
        sql.rows("delete from message_queue where id = %s", first)
    else:
        lease = sql.claim_one()
        if end == "retry":
            sql.fail(lease)
        elif end == "released":
            sql.value("select release_message(%s, %s)", lease.id, lease.token)
        elif end == "snoozed":
            sql.value("select snooze_message(%s, %s, '1 hour')", lease.id, lease.token)
    second = put(sql, {"n": 2}, pending_key="k", when_pending="append")
    assert second[0] != first and second[1:] == (False, False)
    if end in ("dead", "cancelled"):
        return
    if end != "deleted":
        assert sql.live(first)["payload"] == {"messages": [{"n": 1}]}


def test_a_redriven_burst_has_no_pending_key(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.rows("select bury_waiting_message(%s)", first)
    second = put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.rows("select redrive_dead_letters(array[%s::bigint])", first)
    row = sql.live(first)
    assert row["pending_key"] is None and row["payload"] == {"messages": [{"n": 1}]}
    assert put(sql, {"n": 3}, conversation_key=PHONE, debounce="1 hour")[0] == second


# -- debounce ---------------------------------------------------------------------------------------
def test_a_debounced_message_starts_a_window_after_the_last_payload(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="100 seconds")[0]
    assert 99 < window(sql, first) <= 100
    sql.rows("update message_queue set run_at = run_at - interval '60 seconds'")
    assert put(sql, {"n": 2}, conversation_key=PHONE, debounce="100 seconds") == (first, True, True)
    assert 99 < window(sql, first) <= 100
    assert gathered(sql, first) == [1, 2] and sql.claim() == []


@pytest.mark.parametrize(("max_wait", "most"), [(None, 1000), ("150 seconds", 150), ("100 seconds", 100)])
def test_it_waits_no_longer_than_max_wait(sql: Sql, max_wait: str | None, most: int) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="100 seconds", max_wait=max_wait)[0]
    latest = sql.value(
        "select extract(epoch from gathers_until - created_at)::integer from message_queue where id = %s",
        first,
    )
    assert latest == most
    sql.rows(
        "update message_queue set gathers_until = clock_timestamp() + interval '30 seconds', run_at = run_at - interval '80 seconds'"
    )
    put(sql, {"n": 2}, conversation_key=PHONE, debounce="100 seconds", max_wait="1 day")
    assert 29 < window(sql, first) <= 30, "the max_wait of the first counts"


def test_a_shorter_window_does_not_cut_that_of_an_earlier_payload(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="100 seconds")[0]
    put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 second")
    assert 90 < window(sql, first) <= 100


def test_what_is_due_and_has_not_started_takes_more(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 second", max_wait="1 second")[0]
    sql.rows(
        "update message_queue set run_at = run_at - interval '1 hour', gathers_until = gathers_until - interval '1 hour'"
    )
    put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 second")
    assert sql.claim_one().id == first and gathered(sql, first) == [1, 2]


def test_a_debounced_replace_keeps_the_last_payload_only(sql: Sql) -> None:
    first = put(sql, {"n": 1}, pending_key="reindex", when_pending="replace", debounce="100 seconds")[0]
    sql.rows("update message_queue set run_at = run_at - interval '60 seconds'")
    put(sql, {"n": 2}, pending_key="reindex", when_pending="replace", debounce="100 seconds")
    assert sql.live(first)["payload"] == {"n": 2} and window(sql, first) > 99


def test_a_burst_is_worth_doing_as_long_as_one_of_its_payloads_is(sql: Sql) -> None:
    def expiry(*offsets: str | None) -> Any:
        sql.rows("delete from message_queue")
        for offset in offsets:
            at = None if offset is None else sql.value("select clock_timestamp() + %s::interval", offset)
            message_id = put(sql, {"n": 1}, conversation_key=PHONE, debounce="10 seconds", expires_at=at)[0]
        return sql.value(
            "select round(extract(epoch from expires_at - clock_timestamp())) from message_queue where id = %s",
            message_id,
        )

    assert expiry("1 minute", "2 minutes") == 120
    assert expiry("2 minutes", "1 minute") == 120
    assert expiry("1 minute", None) is None
    assert expiry(None, "1 minute") is None


# -- order of the conversation (SPEC P4) ------------------------------------------------------------
def test_what_comes_after_another_message_of_the_conversation_does_not_go_before_it(sql: Sql) -> None:
    text = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    image = sql.enqueue(message_type="image", conversation_key=PHONE)
    later = put(sql, {"n": 3}, conversation_key=PHONE, debounce="1 hour")
    assert later[1:] == (False, False)
    assert put(sql, {"n": 4}, conversation_key=PHONE, debounce="1 hour")[0] == later[0]
    assert window(sql, text) < 1, "it can gather nothing more, so it starts at once"
    started = []
    for _ in range(2):
        lease = sql.claim_one()
        started.append(lease.id)
        sql.complete(lease)
    assert started == [text, image] and sql.claim() == []
    assert gathered(sql, later[0]) == [3, 4]


@pytest.mark.parametrize("state", ["blocked", "running"])
def test_also_when_the_other_is_blocked_or_runs(sql: Sql, state: str) -> None:
    """A running one with a greater id: this one's transaction was late."""
    text = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    image = sql.enqueue(message_type="image", conversation_key=PHONE)
    lease = ", lease_token = 1, lease_holder = gen_random_uuid()" if state == "running" else ""
    sql.rows(f"update message_queue set state = %s{lease} where id = %s", state, image)
    assert put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")[0] not in (text, image)


def test_a_blocked_burst_takes_more(sql: Sql) -> None:
    running = sql.claimed(message_type="image", conversation_key=PHONE)
    text = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.due_now()
    assert sql.claim() == [] and sql.state(text) == "blocked"
    assert put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")[0] == text
    sql.complete(running)
    sql.due_now()
    assert sql.claim_one().id == text and gathered(sql, text) == [1, 2]


def test_an_append_without_debounce_that_is_closed_keeps_its_time(sql: Sql) -> None:
    digest = put(
        sql, {"n": 1}, pending_key="k", when_pending="append", delay="1 hour", conversation_key=PHONE
    )[0]
    sql.enqueue(message_type="image", conversation_key=PHONE)
    put(sql, {"n": 2}, pending_key="k", when_pending="append", delay="1 hour", conversation_key=PHONE)
    assert window(sql, digest) > 3000


# -- bounds -----------------------------------------------------------------------------------------
def test_a_burst_of_a_thousand_is_full_and_starts_at_once(sql: Sql) -> None:
    many = {"messages": [{"n": n} for n in range(999)]}
    first = put(sql, many, conversation_key=PHONE, debounce="1 hour")[0]
    assert put(sql, {"n": 999}, conversation_key=PHONE, debounce="1 hour")[0] == first
    second = put(sql, {"n": 1000}, conversation_key=PHONE, debounce="1 hour")
    assert second[1:] == (False, False)
    assert gathered(sql, first) == list(range(1000)) and window(sql, first) <= 0
    assert gathered(sql, second[0]) == [1000] and window(sql, second[0]) > 3000
    assert sql.live(first)["pending_key"] is None


def test_a_burst_of_a_megabyte_is_full(sql: Sql) -> None:
    large = "x" * 600_000
    first = put(sql, {"n": 1, "text": large}, conversation_key=PHONE, debounce="1 hour")[0]
    second = put(sql, {"n": 2, "text": large}, conversation_key=PHONE, debounce="1 hour")[0]
    assert second != first and window(sql, first) <= 0
    assert put(sql, {"n": 3}, conversation_key=PHONE, debounce="1 hour")[0] == second


def test_a_burst_whose_payload_an_operator_has_changed_takes_nothing_more(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.rows("select edit_message(%s, '{\"other\": 1}')", first)
    assert put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")[0] != first


BAD: list[tuple[dict[str, Any], str]] = [
    ({"when_pending": "append"}, "pending_key"),
    ({"debounce": "3 seconds"}, "pending_key"),
    ({"max_wait": "3 seconds"}, "pending_key"),
    ({"pending_key": ""}, "pending_key"),
    ({"pending_key": "k" * 501}, "pending_key"),
    ({"pending_key": "k", "when_pending": "keep"}, "when_pending"),
    ({"pending_key": "k", "when_pending": "return", "debounce": "3 seconds"}, "when_pending"),
    ({"pending_key": "k", "max_wait": "3 seconds"}, "max_wait"),
    ({"pending_key": "k", "debounce": "1 year"}, "debounce"),
    ({"pending_key": "k", "debounce": "-1 second"}, "debounce"),
    ({"pending_key": "k", "debounce": "3 seconds", "delay": "3 seconds"}, "debounce"),
    ({"pending_key": "k", "debounce": "3 seconds", "run_at": "2030-01-01"}, "debounce"),
    ({"pending_key": "k", "debounce": "3 seconds", "max_wait": "2 seconds"}, "max_wait"),
    ({"pending_key": "k", "debounce": "3 seconds", "max_wait": "2 days"}, "max_wait"),
    ({"pending_key": "k", "options": {"pipe_target": {}}}, "options"),
    ({"pending_key": "k", "options": {"group_completion_uuid": "u"}}, "options"),
    ({"pending_key": "k", "when_pending": "append", "payload": {"messages": []}}, "payload"),
    ({"pending_key": "k", "when_pending": "append", "payload": {"messages": [{}] * 1001}}, "payload"),
    ({"pending_key": "k", "when_pending": "append", "payload": {"x": "y" * 1_048_540}}, "payload"),
    ({"pending_key": "k", "payload": [1]}, "payload"),
]


@pytest.mark.parametrize(
    ("arguments", "field"), BAD, ids=[f"{field}-{n}" for n, (_, field) in enumerate(BAD)]
)
def test_bad_arguments_are_refused_with_their_name(sql: Sql, arguments: dict[str, Any], field: str) -> None:
    assert sql.enqueue_refused(**arguments) == ("PH001", field)
    assert sql.value("select count(*) from message_queue") == 0


def test_a_burst_that_could_never_start_is_refused(sql: Sql) -> None:
    soon = sql.value("select clock_timestamp() + interval '2 seconds'")
    assert sql.enqueue_refused(pending_key="k", debounce="3 seconds", expires_at=soon) == (
        "PH001",
        "expires_at",
    )


@pytest.mark.parametrize("when", ["replace", "append"])
def test_a_key_belongs_to_one_conversation(sql: Sql, when: str) -> None:
    put(sql, {"n": 1}, pending_key="k", when_pending=when, conversation_key=PHONE)
    assert sql.enqueue_refused(pending_key="k", when_pending=when, conversation_key="other") == (
        "PH001",
        "conversation_key",
    )
    assert sql.enqueue_refused(pending_key="k", when_pending=when) == ("PH001", "conversation_key")


# -- with others ------------------------------------------------------------------------------------
def test_a_second_delivery_of_a_webhook_is_not_appended(sql: Sql) -> None:
    burst = {"conversation_key": PHONE, "debounce": "1 hour"}
    first = put(sql, {"n": 1}, dedup_key="wamid-1", **burst)[0]
    assert put(sql, {"n": 2}, dedup_key="wamid-2", **burst) == (first, True, True)
    assert put(sql, {"n": 2}, dedup_key="wamid-2", **burst) == (first, True, False)
    assert gathered(sql, first) == [1, 2]


def test_many_at_once_take_the_same_arguments(sql: Sql) -> None:
    element = {"queue": "q", "message_type": "effect", "pending_key": "k", "when_pending": "append"}
    rows = sql.rows(
        "select message_id, duplicate from enqueue_messages(%s)",
        psycopg.types.json.Jsonb(
            [{**element, "payload": {"n": n}, "debounce": "1 hour", "max_wait": "2 hours"} for n in (1, 2)]
        ),
    )
    assert rows == [(rows[0][0], False), (rows[0][0], True)] and gathered(sql, rows[0][0]) == [1, 2]
    assert sql.refused(
        "select enqueue_messages(%s)", psycopg.types.json.Jsonb([{**element, "debounce": "soon"}])
    ) == ("PH001", "messages[1].debounce")


@pytest.mark.parametrize("when", ["return", "replace", "append"])
def test_a_claim_passes_over_a_row_until_its_producer_has_committed(
    clients: Callable[..., Sql], when: str
) -> None:
    """Else the handler would run without what the producer writes in the same transaction."""
    producer, worker = clients(), clients()
    first = put(worker, {"n": 1}, pending_key="k", when_pending=when)[0]
    with producer.connection.transaction():
        assert put(producer, {"n": 2}, pending_key="k", when_pending=when)[0] == first
        assert worker.claim() == []
    assert worker.claim_one().id == first


def test_two_producers_at_the_same_instant_make_one_burst(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction():
        kept = put(first, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
        waiting = in_background(lambda: put(second, {"n": 2}, conversation_key=PHONE, debounce="1 hour"))
        blocked_behind(watcher, second, first)
    assert waiting.result(10) == (kept, True, True)
    assert gathered(watcher, kept) == [1, 2]


def test_when_the_first_producer_rolls_back_the_second_makes_the_message(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction(force_rollback=True):
        lost = put(first, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
        waiting = in_background(lambda: put(second, {"n": 2}, conversation_key=PHONE, debounce="1 hour"))
        blocked_behind(watcher, second, first)
    kept, duplicate, _ = waiting.result(10)
    assert kept != lost and duplicate is False and gathered(watcher, kept) == [2]


def test_an_append_that_waited_for_a_claim_makes_a_message_of_its_own(clients: Callable[..., Sql]) -> None:
    worker, producer, watcher = clients(), clients(), clients()
    first = put(worker, {"n": 1}, pending_key="k", when_pending="append")[0]
    with worker.connection.transaction():
        assert worker.claim_one().id == first
        waiting = in_background(lambda: put(producer, {"n": 2}, pending_key="k", when_pending="append"))
        blocked_behind(watcher, producer, worker)
    second, duplicate, merged = waiting.result(10)
    assert second != first and (duplicate, merged) == (False, False)


def test_a_claim_that_is_rolled_back_leaves_the_message_to_the_append(clients: Callable[..., Sql]) -> None:
    worker, producer, watcher = clients(), clients(), clients()
    first = put(worker, {"n": 1}, pending_key="k", when_pending="append")[0]
    with worker.connection.transaction(force_rollback=True):
        assert worker.claim_one().id == first
        waiting = in_background(lambda: put(producer, {"n": 2}, pending_key="k", when_pending="append"))
        blocked_behind(watcher, producer, worker)
    assert waiting.result(10) == (first, True, True)


def test_a_snapshot_that_cannot_see_the_first_is_refused_and_does_not_wait_for_ever(
    clients: Callable[..., Sql],
) -> None:
    early, other = clients(), clients()
    early.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(psycopg.errors.SerializationFailure), early.connection.transaction():
        early.value("select count(*) from message_queue")
        put(other, {"n": 1}, pending_key="k", when_pending="append")
        put(early, {"n": 2}, pending_key="k", when_pending="append")


# -- wake-ups ---------------------------------------------------------------------------------------
def heard(client: Sql) -> int:
    return len(list(client.connection.notifies(timeout=0)))


def test_a_window_that_moves_wakes_nobody_and_one_that_is_closed_does(clients: Callable[..., Sql]) -> None:
    worker, producer = clients(), clients()
    worker.rows("listen packhorse_wake")
    worker.rows("select announce_sleep(array['q'])")
    put(producer, {"n": 1}, conversation_key=PHONE, debounce="1 hour")
    worker.rows("select 1")
    assert heard(worker) == 1, "its alarm is set"
    put(producer, {"n": 2}, conversation_key=PHONE, debounce="1 hour")
    worker.rows("select 1")
    assert heard(worker) == 0
    producer.enqueue(message_type="image", conversation_key=PHONE)
    worker.rows("select 1")
    assert heard(worker) == 1
    put(producer, {"n": 3}, conversation_key=PHONE, debounce="1 hour")
    worker.rows("select 1")
    assert heard(worker) == 1


def test_a_window_that_may_be_over_at_the_commit_wakes_the_sleeper(clients: Callable[..., Sql]) -> None:
    """A claim passes over the row until then, and nobody else would tell it that it may go on."""
    worker, producer = clients(), clients()
    put(producer, {"n": 1}, conversation_key=PHONE, debounce="1 second")
    worker.rows("listen packhorse_wake")
    worker.rows("select announce_sleep(array['q'])")
    put(producer, {"n": 2}, conversation_key=PHONE, debounce="1 second")
    worker.rows("select 1")
    assert heard(worker) == 1


# -- superseded -------------------------------------------------------------------------------------
def superseded(sql: Sql, message_id: int) -> bool:
    return bool(sql.value("select is_superseded(%s)", message_id))


@pytest.mark.parametrize("state", ["pending", "blocked"])
def test_a_later_message_of_the_conversation_supersedes(sql: Sql, state: str) -> None:
    first = sql.claimed(conversation_key=PHONE)
    sql.enqueue(conversation_key="other")
    assert not superseded(sql, first.id)
    later = sql.enqueue(message_type="image", conversation_key=PHONE)
    sql.rows("update message_queue set state = %s where id = %s", state, later)
    assert superseded(sql, first.id) and not superseded(sql, later)
    sql.rows("select cancel_message(%s)", later)
    assert not superseded(sql, first.id)


def test_without_a_conversation_a_later_message_of_the_pending_key_does(sql: Sql) -> None:
    first = sql.claimed(pending_key="k")
    sql.enqueue(pending_key="other")
    assert not superseded(sql, first.id)
    later = sql.enqueue(pending_key="k")
    assert superseded(sql, first.id) and not superseded(sql, later)


def test_what_lives_no_longer_is_not_superseded(sql: Sql) -> None:
    assert not superseded(sql, 12345)


# -- explain, and what an operator does -------------------------------------------------------------
def gate(sql: Sql, message_id: int, name: str) -> tuple[Any, ...]:
    found = sql.rows(
        "select passed, detail, earliest_start from explain_message(%s) where gate = %s", message_id, name
    )
    return found[0] if found else ()


def test_explain_tells_the_window_and_what_has_gathered(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")
    passed, detail, start = gate(sql, first, "window")
    row = sql.live(first)
    assert not passed and start == row["run_at"] and detail.startswith("2 payload(s), gathers until ")
    latest = sql.value("select gathers_until::text from message_queue where id = %s", first)
    assert detail.endswith(f"at {latest} at the latest")
    assert gate(sql, first, "run_at") == ()
    sql.due_now()
    assert gate(sql, first, "window")[0] is True and sql.claim_one().id == first
    sql.value("select snooze_message(%s, %s, '1 hour')", first, sql.live(first)["lease_token"])
    assert gate(sql, first, "window") == () and gate(sql, first, "run_at")[0] is False


@pytest.mark.parametrize(
    "act", ["reschedule_message(%s, p_delay => '2 hours')", "retry_message(%s)", "move_message(%s, 'r')"]
)
def test_what_an_operator_decides_no_payload_undoes(sql: Sql, act: str) -> None:
    sql.rows("select declare_queue('r')")
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.rows(f"select {act}", first)
    decided = sql.live(first)
    assert decided["pending_key"] is None and decided["gathers_until"] is None
    assert put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")[0] != first
    assert sql.live(first)["run_at"] == decided["run_at"] and gathered(sql, first) == [1]


@pytest.mark.parametrize("act", ["reschedule_message(%s, p_delay => '2 hours')", "retry_message(%s)"])
def test_a_pending_key_without_a_window_outlives_another_time(sql: Sql, act: str) -> None:
    first = put(sql, {"n": 1}, pending_key="k", delay="1 hour")[0]
    sql.rows(f"select {act}", first)
    assert put(sql, {"n": 2}, pending_key="k") == (first, True, False)


def test_a_message_may_be_moved_to_a_queue_that_has_one_of_its_key(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    first = put(sql, {"n": 1}, pending_key="k")[0]
    there = sql.enqueue("r", pending_key="k")
    assert sql.value("select move_message(%s, 'r')", first) == "moved"
    assert sql.enqueue_row("r", pending_key="k") == (there, True)


def test_a_clone_of_a_burst_has_its_payloads_and_gathers_nothing(sql: Sql) -> None:
    first = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    clone = sql.value("select clone_id from clone_message(%s)", first)
    assert gathered(sql, clone) == [1] and sql.live(clone)["pending_key"] is None
