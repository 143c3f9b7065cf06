"""A new partition is like its table, whoever makes it: create_partition_table(), finish_partition() (SPEC
M5).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sql.client import Sql
from tests.support.postgres import Database

TABLE = """
create schema shop; create role shop_owner; create role shop_clerk; create role shop_host;
grant usage, create on schema shop to shop_owner;
create table shop.events (
  id bigint not null, at timestamptz not null, tenant text default 'none', note text, doubled bigint generated always as (id * 2) stored,
  constraint events_note_short check (length(note) < 10)
) partition by range (at);
alter table shop.events owner to shop_owner;
alter table shop.events alter column note set storage external, alter column tenant set statistics 500, alter column id set (n_distinct = -1);
create statistics shop.events_pairs on tenant, note from shop.events;
alter statistics shop.events_pairs owner to shop_owner;
create unique index events_key on shop.events (id, at);
create function shop.noted() returns trigger language plpgsql as $$ begin new.note := 'noted'; return new; end $$;
create trigger events_noted before update on shop.events for each row execute function shop.noted();
alter table shop.events enable row level security, force row level security;
create policy events_of_tenant on shop.events as permissive for all to shop_clerk using (tenant = current_setting('shop.tenant', true)) with check (id > 0);
create policy events_young on shop.events as restrictive for select using (at > '2000-01-01');
grant select, insert, update on shop.events to shop_clerk; grant delete on shop.events to shop_clerk with grant option;
grant select (id) on shop.events to public;
create table shop.events_first partition of shop.events for values from ('2030-01-01 00:00+00') to ('2030-01-02 00:00+00')
  with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_enabled = false);
