"""The names that existing callers know, for workers that speak only SQL; upkeep and archive partitions (SPEC
Q2).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, timedelta

import pytest

from tests.sql.client import HOLDER, OTHER, Sql
from tests.sql.frozen import FrozenSql


@pytest.fixture
def sql(frozen_sql: FrozenSql) -> FrozenSql:
    """Leases and locks end when the test says so."""
    return frozen_sql


def test_the_next_message_is_leased_for_five_minutes(sql: Sql) -> None:
    message_id = sql.enqueue(payload={"a": 1})
    assert sql.rows(
        "select id, payload, lease_expires_at - testing.clock() from get_next_queue_message('q')"
    ) == [(message_id, {"a": 1}, timedelta(minutes=5))]
    assert sql.rows("select * from get_next_queue_message('q')") == []


def test_the_next_message_of_an_unknown_queue_is_refused(sql: Sql) -> None:
    assert sql.refused("select * from get_next_queue_message('nope')") == ("PH002", "queue")


def test_a_sql_worker_can_do_everything_with_known_names(sql: Sql) -> None:
    message_id = sql.enqueue(max_attempts=2)
    lease = sql.rows("select id, lease_token from get_next_queue_message('q')")[0]
    assert sql.value("select release_message_lock(%s, %s)", *lease) is True
    lease = sql.rows("select id, lease_token from get_next_queue_message('q')")[0]
    assert sql.value("select schedule_message_retry(%s, %s, '0')", *lease) is not None
    token = sql.value("select acquire_message_lock(%s, %s)", message_id, HOLDER)
    assert sql.value("select complete_messages(array[%s::bigint], array[%s::bigint])", message_id, token) == [
        message_id
    ]


def test_one_given_message_is_locked_once(sql: Sql) -> None:
    first, second = sql.enqueue(), sql.enqueue()
    token = sql.value("select acquire_message_lock(%s, %s)", second, HOLDER)
    assert (sql.live(second)["lease_token"], sql.live(second)["attempt"]) == (token, 1)
    assert sql.value("select acquire_message_lock(%s, %s)", second, OTHER) is None
    assert sql.claim_one().id == first


def test_a_message_that_may_not_start_is_not_locked(sql: Sql) -> None:
    first, waiting = sql.enqueue(conversation_key="c"), sql.enqueue(conversation_key="c")
    delayed, expired = sql.enqueue(delay="1 hour"), sql.enqueue(expires_at="2020-01-01")
    acquire = "select acquire_message_lock(%s, %s)"
    assert [sql.value(acquire, message_id, HOLDER) for message_id in (waiting, delayed, expired, 10**12)] == [
        None
    ] * 4
    sql.rows("select pause_queue('q')")
    assert sql.value(acquire, first, HOLDER) is None
    sql.rows("select resume_queue('q')")
    assert sql.value(acquire, first, HOLDER) is not None
    assert sql.value(acquire, waiting, HOLDER) is None


def test_locking_without_a_holder_is_refused(sql: Sql) -> None:
    assert sql.refused("select acquire_message_lock(%s, null)", sql.enqueue()) == ("PH001", "holder")


def lock(sql: Sql, holder: str, key: str = "c", lease: str = "5 minutes") -> bool:
    return sql.value("select acquire_conversation_lock(%s, %s, %s::interval)", key, holder, lease)


def test_a_conversation_lock_has_one_holder_who_may_renew_it(sql: Sql) -> None:
    assert [lock(sql, holder) for holder in ("ann", "bob", "ann")] == [True, False, True]
    assert lock(sql, "bob", "d") is True
    assert sql.value("select release_conversation_lock('c', 'bob')") is False
    assert [sql.value("select release_conversation_lock('c', 'ann')") for _ in range(2)] == [True, False]
    assert lock(sql, "bob") is True


def test_a_conversation_lock_ends_by_time(sql: FrozenSql) -> None:
    lock(sql, "ann")
    sql.later("4 minutes 59.999 seconds")
    assert lock(sql, "bob") is False
    sql.later("1 millisecond")
    assert lock(sql, "bob") is True


def test_an_absurd_conversation_lock_is_refused_by_name(sql: Sql) -> None:
    for key, holder, lease, column in [
        (None, "a", "1 minute", "conversation_key"),
        ("x" * 501, "a", "1 minute", "conversation_key"),
        ("c", None, "1 minute", "holder"),
        ("c", "", "1 minute", "holder"),
        ("c", "a", "-1 minute", "lease"),
        ("c", "a", None, "lease"),
        ("c", "a", "1 year", "lease"),
    ]:
        assert sql.refused("select acquire_conversation_lock(%s, %s, %s::interval)", key, holder, lease) == (
            "PH001",
            column,
        )


def test_only_locks_whose_own_time_is_over_are_removed(sql: Sql) -> None:
    """An hour's lock was taken after five minutes: two worked on one conversation (SPEC M2)."""
    for key, expires in [
        ("valid", "'1 hour'"),
        ("over", "'-1 second'"),
        ("endless", "'infinity'"),
        ("endless_fresh", "'infinity'"),
    ]:
        age = "1 minute" if key == "endless_fresh" else "6 minutes"
        end = "'infinity'" if "infinity" in expires else f"testing.clock() + interval {expires}"
        sql.rows(
            f"insert into conversation_locks (conversation_key, holder, acquired_at, expires_at) values (%s, 'ann', testing.clock() - %s::interval, {end})",
            key,
            age,
        )
    sql.rows(
        "insert into conversation_locks values ('unbounded', 'ann', testing.clock() - interval '6 minutes', null)"
    )
    assert sql.value("select cleanup_stuck_webhook_conversations('7 minutes')") == 1
    assert sql.value("select cleanup_stuck_webhook_conversations()") == 2
    assert sql.rows("select conversation_key from conversation_locks order by 1") == [
        ("endless_fresh",),
        ("valid",),
    ]
    assert sql.value("select cleanup_stuck_webhook_conversations('0')") == 1
    assert sql.rows("select conversation_key from conversation_locks") == [("valid",)]


