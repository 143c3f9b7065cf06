"""One SQL clock that a test stops and moves: a database whose functions, defaults and views ask
`testing.clock()` where those of the product ask `clock_timestamp()` and `statement_timestamp()`.

Only such a database of the tests has it: it is made from the template, as `migrate up` left it, by putting
another call into each text. Time passes for all of it at once, as it does for a worker: leases, delays,
windows and what was seen when.
"""

from __future__ import annotations

import re
from datetime import datetime

import psycopg

from tests.sql.client import Lease, Sql
from tests.support.postgres import Database

#: As PostgreSQL writes them, in texts of which ours are the only ones.
REAL = re.compile(r"(?:pg_catalog\.)?(?:clock|statement)_timestamp\(\)")
#: at: when it is; no row: as it really is.
CLOCK = """
create table testing.clock_stands (at timestamptz not null);
grant select, insert, update, delete on testing.clock_stands to public;
create function testing.clock() returns timestamptz language sql volatile as
  $$ select coalesce((select c.at from testing.clock_stands c), pg_catalog.clock_timestamp()) $$;
"""
#: Texts that make again what asks the clock. Triggers keep their functions, and rights stay.
FUNCTIONS = """
select pg_get_functiondef(p.oid) from pg_proc p
where p.pronamespace in ('packhorse'::regnamespace, 'public'::regnamespace, 'testing'::regnamespace)
  and p.prokind = 'f' and p.oid <> 'testing.clock'::regproc and pg_get_functiondef(p.oid) ~ '(clock|statement)_timestamp'
"""
VIEWS = """
select format('create or replace view %s.%I as %s', c.relnamespace::regnamespace, c.relname, pg_get_viewdef(c.oid)) from pg_class c
where c.relnamespace in ('packhorse'::regnamespace, 'public'::regnamespace) and c.relkind = 'v'
  and pg_get_viewdef(c.oid) ~ '(clock|statement)_timestamp' order by c.oid
"""
DEFAULTS = """
select format('alter table %s alter column %I set default %s', d.adrelid::regclass, a.attname, pg_get_expr(d.adbin, d.adrelid))
from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
where pg_get_expr(d.adbin, d.adrelid) ~ '(clock|statement)_timestamp'
"""


def with_a_clock(database: Database) -> Database:
    """The same database, after its clock was put in."""
    with database.connect(admin=True) as connection:
        connection.execute(CLOCK, prepare=False)
        for texts in FUNCTIONS, VIEWS, DEFAULTS:
            for (text,) in connection.execute(texts).fetchall():
                connection.execute(REAL.sub("testing.clock()", text).encode(), prepare=False)
    return database


class FrozenSql(Sql):
    """The SQL API in such a database, whose clock stands from now on; it moves when the test says so."""

    def __init__(self, connection: psycopg.Connection) -> None:
        super().__init__(connection)
        self.rows("insert into testing.clock_stands values (date_trunc('second', clock_timestamp()))")

    @property
    def now(self) -> datetime:
        """What the clock says."""
        moment: datetime = self.value("select at from testing.clock_stands")
        return moment

    def later(self, interval: str) -> None:
        """So much time passes."""
        self.rows("update testing.clock_stands set at = at + %s::interval", interval)

    def until(self, moment: datetime) -> None:
        """It becomes so late; nothing when it is later already."""
        self.rows("update testing.clock_stands set at = greatest(at, %s)", moment)

    def crash(self, lease: Lease) -> int:
        """Time passes until the lease is over, a day when it has no end, and rescue runs; how many were
        returned.
        """
        self.rows(
            "update testing.clock_stands set at = greatest(at, (select case when isfinite(m.lease_expires_at) "
            "then m.lease_expires_at else at + interval '1 day' end from message_queue m where m.id = %s))",
            lease.id,
        )
        self.later("1 millisecond")
        return int(self.value("select rescue_expired_messages()"))

    def due_now(self) -> None:
        """Time passes until every message is due."""
        (latest,) = self.rows("select max(run_at) from message_queue")[0]
        if latest is not None:
            self.until(latest)
