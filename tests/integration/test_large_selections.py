"""Acts on more than is counted before them: what a person is shown, what that agrees to, and that nothing is
touched that came later (SPEC Q4, Q5).
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import messages
from packhorse.worker.ops.amounts import Amount, confirmed
from packhorse.worker.ops.messages import Act
from packhorse.worker.ops.where import parse
from packhorse.worker.store import dead_letters, tallies
from packhorse.worker.store.dead_letters import Selection
from packhorse.worker.store.filters import DEAD
from tests.support.cli import Cli
from tests.support.postgres import Database
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture
def connection(database: Database) -> Iterator[DeadlineConnection]:
    opened = connect(database.url)
    yield opened
    opened.close()


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a table of a million rows meets them: nothing is cheap, fifty are counted, ten in a step."""
    for name, bound in (("MOST_COST", 0.0), ("MOST_COUNTED", 50), ("FIRST_STEP", 10), ("MOST_SECONDS", 60.0)):
        monkeypatch.setattr(tallies, name, bound)
    monkeypatch.setattr("packhorse.worker.ops.amounts.MOST_COUNTED", 50)


def fill(database: Database, count: int, message_type: str = "effect", **columns: Any) -> list[int]:
    """Messages in one transaction, and statistics about them."""
    names = "".join(f", p_{name} => %s" for name in columns)
    rows = database.query(
        f"select (enqueue_message('default', %s, jsonb_build_object('n', n){names})).message_id"
        " from generate_series(1, %s) n",
        message_type,
        *columns.values(),
        count,
    )
    database.query("analyze message_queue")
    return [row[0] for row in rows]


def pending(database: Database) -> list[int]:
    return [row[0] for row in database.query("select id from message_queue order by id")]


@contextmanager
def producer(database: Database, message_type: str = "effect") -> Iterator[None]:
    """Somebody who goes on enqueuing what the filter selects, until the block is over."""
    over, sent = threading.Event(), threading.Event()

    def produce() -> None:
        with database.connect() as producing:
            while not over.is_set():
                producing.execute("select enqueue_message('default', %s, '{}')", (message_type,))
                sent.set()

    thread = threading.Thread(target=produce, name="producer")
    thread.start()
    assert sent.wait(30)
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- what is counted -------------------------------------------------------------------------------
def test_a_count_ends_at_its_bound_and_the_planner_says_how_many_there_are(
    database: Database, connection: DeadlineConnection, small_bounds: None
) -> None:
    fill(database, 300)
    counted = messages.count(connection, parse("type=effect"), "cancel")
    assert counted.amount == Amount(51, 300, 51), "one over the bound says that there are more"
    assert messages.sentence(counted).startswith(
        "at least 50 messages, about 300 in all by estimate; oldest "
    )
    assert messages.count(connection, parse("payload.n<=3"), "cancel").amount == Amount(3), (
        "few that match are counted to the end"
    )


