"""What an act is made of: its fields, what a form said, what a preview shows. The acts themselves are in
acts/.

An act is one function of worker/ops or worker/store with a form before it. Nothing here or in acts/ decides
what is allowed in the queue.
"""

from __future__ import annotations

import math
import secrets
import shlex
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import payloads, where
from packhorse.worker.records import Row
from packhorse.worker.web.access import Role, Visitor

MOST_TEXT, MOST_REASON = 500, 1000
MOST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FormField:
    """One field. kind: text, integer, decimal, duration, moment, choice, flag, payload, settings (lines
    PATH=VALUE), filter.

    target: it says on what the act works, stands in the address, and is not asked for. default: as text.
    choices: value -> label.
    """

    name: str
    label: str
    kind: str = "text"
    hint: str = ""
    required: bool = False
    target: bool = False
    default: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    least: int = 0
    most: int = MOST_ID
    placeholder: str = ""

    def read(self, text: str) -> Any:
        """The value; None (False for a flag) when nothing was given. Raises InvalidArgument that names the
        field.
        """
        if self.kind == "flag":
            return text not in ("", "0")
        if self.kind not in ("payload", "settings"):
            text = text.strip()
        if not text:
            if self.required:
                raise self.wrong("is missing", self.hint or None)
            return () if self.kind == "settings" else None
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise self.wrong("a character that PostgreSQL cannot store", "Leave it out")
        return getattr(self, f"_{self.kind}")(text)

    def wrong(self, problem: str, hint: str | None = None) -> InvalidArgument:
        return InvalidArgument(f"{self.name}: {problem}", field=self.name, hint=hint)

    def _text(self, text: str) -> str:
        if len(text) > MOST_TEXT:
            raise self.wrong(f"{len(text)} characters, at most {MOST_TEXT}", "Shorten it")
        return text

    def _filter(self, text: str) -> str:
        return text  # ops/where.py bounds and reads it

    def _integer(self, text: str) -> int:
        if not (
            text.isascii() and text.isdigit() and len(text) <= 19 and self.least <= int(text) <= self.most
        ):
            raise self.wrong(f"{text[:40]!r} is not a whole number from {self.least} to {self.most}")
        return int(text)

    def _decimal(self, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and self.least <= found <= self.most):
            raise self.wrong(f"{text[:40]!r} is not a number from {self.least} to {self.most}")
        return found

    def _duration(self, text: str) -> float:
        try:
            return where.duration_seconds(text)
        except InvalidArgument as error:
            raise self.wrong(str(error).removeprefix("where: "), None) from None

    def _moment(self, text: str) -> datetime:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise self.wrong(f"{text[:40]!r} is not an ISO 8601 time", "Write 2030-01-31T12:00Z") from None
        if found.tzinfo is None:
            raise self.wrong(f"{text[:40]!r} has no time zone", "Append Z or +00:00")
        return found

    def _choice(self, text: str) -> str:
        if text not in self.choices:
            raise self.wrong(f"{text[:40]!r} is none of them", "One of: " + ", ".join(self.choices))
        return text

    def _payload(self, text: str) -> dict[str, Any]:
        return payloads.read_object(self.name, text)

    def _settings(self, text: str) -> tuple[tuple[str, Any], ...]:
        return tuple(
            payloads.read_setting(self.name, line.strip()) for line in text.splitlines() if line.strip()
        )


@dataclass(frozen=True, slots=True)
class Submission:
    """What a form said. values: by field, read; texts: as they were written. operator: the visitor's name;
    reason: None when he gave none.
    """

    values: Mapping[str, Any]
    texts: Mapping[str, str]
    operator: str
    reason: str | None

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def text(self, name: str) -> str:
        return self.texts.get(name, "")


@dataclass(frozen=True, slots=True)
class Preview:
    """What an act would do. sentence: in words. lines: of a difference. warnings: sentences. count: on how
    many; 0: there is nothing to do.

    kept: what the confirmation brings back, so that it does what was shown: texts by name. estimated: count
    is an estimate, and the visitor may ask for a whole count.
    """

    sentence: str
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    count: int = 1
    kept: Mapping[str, str] = field(default_factory=dict)
    estimated: bool = False


