"""P7b: this release works on the schema of the next one: workers, children that are replaced, restarts, the
command line; and back.
"""

from __future__ import annotations

import os
import signal

import pytest

from packhorse.worker.db import migration_files
from packhorse.worker.db.connection import connect
from packhorse.worker.version import __version__
from tests.support.accounting import assert_every_message_ended_once, effects, wait_for_end
from tests.support.cli import Cli
from tests.support.waiting import wait_until

NEXT = f"""-- What a next release may add: a column, an index, a table, a function.
-- Runs beside: {__version__}
alter table packhorse.message_queue add column colour text;
create index message_queue_colour_idx on packhorse.message_queue (colour) where colour is not null;
create table packhorse.colours (name text primary key);
create function packhorse.paint_message(p_id bigint, p_colour text) returns void language sql
  as 'update packhorse.message_queue set colour = p_colour where id = p_id';
"""
BACK = "drop function packhorse.paint_message; drop table packhorse.colours; alter table packhorse.message_queue drop column colour;"
RECORD = "insert into packhorse.packhorse_migrations (name, checksum, runs_beside, release, objects) values ('0900_paint', 'x', %s, '99.0.0', '{}')"
#: As if the next release had written these functions anew.
OWN = "update packhorse.packhorse_migrations set checksum = 'x', release = %s where name = 'functions/dead_letters'"


@pytest.mark.slow
def test_a_release_works_beside_the_schema_of_the_next_one_under_load_and_back(
    database, ledger, start_daemon, tmp_path
):
    daemon = start_daemon(database, ledger, processes=2, threads=4).wait_ready(2)
    cli = Cli(tmp_path, database.admin_url)
    ids = effects(database, 200, "a", seconds=0.02)
    wait_until(lambda: len(ledger.lines("effect")) > 10)
    connection = connect(database.admin_url, deadline_seconds=60)
    try:
        connection.execute(NEXT.encode(), prepare=False)
        connection.execute(RECORD, [migration_files._RUNS_BESIDE.search(NEXT)[1]])
        connection.execute(OWN, ["99.0.0"])
        ids += effects(database, 200, "b", seconds=0.02)
        os.kill(daemon.children()[0], signal.SIGKILL)
        daemon.wait_ready(3)
        daemon.signal(signal.SIGHUP)
        daemon.wait_ready(5)
        assert cli("queue", "list", "--json").code == 0 and cli("migrate", "check").code == 0
        assert cli("migrate", "up", "--json").document["applied"] == []
        start_daemon(database, ledger, threads=2).wait_ready()
        connection.execute(BACK.encode(), prepare=False)
        connection.execute("delete from packhorse.packhorse_migrations where name = '0900_paint'")
        connection.execute(OWN, [__version__])
        assert cli("migrate", "up", "--json").document["applied"] == ["functions/dead_letters"]
    finally:
        connection.close()
    ids += effects(database, 100, "c")
    wait_for_end(database, 60)
    assert set(assert_every_message_ended_once(database, ids).values()) == {"done"}
    assert "schema_mismatch" not in daemon.log
