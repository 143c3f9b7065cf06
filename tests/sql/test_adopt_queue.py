"""A queue table of another system: moved aside, imported exactly once, accounted for, with a way back (SPEC O8, P1, P4)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from packhorse.worker.adopt import adoption, importing
from packhorse.worker.adopt.adoption import Order, adopt, look
from packhorse.worker.adopt.mapping import Choices
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection, connect
from packhorse.worker.errors import AdoptionRefused, ConfigError, StoreConflict, StoreError
from packhorse.worker.store.installation import migration_script
from tests.sql.parking import in_background
from tests.support import old_queue
from tests.support.databases import migrators
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow  # each test applies all migrations
DOCS = Path(__file__).parents[2] / "docs" / "adopting.md"
NAMES = tuple(migration.name for migration in migrate.available())


@pytest.fixture
def old(any_empty_database: Database) -> Database:
    """A database with a home-made queue and nothing of ours."""
    old_queue.make(any_empty_database)
    return any_empty_database


@pytest.fixture
def connection(old: Database) -> Iterator[DeadlineConnection]:
    yield from migrators(old)


def numbers(database: Database, table: str) -> list[int]:
    return [row[0] for row in database.query(f"select (payload ->> 'n')::integer from {table} order by id")]


def test_every_row_becomes_what_it_should_and_the_account_adds_up(connection: DeadlineConnection, old: Database) -> None:
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
    migrate.check(connection)
    assert numbers(old, "message_queue") == [n for n in range(100) if n % 10 < 6]
    assert numbers(old, "dead_letters") == [n for n in range(100) if n % 10 in (6, 7)]
    row = old.query(
        "select queue, message_type, conversation_key, attempt, max_attempts, created_at < now() - interval '1 hour', run_at <= now(), state "
        "from message_queue where payload ->> 'n' = '11'"
    )
    assert row == [("chat", "send_reply", "c1", 2, 3, True, True, "pending")]
    assert old.query("select name, paused_at from queues order by 1") == [("chat", None), ("default", None), ("mail", None)]


def test_the_application_keeps_what_is_its_own_and_the_old_table_stays_whole(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 30)
    old.query("insert into customers (name) values ('Ada')")
    before = old.query("select * from message_queue order by id")
    done = adopt(connection, Order())
    assert old.query("select * from packhorse_legacy.message_queue order by id") == before
    assert old.value("select name from customers") == "Ada"
    assert set(done.moved) == {"message_queue", "processed_messages", "get_next_queue_message(text)", "cleanup_old_messages()"}


def test_the_plan_names_what_moves_what_depends_on_it_and_what_rows_become_and_changes_nothing(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    plan = look(connection, Order())
    assert plan.case == "move" and plan.problems == ()
    assert {(row["kind"], row["name"]) for row in plan.moves} == {
        ("table", "message_queue"),
        ("table", "processed_messages"),
        ("routine", "get_next_queue_message(text)"),
        ("routine", "cleanup_old_messages()"),
    }
    assert {(row["kind"], row["name"]) for row in plan.dependents} == {
        ("view", "open_messages"),
        ("trigger", "message_queue_note"),
        ("foreign key", "receipts.receipts_message_fkey"),
        ("routine", "count_open()"),
    }
    assert {(row["status"], row["rows"], row["fate"]) for row in plan.statuses} == {
        ("pending", 4, "pending"),
        ("queued", 1, "pending"),
        ("retry", 1, "pending"),
        ("failed", 2, "dead"),
        ("completed", 2, "finished"),
    }
    assert plan.mapping is not None and plan.mapping.columns["run_at"] == ("scheduled_at", "next_retry_at")
    assert old.value("select to_regnamespace('packhorse_legacy') is null and to_regclass('packhorse_migrations') is null") is True


def test_a_migration_that_failed_half_way_is_adopted_as_well(connection: DeadlineConnection, old: Database) -> None:
    """`migrate up` is all or nothing; the script of `migrate up --sql`, in other hands, records two migrations and stops at the old table."""
    old_queue.fill(old, 10)
    with pytest.raises(StoreError, match=r"message_queue.* already exists"):
        migrate.up(connection)
    assert migrate.applied(connection) == {}
    connection.execute(migration_script("public").partition(f"-- {NAMES[2]}\n")[0], prepare=False)
    assert len(migrate.applied(connection)) == 2
    done = adopt(connection, Order())
    assert done.applied == NAMES[2:] and done.account is not None and done.account["messages"] == 6


def test_running_and_unknown_states_need_a_decision(connection: DeadlineConnection, old: Database) -> None:
    old.query(
        "insert into message_queue (queue_name, job_type, payload, status) values ('mail', 'a', '{}', 'processing'), ('mail', 'a', '{}', 'Bizarre')"
    )
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any("status: 1 rows are 'processing'. Stop the old workers" in problem for problem in refused.value.problems)
    assert any("'Bizarre', which nobody has explained" in problem for problem in refused.value.problems)
    assert old.value("select to_regclass('public.message_queue') is not null and to_regnamespace('packhorse_legacy') is null") is True
    done = adopt(connection, Order(choices=Choices(words={"status": {"processing": "pending", "bizarre": "dead"}})))
    assert done.account is not None and (done.account["messages"], done.account["dead_letters"]) == (1, 1)


def test_what_may_belong_to_the_application_is_not_moved_unless_it_is_named(connection: DeadlineConnection, old: Database) -> None:
    old.query("create table workers (id bigserial primary key, name text)")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any(
        "table workers has a name of ours" in problem and "--move workers" in problem and "PACKHORSE_DB_SCHEMA" in problem
        for problem in refused.value.problems
    )
    assert "workers" in adopt(connection, Order(moved=("workers",))).moved
    assert old.value("select to_regclass('packhorse_legacy.workers') is not null") is True


def test_choices_that_cannot_be_are_named_all_at_once(connection: DeadlineConnection, old: Database) -> None:
    old.query("alter table message_queue drop column job_type")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order(choices=Choices(columns={"payload": "nothing", "colour": "x"}, values={"priority": "1"})))
    text = "\n".join(refused.value.problems)
    for part in ("message_type: no column says", "the table has no column 'nothing'", "colour: not a field of a message"):
        assert part in text
    done = adopt(connection, Order(choices=Choices(values={"message_type": "handle"})))
    assert done.account is not None and done.account["rows"] == 0


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


def test_hostile_contents_become_dead_letters_one_by_one_and_nothing_else_suffers(any_empty_database: Database) -> None:
    any_empty_database.query("""create table message_queue (id uuid primary key default gen_random_uuid(), "queue" text, type text, body text, state text, priority text,
                        "scheduled for" text, run_at timestamptz, attempts text, conversation_key text, created_at timestamp, "100%" text, n serial,
                        request_id text default repeat('r', 600))""")
    insert = 'insert into message_queue (queue, type, body, state, priority, run_at, attempts, conversation_key, "100%%") values (%s, %s, %s, %s, %s, %s, %s, %s, %s)'
    good = ("q", "t", '{"ok": true}', "pending", "high", None, "1", "c", "z")
    for name, body in HOSTILE:
        any_empty_database.query(insert, "q", "t", body, "pending", "5", None, "0", name, "p")
        any_empty_database.query(insert, *good)
    any_empty_database.query(insert, "q", "bad type!", "{}", "pending", "-7", "2030-01-01", "many", "", "p")
    any_empty_database.query(insert, "q", "t", "{}", "pending", "99999999999999", "infinity", "-3", "k" * 600, "p")
    any_empty_database.query(insert, "q", "t", "{}", "pending", None, "-infinity", None, "k", "p")
    any_empty_database.query(insert, "q", "t", '{"far": 1}', "pending", "nan", "4000-01-01 BC", "1e400", "k", "p")
    connection = connect(any_empty_database.admin_url, deadline_seconds=60)
    with pytest.raises(AdoptionRefused, match=r"1 reason"):  # one queue or type that is no name is said before anything moves
        adopt(connection, Order())
    done = adopt(connection, Order(choices=Choices(words={"message_type": {"bad type!": "fine"}}), batch=7))
    connection.close()
    assert done.account == {"rows": 24, "messages": 12, "dead_letters": 0, "undecodable": 12, "finished": 0, "missing": 0, "later": 0, "came_back": 0}
    assert any_empty_database.value("select count(*) from message_queue where payload = '{\"ok\": true}' and priority = 3") == 10
    kept = {
        row[0]: (row[1], row[2])
        for row in any_empty_database.query("select conversation_key, payload ->> 'legacy_payload', error_message from dead_letters")
    }
    for name, body in HOSTILE:
        assert kept[name][0] == (body if len(body) <= 1_000_000 else None), name
        assert (
            "payload" in kept[name][1] or "json" in kept[name][1].lower() or "stack depth" in kept[name][1] or "unicode" in kept[name][1].lower()
        ), kept[name][1]
    assert any_empty_database.value("select count(*) from message_queue where message_type = 'fine' and run_at = '2030-01-01' and attempt = 0") == 1
    assert any_empty_database.value("select count(*) from message_queue where payload ? 'far' and run_at = '1970-01-01'") == 1
    assert any_empty_database.query("select distinct length(correlation_id) from all_messages") == [(500,)]


def test_columns_with_strange_names_become_the_keys_of_a_payload(connection: DeadlineConnection, old: Database) -> None:
    old.query('alter table message_queue add column "50% {off}; ""x""" text, add column phone text')
    old.query("insert into message_queue (queue_name, job_type, \"50% {off}; \"\"x\"\"\", phone) values ('mail', 'a', 'v%s', '+250')")
    done = adopt(connection, Order(choices=Choices(columns={"payload": 'phone,50% {off}; "x"'})))
    assert done.account is not None and done.account["messages"] == 1
    assert old.value("select payload from message_queue") == {"phone": "+250", '50% {off}; "x"': "v%s"}


