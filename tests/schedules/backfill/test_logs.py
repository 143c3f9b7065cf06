"""C2: old logs become webhook_events and audit_events, 100 % accounted for (PLATFORM 7)."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest

from packhorse.schedules import registry
from packhorse.schedules.backfill import declare
from packhorse.schedules.backfill.guard import DropRefused
from packhorse.schedules.maintenance.retention import RetentionRun
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import InvalidArgument
from tests.schedules.backfill.conftest import OPEN
from tests.schedules.backfill.killing import killed_until_done
from tests.schedules.backfill.test_killed import SEEDS

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

ADA = "00000000-0000-4000-8000-00000000ada0"
TABLES = f"""
create table webhook_logs (id bigint generated always as identity primary key, webhook_id text, event_type text, source text, payload jsonb, status text, ip text,
  created_at timestamptz default now());
create table webhook_delivery_log (id uuid primary key default gen_random_uuid(), webhook_id text, recipient text, status text, retry_count int default 0,
  error_message text, created_at timestamptz default now(), delivered_at timestamptz);
create table audit_logs (id uuid primary key default gen_random_uuid(), user_id text, action text, table_name text, record_id text, old_data jsonb, new_data jsonb,
  ip_address inet, status text, created_at timestamptz default now());
create table system_logs (id serial primary key, event text, details jsonb, error text, timestamp timestamptz default now());
create table security_audit_log (id serial primary key, event_type text, actor_id uuid, ip text, created_at timestamptz default now());
create table agent_error_logs (id serial primary key, agent text, error text, created_at timestamptz default now());
create table trip_status_audit (id serial primary key, trip_id uuid, changes jsonb, created_at timestamptz default now());
insert into webhook_logs (webhook_id, event_type, source, payload, status, ip)
  select 'w' || n, case when n % 10 > 0 then 'message' end, 'whatsapp', jsonb_build_object('n', n), case when n % 2 = 0 then 'failed' end, '10.0.0.1'
  from generate_series(1, 40) n;
insert into webhook_delivery_log (webhook_id, recipient, status, retry_count, error_message, delivered_at)
  select 'w' || n, '+250788123456', 'delivered', n % 3, null, now() from generate_series(1, 20) n;
insert into audit_logs (user_id, action, table_name, record_id, old_data, new_data, ip_address, status) values
  ('{ADA}', 'UPDATE', 'trips', '{ADA}', '{{"a": 1}}', '{{"a": 2}}', '10.0.0.1', 'success'),
  ('ada', 'login', null, null, null, null, null, 'odd'), (null, null, 'trips', '17', null, '{{"b": 1}}', null, null);
