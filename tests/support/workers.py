"""Real worker processes and their ledger of effects.

A daemon is `python -m packhorse.worker.cli.program worker <modules>` in a process group of its own. Handlers
write each start and each effect to a ledger file by one O_APPEND write: faults of database and processes do
not touch it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.support.postgres import Database
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


class Ledger:
    """Lines `event id pid`, appended by handlers: see tests/support/actors.py."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, event: str | None = None) -> list[list[str]]:
        rows = [line.split() for line in self.path.read_text().splitlines()]
        return [row for row in rows if event is None or row[0] == event]

    def counts(self, event: str) -> Counter[str]:
        return Counter(row[1] for row in self.lines(event))


class Daemon:
    """One `packhorse worker` as a real process tree. Settings are environment variables; `extra` are others.
    stderr: a descriptor in place of the log. command: worker, scheduler or up. options: of the command."""

    def __init__(
        self,
        database: Database | str,
        ledger: Ledger | None = None,
        actors: str = "tests.support.actors",
        extra: dict[str, str] | None = None,
        stderr: int | None = None,
        cwd: Path = ROOT,
        command: str = "worker",
        options: tuple[str, ...] = (),
        **settings: object,
    ) -> None:
        url = database if isinstance(database, str) else database.url
        quick = {
            "heartbeat_seconds": 0.5,
            "lease_seconds": 4,
            "rescue_seconds": 0.5,
            "call_deadline_seconds": 3,
            "poll_seconds": 0.5,
            "drain_seconds": 10,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PACKHORSE_")}
        environment |= {
            f"PACKHORSE_{key.upper()}": str(value) for key, value in {**quick, **settings}.items()
        }
        environment |= {"DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        if ledger is not None:
            environment["LEDGER"] = str(ledger.path)
        environment |= extra or {}
        self.log_path = Path(f"/tmp/packhorse-daemon-{os.getpid()}-{id(self)}.log")
        self._log = self.log_path.open("w")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "packhorse.worker.cli.program",
                command,
                *filter(None, [actors]),
                *options,
            ],
            env=environment,
            cwd=cwd,
            stdout=self._log,
            stderr=self._log if stderr is None else stderr,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def children(self) -> list[int]:
        """Pids of the live worker processes below the parent."""
        out = subprocess.run(
            ["pgrep", "-a", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout
        found = [line.split() for line in out.splitlines()]
        # of `packhorse up` the page is one, too
        return [int(pid) for pid, *command in found if "web" not in command]

    def wait_ready(self, count: int = 1) -> Daemon:
        wait_until(
            lambda: self.log.count("worker_started") >= count or self.process.poll() is not None,
            30,
            "worker_started",
        )
        assert self.process.poll() is None, self.log
        return self

    def kill_child(self, chance: random.Random) -> None:
        """SIGKILL to one child, if there is one at this moment."""
        victims = self.children()
        if victims:
            try:
                os.kill(chance.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended between the look and the kill

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill_group(self) -> None:
        """SIGKILL to the parent and every child: the host is gone."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout_seconds: float = 30.0) -> int:
        """SIGTERM and wait; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout_seconds)

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        self._log.close()
        self.log_path.unlink(missing_ok=True)