def test_stuck_locks_go_in_bounded_steps(sql: Sql) -> None:
    for number in range(5):
        lock(sql, "ann", str(number))
    sql.rows("update conversation_locks set expires_at = testing.clock()")
    counts = [sql.value("select cleanup_stuck_webhook_conversations(p_limit => 2)") for _ in range(4)]
    assert counts == [2, 2, 1, 0]


def test_a_stuck_lock_whose_row_somebody_holds_keeps_no_other(own_clients: Callable[..., Sql]) -> None:
    sql, other = own_clients(), own_clients()
    for key in ("held", "free"):
        lock(sql, "ann", key)
    sql.rows("update conversation_locks set expires_at = clock_timestamp()")
    sql.rows("set lock_timeout = '10s'")
    with other.connection.transaction():
        other.rows("select from conversation_locks where conversation_key = 'held' for update")
        assert sql.value("select cleanup_stuck_webhook_conversations()") == 1
    assert sql.value("select cleanup_stuck_webhook_conversations()") == 1


def test_upkeep_removes_what_is_over_and_never_a_live_message(sql: Sql) -> None:
    live = sql.enqueue(dedup_key="young", run_at="2000-01-01")
    running = sql.claimed(run_at="1999-01-01", dedup_key="old")
    dead, buried = sql.enqueue(), sql.enqueue()
    for message_id in (dead, buried):
        sql.rows("select bury_message(%s)", message_id)
    sql.rows("update message_queue set created_at = '1999-01-01'")
    sql.rows(
        "update message_dedup set expires_at = testing.clock() - interval '1 second' where dedup_key = 'old'"
    )
    sql.rows("update dead_letters set dead_at = testing.clock() - interval '31 days' where id = %s", buried)
    sql.rows("update dead_letters set created_at = '1999-01-01'")
    sql.rows(
        "select store_message_result('old', '1', '-1 second'), store_message_result('new', '1', '1 hour')"
    )
    sql.rows("select add_rate_limiter('old', 1, '-1 second'), add_rate_limiter('new', 1, '1 hour')")
    sql.rows("select is_new_message('old'), is_new_message('new')")
    sql.rows(
        "update processed_messages set first_seen_at = testing.clock() - interval '8 days' where external_id = 'old'"
    )
    assert sql.value("select cleanup_old_messages()") == 5
    assert [sql.state(message_id) for message_id in (live, running.id, dead, buried)] == [
        "pending",
        "running",
        "dead",
        None,
    ]
    assert sql.rows("select dedup_key from message_dedup") == [("young",)]
    assert (
        sql.rows("select result_key from message_results")
        == sql.rows("select limiter_key from rate_limiters")
        == [("new",)]
    )
    assert sql.rows("select external_id from processed_messages") == [("new",)]
    assert sql.value("select cleanup_old_messages()") == 0


