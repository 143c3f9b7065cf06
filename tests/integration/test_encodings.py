"""Databases in another encoding than UTF-8, or with another style of dates: what is enqueued there arrives whole and in order."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.support.postgres import Database
from worker.db import migrate
from worker.db.connection import connect
from worker.db.errors import translated
from worker.errors import InvalidArgument
from worker.store import messages as store

TEXT = '{"name": "Zoé"}'


@pytest.fixture
def latin1(any_server):
    """A migrated database that cannot hold every character, and whose sessions speak LATIN1 by default."""
    database = Database(any_server, "latin1")
    any_server.command("create database {} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0", database.name)
    with connect(database.admin_url, deadline_seconds=60) as connection:
        migrate.up(connection)
    yield database
    database.drop()


def test_texts_of_a_latin1_database_arrive_whole(latin1):
    with latin1.connect(client_encoding="utf8") as producer:
        producer.execute("select enqueue_message('default', 't', %s)", (TEXT,))
    with connect(latin1.url) as connection:
        store.enqueue_plain(connection, "default", "t", TEXT, "{}", 5)
        claimed = store.complete_and_claim(connection, [], [], uuid4(), ["default"], 10, "30 seconds", None)
    assert [row[5] for row in claimed] == [TEXT, TEXT]


def test_a_character_that_the_database_does_not_have_is_refused(latin1):
    with connect(latin1.url) as connection, pytest.raises(InvalidArgument, match="LATIN1"), translated():
        store.enqueue_plain(connection, "default", "t", '{"name": "日本"}', "{}", 5)


def test_times_sort_as_texts_whatever_the_database_is_set_to(any_database):
    """The cursor of a claim compares run_at as text: German dates and an hour that comes twice must not confuse it."""
    for setting in ("datestyle = 'German'", "timezone = 'Europe/Berlin'"):
        any_database.query(f'alter database "{any_database.name}" set {setting}')
    with any_database.connect(admin=True) as admin:
        admin.execute("select declare_queue('q')")
        for moment in ("2016-10-30 00:30+00", "2016-10-30 01:10+00", "2016-11-01 00:00+00"):
            admin.execute("select enqueue_message('q', 't', '{}', p_run_at => %s::text::timestamptz)", (moment,))
    with connect(any_database.url, times_in_utc=True) as connection:
        claimed = store.complete_and_claim(connection, [], [], uuid4(), ["q"], 10, "30 seconds", None)
    assert [row[14] for row in claimed] == ["2016-10-30 00:30:00+00", "2016-10-30 01:10:00+00", "2016-11-01 00:00:00+00"]
    with connect(any_database.url) as connection:
        assert connection.execute("show datestyle").fetchone()[0].startswith("ISO")
        assert connection.execute("show timezone").fetchone()[0] == "Europe/Berlin", "handlers keep the database's zone"
