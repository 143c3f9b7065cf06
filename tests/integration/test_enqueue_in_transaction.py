"""Q9: enqueue inside the caller's transaction, on the caller's own connection, whatever the driver.

After commit the message is there, after rollback it is not; for every driver the same two tests."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

import packhorse
from packhorse.worker.enqueue import unknown_types
from packhorse.worker.errors import InvalidArgument

pytestmark = pytest.mark.one_database

ROLE_URL_SCHEME = "postgresql://"


@contextmanager
def psycopg_connection(database):
    with psycopg.connect(database.url) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def psycopg_cursor(database):
    with psycopg.connect(database.url) as connection, connection.cursor() as cursor:
        yield cursor, connection.commit, connection.rollback


@contextmanager
def psycopg_dict_rows(database):
    with psycopg.connect(database.url, row_factory=psycopg.rows.dict_row) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def sqlalchemy_connection(database):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(database.url.replace(ROLE_URL_SCHEME, "postgresql+psycopg://"))
    with engine.connect() as connection:
        yield connection, connection.commit, connection.rollback
    engine.dispose()


@contextmanager
def sqlalchemy_session(database):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(database.url.replace(ROLE_URL_SCHEME, "postgresql+psycopg://"))
    with orm.Session(engine) as session:
        yield session, session.commit, session.rollback
    engine.dispose()


@contextmanager
def django_connection(database):
    django = pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "unset"}}
        )
        django.setup()
    from django.db import connections, transaction

    connections.databases["default"] |= {
        "NAME": database.name,
        "USER": "packhorse_test",
        "HOST": str(database.server.socket_dir),
        "PORT": "",
        "PASSWORD": "",
    }
    connections.close_all()
    if hasattr(connections._connections, "default"):
        del connections["default"]
    connection = connections["default"]
    transaction.set_autocommit(False)
    yield connection, transaction.commit, transaction.rollback
    connection.close()


@contextmanager
def psycopg_scalar_rows(database):
    with psycopg.connect(database.url, row_factory=psycopg.rows.scalar_row) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def psycopg_raw_cursors(database):
    with psycopg.connect(database.url, cursor_factory=psycopg.RawCursor) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def psycopg_raw_cursor(database):
    with psycopg.connect(database.url) as connection, psycopg.RawCursor(connection) as cursor:
        yield cursor, connection.commit, connection.rollback


@contextmanager
def own_sqlalchemy_session(database):
    """As SQLModel's: a class of another module than SQLAlchemy's."""
    with sqlalchemy_session(database) as (session, commit, rollback):
        session.__class__ = type("Session", (type(session),), {"__module__": "shop.database"})
        yield session, commit, rollback


@contextmanager
def own_django_backend(database):
    """As of django-postgres-extra, pools and the like."""
    with django_connection(database) as (connection, commit, rollback):
        original = connection.__class__
        connection.__class__ = type("DatabaseWrapper", (original,), {"__module__": "psqlextra.backend.base"})
        yield connection, commit, rollback
        connection.__class__ = original


SYNC = [
    psycopg_connection,
    psycopg_cursor,
    psycopg_dict_rows,
    psycopg_scalar_rows,
    psycopg_raw_cursors,
    psycopg_raw_cursor,
    sqlalchemy_connection,
    sqlalchemy_session,
    own_sqlalchemy_session,
    django_connection,
    own_django_backend,
]


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_a_sync_connections_commit_and_rollback_decide(database, driver):
    with driver(database) as (connection, commit, rollback):
        kept = packhorse.enqueue(
            connection,
            "note",
            {"a": 1, "text": "ü%s :a1 $1"},
            conversation_key="c",
            delay=timedelta(hours=1),
            custom="option",
        )
        assert database.query("select 1 from message_queue") == [], "nobody sees it before the commit"
        commit()
        packhorse.enqueue(connection, "note", {"a": 2})
        rollback()
    rows = database.query(
        "select id, message_type, payload, options, conversation_key, run_at > clock_timestamp() + interval '59 minutes' from message_queue"
    )
    assert rows == [(kept.id, "note", {"a": 1, "text": "ü%s :a1 $1"}, {"custom": "option"}, "c", True)]
    assert kept.duplicate is False


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_a_sync_dedup_answers_with_the_first_id(database, driver):
    with driver(database) as (connection, commit, _):
        first = packhorse.enqueue(connection, "note", {}, dedup_key="k", dedup_window=60)
        second = packhorse.enqueue(connection, "note", {}, dedup_key="k", dedup_window=60)
        commit()
    assert (second.id, second.duplicate) == (first.id, True)


@asynccontextmanager
async def psycopg_async(database):
    async with await psycopg.AsyncConnection.connect(database.url) as connection:
        yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def psycopg_async_dict_rows(database):
    async with await psycopg.AsyncConnection.connect(
        database.url, row_factory=psycopg.rows.dict_row
    ) as connection:
        yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def asyncpg_connection(database):
    asyncpg = pytest.importorskip("asyncpg")
    connection = await asyncpg.connect(
        host=str(database.server.socket_dir), user="packhorse_test", database=database.name
    )
    transaction = connection.transaction()
    await transaction.start()

    async def commit():
        nonlocal transaction
        await transaction.commit()
        transaction = connection.transaction()
        await transaction.start()

    async def rollback():
        await transaction.rollback()

    yield connection, commit, rollback
    await connection.close()


@asynccontextmanager
async def sqlalchemy_asyncpg(database):
    pytest.importorskip("asyncpg")
    pytest.importorskip("greenlet", reason="sqlalchemy[asyncio] is not installed")
    engine = pytest.importorskip("sqlalchemy.ext.asyncio").create_async_engine(
        f"postgresql+asyncpg://packhorse_test@/{database.name}?host={database.server.socket_dir}"
    )
    async with engine.connect() as connection:
        yield connection, connection.commit, connection.rollback
    await engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_session(database):
    pytest.importorskip("asyncpg")
    pytest.importorskip("greenlet", reason="sqlalchemy[asyncio] is not installed")
    extension = pytest.importorskip("sqlalchemy.ext.asyncio")
    engine = extension.create_async_engine(
        f"postgresql+asyncpg://packhorse_test@/{database.name}?host={database.server.socket_dir}"
    )
    async with extension.AsyncSession(engine) as session:
        yield session, session.commit, session.rollback
    await engine.dispose()


@asynccontextmanager
async def psycopg_async_scalar_rows(database):
    async with await psycopg.AsyncConnection.connect(
        database.url, row_factory=psycopg.rows.scalar_row
    ) as connection:
        yield connection, connection.commit, connection.rollback


@asynccontextmanager
async def own_asyncpg_class(database):
    """As asyncpg's own argument connection_class makes them."""
    async with asyncpg_connection(database) as (connection, commit, rollback):
        connection.__class__ = type(
            "Connection", (type(connection),), {"__module__": "shop.database", "__slots__": ()}
        )
        yield connection, commit, rollback


