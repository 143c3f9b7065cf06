"""packhorse enqueue, queue, message, conversations: good and bad input against a real database."""

from __future__ import annotations

import pytest

from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from tests.support.cli import Cli

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(tmp_path, database):
    """A database in which a worker has registered the types effect and fails."""
    database.query(
        "select register_worker(gen_random_uuid(), 'h', 1, 'v', array['default'], array['effect', 'fails'], 1, '1 minute')"
    )
    return Cli(tmp_path, database.url, USER="ada", LOGNAME="ada")


def actions(database):
    return database.query("select action, operator, reason from operator_actions order by id")


# -- enqueue -----------------------------------------------------------------------------------------
def test_enqueue_prints_the_id_and_stores_every_option(cli, database):
    ran = cli(
        "enqueue",
        "effect",
        '{"key": "a"}',
        "--priority",
        2,
        "--max-attempts",
        7,
        "--conversation-key",
        "c1",
        "--correlation-id",
        "r1",
        "--concurrency-key",
        "k1",
        "--delay",
        "1h",
        "--expires-in",
        "2h",
        "--queue",
        "default",
    )
    assert ran.code == EXIT_OK
    row = database.query(
        "select id::text, payload, priority, max_attempts, conversation_key, correlation_id, concurrency_key,"
        " round(extract(epoch from run_at - created_at)), round(extract(epoch from expires_at - created_at)) from message_queue"
    )
    assert row == [(ran.out.strip(), {"key": "a"}, 2, 7, "c1", "r1", "k1", 3600, 7200)]


def test_enqueue_says_when_a_dedup_key_answered(cli):
    first = cli("enqueue", "effect", "--dedup-key", "d", "--dedup-window", "10m", "--json").document
    second = cli("enqueue", "effect", "--dedup-key", "d", "--json").document
    assert first["duplicate"] is False
    assert second == {"id": first["id"], "duplicate": True, "merged": False}
    assert "duplicate" in cli("enqueue", "effect", "--dedup-key", "d").out


def test_enqueue_reads_the_payload_from_stdin(cli, database):
    assert cli("enqueue", "effect", "-", stdin='{"key": "from a pipe"}').code == EXIT_OK
    assert database.value("select payload ->> 'key' from message_queue") == "from a pipe"


def test_enqueue_at_a_time_keeps_the_time(cli, database):
    assert cli("enqueue", "effect", "--run-at", "2030-01-31T12:00:00+02:00").code == EXIT_OK
    assert database.value("select run_at = '2030-01-31T10:00:00Z' from message_queue") is True


def test_enqueue_of_an_unknown_type_names_the_near_miss_and_can_be_forced(cli, database):
    ran = cli("enqueue", "efect", "--json")
    assert ran.code == EXIT_USAGE and ran.error["field"] == "type"
    assert "'effect'" in ran.error["hint"] and "--allow-unknown-type" in ran.error["hint"]
    assert database.value("select count(*) from message_queue") == 0
    assert cli("enqueue", "efect", "--allow-unknown-type").code == EXIT_OK


def test_enqueue_on_a_queue_that_workers_of_the_type_do_not_serve_says_so(cli, database):
    database.query("select declare_queue('mail')")
    elsewhere = cli("enqueue", "effect", "--queue", "mail")
    assert (
        elsewhere.code == EXIT_OK
        and "no live worker takes effect from the queue mail, only from default" in elsewhere.err
    )
    assert f"explain {elsewhere.out.strip()}`" in elsewhere.err
    assert cli("enqueue", "effect").err == ""
    database.query(
        "select register_worker(gen_random_uuid(), 'h', 2, 'v', array['mail'], array['effect'], 1, '1 minute')"
    )
    assert cli("enqueue", "effect", "--queue", "mail").err == ""


def test_enqueue_as_a_producer_names_the_option_that_it_needs(tmp_path, cli, database):
    database.query(
        "do $$ begin create role packhorse_enqueuer login in role packhorse_producer;"
        " exception when duplicate_object or unique_violation then null; end $$"
    )
    producer = Cli(tmp_path, database.server.url(database.name, "packhorse_enqueuer"))
    refused = producer("enqueue", "effect", "--json")
    assert (
        refused.code == EXIT_FAILED
        and refused.error["field"] == "type"
        and "--allow-unknown-type" in refused.error["hint"]
    )
    assert producer("enqueue", "effect", "--allow-unknown-type").code == EXIT_OK


