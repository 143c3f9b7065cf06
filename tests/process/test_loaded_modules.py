"""What each process of a daemon has imported: memory that it keeps as long as it lives (issue 13). Sizes: METRICS=memory python -m benchmarks."""

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
import os, signal, sys

def tell(*_):
    with open(f"told.{os.getpid()}.new", "w") as file:
        file.write("\\n".join(sys.modules))
    os.rename(f"told.{os.getpid()}.new", f"told.{os.getpid()}")

signal.signal(signal.SIGUSR1, tell)
from packhorse.worker.cli.program import main
main()
"""
ACTORS = "import dramatiq, packhorse\ndramatiq.set_broker(packhorse.PostgresBroker())\n\n\n@dramatiq.actor\ndef act():\n    pass\n"
#: What no process of a daemon needs unless the application imports it.
NOBODY = {"rich", "structlog", "pydantic_settings", "apscheduler", "redis", "httpx", "watchfiles", "opentelemetry", "packhorse.worker.cli.main"}
NOT = {
    "parent": NOBODY | {"dramatiq", "prometheus_client", "packhorse.worker.runtime.process", "packhorse.worker.attempt"},
    "exporter": NOBODY | {"dramatiq", "packhorse.worker.runtime.process", "packhorse.worker.attempt", "packhorse.worker.broker"},
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


def test_no_process_of_a_daemon_imports_what_it_does_not_need(database, tmp_path):
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
        command = [sys.executable, "-c", PROGRAM, "worker", "plain_actors"]
        daemon = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_until(lambda: "worker_started" in log.read_text() and scraped(port), 30, "a worker that is counted")
        children = subprocess.run(["pgrep", "-P", str(daemon.pid)], capture_output=True, text=True, check=True).stdout.split()
        told = {role_of(process, daemon.pid, tmp_path): process for process in (daemon.pid, *map(int, children))}
        assert told.keys() == NOT.keys()
        loaded = {role: set((tmp_path / f"told.{process}").read_text().splitlines()) for role, process in told.items()}
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        daemon.wait(30)
    assert {role: sorted(NOT[role] & modules) for role, modules in loaded.items()} == {role: [] for role in NOT}


def role_of(process: int, parent: int, folder: Path) -> str:
    """Which process it is, once it has told what it has imported."""
    os.kill(process, signal.SIGUSR1)
    path = folder / f"told.{process}"
    wait_until(path.exists, 10, str(path))
    return "parent" if process == parent else "worker" if "packhorse.worker.runtime.process" in path.read_text() else "exporter"
