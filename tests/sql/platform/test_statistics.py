"""What people look at: sizes of tables, WhatsApp sessions (SPEC C6, PLATFORM 3.4)."""

from __future__ import annotations

import pytest

from tests.sql.client import Sql
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.calendar]


def test_every_table_has_its_size_and_partitions_are_summed(shared_database: Database, sql: Sql) -> None:
    tables = {
        row[0]
        for row in shared_database.query(
            "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition"
        )
    }
    stats = {
        row[0]: row[1:]
        for row in sql.rows("select table_name, partitions, total_bytes from get_database_stats()")
    }
    assert set(stats) == tables - {"whatsapp_auth", "whatsapp_keys"}
    assert stats["messages"][0] == 6 and stats["companies"][0] == 0
    assert stats["messages"][1] == sql.value("select sum(total_bytes) from get_messages_stats()")
    assert stats["companies"][1] == sql.value("select pg_total_relation_size('companies')")
    size = "select table_size = pg_size_pretty(total_bytes) from get_database_stats() where table_name = 'companies'"
    assert sql.value(size) is True


def test_sizes_come_largest_first(sql: Sql) -> None:
    sizes = [row[0] for row in sql.rows("select total_bytes from get_database_stats()")]
    assert sizes == sorted(sizes, reverse=True)


def test_rows_are_estimated_once_analysed(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows("insert into companies (name) select 'c' || n from generate_series(1, 500) n")
        admin.rows(
            "insert into messages (phone, direction) select '1', 'inbound' from generate_series(1, 300) n"
        )
        admin.rows("analyze companies")
        admin.rows("analyze messages")
        assert dict(
            admin.rows(
                "select table_name, row_count from get_database_stats() where table_name in ('companies', 'messages')"
            )
        ) == {"companies": 500, "messages": 300}
        assert admin.value("select row_count from get_messages_stats() where months_ahead = 0") == 300


def test_whatsapp_sessions_and_keys_are_counted(sql: Sql) -> None:
    sql.rows("insert into whatsapp_auth (company_id, creds) values (1, '{}')")
    sql.rows(
        "insert into whatsapp_keys (company_id, key_type, key_id, value, expires_at) values (1, 't', 'a', '{}', null), "
        "(1, 't', 'b', '{}', now() + interval '1 hour'), (1, 't', 'c', '{}', now() - interval '1 hour')"
    )
    assert sql.rows(
        "select total_companies, total_keys, expired_keys, active_keys from get_whatsapp_auth_stats()"
    ) == [(1, 3, 1, 2)]
    assert sql.value("select db_size_bytes > 0 from get_whatsapp_auth_stats()")


def test_a_reader_counts_secrets_and_sees_none(shared_database: Database) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        reader = Sql(connection)
        reader.rows("insert into whatsapp_auth (company_id, creds) values ('1', '{}')")
        reader.rows("set local role packhorse_reader")
        assert reader.rows("select total_companies, total_keys from get_whatsapp_auth_stats()") == [(1, 0)]
        assert reader.refused("select * from whatsapp_auth")[0] == "42501"
        assert "whatsapp_auth" not in {
            row[0] for row in reader.rows("select table_name from get_database_stats()")
        }
