"""Pages of messages, dead letters and acts: nothing twice, nothing left out, nothing without a bound
(FEATURES 5, FAILURES 2.15).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.ops.where import parse
from packhorse.worker.states import State
from packhorse.worker.store import browse
from packhorse.worker.store.filters import DEAD, KNOWN, Term
from tests.support.postgres import Database

pytestmark = pytest.mark.one_database

DEAD_LETTERS = """
insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, fingerprint, attempt, crashes, created_at, dead_at)
select n, 'default', 'effect', jsonb_build_object('n', n), '{}', 5, 'failed', 'ValueError', 'no ' || n, 'cause' || n %% 3, 1, 0,
  now() - make_interval(secs => %s - n), now() - make_interval(secs => %s - n)
from generate_series(%s::bigint, %s::bigint) n"""
ARCHIVED = """
insert into message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at)
select n, 'default', 'effect', jsonb_build_object('n', n), '{}', 5, 'done', 1, 0, now() from generate_series(%s::bigint, %s::bigint) n"""
DEAD_OF_ONE = """
insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, traceback, fingerprint, attempt, crashes,
  created_at, dead_at)
select n, 'default', 'effect', '{}', '{}', 5, 'failed', 'TimeoutError', 'no', 'at', 'large', 1, 0, now() - interval '1 hour',
  now() - make_interval(secs => (5999 - n) / 10.0) from generate_series(%s::bigint, %s::bigint) n"""
LIVE = """
insert into message_queue (id, queue, message_type, payload, state, conversation_key)
select n, 'default', 'effect', jsonb_build_object('n', n), %s, %s from generate_series(%s::bigint, %s::bigint) n"""


@pytest.fixture
def connection(database: Database) -> Iterator[DeadlineConnection]:
    """What the page has: the rights of packhorse_reader, and no right to change anything."""
    opened = connect(database.admin_url)
    opened.execute("set role packhorse_reader")
    opened.execute("set default_transaction_read_only = on")
    yield opened
    opened.close()


def terms(text: str) -> tuple[Term, ...]:
    return parse(text, KNOWN, State).terms


def ids(page: browse.Page) -> list[int]:
    return [row["id"] for row in page.rows]


def fill(database: Database) -> None:
    """1..10 dead, 11..20 archived, 21..30 live."""
    database.query(DEAD_LETTERS, 10, 10, 1, 10)
    database.query(ARCHIVED, 11, 20)
    database.query(LIVE, "pending", None, 21, 30)


def test_pages_hold_every_message_once_in_both_directions(
    database: Database, connection: DeadlineConnection
) -> None:
    fill(database)
    forth: list[int] = []
    page = browse.messages(connection, (), None, None, 7)
    assert not page.newer
    while True:
        forth += ids(page)
        if not page.older:
            break
        page = browse.messages(connection, (), forth[-1], None, 7)
        assert page.newer
    assert forth == list(range(30, 0, -1))
    back = ids(page)
    while page.newer:
        page = browse.messages(connection, (), None, back[0], 7)
        assert page.older
        back = ids(page) + back
    assert back == forth


def test_messages_of_the_same_moment_are_not_skipped(
    database: Database, connection: DeadlineConnection
) -> None:
    database.query(
        "insert into message_queue (id, queue, message_type, created_at) select n, 'default', 'effect', '2026-01-01Z' from generate_series(1, 9) n"
    )
    first = browse.messages(connection, (), None, None, 4)
    second = browse.messages(connection, (), ids(first)[-1], None, 4)
    assert ids(first) + ids(second) == [9, 8, 7, 6, 5, 4, 3, 2]


@pytest.mark.parametrize(
    "where, found",
    [
        ("state=dead", range(10, 0, -1)),
        ("state=done", range(20, 10, -1)),
        ("state=pending", range(30, 20, -1)),
        ("state!=dead", range(30, 10, -1)),
        ("state=pending,dead payload.n>9 payload.n<23", [22, 21, 10]),
        ("id=4,17", [17, 4]),
        ("error=Value*", range(10, 0, -1)),
        ("queue=other", []),
    ],
)
def test_a_filter_finds_messages_of_every_state(
    database: Database, connection: DeadlineConnection, where: str, found: Any
) -> None:
    fill(database)
    page = browse.messages(connection, terms(where), None, None, 50)
    assert ids(page) == list(found)
    assert (page.older, page.searched_to) == (False, None)
    assert browse.count(connection, terms(where)) == browse.Count(len(list(found)), False)


@pytest.mark.parametrize("state", ["running", "blocked"])
def test_rare_states_are_found_however_many_messages_are_newer(
    database: Database, connection: DeadlineConnection, state: str
) -> None:
    lease = ", lease_token, lease_expires_at" if state == "running" else ""
    values = ", 1, now()" if state == "running" else ""
    database.query(
        f"insert into message_queue (id, queue, message_type, state, conversation_key{lease}) values (1, 'default', 'effect', %s, 'k'{values})",
        state,
    )
    database.query(LIVE, "pending", None, 2, 300)
    page = browse.messages(connection, terms(f"state={state}"), None, None, 50, 10)
    assert (ids(page), page.searched_to) == ([1], None)


def test_a_walk_ends_after_so_many_messages_and_the_next_page_goes_on(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "MOST_SECONDS", math.inf)
    database.query(LIVE, "pending", None, 1, 200)
    database.query(LIVE, "pending", None, 10**12, 10**12 + 99)  # ids have gaps
    page = browse.messages(connection, terms("payload.n=150"), None, None, 5, 100)
    assert ids(page) == [] and page.older and page.searched_to is not None and page.searched_at is not None
    walks = 1
    while page.older:
        page = browse.messages(connection, terms("payload.n=150"), page.searched_to, None, 5, 100)
        walks += 1
        if page.rows:
            break
    assert (ids(page), walks) == ([150], 2)


@pytest.mark.parametrize(
    ("seconds", "first", "found"),
    [
        (0.0, 10, 90),
        (0.1, 10, 0),
        (0.06, 10, 0),
        (0.05, 10, 10),
        (0.02, 10, 40),
        (0.001, 10, 90),
        (0.0, 0, 0),
    ],
)
def test_the_second_step_of_a_walk_is_as_large_as_its_time_allows(
    seconds: float, first: int, found: int
) -> None:
    assert browse._second_step(first, seconds, 90) == found


def test_a_walk_that_is_slow_ends_after_its_first_step(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.query(LIVE, "pending", None, 1, 200)
    monkeypatch.setattr(browse, "MOST_SECONDS", 0.0)
    page = browse.messages(connection, terms("payload.n=150"), None, None, 5, 100)
    assert (ids(page), page.older, page.searched_to) == ([], True, 190)
    page = browse.messages(connection, terms("payload.n=150"), 155, None, 5, 100)
    assert (ids(page), page.searched_to) == ([150], 144), "and the next one goes on"
    monkeypatch.setattr(browse, "MOST_SECONDS", math.inf)
    page = browse.messages(connection, terms("payload.n=150"), None, None, 5, 100)
    assert (ids(page), page.searched_to) == ([150], 99)


def test_a_walk_to_newer_messages_ends_as_well(database: Database, connection: DeadlineConnection) -> None:
    database.query(LIVE, "pending", None, 1, 400)
    page = browse.messages(connection, terms("payload.n=390"), None, 1, 5, 100)
    assert ids(page) == [] and page.newer and page.searched_to is not None
    while not page.rows:
        page = browse.messages(connection, terms("payload.n=390"), None, page.searched_to, 5, 100)
    assert ids(page) == [390]


def test_what_would_be_dear_to_count_is_estimated(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.query(LIVE, "pending", None, 1, 500)
    with database.session() as owner:
        owner.execute("analyze message_queue")
    assert browse.count(connection, terms("state=pending")) == browse.Count(500, False)
    monkeypatch.setattr(browse, "MOST_COUNTED", 100)
    counted = browse.count(connection, terms("state=pending"))
    assert counted.estimated and 250 <= counted.number <= 1000
    monkeypatch.setattr(browse, "MOST_COUNTED", 10_000)
    monkeypatch.setattr(browse, "MOST_COST", 1.0)
    assert browse.count(connection, terms("payload.n=1")).estimated


def test_groups_are_those_of_the_view(database: Database, connection: DeadlineConnection) -> None:
    fill(database)
    groups = browse.groups(connection, (), 10)
    found = groups.rows
    view = dict(database.query("select fingerprint, count from dead_letter_groups"))
    assert (
        {row["fingerprint"]: row["count"] for row in found} == view == {"cause0": 3, "cause1": 4, "cause2": 3}
    )
    assert [row["newest_id"] for row in found] == [10, 9, 8]
    assert found[0]["error_message"] == "no 10" and found[0]["last_hour"] == 4
    assert groups.is_all and browse.groups(connection, (), 2).rows == found[:2]
    few = browse.groups(connection, parse("payload.n<5", DEAD, ()).terms, 10)
    assert few.is_all and not any(row["estimated"] for row in (*found, *few.rows))
    assert [(row["fingerprint"], row["count"], row["newest_id"]) for row in few.rows] == [
        ("cause1", 2, 4),
        ("cause0", 1, 3),
        ("cause2", 1, 2),
    ]


def test_of_a_large_table_rare_causes_are_counted_and_others_estimated(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    whole = browse.groups(connection, (), 10)
    monkeypatch.setattr(browse, "MOST_LETTERS", 0)
    bounded = browse.groups(connection, (), 10)
    assert bounded.is_all
    assert [{**row, "is_all": None} for row in bounded.rows] == [
        {**row, "is_all": None} for row in whole.rows
    ]
    database.query(DEAD_OF_ONE, 1000, 5999)
    database.query("analyze dead_letters")
    monkeypatch.setattr(browse, "MOST_LETTERS_COUNTED", 30)
    for sampled, least, most in ((10_000, 5000, 5000), (1500, 500, 20_000)):
        monkeypatch.setattr(browse, "SAMPLED_LETTERS", sampled)
        first, *others = browse.groups(connection, (), 10).rows
        assert first["fingerprint"] == "large" and first["estimated"] and least <= first["count"] <= most
        assert least <= first["last_hour"] <= most and first["newest_id"] == 5999
        assert [row["count"] for row in others] == [4, 3, 3] and not any(row["estimated"] for row in others)
    monkeypatch.setattr(browse, "MOST_CAUSES", 3)
    assert not browse.groups(connection, (), 10).is_all


def test_of_a_large_table_a_filter_looks_at_the_newest_letters(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    every = parse("payload.n>0", DEAD, ()).terms
    monkeypatch.setattr(browse, "MOST_LETTERS", 0)
    monkeypatch.setattr(browse, "NEWEST_LETTERS", 10)
    found = browse.groups(connection, every, 10)
    assert found.is_all and sum(row["count"] for row in found.rows) == 10
    monkeypatch.setattr(browse, "NEWEST_LETTERS", 4)
    found = browse.groups(connection, every, 10)
    assert not found.is_all and sorted(row["newest_id"] for row in found.rows) == [8, 9, 10]
    assert sum(row["count"] for row in found.rows) == 5
    found = browse.groups(connection, parse("payload.n<3", DEAD, ()).terms, 10)
    assert (found.rows, found.is_all) == ((), False)


def test_a_large_cause_is_counted_to_a_bound(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    monkeypatch.setattr(browse, "NEWEST_LETTERS", 3)
    for cause, count, is_more in (("cause1", 3, True), ("cause0", 3, False)):
        group = browse.group(connection, cause)
        assert group is not None and (group["count"], group["is_more"]) == (count, is_more)
        assert group["last_hour"] == 3


def test_a_group_and_its_letters_page_by_page(database: Database, connection: DeadlineConnection) -> None:
    fill(database)
    group = browse.group(connection, "cause1")
    assert group is not None and (group["count"], group["newest_id"], group["error_message"]) == (
        4,
        10,
        "no 10",
    )
    assert browse.group(connection, "nothing") is None
    first = browse.group_letters(connection, "cause1", None, None, 2)
    second = browse.group_letters(connection, "cause1", 7, None, 2)
    assert (ids(first), first.newer, first.older) == ([10, 7], False, True)
    assert (ids(second), second.newer, second.older) == ([4, 1], True, False)
    assert ids(browse.group_letters(connection, "cause1", None, 4, 2)) == [10, 7]


def test_acts_page_by_page_and_by_who_did_what(database: Database, connection: DeadlineConnection) -> None:
    database.query(
        "insert into operator_actions (action, operator, message_id) select case when n % 2 = 0 then 'pause' else 'edit' end, 'ada', n from generate_series(1, 6) n"
    )
    database.query("insert into operator_actions (action, operator) values ('pause', 'bob')")
    every = browse.actions(connection, None, None, None, None, None, 50)
    assert [row["message_id"] for row in every.rows] == [None, 6, 5, 4, 3, 2, 1]
    paused = browse.actions(connection, "pause", "ada", None, None, None, 2)
    assert [row["message_id"] for row in paused.rows] == [6, 4] and paused.older
    older = browse.actions(connection, "pause", "ada", None, paused.rows[-1]["id"], None, 2)
    assert [row["message_id"] for row in older.rows] == [2] and older.newer and not older.older
    newer = browse.actions(connection, "pause", "ada", None, None, older.rows[0]["id"], 2)
    assert [row["message_id"] for row in newer.rows] == [6, 4]
    assert [row["action"] for row in browse.actions(connection, None, None, 3, None, None, 2).rows] == [
        "edit"
    ]
    assert [row["action"] for row in browse.actions_of(connection, 3)] == ["edit"]


def test_values_for_completion(database: Database, connection: DeadlineConnection) -> None:
    fill(database)
    database.query("select declare_queue('deliveries')")
    assert browse.values_of(connection, "queue", "de") == ["default", "deliveries"]
    assert browse.values_of(connection, "error", "") == ["ValueError"]
    assert browse.values_of(connection, "payload", "") == []


def test_the_trace_context_is_found_wherever_the_message_is(
    database: Database, connection: DeadlineConnection
) -> None:
    fill(database)
    for table, number in (("dead_letters", 1), ("message_archive", 11), ("message_queue", 21)):
        database.query(f"update {table} set trace_context = %s where id = %s", table, number)
        assert browse.trace_context(connection, number) == table
    assert browse.trace_context(connection, 2) is None


def test_conversations_that_wait_are_those_of_the_view_as_far_as_they_are_looked_at(
    database: Database, connection: DeadlineConnection
) -> None:
    database.query(LIVE, "pending", "b", 1, 1)
    database.query(LIVE, "blocked", "b", 2, 4)
    database.query(LIVE, "blocked", "a", 5, 5)
    database.query(
        "update message_queue set created_at = now() - interval '1 day', run_at = now() - interval '1 day' where id = 5"
    )
    found = browse.waiting(connection, 10)
    assert [
        (row["conversation_key"], row["waiting"], row["holder_kind"], row["holder_id"], row["looked_at"])
        for row in found
    ] == [("a", 1, None, None, 2), ("b", 3, "earlier", 1, 2)]
    view = database.query(
        "select conversation_key, waiting, since, holder_kind, holder_id from blocked_conversations order by since"
    )
    assert [tuple(row.values())[:5] for row in found] == [
        (key, since, waiting, kind, holder) for key, waiting, since, kind, holder in view
    ]
    assert [(row["conversation_key"], row["looked_at"]) for row in browse.waiting(connection, 10, 1)] == [
        ("a", 1)
    ]
    assert len(browse.waiting(connection, 1)) == 1


def test_what_waits_is_counted_up_to_a_share_of_a_budget(
    database: Database, connection: DeadlineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.query(LIVE, "blocked", "long", 1, 400)
    database.query(LIVE, "blocked", "short", 401, 403)

    def counted() -> list[tuple[str, int, bool]]:
        found = browse.waiting(connection, 10)
        return sorted((row["conversation_key"], row["waiting"], row["is_more"]) for row in found)

    assert counted() == [("long", 400, False), ("short", 3, False)]
    monkeypatch.setattr(browse, "MOST_WAITING_COUNTED", 500)
    assert counted() == [("long", 250, True), ("short", 3, False)]
    monkeypatch.setattr(browse, "MOST_WAITING_COUNTED", 10)
    assert counted() == [("long", 100, True), ("short", 3, False)], "a hundred of each at least"


def test_archived_messages_of_a_conversation_are_looked_for_step_by_step(
    database: Database, connection: DeadlineConnection
) -> None:
    database.query(ARCHIVED, 1, 300)
    database.query("update message_archive set conversation_key = 'k' where id in (10, 250, 260, 290)")
    page = browse.archived_of(connection, "k", None, 2, 100)
    assert (ids(page), page.older, page.searched_to) == ([290, 260], True, None)
    page = browse.archived_of(connection, "k", 260, 2, 100)
    assert (ids(page), page.older, page.searched_to) == ([250], True, 159)
    page = browse.archived_of(connection, "k", 159, 2, 200)
    assert (ids(page), page.older, page.searched_to) == ([10], False, None)