def test_enqueue_on_an_unknown_queue_names_the_near_miss(cli):
    ran = cli("enqueue", "effect", "--queue", "defualt", "--json")
    assert ran.code == EXIT_FAILED and ran.error["code"] == "unknown_queue" and "default" in ran.error["hint"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["{bad"], "payload"),
        (["[1]"], "payload"),
        (["NaN"], "payload"),
        (['{"a": NaN}'], "payload"),
        (['{"a": "\\u0000"}'], "payload"),
        (['{"a": "\\ud800"}'], "payload"),
        (["[" * 100_000], "payload"),
        (["{}", "--priority", "11"], "priority"),
        (["{}", "--max-attempts", "0"], "max_attempts"),
        (["{}", "--conversation-key", "x" * 501], "conversation_key"),
        (["{}", "--delay", "100000d"], "delay"),
        (["{}", "--dedup-key", ""], "dedup_key"),
        (["{}", "--dedup-window", "5m"], "dedup_window"),
        (["{}", "--delay", "5s", "--run-at", "2030-01-01T00:00:00Z"], "run_at"),
        (["{}", "--delay", "9999999d"], "delay"),
        (["{}", "--dedup-key", "k", "--dedup-window", "9000d"], "dedup"),
    ],
)
def test_enqueue_refuses_bad_values_by_name_and_stores_nothing(cli, database, arguments, field):
    ran = cli("enqueue", "effect", *arguments, "--json")
    assert ran.code == EXIT_USAGE, ran.err
    assert field in (ran.error["field"] or "") + ran.error["message"]
    assert database.value("select count(*) from message_queue") == 0


def test_enqueue_refuses_a_payload_over_the_limit(cli):
    ran = cli("enqueue", "effect", "-", "--json", stdin='{"key": "' + "x" * 1_100_000 + '"}')
    assert ran.code == EXIT_USAGE and ran.error["field"] == "payload" and "1048576" in ran.error["message"]


def test_enqueue_reads_no_more_of_stdin_than_it_could_take(cli):
    ran = cli("enqueue", "effect", "-", "--json", stdin='{"key": "' + " " * (16 * 1_048_576) + '"}')
    assert (
        ran.code == EXIT_USAGE
        and ran.error["field"] == "payload"
        and str(16 * 1_048_576) in ran.error["message"]
    )


def test_enqueue_refuses_a_type_that_is_no_name(cli):
    ran = cli("enqueue", "no name", "--allow-unknown-type", "--json")
    assert ran.code == EXIT_USAGE and ran.error["field"] == "message_type"


# -- queue -------------------------------------------------------------------------------------------
def test_queues_are_counted_as_the_view_counts_them_and_what_is_much_is_estimated(cli, database):
    many = "insert into message_queue (queue, message_type, payload, state, conversation_key, run_at) select %s, 'effect', '{}', %s, %s, now() + %s::interval from generate_series(1, %s)"
    for row in (
        ("default", "pending", None, "-5 s", 7),
        ("default", "pending", None, "1 hour", 3),
        ("default", "blocked", "k", "0", 2),
        ("undeclared", "pending", None, "-1 s", 4),
        ("held", "blocked", "h", "0", 3),
        ("held", "pending", None, "0", 1),
        ("apart", "pending", None, "-1 s", 2),
    ):
        database.query(many, *row)
    database.query("update message_queue set crashes = 2 where queue = 'apart'")
    database.query(
        "select acquire_message_lock(min(id), gen_random_uuid()) from message_queue"
        " where queue = 'held' and state = 'pending'"
    )
    database.query("select bury_message(min(id), null, 'rejected', 'E', 'no') from message_queue")
    columns = ("queue", "paused", "pending", "delayed", "blocked", "running", "dead")
    view = database.query(f"select {', '.join(columns)} from message_queue_health order by queue")
    found = cli("queue", "list", "--json").document
    assert [tuple(row[name] for name in columns) for row in found] == view and len(view) == 4
    assert found[1]["oldest_due_seconds"] >= 5 and all(row["estimates"] == [] for row in found)
    assert view[2] == ("held", False, 0, 0, 3, 1, 0) and found[2]["oldest_running_seconds"] > 0
    database.query(many, "default", "pending", None, "-1 s", 12_000)
    database.query("analyze message_queue")
    assert "pending" in cli("queue", "list", "--json").document[1]["estimates"]
    assert "~1" in cli("queue", "list").out


