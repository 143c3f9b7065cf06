"""packhorse doctor: things broken on purpose, each found with its repair (SPEC O1, O8-O10)."""

from __future__ import annotations

import pytest

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from packhorse.worker.doctor.snapshot import paths_of, text_of
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE
from packhorse.worker.store import doctor as store
from tests.support.cli import Cli
from tests.support.pgbouncer import PROGRAM, PgBouncer

pytestmark = pytest.mark.slow

#: The test server runs without fsync and whole pages, and with this default as it comes.
KNOWN = {"setting:fsync", "setting:full_page_writes", "setting:idle_in_transaction_session_timeout"}
needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"
)


@pytest.fixture
def cli(tmp_path, database):
    return Cli(tmp_path, database.url)


@pytest.fixture
def bouncer(server, tmp_path):
    bouncer = PgBouncer(server, tmp_path)
    yield bouncer
    bouncer.close()


def findings(cli, *subjects, **environment):
    """What is not ok, beside what every test server has; with subjects: those findings, ok or not."""
    ran = cli("doctor", "--json", **environment)
    found = ran.document["findings"]
    assert all(set(row) == {"subject", "status", "text", "repair"} for row in found)
    assert (ran.code == EXIT_OK) is all(row["status"] != "fail" for row in found)
    if subjects:
        return [row for row in found if row["subject"] in subjects]
    return [row for row in found if row["status"] != "ok" and row["subject"] not in KNOWN]


def mended(database, cli, repair):
    """The repair, run as the owner statement by statement, leaves nothing to find."""
    for statement in [part for part in repair.split(";") if part.strip()]:
        database.query(statement)
    assert findings(cli) == []


@pytest.mark.parametrize(
    "sets",
    [(), ("platform",), ("public-api",), ("platform", "public-api")],
    ids=["queue", "platform", "public_api", "both"],
)
def test_a_fresh_database_is_the_snapshot(any_server, sets):
    """After a change of a migration: `python -m packhorse.worker.doctor.snapshot`, and look at the diff."""
    database = any_server.create_empty_database()
    connection = connect(database.admin_url, deadline_seconds=120)
    migrate.up(connection, sets=sets)
    found = text_of(store.schema_objects(connection))
    connection.close()
    database.drop()
    lines = [line for path in paths_of(sets) for line in path.read_text().splitlines()]
    assert sorted(found.splitlines()) == sorted(lines)


def test_an_installation_in_order_has_nothing_to_mend(cli):
    assert findings(cli) == []
    ran = cli("doctor")
    assert (
        ran.err == ""
        and "a direct connection" in ran.out
        and "a NOTIFY arrives" in ran.out
        and "-> alter system set fsync = on" in ran.out
    )


def test_the_right_to_see_snapshots_is_named_with_its_grant(tmp_path, own_server):
    database = own_server.create_database()
    cli = Cli(tmp_path, database.url)

    def found():
        return next(
            entry
            for entry in cli("doctor", "--json").document["findings"]
            if entry["subject"] == "statistics"
        )

    assert found()["status"] == "ok" and "packhorse_oldest_snapshot_age_seconds is absent" in found()["text"]
    database.query(found()["repair"])
    assert found()["repair"] is None


def test_exit_code_0_with_a_warning_and_1_when_strict(own_server, tmp_path):
    own_server._run(
        "pg_ctl",
        "-D",
        str(own_server._data),
        "-m",
        "fast",
        "-w",
        "-o",
        f"-c listen_addresses='' -k {own_server.socket_dir}",
        "-l",
        str(own_server.socket_dir / "log"),
        "restart",
    )
    cli = Cli(tmp_path, own_server.create_database().url)
    assert cli("doctor").code == EXIT_OK
    strict = cli("doctor", "--strict", "--json")
    assert strict.code == EXIT_FAILED and strict.document["ok"] is False


def test_a_missing_index_is_found_with_the_statement_that_makes_it(cli, database):
    database.query("drop index dead_letters_fingerprint_idx")
    (found,) = findings(cli)
    assert found["subject"] == "schema" and "index dead_letters_fingerprint_idx is missing" in found["text"]
    mended(database, cli, found["repair"])


