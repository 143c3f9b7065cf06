"""What a transactional handler does to its connection (SPEC P3, W3b): nobody after it meets what it left in
the session, and our own statements in its transaction do not depend on its role, its search_path or its
settings of the connection object."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dramatiq
import psycopg
import pytest
from psycopg.adapt import Loader
from psycopg.rows import dict_row

import packhorse
from packhorse import PostgresBroker, current_connection
from packhorse.worker.db.connection import AnyText, connect
from packhorse.worker.db.pool import ConnectionPool
from tests.support.harness import House
from tests.support.postgres import ROLE

pytestmark = pytest.mark.one_database

#: What a handler does, and a question whose answer is True when the session is clean.
LEFTOVERS = {
    "temporary table": ("create temp table scratch (id integer)", "select to_regclass('scratch') is null"),
    "set": ("set app.tenant = 'A'", "select coalesce(current_setting('app.tenant', true), '') = ''"),
    "set_config": (
        "select set_config('app.tenant', 'A', false)",
        "select coalesce(current_setting('app.tenant', true), '') = ''",
    ),
    "setting of the server": (
        "set work_mem = '1MB'; set timezone = 'Asia/Kolkata'",
        "select current_setting('work_mem') <> '1MB'",
    ),
    "advisory lock": (
        "select pg_advisory_lock(42)",
        "select not exists (select from pg_locks where locktype = 'advisory' and objid = 42)",
    ),
    "prepared statement": (
        "prepare mine as select 1",
        "select not exists (select from pg_prepared_statements where name = 'mine')",
    ),
    "listen": ("listen something", "select not exists (select from pg_listening_channels())"),
    "cursor": (
        "declare held cursor with hold for select 1",
        "select not exists (select from pg_cursors where name = 'held')",
    ),
    "role": ("set role packhorse_tenant", "select current_user = session_user"),
    "search_path": ("set search_path = pg_catalog", "select current_setting('search_path') <> 'pg_catalog'"),
    "sequence": (
        "create temp sequence numbers; select nextval('numbers')",
        "select to_regclass('numbers') is null",
    ),
}
#: The fast ring asks about one of each kind: a thing, a setting, a lock, a role.
OF_THE_FAST_RING = {"temporary table", "set", "advisory lock", "role"}
EACH = [pytest.param(what, marks=[] if what in OF_THE_FAST_RING else pytest.mark.slow) for what in LEFTOVERS]


@pytest.fixture
def tenant(database):
    """A role that may write its own schema and knows nothing of the queue."""
    database.query(
        "do $$ begin create role packhorse_tenant nologin; exception when duplicate_object then null; end $$"
    )
    database.query(f"grant packhorse_tenant to {ROLE}")
    database.query(
        "drop schema if exists shop cascade; create schema shop; create table shop.orders (id integer, by text, path text)"
    )
    database.query(
        f"grant usage on schema shop to packhorse_tenant, {ROLE}; grant all on shop.orders to packhorse_tenant, {ROLE}"
    )
    return database


@pytest.fixture
def house(tenant, monkeypatch):
    """One handler thread, so one connection for its transactions."""
    house = House("runtime", tenant, monkeypatch, threads=1)
    yield house
    house.stop()


def outcomes(database):
    return database.query("select message_type, state from all_messages order by id")


@pytest.mark.parametrize("what", EACH)
@pytest.mark.parametrize("fails", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["done", "failed"])
def test_what_a_handler_leaves_in_its_session_is_gone_before_the_next_one(house, what, fails):
    leave, look = LEFTOVERS[what]
    clean = []

    @dramatiq.actor(transactional=True, max_attempts=1)
    def leaves():
        current_connection().execute(leave, prepare=False)
        if fails:
            raise ValueError("after that")

    @dramatiq.actor(transactional=True, max_attempts=1)
    def looks():
        clean.append(current_connection().execute(look).fetchone()[0])

    for actor in (looks, leaves, looks, leaves, looks):
        actor.send()
    house.start()
    house.drained()
    assert clean == [True] * 3
    assert [state for _, state in outcomes(house.database)].count("dead") == (2 if fails else 0)


@pytest.mark.parametrize("what", EACH)
def test_who_enqueues_or_keeps_a_result_gets_a_clean_connection_too(house, what):
    leave, look = LEFTOVERS[what]

    @dramatiq.actor(transactional=True, max_attempts=1)
    def leaves():
        current_connection().execute(leave, prepare=False)
        current_connection().row_factory = dict_row

    @dramatiq.actor
    def comes_next():
        """The only thread has given the connection back before it takes this one."""

    leaves.send()
    comes_next.send()
    house.start()
    house.drained()
    assert outcomes(house.database) == [("leaves", "done"), ("comes_next", "done")]
    with house.broker.pool.connection() as connection:
        assert connection.execute(look).fetchone() == (True,)


def test_a_session_lock_is_free_when_its_handler_has_ended_and_nobody_follows(house):
    """Not only when the connection is lent again: that may be hours later."""

    @dramatiq.actor(transactional=True)
    def locks():
        current_connection().execute("select pg_advisory_lock(42)")

    @dramatiq.actor
    def comes_next():
        """The only thread has given the connection back before it takes this one."""

    locks.send()
    comes_next.send()
    house.start()
    house.drained()
    assert house.database.query(
        "select count(*) from pg_locks where locktype = 'advisory' and objid = 42"
    ) == [(0,)]


@pytest.fixture
def pool(database):
    pool = ConnectionPool(lambda: connect(database.url), 1)
    yield pool
    pool.close()


def backend(connection):
    return connection.execute("select pg_backend_pid()").fetchone()[0]


def test_a_clean_session_keeps_our_own_settings_and_prepared_statements(pool):
    question = "select current_setting('default_transaction_isolation'), current_setting('client_connection_check_interval')"
    with pool.connection() as connection:
        before = backend(connection), connection.execute(question).fetchone()
        connection.in_hands().execute(
            "set default_transaction_isolation = 'serializable'; set client_connection_check_interval = 0",
            prepare=False,
        )
        connection.execute("set timezone = 'Asia/Kolkata'; set datestyle = 'German'", prepare=False)
    with pool.connection() as connection:
        assert (backend(connection), connection.execute(question).fetchone()) == before
        assert connection.execute("select count(*) from pg_prepared_statements").fetchone()[0] >= 2
        assert connection.execute("select current_date").fetchone() is not None


def test_what_nobody_had_in_hands_is_not_reset(pool):
    """Enqueueing pays nothing: a setting of ours is still there."""
    with pool.connection() as connection:
        connection.execute("set work_mem = '1MB'")
    with pool.connection() as connection:
        assert connection.execute("show work_mem").fetchone() == ("1MB",)


def test_a_reset_that_is_not_finished_closes_the_connection(pool, database):
    with pool.connection() as connection:
        before = backend(connection.in_hands())
        connection.execute("select pg_advisory_lock(43)")
        database.query(f"select pg_terminate_backend({before}, 5000)")
    assert connection.closed
    with pool.connection() as connection:
        assert backend(connection) != before


class Shouting(Loader):
    def load(self, data):
        return bytes(data).decode().upper()


def test_rows_and_types_of_the_connection_are_not_the_next_ones(pool):
    """What a handler sets on the object, not in the session."""
    told = []
    with pool.connection() as connection:
        first = connection.adapters
        connection.in_hands().row_factory = dict_row
        connection.cursor_factory = psycopg.ClientCursor
        connection.prepare_threshold = 7
        connection.adapters.register_loader("text", Shouting)
        connection.add_notice_handler(told.append)
        assert connection.execute("select 'a'::text as it").fetchone() == {"it": "A"}
    with pool.connection() as connection:
        assert connection.execute("select 'a'::text as it").fetchone() == ("a",)
        connection.execute("do $$ begin raise notice 'heard'; end $$")
        assert told == [] and connection.adapters is first and connection.prepare_threshold == 0
        assert connection.cursor_factory is psycopg.Cursor


def test_behind_a_pooler_the_object_is_clean_and_the_session_is_the_poolers(database):
    """A reset would meet another server connection than the handler's; docs/promises.md says what follows."""
    pool = ConnectionPool(lambda: connect(database.url, pooler=True), 1)
    with pool.connection() as connection:
        before = backend(connection.in_hands())
        connection.row_factory = dict_row
        connection.execute("set work_mem = '1MB'")
    with pool.connection() as connection:
        assert backend(connection) == before and connection.prepare_threshold is None
        assert connection.execute("show work_mem").fetchone() == ("1MB",)
    pool.close()


