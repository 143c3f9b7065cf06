"""The page beside the example, `packhorse web` as a process of its own: all that runs, in a browser.

It takes a free port when the usual one is taken, and writes its address into its log.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from examples.whatsapp.workers import end_with_parent
from packhorse.worker.config import Settings

START_SECONDS, END_SECONDS = 20.0, 10.0


class Page:
    """A context manager: the page runs while it is open. address: None when it did not start; its log says
    why.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        self.log_path = settings.data_dir / "whatsapp-page.log"
        self.address: str | None = None
        self._port = _port(settings)
        self._environment = os.environ | {"DATABASE_URL": url, "PYTHONUNBUFFERED": "1"}
        self._environment.pop("PACKHORSE_DATABASE_URL", None)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Page:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "packhorse.worker.cli.program", "web", "--port", str(self._port)],
                env=self._environment,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + START_SECONDS
        while self.address is None and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            self.address = self._said()
        return self

    def _said(self) -> str | None:
        """The address in its log: a word of the line `Page ...`."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        words = next((line.split() for line in lines if line.startswith("Page ")), [])
        return words[1] if len(words) > 1 else None

    def __exit__(self, *exc: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _port(settings: Settings) -> int:
    """That of the settings; any free one when it is taken."""
    try:
        with socket.create_server((settings.web_host, settings.web_port)):
            return settings.web_port
    except OSError:
        return 0