@asynccontextmanager
async def own_sqlalchemy_async_session(database):
    """As SQLModel's, whose execute() is a decorated one."""
    async with sqlalchemy_async_session(database) as (session, commit, rollback):
        kind = type(session)
        own = {
            "__module__": "sqlmodel.ext.asyncio.session",
            "execute": lambda self, *arguments: kind.execute(self, *arguments),
        }
        session.__class__ = type("AsyncSession", (kind,), own)
        yield session, commit, rollback


ASYNC = [
    psycopg_async,
    psycopg_async_dict_rows,
    psycopg_async_scalar_rows,
    asyncpg_connection,
    own_asyncpg_class,
    sqlalchemy_asyncpg,
    sqlalchemy_async_session,
    own_sqlalchemy_async_session,
]


@pytest.mark.parametrize("driver", ASYNC, ids=lambda driver: driver.__name__)
def test_an_async_connections_commit_and_rollback_decide(database, driver):
    run_at = datetime.now(UTC) + timedelta(days=1)

    async def scenario():
        async with driver(database) as (connection, commit, rollback):
            kept = await packhorse.enqueue_async(
                connection,
                "note",
                {"a": 1, "text": "ü%s :a1 $1"},
                conversation_key="c",
                run_at=run_at,
                priority=2,
            )
            assert database.query("select 1 from message_queue") == []
            await commit()
            later = await packhorse.enqueue_async(connection, "note", {"a": 2}, delay=5)
            assert later.id != kept.id
            await rollback()
            return kept

    kept = asyncio.run(scenario())
    rows = database.query("select id, payload, conversation_key, run_at, priority from message_queue")
    assert rows == [(kept.id, {"a": 1, "text": "ü%s :a1 $1"}, "c", run_at, 2)]