# -- our statements in its transaction ---------------------------------------------------------------
FOREIGN = {
    "role": "set local role packhorse_tenant",
    "role of the session": "set role packhorse_tenant",
    "search_path": "set local search_path = shop",
    "search_path of the session": "set search_path = shop",
    "both": "set local role packhorse_tenant; set local search_path = shop",
    "set_config": "select set_config('role', 'packhorse_tenant', true), set_config('search_path', '', true)",
    "row_security": "set local row_security = off",
    "nothing": "select 1",
}
EACH_FOREIGN = [
    pytest.param(how, marks=[] if how in ("both", "set_config", "row_security") else pytest.mark.slow)
    for how in FOREIGN
]


@pytest.mark.parametrize("how", EACH_FOREIGN)
@pytest.mark.parametrize("pooler", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "pooler"])
def test_a_message_is_completed_whatever_role_and_path_its_handler_has_set(house, how, pooler):
    house.broker.configure(house.settings.model_copy(update={"pooler": pooler, "threads": 1}))

    @dramatiq.actor(transactional=True, max_attempts=1)
    def writes():
        current_connection().execute(FOREIGN[how], prepare=False)
        current_connection().execute("insert into shop.orders values (1)")

    writes.send()
    house.start()
    house.drained()
    assert outcomes(house.database) == [("writes", "done")]
    assert house.database.query("select count(*) from shop.orders") == [(1,)]