alter table shop.events_first owner to shop_owner;
create publication shop_changes for table shop.events;
alter default privileges in schema shop grant all on tables to shop_host;
alter default privileges in schema public grant all on tables to shop_host, public;
"""
MAKE = """
select create_partition_table('shop.events', 'shop', 'Events of 2 January');
alter table shop.events attach partition shop."Events of 2 January" for values from ('2030-01-02 00:00+00') to ('2030-01-03 00:00+00');
select finish_partition('shop.events', 'shop."Events of 2 January"');
"""
#: Of a table and of its partition: what has to be the same.
LOOKS = {
    "owner, row-level security": "select relowner::regrole::text, relrowsecurity, relforcerowsecurity from pg_class where oid = {0}",
    "policies": "select polname, polpermissive, polcmd, polroles, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) "
    "from pg_policy where polrelid = {0} order by 1",
    "privileges": "select a.grantee, a.privilege_type, a.is_grantable from pg_class c cross join aclexplode(c.relacl) a where c.oid = {0} order by 1, 2",
    "privileges on columns": "select t.attname, a.grantee, a.privilege_type from pg_attribute t cross join aclexplode(t.attacl) a where attrelid = {0} order by 1",
    "columns": "select attname, format_type(atttypid, atttypmod), attnotnull, attstorage, coalesce(attstattarget, -1), attoptions, attgenerated, "
    "pg_get_expr(d.adbin, d.adrelid) from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum "
    "where attrelid = {0} and attnum > 0 order by attnum",
    "checks": "select conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = {0} and contype = 'c' order by 1",
    "row triggers": "select tgname, tgenabled, tgtype from pg_trigger where tgrelid = {0} order by 1",
    "indexes": "select indisunique, indkey::text, indisreplident from pg_index where indrelid = {0} order by 2",
    "statistics": "select stxowner::regrole::text, stxkeys::text from pg_statistic_ext where stxrelid = {0}",
}


@pytest.fixture
def admin(shared_database: Database) -> Iterator[Sql]:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        connection.execute(TABLE)
        yield admin


@pytest.mark.parametrize("identity", ["full", "nothing", "default", "using index events_key"])
def test_a_new_partition_is_like_its_table(admin: Sql, identity: str) -> None:
    admin.connection.execute(f"alter table shop.events replica identity {identity}")
    admin.connection.execute(MAKE)
    table, new = "'shop.events'::regclass", "'shop.\"Events of 2 January\"'::regclass"
    for what, look in LOOKS.items():
        assert admin.rows(look.format(new)) == admin.rows(look.format(table)), what
        assert admin.rows(look.format(table)), what
    replica = "select relreplident from pg_class where oid = {0}"
    assert admin.rows(replica.format(new)) == admin.rows(replica.format(table))
    options = "select reloptions, (select t.reloptions from pg_class t where t.oid = c.reltoastrelid) from pg_class c where oid = {0}"
    assert admin.rows(options.format(new)) == admin.rows(options.format("'shop.events_first'::regclass"))
    assert admin.rows(options.format(new))[0][0] is not None


def test_the_owner_goes_on_with_a_table_whose_partitions_somebody_else_made(admin: Sql) -> None:
    admin.connection.execute("alter table shop.events replica identity using index events_key")
    admin.connection.execute(MAKE)
    admin.connection.execute("alter table shop.events no force row level security; set local role shop_owner")
    admin.rows("alter table shop.events add column more integer")
    admin.rows("insert into shop.events (id, at) values (1, '2030-01-02 12:00+00')")
    assert admin.rows(
        "update shop.events set tenant = 'x' where at > '2030-01-02 00:00+00' returning note"
    ) == [("noted",)], "published rows can be changed, triggers fire"


def test_a_clerk_sees_of_a_partition_what_he_sees_of_the_table(admin: Sql) -> None:
    admin.connection.execute(MAKE)
    admin.connection.execute("alter table shop.events no force row level security")
    admin.rows(
        "insert into shop.events (id, at, tenant) values (1, '2030-01-02 12:00+00', 'a'), (2, '2030-01-02 12:00+00', 'b')"
    )
    admin.connection.execute(
        "grant usage on schema shop to shop_clerk; set local role shop_clerk; set local shop.tenant = 'a'"
    )
    for name in ("shop.events", 'shop."Events of 2 January"'):
        assert admin.rows(f"select id from {name}") == [(1,)]


def test_partitions_of_our_own_tables_stay_closed_whatever_the_host_grants(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows("create role shop_host")
        for schema in ("", "in schema public"):
            admin.rows(
                f"alter default privileges {schema} grant all on tables to shop_host, packhorse_reader"
            )
        made = admin.value("select ensure_message_archive_partitions(20)")
        assert made >= 10
        looks = admin.rows(
            "select c.relrowsecurity, exists (select from pg_policy p where p.polrelid = c.oid), "
            "coalesce((select count(*) from aclexplode(c.relacl) a where a.grantee <> c.relowner), 0) "
            "from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'message_archive'::regclass"
        )
        assert set(looks) == {(True, False, 0)}


def test_a_detached_table_of_the_name_does_not_keep_the_day_from_having_a_partition(
    shared_database: Database,
) -> None:
    """Completions found no partition until somebody looked: the name was taken for the partition."""
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows("select ensure_message_archive_partitions(7)")
        today = admin.value(
            "select 'message_archive_' || to_char(clock_timestamp() at time zone 'UTC', 'YYYYMMDD')"
        )
        admin.rows(f"alter table message_archive detach partition {today}")
        assert admin.value("select ensure_message_archive_partitions(7)") == 1
        assert admin.value("select ensure_message_archive_partitions(7)") == 0
        assert admin.value(f"select count(*) from pg_inherits where inhrelid = '{today}_2'::regclass") == 1


def test_an_old_partition_of_a_second_name_is_dropped_like_the_others(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows(
            "create table message_archive_20200105_2 partition of message_archive for values from ('2020-01-05 00:00+00') to ('2020-01-06 00:00+00')"
        )
        assert admin.value("select drop_expired_archive_partitions()") == 1
        assert admin.value("select to_regclass('message_archive_20200105_2')") is None


@pytest.mark.parametrize(
    ("policy", "dropped"),
    [(None, 1), ('{"keep_days": 0}', 1), ('{"keep_days": 30}', 1), ('{"keep_days": 40}', 0), ("{}", 0)],
)
def test_an_archive_that_configuration_keeps_is_not_dropped(
    shared_database: Database, policy: str | None, dropped: int
) -> None:
    """Every worker dropped by the queues' keep_done what was to be kept for longer, or exported first."""
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows(
            "do $$ declare v_day timestamptz := date_trunc('day', clock_timestamp() at time zone 'UTC') at time zone 'UTC' - interval '35 days'; begin "
            "execute format('create table %I partition of message_archive for values from (%L) to (%L)', "
            "'message_archive_' || to_char(v_day at time zone 'UTC', 'YYYYMMDD'), v_day, v_day + interval '1 day'); end $$"
        )
        if policy:
            admin.rows(
                "select declare_policies(jsonb_build_object('partitions.message_archive.drop', %s::jsonb))",
                policy,
            )
        assert admin.value("select drop_expired_archive_partitions()") == dropped
