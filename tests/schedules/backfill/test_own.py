"""A user's own backfill and the engine beneath it: nothing is lost, nothing is done twice, whoever stops it
(SPEC M8).
"""

from __future__ import annotations

import threading

import pytest

import packhorse
from packhorse.schedules.backfill import acts, declare, engine
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.errors import InvalidArgument, StoreRejected
from packhorse.worker.ops import backfills as ops

pytestmark = pytest.mark.slow


@pytest.fixture
def lower_emails(declared, shop):
    """As docs/backfills.md has it."""

    def left(connection):
        return connection.execute("select count(*) from shop.users where email <> lower(email)").fetchone()[0]

    @packhorse.backfill("lower_emails", table="shop.users", key="id", verify=left)
    def lower_emails(connection, keys):
        """Addresses in small letters."""
        return connection.execute(
            "update shop.users set email = lower(email) where id = any(%s) and email <> lower(email)", (keys,)
        ).rowcount

    return declare.find("lower_emails")


def progress(database, name="lower_emails"):
    row = database.query(
        "select state, rows_done, rows_total, rows_copied, passes, done_ratio from backfill_progress where name = %s",
        name,
    )
    return row[0] if row else None


def capitals(database):
    return database.value("select count(*) from shop.users where email <> lower(email)")


def test_a_backfill_walks_its_table_and_is_verified(database, lower_emails, run, small_batches):
    ended = run(lower_emails, reason="one spelling")
    assert (ended.state, ended.rows, [finding.level for finding in ended.findings]) == (
        "succeeded",
        1000,
        ["ok"],
    )
    assert capitals(database) == 0
    assert progress(database) == ("verified", 1000, 1000, 1000, 1, 1.0)
    assert database.query("select batches, rows_done, kind, state from maintenance_runs") == [
        (20, 1000, "backfill", "succeeded")
    ]
    assert database.query("select action, operator, reason from operator_actions") == [
        ("run_backfill", "ada", "one spelling")
    ]


def test_a_slow_database_makes_batches_smaller_but_not_of_single_rows(
    database, declared, shop, run, monkeypatch
):
    """Where every statement takes longer than a batch should, fewer rows would not make it faster."""
    monkeypatch.setattr(engine, "ONE_TRANSACTION_ROWS", 0)
    monkeypatch.setattr(engine, "FIRST_BATCH", 400)
    monkeypatch.setattr(engine, "IDLE", (0.001, 0.0))
    sizes = []

    @packhorse.backfill("slow", table="shop.users", verify=lambda connection: 0)
    def slow(connection, keys):
        connection.execute("select pg_sleep(0.01)")
        sizes.append(len(keys))

    assert run(declare.find("slow")).state == "succeeded"
    assert sizes == [400, 200, 100, 100, 100, 100]


def test_a_second_run_changes_nothing_and_finds_what_is_new(database, lower_emails, run):
    run(lower_emails)
    database.query(
        "insert into shop.users values (5, 'X@Y') on conflict (id) do update set email = excluded.email"
    )
    run(lower_emails)
    assert progress(database) == ("verified", 1000, 1000, 1001, 2, 1.0) and capitals(database) == 0


def test_a_table_of_the_application_is_never_dropped(database, lower_emails, run):
    run(lower_emails)
    with pytest.raises(InvalidArgument, match="its table stays"):
        acts.finish(_owner(database), lower_emails, "ada")
    assert database.value("select count(*) from shop.users") == 1000 and progress(database)[0] == "verified"


def test_a_verification_that_finds_rows_fails_and_names_them(database, lower_emails, run):
    run(lower_emails)
    database.query("update shop.users set email = 'A@B' where id <= 3")
    with pytest.raises(InvalidArgument, match="nobody has begun"):
        acts.verify(
            _owner(database),
            declare.OwnBackfill("other", "shop.users", "id", lambda c, k: 0, None, None, 10),
            "ada",
        )
    (finding,) = acts.verify(_owner(database), lower_emails, "ada")
    assert (finding.level, finding.text) == ("refused", "3 row(s) of shop.users are not as they should be")
    assert progress(database)[0] == "copied"


def _owner(database):
    from packhorse.worker.db.connection import connect

    return connect(database.admin_url, deadline_seconds=30)


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(database, lower_emails):
    found = acts.dry_run(_owner(database), lower_emails)
    assert (found.rows, found.batch, found.copied.rows) == (1000, 1000, 1000)
    assert capitals(database) == 1000 and progress(database) is None
    assert database.value("select count(*) from maintenance_runs") == 0


