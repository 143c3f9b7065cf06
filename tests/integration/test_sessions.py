"""What a session of ours is like, whatever the defaults of its role are (SPEC O10, FAILURES 42)."""

from __future__ import annotations

from urllib.parse import quote
from uuid import uuid4

import pytest
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict

from packhorse.worker.db.connection import connect
from packhorse.worker.store import messages as store
from tests.support.waiting import wait_until


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_conversation_goes_on_under_a_role_with_another_isolation(any_database, isolation):
    """The outcome was refused, the lease ran out, and a message that was done was counted as one that kills
    processes.
    """
    any_database.query(
        f"alter role packhorse_test in database \"{any_database.name}\" set default_transaction_isolation = '{isolation}'"
    )
    any_database.query(
        "select enqueue_message('default', 't', p_conversation_key => 'k') from generate_series(1, 2)"
    )
    with connect(any_database.url) as connection:
        for _ in range(2):
            ((row, *_), _) = store.complete_and_claim(
                connection, [], [], uuid4(), ["default"], 10, "30 seconds", None
            )
            with connection.transaction():
                assert store.complete(connection, [row[1]], [row[2]]) == [row[1]]
    assert any_database.query("select state from all_messages") == [("done",), ("done",)]


@pytest.mark.slow
def test_the_server_ends_what_nobody_waits_for_any_more(any_database):
    """A statement that outlives our deadline went on for as long as it took, with its locks, and
    committed.
    """
    with (
        connect(any_database.url, deadline_seconds=0.5, application_name="gone") as connection,
        pytest.raises(OperationalError),
    ):
        connection.execute("select pg_sleep(60)")
    wait_until(
        lambda: (
            any_database.value("select count(*) from pg_stat_activity where application_name = 'gone'") == 0
        ),
        15,
        "the session ends",
    )


@pytest.mark.parametrize("way", ["url", "environment", "service", "service of the environment"])
def test_of_several_hosts_a_writable_one_is_taken_wherever_they_are_named(
    database, tmp_path, monkeypatch, way
):
    """And what else stands there (options) holds beside the schema of the queue."""
    database.query("create schema elsewhere")
    database.query("grant usage on schema elsewhere to public")
    folder = database.server.socket_dir
    options = "-c statement_timeout=12345"
    service = tmp_path / "services"
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    user = conninfo_to_dict(database.url)["user"]
    service.write_text(
        f"[queue]\nhost={folder},{folder}\nuser={user}\ndbname={database.name}\noptions={options}\n"
    )
    if way == "url":
        url = f"postgresql://{user}@/{database.name}?host={folder},{folder}&options={quote(options)}"
    elif way == "environment":
        url = f"postgresql://{user}@/{database.name}"
        monkeypatch.setenv("PGHOST", f"{folder},{folder}")
        monkeypatch.setenv("PGOPTIONS", options)
    elif way == "service":
        url = "postgresql://?service=queue"
    else:
        url = "postgresql://"
        monkeypatch.setenv("PGSERVICE", "queue")
    connection = connect(url)
    assert connection.info.get_parameters()["target_session_attrs"] == "read-write"
    assert connection.execute("select current_setting('statement_timeout')").fetchone() == ("12345ms",)
    connection.close()
