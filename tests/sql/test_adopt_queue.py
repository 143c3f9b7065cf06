"""A queue table of another system: read where it is, imported exactly once, accounted for, left as it was
(SPEC O8, P1, P4).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from packhorse.worker.adopt import importing
from packhorse.worker.adopt.adoption import Order, adopt, look
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.db import migrate, migration_files, schema_version
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.db.names import Names
from packhorse.worker.errors import AdoptionRefused, StoreError
from tests.sql.parking import in_background
from tests.support import old_queue
from tests.support.databases import lent, migrators
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow  # some of its tests apply all migrations
DOCS = Path(__file__).parents[2] / "docs" / "adopting.md"
NAMES = tuple(migration.name for migration in migration_files.available())


#: A test of the call that applies all migrations. Any other begins behind them, as a call that ended there:
#: it spares each test most of a second of the processor.
first_call = pytest.mark.usefixtures("nothing_of_ours")


@pytest.fixture
def nothing_of_ours() -> None:
    """The database of this test has no schema; see `old`."""


@pytest.fixture
def old(request: pytest.FixtureRequest, any_server: Server) -> Iterator[Database]:
    """A database with a home-made queue, and with our schema unless the test is a first_call."""
    is_first = "nothing_of_ours" in request.fixturenames
    database = any_server.create_empty_database() if is_first else any_server.create_database()
    old_queue.make(database)
    yield from lent(database)


@pytest.fixture
def connection(old: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(old)


def numbers(database: Database, table: str = "packhorse.message_queue") -> list[int]:
    return [row[0] for row in database.query(f"select (payload ->> 'n')::integer from {table} order by id")]


def state(database: Database, table: str = "public.message_queue") -> object:
    """Rows of a table: how many, and a checksum of their contents, places and versions."""
    return database.query(
        f"select count(*), md5(string_agg(t.ctid::text || t.xmin::text || t::text, '|' order by t.ctid)) from {table} t"
    )


def definitions(database: Database) -> list[tuple]:
    """What there is in public: relations with rights, columns, constraints, indexes, triggers, functions,
    sequences.
    """
    return database.query("""
        select 'relation', c.relname::text, concat(c.relkind, c.relacl, c.relrowsecurity, c.reloptions) from pg_class c
          where c.relnamespace = 'public'::regnamespace
        union all select 'column', a.attrelid::regclass::text || a.attname, format_type(a.atttypid, a.atttypmod) || a.attnotnull from pg_attribute a
          join pg_class c on c.oid = a.attrelid where c.relnamespace = 'public'::regnamespace
        union all select 'constraint', conname, pg_get_constraintdef(oid) from pg_constraint where connamespace = 'public'::regnamespace
        union all select 'index', indexname, indexdef from pg_indexes where schemaname = 'public'
        union all select 'trigger', tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
          and tgrelid = any (select oid from pg_class where relnamespace = 'public'::regnamespace)
        union all select 'routine', proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace
        union all select 'sequence', sequencename, last_value::text from pg_sequences where schemaname = 'public'
        order by 1, 2, 3""")


def documented(beginning: str) -> str:
    """The statement of docs/adopting.md that begins like this."""
    return next(
        part for part in re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL) if beginning in part
    )


# -- what rows become ----------------------------------------------------------------------------
@first_call
def test_every_row_becomes_what_it_should_and_the_account_adds_up(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 100)
    done = adopt(connection, Order())
    assert done.account == {
        "rows": 100,
        "messages": 60,
        "dead_letters": 20,
        "undecodable": 0,
        "finished": 20,
        "missing": 0,
        "later": 0,
        "came_back": 0,
    }
    assert done.applied == NAMES
    schema_version.check(connection)
    assert numbers(old) == [n for n in range(100) if n % 10 < 6]
    assert numbers(old, "packhorse.dead_letters") == [n for n in range(100) if n % 10 in (6, 7)]
    row = old.query(
        "select queue, message_type, conversation_key, attempt, max_attempts, created_at < now() - interval '1 hour', run_at <= now(), state "
        "from packhorse.message_queue where payload ->> 'n' = '11'"
    )
    assert row == [("chat", "send_reply", "c1", 2, 3, True, True, "pending")]
    assert old.query("select name, paused_at from packhorse.queues order by 1") == [
        ("chat", None),
        ("default", None),
        ("mail", None),
    ]


@first_call
def test_what_the_old_system_has_is_the_same_afterwards(
    connection: DeadlineConnection, old: Database
) -> None:
    """Rows, their places and versions; columns, indexes, rights, triggers, functions, the next number of the
    sequence.
    """
    old_queue.fill(old, 30)
    old.query("insert into customers (name) values ('Ada')")
    before = [state(old), state(old, "public.customers"), definitions(old)]
    adopt(connection, Order(batch=7))
    adopt(connection, Order())
    assert [state(old), state(old, "public.customers"), definitions(old)] == before
    assert old.value("select count(*) from get_next_queue_message('mail')") == 1
    assert old.value("select count(*) from packhorse.message_queue") == 18


@first_call
def test_the_plan_says_what_rows_become_and_changes_nothing(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 10)
    before = state(old), definitions(old)
    plan = look(connection, Order())
    assert plan.problems == () and plan.begun is None
    assert {(row["status"], row["rows"], row["fate"]) for row in plan.statuses} == {
        ("pending", 4, "pending"),
        ("queued", 1, "pending"),
        ("retry", 1, "pending"),
        ("failed", 2, "dead"),
        ("completed", 2, "finished"),
    }
    assert plan.mapping is not None and plan.mapping.columns["run_at"] == ("scheduled_at", "next_retry_at")
    assert (state(old), definitions(old)) == before
    assert old.value("select to_regnamespace('packhorse') is null") is True
    adopt(connection, Order())
    begun = look(connection, Order(choices=Choices(values={"priority": "1"}))).begun
    assert begun is not None and begun["finished_at"] is not None
    assert old.value("select choices -> 'values' from packhorse.packhorse_import_plan") == {}


@first_call
def test_running_and_unknown_states_need_a_decision(connection: DeadlineConnection, old: Database) -> None:
    old.query(
        "insert into message_queue (queue_name, job_type, payload, status) values ('mail', 'a', '{}', 'processing'), ('mail', 'a', '{}', 'Bizarre')"
    )
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any(
        "status: 1 rows are 'processing'. Stop the old workers" in problem
        for problem in refused.value.problems
    )
    assert any("'Bizarre', which nobody has explained" in problem for problem in refused.value.problems)
    assert old.value("select to_regnamespace('packhorse') is null") is True
    done = adopt(
        connection, Order(choices=Choices(words={"status": {"processing": "pending", "bizarre": "dead"}}))
    )
    assert (done.account["messages"], done.account["dead_letters"]) == (1, 1)


def test_a_row_that_never_had_a_state_has_finished_when_it_has_a_time_of_it(any_database: Database) -> None:
    any_database.query(
        "create table message_queue (id bigserial primary key, task text, kwargs json, done_at timestamptz)"
    )
    any_database.query(
        "insert into message_queue (task, kwargs, done_at) values ('t', '{\"n\": 1}', now()), ('t', '{\"n\": 2}', null)"
    )
    connection = connect(any_database.admin_url, deadline_seconds=60)
    account = adopt(connection, Order()).account
    connection.close()
    assert (account["finished"], account["messages"]) == (1, 1)
    assert numbers(any_database) == [2]


def test_choices_that_cannot_be_are_named_all_at_once(connection: DeadlineConnection, old: Database) -> None:
    old.query("alter table message_queue drop column job_type")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(
            connection,
            Order(choices=Choices(columns={"payload": "nothing", "colour": "x"}, values={"priority": "1"})),
        )
    text = "\n".join(refused.value.problems)
    for part in (
        "message_type: no column says",
        "the table has no column 'nothing'",
        "colour: not a field of a message",
    ):
        assert part in text
    done = adopt(connection, Order(choices=Choices(values={"message_type": "handle"})))
    assert done.account["rows"] == 0


HOSTILE = [
    ("text", "not json at all"),
    ("array", "[1, 2]"),
    ("string", '"x"'),
    ("nul", '{"a": "\\u0000"}'),
    ("surrogate", '{"a": "\\ud800"}'),
    ("nan", '{"a": NaN}'),
    ("deep", '{"a":' * 20000 + "1" + "}" * 20000),
    ("huge", '{"a": "' + "x" * 2_000_000 + '"}'),
    ("giant", "y" * 5_000_000),
    ("script", "'; drop table customers; --"),
]


def test_hostile_contents_become_dead_letters_one_by_one_and_nothing_else_suffers(
    any_database: Database,
) -> None:
    database = any_database
    database.query("""create table message_queue (id uuid primary key default gen_random_uuid(), "queue" text, type text, body text, state text, priority text,
                        "scheduled for" text, run_at timestamptz, attempts text, conversation_key text, created_at timestamp, "100%" text, n serial,
                        request_id text default repeat('r', 600))""")
    insert = 'insert into message_queue (queue, type, body, state, priority, run_at, attempts, conversation_key, "100%%") values (%s, %s, %s, %s, %s, %s, %s, %s, %s)'
    good = ("q", "t", '{"ok": true}', "pending", "high", None, "1", "c", "z")
    for name, body in HOSTILE:
        database.query(insert, "q", "t", body, "pending", "5", None, "0", name, "p")
        database.query(insert, *good)
    database.query(insert, "q", "bad type!", "{}", "pending", "-7", "2030-01-01", "many", "", "p")
    database.query(insert, "q", "t", "{}", "pending", "99999999999999", "infinity", "-3", "k" * 600, "p")
    database.query(insert, "q", "t", "{}", "pending", None, "-infinity", None, "k", "p")
    database.query(insert, "q", "t", '{"far": 1}', "pending", "nan", "4000-01-01 BC", "1e400", "k", "p")
    before = state(database)
    connection = connect(database.admin_url, deadline_seconds=60)
    # a queue or type that is no name is said before anything is imported
    with pytest.raises(AdoptionRefused, match=r"1 reason"):
        adopt(connection, Order())
    done = adopt(connection, Order(choices=Choices(words={"message_type": {"bad type!": "fine"}}), batch=7))
    connection.close()
    assert done.account == {
        "rows": 24,
        "messages": 12,
        "dead_letters": 0,
        "undecodable": 12,
        "finished": 0,
        "missing": 0,
        "later": 0,
        "came_back": 0,
    }
    assert state(database) == before
    assert (
        database.value(
            "select count(*) from packhorse.message_queue where payload = '{\"ok\": true}' and priority = 3"
        )
        == 10
    )
    kept = {
        row[0]: (row[1], row[2])
        for row in database.query(
            "select conversation_key, payload ->> 'legacy_payload', error_message from packhorse.dead_letters"
        )
    }
    for name, body in HOSTILE:
        assert kept[name][0] == (body if len(body) <= 1_000_000 else None), name
        assert (
            "payload" in kept[name][1]
            or "json" in kept[name][1].lower()
            or "stack depth" in kept[name][1]
            or "unicode" in kept[name][1].lower()
        ), kept[name][1]
    assert (
        database.value(
            "select count(*) from packhorse.message_queue where message_type = 'fine' and run_at = '2030-01-01' and attempt = 0"
        )
        == 1
    )
    assert (
        database.value(
            "select count(*) from packhorse.message_queue where payload ? 'far' and run_at = '1970-01-01'"
        )
        == 1
    )
    assert database.query("select distinct length(correlation_id) from packhorse.all_messages") == [(500,)]


# -- names of tables and columns ------------------------------------------------------------------
def test_columns_with_strange_names_become_the_keys_of_a_payload(
    connection: DeadlineConnection, old: Database
) -> None:
    old.query('alter table message_queue add column "50% {off}; ""x""" text, add column phone text')
    old.query(
        "insert into message_queue (queue_name, job_type, \"50% {off}; \"\"x\"\"\", phone) values ('mail', 'a', 'v%s', '+250')"
    )
    done = adopt(connection, Order(choices=Choices(columns={"payload": 'phone,50% {off}; "x"'})))
    assert done.account["messages"] == 1
    assert old.value("select payload from packhorse.message_queue") == {
        "phone": "+250",
        '50% {off}; "x"': "v%s",
    }