def test_plain_sql_is_enough(database):
    with psycopg.connect(database.url) as connection:
        connection.execute("""select packhorse.enqueue_message('default', 'note', '{"a": 1}')""")
        connection.rollback()
        connection.execute(
            """select packhorse.enqueue_message('default', 'note', '{"a": 2}', p_priority => 3)"""
        )
    assert database.query("select payload, priority from message_queue") == [({"a": 2}, 3)]


def test_a_producer_role_can_enqueue_and_read_nothing_back(database):
    database.query(
        "do $$ begin create role packhorse_shop login in role packhorse_producer; exception when duplicate_object then null; end $$"
    )
    with psycopg.connect(database.server.url(database.name, "packhorse_shop"), autocommit=True) as connection:
        answer = packhorse.enqueue(connection, "note", {"a": 1}, dedup_key="k")
        assert answer.id > 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select payload from packhorse.message_queue")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from packhorse.message_queue")


@pytest.mark.parametrize("payload", [[1], "text", 5, [], "", 0, False])
def test_a_payload_that_is_no_object_is_refused(database, payload):
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument) as caught:
        packhorse.enqueue(connection, "note", payload)
    assert caught.value.field == "payload"


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_many_payloads_are_there_after_the_commit_in_their_order(database, driver):
    with driver(database) as (connection, commit, rollback):
        count = packhorse.enqueue_payloads(
            connection,
            "note",
            ({"n": n, "text": "ü%s :a1 $1"} for n in range(2500)),
            conversation_key="c",
            custom="option",
        )
        assert database.query("select 1 from message_queue") == [], "nobody sees it before the commit"
        commit()
        assert packhorse.enqueue_payloads(connection, "note", [{"n": 1}]) == 1
        rollback()
        assert packhorse.enqueue_payloads(connection, "note", []) == 0
    assert count == 2500
    assert [
        n for (n,) in database.query("select (payload ->> 'n')::int from message_queue order by id")
    ] == list(range(2500))
    assert database.query(
        "select distinct message_type, payload ->> 'text', options, conversation_key from message_queue"
    ) == [("note", "ü%s :a1 $1", {"custom": "option"}, "c")]


@pytest.mark.parametrize("driver", ASYNC, ids=lambda driver: driver.__name__)
def test_many_payloads_on_an_async_connection(database, driver):
    async def scenario():
        async with driver(database) as (connection, commit, rollback):
            assert (
                await packhorse.enqueue_payloads_async(
                    connection, "note", [{"n": n} for n in range(1500)], delay=60
                )
                == 1500
            )
            await commit()
            await packhorse.enqueue_payloads_async(connection, "note", [{"n": -1}])
            await rollback()

    asyncio.run(scenario())
    assert database.query(
        "select count(*), min((payload ->> 'n')::int), bool_and(run_at > clock_timestamp() + interval '50 s') from message_queue"
    ) == [(1500, 0, True)]


@pytest.mark.slow
def test_long_payloads_go_in_statements_of_a_few_megabytes(database):
    statements = []

    class Watched(psycopg.Cursor):
        def execute(self, query, params=None, **options):
            statements.append(len(params[0]))
            return super().execute(query, params, **options)

    with psycopg.connect(database.url, cursor_factory=Watched) as connection:
        assert (
            packhorse.enqueue_payloads(connection, "note", ({"blob": "x" * 900_000} for _ in range(12))) == 12
        )
    assert len(statements) == 3 and max(statements) < 5_000_000
    assert database.value("select count(*) from message_queue") == 12


