"""A command on a pseudo-terminal, as a person has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading

from tests.support.cli import COMMAND, Cli
from tests.support.waiting import wait_until


class Terminal:
    """24 lines of so many columns. stdout: None for the terminal, as stderr; else where it goes instead."""

    def __init__(
        self, cli: Cli, *arguments: str, columns: int = 80, term: str = "xterm", stdout: int | None = None
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._before = termios.tcgetattr(self._theirs)
        environment = {name: value for name, value in cli.environment.items() if name != "COLUMNS"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=cli.folder,
            env={**environment, "TERM": term},
            stdin=self._theirs,
            stdout=self._theirs if stdout is None else stdout,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._drawn = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ends()
        os.close(self._ours)

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65536):
                self._drawn += data
        except OSError:  # EIO: nobody has the other side any more
            pass

    @property
    def text(self) -> str:
        """All that was drawn since shows(), as it was drawn."""
        return self._drawn.decode(errors="replace")

    @property
    def plain(self) -> str:
        """The same without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)

    @property
    def is_given_back(self) -> bool:
        """Are its settings those from before the command?"""
        return termios.tcgetattr(self._theirs) == self._before

    def shows(self, text: str, timeout_seconds: float = 60.0) -> None:
        """Wait until this is drawn, wherever its lines are broken; forget what was drawn so far."""

        def is_there() -> bool:
            return text in " ".join(self.text.split())

        wait_until(lambda: is_there() or self.process.poll() is not None, timeout_seconds, text)
        assert is_there(), f"{text!r} is not in {self.text!r}"
        self._drawn.clear()

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ends(self, timeout_seconds: float = 60.0) -> tuple[int, str]:
        """Wait for the end of the command: its exit code, and its stdout where that is a pipe."""
        out, _ = self.process.communicate(timeout=timeout_seconds)
        if self._theirs >= 0:
            os.close(self._theirs)
            self._theirs = -1
        self._reader.join(timeout_seconds)
        return self.process.returncode, (out or b"").decode()
