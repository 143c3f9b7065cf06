"""The clock that tests stop: nothing in the database asks another one."""

from __future__ import annotations

from tests.sql.frozen import FrozenSql
from tests.support.waiting import wait_until


def test_time_stands_for_functions_defaults_and_views_until_it_is_moved(frozen_sql: FrozenSql) -> None:
    before = frozen_sql.now
    real = frozen_sql.value("select clock_timestamp()")
    wait_until(lambda: frozen_sql.value("select clock_timestamp() > %s", real))
    lease = frozen_sql.claimed()
    row = frozen_sql.live(lease.id)
    assert (row["created_at"], row["run_at"], row["claimed_at"]) == (before, before, before)
    frozen_sql.later("1 hour")
    assert (frozen_sql.now - before).total_seconds() == 3600
    assert frozen_sql.value("select rescue_expired_messages()") == 1, "its lease is over by now"


def test_no_text_of_ours_asks_the_real_clock(frozen_sql: FrozenSql) -> None:
    assert frozen_sql.rows(
        """select p.proname from pg_proc p where p.pronamespace = 'packhorse'::regnamespace and p.prokind = 'f'
             and pg_get_functiondef(p.oid) ~ 'clock_timestamp|statement_timestamp|transaction_timestamp|current_timestamp|\\mnow\\('
           union all select c.relname from pg_class c where c.relnamespace = 'packhorse'::regnamespace and c.relkind = 'v'
             and pg_get_viewdef(c.oid) ~ '(clock|statement)_timestamp'
           union all select a.attname from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
             where pg_get_expr(d.adbin, d.adrelid) ~ '(clock|statement)_timestamp'"""
    ) == [("is_enqueueable",)], "a bound of ten years"
