"""Dates at which calendars go wrong: what follows the calendar is tested there, too, by tests of its own.

The tests and their server run on a clock that is moved: a library before libc adds to the time of day.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.sql.client import Sql
from tests.support.scratch import only_one, run_folder

HERE = Path(__file__).parents[1]
#: Tests of what follows the calendar: partitions, schedules, retention, windows, ages.
FOLLOWERS = """
schedules/test_maintenance_sql.py schedules/test_partitions.py schedules/test_retention.py schedules/test_schedule_sql.py
schedules/test_scheduler.py schedules/test_shipped_policies.py sql/test_calendar.py sql/test_known_names.py
sql/test_partition_likeness.py sql/platform/test_events.py sql/platform/test_messages.py
sql/platform/test_reminders.py sql/platform/test_statistics.py integration/test_message_acts.py integration/test_platform_library.py
integration/test_upkeep.py web/test_overview.py
""".split()  # noqa: SIM905
#: Where each run begins, by UTC, and the zone of machine and server; a run takes a minute or less.
MOMENTS = [
    ("2028-02-29 00:00:05", "UTC"),
    ("2026-12-31 23:59:40", "Asia/Kathmandu"),
    ("2027-08-31 12:00:00", "UTC"),
    ("2027-03-28 00:59:50", "Europe/Berlin"),
    ("2026-11-01 05:59:50", "America/New_York"),
]
#: Where the clock of this run was put.
MOMENT = "TESTS_MOMENT"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed (Debian: apt-get install gcc)")
@pytest.mark.parametrize(("moment", "zone"), MOMENTS, ids=[moment[:10] for moment, _ in MOMENTS])
def test_what_follows_the_calendar_works_at_its_edges(moment: str, zone: str) -> None:
    run_at(moment, zone, "-m", "not slow")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed (Debian: apt-get install gcc)")
@pytest.mark.parametrize(("moment", "zone"), [MOMENTS[1], MOMENTS[3]], ids=["year", "summer time"])
def test_partitions_and_retention_work_at_its_edges(moment: str, zone: str) -> None:
    # the plans that one of them looks at want rows in each month; here one begins under it
    run_at(moment, zone, "-m", "calendar", "-k", "not postgres1 and not open_the_partitions")


def run_at(moment: str, zone: str, *chosen: str) -> None:
    """A run of its own for those tests of FOLLOWERS, which begins at this moment."""
    begins = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    # of our own processes' environment: a run of its own, with servers that have never seen another date
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("PH_TEST_RUN", "PYTEST_"))
    }
    moved = {
        "TZ": zone,
        "LD_PRELOAD": str(library()),
        "SHIFTED_SECONDS": f"{(begins - datetime.now(UTC)).total_seconds():.0f}",
        MOMENT: begins.isoformat(),
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *chosen, "-p", "no:cacheprovider", *FOLLOWERS],
        cwd=HERE,
        env={**kept, **moved},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_tests_and_server_are_where_the_clock_was_put(sql: Sql) -> None:
    began = datetime.fromisoformat(os.environ[MOMENT]) if MOMENT in os.environ else datetime.now(UTC)
    for now in (datetime.now(UTC), sql.value("select clock_timestamp()")):
        assert abs((now - began).total_seconds()) < 600


def library() -> Path:
    """The one that moves the clock, compiled once a run."""
    source, made = HERE / "support/shifted_clock.c", run_folder() / "shifted_clock.so"
    with only_one(made.name):
        if not made.exists():
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(made), str(source)], check=True)
    return made