@pytest.mark.parametrize("moment", ["copy", "note_step", "beat", "verify"])
def test_a_run_that_fails_anywhere_goes_on_without_a_row_twice(
    database, declared, shop, run, small_batches, monkeypatch, moment
):
    """An append-only copy would show a row that was done twice."""
    database.query("create table shop.copies (id bigint)")
    broken = iter([3])

    def breaks(which):
        if which == moment:
            left = next(broken, None)
            if left is not None:
                raise StoreRejected("broken on purpose")

    calls = iter(range(10_000))

    @packhorse.backfill("copies", table="shop.users", verify=lambda connection: breaks("verify") or 0)
    def copies(connection, keys):
        connection.execute("insert into shop.copies select unnest(%s::bigint[])", (keys,))
        if next(calls) == 3:
            breaks("copy")

    from packhorse.worker.store import backfills as store
    from packhorse.worker.store import maintenance

    for module, name in ((store, "note_step"), (maintenance, "beat")):
        original = getattr(module, name)

        def failing(*args, original=original, name=name, **kwargs):
            result = original(*args, **kwargs)
            if next(calls) > 6:
                breaks(name)
            return result

        monkeypatch.setattr(module, name, failing)
    with pytest.raises(StoreRejected, match="on purpose"):
        run(declare.find("copies"))
    assert database.value("select state from maintenance_runs") == "failed"
    done = database.value("select count(*) from shop.copies")
    assert done == database.value("select count(distinct id) from shop.copies") and done % 50 == 0


def test_a_paused_run_goes_on_from_its_cursor(database, lower_emails, run, small_batches, open_connection):
    def pause(rows, gate):
        if rows and progress(database)[1] == 200:
            assert ops.pause(open_connection(), "lower_emails", "bob", "lunch") == "requested"

    assert run(lower_emails, on_progress=pause).state == "paused"
    assert (
        database.query("select state, rows_done, paused_by from backfill_progress")
        == [("paused", 250, "bob")]
        and capitals(database) == 750
    )
    with pytest.raises(InvalidArgument, match="is paused"):
        run(lower_emails)
    assert ops.pause(open_connection(), "lower_emails", "bob", None) == "nothing"
    assert ops.resume(open_connection(), "lower_emails", "bob", None) == "resumed"
    assert run(lower_emails).state == "succeeded"
    assert progress(database) == ("verified", 1000, 1000, 1000, 1, 1.0)
    assert database.query("select resumed, rows_done from maintenance_runs") == [(1, 1000)]
    assert database.query("select action, reason from operator_actions order by id") == [
        ("run_backfill", None),
        ("pause_backfill", "lunch"),
        ("resume_backfill", None),
        ("run_backfill", None),
    ]


def test_a_cancelled_run_leaves_what_it_did_and_the_next_begins_at_the_beginning(
    database, lower_emails, run, small_batches, open_connection
):
    def cancel(rows, gate):
        if rows and progress(database)[1] == 200:
            assert ops.cancel(open_connection(), "lower_emails", "bob", "wrong table") == "requested"

    assert run(lower_emails, on_progress=cancel).state == "cancelled" and capitals(database) == 750
    assert progress(database)[0] == "stopped"
    assert run(lower_emails).rows == 1000 and capitals(database) == 0


def test_a_stop_ends_the_run_after_its_batch(database, lower_emails, run, small_batches):
    stop = threading.Event()
    ended = run(lower_emails, stop=stop, on_progress=lambda rows, gate: stop.set())
    assert ended.state == "paused" and capitals(database) == 950 and ended.findings == ()


def test_two_processes_do_not_work_on_one_backfill(database, lower_emails, run, small_batches):
    inner = []
    run(
        lower_emails,
        on_progress=lambda rows, gate: inner.append(run(lower_emails).state) if not inner else None,
    )
    assert inner == ["busy"] and progress(database)[3] == 1000


def test_a_gate_holds_the_run_and_an_operator_can_end_its_wait(database, lower_emails, run, open_connection):
    database.query(
        "insert into message_queue (queue, message_type, payload, run_at) values ('default', 'x', '{}', now() - interval '1 hour')"
    )
    database.query(
        "insert into workers (id, hostname, pid, version, queues, message_types, threads, lease_duration) "
        "values (gen_random_uuid(), 'h', 1, '1', array['default'], array['x'], 1, '1 min')"
    )
    seen = []

    def look(rows, gate):
        seen.append(gate)
        ops.pause(open_connection(), "lower_emails", "bob", None)

    assert run(lower_emails, Gates(None, None, None, None, 10.0), on_progress=look).state == "paused"
    assert seen[0] == "queue_latency_seconds" and capitals(database) == 1000


