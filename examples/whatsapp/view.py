"""What a person sees: one live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.whatsapp.events import Events
from examples.whatsapp.feed import Feed
from examples.whatsapp.order import Conversation, OrderBook
from examples.whatsapp.watch import Picture

PLAIN_SECONDS = 2.0
MARKS = {200: ("✓", "green"), 429: (":429", "yellow"), 500: (":500", "red")}


class View:
    """Entered around the run; `update` is called a few times per second with a fresh Picture."""

    def __init__(self, feed: Feed, book: OrderBook, events: Events, console: Console | None = None) -> None:
        self._feed, self._book, self._events = feed, book, events
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = (
            Live(console=self.console, auto_refresh=False, transient=False)
            if self.console.is_terminal
            else None
        )
        self._next_line = 0.0
        self.note = ""  # what the program is about: feeding, draining

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, picture: Picture, *, last: bool = False) -> None:
        """Show the picture; `last` shows it even when a plain line was printed a moment ago."""
        if self._live is not None:
            self._live.update(self.screen(picture), refresh=True)
            return
        for line in self._events.take():
            self._print(line)
        if last or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_SECONDS
            self._print(f"          {counts_line(picture, self._feed)}")

    def screen(self, picture: Picture) -> Group:
        """The whole screen as one renderable."""
        shown = max(3, self.console.height - 16)  # the rest of the screen has 15 lines
        events = Text("\n".join(self._events.last()[-shown:]), style="dim", no_wrap=True, overflow="ellipsis")
        title = Text.assemble(
            ("WhatsApp through Packhorse  ", "bold"),
            (f"{picture.workers} worker processes  ", ""),
            (self.note, "cyan"),
        )
        return Group(title, self._counts(picture), self._conversations(picture), events)

    def _counts(self, picture: Picture) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        cells: list[tuple[str, int, str]] = [
            ("received", self._feed.received, ""),
            ("merged", self._feed.merged, ""),
            ("deduplicated", self._feed.deduplicated, ""),
            ("refused", self._feed.refused, ""),
            ("enqueued", self._feed.enqueued, "bold"),
            ("due", picture.count("pending"), ""),
            ("running", picture.count("running"), "cyan"),
            ("retry waiting", picture.count("waiting"), "yellow"),
            ("blocked", picture.count("blocked"), "yellow"),
            ("done", picture.count("done"), "green"),
            ("dead", picture.count("dead"), "red"),
            ("cancelled", picture.count("cancelled"), ""),
        ]
        for name, _, style in cells:
            table.add_column(name, justify="right", style=style)
        table.add_row(*(str(number) for _, number, _ in cells))
        return table

    def _conversations(self, picture: Picture) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in (
            "conversation",
            "messages",
            "replies",
            "waiting behind",
            "asked of the Cloud API, in this order",
        ):
            table.add_column(name, no_wrap=True)
        for phone, conversation in sorted(self._book.snapshot().items()):
            waiting, behind = picture.blocked.get(phone, (0, ""))
            held = f"{waiting} ({behind})" if waiting else ""
            table.add_row(
                f"+{phone}",
                str(conversation.announced),
                str(conversation.replies),
                held,
                _recent(conversation),
            )
        return table

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False)


def counts_line(picture: Picture, feed: Feed) -> str:
    """The counts as one plain line."""
    names: list[tuple[str, Callable[[], int]]] = [
        ("received", lambda: feed.received),
        ("merged", lambda: feed.merged),
        ("deduplicated", lambda: feed.deduplicated),
        ("refused", lambda: feed.refused),
        ("due", lambda: picture.count("pending")),
        ("running", lambda: picture.count("running")),
        ("retry waiting", lambda: picture.count("waiting")),
        ("blocked", lambda: picture.count("blocked")),
        ("done", lambda: picture.count("done")),
        ("dead", lambda: picture.count("dead")),
        ("cancelled", lambda: picture.count("cancelled")),
    ]
    return ", ".join(f"{name} {value()}" for name, value in names)


def _recent(conversation: Conversation) -> Text:
    text = Text()
    for number, status in conversation.recent:
        mark, style = MARKS.get(status, (f":{status}", ""))
        text.append(f"{number}", style="bold").append(f"{mark} ", style=style)
    return text


def say(line: str) -> None:
    """A line before the view starts or after it ended."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