def test_pause_and_resume_are_effective_recorded_and_say_when_nothing_changed(cli, database):
    assert cli("queue", "pause", "default", "--json").document == {
        "queue": "default",
        "paused": True,
        "changed": True,
    }
    assert cli("queue", "list", "--json").document[0]["paused"] is True
    assert "already" in cli("queue", "pause", "default").out
    assert cli("queue", "resume", "default", "--operator", "night shift").code == EXIT_OK
    assert "was not paused" in cli("queue", "resume", "default").out
    assert actions(database) == [("pause_queue", "ada", None), ("resume_queue", "night shift", None)]


def test_queue_set_changes_what_show_shows_and_show_can_be_set_again(cli):
    ran = cli(
        "queue",
        "set",
        "default",
        "max_concurrency=10",
        "keep_done=1d",
        "backoff_max=5m",
        "on_dead=block",
        "--json",
    )
    assert ran.code == EXIT_OK
    shown = cli("queue", "show", "default", "--json").document
    assert shown == ran.document
    assert (shown["max_concurrency"], shown["keep_done"], shown["backoff_max"], shown["on_dead"]) == (
        10,
        "1 day",
        "00:05:00",
        "block",
    )
    again = cli(
        "queue",
        "set",
        "default",
        f"keep_done={shown['keep_done']}",
        f"backoff_max={shown['backoff_max']}",
        "max_concurrency=none",
        "--json",
    )
    assert again.document["keep_done"] == "1 day" and again.document["max_concurrency"] is None


def test_queue_show_names_every_setting_as_set_takes_it(cli):
    shown = dict(
        line.split(None, 1) for line in cli("queue", "show", "default").out.partition("\n\n")[0].splitlines()
    )
    assert shown["max_concurrency"].strip() == "none" and shown["keep_done"].strip() == "7 days"
    settings = [
        f"{name}={value.strip()}"
        for name, value in shown.items()
        if name not in ("setting", "name", "created_at", "updated_at")
    ]
    assert cli("queue", "set", "default", *settings).code == EXIT_OK


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("max_concurency=1", "max_concurency"),
        ("max_concurrency=0", "max_concurrency"),
        ("on_dead=explode", "on_dead"),
        ("keep_done=soon", "soon"),
        ("backoff_multiplier=1e300", "backoff_multiplier"),
    ],
)
def test_queue_set_refuses_unknown_names_and_absurd_values_and_changes_nothing(cli, setting, word):
    before = cli("queue", "show", "default", "--json").document
    ran = cli("queue", "set", "default", "max_attempts=5", setting, "--json")
    assert ran.code == EXIT_USAGE and word in ran.error["message"]
    assert cli("queue", "show", "default", "--json").document == before


def test_commands_on_an_unknown_queue_name_the_near_miss(cli):
    for command in (
        ["pause", "defalt"],
        ["resume", "defalt"],
        ["show", "defalt"],
        ["set", "defalt", "max_attempts=1"],
    ):
        ran = cli("queue", *command)
        assert ran.code == EXIT_FAILED and "'default'" in ran.err, command


# -- message -----------------------------------------------------------------------------------------
def enqueue(database, payload='{"key": "a"}', **options):
    names = "".join(f", p_{name} => %s" for name in options)
    return database.query(
        f"select message_id from enqueue_message('default', 'effect', %s::jsonb{names})",
        payload,
        *options.values(),
    )[0][0]