class Report(Protocol):
    """How far a long act is: called with how many more are done. begins: with how many there are, where that
    is known only then."""

    def __call__(self, count: int) -> Any: ...

    def begins(self, count: int) -> Any: ...


Place = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class LongWork:
    """What takes longer than a request. total: so many at most; 0 when nobody can say, and then a stop ends
    its statement. run(connection, report, stop): the sentence of its end, and whether it is a good one.
    place: of the page on which its effect is seen. as_owner: on a connection of the tables' owner.
    """

    title: str
    total: int
    run: Callable[[DeadlineConnection, Report, Any], tuple[str, bool]]
    place: Place
    as_owner: bool = False


@dataclass(frozen=True, slots=True)
class ActForm:
    """An act as the page offers it: `name` is in its address, `role` is the least that may do it.

    run: does it and answers with a sentence. show: instead of run, what the visitor asked to see, which is
    recorded. long: instead of run, says what is to be done in the background. load: texts of fields, read
    when the visitor asks for them (a payload: recorded). prefill: the same when the form is opened, for what
    is no secret. preview: shown before it is done. command: the words of the command line that does the same.
    place: the page on which its effect is seen. danger: it cannot be taken back. records_preview: the
    preview shows a part of a payload, which is recorded; others only read. as_owner: the preview looks
    with the rights of the tables' owner.
    """

    name: str
    role: Role
    label: str
    about: str
    fields: tuple[FormField, ...]
    command: Callable[[Submission], list[str]]
    place: Callable[[Submission], Place]
    run: Callable[[DeadlineConnection, Submission], str] | None = None
    show: Callable[[DeadlineConnection, Submission], Row] | None = None
    long: Callable[[DeadlineConnection, Submission], LongWork] | None = None
    load: Callable[[DeadlineConnection, Submission], Mapping[str, str]] | None = None
    prefill: Callable[[DeadlineConnection, Submission], Mapping[str, str]] | None = None
    preview: Callable[[DeadlineConnection, Submission], Preview] | None = None
    danger: bool = False
    records_preview: Callable[[Submission], bool] = lambda given: False
    as_owner: bool = False

    @property
    def path(self) -> str:
        return f"/acts/{self.name}"

    @property
    def targets(self) -> tuple[FormField, ...]:
        return tuple(each for each in self.fields if each.target)

    @property
    def asked(self) -> tuple[FormField, ...]:
        return tuple(each for each in self.fields if not each.target)

    def command_line(self, given: Submission) -> str:
        """As a person types it; capitals stand for what is not filled in yet."""
        words = self.command(given)
        return shlex.join(["packhorse", *words, *(["--reason", given.reason] if given.reason else [])])


REASON = FormField("reason", "Why", hint="For the record: operator_actions keeps it with your name.")


def read_submission(
    fields: tuple[FormField, ...], given: Mapping[str, str], visitor: Visitor, *, lenient: bool = False
) -> Submission:
    """The values of these fields. lenient: what is missing or wrong is left out. Raises InvalidArgument."""
    values: dict[str, Any] = {}
    for each in fields:
        text = given.get(each.name, "" if not lenient else each.default)
        try:
            values[each.name] = each.read(text)
        except InvalidArgument:
            if not lenient or each.target:
                raise
    reason = given.get("reason", "").strip()
    if not lenient and (len(reason) > MOST_REASON or "\0" in reason):
        raise REASON.wrong(f"{len(reason)} characters, at most {MOST_REASON}, none of them NUL", "Shorten it")
    return Submission(values, given, visitor.name, reason or None)


class Notices:
    """What an act has said, for the page that comes after it. Kept here and named by chance: an address that
    somebody sends cannot put words into the page."""

    MOST, SECONDS = 1000, 600.0

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, str, str]] = OrderedDict()

    def put(self, visitor: Visitor, sentence: str) -> str:
        """The name of a sentence for this visitor."""
        name = secrets.token_hex(8)
        self._kept[name] = (time.monotonic(), visitor.name, sentence)
        while len(self._kept) > self.MOST:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str, visitor: Visitor | None) -> str | None:
        """None when there is none, or it is old, or another's."""
        put_at, whose, sentence = self._kept.get(name, (float("-inf"), "", ""))
        return (
            sentence
            if visitor is not None and whose == visitor.name and time.monotonic() - put_at < self.SECONDS
            else None
        )
