"""The installed wheel: built, put by pip into an empty environment, `packhorse up` in an empty folder (issue: command line)."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest

from packhorse import __version__
from tests.support.waiting import wait_until
from tests.support.wheel import install
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ACTORS = """\
import dramatiq
import packhorse

dramatiq.set_broker(packhorse.PostgresBroker())

@dramatiq.actor
def greet(name: str) -> None:
    print(f"hello {name}", flush=True)
"""


@pytest.fixture(scope="module")
def installed():
    """A folder with the wheel and an environment that has nothing but it; its `packhorse`."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        folder = Path(name)
        yield folder, install(folder)[1]


def test_the_wheel_carries_migrations_and_licence(installed):
    names = zipfile.ZipFile(installed[1]).namelist()
    shipped = {Path(name).name for name in names if "packhorse/migrations/" in name}
    assert {path.name for path in (ROOT / "migrations").rglob("0*.sql")} <= shipped
    assert any(name.endswith("LICENSE") for name in names)
    assert any(name.endswith("worker/db/sql/operations.sql") for name in names)
    assert {name.split("/")[0] for name in names} == {"packhorse", f"packhorse-{__version__}.dist-info"}, "one name, and nothing else (SPEC N1)"
    assert "packhorse/py.typed" in names


def test_up_works_in_an_empty_folder_and_ctrl_c_ends_with_0(installed):
    folder = installed[0] / "project"
    folder.mkdir()
    environment = {"PATH": f"{installed[0]}/venv/bin:{os.environ['PATH']}", "HOME": str(folder)}

    def packhorse(*arguments: str) -> str:
        return subprocess.run(["packhorse", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout

    (folder / "my_actors.py").write_text(ACTORS)
    output = folder / "output"
    with output.open("wb") as stream:
        up = subprocess.Popen(
            ["packhorse", "up", "--actors", "my_actors", "--processes", "2"],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(lambda: output.read_text().count("worker_started") == 2 or up.poll() is not None, 60)
        assert up.poll() is None, output.read_text()
        packhorse("enqueue", "greet", '{"name": "wheel"}')
        wait_until(lambda: "hello wheel" in output.read_text())
        wait_until(lambda: '"state": "done"' in packhorse("message", "list", "--json"))
        assert "packhorse 0" in packhorse("--version")
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0, output.read_text()
        assert "Database   stopped" in output.read_text() and "Traceback" not in output.read_text()
        assert not (folder / ".packhorse/postgres/postmaster.pid").exists()
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
