"""No screen reads a large table from one end to the other (SPEC O6: cheap on a table of any size)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from packhorse.worker.store import browse
from tests.support.page import Page
from tests.support.postgres import Database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LIVE, ARCHIVED, DEAD = 40_000, 40_000, 10_000
FILL = f"""
insert into dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, traceback, fingerprint, attempt, crashes,
  conversation_key, created_at, dead_at)
select n, 'q' || n % 3, 'effect', '{{}}', '{{}}', 5, 'failed', 'ValueError', 'no ' || n, repeat('at ', 400), 'cause' || n % 5, 1, 0, 'dead' || n % 100,
  now() - interval '1 hour', now() - make_interval(secs => {DEAD} - n) from generate_series(1, {DEAD}) n;
insert into message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at, finished_at,
  conversation_key)
select {DEAD} + n, 'q' || n % 3, 'effect', '{{}}', '{{}}', 5, 'done', 1, 0, now(), now(), now(), 'c' || n % 5000
from generate_series(1, {ARCHIVED}) n;
insert into message_queue (id, queue, message_type, payload, state, conversation_key, run_at)
select {DEAD + ARCHIVED} + n, 'q' || n % 3, 'effect', jsonb_build_object('n', n),
  case when n % 10 = 0 then 'blocked' else 'pending' end, case when n % 10 = 0 then 'held' || n % 50 else 'free' || n end,
  now() + make_interval(secs => n % 600 - 300) from generate_series(1, {LIVE}) n;
select declare_queue('q0'), declare_queue('q1'), declare_queue('q2')
"""
#: The same with the bounds of browse.py, which are larger than these tables.
BOUNDED = (
    "/messages?where=payload.n%3D7",
    "/messages?where=queue%3Dnothing",
    f"/messages?where=payload.n%3D7&after={DEAD}",
    "/dead-letters",
    "/dead-letters?where=payload.n%3D7",
    "/dead-letters/groups/cause1",
)
#: Looks at the first so many rows of a table, whichever they are, are no scan of the whole.
MOST = 5000
NEWEST = DEAD + ARCHIVED + LIVE
#: Addresses of each screen that asks these tables. None with a filter, and no conversation: their walks over
#: the newest 100,000 messages read all of a table that is smaller than that.
ADDRESSES = (
    "/",
    "/queues",
    "/queues/q1",
    "/messages",
    f"/messages?before={DEAD + ARCHIVED}",
    f"/messages?after={DEAD}",
    "/messages?where=state%3Dblocked",
    "/messages?where=state%3Drunning",
    f"/messages?where=id%3D{NEWEST}",
    f"/messages/{NEWEST - 1}",
    f"/messages/{NEWEST}",
    f"/messages/{DEAD + 7}",
    f"/messages/{DEAD}",
    "/completions?where=queue%3D",
    "/conversations",
    "/dead-letters",
    "/dead-letters/groups/cause1",
    f"/dead-letters/{DEAD}",
    "/workers",
    "/schedules",
    "/maintenance",
    "/partitions",
    "/services",
    "/database",
    "/audit",
)
SCANNED = """
select c.relname::text, pg_stat_get_tuples_returned(c.oid) from pg_class c
where c.relkind = 'r' and c.relnamespace = 'packhorse'::regnamespace
  and (c.relname in ('message_queue', 'dead_letters') or c.relname like 'message_archive%')
"""


PAGES = "select count(*) from pg_stat_activity where datname = current_database() and application_name like '%%web%%'"


def scans(database: Database) -> dict[str, int]:
    """Rows of each large table that were read by scans of the table itself."""
    return dict(database.query(SCANNED))


def test_no_screen_reads_a_large_table_whole(
    database: Database, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    for statement in FILL.split(";\n"):
        database.query(statement)
    database.query("vacuum analyze message_queue, message_archive, dead_letters")
    assert read_whole(database, open_page, ADDRESSES) == {}

    with psycopg.connect(database.admin_url) as connection:  # the measure sees a scan where there is one
        before = scans(database)
        connection.execute("select count(payload) from packhorse.message_queue")
    wait_until(lambda: scans(database)["message_queue"] - before["message_queue"] > MOST)

    for bound, rows in (
        ("MOST_ROWS", 2000),
        ("MOST_COST", 1),
        ("MOST_LETTERS", 2000),
        ("NEWEST_LETTERS", 1000),
        ("SAMPLED_LETTERS", 2000),
    ):
        monkeypatch.setattr(browse, bound, rows)  # as if the tables were so much larger
    assert read_whole(database, open_page, BOUNDED) == {}


def read_whole(
    database: Database, open_page: Callable[..., Page], addresses: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """The addresses whose screens read more than MOST rows of a table by scans of it, and which."""
    found = {}
    for address in addresses:
        before = scans(database)
        page = open_page(database)
        answer = page.browser().get(address)
        page.close()  # its backends tell their numbers when they end
        wait_until(lambda: database.query(PAGES) == [(0,)])
        assert answer.status_code == 200, f"{address}: {answer.status_code}"
        assert "Old data" not in answer.text and "Not known" not in answer.text, address
        if address == "/":  # the last 500 blocks of a day of the archive are read, which here is all of it
            before = {name: n for name, n in before.items() if not name.startswith("message_archive_")}
        whole = {
            name: n - before[name] for name, n in scans(database).items() if n - before.get(name, n) > MOST
        }
        if whole:
            found[address] = whole
    return found
