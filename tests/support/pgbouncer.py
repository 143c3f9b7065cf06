"""A real PgBouncer in transaction mode (Debian: apt-get install pgbouncer) in front of a test server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.postgres import ROLE, Server, _unprivileged_user
from tests.support.waiting import wait_until

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")


class PgBouncer:
    """One PgBouncer; few server connections, so that clients really share them."""

    def __init__(self, server: Server, directory: Path) -> None:
        assert PROGRAM is not None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        (directory / "users").write_text(f'"{ROLE}" ""\n"postgres" ""\n')
        (directory / "ini").write_text(
            f"[databases]\n* = host={server.socket_dir} port=5432\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {directory / 'users'}\npool_mode = transaction\ndefault_pool_size = 4\n"
            "max_client_conn = 200\nserver_idle_timeout = 5\n"
        )
        command = [PROGRAM, str(directory / "ini")]
        if os.geteuid() == 0:
            user = _unprivileged_user()
            for path in [directory, *directory.parents]:
                if path.stat().st_uid == 0 and path != Path("/tmp") and str(path).startswith("/tmp/"):
                    path.chmod(0o755)
            command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *command]
        self._log = (directory / "log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd="/")
        wait_until(self._answers, 10, "PgBouncer answers")

    def url(self, database: str, role: str = ROLE) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._log.close()
