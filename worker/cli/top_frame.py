"""One frame of `packhorse top`: a Sample as lines that fit the terminal. Numbers only; no payloads, keys or
error texts.
"""

from __future__ import annotations

import textwrap
from typing import Any

from packhorse.worker.cli.render import clean
from packhorse.worker.records import Row
from packhorse.worker.store.top import Sample

#: Lines of a section beside its head, where the terminal is low.
LEAST_ROWS = 2
#: What a worker told longer ago is said to be old.
OLD_SECONDS = 5.0


def frame(look: Sample | None, *, title: str, problem: str | None, width: int, height: int) -> list[str]:
    """At most `height` lines of at most `width` characters, cut between words. problem: the database is
    away.
    """
    lines = _wrapped(title, width)
    if problem:
        lines += _wrapped(f"! {problem}; trying again" + ("; what follows is old" if look else ""), width)
    if look is not None:
        sections = [
            _queues(look),
            _workers(look, width),
            _oldest(look),
            _conversations(look),
            _dead(look),
            _maintenance(look),
        ]
        lines += _fit(sections, height - len(lines))
    return [_clipped(_plain(line), width) for line in lines[:height]]


def _plain(line: str) -> str:
    return clean(line).replace("\n", " ")


def _wrapped(text: str, width: int) -> list[str]:
    """A sentence on as many lines as it needs."""
    return textwrap.wrap(_plain(text), max(width, 10), subsequent_indent="  ") or [""]


def _clipped(line: str, width: int) -> str:
    """As much of a line as there is room for, its words whole."""
    if len(line) <= width:
        return line
    room = line[: max(width - 2, 0) + 1]
    return (room[: room.rfind(" ")].rstrip() if " " in room.strip() else room[:-1]) + " …"[: max(width, 0)]


def _name(text: str, most: int) -> str:
    """A name for a column; one that goes on says so."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _fit(sections: list[list[str]], height: int) -> list[str]:
    """Sections one after the other; the longest give lines up first, each keeps its head and two rows."""
    sizes = [len(section) for section in sections]
    while sum(sizes) > height and max(sizes) > 1 + LEAST_ROWS:
        sizes[sizes.index(max(sizes))] -= 1
    lines = []
    for section, size in zip(sections, sizes, strict=True):
        shown = (
            section
            if size >= len(section)
            else [*section[: size - 1], f"  ... {len(section) - size + 1} more"]
        )
        lines += shown
    return lines


#: Columns of the queues, and the state that each counts.
_STATES = (("due", "pending"), ("delayed", "delayed"), ("running", "running"), ("blocked", "blocked"))


def _queues(look: Sample) -> list[str]:
    head = f"{'QUEUE':<20}{'due':>9}{'delayed':>9}{'running':>9}{'blocked':>9}{'oldest':>9}"
    return [
        head,
        *(
            _name(row["queue"], 19).ljust(20)
            + "".join(_count(row[name], state in row["estimates"]).rjust(9) for name, state in _STATES)
            + f"{_age(row['oldest_due_seconds']):>9}{_remark(row)}"
            for row in look.queues
        ),
    ]


def _remark(row: Row) -> str:
    if not row["declared"]:
        return "  not declared"
    return "  paused" if row["paused"] else ""


def _workers(look: Sample, width: int) -> list[str]:
    live = [row for row in look.workers if not row["silent"]]
    silent = len(look.workers) - len(live)
    running, threads = sum(row["running"] for row in live), sum(row["threads"] for row in live)
    # coroutines need no thread each
    busy = f"{running} of {threads} threads busy" if running <= threads else f"{running} handlers run"
    head = f"WORKERS {len(live)}{f' and {silent} silent' if silent else ''}, {busy}, {_rates(live)}{_how_old(live)}"
    return [
        *_wrapped(head, width),
        *(
            f"  {_name(row['hostname'], 16):<17}{row['pid']:>8}  {'silent' if row['silent'] else row['state']:<9}"
            f"{row['running']:>5}/{row['threads']:<5}{row['done_total']:>9} done{row['failed_total']:>7} failed{_problems(row)}"
            for row in look.workers
        ),
    ]


def _problems(row: Row) -> str:
    found = row["problems"]
    return f"  {found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}" if found else ""


def _oldest(look: Sample) -> list[str]:
    return [
        "OLDEST DUE" if look.oldest else "OLDEST DUE none",
        *(
            f"  {row['id']:<12}{_name(row['queue'], 20):<21}{_name(row['message_type'], 24):<25}{_age(row['late_seconds']):>8}"
            for row in look.oldest
        ),
    ]


def _conversations(look: Sample) -> list[str]:
    return [
        f"BLOCKED CONVERSATIONS {_counted(look.conversations['waiting'], look.conversations['is_limit'])}",
        *(_waiting(row) for row in look.conversations["oldest"]),
    ]


def _waiting(row: Row) -> str:
    holder = f"{row['holder_kind'] or 'its turn'} {row['holder_id'] or ''}"
    return f"  message {row['message_id']} waits {_age(row['waiting_seconds'])} for {holder}".rstrip()


def _dead(look: Sample) -> list[str]:
    return [
        f"DEAD LETTERS {_counted(look.dead['recent'], look.dead['recent_is_limit'])} in the last hour, "
        f"{_counted(look.dead['kept'], look.dead['kept_is_limit'])} kept",
        *(
            f"  {row['count']:>6}  {_name(row['message_type'], 28):<29}{_name(row['error_class'] or row['reason'], 30)}"
            for row in look.dead["causes"][:5]
        ),
    ]


def _maintenance(look: Sample) -> list[str]:
    return [
        "MAINTENANCE" if look.maintenance else "MAINTENANCE nothing runs",
        *(_run(row) for row in look.maintenance),
    ]


def _run(row: Row) -> str:
    held = f"  held by {row['gate']}" if row["gate"] else ""
    return f"  {_name(row['task'], 34):<35}{row['state']:<9}{row['rows_done']:>10} rows{_age(row['age_seconds']):>8}{held}"


def _rates(live: list[Row]) -> str:
    """Done and failed per second, of each worker over its last heartbeats, and over how long that is at
    most.
    """
    counted = [row for row in live if row["seconds"] is not None]
    if not counted:
        return "- done/s, - failed/s"
    done, failed = (sum(row[name] for row in counted) for name in ("done_per_second", "failed_per_second"))
    return f"{done:.1f} done/s, {failed:.1f} failed/s over {_age(max(row['seconds'] for row in counted))}"


def _how_old(live: list[Row]) -> str:
    """What workers tell with their heartbeats is said to be old when it is."""
    oldest = max((row["age_seconds"] for row in live), default=0.0)
    return f", as of {_age(oldest)} ago" if oldest > OLD_SECONDS else ""


def _count(value: Any, estimated: bool = False) -> str:
    return ("~" if estimated else "") + str(value or 0)


def _counted(value: Any, is_limit: bool) -> str:
    """A count that may have stopped at its limit."""
    return f"{value}{'+' if is_limit else ''}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"