insert into system_logs (event, details, error) values ('started', '{{"v": 1}}', null), (null, null, 'broken');
insert into security_audit_log (event_type, actor_id, ip) values ('login', '{ADA}', '10.0.0.2'), ('logout', null, null);
insert into agent_error_logs (agent, error) values ('orders', 'no answer');
insert into trip_status_audit (trip_id, changes) values ('{ADA}', '{{"status": "done"}}')
"""
AUDITED = ("audit_logs", "system_logs", "security_audit_log", "agent_error_logs", "trip_status_audit")
ALL = ("webhook_logs", "webhook_delivery_log", *AUDITED)


@pytest.fixture
def old(mover):
    with mover.database.connect(admin=True) as connection:
        connection.execute(TABLES)
    return mover


def account(mover, name):
    target = "audit_events" if name in AUDITED else "webhook_events"
    return mover.database.query(
        f"select (select count(*) from {name}), (select count(*) from {name} s where exists (select from {target} e where e.metadata->>'migrated_from' = %s "
        "and e.metadata->>'migrated_id' = s.id::text) or exists (select from platform_backfill_rows l where l.backfill = %s and l.source_id = s.id::text))",
        name,
        name,
    )[0]


def checks(findings, level):
    return [finding.check for finding in findings if finding.level == level]


@pytest.mark.parametrize("name", ALL)
def test_a_log_has_its_whole_life(old, name):
    """Check, dry run, run, a repeated run, the guard, the drop; and no way back after it."""
    assert "inventory" in checks(old.check(name), "ok") and checks(old.check(name), "refused") == []
    rows = old.database.value(f"select count(*) from {name}")
    found = old.dry_run(name)
    assert (found.rows, found.copied.rows, found.copied.skipped) == (rows, rows, 0)
    assert account(old, name) == (rows, 0)
    assert (
        old.run(name).state == "succeeded"
        and account(old, name) == (rows, rows)
        and old.state(name) == "verified"
    )
    total = old.database.value("select count(*) from webhook_events") + old.database.value(
        "select count(*) from audit_events"
    )
    old.run(name)
    assert (
        old.database.value("select count(*) from webhook_events")
        + old.database.value("select count(*) from audit_events")
        == total
        == rows
    )
    with pytest.raises(DropRefused, match="recent activity"):
        old.finish(name)
    for column in ("created_at", "delivered_at", "timestamp"):
        if old.database.query(
            "select 1 from pg_attribute where attrelid = %s::regclass and attname = %s", name, column
        ):
            old.database.query(f"update {name} set {column} = {column} - interval '3 days'")
    old.rollback(name)
    assert account(old, name) == (rows, 0)
    old.run(name)
    old.wait_two_days(name, name)
    old.finish(name)
    assert old.database.value("select to_regclass(%s)", name) is None and old.state(name) == "finished"
    assert old.database.value("select count(*) from pg_class where relname like '%%_compat'") == 0
    with pytest.raises(InvalidArgument, match="no way back but a backup"):
        old.rollback(name)
    left = old.database.value("select count(*) from webhook_events") + old.database.value(
        "select count(*) from audit_events"
    )
    assert left == rows


def test_webhooks_that_came_in(old):
    old.run("webhook_logs")
    rows = old.database.query(
        "select event_category, event_type, webhook_id, source, payload, status, created_at is not null, metadata - 'migrated_hash' from webhook_events "
        "where webhook_id in ('w10', 'w11') order by 3"
    )
    assert rows[0] == (
        "incoming",
        "unknown",
        "w10",
        "whatsapp",
        {"n": 10},
        "failed",
        True,
        {"migrated_from": "webhook_logs", "migrated_id": "10", "original": {"ip": "10.0.0.1"}},
    )
    assert rows[1][1] == "message" and rows[1][5] == "completed"
    assert (
        old.database.value("select count(*) from webhook_logs_compat where event_category = 'incoming'") == 40
    )


def test_attempts_of_delivery(old):
    old.run("webhook_delivery_log")
    row = old.database.query(
        "select event_category, event_type, destination, status, retry_count, delivered_at is not null from webhook_events where webhook_id = 'w2'"
    )
    assert row == [("delivery", "delivery_attempt", "+250788123456", "delivered", 2, True)]
    assert (
        old.database.value(
            "select count(*) from webhook_delivery_log_compat where recipient = destination and recipient is not null"
        )
        == 20
    )


def test_columns_of_an_audit_log_are_found_by_name_and_the_rest_is_kept(old):
    old.run("audit_logs")
    rows = old.database.query(
        "select event_category, event_type, user_id::text, actor_type, actor_ip, resource_type, resource_id::text, action, changes, status, "
        "metadata - array['migrated_from', 'migrated_id', 'migrated_hash'] from audit_events order by action"
    )
    assert rows == [
        (
            "user_action",
            "audit_logs",
            None,
            "system",
            None,
            "trips",
            None,
            "log",
            {"after": {"b": 1}},
            "success",
            {"original": {"record_id": "17"}},
        ),
        (
            "user_action",
            "login",
            None,
            "system",
            None,
            None,
            None,
            "login",
            None,
            "success",
            {"original": {"status": "odd", "user_id": "ada"}},
        ),
        (
            "user_action",
            "UPDATE",
            ADA,
            "user",
            "10.0.0.1",
            "trips",
            ADA,
            "update",
            {"before": {"a": 1}, "after": {"a": 2}},
            "success",
            {},
        ),
    ]
    old.run("system_logs")
    rows = old.database.query(
        "select event_type, action, error_message, metadata -> 'original', created_at is not null from audit_events where event_category = 'system' order by 1"
    )
    assert rows == [
        ("started", "log", None, {"details": {"v": 1}}, True),
        ("system_logs", "log", "broken", None, True),
    ]
    for name, expected in (("agent_error_logs", "agent_error"), ("trip_status_audit", "trip_status_change")):
        old.run(name)
        assert (
            old.database.value(
                "select event_type from audit_events where metadata->>'migrated_from' = %s", name
            )
            == expected
        )
    assert old.database.value("select count(*) from audit_logs_compat") == 4


def test_a_person_that_the_foreign_key_refuses_is_kept_in_the_original(old):
    old.database.query("create table profiles (user_id uuid unique not null)")
    old.database.query("select refresh_platform_access()")
    old.run("security_audit_log")
    assert old.database.query(
        "select user_id, actor_type, metadata -> 'original' ->> 'actor_id' from audit_events where event_type = 'login'"
    ) == [(None, "system", ADA)]
    old.database.query("insert into profiles values (%s)", ADA)
    old.rollback("security_audit_log")
    old.run("security_audit_log")
    assert old.database.query(
        "select user_id::text, actor_type, metadata -> 'original' from audit_events where event_type = 'login'"
    ) == [(ADA, "user", None)]


def test_a_changed_row_of_a_webhook_log_is_copied_again(old):
    old.run("webhook_delivery_log")
    old.database.query(
        "update webhook_delivery_log set status = 'failed', retry_count = 9 where webhook_id = 'w3'"
    )
    assert checks(old.verify("webhook_delivery_log"), "refused") == ["changed"]
    assert (
        old.run("webhook_delivery_log").state == "succeeded"
        and old.state("webhook_delivery_log") == "verified"
    )
    assert old.database.query("select status, retry_count from webhook_events where webhook_id = 'w3'") == [
        ("failed", 9)
    ]


def test_a_changed_row_of_an_audit_log_is_in_the_ledger_for_a_record_is_never_rewritten(old):
    old.run("audit_logs")
    old.database.query("update audit_logs set action = 'forged' where action = 'login'")
    assert checks(old.verify("audit_logs"), "refused") == ["changed"]
    old.run("audit_logs")
    assert (
        old.state("audit_logs") == "verified"
        and old.database.value("select count(*) from audit_events where action = 'forged'") == 0
    )
    assert [row[1:] for row in old.ledger()] == [
        ("changed", "the row was changed after it was copied; a record is never rewritten")
    ]


def test_security_records_go_back_only_while_their_rows_exist(old):
    old.run("security_audit_log")
    old.database.query("delete from security_audit_log where event_type = 'logout'")
    (finding,) = old.rollback("security_audit_log")
    assert "1 events stay" in finding.text
    assert old.database.query("select event_type from audit_events") == [("logout",)]
    with old.database.connect() as worker, pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute("select take_back_audit_events('security_audit_log', '{1}')")


def test_a_missing_event_fails_the_comparison(old):
    old.run("webhook_logs")
    old.database.query("delete from webhook_events where webhook_id = 'w7'")
    (finding,) = [finding for finding in old.verify("webhook_logs") if finding.level == "refused"]
    assert (
        "1 of 40 rows are neither copied nor explained: 7" in finding.text
        and old.state("webhook_logs") == "copied"
    )


def test_what_the_nightly_retention_will_take_is_said_before(old):
    old.database.query("update webhook_logs set created_at = now() - interval '31 days' where id <= 5")
    (finding,) = [finding for finding in old.check("webhook_logs") if finding.check == "retention"]
    assert finding.level == "ok" and "5 rows are older than 30 days" in finding.text


@pytest.mark.parametrize(
    ("name", "target", "more"),
    [("webhook_logs", "webhook_events", "source"), ("audit_logs", "audit_events", "action")],
)
def test_old_copies_stay_until_the_clean_up(old, name, target, more):
    """Neither retention nor the function of a cron takes what the comparison must find; others go."""
    database = old.database
    database.query(f"update {name} set created_at = now() - interval '400 days'")
    database.query(
        f"insert into {target} (event_category, event_type, created_at, {more}) "
        "values ('system', 'x', now() - interval '400 days', 'x')"
    )
    copies = f"select count(*) from {target} where metadata ? 'migrated_from'"
    policy = next(found for found in registry.RETENTION if found.name == target)

    def night() -> None:
        connection = connect(database.admin_url, deadline_seconds=60)
        try:
            assert RetentionRun(connection, policy, OPEN, triggered_by="test").run() == "succeeded"
        finally:
            connection.close()

    old.run(name)
    before = database.value(copies)
    assert before > 0
    night()
    assert database.value(f"select cleanup_old_{target}()") == 0
    assert database.value(f"select count(*) from {target}") == database.value(copies) == before
    database.query("update backfills set state = 'finished' where name = %s", name)
    night()
    assert database.value(copies) == 0


def test_a_table_without_a_column_is_refused_by_name(old):
    old.database.query("alter table webhook_logs rename column payload to payloads")
    with pytest.raises(InvalidArgument, match="no column payload") as caught:
        old.run("webhook_logs")
    assert caught.value.field == "columns" and "payloads" in str(caught.value.hint)


def test_another_name_of_the_table_is_a_setting(old):
    old.database.query("create schema legacy")
    old.database.query("alter table webhook_logs set schema legacy")
    assert old.run("webhook_logs", settings={"source": "legacy.webhook_logs"}).rows == 40
    with pytest.raises(InvalidArgument, match="no setting 'sources'"):
        declare.find("webhook_logs", {"sources": "x"})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["webhook_delivery_log", "audit_logs"])
def test_no_row_is_unaccounted_when_runs_are_killed_beside_writers(old, small_batches, name, seed):
    """A third of the seeds per table would do; they are cheap."""
    database, chance = old.database, random.Random(seed)
    database.query(
        "insert into webhook_delivery_log (webhook_id, status) select 'x' || n, 'sent' from generate_series(1, 1200) n"
    )
    database.query(
        "insert into audit_logs (action, table_name) select 'act' || n, 't' from generate_series(1, 1200) n"
    )
    over = threading.Event()

    def write():
        with database.connect(admin=True) as connection:
            while not over.wait(0.004):
                connection.execute(
                    "insert into webhook_delivery_log (webhook_id, status) values ('new', 'sent')"
                )
                connection.execute(
                    "update webhook_delivery_log set status = 'delivered', delivered_at = now() where webhook_id = %s",
                    (f"x{chance.randrange(1200)}",),
                )
                connection.execute("insert into audit_logs (action) values ('new')")
                connection.execute(
                    "update audit_logs set status = 'failed' where action = %s",
                    (f"act{chance.randrange(1200)}",),
                )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        killed_until_done(
            database.admin_url,
            lambda: declare.find(name),
            seed,
            kills=4,
            longest_seconds=0.5,
            ends=("verified", "copied"),
        )
    finally:
        over.set()
        writer.join()
    old.run_until_verified(name)
    rows, accounted = account(old, name)
    assert rows == accounted > 1200
    assert (
        database.value("select count(*) from webhook_events")
        + database.value("select count(*) from audit_events")
        == rows
    )