@pytest.mark.parametrize(
    ("schema", "table"),
    [("carrier", "jobs"), ('An "old" queue', "100% {Jobs}; --"), ("packhorse.", "Message Queue%s")],
)
def test_a_queue_of_any_name_is_read_where_it_is(
    connection: DeadlineConnection, old: Database, schema: str, table: str
) -> None:
    quoted = ['"' + name.replace('"', '""') + '"' for name in (schema, table)]
    place = ".".join(quoted)
    old_queue.fill(old, 20)
    with old.connect(admin=True) as owner:
        owner.execute(f"create schema {quoted[0]}")
        owner.execute(
            f'alter table message_queue rename column status to "Status 1%"; alter table message_queue rename to {quoted[1]}'
        )
        owner.execute(f"alter table {quoted[1]} set schema {quoted[0]}")
    order = Order(source=(schema, table), choices=Choices(columns={"status": "Status 1%"}))
    before = state(old, place)
    assert adopt(connection, order).account["messages"] == 12
    assert state(old, place) == before
    assert numbers(old) == [n for n in range(20) if n % 10 < 6]
    assert adopt(connection, Order(source=(schema, table))).account["later"] == 0


@first_call
def test_the_queue_may_have_a_schema_of_any_name(old: Database) -> None:
    old_queue.fill(old, 10)
    connection = connect(old.admin_url, deadline_seconds=60, names=Names('Our "own" queue'))
    done = adopt(connection, Order())
    assert done.account["messages"] == 6 and adopt(connection, Order()).account == done.account
    connection.close()
    assert len(numbers(old, '"Our ""own"" queue".message_queue')) == 6
    assert old.query(
        'select outcome, count(*) from "Our ""own"" queue".packhorse_import group by 1 order by 1'
    ) == [("dead_letter", 2), ("message", 6)]
    assert old.value("select to_regnamespace('packhorse') is null") is True


