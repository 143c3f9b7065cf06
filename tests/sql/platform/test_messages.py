"""messages: partitions by UTC month, made ahead and never by default; recent ones from few partitions (SPEC
M5, C6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.sql.client import Sql
from tests.sql.parking import in_background
from tests.support.postgres import Database

pytestmark = [pytest.mark.slow, pytest.mark.calendar]

SAY = "insert into messages (phone, company_id, direction, message, created_at) values (%s, %s, 'inbound', %s, %s::timestamptz) returning id"
CREATE = "select create_messages_partition(%s::date)"


def partition_of(sql: Sql, message_id: int) -> str:
    return sql.value("select tableoid::regclass::text from messages where id = %s", message_id)


def test_this_month_and_five_more_exist_and_there_is_no_default(sql: Sql) -> None:
    assert [row[0] for row in sql.rows("select months_ahead from get_messages_stats()")] == [5, 4, 3, 2, 1, 0]
    assert sql.value("select partdefid from pg_partitioned_table where partrelid = 'messages'::regclass") == 0
    assert sql.rows("select * from maintain_messages_partitions()") == []


def test_more_months_ahead_are_made_when_asked_for(sql: Sql) -> None:
    assert [row[0] for row in sql.rows("select * from maintain_messages_partitions(8)")] == ["created"] * 3
    assert sql.value("select max(months_ahead) from get_messages_stats()") == 8
    for ahead in (-1, 61, None):
        assert sql.refused("select maintain_messages_partitions(%s::integer)", ahead) == (
            "PH001",
            "months_ahead",
        )


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Honolulu"])
@pytest.mark.parametrize("day", ["2031-01-01", "2031-01-31", "2031-01-17"])
def test_a_month_begins_and_ends_in_utc_whatever_the_zone_of_the_session(
    sql: Sql, zone: str, day: str
) -> None:
    sql.rows(f"set local timezone = '{zone}'")
    assert sql.value(CREATE, day) == "messages_2031_01"
    assert sql.value(CREATE, "2031-01-05") == "messages_2031_01", "it is there"
    assert sql.value(CREATE, "2031-02-28") == "messages_2031_02"
    places = {
        moment: partition_of(sql, sql.value(SAY, "1", 1, "x", moment))
        for moment in (
            "2031-01-01 00:00:00+00",
            "2031-01-31 23:59:59.999999+00",
            "2031-02-01 00:00:00+00",
            "2031-02-28 23:59:59.999999+00",
        )
    }
    assert list(places.values()) == [
        "messages_2031_01",
        "messages_2031_01",
        "messages_2031_02",
        "messages_2031_02",
    ]
    assert sql.refused(SAY, "1", 1, "x", "2030-12-31 23:59:59.999999+00")[0] == "23514", (
        "no partition: loud, not piled up"
    )


def test_the_last_month_of_a_year_and_february_of_a_leap_year_are_months(sql: Sql) -> None:
    for day in ("2031-12-31", "2032-01-01", "2032-02-29", "2032-03-01"):
        sql.rows(CREATE, day)
    ranges = sql.rows(
        "select partition_start, partition_end from get_messages_stats() where partition_start >= '2031-12-01' order by 1"
    )
    assert [(start.isoformat()[:10], end.isoformat()[:10]) for start, end in ranges] == [
        ("2031-12-01", "2032-01-01"),
        ("2032-01-01", "2032-02-01"),
        ("2032-02-01", "2032-03-01"),
        ("2032-03-01", "2032-04-01"),
    ]


@pytest.mark.parametrize("day", [None, "1999-12-31", "2200-01-01", "infinity", "-infinity"])
def test_a_month_out_of_range_is_refused(sql: Sql, day: str | None) -> None:
    assert sql.refused(CREATE, day) == ("PH001", "partition_date")


def test_a_partition_is_closed_to_direct_access_and_has_the_indexes_and_constraints(sql: Sql) -> None:
    sql.rows(CREATE, "2031-01-01")
    assert sql.refused("select * from messages_2031_01")[0] == "42501"
    assert sql.value("select relrowsecurity from pg_class where relname = 'messages_2031_01'") is True
    assert sql.value("select count(*) from pg_index where indrelid = 'messages_2031_01'::regclass") == 9
    assert (
        sql.refused(
            "insert into messages (phone, direction, created_at) values ('1', 'sideways', '2031-01-01')"
        )[0]
        == "23514"
    )


def test_a_detached_partition_of_the_month_is_not_taken_for_an_attached_one(
    shared_database: Database,
) -> None:
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows(CREATE, "2031-01-01")
        admin.rows("alter table messages detach partition messages_2031_01")
        assert admin.refused(CREATE, "2031-01-01") == ("PH005", "partition_date")


def test_partitions_are_made_while_others_read_and_write(clients: Callable[..., Sql]) -> None:
    writer, maker, admin = clients(), clients(), clients(admin=True)
    with writer.connection.transaction():
        writer.rows("insert into messages (phone, direction) values ('1', 'inbound')")
        writer.rows("select count(*) from messages")
        maker.rows("set statement_timeout = '5s'")
        assert maker.value(CREATE, "2050-01-01") == "messages_2050_01"
    admin.rows("drop table messages_2050_01")


def test_makers_at_the_same_instant_make_each_partition_once(clients: Callable[..., Sql]) -> None:
    makers, admin = [clients() for _ in range(4)], clients(admin=True)
    made = [
        future.result(30)
        for future in [
            in_background(maker.value, "select count(*) from maintain_messages_partitions(12)")
            for maker in makers
        ]
    ]
    assert sorted(made) == [0, 0, 0, 7]
    for (name,) in admin.rows("select partition_name from get_messages_stats() where months_ahead > 5"):
        admin.rows(f"drop table {name}")


def test_a_lock_that_cannot_be_had_is_not_waited_for_long(own_database: Database) -> None:
    own_database.query("alter function create_messages_partition(date) set lock_timeout = '100ms'")
    with own_database.connect(admin=True) as owner, own_database.connect() as maker, owner.transaction():
        owner.execute("lock table messages in share update exclusive mode")  # what a detach holds
        assert Sql(maker).refused(CREATE, "2050-01-01")[0] == "55P03"


def test_old_partitions_are_dropped_and_those_of_six_months_stay(own_database: Database) -> None:
    with own_database.connect(admin=True) as connection:
        admin = Sql(connection)
        admin.rows(
            "select create_messages_partition((now() at time zone 'UTC' - m * interval '1 month')::date) from generate_series(0, 9) m"
        )
        assert len(admin.rows("select * from maintain_messages_partitions(p_keep_months => null)")) == 0, (
            "null keeps everything"
        )
        dropped = admin.rows("select action, partition_name from maintain_messages_partitions()")
        assert [action for action, _ in dropped] == ["dropped"] * 3
        assert [row[0] for row in admin.rows("select months_ahead from get_messages_stats()")] == [
            *range(5, -7, -1)
        ]
        assert admin.refused("select maintain_messages_partitions(5, -1)") == ("PH001", "keep_months")


def test_a_partition_that_somebody_reads_is_kept_and_said(own_database: Database) -> None:
    own_database.query("alter function drop_messages_partition(text) set lock_timeout = '100ms'")
    with own_database.connect(admin=True) as owner, own_database.connect() as worker:
        owner.execute("select create_messages_partition((now() - interval '9 months')::date)")
        with owner.transaction():
            owner.execute("select count(*) from messages")
            assert [
                row[0] for row in Sql(worker).rows("select action from maintain_messages_partitions()")
            ] == ["kept"]
        assert [row[0] for row in Sql(worker).rows("select action from maintain_messages_partitions()")] == [
            "dropped"
        ]


def test_recent_messages_are_found_by_any_form_of_the_phone(sql: Sql) -> None:
    sql.rows(SAY, "+250 788-1", 1, "a", "now")
    assert [row[0] for row in sql.rows(RECENT, "whatsapp:002507881", 1, 9)] == ["a"]
    names = [
        column.name
        for column in sql.connection.execute("select * from get_recent_messages('1')").description or ()
    ]
    assert names[:5] == ["id", "direction", "message", "created_at", "processed"]


RECENT = "select message from get_recent_messages(%s, %s, %s)"


def test_recent_messages_come_newest_first_from_all_months(sql: Sql) -> None:
    sql.rows(
        "select create_messages_partition((now() - m * interval '1 month')::date) from generate_series(0, 8) m"
    )
    for months in range(8):
        for phone in ("1", "2"):
            sql.rows(
                SAY.replace("%s::timestamptz", "now() - %s * interval '30 days' - interval '1 minute'"),
                phone,
                1,
                f"m{months}",
                months,
            )
    assert [row[0] for row in sql.rows(RECENT, "1", 1, 4)] == ["m0", "m1", "m2", "m3"]
    assert len(sql.rows(RECENT, "1", 1, 100)) == 7, "six months back, unless more are asked for"
    assert len(sql.rows("select * from get_recent_messages('1', p_within => '1 year')")) == 8


def test_recent_messages_are_those_of_the_phone_and_company(sql: Sql) -> None:
    for phone, company in (("1", 1), ("1", 2), ("1", None), ("2", 1)):
        sql.rows(SAY, phone, company, f"{phone}/{company}", "now")
    assert [row[0] for row in sql.rows(RECENT, "1", 1, 9)] == ["1/1"]
    assert {row[0] for row in sql.rows(RECENT, "1", None, 9)} == {"1/1", "1/2", "1/None"}
    assert sql.rows(RECENT, "3", 1, 9) == []


@pytest.mark.parametrize(
    ("arguments", "column"),
    [
        ("''", "phone"),
        ("null", "phone"),
        ("'1', 1, 0", "limit"),
        ("'1', 1, 1001", "limit"),
        ("'1', 1, null", "limit"),
        ("'1', p_within => '1 minute'", "within"),
        ("'1', p_within => '11 years'", "within"),
        ("'1', p_within => null", "within"),
    ],
)
def test_bad_arguments_are_refused_by_name(sql: Sql, arguments: str, column: str) -> None:
    assert sql.refused(f"select get_recent_messages({arguments})") == ("PH001", column)


#: Types of the variables in the statement inside get_recent_messages.
TYPES = {
    "v_phone": "text",
    "p_company_id": "bigint",
    "p_limit": "integer",
    "v_since": "timestamptz",
    "v_until": "timestamptz",
}


def plan_of_recent(sql: Sql, values: dict[str, Any], mode: str) -> dict[str, Any]:
    """The plan, run, of the statement in the function's body; its variables are parameters, as in the
    function.
    """
    body = sql.value("select prosrc from pg_proc where proname = 'get_recent_messages'")
    text = re.search(r"return query\s+(select .*?);", body, re.DOTALL)[1]  # type: ignore[index]
    for place, name in enumerate(TYPES, 1):
        text = re.sub(rf"\b{name}\b", f"${place}", text)
    sql.rows(f"set local plan_cache_mode = {mode}")
    sql.connection.execute(f"prepare recent ({', '.join(TYPES.values())}) as {text}".encode(), prepare=False)
    arguments = ", ".join(f"({values[name]})::{kind}" for name, kind in TYPES.items())
    found = sql.connection.execute(
        f"explain (analyze, timing off, format json) execute recent({arguments})".encode(), prepare=False
    ).fetchone()
    sql.rows("deallocate recent")
    assert found is not None
    return found[0][0]["Plan"]


def scans(node: dict[str, Any]) -> list[dict[str, Any]]:
    own = [node] if node["Node Type"].endswith("Scan") else []
    return own + [scan for child in node.get("Plans", []) for scan in scans(child)]


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_recent_messages_open_the_partitions_they_need_and_no_other(
    shared_database: Database, mode: str
) -> None:
    """24 months of 2000 messages each: three months are open to the planner's eyes, and one is read."""
    with shared_database.connect(admin=True) as connection, connection.transaction(force_rollback=True):
        admin = Sql(connection)
        admin.rows(
            "select create_messages_partition((now() - m * interval '1 month')::date) from generate_series(0, 24) m"
        )
        admin.rows(
            # the current month has as many as each other, also in its first minute: a planner that finds a
            # few rows in it takes any index
            "insert into messages (phone, company_id, direction, created_at) "
            "select (n % 100)::text, 1, 'inbound', "
            "b.begins + (n / 2001.0) * (least(b.begins + interval '1 month', now()) - b.begins) "
            "from generate_series(0, 23) m, generate_series(1, 2000) n, "
            "lateral (select date_trunc('month', now()) - m * interval '1 month' as begins) b"
        )
        admin.rows("analyze messages")
        values = {
            "v_phone": "'7'",
            "p_company_id": "1",
            "p_limit": "10",
            "v_since": "now() - interval '2 months'",
            "v_until": "now() + interval '1 hour'",
        }
        plan = plan_of_recent(admin, values, mode)
        opened = scans(plan)
        assert 3 <= len({scan["Relation Name"] for scan in opened}) <= 4, json.dumps(plan)
        read = [scan for scan in opened if scan["Actual Loops"] > 0]
        assert all("Index" in scan["Node Type"] and "phone" in scan["Index Name"] for scan in read), (
            json.dumps(plan)
        )
        assert sum(scan["Actual Rows"] for scan in read) <= 11 and len(read) <= 3, json.dumps(plan)
        assert any(scan["Actual Loops"] == 0 for scan in opened), "it stops when there are enough"
