"""What handlers do in tests: leave a line in the ledger, and wait."""

from __future__ import annotations

import os
import threading


def note(event: str, key: object) -> None:
    """One line, one write: atomic, and there whatever happens next."""
    path = os.environ.get("LEDGER")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{event} {key} {os.getpid()}\n".encode())
        os.close(fd)


def nap(seconds: float) -> None:
    """One wait in C: no exception gets in before it ends. Not time.sleep, which fails under libfaketime."""
    threading.Event().wait(seconds)