def test_a_changed_index_is_found(cli, database):
    database.query("drop index dead_letters_dead_at_idx")
    database.query("create index dead_letters_dead_at_idx on dead_letters (created_at)")
    (found,) = findings(cli)
    assert "dead_letters_dead_at_idx was changed" in found["text"]
    mended(database, cli, found["repair"])


def test_an_invalid_index_is_found(cli, database):
    database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "select nextval('message_queue_id_seq'), 'default', 't', '{}', '{}', 5, 'failed', 'f', 1, 0, now() from generate_series(1, 2)"
    )
    with (
        database.connect(admin=True) as connection,
        pytest.raises(Exception, match="could not create unique index"),
    ):
        connection.execute("create unique index concurrently broken_idx on dead_letters (queue)")
    (found,) = findings(cli)
    assert "broken_idx is invalid" in found["text"] and "concurrently" in found["repair"]


@pytest.mark.parametrize(
    ("breakage", "what"),
    [
        (
            "revoke execute on function cancel_message(bigint, text, text, bigint) from packhorse_worker",
            "lacks a right",
        ),
        ("revoke insert on message_archive from packhorse_worker", "lacks a right"),
        (
            "drop policy dead_letters_reader on dead_letters",
            "policy dead_letters.dead_letters_reader is missing",
        ),
        ("alter table workers disable row level security", "table workers was changed"),
        (
            "alter table queues drop constraint queues_keep_done_range",
            "constraint queues.queues_keep_done_range is missing",
        ),
        ("alter table workers alter column state drop default", "column workers.state was changed"),
    ],
)
def test_what_was_taken_away_is_found(cli, database, breakage, what):
    database.query(breakage)
    (found,) = findings(cli)
    assert what in found["text"] and found["status"] == "fail"
    if not found["repair"].startswith("make "):
        mended(database, cli, found["repair"])


def test_a_missing_and_a_changed_function_name_the_migration_that_has_them(cli, database):
    database.query("drop function health_circuit_breakers()")
    database.query(
        "create or replace function packhorse.health_level(p_value double precision, p_warn double precision, p_fail double precision) returns text "
        "language sql immutable as $$ select 'ok' $$"
    )
    repairs = sorted(row["repair"] for row in findings(cli) if row["text"].startswith("function"))
    files = ["migrations/functions/health_readings.sql", "migrations/functions/services.sql"]
    assert len(repairs) == 2 and all(file in repair for file, repair in zip(files, repairs, strict=True)), (
        repairs
    )


def test_a_function_of_the_public_api_that_was_edited_by_hand_is_found(cli, database):
    with connect(database.admin_url, deadline_seconds=120) as connection:
        migrate.up(connection, sets=["public-api"])
        assert findings(cli) == []
        database.query(
            "create or replace function public.message_queue_length() returns integer language sql return 1"
        )
        database.query(
            "create or replace function public.cleanup_old_messages(p_limit integer default 5000) returns integer "
            "language sql volatile as 'select 0'"
        )
        database.query("drop function public.cancel_own_message(bigint, text)")
        missing, changed = sorted(findings(cli), key=lambda row: "changed" in row["text"])
        assert missing["text"] == "api function cancel_own_message(bigint, text) is missing"
        assert changed["text"].startswith("api function cleanup_old_messages(integer) was changed")
        assert all("migrations/public-api/functions/api.sql" in row["repair"] for row in (missing, changed))
        migrate.up(connection, again=True)
        assert findings(cli) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("alter function enqueue_message reset search_path", "function enqueue_message"),
        ("alter function cancel_message set lock_timeout = '1h'", "set lock_timeout=1h"),
        ("alter function release_unknown_messages security definer", "security definer"),
    ],
)
def test_a_function_that_runs_with_other_settings_or_rights_is_found(cli, database, change, what):
    database.query(change)
    (found,) = findings(cli)
    assert what in found["text"] and found["status"] == "fail" and "migrations/" in found["repair"]


