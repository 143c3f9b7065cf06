"""Databases that fixtures lend, and one for a whole file of quick tests, emptied before each: cheaper than a
clone per test (the mark `one_database`, see tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
from psycopg import sql

from packhorse.worker.db.connection import DeadlineConnection, connect
from tests.support.postgres import Database, Server

_TABLES = """select relname from pg_class where relnamespace in ('packhorse'::regnamespace, 'public'::regnamespace) and relkind in ('r', 'p') and not relispartition
             and relname <> 'packhorse_migrations'"""
_USED_SEQUENCES = "select schemaname || '.' || sequencename, start_value from pg_sequences where schemaname in ('packhorse', 'public') and last_value is not null"


def lent(database: Database) -> Iterator[Database]:
    """A database that is dropped at the end."""
    yield database
    database.drop()


def one(server: Server) -> Iterator[Database]:
    """One with the schema."""
    yield from lent(server.create_database())


def migrators(database: Database) -> Iterator[DeadlineConnection]:
    """A connection as `packhorse migrate` has it, closed at the end."""
    connection = connect(database.admin_url, deadline_seconds=60)
    yield connection
    connection.close()


def emptied(database: Database) -> Database:
    """The same database as it was after its migrations: no rows, one queue with default settings."""
    with database.session() as connection:
        full = full_tables(connection)
        if full:
            connection.execute(sql.SQL("truncate {} cascade").format(sql.SQL(", ").join(full)))
        restart_sequences(connection)
        connection.execute("select declare_queue('default')")
    return database


def full_tables(connection: psycopg.Connection) -> list[sql.Identifier]:
    """Those that hold rows: truncate makes new files, even of an empty table."""
    names = [row[0] for row in connection.execute(_TABLES)]
    look = sql.SQL(" union all ").join(
        sql.SQL("select {} where exists (select from {})").format(name, sql.Identifier(name))
        for name in names
    )
    return [sql.Identifier(row[0]) for row in connection.execute(look)]


def restart_sequences(connection: psycopg.Connection) -> None:
    for sequence, start in connection.execute(_USED_SEQUENCES).fetchall():
        connection.execute("select setval(%s::regclass, %s, false)", (sequence, start))
