"""The limit of the machine: a minimal table, psycopg 3, and one statement per hundred messages.

The statement deletes the previous batch and claims the next one, so a message costs one round trip and one
commit divided by a hundred. No retry, no lease, no order per conversation: nothing a queue promises.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, ClassVar

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from benchmarks.harness.claim_log import ClaimLog
from benchmarks.harness.handler import chosen_handler
from benchmarks.harness.payload import NUMBER_MARK, SENT_MARK, TEMPLATE
from benchmarks.systems.base import PEER_CASES, Producer, Sizes
from benchmarks.systems.postgres_base import PostgresSystem, SqlProducer

BATCH = 100
POLL_SECONDS = 1.0
CHANNEL = "raw_queue"

SCHEMA = """
create table raw_queue (
  id bigint generated always as identity primary key,
  queue text not null,
  payload jsonb not null,
  state smallint not null default 0,
  created_at timestamptz not null default now()
);
create index raw_queue_pending on raw_queue (id) where state = 0;
"""
INSERT = "insert into raw_queue (queue, payload) values ('bench', %s)"
INSERT_AND_NOTIFY = """
with inserted as (insert into raw_queue (queue, payload) values ('bench', %s))
select pg_notify('raw_queue', '')
"""
COPY = "copy raw_queue (queue, payload) from stdin"
FILL = """
insert into raw_queue (queue, payload)
select 'bench', replace(replace(%s, %s, number::text), %s, '0')::jsonb
from generate_series(1, %s) as number
"""
CLAIM = """
with deleted as (
  delete from raw_queue where id = any(%s)
)
update raw_queue set state = 1
where id = any(array(
  select id from raw_queue where state = 0 order by id limit %s for update skip locked
))
returning id, payload
"""


class RawProducer(SqlProducer):
    """Bare inserts; with `notify`, an insert and its notification in one transaction."""

    def __init__(self, url: str, *, notify: bool = False) -> None:
        super().__init__(url)
        self._statement = INSERT_AND_NOTIFY if notify else INSERT
        self._notify = notify

    def one(self, message: dict[str, Any]) -> None:
        """Insert one row."""
        self.connection.execute(self._statement, (Jsonb(message),), prepare=True)

    def many(self, messages: list[dict[str, Any]]) -> None:
        """COPY the rows in one transaction."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            with cursor.copy(COPY) as copy:
                for message in messages:
                    copy.write_row(("bench", Jsonb(message)))
            if self._notify:
                cursor.execute("select pg_notify(%s, '')", (CHANNEL,))


class Adapter(PostgresSystem):
    """The raw table as a system."""

    name: ClassVar[str] = "raw"
    module: ClassVar[str] = "benchmarks.systems.raw"
    table: ClassVar[tuple[str, ...]] = ("raw_queue",)
    sizes: ClassVar[Sizes] = Sizes(drain={1: 150_000, 2: 200_000}, bulk=400_000)
    cases: ClassVar[frozenset[str]] = PEER_CASES | {
        "enqueue/producers16",
        "backlog/without",
        "backlog/with",
        "snapshot",
    }

    def install(self) -> None:
        """Create the table."""
        with psycopg.connect(self.store_url()) as connection:
            connection.execute(SCHEMA)

    def fill(self, connection: psycopg.Connection[Any], count: int) -> None:
        """Insert `count` rows and wake the workers at the commit."""
        connection.execute(FILL, (TEMPLATE, NUMBER_MARK, SENT_MARK, count))
        connection.execute("select pg_notify(%s, '')", (CHANNEL,))

    def producer(self) -> Producer:
        """A producer that wakes idle workers."""
        return RawProducer(self.store_url(), notify=True)

    @staticmethod
    def make_producer(url: str) -> Producer:
        """A producer; BENCH_RAW_NOTIFY makes it notify."""
        return RawProducer(url, notify="BENCH_RAW_NOTIFY" in os.environ)


def work(url: str) -> None:
    """Claim, handle and delete until the process is ended."""
    handler = chosen_handler()
    log = ClaimLog.from_env()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(CHANNEL)))
        print("ready", flush=True)
        done: list[int] = []
        while True:
            started = time.perf_counter()
            rows = connection.execute(CLAIM, (done, BATCH), prepare=True).fetchall()
            log.add(time.perf_counter() - started)
            for _id, message in rows:
                handler(**message)
            done = [row[0] for row in rows]
            if not done:
                for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                    pass


if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work(os.environ["DATABASE_URL"])
