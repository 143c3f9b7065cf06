"""Databases in another encoding than UTF-8, or with another style of dates: what is enqueued there arrives
whole and in order.
"""

from __future__ import annotations

from contextlib import contextmanager
from uuid import uuid4

import pytest

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from packhorse.worker.db.errors import translated
from packhorse.worker.errors import InvalidArgument, UndecodableMessage
from packhorse.worker.store import messages as store
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

TEXT = '{"name": "Zoé"}'


@contextmanager
def encoded(server, encoding):
    """A migrated database of this encoding."""
    database = Database(server, encoding.lower())
    server.command(
        f"create database {{}} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0",
        database.name,
    )
    with connect(database.admin_url, deadline_seconds=60) as connection:
        migrate.up(connection)
    yield database
    database.drop()


@pytest.fixture
def latin1(any_server):
    """Cannot hold every character, and its sessions speak LATIN1 by default."""
    with encoded(any_server, "LATIN1") as database:
        yield database


def test_texts_of_a_latin1_database_arrive_whole(latin1):
    with latin1.connect(client_encoding="utf8") as producer:
        producer.execute("select enqueue_message('default', 't', %s)", (TEXT,))
    with connect(latin1.url) as connection:
        store.enqueue_plain(connection, "default", "t", TEXT, "{}", 5)
        claimed, _ = store.complete_and_claim(
            connection, [], [], uuid4(), ["default"], 10, "30 seconds", None
        )
    assert [row[5] for row in claimed] == [TEXT, TEXT]


def test_a_character_that_the_database_does_not_have_is_refused(latin1):
    with connect(latin1.url) as connection, pytest.raises(InvalidArgument, match="LATIN1"), translated():
        store.enqueue_plain(connection, "default", "t", '{"name": "日本"}', "{}", 5)


def test_times_sort_as_texts_whatever_the_database_is_set_to(any_database):
    """The cursor of a claim compares run_at as text: German dates and an hour that comes twice must not
    confuse it.
    """
    for setting in ("datestyle = 'German'", "timezone = 'Europe/Berlin'"):
        any_database.query(f'alter database "{any_database.name}" set {setting}')
    with any_database.connect(admin=True) as admin:
        admin.execute("select declare_queue('q')")
        for moment in ("2016-10-30 00:30+00", "2016-10-30 01:10+00", "2016-11-01 00:00+00"):
            admin.execute(
                "select enqueue_message('q', 't', '{}', p_run_at => %s::text::timestamptz)", (moment,)
            )
    with connect(any_database.url, times_in_utc=True) as connection:
        claimed, _ = store.complete_and_claim(connection, [], [], uuid4(), ["q"], 10, "30 seconds", None)
    assert [row[14] for row in claimed] == [
        "2016-10-30 00:30:00+00",
        "2016-10-30 01:10:00+00",
        "2016-11-01 00:00:00+00",
    ]
    with connect(any_database.url) as connection:
        assert connection.execute("show datestyle").fetchone()[0].startswith("ISO")
        assert connection.execute("show timezone").fetchone()[0] == "Europe/Berlin", (
            "handlers keep the database's zone"
        )


@pytest.fixture
def unchecked(any_server):
    """Takes any bytes: what `initdb --locale=C` makes."""
    with encoded(any_server, "SQL_ASCII") as database:
        yield database


def test_bytes_that_are_no_text_are_one_undecodable_message_and_stop_no_other(unchecked):
    """Asked for UTF-8 the server refused every claim that met such a row: one producer without it stopped the
    queue.
    """
    with unchecked.connect(client_encoding="SQL_ASCII") as producer:
        for name, correlation in (
            (b"J\xf6rg", b"J\xf6rg"),
            (b"ok", b"J\xf6rg"),
            (TEXT.encode()[10:14], b"c"),
        ):
            producer.execute(
                b"select enqueue_message('default', 't', '{\"name\": \""
                + name
                + b"\"}', p_correlation_id => '"
                + correlation
                + b"')"
            )
    with connect(unchecked.url) as connection:
        rows, _ = store.complete_and_claim(connection, [], [], uuid4(), ["default"], 10, "30 seconds", None)
        broken, *good = [ClaimedMessage(row, 0.0, 0.0) for row in rows]
        with pytest.raises(UndecodableMessage):
            broken.decode()
        for message in good:
            message.decode()
        assert [message.kwargs["name"] for message in good] == ["ok", "Zoé"]
        assert [message.correlation_id for message in good] == [r"J\xf6rg", "c"]
        assert store.bury(connection, broken.id, broken.lease_token, "undecodable", "UndecodableMessage", "é")
        assert store.complete(connection, [m.id for m in good], [m.lease_token for m in good]) == [
            m.id for m in good
        ]