def test_order_of_conversations_is_the_order_in_which_rows_were_made_whatever_their_keys(any_empty_database: Database) -> None:
    any_empty_database.query(
        "create table message_queue (id uuid primary key default gen_random_uuid(), type text, payload jsonb, conversation_id text, created_at timestamptz)"
    )
    any_empty_database.query(
        "insert into message_queue (type, payload, conversation_id, created_at) select 't', jsonb_build_object('n', n), 'c', now() - make_interval(secs => n) "
        "from generate_series(1, 200) n"
    )
    connection = connect(any_empty_database.admin_url, deadline_seconds=60)
    adopt(connection, Order(batch=7))
    connection.close()
    assert numbers(any_empty_database, "message_queue") == list(range(200, 0, -1))
    assert (
        any_empty_database.value("select (c.payload ->> 'n')::integer from claim_messages(gen_random_uuid(), array['default'], 5, '1 minute') c")
        == 200
    )


def test_two_at_once_import_each_row_once(old: Database) -> None:
    old_queue.fill(old, 300)
    connections = [connect(old.admin_url, deadline_seconds=60) for _ in range(3)]
    done = [future.result(100) for future in [in_background(adopt, connection, Order(batch=5)) for connection in connections]]
    for connection in connections:
        connection.close()
    assert all(found.account is not None and found.account["messages"] == 180 and found.account["missing"] == 0 for found in done)
    assert numbers(old, "message_queue") == [n for n in range(300) if n % 10 < 6]
    assert sum(len(found.applied) for found in done) == len(NAMES)


