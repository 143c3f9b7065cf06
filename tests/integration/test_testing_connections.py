"""run_actor on the connection of a test (SPEC W12): the handler works in the test's transaction, and cannot
end it.
"""

from __future__ import annotations

import asyncio
import warnings

import psycopg
import pytest
from psycopg.rows import dict_row

import packhorse
from packhorse.testing import run_actor, run_actor_async
from tests.support.harness import quick_settings

pytestmark = pytest.mark.one_database


@pytest.fixture
def broker(database, monkeypatch):
    broker = packhorse.PostgresBroker(settings=quick_settings(database))
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)
    yield broker
    broker.close()


@pytest.fixture
def table(database):
    database.query("drop table if exists effects", admin=True)
    database.query("create table effects (what text)", admin=True)
    database.query("grant all on effects to public", admin=True)


def effects(database):
    return [row[0] for row in database.query("select what from effects")]


def test_effects_and_messages_are_the_transactions_of_the_test(broker, database, table):
    @packhorse.actor
    def follow():
        pass

    @packhorse.actor(transactional=True)
    def write(what):
        connection = packhorse.current_connection()
        with connection.transaction():
            connection.execute("insert into public.effects values (%s)", (what,))
        connection.execute("set local search_path = pg_catalog")
        follow.send()
        return connection.execute("select count(*) as n from public.effects").fetchone()

    with psycopg.connect(database.url, row_factory=dict_row) as connection:
        for _ in range(7):  # psycopg prepares what comes often: both objects know the same names
            assert run_actor(write, "a", connection=connection)["n"] >= 1
            connection.execute("select what from public.effects where what = %s", ("a",))
        assert connection.execute("select count(*) as n from packhorse.message_queue").fetchone() == {"n": 7}
        connection.rollback()
        assert effects(database) == [] and database.value("select count(*) from message_queue") == 0
        run_actor(write, "b", connection=connection)
        connection.commit()
    assert effects(database) == ["b"] and database.value("select count(*) from message_queue") == 1


def test_a_handler_can_neither_commit_nor_roll_back(broker, database, table):
    @packhorse.actor(transactional=True)
    def commits():
        packhorse.current_connection().commit()

    with psycopg.connect(database.url) as connection:
        with pytest.raises(psycopg.ProgrammingError):
            run_actor(commits, connection=connection)
        connection.rollback()


def test_a_connection_that_commits_by_itself_needs_a_transaction(broker, database, table):
    @packhorse.actor(transactional=True)
    def write():
        packhorse.current_connection().execute("insert into effects values ('x')")

    heard = []
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        with pytest.raises(
            packhorse.InvalidArgument,
            match=r"^connection: commits each statement by itself.*with connection.transaction",
        ):
            run_actor(write, connection=connection)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with connection.transaction(force_rollback=True):
                run_actor(write, connection=connection)
                assert connection.execute("select count(*) from effects").fetchone() == (1,)
        connection.execute("do $$ begin raise notice 'still heard'; end $$")
        with pytest.raises(packhorse.InvalidArgument, match="is synchronous"):
            run_actor(
                packhorse.actor(actor_name="later", transactional=True)(_nothing), connection=connection
            )
    assert effects(database) == [] and heard == ["still heard"]


async def _nothing():
    pass


def test_a_coroutine_works_in_the_transaction_of_the_test(broker, database, table):
    @packhorse.actor
    def follow():
        pass

    @packhorse.actor(transactional=True)
    async def write(what):
        await packhorse.current_async_connection().execute("insert into effects values (%s)", (what,))
        await follow.send_async()

    async def test():
        async with await psycopg.AsyncConnection.connect(database.url) as connection:
            await run_actor_async(write, "gone", connection=connection)
            await connection.rollback()
            await run_actor_async(write, "kept", connection=connection)
            with pytest.raises(packhorse.InvalidArgument, match="is asynchronous"):
                await run_actor_async(
                    packhorse.actor(actor_name="plain", transactional=True)(lambda: None),
                    connection=connection,
                )

    asyncio.run(test())
    assert effects(database) == ["kept"] and database.value("select count(*) from message_queue") == 1
