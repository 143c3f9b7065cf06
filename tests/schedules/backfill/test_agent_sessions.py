"""C1: ai_agent_sessions becomes agent_chat_sessions, from the first look to the way back after the drop
(PLATFORM 7).
"""

from __future__ import annotations

import random
import threading

import pytest

from packhorse.schedules.backfill import acts, declare
from packhorse.schedules.backfill.guard import DropRefused
from packhorse.worker.db.connection import connect
from packhorse.worker.errors import InvalidArgument, StoreRejected
from tests.schedules.backfill.killing import killed_until_done
from tests.schedules.backfill.test_killed import SEEDS
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.oldest_and_newest]

NAME = "agent_sessions"
SOURCE = """
create table ai_agent_sessions (
  id uuid not null default gen_random_uuid() primary key, phone text not null, context jsonb default '{}', created_at timestamptz default now(),
  updated_at timestamptz default now(), expires_at timestamptz default now() + interval '24 hours')
"""
ACCOUNT = """
select count(*), count(*) filter (where t.id is not null or l.source_id is not null) from ai_agent_sessions s
left join agent_chat_sessions t on t.id = s.id left join platform_backfill_rows l on l.backfill = 'agent_sessions' and l.source_id = s.id::text
"""


@pytest.fixture
def old(mover):
    """The old table with 30 sessions: 10 expired, 10 active of ten people, 10 older active ones of five of
    them in other forms. Two people are known.
    """
    mover.database.query(SOURCE)
    mover.database.query(
        "insert into ai_agent_sessions (id, phone, context, created_at, updated_at, expires_at) "
        "select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, "
        "  case when n > 20 then '+250 788 00' || lpad((n % 5)::text, 4, '0') else '25078800' || lpad((n % 10)::text, 4, '0') end, jsonb_build_object('n', n), "
        "  now() - interval '3 days', now() - make_interval(mins => n), case when n <= 10 then now() - interval '1 day' else now() + interval '1 day' end "
        "from generate_series(1, 30) n"
    )
    mover.database.query(
        "insert into whatsapp_users (wa_id, phone_number) values ('whatsapp:+250788000001', null), (null, '+250788000002')"
    )
    return mover


def counts(mover, where="true"):
    return mover.database.value(f"select count(*) from agent_chat_sessions where {where}")


def account(mover):
    (rows,) = mover.database.query(ACCOUNT)
    return rows


def levels(findings):
    return {(finding.level, finding.check) for finding in findings}


def test_the_check_tells_volumes_and_people_that_nobody_knows(old):
    findings = old.check(NAME)
    assert levels(findings) == {("ok", "volume"), ("warning", "users")}
    texts = " ".join(finding.text for finding in findings)
    assert (
        "30 rows, 20 active" in texts
        and "NO_USER_MATCH: 22 of 30 sessions (73.3%)" in texts
        and "2507" not in texts
    ), "ids, never phones"
    assert texts.count("00000000-0000-4000-8000-") == 10


def test_a_large_table_is_said_to_be_copied_in_batches_and_an_empty_one_is_safe_to_drop(old):
    old.database.query(
        "insert into whatsapp_users (wa_id) select distinct '25078800' || lpad(n::text, 4, '0') from generate_series(0, 9) n where n not in (1, 2)"
    )
    old.database.query(
        "insert into ai_agent_sessions (phone, expires_at) select '250788000003', now() - interval '1 h' from generate_series(1, 10000)"
    )
    findings = old.check(NAME)
    assert ("warning", "volume") in levels(findings) and ("ok", "users") in levels(findings)
    old.database.query("truncate ai_agent_sessions")
    assert [finding.text for finding in old.check(NAME)] == [
        "public.ai_agent_sessions is empty: safe to drop"
    ]


def test_a_dry_run_changes_nothing(old):
    found = old.dry_run(NAME)
    assert (found.rows, found.batch, found.copied.rows, found.copied.skipped) == (30, 30, 20, 10)
    assert counts(old) == 0 and old.ledger() == []
    assert old.database.value("select to_regclass('ai_agent_sessions_compat')") is None
    assert (
        old.database.value(
            "select count(*) from pg_attribute where attname = 'migrated_from_simple' and not attisdropped"
        )
        == 0
    )