@pytest.mark.parametrize(
    ("payloads", "options", "field"),
    [
        ([{"a": 1}, [2]], {}, "payloads[2]"),
        ([{"a": object()}], {}, "payloads[1]"),
        ([{}, {"a": "\x00"}], {}, "payloads[2]"),
        ([{}], {"dedup_key": "k"}, "dedup_key"),
        ([{}], {"priority": 11}, "priority"),
        ([{}], {"delay": "soon"}, "delay"),
    ],
)
def test_a_bad_argument_of_many_payloads_is_named(database, payloads, options, field):
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument) as caught:
        packhorse.enqueue_payloads(connection, "note", payloads, **options)
    assert caught.value.field == field
    assert database.query("select 1 from message_queue") == []


def test_a_producer_role_can_enqueue_many(database):
    database.query(
        "do $$ begin create role packhorse_shop login in role packhorse_producer; exception when duplicate_object then null; end $$"
    )
    with psycopg.connect(database.server.url(database.name, "packhorse_shop"), autocommit=True) as connection:
        assert packhorse.enqueue_payloads(connection, "note", [{"a": 1}, {"a": 2}]) == 2


@asynccontextmanager
async def asyncpg_with_a_jsonb_codec(database):
    async with asyncpg_connection(database) as (connection, commit, rollback):
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        yield connection, commit, rollback


def test_a_jsonb_codec_of_the_application_does_not_encode_payloads_once_more(database):
    async def scenario():
        async with asyncpg_with_a_jsonb_codec(database) as (connection, commit, _):
            await packhorse.enqueue_async(connection, "note", {"a": 1}, custom="option")
            await packhorse.enqueue_payloads_async(connection, "note", [{"a": 2}])
            await commit()

    asyncio.run(scenario())
    assert database.query("select payload, options from message_queue order by id") == [
        ({"a": 1}, {"custom": "option"}),
        ({"a": 2}, {}),
    ]


@pytest.mark.parametrize("driver", ASYNC, ids=lambda driver: driver.__name__)
@pytest.mark.filterwarnings("error")
def test_an_asynchronous_connection_in_a_synchronous_call_is_said(database, driver):
    async def scenario():
        async with driver(database) as (connection, *_):
            with pytest.raises(InvalidArgument, match="is asynchronous") as caught:
                packhorse.enqueue(connection, "note", {})
            return caught.value.field

    assert asyncio.run(scenario()) == "connection"


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_a_synchronous_connection_in_an_asynchronous_call_is_said_before_it_enqueues(database, driver):
    with driver(database) as (connection, commit, _):
        with pytest.raises(InvalidArgument, match="is synchronous") as caught:
            asyncio.run(packhorse.enqueue_async(connection, "note", {}))
        commit()
    assert caught.value.field == "connection"
    assert database.query("select 1 from message_queue") == []


@pytest.mark.parametrize("connection", [None, "postgresql://db/app", object()])
def test_what_is_no_connection_is_said(connection):
    with pytest.raises(InvalidArgument, match="is no database connection"):
        packhorse.enqueue(connection, "note", {})
    with pytest.raises(InvalidArgument, match="is no database connection"):
        asyncio.run(packhorse.enqueue_payloads_async(connection, "note", [{}]))


@pytest.mark.parametrize(
    ("options", "field", "meant"),
    [
        ({"conversationkey": "c"}, "conversationkey", "conversation_key"),
        ({"conversation_id": "c"}, "conversation_id", "conversation_key"),
        ({"expires_at": 5}, "expires_at", "expires_in"),
        ({"queue_name": "mail"}, "queue_name", "queue"),
        ({"delay": 5, "run_at": datetime.now(UTC)}, "run_at", "one of them"),
    ],
)
def test_an_option_that_would_mean_nothing_is_refused(database, options, field, meant):
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument, match=meant) as caught:
        packhorse.enqueue(connection, "note", {}, **options)
    assert caught.value.field == field
    assert database.query("select 1 from message_queue") == []