# -- exactly once, in order -----------------------------------------------------------------------
def test_order_of_conversations_is_the_order_in_which_rows_were_made_whatever_their_keys(
    any_database: Database,
) -> None:
    any_database.query(
        "create table message_queue (id uuid primary key default gen_random_uuid(), type text, payload jsonb, conversation_id text, created_at timestamptz)"
    )
    any_database.query(
        "insert into message_queue (type, payload, conversation_id, created_at) select 't', jsonb_build_object('n', n), 'c', now() - make_interval(secs => n) "
        "from generate_series(1, 200) n"
    )
    connection = connect(any_database.admin_url, deadline_seconds=60)
    adopt(connection, Order(batch=7))
    connection.close()
    assert numbers(any_database) == list(range(200, 0, -1))
    claim = "select (c.payload ->> 'n')::integer from packhorse.claim_messages(gen_random_uuid(), array['default'], 5, '1 minute') c"
    assert any_database.value(claim) == 200


def test_what_is_enqueued_while_rows_are_imported_comes_after_them(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 20)
    migrate.up(connection)

    def enqueue(count: int) -> None:
        old.query(
            "select packhorse.enqueue_message('mail', 'send_reply', '{\"n\": 1000}', p_conversation_key => 'c0')"
        )

    adopt(connection, Order(batch=5), report=enqueue)
    found = numbers(old)
    assert found[:12] == [n for n in range(20) if n % 10 < 6] and set(found[12:]) == {1000}