def old_ones(sql: Sql) -> None:
    """Webhook ids and dead letters, some of which the shipped policies would delete."""
    sql.rows("select declare_queue('blocky'), set_queue('blocky', '{\"on_dead\": \"block\"}')")
    for queue, key in [("default", None), ("blocky", "c")]:
        sql.rows("select bury_message(%s)", sql.enqueue(queue, conversation_key=key))
    sql.rows("update dead_letters set dead_at = testing.clock() - interval '31 days'")
    sql.rows(
        "insert into processed_messages (external_id, first_seen_at, processed_at) values "
        "('done', testing.clock() - interval '9 days', testing.clock() - interval '8 days'), ('never', testing.clock() - interval '8 days', null), "
        "('late', testing.clock() - interval '90 days', testing.clock())"
    )


def left(sql: Sql) -> list[str]:
    return [
        row[0]
        for row in sql.rows(
            "select external_id from processed_messages union all select 'dead ' || queue from dead_letters order by 1"
        )
    ]


def test_what_ages_goes_by_the_end_of_the_work_and_what_blocks_a_conversation_stays(sql: Sql) -> None:
    old_ones(sql)
    assert sql.value("select cleanup_old_messages()") == 3
    assert left(sql) == ["dead blocky", "late"]
    assert sql.value("select purge_dead_letters(p_older_than => '1 day')") == []
    assert sql.value("select purge_dead_letters(p_queue => 'blocky', p_older_than => '1 day')") == []
    assert len(sql.value("select purge_dead_letters(p_queue => 'blocky')")) == 1, "somebody acts"


@pytest.mark.parametrize(
    ("policies", "stays"),
    [
        ({"retention.processed_messages": {"keep_seconds": 90 * 86400}}, {"done", "never"}),
        ({"retention.processed_messages": {}}, {"done", "never"}),
        ({"retention.dead_letters": {"keep_seconds": 40 * 86400}}, {"dead default"}),
        ({"retention.dead_letters": {}}, {"dead default"}),
        (
            {
                "retention.processed_messages": {"keep_seconds": 86400.5},
                "retention.dead_letters": {"keep_seconds": 0},
            },
            set(),
        ),
    ],
)
def test_the_known_name_deletes_by_the_policies_that_configuration_declared(
    sql: Sql, policies: dict[str, object], stays: set[str]
) -> None:
    old_ones(sql)
    assert sql.value("select declare_policies(%s::jsonb)", json.dumps(policies)) == len(policies)
    assert sql.value("select declare_policies(%s::jsonb)", json.dumps(policies)) == 0
    sql.value("select cleanup_old_messages()")
    assert set(left(sql)) == {"dead blocky", "late"} | stays


def test_the_upkeep_of_a_worker_deletes_only_what_has_an_end_of_its_own(sql: Sql) -> None:
    old_ones(sql)
    before = left(sql)
    sql.rows("select store_message_result('old', '1', '-1 second'), add_rate_limiter('old', 1, '-1 second')")
    sql.rows("insert into message_dedup values ('q', 'k', 1, testing.clock() - interval '1 day')")
    sql.rows(
        """select declare_policies('{"retention.message_results": {}, "retention.message_dedup": {"keep_seconds": 172800}}')"""
    )
    assert sql.value("select cleanup_expired_windows()") == 1, (
        "results and windows are kept as configuration says"
    )
    sql.rows(
        """select declare_policies('{"retention.message_results": {"keep_seconds": 0}, "retention.message_dedup": {"keep_seconds": 0}}')"""
    )
    assert sql.value("select cleanup_expired_windows()") == 2
    assert left(sql) == before


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ("is_new_message('w', p_reclaim_after => {})", "reclaim_after"),
        ("cleanup_stuck_webhook_conversations({})", "after"),
        ("forget_dead_workers({})", "after"),
        ("bury_unknown_types({})", "after"),
        ("start_maintenance_run('t', 'job', 'me', p_silent_after => {})", "silent_after"),
    ],
)
def test_an_absurd_age_is_refused_by_name(sql: Sql, call: str, argument: str) -> None:
    for age in ("'-1 second'::interval", "null", "'1001 years'::interval", "'170000000 years'::interval"):
        assert sql.refused("select " + call.format(age)) == ("PH001", argument), age


def test_an_absurd_age_of_a_purge_is_refused_and_none_is_no_filter(sql: Sql) -> None:
    for age in ("-1 second", "1001 years"):
        assert sql.refused("select purge_dead_letters(p_older_than => %s::interval)", age) == (
            "PH001",
            "older_than",
        )
    assert sql.value("select purge_dead_letters(p_queue => 'q', p_older_than => null)") == []