@pytest.mark.parametrize("payloads", [None, {}, {"a": 1}, "text"])
def test_payloads_that_are_no_list_are_refused(database, payloads):
    with psycopg.connect(database.url) as connection, pytest.raises(InvalidArgument) as caught:
        packhorse.enqueue_payloads(connection, "note", payloads)
    assert caught.value.field == "payloads"


def test_a_raw_connection_of_sqlalchemy_is_the_one_of_its_driver(database):
    """engine.raw_connection() and connection.connection: the pool's wrapper was taken for a Connection of
    SQLAlchemy.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    raw = engine.raw_connection()
    packhorse.enqueue(raw, "x", {"a": 1})
    raw.rollback()
    packhorse.enqueue(raw, "x", {"a": 2})
    raw.commit()
    raw.close()
    with engine.begin() as connection:
        packhorse.enqueue(connection.connection, "x", {"a": 3})
        packhorse.enqueue(connection.connection.driver_connection, "x", {"a": 4})
    engine.dispose()
    assert database.query("select payload ->> 'a' from message_queue order by id") == [("2",), ("3",), ("4",)]


REGISTER = "select register_worker(gen_random_uuid(), 'host', 1, '0', '{default}', '{note}', 1, '1 minute')"


@pytest.fixture
def warned(monkeypatch, caplog):
    """What was said of unknown types, by a process that has sent nothing yet."""
    monkeypatch.setattr(unknown_types, "_ask_at", {})
    return lambda: [
        record.args for record in caplog.records if record.getMessage().startswith("type_unknown ")
    ]


@pytest.mark.parametrize("driver", SYNC, ids=lambda driver: driver.__name__)
def test_a_type_that_no_worker_knows_is_said_once_with_the_near_miss(database, driver, warned):
    database.query(REGISTER)
    with driver(database) as (connection, commit, _):
        for message_type in ("note", "notte", "notte", "qqq"):
            packhorse.enqueue(connection, message_type, {})
        commit()
    assert warned() == [("notte", "note"), ("qqq", None)]
    assert database.value("select count(*) from message_queue") == 4, (
        "it is a warning: a worker for it may be on its way"
    )


@pytest.mark.parametrize("driver", ASYNC, ids=lambda driver: driver.__name__)
def test_so_it_is_by_an_asynchronous_connection(database, driver, warned):
    database.query(REGISTER)

    async def send():
        async with driver(database) as (connection, commit, _):
            for message_type in ("note", "notte", "notte"):
                await packhorse.enqueue_async(connection, message_type, {})
            await commit()

    asyncio.run(send())
    assert warned() == [("notte", "note")]


def test_nothing_is_said_while_no_worker_lives_and_once_one_does(database, warned, monkeypatch):
    with psycopg_connection(database) as (connection, commit, _):
        packhorse.enqueue(connection, "notte", {})
        commit()
        database.query(REGISTER)
        packhorse.enqueue(connection, "notte", {})
        assert warned() == [], "asked a moment ago"
        monkeypatch.setattr(unknown_types, "ASK_AGAIN_SECONDS", 0.0)
        unknown_types._ask_at.update(dict.fromkeys(unknown_types._ask_at, 0.0))
        packhorse.enqueue(connection, "notte", {})
        commit()
    assert warned() == [("notte", "note")]


def test_a_program_that_makes_types_up_does_not_fill_our_memory(database, warned, monkeypatch):
    monkeypatch.setattr(unknown_types, "MOST_TYPES", 3)
    database.query(REGISTER)
    with psycopg_connection(database) as (connection, _, _):
        for number in range(5):
            packhorse.enqueue(connection, f"made_up_{number}", {})
    assert len(unknown_types._ask_at) == len(warned()) == 3