def test_the_newest_active_session_of_a_phone_is_taken_and_the_others_are_explained(old):
    ended = old.run(NAME)
    assert (
        ended.state == "succeeded"
        and ("ok", "accounted") in levels(ended.findings)
        and ("warning", "ratio") in levels(ended.findings)
    )
    assert old.database.query(
        "select status, count(*), count(ended_at) from agent_chat_sessions group by 1 order by 1"
    ) == [("active", 10, 0), ("expired", 10, 10)]
    # of people 0..4 the sessions 11..15 (by minutes the newest) win over 21..30, which are of the same people
    # in another form
    active = old.database.query(
        "select (context ->> 'n')::int from agent_chat_sessions where status = 'active' order by 1"
    )
    assert [row[0] for row in active] == list(range(11, 21))
    ledger = old.ledger()
    assert [row[1:] for row in ledger] == [("skipped", "a newer session of this phone is active")] * 10
    assert [int(row[0][-2:]) for row in ledger] == list(range(21, 31))
    assert old.database.value("select old_value ->> 'phone' from platform_backfill_rows limit 1").startswith(
        "+250"
    )
    (row,) = old.database.query(
        "select t.user_phone, t.agent_type, t.created_at = s.created_at, t.updated_at = s.updated_at, t.last_message_at = s.updated_at, "
        "t.expires_at = s.expires_at, t.migrated_from_simple, t.message_count, t.conversation_history from agent_chat_sessions t join ai_agent_sessions s using (id) "
        "where id::text like '%%11'"
    )
    assert row == ("250788000001", "generic", True, True, True, True, True, 0, [])
    assert old.state(NAME) == "verified" and account(old) == (30, 30)


def test_a_person_who_is_known_once_is_filled_in(old):
    old.database.query("insert into whatsapp_users (wa_id) values ('+250788000003'), ('00250788000003')")
    old.run(NAME)
    found = old.database.query(
        "select distinct right(normalize_phone(user_phone), 1), user_id is null from agent_chat_sessions order by 1"
    )
    assert [(digit, unknown) for digit, unknown in found if digit in "123"] == [
        ("1", False),
        ("2", False),
        ("3", True),
    ]


@pytest.mark.parametrize("of_migrated", [True, False])
def test_an_active_session_of_any_agent_stands_in_the_way(old, of_migrated):
    old.database.query(
        "insert into agent_chat_sessions (user_phone, agent_type) values ('+250788000007', 'orders')"
    )
    old.run(NAME)
    (row,) = [row for row in old.ledger() if row[0].endswith("17")]
    assert row[1:] == ("skipped", "an active session of this phone is there already") and account(old) == (
        30,
        30,
    )
    if of_migrated:  # it ends: a repeated run copies the row, and explains it no more
        old.database.query("update agent_chat_sessions set status = 'completed' where agent_type = 'orders'")
        old.run(NAME)
        assert (
            not [row for row in old.ledger() if row[0].endswith("17")]
            and counts(old, "status = 'active'") == 10
        )


def test_a_session_that_is_opened_while_a_batch_is_copied_stays_and_the_row_is_explained(old):
    """The batch does not see it, waits for it at the unique index, and is refused; the rest is copied."""
    with old.database.connect(admin=True) as other:
        other.autocommit = False
        other.execute("select get_or_create_agent_session('+250788000003', 'generic')")
        ended: list = []
        runner = threading.Thread(target=lambda: ended.append(old.run(NAME)))
        runner.start()
        wait_until(lambda: old.database.value("select count(*) from pg_locks where not granted"))
        other.commit()
        runner.join()
    assert ended[0].state == "succeeded" and old.state(NAME) == "verified"
    assert counts(old) == 20, "nine of ten people, ten expired ones, and the new one"
    hindered = "an active session of this phone is there already"
    assert [reason for _, _, reason in old.ledger()].count(hindered) == 1
    assert account(old) == (30, 30)


def test_rows_that_a_unique_key_of_the_host_refuses_are_explained_and_the_others_copied(old):
    old.database.query(
        "create unique index on agent_chat_sessions (right(user_phone, 1)) where status = 'expired'"
    )
    old.database.query("update ai_agent_sessions set phone = '250788000003' where expires_at < now()")
    assert old.run(NAME).state == "succeeded" and old.state(NAME) == "verified"
    assert counts(old, "status = 'expired'") == 1
    reasons = [reason for _, _, reason in old.ledger()]
    assert reasons.count("a unique key of agent_chat_sessions refuses it") == 9
    assert account(old) == (30, 30)


def test_a_repeated_run_adds_what_is_new_and_nothing_twice(old, small_batches):
    old.run(NAME)
    before = old.database.query("select * from agent_chat_sessions order by id")
    assert (
        old.run(NAME).state == "succeeded"
        and old.database.query("select * from agent_chat_sessions order by id") == before
    )
    old.database.query("insert into ai_agent_sessions (phone) values ('+250788999999')")
    old.run(NAME)
    assert counts(old) == 21 and account(old) == (31, 31)


