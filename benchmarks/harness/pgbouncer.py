"""A PgBouncer in transaction mode in front of the server of a run (Debian: apt-get install pgbouncer)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from benchmarks.harness.ports import free_port, wait_listening
from benchmarks.harness.postgres import Postgres

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


class PgBouncer:
    """pool_size: connections to the server. Raises FileNotFoundError where it is not installed."""

    def __init__(self, server: Postgres, pool_size: int = 20) -> None:
        if PROGRAM is None:
            raise FileNotFoundError("pgbouncer is not installed")
        with psycopg.connect(server.uri("postgres")) as connection:
            place, role = connection.info.host, connection.info.user
        self._role, self.port = role, free_port()
        self._home = Path(tempfile.mkdtemp(prefix="packhorse-bench-pgbouncer-"))
        (self._home / "users").write_text(f'"{role}" ""\n')
        (self._home / "ini").write_text(
            f"[databases]\n* = host={place} port=5432\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {self._home / 'users'}\n"
            f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 2000\n"
        )
        command = [PROGRAM, "-q", str(self._home / "ini")]
        if os.geteuid() == 0:  # it refuses to run as root
            for folder in (self._home, server.folder, server.folder / "pg"):
                folder.chmod(0o755)
            command = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", *command]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
        )
        try:
            wait_listening(self.port, self._process)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def uri(self, database: str) -> str:
        """Connection string of a database through the pooler."""
        return f"postgresql://{self._role}@127.0.0.1:{self.port}/{database}"

    def close(self) -> None:
        """Stop it and remove its directory."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)