def test_a_count_ends_after_its_time(
    database: Database, connection: DeadlineConnection, small_bounds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST_SECONDS", 0.0)
    fill(database, 300)
    counted = messages.count(connection, parse("payload.n>5"), "cancel")
    assert counted.amount == Amount(5, 150, 10), "of what is in a payload, the share of those looked at"
    assert "at least 5 messages among the oldest 10, about 150 in all by estimate" in messages.sentence(
        counted
    )
    nothing = messages.count(connection, parse("payload.n>250"), "cancel")
    assert messages.sentence(nothing) == "no message among the oldest 10, the others were not looked at"
    letters = fill(database, 30, "other")
    database.query("select count(bury_message(id, null, 'failed')) from unnest(%s::bigint[]) id", letters)
    found, _ = dead_letters.count(connection, Selection(where=parse("age>=0s", DEAD, ()).terms))
    assert (found.total, found.looked, found.queues) == (10, 10, (("default", 10),))


@pytest.mark.slow
def test_a_whole_count_has_its_time_and_leaves_the_bound_of_the_transaction_as_it_was(
    database: Database, connection: DeadlineConnection, small_bounds: None
) -> None:
    fill(database, 20_000)
    where = parse("payload.n>0")
    with connection.transaction():
        connection.execute("set local statement_timeout = '12s'")
        whole = messages.count(connection, where, "cancel", exact_seconds=30.0)
        cut = messages.count(connection, where, "cancel", exact_seconds=0.001)
        left = connection.execute("show statement_timeout").fetchone()
    assert whole.amount == Amount(20_000)
    assert (cut.total, cut.amount.is_all) == (51, False)
    assert left == ("12s",)


def test_what_runs_is_no_part_of_an_act_that_is_not_for_it(
    database: Database, connection: DeadlineConnection, small_bounds: None
) -> None:
    fill(database, 40)
    database.query("select count(*) from claim_messages(gen_random_uuid(), array['default'], 30)")
    counted = messages.count(connection, parse("type=effect"), "priority")
    assert (counted.amount, counted.running) == (Amount(10), 30)
    act = Act("priority", "ann", None, {"priority": 1})
    result = messages.apply(connection, counted, act, most=counted.amount.most)
    assert (result.ended, result.matched, result.done("priority")) == ("finished", 10, 10)


# -- what is agreed to -----------------------------------------------------------------------------
def test_a_count_agrees_to_a_twentieth_more_and_an_estimate_to_as_many_again() -> None:
    assert [Amount(0).most, Amount(30).most, Amount(1000).most] == [10, 40, 1050]
    assert [Amount(50, 1000).most, Amount(0, 0, 10).most] == [2000, 10]
    confirmed(Amount(1000), Amount(1050))
    confirmed(Amount(50, 1000), Amount(50, 9_999_999))
    for shown, now in (
        (Amount(1000), Amount(1051)),
        (Amount(50, 1000), Amount(2001)),
        (Amount(0), Amount(11)),
    ):
        with pytest.raises(InvalidArgument, match="match now, and"):
            confirmed(shown, now)
    assert Amount(50, 1000, 60).up_to(20) == Amount(20) and Amount(50, 1000, 60).up_to(70).number == 70
    assert Amount(5).up_to(10) == Amount(5) == Amount(5).up_to(None)


def test_an_act_begins_nothing_when_more_match_than_were_agreed_to(
    database: Database, connection: DeadlineConnection
) -> None:
    """A transaction that was open at the count has taken smaller ids, and commits before the act."""
    with database.connect() as late, late.transaction():
        late.execute("select count(enqueue_message('default', 'effect', '{}')) from generate_series(1, 20)")
        shown = fill(database, 5)
        counted = messages.count(connection, parse("type=effect"), "cancel")
        assert counted.amount == Amount(5)
    begun: list[int] = []
    result = messages.apply(
        connection, counted, Act("cancel", "ann"), most=counted.amount.most, begins=begun.append
    )
    assert (result.ended, result.answers, begun) == ("more", {}, [])
    assert len(pending(database)) == 25 and set(shown) <= set(pending(database))
    assert messages.apply(connection, counted, Act("cancel", "ann"), most=25).done("cancel") == 25


def test_a_message_that_the_act_itself_unblocks_is_not_swept_in(
    database: Database, connection: DeadlineConnection
) -> None:
    ids = fill(database, 6, conversation_key="c")
    database.query("update message_queue set state = 'blocked' where id > %s", ids[0])
    counted = messages.count(connection, parse("state=pending"), "cancel")
    result = messages.apply(connection, counted, Act("cancel", "ann"), batch=1)
    assert (counted.total, result.matched, result.done("cancel")) == (1, 1, 1)
    assert pending(database) == ids[1:]


# -- producers that go on --------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("estimated", [False, True])
def test_what_producers_enqueue_between_count_and_act_and_meanwhile_stays(
    database: Database, connection: DeadlineConnection, estimated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if estimated:
        for name, bound in (("MOST_COST", 0.0), ("MOST_COUNTED", 50), ("FIRST_STEP", 10)):
            monkeypatch.setattr(tallies, name, bound)
    fill(database, 200)
    with producer(database):
        counted = messages.count(connection, parse("type=effect"), "cancel")
        assert counted.amount.is_all is not estimated
        there = database.value("select count(*) from message_queue where id <= %s", counted.last)
        later = database.value("select max(id) from message_queue") + 5
        wait_until(lambda: database.value("select max(id) from message_queue") > later)
        result = messages.apply(connection, counted, Act("cancel", "ann"), most=counted.amount.most, batch=20)
    assert (result.ended, result.matched, result.done("cancel"), result.left) == ("finished", there, there, 0)
    assert min(pending(database)) > counted.last and len(pending(database)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("of", ["messages", "dead letters"])
def test_what_comes_while_a_person_thinks_at_the_terminal_stays(
    database: Database, tmp_path: Any, of: str
) -> None:
    shown = fill(database, 30)
    bury = "select count(bury_message(id, null, 'failed')) from message_queue"
    if of == "messages":
        words, question = ["message", "cancel", "--where", "type=effect"], "Cancel 30 messages?"
    else:
        database.query(bury)
        words, question = (
            ["dead-letter", "purge", "--where", "type=effect"],
            "Delete 30 dead letters for good?",
        )
    with at_a_terminal(database, tmp_path, *words) as terminal:
        terminal.shows(question)
        with producer(database):
            later = database.value("select coalesce(max(id), 0) from message_queue") + 5
            wait_until(lambda: database.value("select coalesce(max(id), 0) from message_queue") > later)
            if of == "dead letters":
                database.query(bury)
            terminal.type(b"y\n")
            _, out = terminal.ends()
    if of == "messages":
        assert "cancel: 30 of 30 message(s)" in out
        assert min(pending(database)) > max(shown) and len(pending(database)) >= 5
    else:
        assert "purged 30 dead letter(s)" in out
        left = [row[0] for row in database.query("select id from dead_letters")]
        assert len(left) >= 5 and min(left) > max(shown)


@pytest.mark.slow
def test_a_terminal_that_agreed_to_fewer_does_nothing_and_says_so(database: Database, tmp_path: Any) -> None:
    fill(database, 5)
    with ExitStack() as opened:
        with database.connect() as late, late.transaction():
            late.execute(
                "select count(enqueue_message('default', 'effect', '{}')) from generate_series(1, 20)"
            )
            fill(database, 1)
            terminal = opened.enter_context(
                at_a_terminal(database, tmp_path, "message", "cancel", "--where", "type=effect")
            )
            terminal.shows("Cancel 6 messages?")
        terminal.type(b"y\n")
        code, _ = terminal.ends()
        said = " ".join(terminal.text.split())
    assert code == 1 and "nothing was done: more than 16 match now, and 6 were shown" in said
    assert len(pending(database)) == 26


def at_a_terminal(database: Database, folder: Any, *words: str) -> Terminal:
    """Its lines are long, so that no question is broken."""
    return Terminal(Cli(folder, database.url), *words, columns=200, term="dumb", stdout=subprocess.PIPE)