class Killed(Exception):
    """What ends the importer in the middle."""


def test_an_import_that_ends_in_the_middle_holds_its_queues_and_goes_on_where_it_was(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 100)
    batches = []

    def die(count: int) -> None:
        batches.append(count)
        if len(batches) == 3:
            raise Killed

    with pytest.raises(Killed):
        adopt(connection, Order(batch=10), report=die)
    assert old.value("select count(*) from message_queue") + old.value("select count(*) from dead_letters") == 30
    assert set(old.query("select name, paused_by from queues where name <> 'default'")) == {
        ("mail", importing.OPERATOR),
        ("chat", importing.OPERATOR),
    }
    assert old.query("select * from claim_messages(gen_random_uuid(), array['mail', 'chat'], 5, '1 minute')") == []
    done = adopt(connection, Order())
    assert done.account is not None and done.account["missing"] == 0
    assert numbers(old, "message_queue") == [n for n in range(100) if n % 10 < 6]
    assert numbers(old, "dead_letters") == [n for n in range(100) if n % 10 in (6, 7)]
    assert old.query("select name from queues where paused_at is not null") == []


def test_a_queue_that_an_operator_paused_stays_paused(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 20)

    def pause(line: str) -> None:
        if line == f"applied {NAMES[-1]}":
            old.query("select declare_queue('mail'), pause_queue('mail', 'Grace')")

    adopt(connection, Order(), step=pause)
    assert old.query("select name, paused_by from queues where paused_at is not null") == [("mail", "Grace")]


