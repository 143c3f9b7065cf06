"""Conversations with a lock in the row, and those of Amara (SPEC C5, C7, PLATFORM 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from tests.sql.client import Sql
from tests.sql.parking import blocked_behind, in_background

pytestmark = pytest.mark.slow

GET = "select conversation_id, created from get_or_create_conversation('wa:1', '1')"
LOCK = "select lock_conversation(%s, %s)"


def conversation(sql: Sql) -> UUID:
    return sql.rows(GET)[0][0]


def test_a_conversation_is_made_once_and_found_again(sql: Sql) -> None:
    ((made, created),) = sql.rows(GET)
    assert created and sql.rows(GET) == [(made, False)]


@pytest.mark.parametrize("commits", [True, False])
def test_a_caller_waits_for_one_that_is_making_it(clients: Callable[..., Sql], commits: bool) -> None:
    first, second, watcher = clients(), clients(), clients()
    with first.connection.transaction(force_rollback=not commits):
        made = conversation(first)
        answer = in_background(second.rows, GET)
        blocked_behind(watcher, second, first)
    ((found, created),) = answer.result(10)
    assert created is not commits and (found == made) is commits


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("select get_or_create_conversation('', '1')", ("PH001", "conversation_key")),
        ("select get_or_create_conversation('k', null)", ("PH001", "phone")),
        ("select get_or_create_conversation('k', '1', '')", ("PH001", "channel")),
        ("select get_or_create_conversation('k', '1', p_company_id => 77)", ("PH001", "company_id")),
        ("select lock_conversation(gen_random_uuid(), 'ann')", ("PH004", "conversation_id")),
        ("select lock_conversation(null, 'ann')", ("PH004", "conversation_id")),
        ("select lock_conversation(gen_random_uuid(), '')", ("PH001", "holder")),
        ("select lock_conversation(gen_random_uuid(), 'ann', '2 days')", ("PH001", "lease")),
        ("select unlock_conversation(gen_random_uuid(), null)", ("PH001", "holder")),
    ],
)
def test_bad_arguments_are_refused_by_name(sql: Sql, statement: str, refusal: tuple[str, str]) -> None:
    assert sql.refused(statement) == refusal


def test_a_lock_has_one_holder_who_may_renew_it_and_give_it_back(sql: Sql) -> None:
    talk = conversation(sql)
    assert [sql.value(LOCK, talk, holder) for holder in ("ann", "bob", "ann")] == [True, False, True]
    unlock = "select unlock_conversation(%s, %s)"
    assert [sql.value(unlock, talk, holder) for holder in ("bob", "ann", "ann")] == [False, True, False]
    assert sql.value(LOCK, talk, "bob") is True


def test_a_lock_ends_by_time_without_anybody_cleaning_up(sql: Sql) -> None:
    talk = conversation(sql)
    sql.rows(LOCK, talk, "ann")
    sql.rows("update conversations set lock_expires_at = clock_timestamp() - interval '1 second'")
    assert sql.value(LOCK, talk, "bob") is True
    assert sql.value("select unlock_conversation(%s, 'ann')", talk) is False
    assert sql.value("select lock_holder from conversations") == "bob"


def test_of_two_at_the_same_instant_one_gets_the_lock(clients: Callable[..., Sql]) -> None:
    first, second, watcher = clients(), clients(), clients()
    talk = conversation(first)
    with first.connection.transaction():
        assert first.value(LOCK, talk, "ann") is True
        answer = in_background(second.value, LOCK, talk, "bob")
        blocked_behind(watcher, second, first)
    assert answer.result(10) is False


def test_a_lock_is_whole_or_not_there(sql: Sql) -> None:
    conversation(sql)
    assert sql.refused("update conversations set lock_holder = 'ann'")[0] == "23514"


def test_the_phone_is_kept_in_its_normal_form(sql: Sql) -> None:
    sql.rows("select get_or_create_conversation('wa:2', 'whatsapp:+250 788-1')")
    assert sql.value("select phone from conversations where conversation_key = 'wa:2'") == "2507881"


def test_a_conversation_with_amara_is_as_old_as_its_last_message(sql: Sql) -> None:
    talk = sql.value(
        "insert into amara_conversations (user_id, last_message_at) values (gen_random_uuid(), '2020-01-01') returning id"
    )
    say = "insert into amara_messages (conversation_id, role, content, created_at) values (%s, 'user', 'x', %s), (%s, 'user', 'y', %s)"
    sql.rows(say, talk, "2021-05-01", talk, "2021-03-01")
    sql.rows(say, talk, "2019-05-01", talk, "2019-03-01")
    assert sql.value("select last_message_at = '2021-05-01' from amara_conversations") is True


def test_a_change_is_dated_by_the_database(sql: Sql) -> None:
    talk = conversation(sql)
    sql.rows("update conversations set updated_at = '2000-01-01' where id = %s", talk)
    assert sql.value("select updated_at > created_at from conversations")
    assert sql.value("select count(*) from conversations where id = %s", uuid4()) == 0