@pytest.mark.parametrize("how", EACH_FOREIGN)
def test_what_a_handler_sends_goes_out_and_leaves_its_role_and_path_alone(house, how):
    seen = []

    @dramatiq.actor
    def follows(number):
        pass

    @dramatiq.actor(transactional=True, max_attempts=1)
    def sends():
        connection = current_connection()
        connection.execute(FOREIGN[how], prepare=False)
        question = "select current_user, current_setting('search_path'), current_setting('row_security')"
        before = connection.execute(question).fetchone()
        follows.send(1)
        follows.send_with_options(args=(2,), conversation_key="c")
        house.broker.enqueue_many(
            [follows.message(3), follows.message_with_options(args=(4,), conversation_key="d")]
        )
        packhorse.enqueue(connection, "follows", {"number": 5})
        packhorse.enqueue_payloads(connection, "follows", [{"number": 6}])
        with connection.transaction():
            follows.send(7)
        with connection.pipeline():
            connection.execute("insert into shop.orders values (7)")
            follows.send(8)
        soon = datetime.now(UTC) - timedelta(seconds=1)
        every = {
            "run_at": soon,
            "expires_in": 60,
            "priority": 2,
            "dedup_key": "k'%s",
            "correlation_id": "ü",
            "max_attempts": 2,
            "concurrency_key": "%",
        }
        follows.send_with_options(args=(9,), **every)
        seen.append((before, connection.execute(question).fetchone()))

    sends.send()
    house.start()
    house.drained()
    (pair,) = seen
    assert pair[0] == pair[1]
    assert outcomes(house.database) == [("sends", "done")] + [("follows", "done")] * 9
    assert house.database.query(
        "select correlation_id from all_messages where correlation_id not like '________-____-____-____-____________'"
    ) == [("ü",)]


