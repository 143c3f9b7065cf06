"""The embedded PostgreSQL: start, join, stop when the last one leaves, survive what kills its users."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psycopg
import pytest

from packhorse.worker import forks
from packhorse.worker.db.embedded import Embedded, EmbeddedError, programs, running_url
from tests.support.postgres import open_for_everyone
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

#: Holds the server in another process until it is told to go.
HOLDER = """
import sys, pathlib
from packhorse.worker.db.embedded import Embedded
server = Embedded(pathlib.Path(sys.argv[1])).start()
print("held", flush=True)
sys.stdin.readline()
print("stopped" if server.stop() else "left", flush=True)
"""


@pytest.fixture
def folder():
    """A short path, and whatever happens in a test no server outlives it."""
    path = Path(tempfile.mkdtemp(prefix="ph-", dir="/tmp"))
    yield path
    pid_file = path / "data" / "postgres" / "postmaster.pid"
    if running_url(path / "data") is not None:
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        wait_until(lambda: not pid_file.exists())
    subprocess.run(["rm", "-rf", str(path)], check=True)


def hold(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def answers(url: str | None) -> bool:
    if url is None:
        return False
    with psycopg.connect(url) as connection:
        return connection.execute("select 1").fetchone() == (1,)


def test_start_makes_a_database_whose_working_role_is_no_superuser(folder):
    with Embedded(folder / "data") as server:
        assert len(server.prepare()) > 0 and server.prepare() == []
        with psycopg.connect(server.url) as connection:
            assert connection.execute(
                "select current_user, rolsuper, rolbypassrls from pg_roles where rolname = current_user"
            ).fetchone() == ("packhorse", False, False)
            assert connection.execute("select count(*) from message_queue").fetchone() == (0,)
            assert connection.execute("show listen_addresses").fetchone() == ("",)
            assert connection.execute("show server_version_num").fetchone()[0].startswith("18")
    assert running_url(folder / "data") is None


def test_data_survives_a_restart(folder):
    with Embedded(folder / "data") as server:
        server.prepare()
        with psycopg.connect(server.url) as connection:
            connection.execute("select enqueue_message('default', 'x')")
    with Embedded(folder / "data") as server, psycopg.connect(server.url) as connection:
        assert connection.execute("select count(*) from message_queue").fetchone() == (1,)


def test_the_server_stops_with_the_last_one_that_has_it(folder):
    first = Embedded(folder / "data").start()
    first.prepare()
    assert first.started_it
    other = hold(folder / "data")
    assert first.stop() is False
    assert answers(running_url(folder / "data")), "another process uses it"
    assert other.communicate("go\n", timeout=30)[0] == "stopped\n"
    assert running_url(folder / "data") is None


def test_a_killed_user_is_forgotten(folder):
    mine = Embedded(folder / "data").start()
    other = hold(folder / "data")
    other.kill()
    other.wait()
    assert mine.stop() is True


def test_a_killed_owner_leaves_a_server_that_the_next_one_joins_and_stops(folder):
    owner = hold(folder / "data")
    owner.kill()
    owner.wait()
    assert running_url(folder / "data") is not None
    server = Embedded(folder / "data").start()
    assert not server.started_it
    assert server.stop() is True and running_url(folder / "data") is None


def test_a_server_that_was_killed_is_started_again_despite_its_stale_files(folder):
    server = Embedded(folder / "data").start()
    server.prepare()
    pid = int((folder / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running_url(folder / "data") is None)
    again = Embedded(folder / "data").start()
    assert again.started_it and answers(again.url)
    server.stop()
    again.stop()


def test_two_that_start_at_once_share_one_server(folder):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder / "data")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    assert [holder.stdout.readline() for holder in both] == ["held\n", "held\n"]
    answers_ = [both[0].communicate("go\n", timeout=30)[0], both[1].communicate("go\n", timeout=30)[0]]
    assert answers_ == ["left\n", "stopped\n"]


def test_a_forked_child_that_exits_does_not_stop_the_server(folder):
    server = Embedded(folder / "data").start()
    server.prepare()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if server.stop() is False else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert answers(server.url)
    assert server.stop() is True


def test_what_a_handler_forks_does_not_have_the_server(folder):
    """A helper that outlives its worker process keeps nobody from starting the server again."""
    server = Embedded(folder / "data").start()
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        forks.protect({signal.SIGTERM: lambda _number, _frame: None})
        helper = os.fork()
        if helper == 0:
            os.write(write, f"{os.getpid()}\n".encode())
            time.sleep(60)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0
    helper = int(os.read(read, 100))
    try:
        assert server.stop() is True
        again = subprocess.run(
            [sys.executable, "-c", HOLDER, str(folder / "data")],
            input="go\n",
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=True,
        )
        assert again.stdout == "held\nstopped\n"
    finally:
        os.kill(helper, signal.SIGKILL)


def test_a_path_too_long_for_a_socket_gets_a_short_socket_folder(folder):
    deep = folder / ("d" * 60) / ("e e" * 15)
    with Embedded(deep) as server:
        server.prepare()
        assert answers(server.url)
        socket_dir = Path((deep / "postgres" / "postmaster.pid").read_text().splitlines()[4])
        assert len(str(socket_dir)) < 60
    assert not socket_dir.exists()


def test_a_half_made_data_directory_is_made_anew(folder):
    (folder / "data" / "postgres.partial").mkdir(parents=True)
    (folder / "data" / "postgres.partial" / "PG_VERSION").write_text("18")
    with Embedded(folder / "data") as server:
        assert server.started_it


def test_data_of_another_release_is_refused_and_left_alone(folder):
    (folder / "data" / "postgres").mkdir(parents=True)
    (folder / "data" / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match="PostgreSQL 12"):
        Embedded(folder / "data").start()
    assert (folder / "data" / "postgres" / "PG_VERSION").read_text() == "12\n"


def test_a_folder_that_cannot_be_made_is_named(folder):
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedError, match="data_dir"):
        Embedded(folder / "file" / "data").start()


def test_a_normal_user_starts_a_server_of_its_own(folder):
    """The other tests run as whoever runs them; as root this one gives root up first, in a child."""
    if os.geteuid() != 0:
        pytest.skip("the other tests show it: they do not run as root")
    open_for_everyone(programs())
    user = pwd.getpwnam("nobody")
    home = folder / "home"
    home.mkdir()
    os.chown(home, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.chdir(home)
            with Embedded(Path("data")) as server:
                server.prepare()
                code = 0 if answers(server.url) and os.stat("data/postgres").st_uid == user.pw_uid else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