def test_producers_that_go_on_with_the_old_table_lose_nothing_when_the_command_is_repeated(connection: DeadlineConnection, old: Database) -> None:
    """docs/adopting.md: their search path leads to the old table until their next release."""
    old_queue.fill(old, 20)
    old.query("do $$ begin create role packhorse_old_app login; exception when duplicate_object then null; end $$")
    old.query("grant insert on message_queue to packhorse_old_app; grant usage on sequence message_queue_id_seq to packhorse_old_app")
    adopt(connection, Order())
    insert = "insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', '{\"n\": 1000}')"
    with psycopg.connect(old.server.url(old.name, "packhorse_old_app"), autocommit=True) as app:
        with pytest.raises(psycopg.Error):
            app.execute(insert)  # refused, not lost: the caller is told
        old.query("grant usage on schema packhorse_legacy to packhorse_old_app")
        app.execute("set search_path = packhorse_legacy, public")
        app.execute(insert)
    again = adopt(connection, Order())
    assert again.applied == () and again.account is not None and (again.account["rows"], again.account["messages"]) == (21, 13)
    assert old.value("select count(*) from message_queue where message_type = 'late'") == 1
    assert adopt(connection, Order()).account == again.account


def test_producers_with_the_path_of_the_docs_are_not_refused_while_it_happens_and_lose_nothing(connection: DeadlineConnection, old: Database) -> None:
    """docs/adopting.md, step 4 before step 3: the same connection inserts before, during and after the move."""
    old_queue.fill(old, 50)
    old.query("create schema packhorse_legacy")
    stop, made = threading.Event(), []

    def produce() -> None:
        with old.connect(admin=True) as app:
            app.execute("set search_path = packhorse_legacy, public")
            while not stop.is_set():
                app.execute(
                    "insert into message_queue (queue_name, job_type, payload) values ('mail', 'late', jsonb_build_object('made', %s::integer))",
                    (len(made),),
                )
                made.append(len(made))
                stop.wait(0.005)  # a producer, not a flood

    producer = in_background(produce)
    first = adopt(connection, Order(batch=10))
    assert not stop.is_set() and old.query("select name from queues where paused_at is not null") == []
    stop.set()
    producer.result(20)
    again = adopt(connection, Order())
    assert first.account is not None and again.account is not None and again.account["later"] == 0
    assert [row[0] for row in old.query("select (payload ->> 'made')::integer from message_queue where message_type = 'late' order by id")] == made
    assert len(made) > 10


def test_rows_that_the_old_side_finishes_or_deletes_meanwhile_are_not_imported(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 20)

    def change(line: str) -> None:
        if line == f"applied {NAMES[-1]}":
            old.query("update packhorse_legacy.message_queue set status = 'completed' where payload ->> 'n' = '0'")

    def delete(count: int) -> None:
        old.query("delete from packhorse_legacy.message_queue where payload ->> 'n' = '15'")

    done = adopt(connection, Order(batch=5), step=change, report=delete)
    assert done.account == {"rows": 19, "messages": 10, "dead_letters": 4, "undecodable": 0, "finished": 5, "missing": 0, "later": 0, "came_back": 0}
    assert old.query("select legacy_id, outcome from packhorse_legacy.packhorse_import where outcome = 'gone'") == [("16", "gone")]


def test_the_move_waits_for_no_lock_for_long_and_names_who_has_it(
    connection: DeadlineConnection, old: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "MOVE_ATTEMPTS", 2)
    monkeypatch.setattr(adoption, "MOVE_PAUSE_SECONDS", 0.1)
    old_queue.fill(old, 10)
    said: list[str] = []
    with old.connect(admin=True, application_name="long reader") as holder, holder.transaction():
        holder.execute("select count(*) from message_queue")
        with pytest.raises(StoreConflict, match="long reader"):
            adopt(connection, Order(), step=said.append)
        assert "waiting for message_queue" in said[0] and "long reader" in said[0]
    assert old.value("select to_regnamespace('packhorse_legacy') is null") is True
    assert adopt(connection, Order()).account is not None


def test_rows_that_a_policy_hides_are_an_error_and_not_lost(old: Database) -> None:
    """A role that owns the table, but whom FORCE ROW LEVEL SECURITY holds, would import what it sees and call it all."""
    old_queue.fill(old, 10)
    old.query("do $$ begin create role packhorse_migrator login createrole; exception when duplicate_object then null; end $$")
    old.query(
        f"alter role packhorse_migrator createrole; grant create on database {old.name} to packhorse_migrator; grant create on schema public to packhorse_migrator"
    )
    for name in ("message_queue", "processed_messages", "open_messages"):
        old.query(f"alter table {name} owner to packhorse_migrator")
    for name in ("get_next_queue_message(text)", "cleanup_old_messages()"):
        old.query(f"alter function {name} owner to packhorse_migrator")
    old.query("alter table message_queue enable row level security; alter table message_queue force row level security")
    old.query("create policy own_rows on message_queue using (queue_name = 'mail')")
    connection = connect(old.server.url(old.name, "packhorse_migrator"), deadline_seconds=60)
    with pytest.raises(StoreError, match="row-level security"):
        adopt(connection, Order())
    assert old.value("select to_regnamespace('packhorse_legacy') is null") is True
    old.query("alter table message_queue no force row level security")
    done = adopt(connection, Order())
    connection.close()
    assert done.account is not None and done.account["messages"] == 6


