"""O9: the password of the connection is in no log line, no argument of a process, no page and no answer of a
command, whatever fails.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.accounting import effects
from tests.support.cli import Cli
from tests.support.http import free_port, get, problems
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

PASSWORD = "Zx9-Quagga-77"


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize("given", ["url", "file"])
def test_a_password_is_seen_by_nobody(own_server, ledger, start_daemon, tmp_path, given):
    database = own_server.create_database()
    url = database.url.replace("packhorse_test@", f"packhorse_test:{PASSWORD}@")
    secret = tmp_path / "database_url"
    secret.write_text(url + "\n")
    extra = {"DATABASE_URL": "", "PACKHORSE_DATABASE_URL_FILE": str(secret)} if given == "file" else {}
    port = free_port()
    daemon = start_daemon(
        url, ledger, extra=extra, processes=2, log_level="debug", metrics_port=port, fleet_seconds=1
    ).wait_ready(2)
    cli = Cli(
        tmp_path,
        None if given == "file" else url,
        **({"PACKHORSE_DATABASE_URL_FILE": str(secret)} if given == "file" else {}),
    )
    scheduler = cli.start("scheduler", output=tmp_path / "scheduler.log")
    try:
        wait_until(
            lambda: database.value("select count(*) from schedules") > 0, 40, "the timetable is written"
        )
        effects(database, 3)
        wait_until(lambda: len(ledger.counts("effect")) == 3)
        shown = [arguments(pid) for pid in (daemon.process.pid, *daemon.children(), scheduler.pid)]
        assert len(shown) >= 4
        shown += [get(port, path)[1] for path in ("/metrics", "/version", "/scale", "/readyz")]
        for command in (
            ("config", "show"),
            ("config", "show", "--json"),
            ("doctor", "--json"),
            ("workers",),
            ("health",),
            ("top", "--once"),
        ):
            ran = cli(*command)
            shown += [ran.out, ran.err]
        own_server.stop("immediate")  # everything fails now, and says so
        wait_until(lambda: problems(port, "/readyz") and "service_failed" in daemon.log)
        for command in (
            ("queue", "list"),
            ("doctor", "--json"),
            ("maintenance", "list"),
            ("schedule", "list"),
        ):
            ran = cli(*command)
            assert ran.code != 0
            shown += [ran.out, ran.err]
        shown += [get(port, "/readyz")[1], daemon.log, (tmp_path / "scheduler.log").read_text()]
        assert [text[:300] for text in shown if PASSWORD in text or PASSWORD.lower() in text.lower()] == []
        assert json.loads(cli("config", "show", "--json").out), "there was something to see"
    finally:
        os.killpg(scheduler.pid, 9)
        scheduler.wait(10)
