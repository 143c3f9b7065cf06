"""Tables for people, one JSON document for scripts. Values are shown as text, never as markup or escape
codes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from packhorse.worker.records import Row

#: Columns of a table that is not shown on a terminal: wide enough that nothing is cut.
PIPE_WIDTH = 250


def print_json(document: Any) -> None:
    """One JSON document on stdout; times in ISO 8601."""
    print(
        json.dumps(
            document, ensure_ascii=not _unicode(), indent=2 if sys.stdout.isatty() else None, default=_plain
        )
    )


def json_line(document: Any) -> str:
    """A document on one line."""
    return json.dumps(document, ensure_ascii=not _unicode(), default=_plain)


def print_paused(kind: str, name: str, paused: bool, changed: bool, as_json: bool) -> None:
    """What became of a pause or a resume. kind: what is paused, the key of its name."""
    if as_json:
        print_json({kind: name, "paused": paused, "changed": changed})
    elif paused:
        print(f"{name} is paused" if changed else f"{name} was paused already")
    else:
        print(f"{name} goes on" if changed else f"{name} was not paused")


def _unicode() -> bool:
    """Can stdout print every character?"""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def print_rows(found: Sequence[Row], columns: Sequence[str], *, empty: str) -> None:
    """A table with these columns of the rows; the sentence `empty` when there are none.

    On a terminal that is too narrow for it each row is printed as fields: ids and fingerprints stay whole, to
    be copied.
    """
    from rich.measure import Measurement
    from rich.table import Table

    if not found:
        print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = all(
            isinstance(row[column], (int, float)) and not isinstance(row[column], bool) for row in found
        )
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in found:
        table.add_row(*(_text(row[column]) for column in columns))
    console = _console()
    # the least width at which every word of every column is on one line
    if (
        Measurement.get(console, console.options.update(width=PIPE_WIDTH * 100), table).minimum
        <= console.width
        or not sys.stdout.isatty()
    ):
        console.print(table)
        return
    for number, row in enumerate(found):
        if number:
            print()
        print_fields({column: row[column] for column in columns})


def print_fields(row: Row) -> None:
    """One row, a field per line; JSON fields indented; fields without a value left out."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in row.items():
        if value is not None and value != []:
            table.add_row(name.replace("_", " "), _text(value, indent=2))
    _console().print(table)


def with_tracebacks(row: Row) -> Row:
    """A message for people: the tracebacks in its history as fields of their own, on lines of their own. One
    that the row has whole is left out.
    """
    history = row.get("history")
    if not isinstance(history, list):
        return row
    shown: Row = {}
    for name, value in row.items():
        shown[name] = value
        if name == "history":
            entries = [entry for entry in history if isinstance(entry, dict)]
            shown[name] = [
                {key: item for key, item in entry.items() if key != "traceback"} for entry in entries
            ]
            if row.get("traceback") and entries:
                entries = entries[:-1]
            failed = [entry for entry in entries if isinstance(entry.get("traceback"), str)]
            shown |= {
                f"attempt {entry.get('attempt')}, {str(entry.get('at'))[:19]}": entry["traceback"]
                for entry in failed
            }
    return shown


def print_diff(lines: Sequence[str]) -> None:
    """A unified diff, in colour on a terminal; an empty one is said."""
    from rich.text import Text

    if not lines:
        print("no difference")
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        _console().print(Text(clean(line), style=styles.get(line[:1], "")), soft_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr while the block runs, when that is a terminal; yields "advance by n"."""
    if not sys.stderr.isatty() or total < 2:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps per second, once there is one to tell."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def clean(text: str) -> str:
    """Text without escape sequences and other control characters, except line ends and tabs."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def _console() -> Any:
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False, emoji=False
    )


def _text(value: Any, indent: int | None = None) -> Any:
    from rich.text import Text

    if value is None:
        shown = "-"
    elif isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, float):
        shown = f"{value:.3f}".rstrip("0").rstrip(".")
    elif isinstance(value, datetime):
        shown = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") + "Z"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        shown = ", ".join(value)
    elif isinstance(value, (dict, list)):
        shown = json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)
    else:
        shown = str(value)
    return Text(clean(shown))


def _plain(value: Any) -> Any:
    """JSON for what json does not know."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
