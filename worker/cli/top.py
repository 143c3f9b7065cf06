"""packhorse top: queues, workers and what hangs, live; goes on while the database is away."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from packhorse.worker.cli.common import database_url, duration
from packhorse.worker.cli.render import PIPE_WIDTH
from packhorse.worker.cli.top_frame import frame
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db import schema_version
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import StoreUnavailable, WorkerError
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.store import top as store

#: Deadline of one look: a screen that stands still must say why.
LOOK_SECONDS = 5.0
PIPE_HEIGHT = 1000


def top(
    interval: Annotated[
        float | None, duration("--interval", "Time between two looks; default 2s, 200ms at least.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end; for scripts.")] = False,
) -> int:
    """Queues, workers, oldest messages, blocked conversations, dead letters and maintenance, live; q or
    Ctrl-C ends it.
    """
    settings = load_settings()
    link = Link(lambda: _open(settings))
    try:
        if once or not sys.stdout.isatty():
            width, height = (
                (os.get_terminal_size().columns, PIPE_HEIGHT)
                if sys.stdout.isatty()
                else (PIPE_WIDTH, PIPE_HEIGHT)
            )
            print(*frame(_look(link), title=_title(), problem=None, width=width, height=height), sep="\n")
        else:
            _look(link)  # what is wrong before the first frame is an error, not a picture
            _watch(link, max(2.0 if interval is None else interval, 0.2))
    finally:
        link.close()
    return EXIT_OK


def _open(settings: Settings) -> DeadlineConnection:
    connection = open_work(settings, "top", url=database_url(settings), deadline_seconds=LOOK_SECONDS)
    schema_version.check(connection)
    return connection


def _look(link: Link) -> store.Sample:
    with link.connection() as connection:
        return store.look(connection)


def _title() -> str:
    return time.strftime("packhorse top  %H:%M:%S  (q ends)")


def _watch(link: Link, interval: float) -> None:
    """Draw until q or Ctrl-C. An error is shown in the frame, with the last look below it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    now: store.Sample | None = None
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            problem = None
            try:
                now = _look(link)
            except StoreUnavailable as error:
                problem = f"the database is away: {error}"
            except WorkerError as error:  # migrated under us, a right taken away: say so and look again
                problem = str(error)
            lines = frame(now, title=_title(), problem=problem, width=console.width, height=console.height)
            live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
            if pressed(interval):
                return


@contextmanager
def _keys() -> Iterator[Any]:
    """Yield "wait so long; was q pressed, or an end asked for?"; keys are read without Enter, and the
    terminal is restored.
    """
    import termios
    import tty

    # a signal that arrives between two looks must end the wait, and one inside a look must not tear the
    # screen
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    old_handlers = {
        number: signal.signal(number, lambda _number, _frame: os.write(write_end, b"q"))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    stdin = sys.stdin.fileno() if sys.stdin.isatty() else None
    saved = termios.tcgetattr(stdin) if stdin is not None else None
    if stdin is not None:
        tty.setcbreak(stdin)

    def pressed(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        sources = [read_end] if stdin is None else [read_end, stdin]
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select(sources, [], [], left)
            typed = b"".join(os.read(source, 64) for source in ready)
            if stdin in ready and not typed:
                sources.remove(stdin)  # the terminal is gone; a signal ends us
            if b"q" in typed.lower() or b"\x03" in typed:
                return True
        return False

    try:
        yield pressed
    finally:
        if stdin is not None and saved is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)
