"""A walk in the order of storage: each row once, no page twice, and anew when the table was stored anew."""

from __future__ import annotations

from threading import Event

import pytest

from packhorse.schedules.backfill import declare
from packhorse.schedules.backfill.engine import BackfillRun
from packhorse.worker.db import composed
from packhorse.worker.db.connection import connect
from packhorse.worker.db.queries import sql
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store.backfill_tables import Batch, SourceTable
from tests.schedules.backfill.conftest import OPEN
from tests.schedules.backfill.test_agent_sessions import ACCOUNT, NAME, SOURCE

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

ROWS = 3000


@pytest.fixture
def scattered(mover):
    """Random keys; every third row was deleted, and a tenth was changed, so it has moved."""
    mover.database.query(SOURCE)
    mover.database.query(
        "insert into ai_agent_sessions (phone, expires_at) select '2507' || lpad(n::text, 8, '0'), now() - interval '1 h' "
        f"from generate_series(1, {ROWS * 3 // 2}) n"
    )
    mover.database.query("delete from ai_agent_sessions where right(phone, 5)::int % 3 = 0")
    mover.database.query(
        "update ai_agent_sessions set context = jsonb_build_object('text', repeat(phone, 30)) where phone like '%7'"
    )
    assert mover.database.value("select count(*) from ai_agent_sessions") == ROWS
    return mover


def source_of(mover) -> SourceTable:
    source = declare.find(NAME).find_source(mover.connection)
    assert source is not None
    return source


def ids(mover, batch: Batch) -> list[str]:
    text = composed.SQL("select s.id::text from {} s where {}").format(batch.source.identifier, batch.where())
    return [row[0] for row in mover.connection.execute(text, batch.parameters).fetchall()]


def test_every_row_is_in_one_batch_and_batches_follow_the_storage(scattered):
    source = source_of(scattered)
    after, found, sizes = None, [], []
    while True:
        with scattered.connection.transaction():
            batch = tables.next_batch(scattered.connection, source, after, 700)
            if batch is None:
                break
            assert batch.through != batch.after
            found += ids(scattered, batch)
            sizes.append(batch.rows)
            after = batch.through
    assert sizes == [700, 700, 700, 700, 200]
    stored = scattered.database.query("select id::text from ai_agent_sessions order by ctid")
    assert len(found) == ROWS and set(found) == {row[0] for row in stored}
    assert set(found[:700]) == {row[0] for row in stored[:700]}


@pytest.mark.parametrize("rows", [100, ROWS])
def test_a_batch_reads_no_page_that_is_not_its_own(scattered, rows):
    """In a small table, too, where the planner would read the whole, which may begin anywhere."""
    scattered.database.query(f"delete from ai_agent_sessions where right(phone, 5)::int > {rows * 3 // 2}")
    scattered.database.query("vacuum (full, analyze) ai_agent_sessions")
    source = source_of(scattered)
    with scattered.connection.transaction():
        first = tables.next_batch(scattered.connection, source, None, 10)
        assert first is not None
        walk = composed.SQL("explain " + scattered.connection.names.of(sql("backfill_through_place"))).format(
            table=source.identifier
        )
        given = {"source": source.quoted, "file": first.through[1], "after": "(0,0)", "limit": 10}
        of_the_walk = "\n".join(row[0] for row in scattered.connection.execute(walk, given).fetchall())
        batch = composed.SQL("explain select s.id from {} s where {}").format(
            source.identifier, first.where()
        )
        of_the_batch = "\n".join(
            row[0] for row in scattered.connection.execute(batch, first.parameters).fetchall()
        )
    for plan in (of_the_walk, of_the_batch):
        assert "Tid Range Scan on ai_agent_sessions" in plan and "Seq Scan" not in plan, plan


def test_the_walk_begins_anew_when_the_table_was_stored_anew(scattered):
    source = source_of(scattered)
    with scattered.connection.transaction():
        first = tables.next_batch(scattered.connection, source, None, 700)
    assert first is not None
    with scattered.connection.transaction():
        second = tables.next_batch(scattered.connection, source, first.through, 700)
    assert second is not None and second.after == first.through[:1]
    scattered.database.query("vacuum full ai_agent_sessions")
    with scattered.connection.transaction():
        anew = tables.next_batch(scattered.connection, source, second.through, 700)
    assert anew is not None and anew.after == ["(0,0)"] and anew.rows == 700


def test_a_run_that_was_paused_goes_on_after_the_table_was_stored_anew(scattered, small_batches):
    stop = Event()
    run = BackfillRun(
        lambda: connect(scattered.database.admin_url, deadline_seconds=60),
        declare.find(NAME),
        OPEN,
        operator="ada",
        stop=stop,
        on_progress=lambda rows, gate: stop.set(),
    )
    assert run.run().state == "paused"
    copied = scattered.database.value("select count(*) from agent_chat_sessions")
    assert 0 < copied < ROWS
    scattered.database.query("vacuum full ai_agent_sessions")
    assert scattered.run(NAME, silent_after_seconds=0.01).state == "succeeded"
    assert scattered.database.query(ACCOUNT) == [(ROWS, ROWS)] and scattered.state(NAME) == "verified"
    assert scattered.database.value("select count(*) from agent_chat_sessions") == ROWS
    assert scattered.database.value("select rows_copied from backfills") == ROWS, "none counts twice"


def test_a_row_that_moves_behind_the_walk_is_found_and_copied_by_the_next_run(mover, small_batches):
    """It outgrows its page, and the first one has room again."""
    mover.database.query(SOURCE)
    mover.database.query(
        "insert into ai_agent_sessions (phone) select '2507' || lpad(n::text, 8, '0') from generate_series(1, 3000) n"
    )
    mover.database.query("delete from ai_agent_sessions where ctid < '(1,0)'")
    moved = mover.database.value("select id from ai_agent_sessions where ctid = '(10,1)'")
    rows = mover.database.value("select count(*) from ai_agent_sessions")
    grow = "update ai_agent_sessions set context = (select jsonb_agg(md5(n::text)) from generate_series(1, 50) n) where id = %s"
    moving = [True]

    def move(rows: int, gate: str | None) -> None:
        if moving:
            moving.clear()
            mover.database.query("vacuum ai_agent_sessions")
            mover.database.query(grow, moved)

    assert mover.run(NAME, on_progress=move).state == "succeeded"
    assert mover.database.value("select ctid < '(1,0)' from ai_agent_sessions where id = %s", moved)
    assert mover.state(NAME) == "copied", "the comparison has found it"
    assert mover.run(NAME).state == "succeeded" and mover.state(NAME) == "verified"
    assert mover.database.query(ACCOUNT) == [(rows, rows)]


def test_a_source_in_partitions_is_walked_by_its_key(mover):
    """Places of one partition say nothing in the next."""
    mover.database.query(SOURCE.strip() + " partition by hash (id)")
    for part in range(2):
        mover.database.query(
            f"create table old_{part} partition of ai_agent_sessions for values with (modulus 2, remainder {part})"
        )
    mover.database.query(
        "insert into ai_agent_sessions (phone) select '25078' || n from generate_series(1, 200) n"
    )
    assert not source_of(mover).by_place
    assert mover.run(NAME).state == "succeeded" and mover.state(NAME) == "verified"
    assert mover.database.query(ACCOUNT) == [(200, 200)]
