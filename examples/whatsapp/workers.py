"""The two worker processes, `packhorse worker examples.whatsapp.actors packhorse.schedules.actors --processes
2`, as a process tree of its own.

Each has a scheduler beside its handlers, as under `packhorse up`: none leads, each planned time fires once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from packhorse.worker.config import Settings

PROCESSES = 2
#: The parent's own limit for a drain is drain_seconds plus call_deadline_seconds plus this.
MARGIN_SECONDS = 25.0


class Workers:
    """A context manager: the tree runs while it is open, and is gone afterwards whatever happened. Logs go to
    `log_path`.
    """

    def __init__(
        self, settings: Settings, url: str, api_url: str, api_token: str, assistant_url: str
    ) -> None:
        self.log_path = settings.data_dir / "whatsapp-worker.log"
        self._limit_seconds = settings.drain_seconds + settings.call_deadline_seconds + MARGIN_SECONDS
        self._environment = os.environ | {
            "DATABASE_URL": url,
            "PACKHORSE_LOG_FORMAT": "console",
            "WHATSAPP_API_URL": api_url,
            "WHATSAPP_TOKEN": api_token,
            "ASSISTANT_URL": assistant_url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        self._environment.pop("PACKHORSE_DATABASE_URL", None)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Workers:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "packhorse.worker.cli.program",
                    "worker",
                    "examples.whatsapp.actors",
                    "packhorse.schedules.actors",
                    "--processes",
                    str(PROCESSES),
                ],
                env=self._environment,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours: we stop the feed first, then let the workers drain
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    @property
    def exit_code(self) -> int | None:
        """None while they run."""
        return None if self._process is None else self._process.poll()

    def interrupt(self) -> None:
        """SIGTERM: drain. A second one: interrupt what runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> int:
        """Drain and wait; the exit code, -9 when they had to be killed."""
        assert self._process is not None
        self.interrupt()
        try:
            return self._process.wait(self._limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def end_with_parent() -> None:
    """Between fork and exec, Linux: SIGTERM when the example is killed without a chance to clean up."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