def test_a_constraint_that_was_never_validated_is_a_warning(cli, database):
    database.query(
        "alter table workers add constraint workers_threads_positive check (threads > 0) not valid"
    )
    (found,) = findings(cli)
    assert found["status"] == "warn"
    mended(database, cli, found["repair"])


def test_what_users_add_is_their_own_business(cli, database):
    database.query("create index my_idx on dead_letters (queue, dead_at)")
    database.query("create table my_table (id integer primary key)")
    assert findings(cli) == []


def test_row_level_security_that_hides_the_queue_is_found(cli, database):
    database.query("alter policy message_queue_worker on message_queue using (false)")
    found = {row["subject"]: row for row in findings(cli)}
    assert (
        "hides" in found["row_level_security"]["text"]
        and "policy message_queue.message_queue_worker was changed" in found["schema"]["text"]
    )


def test_a_role_without_rights_and_a_superuser_are_found(cli, database):
    database.query(
        "do $$ begin create role packhorse_nobody login; exception when duplicate_object then null; end $$"
    )
    cli.environment["DATABASE_URL"] = database.server.url(database.name, "packhorse_nobody")
    found = {row["subject"]: row for row in findings(cli)}
    assert (
        found["role"]["repair"] == "grant packhorse_worker to packhorse_nobody;"
        and found["row_level_security"]["status"] == "fail"
    )
    cli.environment["DATABASE_URL"] = database.admin_url
    (only,) = findings(cli)
    assert only["subject"] == "role" and only["status"] == "warn" and "superuser" in only["text"]


def test_a_role_with_bypassrls_is_a_warning(cli, database):
    database.query("create role packhorse_bypass login bypassrls in role packhorse_worker")
    cli.environment["DATABASE_URL"] = database.server.url(database.name, "packhorse_bypass")
    (found,) = findings(cli)
    assert found["repair"] == "alter role packhorse_bypass nobypassrls;"
    database.query("drop role packhorse_bypass")


def test_settings_that_hurt_are_found(cli, database):
    found = {
        row["subject"]: row["status"]
        for row in findings(
            cli,
            PGOPTIONS="-c synchronous_commit=off -c statement_timeout=2s -c default_transaction_isolation=serializable",
        )
    }
    assert found == {
        "setting:synchronous_commit": "fail",
        "setting:statement_timeout": "warn",
        "setting:default_transaction_isolation": "warn",
    }


def test_more_connections_than_the_server_has_are_found(cli):
    (found,) = findings(cli, PACKHORSE_PROCESSES="100", PACKHORSE_THREADS="50")
    assert (
        found["subject"] == "connection_budget"
        and found["status"] == "fail"
        and "100 process(es)" in found["text"]
    )


def test_sequences_that_a_failover_left_behind_are_found_and_mended(cli, database):
    database.query(
        "insert into dead_letters (id, queue, message_type, payload, options, priority, reason, fingerprint, attempt, crashes, created_at) "
        "values (500, 'default', 't', '{}', '{}', 5, 'buried', 'f', 1, 0, now())"
    )
    database.query(
        "insert into message_queue (queue, message_type, state, lease_token) values ('default', 't', 'running', 70)"
    )
    found = findings(cli)
    assert [(row["subject"], row["status"]) for row in found] == [("sequences", "fail")] * 2
    mended(database, cli, "".join(row["repair"] for row in found))
    assert (
        database.value("select nextval('message_queue_id_seq')") > 500
        and database.value("select nextval('message_lease_token_seq')") > 70
    )
    (fine,) = findings(cli, "sequences")
    assert fine["status"] == "ok" and "; 3 others are for the owner of their tables" in fine["text"], (
        "a worker's role, which may not see them"
    )
    (fine,) = findings(Cli(cli.folder, database.admin_url), "sequences")
    assert fine["status"] == "ok" and "others" not in fine["text"]


def test_a_sequence_that_the_role_may_not_see_is_not_in_order(cli, database):
    database.query("revoke usage on sequence message_lease_token_seq from packhorse_worker")
    database.query(
        "insert into message_queue (queue, message_type, state, lease_token) values ('default', 't', 'running', 70)"
    )
    (found,) = findings(cli, "sequences")
    assert found["status"] == "warn" and "may not see where message_lease_token_seq stands" in found["text"]


