"""Every health gate, closed by the real thing: the run waits, says so where operators look, and goes on when
it opens (SPEC M6).
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from packhorse.schedules.maintenance import run as run_loop
from packhorse.schedules.maintenance.policies import Gates
from packhorse.worker.db.connection import connect
from packhorse.worker.store import maintenance as store
from tests.schedules.test_retention import OPEN, last, left, policy, run, shop, worker_row  # noqa: F401
from tests.support.cli import Cli
from tests.support.postgres import Database, Server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@contextmanager
def old_snapshot(database: Database) -> Iterator[float]:
    with database.connect(admin=True) as holder, holder.transaction(force_rollback=True):
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1 from shop.orders limit 1")
        # older than any other session's, the server's own among them: those are not to close the gate again
        wait_until(
            lambda: database.value(
                "select clock_timestamp() - xact_start > '1 second' from pg_stat_activity where pid = %s",
                holder.info.backend_pid,
            )
        )
        yield 1.0


@contextmanager
def vacuum(database: Database) -> Iterator[float]:
    started: list[int] = []

    def work() -> None:
        with database.connect(admin=True) as connection:
            connection.execute("set vacuum_cost_delay = 100")
            connection.execute("set vacuum_cost_limit = 1")
            started.append(connection.info.backend_pid)
            try:
                connection.execute("vacuum shop.orders")
            except psycopg.errors.QueryCanceled:
                pass

    database.query("update shop.orders set note = repeat('y', 500)")  # something to do for it
    thread = threading.Thread(target=work)
    thread.start()
    wait_until(
        lambda: (
            database.value(
                "select count(*) from pg_stat_progress_vacuum where relid = 'shop.orders'::regclass"
            )
            == 1
        )
    )
    yield 0.0
    database.query("select pg_cancel_backend(%s)", started[0])
    thread.join(20)


@contextmanager
def many_connections(database: Database) -> Iterator[float]:
    used = float(
        database.value("select count(*) from pg_stat_activity where backend_type = 'client backend'")
    )  # type: ignore[arg-type]
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(database.connect())
        yield (used + 20) / 200


@contextmanager
def late_queue(database: Database) -> Iterator[float]:
    database.query("select enqueue_message('default', 'effect')")
    database.query("update message_queue set run_at = clock_timestamp() - interval '1 minute'")
    database.query(worker_row(database))
    yield 30.0
    database.query("delete from message_queue")


CLOSED: dict[str, Callable[[Database], object]] = {
    "oldest_snapshot_seconds": old_snapshot,
    "autovacuum_on_table": vacuum,
    "connections_ratio": many_connections,
    "queue_latency_seconds": late_queue,
}


@pytest.mark.parametrize("gate", CLOSED)
def test_a_closed_gate_holds_a_run_is_shown_and_lets_it_go_on(
    database,
    shop,  # noqa: F811
    open_connection,
    tmp_path,
    monkeypatch,
    gate,
):
    shop()
    monkeypatch.setattr(run_loop, "GATE_WAIT_SECONDS", (0.05, 0.2))
    held, shown = [], []
    with ExitStack() as trouble:
        most = trouble.enter_context(CLOSED[gate](database))

        def on_progress(rows: int, closed: str | None) -> None:
            if closed is None:
                return
            held.append((closed, left(database), last(database, "gate")))
            if len(held) == 3:
                cli = Cli(tmp_path, database.admin_url)
                shown.extend(cli("maintenance", "status", "--json").document["runs"])
                trouble.close()

        gates = Gates(**{**{name: None for name in OPEN.__dataclass_fields__}, gate: most})
        assert run(open_connection("owner"), gates=gates, on_progress=on_progress) == "succeeded"
    assert held[:3] == [(gate, 1100, gate)] * 3, (
        "nothing was deleted meanwhile, and the row of the run said why"
    )
    assert (shown[0]["task"], shown[0]["state"], shown[0]["gate"]) == ("retention.orders", "running", gate)
    assert database.query("select gates_hit, gate, throttled_seconds > 0.1 from maintenance_runs") == [
        ({gate: 1}, None, True)
    ]
    assert left(database) == 100


@pytest.fixture
def standby(own_server: Server) -> Iterator[str]:
    """A streaming standby of own_server; its address."""
    folder = own_server.socket_dir / "standby"
    folder.mkdir()
    if own_server._user:
        shutil.chown(folder, own_server._user)
    data = str(folder / "data")
    own_server._run(
        "pg_basebackup",
        "-D",
        data,
        "-h",
        str(own_server.socket_dir),
        "-U",
        "postgres",
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
    )
    own_server._run(
        "pg_ctl",
        "-D",
        data,
        "-o",
        f"-c listen_addresses='' -k {folder} -c max_connections=200 -c hot_standby=on",
        "-l",
        str(folder / "log"),
        "-w",
        "start",
    )
    yield f"postgresql://postgres@/postgres?host={folder}"
    own_server._run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def test_a_standby_that_lags_behind_holds_a_run_until_it_has_caught_up(own_server, standby, monkeypatch):
    monkeypatch.setattr(run_loop, "GATE_WAIT_SECONDS", (0.05, 0.2))
    database = own_server.create_database()
    database.query("create schema shop")
    database.query("create table shop.orders (id bigint primary key, done_at timestamptz)")
    database.query(
        "insert into shop.orders select n, clock_timestamp() - interval '30 days' from generate_series(1, 500) n"
    )

    def on_standby(statement: str) -> None:
        with psycopg.connect(standby, autocommit=True) as connection:
            connection.execute(statement)

    def lag() -> float:
        database.query("update shop.orders set done_at = done_at where id = 1")  # something to replay
        with connect(database.admin_url) as connection:
            return next(
                found.value or 0.0
                for found in store.gates(connection, None)
                if found.gate == "replication_lag_seconds"
            )

    wait_until(
        lambda: (
            database.value("select count(*) from pg_stat_replication where replay_lag is not null") == 1
            or lag() > 0
        ),
        30,
        "it replays",
    )
    on_standby("select pg_wal_replay_pause()")
    wait_until(lambda: lag() > 1.0, 30, "the lag of what stands still grows")
    held = []

    def on_progress(rows: int, gate: str | None) -> None:
        if gate is not None:
            held.append((gate, left(database), last(database, "gate")))
            if len(held) == 3:
                on_standby("select pg_wal_replay_resume()")

    with connect(database.admin_url, deadline_seconds=30) as connection:
        assert (
            run(connection, gates=Gates(1.0, None, None, None, None), on_progress=on_progress) == "succeeded"
        )
    assert held[:3] == [("replication_lag_seconds", 500, "replication_lag_seconds")] * 3
    assert left(database) == 0
