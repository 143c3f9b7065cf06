"""A large queue for the page: live messages, a week of archived ones, dead letters of fifty causes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

#: Rows of ten queues; a tenth is blocked in long conversations, half is due.
FILL_LIVE = """
insert into packhorse.message_queue (id, queue, message_type, payload, state, run_at, created_at, conversation_key)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000), 'body', repeat('x', 150)),
  case when n %% 10 = 0 then 'blocked' else 'pending' end, now() + make_interval(secs => n %% 7200 - 3600),
  now() - make_interval(secs => (%(last)s - n) / 20.0), 'conversation' || case when n %% 10 = 0 then n %% 1000 else n end
from generate_series(%(last)s - %(live)s + 1, %(last)s) n
"""
FILL_ARCHIVE = """
insert into packhorse.message_archive (id, queue, message_type, payload, options, priority, state, attempt, crashes, created_at, claimed_at,
  finished_at, conversation_key)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000), 'body', repeat('x', 150)),
  '{}', 5, 'done', 1, 0, t.at - interval '1 minute', t.at - interval '1 second', t.at, 'conversation' || n %% 100000
from generate_series(%(dead)s + 1, %(dead)s + %(archived)s) n
cross join lateral (select now() - interval '6 days' * (%(dead)s + %(archived)s - n) / %(archived)s as at) t
"""
FILL_DEAD = """
insert into packhorse.dead_letters (id, queue, message_type, payload, options, priority, reason, error_class, error_message, traceback, fingerprint,
  attempt, crashes, conversation_key, history, created_at, dead_at)
select n, 'q' || n %% 10, 'type' || n %% 20, jsonb_build_object('customer', jsonb_build_object('id', n %% 50000)), '{}', 5, 'failed',
  'Error' || n %% 50,
  'failed with ' || n, repeat('at somewhere ', 100), md5((n %% 50)::text), 3, 0, 'conversation' || n %% 1000, '[]', now() - interval '3 days',
  now() - make_interval(secs => (%(dead)s - n) * 2)
from generate_series(1, %(dead)s) n
"""
PARTITION = """
create table if not exists packhorse.{name} partition of packhorse.message_archive
for values from (date_trunc('day', now() at time zone 'UTC' - interval '{older} days') at time zone 'UTC')
to (date_trunc('day', now() at time zone 'UTC' - interval '{newer} days') at time zone 'UTC')
"""
DAY = "select 'message_archive_' || to_char(now() at time zone 'UTC' - make_interval(days => %s), 'YYYYMMDD')"


@dataclass(frozen=True, slots=True)
class Rows:
    """How many there are. Ids ascend from dead letters over archived to live messages."""

    live: int
    archived: int

    @property
    def dead(self) -> int:
        return self.live // 10

    @property
    def last(self) -> int:
        """The greatest id."""
        return self.dead + self.archived + self.live


#: An eighth of the live messages is changed, one in seven leaves from the front of its queue and comes again;
#: a quarter of the dead letters is changed. The last ten stay: pages show them.
TOUCH = (
    "alter table packhorse.message_queue set (autovacuum_enabled = false)",
    "alter table packhorse.dead_letters set (autovacuum_enabled = false)",
    """with gone as (select id from packhorse.message_queue where state = 'pending' and run_at <= now()
  and id < %(last)s - 10 order by run_at limit (select count(*) / 7 from packhorse.message_queue))
delete from packhorse.message_queue q using gone g where q.id = g.id""",
    """insert into packhorse.message_queue (queue, message_type, payload, run_at)
select 'q' || n %% 10, 'type' || n %% 20, '{}', now() + make_interval(secs => n %% 7200 - 3600)
from generate_series(1, %(live)s / 7) n""",
    "update packhorse.message_queue set attempt = attempt + 1 where id %% 8 = 3",
    "update packhorse.dead_letters set priority = priority where id %% 4 = 1",
)


def fill(url: str, rows: Rows) -> None:
    """The rows, and statistics about them; two at a time. Takes a minute or two for millions."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("alter system set max_wal_size = '8GB'")  # no checkpoint after each GB
        connection.execute("select pg_reload_conf()")
        for days in range(1, 8):
            found = connection.execute(DAY, (days,)).fetchone()
            assert found is not None
            connection.execute(
                sql.SQL(PARTITION).format(
                    name=sql.Identifier(found[0]), older=sql.SQL(str(days)), newer=sql.SQL(str(days - 1))
                )
            )
        for number in range(10):
            connection.execute("select packhorse.declare_queue(%s)", (f"q{number}",))
        # what is enqueued from now on comes behind
        connection.execute("select setval('packhorse.message_queue_id_seq', %s)", (rows.last + 1000,))
        with ThreadPoolExecutor(2) as two:
            list(two.map(lambda part: part(url, rows), (_fill_archive, _fill_others)))
        # now that no transaction is older than the rows
        connection.execute("vacuum (analyze) packhorse.message_queue, packhorse.dead_letters")
        connection.execute("alter system reset max_wal_size")
        connection.execute("select pg_reload_conf()")
        connection.execute("checkpoint")


def touch(url: str, rows: Rows) -> None:
    """What a busy hour leaves: changed rows on almost every page, no vacuum since."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in TOUCH:
            connection.execute(statement, {"live": rows.live, "last": rows.last})


def tidy(url: str) -> None:
    """End that."""
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("message_queue", "dead_letters"):
            connection.execute(
                sql.SQL("alter table packhorse.{} reset (autovacuum_enabled)").format(sql.Identifier(table))
            )
            connection.execute(sql.SQL("vacuum (analyze) packhorse.{}").format(sql.Identifier(table)))


def _fill_archive(url: str, rows: Rows) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        # an index is built faster than kept
        connection.execute("drop index packhorse.message_archive_id_idx")
        connection.execute(FILL_ARCHIVE, {"archived": rows.archived, "dead": rows.dead})
        connection.execute("create index message_archive_id_idx on packhorse.message_archive (id)")
        connection.execute("vacuum (analyze) packhorse.message_archive")


def _fill_others(url: str, rows: Rows) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(FILL_DEAD, {"dead": rows.dead})
        connection.execute(FILL_LIVE, {"live": rows.live, "last": rows.last})
