"""The supervisor as PID 1 of a container: nothing between it and the kernel (SPEC O7, W6)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.accounting import effects
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Ledger

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _can_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    )


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _can_unshare(), reason="no right to make a PID namespace (needs root and unshare)"
    ),
]


class Container:
    """`packhorse worker` as PID 1 of a namespace of its own. `pid`: the supervisor, as this side sees it."""

    def __init__(self, url: str, ledger: Ledger, log: Path) -> None:
        self.log_path = log
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PACKHORSE_")
        } | {
            "DATABASE_URL": url,
            "LEDGER": str(ledger.path),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PACKHORSE_POLL_SECONDS": "0.5",
            "PACKHORSE_PROCESSES": "2",
            "PACKHORSE_DRAIN_SECONDS": "10",
        }
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [
                    *UNSHARE,
                    sys.executable,
                    "-m",
                    "packhorse.worker.cli.program",
                    "worker",
                    "tests.deploy.orphans",
                ],
                env=environment,
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        wait_until(
            lambda: self.log.count("worker_started") >= 2 or self.process.poll() is not None,
            40,
            "two workers",
        )
        assert self.process.poll() is None, self.log
        (self.pid,) = _children(self.process.pid)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def states(self) -> list[str]:
        """State letters of the supervisor's children."""
        return [_stat(pid)[0] for pid in _children(self.pid)]

    def close(self) -> None:
        self.process.kill()  # --kill-child takes the namespace along
        self.process.wait(10)


@pytest.fixture
def container(database, ledger, tmp_path):
    container = Container(database.url, ledger, tmp_path / "log")
    yield container
    container.close()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; a process that went away is a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def _children(pid: int) -> list[int]:
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and _stat(int(path.name))[1] == str(pid)
    ]


def test_it_is_pid_1(container):
    assert "NSpid" in (text := Path(f"/proc/{container.pid}/status").read_text())
    assert text.split("NSpid:")[1].splitlines()[0].split()[-1] == "1"


def test_sigterm_drains_and_exits_with_0(container, database, ledger):
    effects(database, 2, "m", "works", seconds=1.0)
    wait_until(lambda: len(ledger.lines("start")) == 2)
    os.kill(container.pid, signal.SIGTERM)
    assert container.process.wait(30) == 0, container.log
    assert ledger.counts("effect") == {"m0": 1, "m1": 1}
    assert database.query("select state, attempt, count(*) from all_messages group by 1, 2") == [
        ("done", 1, 2)
    ]
    assert "Traceback" not in container.log


def test_what_handlers_left_behind_is_reaped(container, database, ledger):
    effects(database, 20, "m", "abandons")
    wait_until(lambda: len(ledger.lines("orphan")) == 20)
    assert {row[2] for row in ledger.lines("orphan")} == {"1"}, "PID 1 has inherited them"
    wait_until(lambda: "Z" not in container.states(), message="no zombies")
    os.kill(container.pid, signal.SIGTERM)
    assert container.process.wait(30) == 0, container.log


def test_a_killed_child_is_replaced(container):
    workers = _children(container.pid)
    os.kill(max(workers), signal.SIGKILL)
    wait_until(lambda: container.log.count("worker_started") == 3, 30)
    wait_until(lambda: "Z" not in container.states())
    os.kill(container.pid, signal.SIGTERM)
    assert container.process.wait(30) == 0, container.log