@pytest.mark.parametrize(
    "function",
    [
        "cleanup_old_messages",
        "cleanup_expired_windows",
        "rescue_expired_messages",
        "cleanup_stale_message_locks",
        "expire_messages",
    ],
)
def test_an_absurd_batch_is_refused_by_name(sql: Sql, function: str) -> None:
    for limit in ("-1", "0", "null", "100001"):
        assert sql.refused(f"select {function}({limit})") == ("PH001", "limit"), limit


@pytest.mark.parametrize(
    "function", ["bury_unknown_types", "cleanup_stuck_webhook_conversations", "forget_dead_workers"]
)
def test_an_absurd_batch_beside_an_age_is_refused_by_name(sql: Sql, function: str) -> None:
    for limit in ("-1", "0", "null", "100001"):
        assert sql.refused(f"select {function}(p_limit => {limit})") == ("PH001", "limit"), limit


@pytest.mark.parametrize("policies", [None, "[]", "1"])
def test_policies_that_are_no_object_are_refused_by_name(sql: Sql, policies: str | None) -> None:
    assert sql.refused("select declare_policies(%s::jsonb)", policies) == ("PH001", "policies")


def test_upkeep_works_in_bounded_steps(sql: Sql) -> None:
    for number in range(5):
        sql.rows("select is_new_message(%s)", str(number))
    sql.rows("update processed_messages set first_seen_at = '2020-01-01'")
    assert [sql.value("select cleanup_old_messages(2)") for _ in range(4)] == [2, 2, 1, 0]


def partitions(sql: Sql) -> list[str]:
    return [
        row[0]
        for row in sql.rows(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'message_archive'::regclass order by 1"
        )
    ]


def test_archive_partitions_are_made_ahead_once(frozen_sql: FrozenSql) -> None:
    sql = frozen_sql
    today = sql.now.astimezone(UTC)
    wanted = [f"message_archive_{today + timedelta(days=day):%Y%m%d}" for day in range(11)]
    missing = set(wanted) - set(partitions(sql))
    assert sql.value("select ensure_message_archive_partitions(10)") == len(missing) >= 3
    assert sql.value("select ensure_message_archive_partitions(10)") == 0
    assert partitions(sql)[-11:] == wanted
    for days in ("-1", "61", "null"):
        assert sql.refused(f"select ensure_message_archive_partitions({days})") == ("PH001", "days_ahead")


def test_partitions_do_not_depend_on_the_time_zone_of_the_session(sql: Sql) -> None:
    sql.rows("set local time zone 'Pacific/Kiritimati'")
    sql.rows("select ensure_message_archive_partitions(10)")
    bounds = sql.rows(
        "select pg_get_expr(c.relpartbound, c.oid), right(c.relname, 8) from pg_class c join pg_inherits i on i.inhrelid = c.oid "
        "where i.inhparent = 'message_archive'::regclass"
    )
    sql.rows("set local time zone 'UTC'")
    names = sql.rows(
        "select pg_get_expr(c.relpartbound, c.oid), right(c.relname, 8) from pg_class c join pg_inherits i on i.inhrelid = c.oid "
        "where i.inhparent = 'message_archive'::regclass"
    )
    assert len(bounds) >= 11  # one more in a database of yesterday
    for text, day in names:
        assert f"{day[:4]}-{day[4:6]}-{day[6:]} 00:00:00+00" in text.split("TO")[0]


def test_a_day_without_a_midnight_in_the_zone_of_the_session_has_a_partition_as_all_others(
    frozen_sql: FrozenSql,
) -> None:
    frozen_sql.rows("set local time zone 'America/Havana'")
    frozen_sql.rows("update testing.clock_stands set at = '2020-03-07 12:00+00'")
    before = partitions(frozen_sql)
    assert frozen_sql.value("select ensure_message_archive_partitions(2)") == 3
    made = sorted(set(partitions(frozen_sql)) - set(before))
    assert made == [f"message_archive_2020030{day}" for day in (7, 8, 9)]


def test_retention_drops_old_partitions_and_keeps_what_a_queue_still_wants(any_database) -> None:
    for day in ("2020-01-01", "2020-01-02"):
        any_database.query(
            f"create table message_archive_{day.replace('-', '')} partition of message_archive "
            f"for values from ('{day} 00:00+00') to ('{day} 24:00+00')"
        )
    with any_database.connect() as connection:
        sql = Sql(connection)
        made = len(partitions(sql))
        sql.set_queue("default", keep_done="3650 days")
        assert sql.value("select drop_expired_archive_partitions()") == 0
        sql.set_queue("default", keep_done="7 days")
        assert sql.value("select drop_expired_archive_partitions()") == 2
        assert sql.value("select drop_expired_archive_partitions()") == 0
        assert len(partitions(sql)) == made - 2