def test_a_row_that_changes_after_the_copy_is_found_and_copied_again(old):
    old.run(NAME)
    old.database.query(
        "update ai_agent_sessions set context = '{\"n\": \"new\"}', updated_at = now() where id::text like '%%12'"
    )
    findings = old.verify(NAME)
    assert ("refused", "changed") in levels(findings) and old.state(NAME) == "copied"
    assert ("ok", "accounted") in levels(old.run(NAME).findings)
    assert counts(old, "context ->> 'n' = 'new'") == 1 and old.state(NAME) == "verified"


def test_a_session_that_new_code_has_changed_is_its_own(old):
    """Neither a repeated run nor the way back touches it; a later change of the old row is in the ledger."""
    old.run(NAME)
    old.database.query(
        "select add_agent_message(id, 'user', 'hello') from agent_chat_sessions where id::text like '%%12'"
    )
    old.database.query(
        "update ai_agent_sessions set context = '{\"n\": \"old\"}', updated_at = now() where id::text like '%%12'"
    )
    assert ("refused", "changed") in levels(old.verify(NAME))
    assert old.run(NAME).state == "succeeded" and old.state(NAME) == "verified"
    assert old.database.query(
        "select message_count, context ->> 'n' from agent_chat_sessions where id::text like '%%12'"
    ) == [(1, "12")]
    assert [row[1:] for row in old.ledger() if row[0].endswith("12")] == [
        ("changed", "the row and its copy were both changed; the copy stays")
    ]
    (finding,) = old.rollback(NAME)
    assert finding.check == "changed" and "1 migrated sessions" in finding.text
    assert counts(old) == 1 and account(old)[0] == 30


def test_a_newer_session_of_the_phone_takes_the_place_of_an_unchanged_copy(old):
    old.run(NAME)
    old.database.query(
        "insert into ai_agent_sessions (phone, updated_at) values ('+250788000003', now() + interval '1 second')"
    )
    old.run(NAME)
    assert old.database.value(
        "select id from agent_chat_sessions where status = 'active' and normalize_phone(user_phone) = '250788000003'"
    ) == old.database.value(
        "select id from ai_agent_sessions where updated_at > now() - interval '30 seconds'"
    )
    assert account(old) == (31, 31) and old.state(NAME) == "verified"


def test_time_that_ends_a_migrated_session_is_no_change(old):
    old.run(NAME)
    old.database.query("update agent_chat_sessions set status = 'expired' where status = 'active'")
    assert ("ok", "accounted") in levels(old.verify(NAME)) and old.state(NAME) == "verified"
    assert old.rollback(NAME) == [] and counts(old) == 0


def test_a_phone_that_no_session_takes_is_explained(old, small_batches):
    old.database.query(
        "insert into ai_agent_sessions (id, phone) values ('00000000-0000-4000-8000-0000000000ff', repeat('9', 101))"
    )
    assert old.run(NAME).state == "succeeded"
    assert [row[1:] for row in old.ledger() if row[0].endswith("ff")] == [
        ("skipped", "refused by the database, 23514")
    ]
    assert account(old) == (31, 31) and old.state(NAME) == "verified"


def test_a_missing_row_fails_the_comparison(old):
    old.run(NAME)
    old.database.query("delete from agent_chat_sessions where id::text like '%%01'")
    (finding,) = [finding for finding in old.verify(NAME) if finding.check == "accounted"]
    assert finding.level == "refused" and "1 of 30 rows" in finding.text and old.state(NAME) == "copied"


def test_readers_of_the_old_table_have_a_view_and_nobody_else_has(old):
    for role in ("anon", "authenticated", "service_role"):
        if not old.database.query("select 1 from pg_roles where rolname = %s", role):
            old.database.query(f"create role {role}")
    old.database.query("alter default privileges grant all on tables to anon, authenticated, service_role")
    old.run(NAME)
    assert old.database.query("select count(*), min(phone) from ai_agent_sessions_compat")[0][0] == 20
    columns = old.database.query(
        "select attname::text from pg_attribute where attrelid = 'ai_agent_sessions_compat'::regclass and attnum > 0 order by attnum"
    )
    assert [row[0] for row in columns] == ["id", "phone", "context", "created_at", "updated_at", "expires_at"]
    granted = old.database.query(
        "select a.grantee::regrole::text, string_agg(a.privilege_type, ',') from pg_class c, aclexplode(c.relacl) a "
        "where c.oid = 'ai_agent_sessions_compat'::regclass and a.grantee <> c.relowner group by 1 order by 1"
    )
    readers = ["packhorse_reader", "packhorse_worker", "service_role"] + (
        ["authenticated"] if old.version() >= 150000 else []
    )
    assert granted == [(role, "SELECT") for role in sorted(readers)]


