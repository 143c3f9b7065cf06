"""O4 for `packhorse scheduler`: alive means that the timetable goes on. Its loop is broken on purpose
(FAILURES 36).
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.cli import Cli
from tests.support.http import free_port, metric, problems
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SETTINGS = {
    "HANG_SECONDS": 5,
    "CALL_DEADLINE_SECONDS": 1,
    "CONNECT_TIMEOUT_SECONDS": 1,
    "HEARTBEAT_SECONDS": 0.5,
    "LEASE_SECONDS": 4,
}


@pytest.mark.parametrize("breakage", ["block", "kill"])
def test_a_scheduler_whose_loop_does_not_tick_is_replaced_and_the_timetable_goes_on(
    database, tmp_path, breakage
):
    database.query(
        "select set_schedule('tick', 'effect', p_every => interval '1 second', p_overlap => 'allow')"
    )
    port, switch, log = free_port(), tmp_path / "breakage", tmp_path / "log"
    cli = Cli(
        tmp_path,
        database.url,
        BREAKAGE=str(switch),
        PACKHORSE_METRICS_PORT=str(port),
        **{f"PACKHORSE_{name}": str(value) for name, value in SETTINGS.items()},
    )

    def fired():
        return database.value("select count(*) from schedule_runs where schedule = 'tick'")

    process = cli.start("scheduler", "tests.support.breaking_scheduler", output=log)
    try:
        wait_until(lambda: fired() >= 2 and problems(port, "/livez") == [], 40, "the timetable goes on")
        switch.write_text(breakage)
        wait_until(lambda: "child_hung" in log.read_text(), 30)
        assert "scheduler" in log.read_text().split("child_hung")[1].splitlines()[0]
        switch.unlink()
        before = fired()
        wait_until(lambda: fired() > before + 1, 40, "another process has taken over")
        wait_until(lambda: problems(port, "/livez") == [], 20)
        assert metric(port, "process_restarts_total", reason="hung") >= 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
