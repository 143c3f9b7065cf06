"""Databases in another encoding than UTF-8: what is enqueued there arrives whole."""

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