def test_message_list_filters(cli, database):
    ids = [enqueue(database, conversation_key="c1"), enqueue(database), enqueue(database)]
    database.query("select cancel_message(%s)", ids[2])

    def listed(*options):
        return [row["id"] for row in cli("message", "list", "--json", *options).document]

    assert listed() == ids[::-1]
    assert listed("--state", "cancelled") == [ids[2]]
    assert listed("--conversation-key", "c1") == [ids[0]]
    assert listed("--type", "other") == [] and listed("--limit", "1") == [ids[2]]
    assert cli("message", "list", "--queue", "defalt").code == EXIT_FAILED
    assert "no such messages" in cli("message", "list", "--type", "other").out


def test_message_show_and_explain_say_why_it_waits(cli, database):
    message = enqueue(database, delay="1 hour")
    shown = cli("message", "show", message, "--json").document
    assert shown["state"] == "pending" and shown["payload"] == {"key": "a"}
    explained = cli("message", "explain", message, "--json").document
    gates = {gate["gate"]: gate for gate in explained["gates"]}
    assert gates["run_at"]["passed"] is False and gates["run_at"]["earliest_start"] == shown["run_at"]
    assert "due at" in cli("message", "explain", message).out


def test_message_show_and_explain_have_the_traceback_of_an_attempt_that_will_be_retried(cli, database):
    message = enqueue(database)
    traceback = 'Traceback (most recent call last):\n  File "/app/a.py", line 3, in charge\n    raise CardRefused\nCardRefused'
    token = database.value("select lease_token from claim_messages(gen_random_uuid(), array['default'], 1)")
    database.query("select fail_message(%s, %s, 'CardRefused', 'no money', %s)", message, token, traceback)
    shown = cli("message", "show", message)
    assert "attempt 1, 20" in shown.out and "line 3, in charge" in shown.out and "\\n" not in shown.out, (
        "on lines of its own"
    )
    assert cli("message", "show", message, "--json").document["history"][0]["traceback"] == traceback
    explained = cli("message", "explain", message).out
    assert (
        "last_error" in explained
        and "attempt 1 failed at" in explained
        and explained.rstrip().endswith(traceback)
    )
    assert cli("message", "explain", message, "--json").document["last_traceback"] == traceback
    assert cli("message", "explain", enqueue(database), "--json").document["last_traceback"] is None


@pytest.mark.parametrize(
    "command",
    [
        ["message", "show"],
        ["message", "explain"],
        ["message", "cancel"],
        ["message", "retry"],
        ["dead-letter", "show"],
    ],
)
def test_an_unknown_id_is_an_error_not_an_empty_answer(cli, command):
    ran = cli(*command, 987654321, "--json")
    assert ran.code == EXIT_FAILED and "987654321" in ran.error["message"] and ran.error["field"] == "id"
    assert cli(*command, 10**30).code != EXIT_OK


def test_cancel_ends_a_waiting_message_and_is_recorded(cli, database):
    message = enqueue(database)
    assert cli("message", "cancel", message, "--reason", "wrong number").code == EXIT_OK
    assert database.query("select state, reason from all_messages where id = %s", message) == [
        ("cancelled", "wrong number")
    ]
    assert actions(database) == [("cancel", "ada", "wrong number")]
    again = cli("message", "cancel", message, "--json")
    assert again.code == EXIT_FAILED and again.error["code"] == "not_possible"


def test_cancel_of_a_dead_letter_says_that_it_is_one(cli, database):
    dead, done = enqueue(database), enqueue(database)
    database.query("select bury_message(%s)", dead)
    database.query(
        "select complete_messages(array[%s]::bigint[], array[acquire_message_lock(%s, gen_random_uuid())])",
        done,
        done,
    )
    ran = cli("message", "cancel", dead)
    assert ran.code == EXIT_FAILED and "dead-letter purge" in ran.err
    assert cli("message", "cancel", dead, done, "--json").document == [
        {"id": dead, "result": "dead"},
        {"id": done, "result": "gone"},
    ]


def test_cancel_asks_the_worker_of_a_running_message(cli, database):
    message = enqueue(database)
    database.query("select count(*) from claim_messages(gen_random_uuid(), array['default'], 1)")
    assert cli("message", "cancel", message, "--json").document == [{"id": message, "result": "requested"}]
    assert (
        database.value("select cancel_requested_at is not null from message_queue where id = %s", message)
        is True
    )