def test_an_early_drop_is_refused_with_every_reason(old):
    old.database.query("create view readers as select phone from ai_agent_sessions")
    old.database.query("create table notes (session_id uuid references ai_agent_sessions)")
    old.database.query(
        "create function sessions_of(text) returns bigint language sql as $$ select count(*) from AI_Agent_Sessions where phone = $1 $$"
    )
    with pytest.raises(InvalidArgument, match="nobody has begun"):
        old.finish(NAME)
    old.run(NAME)
    with pytest.raises(DropRefused) as caught:
        old.finish(NAME)
    text = str(caught.value)
    for reason in (
        "recent activity detected: the newest updated_at",
        "the counters of inserts and updates have not moved for 0.0 h",
        "view readers still names",
        "foreign key notes_session_id_fkey of notes still names",
        "function sessions_of(text) still names",
    ):
        assert reason in text, reason
    assert (
        old.database.value("select count(*) from ai_agent_sessions") == 30 and old.state(NAME) == "verified"
    )


def test_a_row_that_comes_late_or_a_failed_comparison_forbids_the_drop(old):
    old.run(NAME)
    old.wait_two_days(NAME, "ai_agent_sessions", "created_at", "updated_at")
    # the updates of the test above are changes that nobody has copied
    with pytest.raises(DropRefused, match="changed"):
        old.finish(NAME)
    old.run(NAME)
    old.wait_two_days(NAME, "ai_agent_sessions")
    old.database.query(
        "insert into ai_agent_sessions (phone, created_at, updated_at) values ('1', now() - interval '3 days', now() - interval '3 days')"
    )
    with pytest.raises(DropRefused, match=r"accounted|counters"):
        old.finish(NAME)
    assert old.database.value("select count(*) from ai_agent_sessions") == 31


def finished(old):
    old.database.query(
        "update ai_agent_sessions set created_at = created_at - interval '5 days', updated_at = updated_at - interval '5 days'"
    )
    old.run(NAME)
    old.wait_two_days(NAME, "ai_agent_sessions")
    old.finish(NAME)


def test_the_clean_up_drops_view_table_and_mark(old):
    finished(old)
    assert old.database.query(
        "select to_regclass('ai_agent_sessions'), to_regclass('ai_agent_sessions_compat')"
    ) == [(None, None)]
    assert (
        old.database.value(
            "select count(*) from pg_attribute where attname like 'migrated%%' and not attisdropped"
        )
        == 0
    )
    assert (
        old.database.value("select count(*) from pg_trigger where tgname like 'zz_%%'") == 0
        and counts(old) == 20
    )
    assert old.database.query(
        "select operator, reason, details from operator_actions where action = 'finish_backfill'"
    ) == [("ada", "done", {"rows": 30, "table": "public.ai_agent_sessions", "backfill": NAME})]
    with pytest.raises(InvalidArgument, match="finished"):
        old.run(NAME)
    with pytest.raises(InvalidArgument, match="finished"):
        old.finish(NAME)


def test_the_way_back_before_the_clean_up_leaves_nothing(old, small_batches):
    old.run(NAME)
    assert (
        old.rollback(NAME) == []
        and counts(old) == 0
        and old.ledger() == []
        and old.state(NAME) == "rolled_back"
    )
    assert old.database.value("select to_regclass('ai_agent_sessions_compat')") is None
    assert (
        old.database.value(
            "select count(*) from pg_attribute where attname like 'migrated%%' and not attisdropped"
        )
        == 0
    )
    assert old.run(NAME).state == "succeeded" and counts(old) == 20