def test_what_follows_a_handler_commits_with_it_under_a_foreign_role(house):
    got = []

    @dramatiq.actor
    def second(value):
        got.append(value)

    @dramatiq.actor(transactional=True, max_attempts=1)
    def first():
        current_connection().execute(
            "set local role packhorse_tenant; set local search_path = shop", prepare=False
        )
        return 5

    (first.message() | second.message()).run()
    house.start()
    house.drained()
    assert got == [5] and sorted(outcomes(house.database)) == [("first", "done"), ("second", "done")]


def test_what_runs_at_the_commit_has_the_handlers_role_and_path(house):
    """Deferred triggers and constraints: as without us."""
    house.database.query("""
        create function shop.sign() returns trigger language plpgsql as $$ begin
          update shop.orders set by = current_user, path = current_setting('search_path') where id = new.id; return null; end $$;
        grant execute on function shop.sign() to public;
        create constraint trigger sign after insert on shop.orders deferrable initially deferred for each row execute function shop.sign()
    """)

    @dramatiq.actor(transactional=True, max_attempts=1)
    def writes():
        current_connection().execute(
            "set local role packhorse_tenant; set local search_path = shop", prepare=False
        )
        current_connection().execute("insert into orders (id) values (1)")

    writes.send()
    house.start()
    house.drained()
    assert outcomes(house.database) == [("writes", "done")]
    assert house.database.query("select by, path from shop.orders") == [("packhorse_tenant", "shop")]


def test_a_handler_may_have_its_own_kind_of_rows_and_types(house):
    """row_factory = dict_row is common; the answer of our completion is not to be read by it."""
    rows = []

    @dramatiq.actor
    def follows():
        pass

    @dramatiq.actor(transactional=True, max_attempts=1)
    def reads():
        connection = current_connection()
        connection.row_factory = dict_row
        connection.cursor_factory = psycopg.RawCursor
        connection.adapters.register_loader("int8", Shouting)
        connection.execute("set local role packhorse_tenant")
        follows.send()
        rows.append(connection.execute("select 1::int8 as number").fetchone())

    reads.send()
    house.start()
    house.drained()
    assert rows == [{"number": "1"}] and outcomes(house.database) == [("reads", "done"), ("follows", "done")]


def test_a_refused_message_inside_the_transaction_leaves_the_role_as_it_was(house):
    seen = []

    @dramatiq.actor
    def follows(number):
        pass

    @dramatiq.actor(transactional=True, max_attempts=1)
    def sends():
        connection = current_connection()
        connection.execute("set local role packhorse_tenant")
        with pytest.raises(packhorse.InvalidArgument):
            house.broker.enqueue_many(
                [follows.message(1), follows.message_with_options(args=(2,), dedup_key="k")]
            )
        seen.append(connection.execute("select current_user").fetchone()[0])

    sends.send()
    house.start()
    house.drained()
    assert seen == ["packhorse_tenant"] and outcomes(house.database)[0] == ("sends", "done")


def test_a_database_that_checks_no_encoding_stays_readable_after_a_reset(server):
    server.command("drop database if exists {}", "odd_bytes")
    server.command("create database {} encoding 'SQL_ASCII' locale 'C' template template0", "odd_bytes")
    pool = ConnectionPool(lambda: connect(server.url("odd_bytes")), 1)
    with pool.connection() as connection:
        connection.in_hands().execute("set client_encoding = 'LATIN1'")
    with pool.connection() as connection:
        assert connection.execute("select current_setting('client_encoding')").fetchone() == ("SQL_ASCII",)
        assert connection.adapters.get_loader(25, psycopg.pq.Format.TEXT) is AnyText
    pool.close()
    server.command("drop database {}", "odd_bytes")


def test_a_connection_of_another_broker_is_not_confused_with_the_handlers(house):
    """Only the handler's own connection is told to go home."""
    other = PostgresBroker(settings=house.settings)

    @dramatiq.actor(transactional=True, max_attempts=1)
    def sends():
        current_connection().execute("set local role packhorse_tenant")
        with other.pool.connection() as connection:
            assert not connection.touched

    sends.send()
    house.start()
    house.drained()
    other.close()
    assert outcomes(house.database) == [("sends", "done")]
