"""What each process of a daemon has imported: memory that it keeps as long as it lives (issue 13). Sizes:
METRICS=memory python -m benchmarks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

#: The installed command, and every process of it says what it has imported when it gets SIGUSR1.
PROGRAM = """
import gc, os, signal, sys

def tell(*_):
    with open(f"told.{os.getpid()}.new", "w") as file:
        file.write("\\n".join([*sys.modules, *["frozen"] * (gc.get_freeze_count() > 0)]))
    os.rename(f"told.{os.getpid()}.new", f"told.{os.getpid()}")

signal.signal(signal.SIGUSR1, tell)
from packhorse.worker.cli.program import main
main()
"""
ACTORS = "import dramatiq, packhorse\ndramatiq.set_broker(packhorse.PostgresBroker())\n\n\n@dramatiq.actor\ndef act():\n    pass\n"
#: What no process of a daemon needs unless the application imports it.
NOBODY = {
    "rich",
    "structlog",
    "pydantic_settings",
    "apscheduler",
    "redis",
    "httpx",
    "watchfiles",
    "opentelemetry",
    "packhorse.worker.cli.message",
}
RUNTIME = {
    "dramatiq",
    "packhorse.worker.runtime.process",
    "packhorse.worker.attempt",
    "packhorse.worker.broker",
}
NOT = {
    "parent": NOBODY | RUNTIME | {"prometheus_client"},
    "exporter": NOBODY | RUNTIME,
    "worker": NOBODY | {"prometheus_client"},
}


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def scraped(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return b"packhorse_queue_messages" in answer.read()
    except OSError:
        return False


def test_a_command_loads_no_other_command(tmp_path):
    code = "import sys; from packhorse.worker.cli.program import run; run(['stats']); print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "DATABASE_URL": f"postgresql:///none?host={tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ran.stdout.split())
    assert "packhorse.worker.cli.stats" in loaded
    assert not {f"packhorse.worker.cli.{name}" for name in ("message", "doctor", "worker", "web")} & loaded


@pytest.mark.parametrize("processes", [1, 2])
def test_no_process_of_a_daemon_imports_what_it_does_not_need(database, tmp_path, processes):
    (tmp_path / "plain_actors.py").write_text(ACTORS)
    port, log = free_port(), tmp_path / "log"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PACKHORSE_")}
    variables |= {
        "DATABASE_URL": database.url,
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "PACKHORSE_METRICS_PORT": str(port),
        "PACKHORSE_LOG_FORMAT": "json",
    }
    with log.open("wb") as stream:
        command = [sys.executable, "-c", PROGRAM, "worker", "plain_actors", "--processes", str(processes)]
        daemon = subprocess.Popen(
            command, cwd=tmp_path, env=variables, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_until(
            lambda: log.read_text().count("worker_started") == processes and scraped(port),
            30,
            "a worker that is counted",
        )
        children = subprocess.run(
            ["pgrep", "-P", str(daemon.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        told = {process: told_by(process, tmp_path) for process in (daemon.pid, *map(int, children))}
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(30)
    loaded = {
        role: [modules for process, modules in told.items() if role_of(process, daemon.pid, modules) == role]
        for role in NOT
    }
    assert [len(loaded[role]) for role in NOT] == [1, 1, processes]
    shared = RUNTIME if processes > 1 else set()  # loaded once, for all of them
    assert loaded["parent"][0] >= shared
    assert {role: sorted((NOT[role] - shared) & set().union(*found)) for role, found in loaded.items()} == {
        role: [] for role in NOT
    }
    assert "psycopg" in loaded["parent"][0], "worker and exporter share it"
    assert all("frozen" in modules for modules in told.values()), (
        "the collector of a fork would copy what it looks at"
    )


def told_by(process: int, folder: Path) -> set[str]:
    """What a process has imported."""
    os.kill(process, signal.SIGUSR1)
    path = folder / f"told.{process}"
    wait_until(path.exists, 10, str(path))
    return set(path.read_text().splitlines())


def role_of(process: int, parent: int, modules: set[str]) -> str:
    return "parent" if process == parent else "worker" if "plain_actors" in modules else "exporter"