def test_the_way_back_after_the_clean_up_makes_the_old_table_again(old):
    old.database.query(
        "update ai_agent_sessions set created_at = created_at - interval '5 days', updated_at = updated_at - interval '5 days'"
    )
    before = old.database.query(
        "select id, phone, context, created_at, updated_at, expires_at from ai_agent_sessions order by id"
    )
    old.run(NAME)
    old.wait_two_days(NAME, "ai_agent_sessions")
    old.finish(NAME)
    (finding,) = old.rollback(NAME)
    assert finding.check == "rights"
    assert (
        old.database.query(
            "select id, phone, context, created_at, updated_at, expires_at from ai_agent_sessions order by id"
        )
        == before
    )
    defaults = old.database.query(
        "insert into ai_agent_sessions (phone) values ('1') returning context, expires_at > now() + interval '23 hours', id is not null"
    )
    assert defaults == [({}, True, True)]
    indexed = old.database.query(
        "select indexdef from pg_indexes where tablename = 'ai_agent_sessions' order by 1"
    )
    assert [row[0].split("btree ")[1] for row in indexed] == ["(expires_at)", "(phone)", "(id)"]


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ("alter table ai_agent_sessions drop column context", "columns", "has no column context"),
        (
            "alter table ai_agent_sessions alter expires_at type timestamp",
            "columns",
            "expires_at is timestamp without time zone",
        ),
        ("alter table ai_agent_sessions drop constraint ai_agent_sessions_pkey", "key", "no primary key"),
        ("alter table ai_agent_sessions rename to ai_agent_session", "source", "no table ai_agent_sessions"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_by_name(old, change, field, says):
    old.database.query(change)
    with pytest.raises(InvalidArgument, match=says) as caught:
        old.run(NAME)
    assert caught.value.field == field and counts(old) == 0


def test_a_half_done_run_on_another_table_is_not_gone_on_with(old):
    old.run(NAME)
    old.database.query("create schema legacy")
    old.database.query("create table legacy.sessions (like ai_agent_sessions including all)")
    with pytest.raises(InvalidArgument, match=r"it was begun on public\.ai_agent_sessions"):
        old.run(NAME, settings={"source": "legacy.sessions"})
    old.rollback(NAME)
    assert old.run(NAME, settings={"source": "legacy.sessions"}).state == "succeeded"


def test_a_role_without_the_right_is_told_which_it_needs(old):
    connection = connect(old.database.url, deadline_seconds=30)
    try:
        findings = acts.check(connection, declare.find(NAME))
    finally:
        connection.close()
    assert ("refused", "rights") in levels(findings)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_row_is_unaccounted_when_runs_are_killed_beside_writers(old, small_batches, seed):
    """Old and new code write meanwhile; then the old one stops, and a last run finds everything."""
    database, chance = old.database, random.Random(seed)
    database.query(
        "insert into ai_agent_sessions (phone, context, updated_at, expires_at) select '+25078900' || lpad((n % 300)::text, 4, '0'), jsonb_build_object('n', n), "
        "now() - make_interval(secs => n), now() + make_interval(hours => 12 - n % 24) from generate_series(1, 1500) n"
    )
    over = threading.Event()

    def write():
        with database.connect(admin=True) as connection:
            while not over.wait(0.005):
                phone = f"25078900{chance.randrange(300):04}"
                connection.execute(
                    "update ai_agent_sessions set context = context || '{\"w\": 1}', updated_at = clock_timestamp() where phone = %s",
                    (phone,),
                )
                connection.execute("insert into ai_agent_sessions (phone) values (%s)", (phone,))
                connection.execute(
                    "delete from ai_agent_sessions where id in (select id from ai_agent_sessions where phone = %s limit 1)",
                    (phone,),
                )
                connection.execute(
                    "select get_or_create_agent_session(%s, 'orders')",
                    (f"25078900{chance.randrange(300):04}",),
                )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        killed_until_done(
            database.admin_url,
            lambda: declare.find(NAME),
            seed,
            longest_seconds=0.6,
            ends=("verified", "copied"),
        )
    finally:
        over.set()
        writer.join()
    old.run_until_verified(NAME)
    rows, accounted = account(old)
    assert rows == accounted >= 1500
    assert (
        database.value(
            "select count(*) from (select from agent_chat_sessions where status = 'active' group by normalize_phone(user_phone), agent_type having count(*) > 1) d"
        )
        == 0
    )


def test_killing_is_survived_by_the_way_back_too(old, small_batches):
    """Twice as well as once."""
    old.run(NAME)
    old.rollback(NAME)
    old.database.query("update backfills set state = 'verified'")
    assert old.rollback(NAME) == [] and counts(old) == 0


def test_a_drop_without_rights_or_with_dependents_of_another_kind_changes_nothing(old):
    """What the guard cannot see stops the drop itself: it never cascades."""
    old.database.query(
        "update ai_agent_sessions set created_at = created_at - interval '5 days', updated_at = updated_at - interval '5 days'"
    )
    old.run(NAME)
    old.wait_two_days(NAME, "ai_agent_sessions")
    old.database.query("create table child () inherits (ai_agent_sessions)")
    with pytest.raises((DropRefused, StoreRejected), match="child"):
        old.finish(NAME)
    assert (
        old.database.value("select count(*) from ai_agent_sessions") == 30 and old.state(NAME) == "verified"
    )
