"""C4: deprecated tables are copied or proposed, and dropped by name, guarded (PLATFORM 7)."""

from __future__ import annotations

import pytest

from packhorse.schedules.backfill.guard import DropRefused
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store import maintenance as store

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

ADA = "00000000-0000-4000-8000-00000000ada0"
TABLES = f"""
create table etta_conversations (id uuid primary key default gen_random_uuid(), user_id uuid, locale text default 'en', is_active bool default true,
  last_message_at timestamptz default now(), created_at timestamptz default now() - interval '9 days', updated_at timestamptz default now() - interval '9 days');
create table etta_messages (id uuid primary key default gen_random_uuid(), conversation_id uuid references etta_conversations on delete cascade, role text, content text,
  tool_calls jsonb, metadata jsonb, created_at timestamptz default now() - interval '9 days');
insert into etta_conversations (id, user_id, locale, last_message_at)
  select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, case when n % 5 > 0 then '{ADA}'::uuid end, 'rw', now() - interval '8 days' from generate_series(1, 20) n;
insert into etta_messages (conversation_id, role, content, tool_calls, metadata)
  select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, case when n = 1 then 'tool' else 'user' end, 'said ' || n, '[1]', '{{"a": 1}}' from generate_series(1, 20) n;
create table reviews (id serial primary key, body text, created_at timestamptz default now() - interval '9 days');
create table pricing_faqs (id serial primary key)
"""


@pytest.fixture
def old(mover):
    with mover.database.connect(admin=True) as connection:
        connection.execute(TABLES)
    return mover


def count(mover, table, where="true"):
    return mover.database.value(f"select count(*) from {table} where {where}")


def test_the_assistants_tables_have_their_whole_life(old, small_batches):
    with pytest.raises(InvalidArgument, match="etta_conversations is not copied yet"):
        old.run("etta_messages")
    assert old.dry_run("etta_conversations").copied.skipped == 4 and count(old, "amara_conversations") == 0
    assert old.run("etta_conversations").state == old.run("etta_messages").state == "succeeded"
    assert (count(old, "amara_conversations"), count(old, "amara_messages")) == (16, 15)
    assert {row[1:] for row in old.ledger()} == {
        ("skipped", "no user"),
        ("skipped", "its conversation was not copied"),
        ("skipped", "another role"),
    } and len(old.ledger()) == 9
    (row,) = old.database.query(
        "select c.user_id::text, c.locale, c.last_message_at = e.last_message_at, m.content, m.tool_calls, m.metadata from amara_conversations c "
        "join etta_conversations e using (id) join amara_messages m on m.conversation_id = c.id where m.content = 'said 2'"
    )
    assert row == (ADA, "rw", True, "said 2", [1], {"a": 1})
    old.run("etta_conversations")
    assert count(old, "amara_conversations") == 16 and old.state("etta_conversations") == "verified"
    for name in ("etta_conversations", "etta_messages"):
        old.wait_two_days(name, name, *(["last_message_at"] if name == "etta_conversations" else []))
    old.run("etta_conversations")
    old.wait_two_days("etta_conversations", "etta_conversations")
    with pytest.raises(DropRefused, match="foreign key etta_messages_conversation_id_fkey"):
        old.finish("etta_conversations")
    old.finish("etta_messages")
    old.finish("etta_conversations")
    assert old.database.query("select to_regclass('etta_conversations'), to_regclass('etta_messages')") == [
        (None, None)
    ]
    assert (count(old, "amara_conversations"), count(old, "amara_messages")) == (16, 15)


def test_messages_go_before_conversations_without_a_foreign_key_too(old):
    old.database.query("alter table etta_messages drop constraint etta_messages_conversation_id_fkey")
    old.run("etta_conversations")
    old.wait_two_days("etta_conversations", "etta_conversations")
    with pytest.raises(DropRefused, match="etta_messages is still there, and goes first"):
        old.finish("etta_conversations")


def test_the_way_back_leaves_conversations_that_went_on(old):
    old.run("etta_conversations")
    old.run("etta_messages")
    old.database.query(
        "insert into amara_messages (conversation_id, role, content) values ('00000000-0000-4000-8000-000000000002', 'user', 'new')"
    )
    assert old.rollback("etta_messages") == []
    (finding,) = old.rollback("etta_conversations")
    assert (
        "1 rows stay" in finding.text
        and count(old, "amara_conversations") == 1
        and count(old, "amara_messages") == 1
    )
    assert old.run("etta_conversations").state == "succeeded" and count(old, "amara_conversations") == 16


def test_a_person_who_is_gone_is_explained(old):
    old.database.query("create schema auth")
    old.database.query("create table auth.users (id uuid primary key)")
    old.database.query("select refresh_platform_access()")
    old.run("etta_conversations")
    assert {row[2] for row in old.ledger()} == {"no user", "the user is gone"} and old.state(
        "etta_conversations"
    ) == "verified"


def test_a_proposed_drop_needs_two_days_a_name_and_the_number_of_its_rows(old):
    old.database.query("insert into reviews (body) select 'x' from generate_series(1, 7)")
    findings = {finding.check: finding for finding in old.check("reviews")}
    assert "customer_reviews" in findings["proposal"].text and "7 rows" in findings["rows"].text
    with pytest.raises(InvalidArgument, match="copies nothing"):
        old.run("reviews")
    with pytest.raises(DropRefused, match="not verified"):
        old.finish("reviews", rows=7)
    old.verify("reviews")
    with pytest.raises(DropRefused, match="counters"):
        old.finish("reviews", rows=7)
    old.wait_two_days("reviews", "reviews")
    for said in (None, 6):
        with pytest.raises(InvalidArgument, match="has 7 rows") as caught:
            old.finish("reviews", rows=said)
        assert caught.value.field == "rows" and "--rows 7" in str(caught.value.hint)
    old.finish("reviews", rows=7)
    assert old.database.value("select to_regclass('reviews')") is None


def test_an_empty_table_needs_no_second_confirmation_and_one_that_is_named_stays(old):
    old.database.query("create view faqs as select * from pricing_faqs")
    assert "view faqs still names" in " ".join(finding.text for finding in old.check("pricing_faqs"))
    old.verify("pricing_faqs")
    old.wait_two_days("pricing_faqs", "pricing_faqs")
    with pytest.raises(DropRefused, match="view faqs"):
        old.finish("pricing_faqs")
    old.database.query("drop view faqs")
    old.finish("pricing_faqs")
    assert old.database.value("select to_regclass('pricing_faqs')") is None
    with pytest.raises(InvalidArgument, match="no way back but a backup"):
        old.rollback("pricing_faqs")


def test_the_ledger_goes_thirty_days_after_the_clean_up(old):
    old.run("etta_conversations")
    for name, days in (("early", 29), ("late", 31)):
        old.database.query(
            "insert into backfills (name, source, requested_by, finished_at) values (%s, 'x', 'ada', now() - make_interval(days => %s))",
            name,
            days,
        )
        old.database.query(
            "insert into platform_backfill_rows (backfill, source_table, source_id, outcome, reason) values (%s, 'x', '1', 'skipped', 'x')",
            name,
        )
        old.database.query("insert into backfill_copies values (%s, 1, '{1}')", name)
    with connect(old.database.url, deadline_seconds=30) as worker:
        assert store.job(worker, "job_backfill_rows", 500) == 1
    assert {row[0] for row in old.database.query("select backfill from platform_backfill_rows")} == {
        "early",
        "etta_conversations",
    }
    assert old.database.query("select backfill from backfill_copies") == [("early",)]