def test_nobody_else_reads_the_old_rows_or_the_ledger(connection: DeadlineConnection, old: Database) -> None:
    adopt(connection, Order())
    assert old.value("select has_schema_privilege('packhorse_worker', 'packhorse_legacy', 'usage')") is False
    assert (
        old.query(
            "select relname from pg_class where relnamespace = 'packhorse_legacy'::regnamespace and relkind = 'r' and relname ~ '^packhorse' "
            "and not relrowsecurity"
        )
        == []
    )


def test_the_way_back_is_the_way_that_is_printed(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    before = old.query("select * from message_queue order by id")
    old.query("create table old_before as select id, status from message_queue")
    done = adopt(connection, Order())
    old.query("select complete_messages(array[c.id], array[c.lease_token]) from claim_messages(gen_random_uuid(), array['chat'], 2, '1 minute') c")
    assert old.value("select count(*) from message_archive") == 2
    old.query(documented("update packhorse_legacy.message_queue"))
    assert old.value("select count(*) from packhorse_legacy.message_queue where status = 'completed'") == 4
    old.query("update packhorse_legacy.message_queue q set status = b.status from old_before b where b.id = q.id")
    while migrate.down(connection):
        pass
    for statement in done.way_back:
        old.query(statement)
    assert old.query("select * from message_queue order by id") == before
    assert old.value("select count(*) from get_next_queue_message('mail')") == 1
    assert old.value("select nextval('message_queue_id_seq')") == 11


def documented(beginning: str) -> str:
    """The statement of docs/adopting.md that begins like this."""
    return next(part for part in re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL) if beginning in part)


def test_ids_of_webhooks_go_along_as_the_docs_say(connection: DeadlineConnection, old: Database) -> None:
    old.query("insert into processed_messages values ('wamid.1', now()), ('wamid.2', now() - interval '30 days')")
    adopt(connection, Order())
    old.query(documented("insert into processed_messages"))
    assert old.query("select is_new_message('wamid.1'), is_new_message('wamid.2')") == [(False, True)]


def test_a_table_without_a_key_or_a_view_of_that_name_is_refused(any_empty_database: Database) -> None:
    connection = connect(any_empty_database.admin_url, deadline_seconds=60)
    any_empty_database.query("create table message_queue (type text, payload jsonb)")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any("no column that alone tells its rows apart" in problem for problem in refused.value.problems)
    any_empty_database.query("drop table message_queue; create view message_queue as select 1 as id")
    with pytest.raises(AdoptionRefused) as refused:
        adopt(connection, Order())
    assert any("message_queue is a view, not a table" in problem for problem in refused.value.problems)
    connection.close()


def test_another_legacy_schema_with_another_schemas_tables_is_refused(connection: DeadlineConnection, old: Database) -> None:
    adopt(connection, Order())
    old.query("create schema second")
    other = connect(old.admin_url, schema="second", deadline_seconds=60)
    with pytest.raises(ConfigError, match="--legacy-schema"):
        adopt(other, Order())
    other.close()


def test_a_queue_in_a_schema_of_its_own_is_adopted_there(old: Database) -> None:
    old_queue.fill(old, 10)
    old.query("create schema carrier")
    old.query("alter table message_queue set schema carrier")
    connection = connect(old.admin_url, schema="carrier", deadline_seconds=60)
    done = adopt(connection, Order(legacy="carrier_old"))
    connection.close()
    assert done.account is not None and done.account["messages"] == 6
    assert old.value("select count(*) from carrier.message_queue") == 6 and old.value("select count(*) from carrier_old.message_queue") == 10


def test_waiting_importers_hold_no_snapshot(connection: DeadlineConnection, old: Database) -> None:
    old_queue.fill(old, 10)
    with old.connect(admin=True) as holder, holder.transaction():
        assert holder.execute("select pg_try_advisory_xact_lock(hashtext('packhorse.migrate'), hashtext(current_schema()))").fetchone() == (True,)
        result = in_background(adopt, connection, Order())
        pid = connection.info.backend_pid
        wait_until(
            lambda: old.query("select 1 from pg_stat_activity where pid = %s and query = 'COMMIT' and state = 'idle' and backend_xmin is null", pid)
        )
        assert not result.done()
    assert result.result(60).account is not None
