"""From a view model to HTML: the Jinja environment, and how numbers, times and payloads are written.

Everything is escaped; Markup is made here only, by Markup.format, which escapes what is put into it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
TEMPLATES = FOLDER / "templates"
NOTHING = "–"
#: Of a payload so many places and characters of a text are shown; what is deeper is cut.
MOST_PLACES, MOST_CHARACTERS, MOST_DEPTH = 2000, 20_000, 40
#: Control characters but newline and tab, those without width, those that turn the direction of writing,
#: halves of characters.
_HARMFUL = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff]"
)
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


@cache
def environment() -> Environment:
    """The templates, with autoescape for all of them, and an error for a name that is not there."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        number=number,
        bytes=size,
        seconds=seconds,
        ago=ago,
        exact=exact,
        percent=percent,
        visible=visible,
        payload=payload_rows,
        plural=plural,
    )
    found.globals.update(sparkline=sparkline, now=lambda: datetime.now(UTC))
    return found


@cache
def static_version(name: str) -> str:
    """Part of the address of a file, so that browsers may keep it for ever."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def link(prefix: str, path: str, query: Mapping[str, Any] | None = None) -> str:
    """An address of ours: prefix (base path, database), path, and what of the query is not None or empty."""
    given = {name: value for name, value in (query or {}).items() if value not in (None, "")}
    return prefix + path + (f"?{urlencode(given, doseq=True)}" if given else "")


def number(value: Any, unit: str = "") -> str:
    """1234567.8 -> 1 234 567.8 with thin spaces and the unit; three digits below ten."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    shown = f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.3g}"
    return shown.replace(",", "\u202f") + (f" {unit}" if unit else "")


def size(value: Any) -> str:
    """Bytes in the largest unit of which there is one."""
    if value is None:
        return NOTHING
    power = min(len(_SIZES) - 1, int(math.log(max(1, abs(value)), 1024)))
    return f"{number(value / 1024**power)} {_SIZES[power]}" if abs(value) >= 1024 else f"{value} B"


def seconds(value: Any) -> str:
    """A duration in the largest unit of which there are two: 350 ms, 90 s, 8.5 min, 3 d."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    for length, unit in _UNITS:
        if abs(value) >= 2 * length:
            return f"{value / length:.3g} {unit}"
    return f"{value:.3g} s"


def percent(value: Any) -> str:
    """0.1234 -> 12.3 %."""
    return NOTHING if value is None else f"{value * 100:.3g} %"


def plural(count: Any, one: str, many: str = "") -> str:
    """1 message, 2 messages."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def moment(value: Any) -> datetime | None:
    """A time of the database as one of Python's; None for one that Python does not have."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return value.astimezone(UTC) if isinstance(value, datetime) else None


def exact(value: Any) -> str:
    """A time to the millisecond, in UTC; a time that Python does not have as PostgreSQL writes it."""
    found = moment(value)
    return (
        NOTHING
        if value is None
        else visible(value)
        if found is None
        else found.isoformat(" ", "milliseconds").replace("+00:00", "Z")
    )


def ago(value: Any) -> str | Markup:
    """How long ago, or in how long, with the exact time on hover and for programs."""
    found = moment(value)
    if found is None:
        return exact(value)
    away = (datetime.now(UTC) - found).total_seconds()
    said = "now" if abs(away) < 1 else f"{_rough(away)} ago" if away > 0 else f"in {_rough(-away)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(found.isoformat(), exact(found), said)


def _rough(length: float) -> str:
    """A duration for which two digits are enough."""
    size, unit = next(((size, unit) for size, unit in _UNITS if length >= 2 * size), _UNITS[-1])
    return f"{length / size:.0f} {unit}" if length >= 10 * size else f"{round(length / size, 1):g} {unit}"


def visible(value: Any) -> str:
    """A text whose control characters, and those that turn the direction of writing, are seen instead of
    obeyed.
    """
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def payload_rows(value: Any, masked: bool = True) -> list[dict[str, Any]]:
    """A JSON value as lines of a tree: depth, name, kind (object, list, text, number, other), text, cut.

    masked: of each value its kind and size alone. At most MOST_PLACES lines and MOST_CHARACTERS characters of
    a text.
    """
    lines: list[dict[str, Any]] = []
    _walk(lines, 0, "", value, masked)
    return lines


def _walk(lines: list[dict[str, Any]], depth: int, name: str, value: Any, masked: bool) -> None:
    if len(lines) >= MOST_PLACES:
        if len(lines) == MOST_PLACES:
            lines.append(
                {
                    "depth": depth,
                    "name": "",
                    "kind": "other",
                    "text": "… more, which is not shown",
                    "cut": True,
                }
            )
        return
    name = visible(name)[:200]
    if isinstance(value, dict | list):
        kind, parts = (
            ("object", list(value.items())) if isinstance(value, dict) else ("list", list(enumerate(value)))
        )
        said = plural(len(parts), "field" if kind == "object" else "item")
        lines.append({"depth": depth, "name": name, "kind": kind, "text": said, "cut": False})
        if depth >= MOST_DEPTH:
            return
        for part_name, part in parts:
            if len(lines) > MOST_PLACES:
                return
            _walk(lines, depth + 1, str(part_name), part, masked)
        return
    kind = (
        "text"
        if isinstance(value, str)
        else "number"
        if isinstance(value, int | float) and not isinstance(value, bool)
        else "other"
    )
    text = (
        value
        if isinstance(value, str)
        else {True: "true", False: "false", None: "null"}.get(value, str(value))
        if kind == "other"
        else str(value)
    )
    cut = len(text) > MOST_CHARACTERS
    if masked and value is not None:
        shown = f"••• {plural(len(text), 'character')}" if kind == "text" else "•••"
    else:
        shown = visible(text[:MOST_CHARACTERS]) + (
            f"… ({len(text) - MOST_CHARACTERS} more characters)" if cut else ""
        )
    lines.append({"depth": depth, "name": name, "kind": kind, "text": shown, "cut": cut})


def sparkline(
    values: Sequence[float | None],
    label: str,
    width: int = 240,
    height: int = 40,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """A line of values as SVG, from 0 to their greatest; label says in words what it shows. Gaps where a
    value is None. marks: lines across it, as (place from 0 to 1, words)."""
    top = max([value for value in values if value is not None] + [0]) or 1
    step = width / max(1, len(values) - 1)
    paths, pen_down = [], False
    for place, value in enumerate(values):
        if value is not None:
            paths.append(
                f"{'L' if pen_down else 'M'}{place * step:.1f} {height - 1 - (height - 2) * value / top:.1f}"
            )
        pen_down = value is not None
    lines = [
        Markup(
            '<line class="mark" x1="{0}" x2="{0}" y1="0" y2="{1}" vector-effect="non-scaling-stroke"><title>{2}</title></line>'
        ).format(f"{place * width:.1f}", height, words)
        for place, words in marks
    ]
    return Markup(
        '<svg class="sparkline" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}" preserveAspectRatio="none">'
        '<title>{2}</title>{4}<path d="{3}" fill="none" stroke="currentColor" stroke-width="1.5" vector-effect="non-scaling-stroke"/></svg>'
    ).format(width, height, label, " ".join(paths), Markup("").join(lines))