def test_a_database_without_the_schema_or_with_an_old_one_is_a_finding(empty_database, tmp_path):
    cli = Cli(tmp_path, empty_database.admin_url)
    (found,) = findings(cli, "migrations")
    assert found["repair"] == "Run: packhorse migrate up"
    assert cli("migrate", "up").code == EXIT_OK and cli("migrate", "down", "--yes").code == EXIT_OK
    assert [row["subject"] for row in findings(cli) if row["status"] == "fail"] == ["migrations"]


def test_an_unreachable_database_is_exit_69(tmp_path):
    ran = Cli(tmp_path, "postgresql://u@127.0.0.1:1/x")("doctor", "--json")
    assert ran.code == EXIT_UNAVAILABLE and ran.error["code"] == "unavailable"


def test_a_setting_pooler_on_a_direct_connection_is_a_warning(cli):
    (found,) = findings(cli, PACKHORSE_POOLER="true")
    assert found["subject"] == "connection_mode" and found["status"] == "warn"


@needs_pgbouncer
def test_a_transaction_pooler_is_recognised_and_the_setting_is_asked_for(cli, database, bouncer):
    cli.environment["DATABASE_URL"] = bouncer.url(database.name)
    found = {row["subject"]: row for row in findings(cli)}
    assert (
        found["connection_mode"]["status"] == "fail"
        and "PACKHORSE_POOLER=true" in found["connection_mode"]["repair"]
    )
    assert found["listen"]["status"] == "fail"


@needs_pgbouncer
def test_a_transaction_pooler_with_the_setting_is_in_order(cli, database, bouncer):
    cli.environment |= {"DATABASE_URL": bouncer.url(database.name), "PACKHORSE_POOLER": "true"}
    assert findings(cli) == []
    (mode, listen) = findings(cli, "connection_mode", "listen")
    assert "transaction mode" in mode["text"] and "not used" in listen["text"]
    (listen,) = findings(cli, "listen", PACKHORSE_LISTEN_URL=database.url)
    assert listen["text"] == "a NOTIFY arrives"


def test_what_ages_and_no_scheduler_deletes_is_said(database, cli):
    """Workers alone delete only what has an end of its own: it must not grow for ever without a word."""
    database.query(
        "insert into processed_messages (external_id, first_seen_at) values ('old', now() - interval '9 days')"
    )
    database.query("""select declare_queue('blocky'), set_queue('blocky', '{"on_dead": "block"}')""")
    database.query(
        "select bury_message((select message_id from enqueue_message('blocky', 'gone', p_conversation_key => 'c')))"
    )
    database.query("update dead_letters set dead_at = now() - interval '32 days'")
    (found,) = findings(cli, "retention")
    assert (
        found["status"] == "warn"
        and "webhook ids are older" in found["text"]
        and "packhorse scheduler" in found["repair"]
    )
    database.query("update dead_letters set blocks_conversation = false")
    assert "webhook ids and dead letters" in findings(cli, "retention")[0]["text"]
    database.query(
        "select register_worker(gen_random_uuid(), 'h', 1, '1', '{packhorse}', '{packhorse.maintenance}', 4, interval '20 seconds')"
    )
    assert findings(cli, "retention") == []


def test_a_forwarded_queue_without_a_relay_is_a_warning(database, cli):
    def relays() -> list[tuple[str, str]]:
        return [(row["status"], row["text"]) for row in findings(cli, "relays")]

    assert relays() == []
    register = "select register_worker(gen_random_uuid(), 'h', 1, '1', array['default'], '{}', 0, '1 minute', p_forward => 'amqp')"
    database.query(register)
    assert [status for status, text in relays() if "nothing to do" in text] == ["ok"]
    database.query("select set_queue('default', '{\"forward\": \"amqp\"}')")
    assert relays() == [("ok", "1 forwarded queue(s), 1 relay process(es)")]
    database.query("delete from workers")
    assert [status for status, text in relays() if text.startswith("default: forwarded")] == ["warn"]
