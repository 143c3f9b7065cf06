"""Pending keys beside messages that they are nothing to: other conversations, queues and types (SPEC Q7b)."""

from __future__ import annotations

import pytest

from tests.sql.client import Sql
from tests.sql.test_pending import PHONE, gathered, put, superseded, window

OTHERS = "select m::text from message_queue m where id <> all (%s) order by id"


def set_state(sql: Sql, message_id: int, state: str) -> None:
    lease = ", lease_token = 1, lease_holder = gen_random_uuid()" if state == "running" else ""
    sql.rows(f"update message_queue set state = %s{lease} where id = %s", state, message_id)


@pytest.mark.parametrize("when", ["append", "replace"])
@pytest.mark.parametrize("state", ["pending", "blocked", "running"])
def test_what_another_conversation_has_is_left_and_closes_nothing(sql: Sql, state: str, when: str) -> None:
    burst = {"conversation_key": PHONE, "when_pending": when, "debounce": "1 hour"}
    first = put(sql, {"n": 1}, **burst)[0]
    set_state(sql, put(sql, {"n": 7}, conversation_key="other")[0], state)
    before = sql.rows(OTHERS, [first])
    assert put(sql, {"n": 2}, **burst) == (first, True, True)
    assert sql.rows(OTHERS, [first]) == before


def test_what_is_closed_starts_no_earlier_for_what_does_not_stand_behind_it(sql: Sql) -> None:
    sql.enqueue(message_type="image", conversation_key="other", delay="-1 day")
    sql.enqueue(message_type="image", conversation_key=PHONE, delay="-1 day")
    text = put(sql, {"n": 1}, conversation_key=PHONE, debounce="1 hour")[0]
    sql.enqueue(message_type="image", conversation_key="other", delay="-1 day")
    sql.enqueue(message_type="image", conversation_key=PHONE)
    put(sql, {"n": 2}, conversation_key=PHONE, debounce="1 hour")
    assert -3600 < window(sql, text) <= 0


def test_replace_appends_no_list_to_a_list(sql: Sql) -> None:
    first = put(sql, {"messages": [{"n": 1}]}, pending_key="k", when_pending="replace")[0]
    put(sql, {"messages": [{"n": 2}]}, pending_key="k", when_pending="replace")
    assert gathered(sql, first) == [2]


def test_what_says_more_than_messages_is_one_payload(sql: Sql) -> None:
    payload = {"messages": [{"n": 1}], "from": "me"}
    first = put(sql, payload, pending_key="k", when_pending="append")[0]
    assert sql.live(first)["payload"] == {"messages": [payload]}


def test_return_answers_whatever_the_conversation(sql: Sql) -> None:
    first = put(sql, pending_key="k", conversation_key=PHONE)[0]
    assert put(sql, pending_key="k", conversation_key="other") == (first, True, False)


def test_what_becomes_too_deep_in_the_list_is_refused_by_its_name(sql: Sql) -> None:
    deep: dict = {}
    for _ in range(498):
        deep = {"a": deep}
    sql.enqueue(payload=deep)
    assert sql.enqueue_refused(payload=deep, pending_key="k", when_pending="append") == ("PH001", "payload")


def test_another_conversation_queue_or_type_supersedes_nothing(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    talk, alone = sql.claimed(conversation_key=PHONE), sql.claimed(pending_key="k")
    set_state(sql, sql.enqueue(conversation_key="other"), "blocked")
    sql.enqueue("r", pending_key="k")
    sql.enqueue(message_type="image", pending_key="k")
    assert not superseded(sql, talk.id) and not superseded(sql, alone.id)
