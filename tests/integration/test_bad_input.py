"""Bad input is refused at the door, by an InvalidArgument that names the field; the worker never meets it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dramatiq
import psycopg
import pytest

import packhorse
from packhorse import PostgresBroker
from packhorse.worker.errors import InvalidArgument, StoreError, UnknownQueue
from packhorse.worker.store import messages as store
from tests.support.cli import Cli
from tests.support.harness import quick_settings

pytestmark = pytest.mark.one_database


@pytest.fixture
def broker(database, monkeypatch):
    broker = PostgresBroker(settings=quick_settings(database))
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    yield broker
    broker.close()


@pytest.fixture
def note(broker):
    @dramatiq.actor
    def note(text, number=1, *, flag=False):
        pass

    return note


def _deep(levels):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


ARGUMENTS = {
    "unknown name": ((), {"text": "x", "nubmer": 2}, "nubmer"),
    "missing": ((), {"number": 2}, "text"),
    "too many": (("x", 1, True), {}, "args"),
    "twice": (("x",), {"text": "y"}, "text"),
    "nul": (("a\x00b",), {}, "payload"),
    "surrogate": (("\ud83d",), {}, "payload"),
    "no json": ((object(),), {}, "payload"),
    "nan": ((float("nan"),), {}, "payload"),
    "infinity": ((float("inf"),), {}, "payload"),
    "bytes": ((b"x",), {}, "payload"),
    "too large": (("x" * 1_048_577,), {}, "payload"),
    "too deep": ((_deep(100_000),), {}, "payload"),
    "501 deep": ((_deep(500),), {}, "payload"),
    "5,000 deep": ((_deep(5000),), {}, "payload"),
    "4,301 digits": ((10**4300,), {}, "payload"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments_are_refused_with_their_name(database, note, name):
    args, kwargs, field = ARGUMENTS[name]
    with pytest.raises(InvalidArgument) as caught:
        note.send(*args, **kwargs)
    assert caught.value.field == field
    assert len(str(caught.value)) < 500, "the value itself is not repeated"
    assert database.query("select 1 from message_queue") == []


def test_what_sql_python_and_the_command_line_cannot_store_they_refuse_alike(database, note, tmp_path):
    """The same field, and for the command line the same code as for what the database refuses."""
    cli = Cli(tmp_path, database.url)
    database.query("select declare_queue('default')")
    with psycopg.connect(database.url, autocommit=True) as connection:
        for text in (f'{{"a": {"[" * 4999}{"]" * 4999}}}', f'{{"a": {"9" * 5000}}}'):
            ran = cli("enqueue", "note", "-", "--allow-unknown-type", "--json", stdin=text)
            assert (ran.code, ran.error["code"], ran.error["field"]) == (2, "invalid_argument", "payload")
            with pytest.raises(psycopg.Error) as caught:
                connection.execute("select packhorse.enqueue_message('default', 'note', %s::jsonb)", (text,))
            assert (caught.value.sqlstate, caught.value.diag.column_name) == ("PH001", "payload")
        for field, arguments in {
            "message_type": ("no\x00te", {}),
            "queue": ("note", {"queue": "def\x00ault"}),
        }.items():
            with pytest.raises(InvalidArgument, match="NUL") as refused:
                packhorse.enqueue(connection, arguments[0], {}, **arguments[1])
            assert refused.value.field == field
    with pytest.raises(InvalidArgument, match="NUL") as refused:
        note.broker.enqueue(note.message("x").copy(queue_name="def\x00ault"))
    assert refused.value.field == "queue"
    assert database.query("select 1 from message_queue") == []


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("key", "Did you mean 'conversation_key'"),
        ("eta", "Did you mean 'run_at'"),
        ("countdown", "Did you mean 'delay'"),
        ("queue", "copy(queue_name="),
    ],
)
def test_an_option_of_another_queue_is_refused_with_what_it_is_called_here(database, note, option, meant):
    with pytest.raises(InvalidArgument) as refused:
        note.send_with_options(args=("x",), **{option: "1"})
    assert refused.value.field == option and meant in (refused.value.hint or "")
    if option != "queue":  # which is the queue there
        with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument) as refused:
            packhorse.enqueue(connection, "note", {}, **{option: "1"})
        assert refused.value.field == option and meant in (refused.value.hint or "")
    assert database.query("select 1 from message_queue") == []


def test_a_dedup_window_without_a_key_is_refused(database, note):
    with pytest.raises(InvalidArgument, match="dedup_key") as refused:
        note.send_with_options(args=("x",), dedup_window=60)
    assert refused.value.field == "dedup_window"
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument, match="dedup_key"):
        packhorse.enqueue(connection, "note", {}, dedup_window=60)
    note.send_with_options(args=("x",), dedup_window=None)
    assert database.query("select count(*) from message_queue") == [(1,)]


def test_a_near_miss_is_proposed(note):
    with pytest.raises(InvalidArgument, match="Did you mean 'number'"):
        note.send("x", nubmer=2)


def test_an_async_actor_names_its_arguments_too(database, broker):
    @dramatiq.actor
    async def wait(seconds, *, why="none"):
        pass

    with pytest.raises(InvalidArgument, match="Did you mean 'why'"):
        wait.send(1, wyh="x")
    wait.send(1)
    assert database.value("select payload from message_queue") == {"seconds": 1}


OPTIONS = {
    "priority low": ({"priority": 0}, "priority"),
    "priority high": ({"priority": 11}, "priority"),
    "priority text": ({"priority": "high"}, "priority"),
    "priority bool": ({"priority": True}, "priority"),
    "delay negative": ({"delay": -1}, "delay"),
    "delay absurd": ({"delay": 10**15}, "delay"),
    "delay infinite": ({"delay": float("inf")}, "delay"),
    "delay nan": ({"delay": float("nan")}, "delay"),
    "delay text": ({"delay": "soon"}, "delay"),
    "max_retries negative": ({"max_retries": -1}, "max_retries"),
    "max_retries absurd": ({"max_retries": 10**9}, "max_retries"),
    "max_retries text": ({"max_retries": "many"}, "max_retries"),
    "time_limit text": ({"time_limit": "soon"}, "time_limit"),
    "time_limit infinite": ({"time_limit": float("inf")}, "time_limit"),
    "time_limit zero": ({"time_limit": 0}, "time_limit"),
    "max_attempts zero": ({"max_attempts": 0}, "max_attempts"),
    "max_age text": ({"max_age": "old"}, "max_age"),
    "conversation empty": ({"conversation_key": ""}, "conversation_key"),
    "conversation long": ({"conversation_key": "x" * 501}, "conversation_key"),
    "conversation nul": ({"conversation_key": "a\x00"}, "conversation_key"),
    "conversation number": ({"conversation_key": 7}, "conversation_key"),
    "conversation surrogate": ({"conversation_key": "\ud800"}, "conversation_key"),
    "dedup long": ({"dedup_key": "x" * 501}, "dedup_key"),
    "dedup window text": ({"dedup_key": "k", "dedup_window": "long"}, "dedup_window"),
    "dedup window absurd": ({"dedup_key": "k", "dedup_window": 10**12}, "dedup_window"),
    "run_at without zone": ({"run_at": datetime(2030, 1, 1)}, "run_at"),
    "run_at text": ({"run_at": "tomorrow"}, "run_at"),
    "expires_in negative": ({"expires_in": -5}, "expires_in"),
    "expires_in before the delay": ({"expires_in": 60, "delay": 60_000}, "expires_in"),
    "expires_in before run_at": (
        {"expires_in": 60, "run_at": datetime.now(UTC) + timedelta(days=1)},
        "expires_at",
    ),
    "a misspelt option": ({"conversationkey": "c"}, "conversationkey"),
    "a queue that send does not take": ({"queue_name": "mail"}, "queue_name"),
    "unknown value": ({"custom": object()}, "options"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_are_refused_with_their_name(database, note, name):
    options, field = OPTIONS[name]
    with pytest.raises(InvalidArgument) as caught:
        note.send_with_options(args=("x",), **options)
    assert caught.value.field == field
    assert database.query("select 1 from message_queue") == []


ACTORS = {
    "priority": {"priority": 100},
    "max_attempts": {"max_attempts": 0},
    "max_retries": {"max_retries": -1},
    "time_limit": {"time_limit": 0},
    "max_age": {"max_age": "old"},
    "min_backoff": {"min_backoff": -1},
    "max_backoff": {"max_backoff": 10**15},
    "hard_time_limit": {"hard_time_limit": "soon"},
    "time_limit_class": {"time_limit_class": "paymnet"},
    "transactional": {"transactional": "no"},
    "aliases": {"aliases": "former"},
    "aliases of another actor": {"aliases": ["note"]},
    "aliases of two": {"aliases": ["old_note"]},
    "aliases that are no names": {"aliases": ["a b"]},
}


@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_with_a_bad_option_is_refused_where_it_is_declared(broker, name):
    @dramatiq.actor(aliases=["old_note"], max_attempts=None, time_limit=float("inf"))
    def note():
        pass

    with pytest.raises(InvalidArgument) as caught:

        @dramatiq.actor(**ACTORS[name])
        def other():
            pass

    assert caught.value.field == name.split()[0]
    assert "other" not in broker.actors


def test_the_connection_is_as_good_as_before_after_a_refusal(database, broker, note):
    for _ in range(20):
        with pytest.raises(InvalidArgument):
            broker.enqueue(note.message("x").copy(queue_name="nowhere"))
    note.send("fine")
    assert database.value("select count(*) from message_queue") == 1
    assert (
        database.value(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'packhorse enqueue'"
        )
        == 1
    )


def test_an_unknown_queue_names_a_near_miss(database, broker, note):
    database.query("select declare_queue('payments')")
    with pytest.raises(UnknownQueue, match="Did you mean 'payments'") as caught:
        broker.enqueue(note.message("x").copy(queue_name="payment"))
    assert caught.value.field == "queue"


@pytest.mark.parametrize("name", ["", "1st", "a b", "x" * 101, "a\x00b", "dröp;table"])
def test_a_bad_queue_name_is_refused(broker, note, name):
    with pytest.raises(InvalidArgument):
        broker.enqueue(note.message("x").copy(queue_name=name))


@pytest.mark.parametrize(
    "text",
    [
        "\\u0000",
        "C:\\u0000x",
        "\\ud800",
        "\u2028",
        "\x01",
        "\U0001f600",
        "'; drop table x; --",
        "%s",
        "\t\n\\N\\.",
    ],
)
def test_odd_but_valid_texts_arrive_as_they_were(database, broker, note, text):
    note.send(text)
    broker.enqueue_many([note.message(text)])
    assert [row[0]["text"] for row in database.query("select payload from message_queue")] == [text, text]


def test_bulk_is_all_or_none(database, broker, note):
    with pytest.raises(InvalidArgument) as caught:
        broker.enqueue_many([note.message("a"), note.message("b"), note.message("c\x00")])
    assert caught.value.field == "payload"
    with pytest.raises(InvalidArgument):
        broker.enqueue_many([note.message("a"), note.message_with_options(args=("b",), dedup_key="k")])
    with pytest.raises(InvalidArgument) as caught:
        broker.enqueue_many(
            [
                note.message("a"),
                note.message_with_options(
                    args=("b",), expires_in=60, run_at=datetime.now(UTC) + timedelta(days=1)
                ),
            ]
        )
    assert caught.value.field == "expires_in"
    assert database.query("select 1 from message_queue") == []
    many = [note.message(f"{number}") for number in range(3500)]
    with pytest.raises(InvalidArgument):  # found when the first thousands are on their way
        broker.enqueue_many([*many, note.message("c\x00")])
    with pytest.raises(UnknownQueue):  # found by the database when all are there
        broker.enqueue_many([*many, note.message("d").copy(queue_name="nobody"), *many])
    database.query("alter table message_queue add constraint no_boom check (payload ->> 'text' <> 'boom')")
    try:
        with pytest.raises(StoreError, match="no_boom"):  # found by the database, in the middle of a pipeline
            broker.enqueue_many([*many, note.message("boom"), *many])
    finally:
        database.query("alter table message_queue drop constraint no_boom")
    assert database.query("select 1 from message_queue") == []
    mixed = [
        note.message_with_options(
            args=(f"{number}",), conversation_key=f"k{number}" if number < 2100 else None
        )
        for number in range(2500)
    ]
    assert broker.enqueue_many([*many, *mixed, *many]) == 9500  # in a pipeline, by itself, in a pipeline
    assert [row[0] for row in database.query("select payload ->> 'text' from message_queue order by id")] == [
        *map(str, range(3500)),
        *map(str, range(2500)),
        *map(str, range(3500)),
    ]
    database.query("delete from message_queue")
    assert broker.enqueue_many([note.message("a"), note.message("b")]) == 2
    assert broker.enqueue_many([]) == 0


@pytest.mark.slow
def test_a_bulk_of_long_messages_goes_in_statements_of_a_few_megabytes(database, broker, note, monkeypatch):
    """The deadline of a call is for one statement, or for a few on their way, not for two hundred
    megabytes.
    """
    sizes = []
    insert = store.insert_messages

    def watched(connection, rows, with_state):
        sizes.append(sum(len(row[2]) for row in rows))
        insert(connection, rows, with_state)

    monkeypatch.setattr(store, "insert_messages", watched)
    assert broker.enqueue_many(note.message("x" * 900_000) for _ in range(24)) == 24
    assert max(sizes) < 5_000_000 and sum(sizes) > 24 * 900_000
    assert database.value("select count(*) from message_queue") == 24


SQL = {
    "type": ("select enqueue_message('default', 'no good', '{}')", "message_type"),
    "payload array": ("select enqueue_message('default', 'note', '[1]')", "payload"),
    "payload null": ("select enqueue_message('default', 'note', null)", "payload"),
    "priority": ("select enqueue_message('default', 'note', '{}', p_priority => 99)", "priority"),
    "attempts": ("select enqueue_message('default', 'note', '{}', p_max_attempts => 0)", "max_attempts"),
    "run_at": ("select enqueue_message('default', 'note', '{}', p_run_at => 'infinity')", "run_at"),
    "large": (
        "select enqueue_message('default', 'note', jsonb_build_object('a', (select string_agg(md5(i::text), '') from generate_series(1, 40000) i)))",
        "payload",
    ),
    "bulk element": (
        """select enqueue_messages('[{"queue": "default", "message_type": "note"}, {"queue": "default", "typ": "x"}]')""",
        "messages[2].typ",
    ),
    "bulk no array": ("""select enqueue_messages('{"queue": "default"}')""", "messages"),
}


@pytest.mark.parametrize("name", SQL)
def test_sql_names_the_argument_too(database, name):
    statement, field = SQL[name]
    with database.connect() as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)
    assert caught.value.sqlstate == "PH001"
    assert caught.value.diag.column_name == field
    assert database.query("select 1 from message_queue") == []


def test_enqueue_on_a_callers_connection_refuses_with_the_field(database):
    with psycopg.connect(database.url) as connection:
        for options, field in [
            ({"priority": 0}, "priority"),
            ({"conversation_key": "a\x00"}, "conversation_key"),
            ({"other": {1}}, "options"),
            ({"delay": "soon"}, "delay"),
            ({"delay": -1}, "delay"),
            ({"delay": 1e300}, "delay"),
            ({"delay": float("nan")}, "delay"),
        ]:
            with pytest.raises(InvalidArgument) as caught:
                packhorse.enqueue(connection, "note", {"a": 1}, **options)
            assert caught.value.field == field
        packhorse.enqueue(connection, "note", {"a": 1})