def test_progress_has_a_rate_and_the_time_that_is_left(database, lower_emails, run, small_batches):
    rates = []

    def look(rows, gate):
        database.query(
            "update backfills set recent_rows = array[extract(epoch from clock_timestamp()) - 10, 0] where recent_rows[1] is not null"
        )
        rates.append(
            database.query("select rows_per_second, eta_seconds, rows_done, state from backfill_progress")[0]
        )

    run(lower_emails, on_progress=look)
    rate, left, done, state = rates[3]
    assert done == 200 and 15 < rate <= 20 and 40 <= left < 55 and state == "running"
    assert database.query("select rows_per_second, eta_seconds from backfill_progress") == [(None, None)]


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"table": "shop.user"}, "source", "there is no table shop.user"),
        ({"table": "shop.users", "key": "email"}, "key", "is no key"),
        ({"table": "shop.users", "key": "nothing"}, "key", "no primary key to walk by"),
    ],
)
def test_what_cannot_be_walked_is_refused_by_name(declared, shop, run, options, field, says):
    packhorse.backfill("own", **options)(lambda connection, keys: None)
    with pytest.raises(InvalidArgument, match=says) as caught:
        run(declare.find("own"))
    assert caught.value.field == field and caught.value.hint


def test_a_unique_column_and_several_columns_are_keys(database, declared, shop, run):
    database.query("create table shop.lines (a text, b int, done bool, primary key (a, b))")
    database.query("insert into shop.lines select n % 7, n from generate_series(1, 300) n")
    database.query("alter table shop.users add unique (email)")
    met = []
    packhorse.backfill("lines", table="shop.lines", key=("a", "b"), most_rows=40)(
        lambda connection, keys: met.extend(keys)
    )
    packhorse.backfill("emails", table="shop.users", key="email", most_rows=300)(
        lambda connection, keys: met.extend(keys)
    )
    run(declare.find("lines"))
    assert sorted(met) == sorted((str(n % 7), n) for n in range(1, 301))
    met.clear()
    run(declare.find("emails"))
    assert len(met) == len(set(met)) == 1000


def test_an_error_of_the_function_names_the_row(database, declared, shop, run):
    database.query("alter table shop.users add check (id <> 417 or note is null)")

    @packhorse.backfill("notes", table="shop.users")
    def notes(connection, keys):
        return connection.execute("update shop.users set note = 'x' where id = any(%s)", (keys,)).rowcount

    with pytest.raises(StoreRejected, match=r"row 417 of shop\.users refuses"):
        run(declare.find("notes"))
    assert database.value("select count(*) from shop.users where note = 'x'") == 416
    assert "row 417" in database.value("select error from backfill_progress")


def test_declarations_are_checked(declared):
    with pytest.raises(InvalidArgument, match="is not a name"):
        packhorse.backfill("no name", table="x")
    packhorse.backfill("mine", table="x")(lambda connection, keys: None)
    with pytest.raises(InvalidArgument, match="declared twice"):
        packhorse.backfill("mine", table="x")(test_declarations_are_checked)
    with pytest.raises(InvalidArgument, match="'mine'"):
        declare.find("mien")


def test_a_way_back_is_the_functions_own_or_refused(database, declared, shop, run, open_connection):
    packhorse.backfill("there", table="shop.users")(
        lambda connection, keys: connection.execute("update shop.users set note = 'x'").rowcount
    )
    packhorse.backfill(
        "back",
        table="shop.users",
        rollback=lambda connection: connection.execute("update shop.users set note = null"),
    )(lambda connection, keys: connection.execute("update shop.users set note = 'x'").rowcount)
    connection = open_connection("owner")
    with pytest.raises(InvalidArgument, match="nothing to take back"):
        acts.rollback(connection, declare.find("back"), "ada")
    run(declare.find("there"))
    with pytest.raises(InvalidArgument, match="declares no way back"):
        acts.rollback(connection, declare.find("there"), "ada")
    run(declare.find("back"))
    assert acts.rollback(connection, declare.find("back"), "ada", "no") == []
    assert (
        database.value("select count(note) from shop.users") == 0
        and progress(database, "back")[0] == "rolled_back"
    )
    assert run(declare.find("back")).state == "succeeded"