def test_retry_makes_a_delayed_message_due_and_redrives_a_dead_one(cli, database):
    delayed, dead, running = enqueue(database, delay="1 hour"), enqueue(database), enqueue(database)
    database.query("select bury_message(%s)", dead)
    database.query("select acquire_message_lock(%s, gen_random_uuid())", running)
    ran = cli("message", "retry", delayed, dead, running, 10**12, "--reason", "now", "--json")
    assert ran.code == EXIT_FAILED  # two of the four could not be
    assert [entry["result"] for entry in ran.document] == ["due", "redriven", "running", "gone"]
    assert (
        database.value(
            "select count(*) from message_queue where state = 'pending' and run_at <= clock_timestamp()"
        )
        == 2
    )
    assert actions(database) == [("retry_now", "ada", "now"), ("redrive", "ada", "now")]


def test_show_tells_what_ends_and_limits_a_message(cli, database):
    message = database.value(
        "select message_id from enqueue_message('default', 'effect', p_expires_at => '2999-01-01T00:00:00Z', p_concurrency_key => 'k', p_dedup_key => 'd')"
    )
    database.query("select acquire_message_lock(%s, gen_random_uuid())", message)
    database.query("select cancel_message(%s)", message)
    shown = cli("message", "show", message, "--json").document
    assert (shown["expires_at"][:4], shown["concurrency_key"], shown["dedup_key"]) == ("2999", "k", "d")
    assert shown["cancel_requested_at"] is not None


def test_retry_leaves_a_due_message_at_its_place_in_the_line(cli, database):
    first, _ = enqueue(database), enqueue(database)
    assert cli("message", "retry", first).code == EXIT_OK
    assert database.value("select id from claim_messages(gen_random_uuid(), array['default'])") == first


@pytest.mark.parametrize(("verb", "good"), [("cancel", "cancelled"), ("retry", "due")])
def test_one_locked_message_of_several_is_passed_over_and_named(cli, database, verb, good):
    ids = [enqueue(database) for _ in range(3)]
    with database.connect() as other, other.transaction():
        other.execute("select from message_queue where id = %s for update", (ids[1],))
        ran = cli("message", verb, *ids, "--json")
    assert ran.code == EXIT_FAILED
    assert ran.document == [{"id": one, "result": "busy" if one == ids[1] else good} for one in ids]


def test_what_was_cancelled_before_the_connection_broke_is_said(cli, database):
    ids = [enqueue(database) for _ in range(3)]
    database.query("""create function cut() returns trigger language plpgsql security definer as $$
        begin perform pg_terminate_backend(pg_backend_pid()); return old; end $$""")
    database.query(
        f"create trigger cut before delete on message_queue for each row when (old.id = {ids[1]}) execute function cut()"
    )
    ran = cli("message", "cancel", *ids, "--json")
    assert (ran.code, ran.error["code"]) == (EXIT_UNAVAILABLE, "unavailable")
    assert ran.document == [{"id": ids[0], "result": "cancelled"}]


def test_conversations_names_the_message_that_blocks(cli, database):
    first, second = enqueue(database, conversation_key="c"), enqueue(database, conversation_key="c")
    database.query("select count(*) from claim_messages(gen_random_uuid(), array['default'], 1)")
    database.query("select count(*) from claim_messages(gen_random_uuid(), array['default'], 1)")
    rows = cli("conversations", "--json").document
    assert [
        (row["conversation_key"], row["waiting"], row["holder_kind"], row["holder_id"]) for row in rows
    ] == [("c", 1, "running", first)]
    explained = cli("message", "explain", second, "--json").document
    assert any(not gate["passed"] and str(first) in gate["detail"] for gate in explained["gates"])


def test_workers_lists_who_lives_and_stats_adds_up(cli, database):
    message = enqueue(database)
    database.query("select cancel_message(%s)", message)
    database.query("select bury_message(%s)", enqueue(database))
    enqueue(database)
    assert [row["message_types"] for row in cli("workers", "--json").document] == [["effect", "fails"]]
    stats = cli("stats", "--json").document
    assert {(row["state"], row["count"]) for row in stats["last_hour"]} == {("cancelled", 1), ("dead", 1)}
    assert stats["queues"][0]["pending"] == 1 and stats["workers"]["processes"] == 1
