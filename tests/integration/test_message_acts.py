"""Single messages and messages by filter, through worker/ops and the command line (SPEC Q5)."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.errors import InvalidArgument, UnknownQueue
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from packhorse.worker.ops import conversations, messages
from packhorse.worker.ops.messages import Act, with_settings
from packhorse.worker.ops.where import parse
from packhorse.worker.states import State
from packhorse.worker.store import dead_letters
from packhorse.worker.store.dead_letters import Selection
from packhorse.worker.store.filters import DEAD, KNOWN
from tests.support.calendar import days_to_another_offset
from tests.support.cli import Cli
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database


@pytest.fixture
def connection(database: Database) -> Iterator[DeadlineConnection]:
    database.query("select declare_queue('mail')")
    opened = connect(database.url)
    yield opened
    opened.close()


@pytest.fixture
def cli(tmp_path: Any, database: Database) -> Cli:
    database.query("select declare_queue('mail')")
    return Cli(tmp_path, database.url, USER="ada", LOGNAME="ada")


def enqueue(
    database: Database, count: int = 1, queue: str = "default", message_type: str = "effect", **arguments: Any
) -> list[int]:
    text = "".join(f", p_{name} => %s" for name in arguments)
    return [
        row[0]
        for row in database.query(
            f"select (enqueue_message(%s, %s, jsonb_build_object('n', n, 'customer', jsonb_build_object('id', n * 10)){text})).message_id"
            " from generate_series(1, %s) n",
            queue,
            message_type,
            *arguments.values(),
            count,
        )
    ]


def states(database: Database, ids: list[int]) -> list[str]:
    return [
        row[0] for row in database.query("select state from all_messages where id = any(%s) order by id", ids)
    ]


def by_filter(
    connection: DeadlineConnection, text: str, verb: str = "cancel", batch: int = 500, **parameters: Any
) -> messages.FilterResult:
    counted = messages.count(connection, parse(text), verb)
    return messages.apply(connection, counted, Act(verb, "ann", "why", parameters), batch=batch)


# -- what a filter selects -------------------------------------------------------------------------
def test_each_field_selects_by_its_column(database: Database, connection: DeadlineConnection) -> None:
    plain = enqueue(database, 2)
    (mail,) = enqueue(
        database,
        queue="mail",
        message_type="send_mail",
        priority=2,
        conversation_key="+250788",
        concurrency_key="k%1",
        correlation_id="order 7",
        expires_at="2999-01-01",
    )
    database.query(
        "update message_queue set created_at = created_at - interval '3 hours', attempt = 2, crashes = 1,"
        ' run_at = run_at + interval \'1 day\', error = \'{"class": "TimeoutError", "code": "SLOW"}\' where id = %s',
        mail,
    )
    selects_mail = [
        "queue=mail",
        "queue=ma*",
        "type=send_*",
        "type!=effect",
        "priority<=3",
        "priority=2",
        "key=+25*",
        "key!=nobody key=*",
        "concurrency='k%1'",
        "concurrency=k%*",
        "correlation='order 7'",
        "error=Timeout*",
        "code=SLOW",
        "attempts>=2",
        "crashes=1",
        "age>2h",
        "created<2999-01-01T00:00Z age>=10800s",
        "run_at>2026-01-01T00:00Z age>1h",
        "expires>2030-01-01T00:00Z",
        f"id={mail}",
        "payload.customer.id=10 queue=mail",
    ]
    selected = {text: [row["id"] for row in _selected(connection, text)] for text in selects_mail}
    assert selected == {text: [mail] for text in selects_mail}
    others = {
        "queue=default": plain,
        "age<2h": plain,
        "key!=*": plain,
        "payload.n>1": [plain[1]],
        "payload.customer.id>=20": [plain[1]],
        "code!=SLOW": plain,
    }
    assert {text: [row["id"] for row in _selected(connection, text)] for text in others} == others
    assert _selected(connection, "queue=m_il") == [] == _selected(connection, "payload.n.deeper=1"), (
        "_ is no wildcard, and a missing place no error"
    )


def _selected(connection: DeadlineConnection, text: str) -> list[dict[str, Any]]:
    from packhorse.worker.store import acts

    now, last = acts.moment(connection)
    return [{"id": one} for one in acts.page(connection, parse(text).terms, now, -1, last, 100, running=True)]


def test_a_count_says_queues_oldest_and_what_runs(database: Database, connection: DeadlineConnection) -> None:
    enqueue(database, 3, queue="mail")
    enqueue(database, 2)
    database.query("select count(*) from claim_messages(gen_random_uuid(), array['default'], 1)")
    counted = messages.count(connection, parse("age>=0s"), "move")
    assert (counted.total, counted.queues, counted.running) == (4, (("mail", 3), ("default", 1)), 1)
    assert messages.count(connection, parse("age>=0s"), "cancel").total == 5, (
        "what runs can be cancelled, too"
    )
    assert counted.oldest is not None and counted.oldest <= counted.at


def test_an_age_across_a_change_of_the_clock_is_what_has_passed(
    database: Database, connection: DeadlineConnection
) -> None:
    enqueue(database, 1)
    days = days_to_another_offset("Europe/Berlin", -1)
    database.query(
        "update message_queue set run_at = clock_timestamp() - %s * interval '24 hours', created_at = clock_timestamp() - %s * interval '24 hours'",
        days,
        days,
    )
    connection.execute("set timezone = 'Europe/Berlin'")
    counted = messages.count(connection, parse("age>=0s"), "move")
    assert counted.oldest is not None
    assert 0 <= (counted.at - counted.oldest).total_seconds() - days * 86400 < 60


# -- acts by filter --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("verb", "parameters", "check"),
    [
        ("cancel", {}, "select count(*) from message_archive where state = 'cancelled'"),
        ("retry", {}, "select count(*) from message_queue where run_at <= clock_timestamp()"),
        (
            "reschedule",
            {"delay": 7200.0, "run_at": None},
            "select count(*) from message_queue where run_at > clock_timestamp() + interval '90 minutes'",
        ),
        ("move", {"queue": "mail"}, "select count(*) from message_queue where queue = 'mail'"),
        ("priority", {"priority": 1}, "select count(*) from message_queue where priority = 1"),
        ("bury", {}, "select count(*) from dead_letters where reason = 'buried'"),
    ],
)
def test_each_verb_does_it_with_all_that_is_selected_in_batches_and_records_each(
    database: Database, connection: DeadlineConnection, verb: str, parameters: dict[str, Any], check: str
) -> None:
    enqueue(database, 7, delay="1 hour")
    spared = enqueue(database, 2, message_type="other", delay="1 hour")
    reports: list[int] = []
    counted = messages.count(connection, parse("type=effect"), verb)
    result = messages.apply(
        connection, counted, Act(verb, "ann", "why", parameters), batch=3, report=reports.append
    )
    assert (result.done(verb), result.left, result.ended, reports) == (7, 0, "finished", [3, 3, 1])
    assert database.value(check) == 7
    assert database.query(
        "select count(*), count(distinct message_id), min(operator), max(reason) from operator_actions"
    ) == [(7, 7, "ann", "why")]
    assert states(database, spared) == ["pending", "pending"]


def test_what_arrives_after_the_count_is_not_swept_in(
    database: Database, connection: DeadlineConnection
) -> None:
    first = enqueue(database, 2)
    counted = messages.count(connection, parse("type=effect"), "cancel")
    late = enqueue(database, 2)
    assert messages.apply(connection, counted, Act("cancel", "ann")).done("cancel") == 2
    assert states(database, first + late) == ["cancelled", "cancelled", "pending", "pending"]


def test_what_changed_after_the_count_or_is_locked_is_left_and_counted(
    database: Database, connection: DeadlineConnection
) -> None:
    ids = enqueue(database, 4)
    counted = messages.count(connection, parse("priority=5"), "move")
    database.query("select set_message_priority(%s, 1)", ids[0])
    database.query("select acquire_message_lock(%s, gen_random_uuid())", ids[1])
    with database.connect() as other, other.transaction():
        other.execute("select from message_queue where id = %s for update", (ids[2],))
        result = messages.apply(connection, counted, Act("move", "ann", None, {"queue": "mail"}))
    assert (result.done("move"), result.matched, result.left) == (1, 2, 1), (
        "the first two are not even looked at: one is selected no longer, one runs"
    )
    assert database.query("select id from message_queue where queue = 'mail'") == [(ids[3],)]


def test_a_locked_successor_keeps_its_own_conversation_back_and_no_other_message(
    database: Database, connection: DeadlineConnection
) -> None:
    (first,) = enqueue(database, conversation_key="c")
    (second,) = enqueue(database, conversation_key="c")
    free = enqueue(database, 2)
    database.query("update message_queue set state = 'blocked' where id = %s", second)
    with database.connect() as other, other.transaction():
        other.execute("select from message_queue where id = %s for update", (second,))
        result = by_filter(connection, f"id!={second}")
    assert (result.done("cancel"), result.left) == (2, 1)
    assert states(database, [first, *free]) == ["pending", "cancelled", "cancelled"]


def test_a_stop_ends_it_between_two_batches(database: Database, connection: DeadlineConnection) -> None:
    ids = enqueue(database, 5)
    stop = threading.Event()
    counted = messages.count(connection, parse("type=effect"), "cancel")
    result = messages.apply(
        connection, counted, Act("cancel", "ann"), batch=2, report=lambda _: stop.set(), stop=stop
    )
    assert (result.done("cancel"), result.ended) == (2, "interrupted")
    assert states(database, ids) == ["cancelled", "cancelled", "pending", "pending", "pending"], (
        "oldest first"
    )


def test_an_unknown_queue_ends_it_before_anything_is_done(
    database: Database, connection: DeadlineConnection
) -> None:
    ids = enqueue(database, 2)
    with pytest.raises(UnknownQueue):
        by_filter(connection, "type=effect", "move", queue="nope")
    assert (
        states(database, ids) == ["pending", "pending"]
        and database.query("select from operator_actions") == []
    )


# -- one message -----------------------------------------------------------------------------------
def test_values_are_set_at_places_of_a_payload() -> None:
    payload = {"a": {"b": [1, 2]}, "c": 1}
    assert with_settings(payload, [("a.b.1", 3), ("d.e", "new"), ("c", None)]) == {
        "a": {"b": [1, 3]},
        "c": None,
        "d": {"e": "new"},
    }
    assert payload == {"a": {"b": [1, 2]}, "c": 1}
    for path in ("c.d", "a.b.2", "a.b.x", "", "a..b"):
        with pytest.raises(InvalidArgument, match="set:"):
            with_settings(payload, [(path, 1)])


def test_a_list_has_filter_time_range_and_pages(database: Database, connection: DeadlineConnection) -> None:
    ids = enqueue(database, 5)
    database.query(
        "select complete_messages(array[%s]::bigint[], array[acquire_message_lock(%s, gen_random_uuid())])",
        ids[0],
        ids[0],
    )
    first = messages.list_messages(connection, parse("type=effect", KNOWN), limit=3)
    second = messages.list_messages(connection, parse("type=effect", KNOWN), limit=3, after=first[-1]["id"])
    assert [row["id"] for row in first + second] == ids[::-1]
    assert (
        second[-1]["wait_seconds"] >= 0
        and second[-1]["duration_seconds"] >= 0
        and first[0]["duration_seconds"] is None
    )
    assert [row["id"] for row in messages.list_messages(connection, parse("state=done", KNOWN, State))] == [
        ids[0]
    ]
    (middle,) = database.query("select created_at from message_queue where id = %s", ids[2])
    assert [row["id"] for row in messages.list_messages(connection, parse(""), since=middle[0])] == ids[:1:-1]
    assert [row["id"] for row in messages.list_messages(connection, parse(""), until=middle[0])] == [
        ids[1],
        ids[0],
    ]


def test_a_conversation_shows_its_messages_in_order_and_what_holds_it(
    database: Database, connection: DeadlineConnection
) -> None:
    ids = [enqueue(database, conversation_key="c")[0] for _ in range(4)]
    database.query("select cancel_message(%s)", ids[0])
    database.query("select reschedule_message(%s, p_delay => '1 hour')", ids[1])
    shown = conversations.show(connection, "c")
    assert [row["id"] for row in shown.messages] == ids and shown.waiting == 3
    assert shown.holder == ids[1] and "due at" in (shown.held_by or "") and shown.gates[0]["gate"] == "run_at"
    database.query("select retry_message(%s)", ids[1])
    database.query("select acquire_message_lock(%s, gen_random_uuid())", ids[1])
    assert conversations.show(connection, "c").held_by == f"message {ids[1]} runs"
    database.query("select set_queue('default', '{\"on_dead\": \"block\"}')")
    database.query("select bury_message(%s)", ids[2])
    database.query("select release_message(id, lease_token) from message_queue where id = %s", ids[1])
    assert "dead letter" in (conversations.show(connection, "c").held_by or "")
    assert len(conversations.show(connection, "c", recent_seconds=0.0, limit=2).messages) == 2
    with pytest.raises(InvalidArgument, match="no message of the conversation 'nobody'"):
        conversations.show(connection, "nobody")


# -- the command line ------------------------------------------------------------------------------
@pytest.mark.slow
def test_an_act_by_filter_counts_asks_and_tells(cli: Cli, database: Database) -> None:
    enqueue(database, 3, queue="mail")
    enqueue(database, 1)
    database.query("update message_queue set created_at = created_at - interval '3 hours'")
    only_counted = cli("message", "move", "--to", "default", "--where", "type=effect", "--dry-run")
    assert only_counted.code == EXIT_OK and "4 messages: 3 mail, 1 default; oldest 3 h" in only_counted.out
    unasked = cli("message", "move", "--to", "default", "--where", "queue=mail", "--json")
    assert unasked.code == EXIT_USAGE and unasked.error["field"] == "yes"
    done = cli(
        "message", "move", "--to", "default", "--where", "queue=mail", "--yes", "--reason", "outage", "--json"
    ).document
    assert (done["selected"], done["queues"], done["done"], done["ended"]) == (3, {"mail": 3}, 3, "finished")
    assert database.query("select distinct action, operator, reason from operator_actions") == [
        ("move", "ada", "outage")
    ]
    assert "no message matches" in cli("message", "cancel", "--where", "queue=mail", "--yes").out
    assert "cancel: 4 of 4" in cli("message", "cancel", "--where", "age>=0s", "--yes").out
    wrong = cli("message", "cancel", "--where", "quue=mail", "--yes", "--json")
    assert (
        wrong.code == EXIT_USAGE
        and wrong.error["field"] == "where"
        and "Did you mean 'queue'?" in wrong.error["hint"]
    )
    for arguments in ([], [1, "--where", "queue=a"], ["--where", " "], [1, "--dry-run"]):
        assert cli("message", "bury", *arguments, "--json").code == EXIT_USAGE


@pytest.mark.slow
def test_ctrl_c_finishes_the_batch_tells_what_was_done_and_leaves_the_rest(
    cli: Cli, database: Database, tmp_path: Any
) -> None:
    """The second of three batches waits in a trigger until Ctrl-C has come."""
    ids = enqueue(database, 2 * messages.MAX_BATCH + 200)
    database.query("create table public.go (at timestamptz)")
    database.query(
        "create function public.hold() returns trigger language plpgsql security definer set search_path = public as $$"
        " begin while not exists (select from go) loop perform pg_sleep(0.02); end loop; return new; end $$"
    )
    held = ids[messages.MAX_BATCH + 10]
    database.query(
        f"create trigger hold before insert on operator_actions for each row when (new.message_id = {held}) execute function public.hold()"
    )
    output = tmp_path / "output"
    process = cli.start("message", "cancel", "--where", "type=effect", "--yes", output=output)
    try:
        wait_until(
            lambda: database.value(
                "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')"
            )
        )
        assert states(database, ids).count("cancelled") == messages.MAX_BATCH
        process.send_signal(signal.SIGINT)
        database.query("insert into public.go values (now())")
        assert process.wait(20) == EXIT_FAILED
    finally:
        process.kill()
        process.wait()
        database.query("drop trigger hold on operator_actions")
        database.query("drop function public.hold()")
        database.query("drop table public.go")
    text = output.read_text()
    assert "cancel: 1,000 of 1,200 message(s) (interrupted)" in text and "Traceback" not in text
    assert states(database, ids) == ["cancelled"] * (2 * messages.MAX_BATCH) + ["pending"] * 200, (
        "oldest first, and no batch by halves"
    )
    assert database.value("select count(*) from operator_actions") == 2 * messages.MAX_BATCH


@pytest.mark.slow
def test_an_edit_shows_the_difference_and_is_refused_while_the_message_runs(
    cli: Cli, database: Database, tmp_path: Any
) -> None:
    (message,) = enqueue(database)
    looked = cli("message", "edit", message, "--set", "customer.id=42", "--dry-run")
    assert looked.code == EXIT_OK and '-    "id": 10' in looked.out and '+    "id": 42' in looked.out
    assert database.query("select from operator_actions") == []
    assert (
        cli(
            "message", "edit", message, "--set", "customer.id=42", "--set", "name=Ada", "--reason", "typo"
        ).code
        == EXIT_OK
    )
    assert database.value("select payload from message_queue") == {
        "n": 1,
        "customer": {"id": 42},
        "name": "Ada",
    }
    (tmp_path / "new.json").write_text('{"from": "file"}')
    assert cli("message", "edit", message, "--payload", "new.json", "--json").document["changed"] is True
    assert cli("message", "edit", message, "--payload", "-", stdin='{"from": "stdin"}').code == EXIT_OK
    assert database.value("select payload from message_queue") == {"from": "stdin"}
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.write_text(path.read_text().replace('stdin', 'editor'))"
    )
    assert cli("message", "edit", message, "--yes", EDITOR=f"{sys.executable} {editor}").code == EXIT_OK
    assert database.value("select payload from message_queue") == {"from": "editor"}
    for arguments in (
        ["--payload", "[1]"],
        ["--payload", "nowhere.json"],
        ["--set", "x"],
        ["--set", "a=1", "--payload", "{}"],
    ):
        assert cli("message", "edit", message, *arguments, "--json").code == EXIT_USAGE
    limits = cli(
        "message",
        "edit",
        message,
        "--max-attempts",
        9,
        "--expires-at",
        "2999-01-01T00:00:00Z",
        EDITOR="false",
    )
    assert (
        limits.code == EXIT_OK
        and "+max_attempts: 9" in limits.out
        and "+expires_at: 2999-01-01 00:00:00+00:00" in limits.out
    )
    both = cli("message", "edit", message, "--set", "a=1", "--expires-at", "never", "--json")
    assert both.document["diff"][-2:] == ["-expires_at: 2999-01-01 00:00:00+00:00", "+expires_at: never"]
    assert database.query("select payload, max_attempts, expires_at from message_queue") == [
        ({"from": "editor", "a": 1}, 9, None)
    ]
    assert "no difference" in cli("message", "edit", message, "--max-attempts", 9).out
    late = cli("message", "edit", message, "--set", "a=2", "--expires-at", "2020-01-01T00:00:00Z", "--json")
    assert (
        late.code == EXIT_USAGE
        and late.error["field"] == "expires_at"
        and database.value("select payload ->> 'a' from message_queue") == "1"
    )
    assert cli("message", "edit", message, "--expires-at", "soon").code == EXIT_USAGE
    database.query("select acquire_message_lock(%s, gen_random_uuid())", message)
    refused = cli("message", "edit", message, "--set", "a=1")
    assert refused.code == EXIT_FAILED and "runs on" in refused.err and "cancel it or wait" in refused.err
    assert "runs on" in cli("message", "bury", message).err


@pytest.mark.slow
def test_a_clone_prints_its_id_and_a_list_its_next_page(cli: Cli, database: Database) -> None:
    (message,) = enqueue(database)
    clone = int(cli("message", "clone", message).out)
    assert database.value("select payload ->> 'n' from message_queue where id = %s", clone) == "1"
    refused = cli("message", "list", "--since", "2x")
    assert refused.code == 2 and "write 2030-01-31T12:00:00+00:00, or 2h: so long ago" in refused.err
    page = cli("message", "list", "--limit", 1, "--where", "type=eff*", "--since", "1h")
    assert cli("message", "list", "--until", "1h", "--json").document == []
    assert str(clone) in page.out and f"--where 'type=eff*' --limit 1 --after {clone}" in page.err
    assert [
        row["id"]
        for row in cli("message", "list", "--where", "type=eff*", "--after", clone, "--json").document
    ] == [message]
    assert cli("message", "clone", 10**12, "--json").error["code"] == "not_found"
    assert cli("conversation", "show", "nobody", "--json").error["field"] == "key"


@pytest.mark.slow
def test_a_maintenance_window_and_the_end_of_a_queue(cli: Cli, database: Database) -> None:
    cli("queue", "pause", "mail")
    assert cli("queue", "pause", "--all", "--reason", "upgrade", "--json").document == {"paused": ["default"]}
    assert cli("queue", "resume", "--all", "--json").document == {"resumed": ["default"]}
    assert database.query("select name from queues where paused_at is not null") == [("mail",)]
    assert cli("queue", "pause", "--json").code == EXIT_USAGE == cli("queue", "resume", "mail", "--all").code
    enqueue(database, 2, queue="mail")
    refused = cli("queue", "delete", "mail", "--yes", "--json")
    assert (
        refused.code == EXIT_FAILED
        and refused.error["code"] == "in_use"
        and "2 live message(s)" in refused.error["message"]
    )
    cli("message", "cancel", "--where", "queue=mail", "--yes")
    assert cli("queue", "delete", "mail", "--yes", "--json").document == {"queue": "mail", "deleted": True}
    assert cli("queue", "show", "mail").code == EXIT_FAILED


def test_dead_letters_are_selected_by_the_same_filter(
    database: Database, connection: DeadlineConnection
) -> None:
    ids = enqueue(database, 3)
    database.query(
        "select count(bury_message(id, null, 'failed', 'TimeoutError')) from message_queue where id = any(%s)",
        ids[:2],
    )
    database.query("select bury_message(%s, null, 'failed', 'ValueError')", ids[2])

    def selected(text: str) -> list[int]:
        selection = Selection(where=parse(text, DEAD, ()).terms)
        total, dead_by = dead_letters.count(connection, selection)
        found = [one for page in dead_letters.pages(connection, selection, dead_by, 1) for one in page]
        assert total.total == len(found) == len(dead_letters.list_letters(connection, where=selection.where))
        return found

    assert (
        selected("error=Timeout*") == ids[:2]
        and selected("payload.n=3 age>=0s type=effect attempts=0") == [ids[2]]
        and selected("age>1h") == []
    )
    with pytest.raises(InvalidArgument, match="no field 'state'"):
        parse("state=dead", DEAD, ())