def test_a_queue_at_work_keeps_its_messages_and_gets_the_rows_as_well(
    connection: DeadlineConnection, old: Database
) -> None:
    migrate.up(connection)
    old.query(
        "select packhorse.declare_queue('mail'), packhorse.enqueue_message('mail', 'send_reply', '{\"n\": -1}')"
    )
    old_queue.fill(old, 10)
    done = adopt(connection, Order())
    assert done.applied == () and done.account["messages"] == 6
    assert numbers(old) == [-1, 0, 1, 2, 3, 4, 5]


@first_call
def test_several_at_once_import_each_row_once(old: Database) -> None:
    old_queue.fill(old, 300)
    connections = [connect(old.admin_url, deadline_seconds=60) for _ in range(3)]
    done = [
        future.result(100)
        for future in [in_background(adopt, connection, Order(batch=5)) for connection in connections]
    ]
    for connection in connections:
        connection.close()
    assert all(found.account["messages"] == 180 and found.account["missing"] == 0 for found in done)
    assert numbers(old) == [n for n in range(300) if n % 10 < 6]
    assert sum(len(found.applied) for found in done) == len(NAMES)
    assert old.query("select name from packhorse.queues where paused_at is not null") == []


def test_rows_that_another_call_found_after_the_last_batch_are_imported(
    connection: DeadlineConnection, old: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_queue.fill(old, 10)
    finish, seen = importing._finish, []

    def after_another(used: DeadlineConnection, table: importing.Legacy) -> dict[str, int]:
        if not seen:
            old.query(
                "insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', '{\"n\": 100}')"
            )
            with connect(old.admin_url, deadline_seconds=60) as other:
                assert table.fill(other) == 1
        seen.append(finish(used, table))
        return seen[-1]

    monkeypatch.setattr(importing, "_finish", after_another)
    account = adopt(connection, Order()).account
    assert [found["missing"] for found in seen] == [1, 0] and account["messages"] == 7
    assert numbers(old)[-1] == 100


class Killed(Exception):
    """What ends the importer in the middle."""


def test_an_import_that_ends_in_the_middle_holds_its_queues_and_goes_on_where_it_was(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 100)
    batches = []

    def die(count: int) -> None:
        batches.append(count)
        if len(batches) == 3:
            raise Killed

    with pytest.raises(Killed):
        adopt(connection, Order(batch=10), report=die)
    assert len(numbers(old)) + len(numbers(old, "packhorse.dead_letters")) == 30
    assert set(old.query("select name, paused_by from packhorse.queues where name <> 'default'")) == {
        ("mail", importing.OPERATOR),
        ("chat", importing.OPERATOR),
    }
    assert (
        old.query(
            "select * from packhorse.claim_messages(gen_random_uuid(), array['mail', 'chat'], 5, '1 minute')"
        )
        == []
    )
    done = adopt(connection, Order())
    assert done.account["missing"] == 0
    assert numbers(old) == [n for n in range(100) if n % 10 < 6]
    assert numbers(old, "packhorse.dead_letters") == [n for n in range(100) if n % 10 in (6, 7)]
    assert old.query("select name from packhorse.queues where paused_at is not null") == []


@first_call
def test_a_queue_that_an_operator_paused_stays_paused(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 20)

    def pause(line: str) -> None:
        if line == f"applied {NAMES[-1]}":
            old.query("select packhorse.declare_queue('mail'), packhorse.pause_queue('mail', 'Grace')")

    adopt(connection, Order(), step=pause)
    assert old.query("select name, paused_by from packhorse.queues where paused_at is not null") == [
        ("mail", "Grace")
    ]


# -- called again --------------------------------------------------------------------------------
def test_an_old_producer_goes_on_and_a_later_call_imports_what_came(
    connection: DeadlineConnection, old: Database
) -> None:
    """Its role, search path and statement are what they were; the queues do not stand still for it."""
    old_queue.fill(old, 20)
    old.query(
        "do $$ begin create role packhorse_old_app login; exception when duplicate_object then null; end $$"
    )
    old.query(
        "grant insert on message_queue to packhorse_old_app; grant usage on sequence message_queue_id_seq to packhorse_old_app"
    )
    insert = (
        "insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', '{\"n\": 1000}')"
    )
    adopt(connection, Order())
    with psycopg.connect(old.server.url(old.name, "packhorse_old_app"), autocommit=True) as app:
        app.execute(insert)
    paused: list[tuple] = []
    again = adopt(
        connection,
        Order(),
        report=lambda count: paused.extend(
            old.query("select name from packhorse.queues where paused_at is not null")
        ),
    )
    assert again.applied == () and (again.account["rows"], again.account["messages"]) == (21, 13)
    assert (
        old.value("select count(*) from packhorse.message_queue where message_type = 'late'") == 1
        and paused == []
    )
    assert adopt(connection, Order()).account == again.account


def test_producers_that_insert_while_it_happens_lose_nothing(
    connection: DeadlineConnection, old: Database
) -> None:
    """The same connection inserts before, during and after the import."""
    old_queue.fill(old, 50)
    stop, made = threading.Event(), []

    def produce() -> None:
        with old.connect(admin=True) as app:
            while not stop.is_set():
                app.execute(
                    "insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', jsonb_build_object('made', %s::integer))",
                    (len(made),),
                )
                made.append(len(made))
                stop.wait(0.005)  # a producer, not a flood

    producer = in_background(produce)
    adopt(connection, Order(batch=10))
    assert (
        not stop.is_set() and old.query("select name from packhorse.queues where paused_at is not null") == []
    )
    stop.set()
    producer.result(20)
    again = adopt(connection, Order())
    assert again.account["later"] == 0
    imported = old.query(
        "select (payload ->> 'made')::integer from packhorse.message_queue where message_type = 'late' order by id"
    )
    assert [row[0] for row in imported] == made
    assert len(made) > 10


def test_what_the_operator_said_is_remembered_and_can_be_changed(
    connection: DeadlineConnection, old: Database
) -> None:
    insert = (
        "insert into message_queue (queue_name, job_type, payload, status) values ('My Queue', 'a', '{}', %s)"
    )
    old.query(insert, "processing")
    first = Choices(
        values={"priority": "2"}, words={"status": {"processing": "pending"}, "queue": {"My Queue": "mine"}}
    )
    adopt(connection, Order(choices=first))
    old.query(insert, "processing")
    assert adopt(connection, Order()).account["messages"] == 2
    old.query(insert, "processing")
    old.query(insert, "odd")
    adopt(
        connection,
        Order(
            choices=Choices(
                columns={"priority": "priority"}, words={"status": {"processing": "dead", "odd": "pending"}}
            )
        ),
    )
    old.query(insert, "processing")
    account = adopt(connection, Order()).account
    assert (account["messages"], account["dead_letters"]) == (3, 2)
    assert old.query("select queue, priority from packhorse.message_queue order by id") == [
        ("mine", 2),
        ("mine", 2),
        ("mine", 5),
    ]


@first_call
def test_rows_that_the_old_side_finishes_or_deletes_meanwhile_are_not_imported(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 20)

    def change(line: str) -> None:
        if line == f"applied {NAMES[-1]}":
            old.query("update public.message_queue set status = 'completed' where payload ->> 'n' = '0'")

    def delete(count: int) -> None:
        old.query("delete from public.message_queue where payload ->> 'n' = '15'")

    done = adopt(connection, Order(batch=5), step=change, report=delete)
    assert done.account == {
        "rows": 19,
        "messages": 10,
        "dead_letters": 4,
        "undecodable": 0,
        "finished": 5,
        "missing": 0,
        "later": 0,
        "came_back": 0,
    }
    assert old.query("select legacy_id, outcome from packhorse.packhorse_import where outcome = 'gone'") == [
        ("16", "gone")
    ]


def test_a_better_key_that_the_table_gets_later_makes_no_row_new(any_database: Database) -> None:
    any_database.query(
        "create table message_queue (code text not null unique, n bigserial, type text, payload jsonb)"
    )
    insert = "insert into message_queue (code, type, payload) select 'x' || n, 't', jsonb_build_object('n', n) from generate_series(%s::integer, %s::integer) n"
    any_database.query(insert, 1, 3)
    connection = connect(any_database.admin_url, deadline_seconds=60)
    adopt(connection, Order())
    any_database.query("alter table message_queue add primary key (n)")
    any_database.query(insert, 4, 4)
    adopt(connection, Order())
    assert numbers(any_database) == [1, 2, 3, 4]
    any_database.query("alter table message_queue drop column code")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    connection.close()
    assert refused.value.problems == [
        "public.message_queue has no column code any more, by which the import knows its rows"
    ]


# -- locks and rights ----------------------------------------------------------------------------
def test_locks_of_old_workers_and_long_readers_are_not_waited_for(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 10)
    with old.connect(admin=True) as holder, holder.transaction():
        holder.execute("select * from message_queue for update")
        assert adopt(connection, Order()).account["messages"] == 6
        holder.execute("update message_queue set attempts = attempts + 1")


@first_call
def test_rows_that_a_policy_hides_are_an_error_and_not_lost(old: Database) -> None:
    """A role that owns the table, but whom FORCE ROW LEVEL SECURITY holds, would import what it sees and call
    it all.
    """
    old_queue.fill(old, 10)
    old.query(
        "do $$ begin create role packhorse_migrator login createrole; exception when duplicate_object then null; end $$"
    )
    old.query(
        f"alter role packhorse_migrator createrole; grant create on database {old.name} to packhorse_migrator"
    )
    old.query("alter table message_queue owner to packhorse_migrator")
    old.query(
        "alter table message_queue enable row level security; alter table message_queue force row level security"
    )
    old.query("create policy own_rows on message_queue using (queue_name = 'mail')")
    connection = connect(old.server.url(old.name, "packhorse_migrator"), deadline_seconds=60)
    with pytest.raises(StoreError, match="row-level security"):
        adopt(connection, Order())
    assert old.value("select to_regnamespace('packhorse') is null") is True
    old.query("alter table message_queue no force row level security")
    assert adopt(connection, Order()).account["messages"] == 6
    old.query("alter table message_queue force row level security")
    with pytest.raises(StoreError, match="row-level security"):
        adopt(connection, Order())
    connection.close()


@first_call
def test_to_read_the_old_table_is_enough(old: Database) -> None:
    """The old table is somebody else's; who imports needs no more of it than SELECT."""
    old_queue.fill(old, 10)
    old.query(
        "do $$ begin create role packhorse_stranger login createrole; exception when duplicate_object then null; end $$"
    )
    old.query(
        f"grant create on database {old.name} to packhorse_stranger; grant select on message_queue to packhorse_stranger"
    )
    connection = connect(old.server.url(old.name, "packhorse_stranger"), deadline_seconds=60)
    assert adopt(connection, Order()).account["messages"] == 6
    connection.close()


def test_nobody_else_reads_the_ledger(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    adopt(connection, Order())
    ours = "select relname from pg_class where relnamespace = 'packhorse'::regnamespace and relname in ('packhorse_import', 'packhorse_import_plan')"
    assert len(old.query(ours)) == 2 and old.query(f"{ours} and not relrowsecurity") == []
    for role in ("packhorse_worker", "packhorse_producer"):
        assert (
            old.value(
                "select has_table_privilege(%s, 'packhorse.packhorse_import', 'select, insert, update, delete')",
                role,
            )
            is False
        )
        assert (
            old.value(
                "select has_table_privilege(%s, 'packhorse.packhorse_import_plan', 'select, insert, update, delete')",
                role,
            )
            is False
        )
    with old.connect(admin=True) as reader:
        reader.execute("set role packhorse_reader")
        assert reader.execute("select * from packhorse.packhorse_import").fetchall() == []


@first_call
def test_waiting_importers_hold_no_snapshot(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    with old.connect(admin=True) as holder, holder.transaction():
        assert holder.execute(
            "select pg_try_advisory_xact_lock(hashtext('packhorse migrate'), hashtext('packhorse'))"
        ).fetchone() == (True,)
        result = in_background(adopt, connection, Order())
        pid = connection.info.backend_pid
        wait_until(
            lambda: old.query(
                "select 1 from pg_stat_activity where pid = %s and query = 'COMMIT' and state = 'idle' and backend_xmin is null",
                pid,
            )
        )
        assert not result.done()
    assert result.result(60).account["messages"] == 6


# -- the way back, and what the docs say ----------------------------------------------------------
def test_on_the_way_back_the_old_system_does_not_repeat_what_was_done(
    connection: DeadlineConnection, old: Database
) -> None:
    old_queue.fill(old, 10)
    adopt(connection, Order())
    claim = "select packhorse.complete_messages(array[c.id], array[c.lease_token]) from packhorse.claim_messages(gen_random_uuid(), array['chat'], 2, '1 minute') c"
    old.query(claim)
    done = [row[0] for row in old.query("select (payload ->> 'n')::integer from packhorse.message_archive")]
    assert len(done) == 2
    old.query(documented("update public.message_queue"))
    assert sorted(
        row[0]
        for row in old.query(
            "select (payload ->> 'n')::integer from public.message_queue where status = 'completed'"
        )
    ) == sorted([*done, 8, 9])
    left = adopt(connection, Order()).account  # their messages are what they were
    assert (left["messages"], left["finished"], left["later"]) == (6, 2, 0)
    assert old.value("select count(*) from get_next_queue_message('mail')") == 1
    old.query("select packhorse.enqueue_message('mail', 'send_reply', '{\"n\": -1}')")
    old.query(documented("delete from packhorse.message_queue"))
    assert (numbers(old), numbers(old, "packhorse.dead_letters")) == ([-1], [])
    anew = adopt(connection, Order(choices=Choices(words={"status": {"processing": "finished"}}))).account
    assert (anew["messages"], anew["dead_letters"]) == (3, 2)
    assert numbers(old)[0] == -1 and not set(done) & set(numbers(old))


@pytest.mark.parametrize("made_again", [False, True])
def test_a_ledger_of_messages_that_were_taken_back_is_refused(
    connection: DeadlineConnection, old: Database, made_again: bool
) -> None:
    """`migrate down` leaves it: nothing would be imported again, and nothing said."""
    old_queue.fill(old, 10)
    adopt(connection, Order())
    while migrate.down(connection):
        pass
    if made_again:
        migrate.up(connection)
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    text, _, statement = refused.value.problems[0].partition(": drop table ")
    assert "are gone with the tables of the queue" in text
    old.query(f"drop table {statement}")
    assert adopt(connection, Order()).account["messages"] == 6
    assert numbers(old) == [0, 1, 2, 3, 4, 5]


def test_ids_of_webhooks_go_along_as_the_docs_say(connection: DeadlineConnection, old: Database) -> None:
    old.query(
        "insert into public.processed_messages values ('wamid.1', now()), ('wamid.2', now() - interval '30 days')"
    )
    adopt(connection, Order())
    old.query(documented("insert into packhorse.processed_messages"))
    assert old.query("select packhorse.is_new_message('wamid.1'), packhorse.is_new_message('wamid.2')") == [
        (False, True)
    ]


def test_the_docs_find_what_became_of_a_row(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    adopt(connection, Order())
    assert [row[:2] for row in old.query(documented("select legacy_id"))] == [
        ("7", "dead_letter"),
        ("8", "dead_letter"),
    ]


# -- refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            "create table message_queue (type text, payload jsonb)",
            "public.message_queue has no column that alone tells its rows apart: alter table",
        ),
        (
            "create table message_queue (a int, b int, type text, payload jsonb, primary key (a, b))",
            "no column that alone tells its rows apart",
        ),
        (
            "create view message_queue as select 1 as id",
            "from: there is no table public.message_queue. Say --from SCHEMA.TABLE",
        ),
        (
            "select 1",
            "from: there is no table public.message_queue. Say --from SCHEMA.TABLE, or `packhorse migrate up`",
        ),
        (
            "create table message_queue (id bigserial primary key, type text, payload jsonb, lease_token bigint)",
            "from: public.message_queue is a queue of Packhorse itself, of an unreleased version; there is no upgrade from it",
        ),
    ],
)
def test_what_is_no_queue_of_others_is_refused(
    any_empty_database: Database, statement: str, problem: str
) -> None:
    any_empty_database.query(statement)
    connection = connect(any_empty_database.admin_url, deadline_seconds=60)
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    connection.close()
    assert any(problem in found for found in refused.value.problems), refused.value.problems
    assert any_empty_database.value("select to_regnamespace('packhorse') is null") is True


def test_a_table_in_our_own_schema_is_refused(connection: DeadlineConnection, old: Database) -> None:
    migrate.up(connection)
    for table in ("message_queue", "dead_letters"):
        with pytest.raises(AdoptionRefused) as refused:
            adopt(connection, Order(source=("packhorse", table)))
        assert (
            "from: packhorse is Packhorse's own schema" in refused.value.problems[0]
            and "PACKHORSE_DB_SCHEMA" in refused.value.problems[0]
        )


def test_a_second_table_is_refused(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    adopt(connection, Order())
    old.query(
        "create schema second; create table second.jobs (id bigserial primary key, type text, payload jsonb)"
    )
    old.query("insert into second.jobs (type, payload) values ('t', '{}')")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order(source=("second", "jobs")))
    assert refused.value.problems == [
        "from: an import of public.message_queue has begun here. Say --from public.message_queue"
    ]
    assert len(numbers(old)) == 6
